from __future__ import annotations

import copy
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from grid_files import tiny, write_grid
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from robbench.cli.main import main
from robbench.core.registry import Registry
from robbench.planning.grid import Request
from robbench.planning.inputs import find_dataset
from robbench.planning.planner import make_plan
from robbench.results.store import Store

SMALL = tiny(title="small", dataset="digits", seeds=[0, 1], plugins=[])
LARGE = tiny(
    datasets=[
        "{dataset}-imbalanced",
        {"name": "digits", "classes": ["1", "2"], "split": [0.5, 0.2, 0.3], "train_counts": [5, 6]},
    ],
    conditions=[
        "clean",
        {"chain": "rotation[degrees=3]", "draws": 3},
        "perturbation+fgsm@8/255",
        "fgm@l2:each->next",
        {"chain": "pgd[steps=2]@ref", "sample": 7},
    ],
    models=[
        {"name": "a", "objective": ["cross-entropy"], "defense": "fgm[eps=0.1]"},
        {
            "name": "b",
            "start": "a",
            "defense": {"name": "fgm", "eps": 0.2},
            "balancer": "smote",
            "datasets": ["{dataset}-imbalanced"],
            "recipe": {"lr": 0.1, "batch_size": 8},
        },
    ],
)


def nested(depth: int) -> list[Any]:
    return [nested(depth - 1)] if depth else []


JUNK = st.one_of(
    st.sampled_from(
        [
            *(0, -1, 10**30, -(10**400), True, math.nan, math.inf, -math.inf, 1e-300, 1e300),
            *("", " ", "é🦆", "\x1b[31m", "[/red]", "[bold]", "a\nb", "\u2028", "\x85", "nan", "x" * 5000, "1/0"),
            *("fgsm@", "fgsm@nan", "fgsm@-1", "fgsm@1e400", "fgsm@linf:", "@", "+", "->", "fgsm@0.1->", "[[[", "]]]"),
            *("pgd[steps=]@ref", "pgd[steps=0]@ref", "pgd[step=3]@ref", "pgd[steps=3@ref"),
            *(f"pgd[steps={digits}]@ref" for digits in ("9" * 20, "9" * 400, "9" * 5000)),
            *("fgsm@l7:0.1", "mi-fgsm@l1:0.1", "art:Nope@0.1", "art:", "rotation@0.1", "perturbation->next"),
            *("digits[", "digits[a]", "digits[gallery=0]", "digits[train_fraction=2]", "digits[split_seed=-1]"),
            *("digits[train_counts=1|1]", "digits[split=0.5|0.5|0]", "digits[train_least=99999999999999999999]"),
            *("cifar-10", "image-folder", "image-folder[path=\x00]", "{}", "{dataset}{dataset}", "smote", "fgm+"),
            *([], {}, [[]], [{}], {"": ""}, {"name": 3}, {"name": ""}, {"name": "digits", "x": 1}, nested(40)),
            *({"name": "digits", "train_counts": [10**18] * 10}, {"name": "digits", "train_shares": [1e-300] * 10}),
            *({"chain": 3}, {"chain": "rotation", "draws": 10**9}, {"chain": "fgsm@ref", "draws": 2}, {"str": 1}),
        ]
    ),
    st.integers(),
    st.floats(),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=12),
)  # fmt: skip
KEYS = st.sampled_from(
    ["str", "int", "dict", "[x]", "title", "name", "model", "seed", "", "é", "a.b", "epoch", "start"]
)


