from __future__ import annotations

import sys
from pathlib import Path

import pytest
import tiny
from hostile import by_condition, outcomes, run
from plugin_files import write

from robbench.evaluation.audit import marked
from robbench.results.store import Store

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="signals, and processes in /proc"),
    pytest.mark.usefixtures("one_core"),
]

HEAD = """
import ctypes, sys
from dataclasses import dataclass
import torch
from robbench import Certificate, Certified, NoCertificate, register_certificate
"""
METHOD = '''
@register_certificate("{name}", norms=("linf",))
@dataclass(frozen=True)
class {cls}(Certificate):
    """Proves what it likes."""

    def certify(self, model, images, labels, threat, rng):
        {body}
'''
ONES = "torch.ones(len(images), dtype=torch.float64)"
FAILING = {
    "exits": ("sys.exit(0)", "SystemExit: 0"),
    "crashes": ("ctypes.string_at(0)", "crash: the process ended with SIGSEGV"),
    "shapes": ("return Certified(torch.ones(1, dtype=torch.float64))", "Breach: "),
    "writes": (f"images.zero_(); return Certified({ONES})", "Breach: "),
    "moves-weights": (f"[w.data.zero_() for w in model.parameters()]; return Certified({ONES})", "Breach: "),
}
OTHERS = {
    "modest": f"return Certified(1e-4 * {ONES})",
    "boasts": f"return Certified({ONES})",
    "declines": "raise NoCertificate('no such network')",
}


@pytest.mark.end_to_end
def test_a_certificate_of_a_plugin_is_a_column_and_fails_alone(tmp_path: Path) -> None:
    bodies = {name: body for name, (body, _) in FAILING.items()} | OTHERS
    methods = [METHOD.format(name=name, cls=name.title().replace("-", ""), body=body) for name, body in bodies.items()]
    plugin = write(tmp_path / "proofs.py", HEAD + "".join(methods))
    innocent = ["clean", "fgsm@ref", "certify[method=ibp]@0.0001"]
    conditions = [*innocent, *(f"certify[method={name}]@0.0001" for name in bodies)]
    plan = tiny.make(tmp_path / "with", conditions=conditions, plugins=[plugin], limit=20)
    found = by_condition(run(plan))
    for name, (_, reason) in FAILING.items():
        record = found[f"certify[method={name}]@0.0001"]
        assert record.status == "failed", name
        assert (record.reason or "").startswith(reason), (name, record.reason)
    declined = found["certify[method=declines]@0.0001"]
    assert (declined.status, declined.reason) == ("unsupported", "no such network")
    store = Store(plan.request.out)
    done = [(record, store.outcome(record)) for record in found.values() if record.status == "done"]
    flags = {record.spec.condition.label: record.flags for record, _ in marked(done)}
    assert flags["certify[method=boasts]@0.0001"].keys() == {"certificate-broken"}
    assert not any(told for label, told in flags.items() if "boasts" not in label)
    alone = tiny.make(tmp_path / "without", conditions=innocent, limit=20)
    run(alone)
    assert outcomes(alone).items() <= outcomes(plan).items()
