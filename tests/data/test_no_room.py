"""Decoded images that cannot be kept, and a store that cannot be written to: the true cause is told."""

from __future__ import annotations

import os
import resource
from pathlib import Path
from types import SimpleNamespace

import pytest

from robbench.core.atomic_io import check_writable
from robbench.core.errors import RequestError, StoreError
from robbench.data.cache import load
from robbench.data.datasets.digits import Digits


def test_a_lack_of_room_is_told_as_such(tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        with pytest.raises(StoreError, match="there is no more room"):
            load(Digits(), None, tmp_path / "data")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert len(load(Digits(), None, tmp_path / "data").labels)


def test_a_read_only_file_system_is_told_as_such(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda *arguments: False)
    with pytest.raises(RequestError, match="no permission to write"):
        check_writable(tmp_path / "runs", "--out")
    monkeypatch.setattr(os, "statvfs", lambda place: SimpleNamespace(f_flag=os.ST_RDONLY))
    with pytest.raises(RequestError, match="is read-only"):
        check_writable(tmp_path / "runs", "--out")
