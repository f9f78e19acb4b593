from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny
import torch

from robbench.core.device import named_devices, visible_to
from robbench.core.errors import RequestError
from robbench.execution import local
from robbench.execution.processes import Child
from robbench.execution.tasks import Facts, Needs, Task
from robbench.planning.grid import Request
from robbench.planning.planner import make_plan


@pytest.mark.parametrize(
    ("wanted", "named"),
    [
        ("auto", ("auto", ())),
        ("cpu", ("cpu", ())),
        ("cuda", ("cuda", ())),
        ("cuda:0", ("cuda", (0,))),
        ("cuda:3,cuda:1", ("cuda", (3, 1))),
        ("cuda:0, cuda:11", ("cuda", (0, 11))),
    ],
)
def test_devices_are_named_by_type_and_number(wanted: str, named: tuple[str, tuple[int, ...]]) -> None:
    assert named_devices(wanted) == named


@pytest.mark.parametrize(
    ("wanted", "reason"),
    [
        ("cudas", "there is no device"),
        ("cuda:", "there is no device"),
        ("cuda:0,1", "there is no device"),
        ("cuda:0,,cuda:1", "there is no device"),
        ("cpu,cuda:0", "there is no device"),
        ("cuda:-1", "there is no device"),
        ("", "there is no device"),
        ("cuda:0,cuda:0", "names a device twice"),
        ("mps", "has no float64"),
    ],
)
def test_other_devices_are_refused(wanted: str, reason: str) -> None:
    with pytest.raises(RequestError, match=reason):
        named_devices(wanted)
    with pytest.raises(RequestError, match=reason):
        Request(grid="quick", device=wanted)


def test_a_process_sees_its_own_device_among_those_that_are_visible(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert visible_to(None) == {}
    assert visible_to(1) == {"CUDA_VISIBLE_DEVICES": "1"}
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-a,GPU-b,4")
    assert [visible_to(number)["CUDA_VISIBLE_DEVICES"] for number in (0, 1, 2)] == ["GPU-a", "GPU-b", "4"]


def test_a_device_that_is_not_there_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tiny.toml").write_text(tiny.grid_text(), encoding="utf-8")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(RequestError, match="there is no cuda:2 here, only cuda:0 to cuda:1"):
        make_plan(Request(grid=str(tmp_path / "tiny.toml"), out=tmp_path / "runs", device="cuda:0,cuda:2"))


def test_every_device_has_a_worker_before_one_has_two(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[int | None] = []

    def start(*_: object, number: int | None, **__: object) -> Any:
        started.append(number)
        process = SimpleNamespace(is_alive=lambda: True)
        return SimpleNamespace(process=process, connection=SimpleNamespace(send=lambda task: None), apart=False)

    monkeypatch.setattr(Child, "start", start)
    pool = local.Local("cuda", 4, 8, 60.0, registry=None, numbers=(0, 1))  # type: ignore[arg-type]
    tasks = [Task("judge", str(key), None, "row", Needs(1, 1), Facts((), "", False)) for key in range(5)]
    for task in tasks[:4]:
        assert pool.takes(task.needs)
        pool.submit(task)
    assert started == [0, 1, 0, 1]
    assert not pool.takes(tasks[4].needs)
    pool.pool[3].task = None
    pool.submit(tasks[4])
    assert pool.pool[3].task is tasks[4], "a worker that waits is taken"
    assert started == [0, 1, 0, 1]
    assert local.default_workers("cuda", 3) == 3
