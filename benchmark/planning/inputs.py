"""A request with what it rests on: grid, plugins and data sets, each read or found once. Needs no torch.

Making a plan imports every component, and torch with them, which takes seconds. A request whose grid, code, plugins and
data are what they were when it was last carried out has the same plan, so that looking at its cells is enough.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from robbench.core.component import number
from robbench.core.errors import Damaged, RequestError, did_you_mean
from robbench.core.registry import Registry
from robbench.core.safe_text import file_text
from robbench.core.threat_model import Norm, asked_threat
from robbench.data.cache import Located, check, locate
from robbench.data.dataset import Dataset, EpsList
from robbench.planning.component_spec import Choice, choose
from robbench.planning.grid import Grid, Request, read_grid
from robbench.planning.overrides import overridden
from robbench.results.notes import INDEX
from robbench.results.provenance import source_digest
from robbench.results.schema import digest
from robbench.results.store import Store
from robbench.results.store_index import StoreIndex
from robbench.training.recipe import Recipe


@dataclass(frozen=True)
class FoundDataset:
    """A data set that is asked for, and its files.

    Attributes:
        wanted: What the grid asks for, ``{dataset}`` replaced.
        choice: The data set.
        files: Its files, found and not yet read.
        where: Where it is asked for, for messages.
        eps: The sizes at which it is attacked, per norm.
    """

    wanted: Any
    choice: Choice[Dataset]
    files: Located
    where: str
    eps: Mapping[Norm, EpsList]


@dataclass(frozen=True)
class Inputs:
    """Everything that the plan of a request follows from.

    Attributes:
        request: What the user asks.
        grid: Its grid.
        registry: The known components.
        datasets: The grid's data sets.
    """

    request: Request
    grid: Grid
    registry: Registry
    datasets: tuple[FoundDataset, ...]

    @property
    def as_written(self) -> bool:
        """Whether the grid is a built-in one and no option changes what it asks for."""
        request, content = self.request, self.grid.content
        return (
            self.grid.built_in
            and request.dataset in (None, content.dataset)
            and request.limit is None
            and not request.seeds
            and request.precision == "float32"
            and request.audit in (False, content.audit)
        )

    @property
    def asked(self) -> str:
        """Identifies what the grid's models may ask of the network: paths and options of a run are no part of it."""
        models = [entry.model_dump(mode="json", exclude={"datasets", "external"}) for entry in self.grid.content.models]
        return digest([self.grid.name, models, [found.choice.label for found in self.datasets]])

    @property
    def key(self) -> str:
        """Identifies them for finding out quickly that nothing is to be done: the same key, the same plan.

        It changes with the paths of files, too: stamps of files in two places can be the same by chance, and looking
        closer is all that comes of another key.
        """
        options = asdict(self.request)
        return digest(
            {
                "request": {key: str(value) for key, value in options.items() if key not in ("grid", "out")},
                "grid": [self.grid.name, self.grid.content.model_dump(mode="json")],
                "data": [[found.choice.label, found.files.stamp] for found in self.datasets],
                "code": source_digest(),
                "plugins": [[plugin.label, plugin.source] for plugin in self.registry.plugins()],
                "devices": [os.environ.get("CUDA_VISIBLE_DEVICES"), shutil.which("nvidia-smi") is not None],
            }
        )


@dataclass(frozen=True)
class Finished:
    """A request that was carried out before.

    Attributes:
        grid: The grid's name.
        cells: The number of its cells.
        boards: Names of its boards.
    """

    grid: str
    cells: int
    boards: tuple[str, ...] = ()


def read_request(request: Request) -> Inputs:
    """Read a request's grid, load its plugins and find its data.

    Raises:
        RequestError: If the grid, a plugin or a data set is not there, or the grid contradicts itself.
    """
    grid = request.grid if isinstance(request.grid, Grid) else read_grid(request.grid)
    grid = overridden(grid, request.overrides)
    plugins = [grid.folder / plugin for plugin in grid.content.plugins]
    for position, plugin in enumerate(plugins):
        if not plugin.is_file():
            named = grid.content.plugins[position]
            raise RequestError(f'key "plugins.{position}" = "{named}": {plugin} is not a file', grid.where)
    registry = Registry(tuple(plugin.absolute() for plugin in (*request.plugins, *plugins)))
    names = [grid.content.filled(wanted, request.dataset) for wanted in grid.content.datasets]
    _check(grid, names, request.dataset)
    datasets = [
        find_dataset(registry, wanted, request.data_dir, f'{grid.where}: key "datasets.{position}"')
        for position, wanted in enumerate(names)
    ]
    for position, found in enumerate(datasets):
        if found.choice in [other.choice for other in datasets[:position]]:
            raise RequestError(f'"{found.choice.label}" is asked for twice', found.where)
    return Inputs(request, grid, registry, tuple(datasets))


