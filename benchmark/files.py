"""Writing files whole or not at all."""

from __future__ import annotations

import contextlib
import os
import uuid
from pathlib import Path

from robbench.errors import StoreError


def write_atomically(path: Path, data: bytes | str) -> None:
    """Write a file whole or not at all.

    Raises:
        StoreError: If it cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            file.write(data.encode() if isinstance(data, str) else data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise StoreError(f"cannot write {path}: {error.strerror or error}; what was finished is kept") from error