def places(value: object, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where parts of a grid stand."""
    if at:
        yield at
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from places(item, (*at, key))


@st.composite
def mutated(draw: st.DrawFn) -> dict[str, Any]:
    """A valid grid with one to three things in it changed for the worse."""
    grid: dict[str, Any] = copy.deepcopy(draw(st.sampled_from([SMALL, LARGE])))
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.sampled_from(list(places(grid)) or [()]))
        if not at:
            continue
        parent: Any = grid
        for key in at[:-1]:
            parent = parent[key]
        key = at[-1]
        change = draw(st.sampled_from(["replace", "remove", "repeat", "rename", "add", "edit"]))
        if change == "remove":
            del parent[key]
        elif change == "repeat" and isinstance(parent, list):
            parent.append(copy.deepcopy(parent[key]))
        elif change == "rename" and isinstance(parent, dict):
            parent[key + draw(st.sampled_from(["s", "x", " "]))] = parent.pop(key)
        elif change == "add" and isinstance(parent, dict):
            parent[draw(KEYS)] = copy.deepcopy(draw(JUNK))
        elif change == "edit" and isinstance(parent[key], str):
            text, cut = parent[key], draw(st.integers(0, len(parent[key])))
            parent[key] = (
                text[:cut] + draw(st.sampled_from('[]@+->=,| x/1."{}é')) + text[cut + draw(st.integers(0, 1)) :]
            )
        else:
            parent[key] = copy.deepcopy(draw(JUNK))
    return grid


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder whose store holds the decoded digits."""
    path = tmp_path_factory.mktemp("grids")
    (path / "ran").mkdir()
    assert main(["plan", "--grid", str(write_grid(path / "grid.toml", SMALL)), "--out", str(path / "runs")]) == 0
    return path


def answer(folder: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """Plan the folder's grid: what it is refused for, held to the rules of complaints, or nothing."""
    grid = folder / "grid.toml"
    capsys.readouterr()
    status = main(["plan", "--grid", str(grid), "--out", str(folder / "runs")])
    error = capsys.readouterr().err
    if status == 0:
        assert error == ""
        return ""
    assert status == 2, error
    assert len(error.splitlines()) == 1
    assert error.startswith(f"robbench: {grid}: ")
    assert not [path for path in (folder / "runs").rglob("*") if path.is_file() and path.parts[-3] != "data"]
    return error


def complaint(folder: Path, capsys: pytest.CaptureFixture[str], **changes: Any) -> str:
    write_grid(folder / "grid.toml", tiny(**changes))
    error = answer(folder, capsys)
    assert error, "nothing was refused"
    return error


# --- whatever a grid says, the answer is a plan or one line


@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(grid=mutated())
def test_a_damaged_grid_is_planned_or_refused_in_one_line(
    grid: dict[str, Any], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_grid(folder / "grid.toml", grid)
    error = answer(folder, capsys)
    assert not error or 'key "' in error


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.one_of(st.binary(max_size=60), st.text(max_size=60).map(lambda text: text.encode(errors="replace"))))
@example(data=b"\xff\xfe")
@example(data=b"a = [" * 9)
@example(data=b"[" * 100_000)
@example(data=b"a = " + b"[" * 100_000)
@example(data=b"recipe.a" + b".a" * 3000 + b" = 1")
@example(data=b"seeds = [" + b"1" * 5000 + b"]")
@example(data=b"\x00")
@example(data=b"")
def test_raw_bytes_are_refused_in_one_line(data: bytes, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "grid.toml").write_bytes(data)
    assert answer(folder, capsys)


CONDITIONS = (
    "fgsm@0",
    "fgsm@1",
    "fgm@l2:1e-9->all",
    "pgd[steps=1]@l1:5->least-likely",
    "rotation+fgsm@ref->random",
    {"chain": "color-jitter", "draws": 2},
    "noise-optimization[steps=2]->3",
    "art:FastGradientMethod@0.1",
)
MODELS = (
    {"recipe": {"lr": 1e30}},
    {"recipe": {"optimizer": "sgd", "lr": 1e-300}},
    {"recipe": {"batch_size": 10**9}},
    {"objective": "angular"},
    {"defense": "perturbation+fgm[alpha=0]"},
    {"balancer": "class-weights"},
)


@pytest.mark.usefixtures("one_core", "no_figures")
@settings(max_examples=4, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    conditions=st.lists(st.sampled_from(range(len(CONDITIONS))), min_size=1, max_size=4, unique=True),
    models=st.lists(st.sampled_from(range(len(MODELS))), min_size=1, max_size=2, unique=True),
)
@pytest.mark.end_to_end
def test_a_valid_grid_is_run_to_the_end(
    conditions: list[int], models: list[int], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = tiny(
        conditions=["clean", *(CONDITIONS[at] for at in conditions)],
        models=[{"name": str(at), **MODELS[at]} for at in models],
    )
    grid, out = write_grid(folder / "ran" / "grid.toml", content), folder / "ran" / "runs"
    capsys.readouterr()
    status = main(["run", "--grid", str(grid), "--out", str(out), "--limit", "2", "--workers", "1"])
    shown = capsys.readouterr()
    assert shown.err == ""
    jobs = make_plan(Request(str(grid), out, limit=2)).jobs
    records = [Store(out).record(cell.key) for job in jobs for cell in job.cells]
    statuses = {record.status for record in records if record is not None}
    assert None not in records
    assert status == (1 if "failed" in statuses else 0)
    assert status == 0 or 0 in models  # only a learning rate of 1e30 may end in failure


THERE = {"dataset": "digits[train_fraction=0.1]", "row": "cross-entropy · no defense", "value": 0.5}


# --- each complaint names key and value, and the nearest valid one


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"datasets": ["digit"]}, ['"datasets.0"', 'no dataset "digit"', 'did you mean "digits"?']),
        ({"datasets": ["digits", "digits[galery=3]"]}, ['"datasets.1"', '"galery"', 'did you mean "gallery"?']),
        ({"datasets": ["digits[classes=1|2|tree]"]}, ['"datasets.0"', 'no class "tree"']),
        ({"datasets": ["digits[gallery=0]"]}, ['"datasets.0"', "gallery = 0"]),
        ({"datasets": ["digits[train_fraction=2]"]}, ['"datasets.0"', "train_fraction = 2"]),
        ({"datasets": ["digits", "{dataset}"]}, ['"datasets.1"', '"digits" is asked for twice']),
        ({"datasets": []}, ['"datasets" = []']),
        ({"conditions": ["fgsmm@0.1"]}, ['"conditions.0"', 'no attack "fgsmm"', 'did you mean "fgsm"?']),
        ({"conditions": ["pgd[stps=3]@0.1"]}, ['"conditions.0"', '"stps"', 'did you mean "steps"?']),
        ({"conditions": ["pgd[steps=0]@0.1"]}, ['"conditions.0"', "steps = 0", "greater than or equal to 1"]),
        ({"conditions": [f"pgd[steps={'9' * 400}]@0.1"]}, ['"conditions.0"', "valid integer"]),
        ({"conditions": ["clean", "pgd@linff:0.1"]}, ['"conditions.1"', '"linff"', 'did you mean "linf"?']),
        ({"conditions": ["mi-fgsm@l1:0.1"]}, ["works in linf, l2", '"l1"']),
        ({"conditions": ["fgsm@0.1->nxt"]}, ['no target "nxt"', 'did you mean "next"?']),
        ({"conditions": ["fgsm@0.1->leastlikely"]}, ['did you mean "least-likely"?']),
        ({"conditions": ["fgsm@much"]}, ['eps "much"', "8/255"]),
        ({"conditions": ["fgsm@-0.1"]}, ['eps "-0.1"', "not negative"]),
        ({"conditions": ["fgsm@nan"]}, ['eps "nan"', "finite"]),
        ({"conditions": ["fgsm@1/0"]}, ['eps "1/0"', "divides by zero"]),
        ({"conditions": ["fgsm@8"]}, ['eps "8"', "pixels lie in [0, 1]; did you mean 8/255?"]),
        ({"conditions": ["rotation + pgd[steps=3]@linf:2.5->next"]}, ["did you mean 2.5/255?"]),
        ({"conditions": ["clean", "fgsm@0.1", "union@linf:4|l2:1"]}, ["did you mean 4/255?"]),
        ({"rank_by": "clean", "conditions": ["fgsm@0.1"]}, ['"rank_by" = "clean"', 'add "clean" to the conditions']),
        ({"rank_by": "linf@8"}, ['"rank_by"', "did you mean 8/255?"]),
        ({"models": [{"defense": "fgm[eps=8]"}]}, ['"models.0.defense"', "eps = 8", "did you mean 8/255?"]),
        ({"datasets": [{"name": "digits", "eps": {"linf": [2, 4]}}]}, ["eps.linf", "did you mean 2/255?"]),
        ({"conditions": ["fgsm"]}, ["fgsm needs an eps", "fgsm@ref"]),
        ({"conditions": ["rotation@0.1"]}, ["rotation takes no eps"]),
        ({"conditions": ["rotation->next"]}, ["only attacks can have a target"]),
        ({"conditions": ["rotation+fgsm@0.1->all"]}, ['not "all"']),
        ({"conditions": [{"chain": "fgsm@ref", "draws": 2}]}, ["draws = 2", "only natural perturbations"]),
        ({"conditions": [{"chain": "rotation", "draw": 2}]}, ['"draw"', 'did you mean "draws"?']),
        ({"conditions": [{"chain": "rotation", "draws": 0}]}, ["draws = 0"]),
        ({"conditions": [{"draws": 3}]}, ['"chain" is required']),
        ({"conditions": ["fgsm@0.1", "fgsm@1e-1"]}, ['"conditions.1"', '"fgsm@0.1" is asked for twice']),
        ({"conditions": ["fgsm@each", "fgsm@0.1"]}, ['"conditions.1"', "asked for twice"]),
        ({"conditions": ["art:FastGradientMetod@0.1"]}, ['did you mean "FastGradientMethod"?']),
        ({"conditions": ["art:FastGradientMethod[minimall=true]@0.1"]}, ['did you mean "minimal"?']),
        ({"condition": ["clean"]}, ['"condition"', 'did you mean "conditions"?']),
        ({"str": 1}, ['key "str" = 1', "no such key"]),
        ({"seeds": [0, -1]}, ['"seeds.1" = -1']),
        ({"seeds": [3, 3]}, ['"seeds.1" = 3', "already"]),
        ({"seeds": [2**31]}, ['"seeds.0"', str(2**31)]),
        ({"seeds": "0"}, ["\"seeds\" = '0'"]),
        ({"recipe": {"epoch": 1}}, ['key "recipe"', '"epoch"', 'did you mean "epochs"?']),
        ({"recipe": {"epochs": 0}}, ['key "recipe"', "epochs = 0"]),
        ({"recipe": {"epochs": 10**30}}, ['key "recipe.epochs"', "64 bits"]),
        ({"recipe": {"lr": math.inf}}, ['key "recipe"', "lr = inf"]),
        ({"recipe": {"optimizer": "adamm"}}, ['key "recipe"', "optimizer = 'adamm'", "'adam'"]),
        ({"models": []}, ['"models" = []']),
        ({"models": [{}, {"recipe": {"lr": -1}}]}, ['"models.1.recipe"', "lr = -1"]),
        ({"models": [{"defence": "fgm"}]}, ['"models.0.defence"', 'did you mean "defense"?']),
        ({"models": [{"[x]": "fgm"}]}, ['"models.0.[x]"']),
        ({"models": [{"defense": "fmg"}]}, ['"models.0.defense"', 'no defense "fmg"', 'did you mean "fgm"?']),
        ({"models": [{"defense": "fgm[epss=1]"}]}, ['"models.0.defense"', 'did you mean "eps"?']),
        ({"models": [{"defense": {"name": "fgm", "eps": -1}}]}, ['"models.0.defense"', "eps = -1"]),
        ({"models": [{"defense": 3}]}, ['"models.0.defense" = 3']),
        ({"models": [{"balancer": "smoote"}]}, ['no balancer "smoote"', 'did you mean "smote"?']),
        ({"models": [{"objective": "angullar"}]}, ['no objective "angullar"', 'did you mean "angular"?']),
        ({"models": [{"objective": []}]}, ["empty list"]),
        ({"models": [{"architecture": "resnet"}]}, ['no architecture "resnet"', 'did you mean "resnet18"?']),
        ({"models": [{"name": "a"}, {"start": "b"}]}, ['"models.1.start" = "b"']),
        ({"models": [{"name": "plain"}, {"start": "plan"}]}, ['did you mean "plain"?']),
        ({"models": [{"name": "a", "start": "a"}]}, ['"models.0.start" = "a"']),
        ({"models": [{"name": "a", "start": "b"}, {"name": "b", "start": "a"}]}, ["no model of that name"]),
        ({"models": [{}, {}]}, ['"models.1"', "a second model called"]),
        ({"models": [{"name": "a"}, {"name": "b"}]}, ['"models.1"', '"b" is the same model as "a"']),
        ({"models": [{"name": "a", "defense": ["none", "fgm"]}]}, ['"models.0.name" = "a"', "2 models"]),
        ({"models": [{"datasets": ["digts"]}]}, ['"models.0.datasets" = "digts"']),
        ({"references": [{**THERE, "row": "cross-entropy"}]}, ['"references.0.row"', "cross-entropy · no defense"]),
        ({"references": [THERE, {**THERE, "condition": "fgsm@ref"}]}, ['"references.1.condition"', 'mean "fgsm@0.1"?']),
        (
            {"references": [{**THERE, "condition": "zoom"}], "seeds": [0, 1]},
            ['"references.0.condition" = "zoom"', "; known: clean, fgsm@0.1\n"],
        ),
        ({"references": [{**THERE, "value": 88.2}]}, ['"references.0.value" = 88.2', "less than or equal to 1"]),
        (
            {"references": [THERE], "differences": {"digits": ""}},
            ['"differences.digits"', f"known: {THERE['dataset']}"],
        ),
        ({"rank_by": "linf"}, ["\"rank_by\" = 'linf'", "name a norm and a size of change, as in linf@8/255"]),
        ({"rank_by": "lnf@0.1"}, ['no norm "lnf"', 'did you mean "linf"?']),
        ({"rank_by": "none@0.1"}, ['no norm "none"']),
        ({"rank_by": "linf@much"}, ['"much" is no size of change']),
        ({"rank_by": "linf@-1"}, ['"-1" is no size of change']),
        ({"rank_by": "linf@1/0"}, ['"1/0" is no size of change']),
        ({"rank_by": "linf@0.2"}, ['"rank_by" = "linf@0.2"', "no attack ranks there", 'did you mean "linf@0.1"?']),
        ({"rank_by": "l2@ref"}, ['"rank_by" = "l2@ref"']),
        ({"rank_by": 3}, ['"rank_by" = 3']),
        ({"rank-by": "linf@ref"}, ['"rank-by"', 'did you mean "rank_by"?']),
        ({"plugins": ["none.py"]}, ['"plugins.0" = "none.py"', "is not a file"]),
    ],
)
def test_complaints_name_key_value_and_the_nearest_valid_one(
    changes: dict[str, Any], parts: list[str], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    error = complaint(folder, capsys, **changes)
    for part in parts:
        assert part in error


@pytest.mark.parametrize("missing", ["conditions", "models"])
def test_a_missing_key_is_named(missing: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    grid = tiny()
    del grid[missing]
    write_grid(folder / "grid.toml", grid)
    assert f'key "{missing}" is missing' in answer(folder, capsys)


def test_a_syntax_error_is_placed(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "grid.toml").write_text("a = 1\nb = = 2\n", encoding="utf-8")
    assert "is not TOML" in (error := answer(folder, capsys))
    assert "line 2" in error


@pytest.mark.parametrize(
    ("name", "hint"), [("quik", 'did you mean "quick"?'), ("nothing-like-it", "known: "), ("", "known: ")]
)
def test_an_unknown_grid_is_answered_with_the_nearest(
    name: str, hint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", "--grid", name, "--out", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f'robbench: --grid: there is no grid "{name}"; ')
    assert hint in error


@pytest.mark.parametrize("name", ["gone.toml", "folder.toml"])
def test_a_grid_file_that_cannot_be_read_is_named(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "folder.toml").mkdir()
    assert main(["plan", "--grid", str(tmp_path / name), "--out", str(tmp_path / "runs")]) == 2
    assert f"{tmp_path / name}: cannot be read: " in capsys.readouterr().err


def test_a_data_set_may_be_called_after_a_file_of_any_name() -> None:
    wanted = {"name": "digits", "label": os.fsdecode(b"caf\xe9")}
    assert find_dataset(Registry(installed=False), wanted, None, "here").choice.label == "caf?"
