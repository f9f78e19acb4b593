from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from robbench.core.errors import RequestError
from robbench.data.datasets import fashion_mnist
from robbench.data.datasets.fashion_mnist import read_idx

HEADER = bytes([0, 0, 8, 1, 0, 0, 0, 3])


@pytest.mark.parametrize("packed", [True, False])
def test_a_file_that_unpacks_to_more_than_any_of_the_data_set_is_refused(
    packed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / ("labels.gz" if packed else "labels")
    path.write_bytes(gzip.compress(HEADER + b"abc") if packed else HEADER + b"abc")
    assert read_idx(path).tolist() == list(b"abc")
    monkeypatch.setattr(fashion_mnist, "_LARGEST", 10)
    with pytest.raises(RequestError, match="has more than 10 bytes"):
        read_idx(path)
