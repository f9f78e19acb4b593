from __future__ import annotations

import contextlib
import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from grid_files import tiny, write_grid
from hypothesis import given, settings
from hypothesis import strategies as st

from robbench.core.attack import Attack
from robbench.core.errors import RequestError
from robbench.core.registry import Registry
from robbench.core.threat_model import format_eps
from robbench.data.dataset import DecodedImages
from robbench.data.datasets.digits import Digits
from robbench.planning.conditions import Condition, ConditionRequest
from robbench.planning.grid import Request
from robbench.planning.plan import Cell, Job
from robbench.planning.planner import make_plan

REGISTRY = Registry(installed=False)
CLASSES = ("car", "truck", "cat", "8")
EPS = Digits.eps
BOUNDED = [
    (name, norm)
    for name, entry in REGISTRY.entries("attack").items()
    if entry.cls.bounded  # type: ignore[attr-defined]
    for norm in entry.mark.norms
    if norm != "none"
]
NATURAL = [name for name, entry in REGISTRY.entries("attack").items() if "none" in entry.mark.norms and name != "none"]


def resolve(wanted: object) -> list[Condition]:
    return ConditionRequest.read(wanted, "here").resolve(REGISTRY, EPS, CLASSES, "here")


def one(wanted: object) -> Condition:
    (condition,) = resolve(wanted)
    return condition


# --- the grammar

shares = st.one_of(st.floats(0, 1), st.integers(0, 255).map(lambda levels: levels / 255))
sizes = st.one_of(
    st.floats(0, 1e6, allow_nan=False),
    shares,
    st.sampled_from([0.0, 1e-12, 0.1, 1 / 3, 12_500.0, 1e22]),
)


@st.composite
def chains(draw: st.DrawFn) -> str:
    parts = []
    for _ in range(draw(st.integers(1, 3))):
        if draw(st.booleans()):
            name, norm = draw(st.sampled_from(BOUNDED))
            options = ""
            if name == "pgd":
                options = f"[steps={draw(st.integers(1, 99))},rel_step={draw(st.floats(1e-6, 10))!r}]"
            parts.append(f"{name}{options}@{norm}:{draw(shares if norm == 'linf' else sizes)!r}".replace("+", ""))
        else:
            options = f"[degrees={draw(st.floats(0, 180))!r}]"
            parts.append(
                draw(st.sampled_from([*(name for name in NATURAL if name != "rotation"), f"rotation{options}"]))
            )
    return "+".join(parts)


@settings(max_examples=150, deadline=None)
@given(chain=chains(), spaces=st.booleans())
def test_a_label_asks_for_the_same_condition_again(chain: str, spaces: bool) -> None:
    condition = one(chain.replace("+", " + ").replace("@", " @ ") if spaces else chain)
    again = one(condition.label)
    assert again.label == condition.label
    assert again.spec() == condition.spec()
    assert [stage.threat for stage in again.stages] == [stage.threat for stage in condition.stages]
    assert [stage.attack.component for stage in again.stages] == [stage.attack.component for stage in condition.stages]


@given(size=sizes)
def test_written_sizes_read_as_themselves(size: float) -> None:
    assert one(f"fgsm@l2:{format_eps(size)}").stages[0].threat.eps == size
    if size <= 1:
        assert one(f"fgsm@{format_eps(size)}").stages[0].threat.eps == size


@given(size=st.floats(1, 1e6, exclude_min=True))
def test_levels_that_are_taken_for_shares_are_asked_about(size: float) -> None:
    with pytest.raises(RequestError, match=rf"did you mean {re.escape(f'{size:g}/255')}\?"):
        one(f"fgsm@{size!r}".replace("+", ""))


@pytest.mark.parametrize("levels", range(1, 256))
def test_eps_in_levels_is_exactly_that(levels: int) -> None:
    assert one(f"fgsm@{levels}/255").stages[0].threat.eps == levels / 255


def test_the_norm_is_the_attacks_first_unless_it_is_named() -> None:
    assert one("fgm@0.1").stages[0].threat.norm == REGISTRY.entry("attack", "fgm").mark.norms[0] == "linf"
    assert one("fgm@l2:0.1").stages[0].threat.norm == "l2"
    assert one("fgm@linf:0.1").label == "fgm@0.1"
    assert one("noise-optimization->next").stages[0].threat.norm == "l1"


