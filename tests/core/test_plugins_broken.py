"""Plugins that break the rules or raise."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import pytest
from grid_files import tiny, write_grid
from plugin_files import GRAY, GRID, PLAIN, SHRINK, SHRUNK, cells, changed_files, run, write

from robbench.results.store import Store

pytestmark = pytest.mark.usefixtures("one_core", "no_figures")
CRIMES = {
    "raises": ("raise ValueError('no luck today')", "ValueError: no luck today"),
    "leaves-the-ball": ("return (images + 2 * threat.eps).clamp(0, 1)", "the change stays within eps"),
    "leaves-the-box": ("return images - threat.eps", "images stay inside [0, 1]"),
    "not-a-number": ("return images * float('nan')", "images are finite"),
    "wrong-shape": ("return images[:, :1]", "images keep their shape"),
    "wrong-type": ("return images.double()", "images stay floats of the same type"),
    "nothing": ("return None", "images are a plain tensor"),
    "writes-images": ("return images.zero_()", "inputs are not written to"),
    "writes-labels": ("labels.zero_(); return images.clone()", "labels are not written to"),
    "changes-weights": (
        "next(p for p in model.parameters()).data.mul_(2); return images.clone()",
        "weights and statistics stay",
    ),
    "trains": ("model.train(); return images.clone()", "the training mode stays"),
    "thaws": ("model.requires_grad_(True); return images.clone()", "the gradient state stays"),
    "turns-off-gradients": ("torch.set_grad_enabled(False); return images.clone()", "the gradient state stays"),
    "draws-torch": ("torch.rand(1); return images.clone()", "the global random state stays"),
    "draws-numpy": ("numpy.random.rand(); return images.clone()", "the global random state stays"),
    "draws-python": ("random.random(); return images.clone()", "the global random state stays"),
}


def crime_plugin(crimes: Mapping[str, tuple[str, str]]) -> str:
    text = "import random\nimport numpy\nimport torch\n" + GRAY.partition("@register")[0]
    for number, (name, (body, _)) in enumerate(crimes.items()):
        text += f"""
@register_attack("{name}", norms=("linf",))
@dataclass(frozen=True)
class Crime{number}(Attack):
    \"\"\"Breaks a rule.\"\"\"

    def perturb(self, model, images, labels, threat, rng):
        {body}
"""
    return text


@pytest.mark.parametrize(
    "names", [("raises", "leaves-the-ball", "changes-weights"), pytest.param(CRIMES, marks=pytest.mark.end_to_end)]
)
def test_what_breaks_a_rule_fails_alone_and_is_tried_again(
    names: Collection[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    crimes = {name: CRIMES[name] for name in names}
    plugin = write(tmp_path / "crimes.py", crime_plugin(crimes))
    conditions = [*(f"{name}@ref" for name in crimes), "clean", "fgsm@ref"]
    write_grid(tmp_path / "grid.toml", tiny(conditions=conditions))
    assert run(tmp_path, plugin) == 1
    shown = capsys.readouterr()
    assert "Traceback" not in shown.out + shown.err
    found = {condition: record for (_, condition), record in cells(tmp_path, plugin).items()}
    for name, (_, rule) in crimes.items():
        record = found[f"{name}@0.1"]
        assert record.status == "failed"
        assert rule in str(record.reason)
        assert f"{name}@0.1" in shown.out
        assert not record.metrics
        assert Store(tmp_path / "runs").outcome(record) is None

    # What came after the breaches is what it is without them.
    honest = tmp_path / "honest"
    honest.mkdir()
    write_grid(honest / "grid.toml", tiny(conditions=["clean", "fgsm@ref"]))
    assert run(honest) == 0
    alone = {condition: record for (_, condition), record in cells(honest).items()}
    for name in ("clean", "fgsm@0.1"):
        assert found[name].status == "done"
        assert found[name].key == alone[name].key
        assert found[name].outcome_sha256 == alone[name].outcome_sha256

    capsys.readouterr()
    before = changed_files(tmp_path)
    assert run(tmp_path, plugin) == 1
    assert f"2 done, {len(crimes)} to do" in capsys.readouterr().out
    after = changed_files(tmp_path)
    untouched = {found["clean"].key, found["fgsm@0.1"].key}
    assert {key for key in before if after[key] == before[key]} == untouched

    mended: dict[str, tuple[str, str]] = {name: ("return images.clone()", "") for name in crimes}
    write(plugin, crime_plugin(mended))
    assert run(tmp_path, plugin) == 0
    assert {record.status for record in cells(tmp_path, plugin).values()} == {"done"}


def test_a_defense_that_raises_fails_its_own_models_cells(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    body = "raise RuntimeError('out of order')"
    plugin = write(tmp_path / "shrink.py", SHRINK.replace("return batch.loss(batch.images * 0.9)", body))
    write_grid(tmp_path / "grid.toml", GRID | {"conditions": ["clean", "fgsm@ref"]})
    assert run(tmp_path, plugin) == 1
    found = cells(tmp_path, plugin)
    statuses: dict[str, set[Any]] = {PLAIN: set(), SHRUNK: set()}
    for (model, _), record in found.items():
        statuses[model].add(record.status)
        assert record.status == "done" or "the model: RuntimeError: out of order" in str(record.reason)
    assert statuses == {PLAIN: {"done"}, SHRUNK: {"failed"}}
    assert "out of order" in capsys.readouterr().out
