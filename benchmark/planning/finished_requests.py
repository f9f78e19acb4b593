"""Whether a request was carried out before and nothing that it rests on has changed since. Needs no torch.

Making a plan imports every component, and torch with them, which takes seconds. A request whose grid, code, plugins and
data are what they were when it was last carried out has the same plan, so that looking at its cells is enough.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import asdict

from robbench.core.errors import RequestError
from robbench.core.registry import Registry
from robbench.data.cache import locate
from robbench.planning.component_spec import choose
from robbench.planning.grid import Request, read_grid
from robbench.results.provenance import source_digest
from robbench.results.schema import digest
from robbench.results.store import Store


def standing(request: Request) -> str:
    """Identifies everything that the plan of a request follows from.

    Raises:
        RequestError: If the grid, a plugin or a data set is not there.
    """
    name, folder, grid = read_grid(request.grid)
    registry = Registry((*request.plugins, *(folder / plugin for plugin in grid.plugins)))
    data = []
    for position, wanted in enumerate(grid.datasets):
        where = f'{request.grid}: key "datasets.{position}"'
        choice = choose(registry, "dataset", grid.filled(wanted, request.dataset), where)
        try:
            data.append([choice.label, locate(choice.component, request.data_dir)[0]])
        except RequestError as error:
            raise RequestError(f'"{choice.label}": {error}', where) from None
    return digest(
        {
            "request": {key: str(value) for key, value in asdict(request).items() if key not in ("grid", "out")},
            "grid": [name, grid.model_dump(mode="json")],
            "data": data,
            "code": source_digest(),
            "plugins": [[plugin.label, plugin.source] for plugin in registry.plugins()],
            "devices": [os.environ.get("CUDA_VISIBLE_DEVICES"), shutil.which("nvidia-smi")],
        }
    )


def carried_out(rests_on: str, store: Store) -> tuple[str, int] | None:
    """The grid's name and its number of cells if all is done and its boards are written, otherwise None."""
    note = store.request(rests_on)
    if note is None:
        return None
    boards: dict[str, list[str]] = note["boards"]
    known = store.boards()
    for board, keys in boards.items():
        if (
            known.get(board, {}).get("cells") != keys
            or not (store.root / "leaderboards" / board / "README.md").is_file()
        ):
            return None
    keys = [key for keys in boards.values() for key in keys]
    return (str(note["grid"]), len(keys)) if all(store.finished(key) for key in keys) else None