def test_each_means_all_and_ref_the_reference() -> None:
    assert [c.stages[0].threat.eps for c in resolve("fgsm@each")] == list(EPS["linf"].values)
    assert [c.stages[0].threat.eps for c in resolve("fgm@l2:each")] == list(EPS["l2"].values)
    assert one("fgsm@ref").stages[0].threat.eps == EPS["linf"].reference
    assert one("pgd@l1:ref").stages[0].threat.eps == EPS["l1"].reference
    pairs = [tuple(stage.threat.eps for stage in c.stages) for c in resolve("fgsm@each+fgm@l2:each")]
    assert pairs == [(a, b) for a in EPS["linf"].values for b in EPS["l2"].values]


def test_a_norm_without_eps_is_refused() -> None:
    request = ConditionRequest.read("fgm@l2:ref", "here")
    with pytest.raises(RequestError, match="the data set has no eps in l2; write one out"):
        request.resolve(REGISTRY, {"linf": EPS["linf"]}, CLASSES, "here")


@pytest.mark.parametrize(
    ("chain", "kind", "draws"),
    [
        ("clean", "clean", 0),
        ("none", "clean", 0),
        ("clean+none", "clean", 0),
        ("rotation", "natural", 1),
        ("rotation+color-jitter", "natural", 1),
        ("fgsm@0.1", "attack", 0),
        ("clean+fgsm@0.1", "attack", 0),
        ("rotation+fgsm@0.1", "chain", 0),
        ("fgsm@0.1+fgsm@0.1", "chain", 0),
        ("noise-optimization->cat", "attack", 0),
    ],
)
def test_kinds(chain: str, kind: str, draws: int) -> None:
    spec = one(chain).spec()
    assert (spec.kind, spec.draws) == (kind, draws)


@pytest.mark.parametrize("rule", ["next", "random", "least-likely", "all", *CLASSES])
def test_targets_are_rules_or_classes(rule: str) -> None:
    condition = one(f"fgsm@0.1 -> {rule}")
    assert condition.target == rule
    assert condition.stages[0].threat.targeted
    assert condition.label == f"fgsm@0.1->{rule}"
    assert one(condition.label) == condition


def test_only_the_attacks_of_a_targeted_chain_aim() -> None:
    first, second = one("rotation+fgsm@0.1->next").stages
    assert not first.threat.targeted
    assert second.threat.targeted


@pytest.mark.parametrize(
    ("wanted", "part"),
    [
        ("uniform-noise@0.1->next", "uniform-noise takes no target"),
        ("fgsm@0.1->next->all", "there is no target"),
        ("fgsm@0.1->", 'there is no target ""'),
        ("clean->next", "only attacks"),
        ("rotation+fgsm@0.1->all", "one target rule"),
        ("fgsm@", "needs an eps"),
        ("fgsm@linf:", "needs an eps"),
        ("fgsm@linf:0.1:0.2", 'eps "0.1:0.2" is no size'),
        ("fgsm@0.1@0.2", 'eps "0.1@0.2" is no size'),
        ("fgsm@inf", "must be finite"),
        ("fgm@l3:0.1", 'not in "l3"; did you mean "l2"?'),
        ("fgm@l0:0.1", 'fgm works in linf, l2, l1, not in "l0"'),
        ("rotation@none:0.1", "rotation takes no eps"),
        ("noise-optimization@0.1->next", "takes no eps"),
        ("", "names nothing"),
        ("fgsm@0.1+", "names nothing"),
        ("[steps=3]@0.1", "names nothing"),
        ("pgd[steps=3@0.1", "the bracket is not closed"),
        ("pgd[steps]@0.1", '"steps" is not of the form key=value'),
        ("pgd[]@0.1", '"" is not of the form key=value'),
        ({"chain": "rotation+fgsm@0.1", "draws": 2}, "only natural perturbations are drawn"),
        ({"chain": "clean", "draws": 2}, "only natural perturbations are drawn"),
        ({"chain": "rotation", "draws": 10_001}, "draws = 10001"),
        ({"chain": "fgsm@0.1", "sample": 0}, "sample = 0"),
        (3, "3 is not a condition"),
    ],
)
def test_what_makes_no_sense_is_refused(wanted: object, part: str) -> None:
    with pytest.raises(RequestError) as caught:
        resolve(wanted)
    assert part in str(caught.value)
    assert str(caught.value).startswith("here: ")


@given(st.text("fgsmpd[]=,@+->:/0.1 l2", max_size=25))
def test_any_text_is_a_condition_or_refused(text: str) -> None:
    with contextlib.suppress(RequestError):
        assert all(one(condition.label) == condition for condition in resolve(text))


