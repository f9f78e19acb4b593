"""Publishing to and from directories here and at addresses."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

from robbench.core.errors import RequestError, StoreError
from robbench.core.registry import Registry
from robbench.results.publishing import Published, publish
from robbench.results.remote_directory import RemoteDirectory, shown
from robbench.results.store import Store

BoardPlace: TypeAlias = "Path | str"
"""A directory here, or an address."""


def share(
    store: Store,
    boards: Sequence[str],
    target: BoardPlace,
    others: Sequence[BoardPlace] = (),
    registry: Registry | None = None,
    incomplete: bool = False,
) -> Published:
    """Publish boards; see ``robbench.results.publishing.publish``.

    What lies at addresses is copied to directories here that are gone afterwards.

    Args:
        store: Where the boards come from.
        boards: Their names.
        target: The directory or address to write them to.
        others: Published boards of others, or what holds some.
        registry: The known metrics; the built-in ones where it is None.
        incomplete: Whether to publish boards with cells that failed or were not run.

    Raises:
        RequestError: If the target or one of the others cannot be used; nothing is written then.
        StoreError: If a board of others is not what it should be, or the target cannot be written to.
    """
    for other in others:
        if isinstance(target, str) and isinstance(other, str) and target in (other, other.rpartition("/")[0]):
            raise RequestError(f'"{shown(target)}" is read with --from; publish to another place', "--to")
    with contextlib.ExitStack() as stack:
        names: dict[str, str] = {}

        def copied(place: BoardPlace) -> Path:
            if isinstance(place, Path):
                return place
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="robbench-"))
            names[folder] = shown(place)
            if place is not target:
                RemoteDirectory.at(place, "--from").download(Path(folder))
            return Path(folder)

        here, theirs = copied(target), [copied(other) for other in others]
        there = RemoteDirectory.at(target, "--to", boards, missing=True) if isinstance(target, str) else None
        before = there.download(here) if there else {}
        try:
            published = publish(store, boards, here, theirs, registry, incomplete)
        except (RequestError, StoreError) as error:
            raise type(error)(_renamed(str(error), names)) from error
        if there:
            there.upload(here, before)
    return Published(
        published.cells,
        {board: [_renamed(line, names) for line in lines] for board, lines in published.remarks.items()},
        {board: _renamed(line, names) for board, line in published.refused.items()},
        [_renamed(line, names) for line in published.unused],
    )


def _renamed(text: str, names: dict[str, str]) -> str:
    for folder, address in names.items():
        text = text.replace(folder, address)
    return text