def find_dataset(registry: Registry, wanted: Any, data_dir: Path | None, where: str) -> FoundDataset:
    """Find the files of a data set that is asked for.

    A table may also say with ``label`` what it is called, and with ``eps`` at which sizes it is attacked, as
    ``{ linf = ["2/255", "8/255"] }``, the last of which is the reference.

    Raises:
        RequestError: If it cannot be had, naming ``where`` it was asked for.
    """
    table, label, eps = wanted, "", None
    if isinstance(wanted, Mapping):
        table = {key: value for key, value in wanted.items() if key not in ("label", "eps")}
        label, eps = wanted.get("label", ""), wanted.get("eps")
        if not isinstance(label, str):
            raise RequestError(f"label = {label!r}: write what the data set is called", where)
    choice = choose(registry, "dataset", table, where)
    if label:
        choice = replace(choice, label=file_text(label))  # it may be the name of a file
    sizes = choice.component.eps if eps is None else _sizes(eps, where)
    try:
        return FoundDataset(wanted, choice, locate(choice.component, data_dir), where, sizes)
    except RequestError as error:
        # Data sets of the package name themselves.
        named = str(error).startswith((f"{choice.name}:", f"{choice.name} "))
        raise RequestError(str(error) if named else f'"{choice.label}": {error}', where) from None


def _sizes(given: object, where: str) -> dict[Norm, EpsList]:
    """Sizes of change per norm as a table says them."""
    found: dict[Norm, EpsList] = {}
    for norm, values in given.items() if isinstance(given, Mapping) else ():
        sizes, reason = [], ""
        try:
            texts = [str(value) for value in values] if isinstance(values, list | tuple) else []
            sizes = [asked_threat(norm, number(text)).radius for text in texts]
        except ValueError as error:
            reason = f" ({error})"
        if not sizes or not all(sizes):
            example = 'write positive sizes, as linf = ["2/255", "8/255"]'
            raise RequestError(f"eps.{norm} = {values!r}: {example}{reason}", where)
        found[norm] = EpsList(tuple(sorted(set(sizes))), reference=sizes[-1])
    if not found:
        raise RequestError(f'eps = {given!r}: write sizes per norm, as {{ linf = ["2/255", "8/255"] }}', where)
    return found


def finished(inputs: Inputs, store: Store) -> Finished | None:
    """What is known of the inputs if all their cells are done and their boards are written, otherwise None."""
    if any(entry.external is not None for entry in inputs.grid.content.models):
        # What identifies such a model shows when it is loaded.
        return None
    try:
        note = store.request(inputs.key)
        return None if note is None else _finished(note, inputs, store)
    except (Damaged, _Unfinished):
        return None


class _Unfinished(Exception):
    """Something is left to do."""


def _finished(note: Mapping[str, Any], inputs: Inputs, store: Store) -> Finished:
    """What is known of a request that was carried out, every file that its boards rest on being there and whole.

    Raises:
        Damaged: If one is not what was written.
        _Unfinished: If a cell or a board is not there.
    """
    boards: dict[str, list[str]] = note["boards"]
    notes = {board: store.board(board) for board in boards}
    cells = [key for keys in boards.values() for key in keys]
    keeps: dict[str, list[str]] = note.get("keeps", {})
    index = StoreIndex.of(store)
    whole = (
        all(note["cells"] == boards[board] for board, note in notes.items())
        and all(index.cell(key, keeps.get(key, ())) is not None for key in cells)
        and all(map(store.check_files, [*boards, INDEX]))
    )
    if not whole:
        raise _Unfinished
    # Models, images for figures and decoded images need not be there any more; but if they are, they have to be whole.
    for note in notes.values():
        for key in note["models"]:
            index.model(key)
        store.read_archive(store.exhibit(str(note["exhibit"])))
    index.save()
    for found in inputs.datasets:
        check(found.files, store.root / "data")
    return Finished(str(note["grid"]), len(cells), tuple(boards))


def _check(grid: Grid, names: list[Any], dataset: str | None) -> None:
    """Whether the parts of a grid fit each other, as far as that shows without components."""
    content, where = grid.content, grid.where
    names = [*names, *(name["label"] for name in names if isinstance(name, dict) and "label" in name)]
    for position, entry in enumerate(content.models):
        for wanted in entry.datasets or ():
            if content.filled(wanted, dataset) not in names:
                raise RequestError(
                    f'key "models.{position}.datasets" = "{wanted}": not among the grid\'s; '
                    f"{did_you_mean(str(wanted), [str(name) for name in content.datasets])}",
                    where,
                )
    Recipe.make(content.recipe, f'{where}: key "recipe"')
    for position, seed in enumerate(content.seeds):
        if seed in content.seeds[:position]:
            raise RequestError(f'key "seeds.{position}" = {seed}: it is in the list already', where)
    for position, entry in enumerate(content.models):
        for seed in entry.seeds or ():
            if seed not in content.seeds:
                raise RequestError(f'key "models.{position}.seeds": {seed} is none of the grid\'s seeds', where)
    elsewhere = {reference.dataset for reference in content.references}
    for name in content.differences:
        if name not in elsewhere:
            hint = did_you_mean(name, elsewhere)
            raise RequestError(f'key "differences.{name}": no reference is of that data set; {hint}', where)