def test_samples_are_the_smaller_of_limit_and_own() -> None:
    condition = one({"chain": "fgsm@0.1", "sample": 30})
    assert [condition.limited(limit, 40).sample for limit in (None, 10, 50)] == [30, 10, 30]
    assert one("fgsm@0.1").limited(None, 40).sample is None
    assert one("fgsm@0.1").limited(40, 40).sample is None


# --- what a cell is known by


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("keys")


def plan(folder: Path, content: dict[str, Any], file: str = "grid.toml", **request: Any) -> Sequence[tuple[Job, Cell]]:
    grid = write_grid(folder / file, content)
    return list(make_plan(Request(str(grid), folder / "runs", device="cpu", **request)).cells)


def keys(folder: Path, content: dict[str, Any], file: str = "grid.toml", **request: Any) -> list[str]:
    return [cell.key for _, cell in plan(folder, content, file, **request)]


MODEL: dict[str, dict[str, object]] = {
    "defense": {"name": "fgm", "eps": 0.1, "alpha": 0.25},
    "recipe": {"lr": 0.01, "epochs": 2},
}
DATASET = {"name": "digits", "train_fraction": 0.1, "gallery": 20}


def asked(
    condition: object = "pgd[steps=3,restarts=2]@0.1", model: object = MODEL, dataset: object = DATASET, **rest: Any
) -> dict[str, Any]:
    return tiny(datasets=[dataset], conditions=[condition], models=[model], **rest)


def test_a_key_stays_whatever_it_is_called_and_however_it_is_written(folder: Path) -> None:
    (key,) = keys(folder, asked())
    turned = {
        "recipe": dict(reversed(MODEL["recipe"].items())),
        "defense": dict(reversed(list(MODEL["defense"].items()))),
    }
    same = [
        asked(title="another title"),
        asked(condition="pgd[restarts=2,steps=3]@linf:0.1"),
        asked(condition="clean + pgd [ steps = 3 , restarts = 2 ] @ 1e-1".replace(" [", "[")),
        asked(condition={"chain": "pgd[steps=3,restarts=2]@ref"}),
        asked(model={"name": "my model", **MODEL}),
        asked(model=turned),
        asked(model={**MODEL, "defense": "fgm[alpha=0.25,eps=0.1]"}),
        asked(model={**MODEL, "objective": "cross-entropy", "balancer": ["none"], "architecture": "compact-cnn"}),
        asked(dataset="digits[gallery=20,train_fraction=0.1]"),
        asked(dataset=dict(reversed(DATASET.items()))),
        asked(dataset={**DATASET, "split_seed": 0}),
        asked(recipe={"epochs": 1, "momentum": 0.9}),
        dict(reversed(asked().items())),
    ]
    for content in same:
        assert keys(folder, content) == [key]
    assert keys(folder, asked(), file="another-name.toml") == [key]
    assert keys(folder, asked() | {"conditions": ["clean", "pgd[steps=3,restarts=2]@0.1", "fgsm@0.1"]})[1] == key
    assert keys(folder, asked(seeds=[4, 0]))[1] == key
    assert keys(folder, asked(seeds=[4]), seeds=(0,)) == [key]


def test_a_key_changes_with_everything_that_can_change_the_result(folder: Path) -> None:
    found = keys(folder, asked())
    other = [
        asked(condition="pgd[steps=4,restarts=2]@0.1"),
        asked(condition="pgd[steps=3,restarts=2]@0.2"),
        asked(condition="pgd[steps=3,restarts=2]@l2:0.1"),
        asked(condition="pgd[steps=3,restarts=2]@0.1->next"),
        asked(condition="pgd[steps=3,restarts=2]@0.1->random"),
        asked(condition={"chain": "pgd[steps=3,restarts=2]@0.1", "sample": 50}),
        asked(condition="rotation+pgd[steps=3,restarts=2]@0.1"),
        asked(condition="pgd[steps=3,restarts=2]@0.1+rotation"),
        asked(condition="rotation"),
        asked(condition={"chain": "rotation", "draws": 2}),
        asked(condition="fgsm@0.1"),
        asked(condition="fgm@0.1"),
        asked(condition="art:FastGradientMethod@0.1"),
        asked(condition="art:FastGradientMethod[minimal=true]@0.1"),
        asked(model={}),
        asked(model={**MODEL, "recipe": {"lr": 0.02, "epochs": 2}}),
        asked(model={**MODEL, "recipe": {"lr": 0.01, "epochs": 3}}),
        asked(model={**MODEL, "defense": "fgm[eps=0.1]"}),
        asked(model={**MODEL, "defense": "fgm[alpha=0.25,eps=0.1]+perturbation"}),
        asked(model={**MODEL, "defense": "perturbation+fgm[alpha=0.25,eps=0.1]"}),
        asked(model={**MODEL, "objective": "angular"}),
        asked(model={**MODEL, "balancer": "sampler"}),
        asked(model={**MODEL, "architecture": "small-cnn"}),
        asked(dataset={**DATASET, "gallery": 21}),
        asked(dataset={**DATASET, "split_seed": 1}),
        asked(dataset={**DATASET, "classes": [str(digit) for digit in range(9)]}),
        asked(seeds=[1]),
    ]
    for content in other:
        found += keys(folder, content)
    found += keys(folder, asked(), precision="bfloat16")
    found += keys(folder, asked(), limit=50)[:1]
    # A limit of 50 and a sample of 50 are the same thing.
    assert len(set(found)) == len(found) - 1 == len(other) + 2


def test_a_model_is_known_by_where_it_starts(folder: Path) -> None:
    def last(first: dict[str, Any]) -> str:
        models = [{"name": "first", **first}, {"name": "last", "start": "first", "defense": "fgm"}]
        return plan(folder, tiny(conditions=["clean"], models=models))[1][0].key

    assert last({}) == last({})
    cold = plan(folder, tiny(conditions=["clean"], models=[{"defense": "fgm"}]))[0][0].key
    assert len({last({}), last({"recipe": {"epochs": 2}}), cold}) == 3


@pytest.mark.parametrize("of", ["attack", "defense", "objective", "architecture", "dataset"])
def test_a_key_changes_with_the_version_of_each_part(of: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = {
        "attack": "pgd",
        "defense": "fgm",
        "objective": "cross-entropy",
        "architecture": "compact-cnn",
        "dataset": "digits",
    }
    (before,) = keys(folder, asked())
    monkeypatch.setattr(REGISTRY.entry(of, names[of]).cls, "version", 99)  # type: ignore[arg-type]
    (after,) = keys(folder, asked())
    assert before != after


def test_a_key_changes_with_the_data(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (before,) = keys(folder, asked())
    real = plan(folder, asked())[0][0].data.decoded

    def other(*arguments: Any) -> DecodedImages:
        return dataclasses.replace(real, fingerprint="0" * 64)

    monkeypatch.setattr("robbench.planning.planner.decode", other)
    (after,) = keys(folder, asked())
    assert before != after


def test_a_key_changes_with_the_device(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (before,) = keys(folder, asked())
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    grid = write_grid(folder / "grid.toml", asked())
    (after,) = (cell.key for _, cell in make_plan(Request(str(grid), folder / "runs", device="cuda")).cells)
    assert before != after


def test_a_key_changes_with_the_source_of_a_plugin_and_with_no_other(folder: Path) -> None:
    text = (
        "from dataclasses import dataclass\nfrom robbench import Attack, register_attack\n"
        '@register_attack("still", norms=("linf",))\n@dataclass(frozen=True)\nclass Still(Attack):\n'
        '    """Does nothing."""\n    def perturb(self, model, images, labels, threat, rng):\n        return images\n'
    )
    content = asked() | {"conditions": ["fgsm@0.1", "still@0.1"]}
    plugin = folder / "still.py"
    plugin.write_text(text, encoding="utf-8")
    first = keys(folder, content, plugins=(plugin,))
    plugin.write_text(text + "# edited\n", encoding="utf-8")
    second = keys(folder, content, plugins=(plugin,))
    assert first[0] == second[0] == keys(folder, asked(condition="fgsm@0.1"))[0]
    assert first[1] != second[1]


def test_a_key_does_not_change_with_libraries_and_machine(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = keys(folder, asked())
    monkeypatch.setattr("os.cpu_count", lambda: 77)
    monkeypatch.setattr("torch.__version__", "99.0")
    assert keys(folder, asked()) == before


def test_a_set_is_refused_where_it_has_too_few_classes_for_an_attack(folder: Path) -> None:
    @dataclasses.dataclass(frozen=True)
    class NeedsThree(Attack):
        def perturb(self, *arguments: Any) -> Any:
            return arguments[1]

        def refusal(self, threat: Any, num_classes: int) -> str | None:
            return "three classes are needed" if num_classes < 3 else None

    condition = one("fgsm@0.1")
    stage = dataclasses.replace(
        condition.stages[0], attack=dataclasses.replace(condition.stages[0].attack, component=NeedsThree())
    )
    chain = dataclasses.replace(condition, stages=(*condition.stages, stage))
    assert chain.refusal(3) is None
    assert chain.refusal(2) == "three classes are needed"
