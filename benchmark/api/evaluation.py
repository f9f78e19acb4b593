"""Evaluating somebody's model, and running grids: what ``robbench evaluate`` and ``robbench run`` are layers over."""

from __future__ import annotations

import hashlib
import io
import tempfile
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from robbench.api.loading import load
from robbench.api.report import Report
from robbench.api.stored_models import PREFIX, stored_model
from robbench.core.atomic_io import write_atomically
from robbench.core.errors import RequestError, did_you_mean
from robbench.core.registry import Registry
from robbench.data.cache import decode
from robbench.data.datasets.arrays import Arrays
from robbench.data.splits import TEST_ALONE
from robbench.execution.runner import Watch, unwatched
from robbench.execution.runner import run as run_grid
from robbench.models._external.request import Answers, ExternalRequest
from robbench.planning.component_spec import read_text
from robbench.planning.grid import Grid, GridFile, ModelEntry, Request
from robbench.planning.inputs import Finished, FoundDataset, Inputs, find_dataset
from robbench.planning.planner import read_data
from robbench.planning.presets import PRESETS
from robbench.results.store import Store

if TYPE_CHECKING:
    from robbench.models._external.loading import External

Device = Literal["auto", "cpu", "cuda"]

_OWN_DATA = ("arrays", "image-folder", "parquet")
"""Data sets of users' own files, all of which are for testing where they set no part aside."""


@dataclass(frozen=True)
class _Options:
    """How an evaluation is done; see ``evaluate``."""

    limit: int | None
    seed: int
    data_dir: Path | None
    device: Device
    plugins: tuple[Path, ...]
    keep_images: bool
    fresh: bool
    timeout: float | None


def evaluate(
    model: object,
    data: object,
    *,
    attacks: Sequence[str | Mapping[str, Any]] = (),
    preset: str = "standard",
    audit: bool | None = None,
    eps: Mapping[str, Sequence[float | str]] | Sequence[float | str] = (),
    name: str | None = None,
    normalization: str = "",
    mean: Sequence[float] = (),
    std: Sequence[float] = (),
    input_size: Sequence[int] = (),
    answers: Answers | Literal["auto"] = "auto",
    weights: str | Path = "",
    arguments: Mapping[str, Any] | None = None,
    limit: int | None = None,
    seed: int = 0,
    data_dir: str | Path | None = None,
    device: Device = "auto",
    plugins: Sequence[str | Path] = (),
    keep_images: bool = False,
    fresh: bool = False,
    timeout: float | None = None,
    out: str | Path | None = None,
    watch: Watch = unwatched,
) -> Report:
    """Put a model to attacks and natural perturbations, and judge what comes of it.

    Args:
        model: A ``torch.nn.Module``, a callable that returns scores ``(N, K)`` or labels ``(N,)``, or where to find
            one: ``file.py:factory``, ``package.module:factory``, ``torchvision:NAME``, ``timm:NAME``, a TorchScript,
            ``torch.export`` or ONNX file. It takes images in [0, 1], shape ``(N, C, H, W)``, once normalized.
        data: Name of a data set, as ``cifar10``; a file or folder of images; a pair of images and labels; or a
            ``torch.utils.data.Dataset`` of such pairs.
        attacks: Conditions, as ``fgsm@8/255`` or ``strong@l2:0.5``; those of the preset where there are none.
        preset: ``quick``, ``standard`` or ``full``.
        audit: Whether to add the audit's checks; None for what the preset says, and for attacks of your own not.
        eps: Sizes of change in place of the data set's own, in Linf or by norm, the reference last, as
            ``["2/255", "8/255"]`` or ``{"l2": [0.5]}``.
        name: Name of the row.
        normalization: Name of the normalization that the model was trained with, as ``imagenet``.
        mean: Or what is subtracted per channel.
        std: And what is then divided by.
        input_size: Height and width that images are resized to inside the model.
        answers: The most that attacks may ask of it.
        weights: File of weights to load into what the factory makes.
        arguments: Keyword arguments of the factory.
        limit: Largest number of test images per condition.
        seed: Seed of the attacks.
        data_dir: Where data lies.
        device: ``cpu``, ``cuda``, or ``auto`` for CUDA where there is any.
        plugins: Plugin files.
        keep_images: Whether to keep all attacked images, for ``Report.adversarial_examples``.
        fresh: Whether to do again what the store holds already.
        timeout: Seconds that one cell may take; None for a day.
        out: Store in which results are kept and found again; None for one that goes with the report.
        watch: Shows the work.

    Raises:
        RequestError: If something that is asked for cannot be had: what, where, and what to do.
        StoreError: If results cannot be kept.

    Example:
        >>> report = robbench.evaluate("net.py:make", "cifar10", preset="quick")
        >>> report.worst_case("linf", "8/255")
        Measure(value=0.41, low=0.36, high=0.46, n=400)
    """
    if preset not in PRESETS:
        raise RequestError(f'there is no preset "{preset}"; {did_you_mean(preset, PRESETS)}', "preset")
    try:
        asked = ExternalRequest(
            source=str(model) if isinstance(model, str | Path) else "",
            weights=str(weights),
            arguments=dict(arguments or {}),
            normalization=normalization,
            mean=tuple(mean),
            std=tuple(std),
            input_size=tuple(input_size),
            answers=answers,
        )
    except ValidationError as error:
        first = error.errors()[0]
        said = first["msg"].removeprefix("Value error, ")
        raise RequestError(f"{'.'.join(map(str, first['loc']))} = {first['input']!r}: {said}", "model") from None
    sizes = eps if isinstance(eps, Mapping) else {"linf": list(eps)} if eps else {}
    options = _Options(
        limit,
        seed,
        None if data_dir is None else Path(data_dir),
        device,
        tuple(map(Path, plugins)),
        keep_images,
        fresh,
        timeout,
    )
    asking = _Asking(model, asked, tuple(attacks), preset, audit, sizes, name, options)
    if out is not None:
        return asking.carry_out(Path(out).absolute(), data, watch)
    kept = tempfile.TemporaryDirectory(prefix="robbench-")
    try:
        report = asking.carry_out(Path(kept.name), data, watch)
    except BaseException:
        kept.cleanup()
        raise
    weakref.finalize(report, kept.cleanup)
    return report


@dataclass(frozen=True)
class _Asking:
    """What is asked of ``evaluate``, but for data and place."""

    model: object
    asked: ExternalRequest
    attacks: tuple[str | Mapping[str, Any], ...]
    preset: str
    audit: bool | None
    sizes: Mapping[str, Sequence[float | str]]
    name: str | None
    options: _Options

    def carry_out(self, root: Path, data: object, watch: Watch) -> Report:
        """Evaluate into a store."""
        Store(root).check()
        options = self.options
        registry = Registry(tuple(plugin.absolute() for plugin in options.plugins))
        wanted = _wanted(data, root, registry)
        if self.sizes:
            wanted = {**(wanted if isinstance(wanted, dict) else _table(wanted)), "eps": dict(self.sizes)}
        found, external = _subject(self.model, self.asked, wanted, registry, root, options)
        grid = self.grid(found, external)
        request = Request(
            grid=grid,
            out=root,
            data_dir=options.data_dir,
            limit=options.limit,
            device=options.device,
            plugins=options.plugins,
            keep_images=options.keep_images,
        )
        inputs = Inputs(request.absolute(), grid, registry, (found,))
        known = {self.asked.source: external}
        boards = run_grid(inputs, None, options.fresh, watch, options.timeout, known)
        assert not isinstance(boards, Finished)
        (board,) = boards.files
        return load(root, board)

    def grid(self, found: FoundDataset, external: External) -> Grid:
        """The grid of one row that is asked for."""
        preset, name = PRESETS[self.preset], self.name or external.label
        attacks = _with_clean(self.attacks) if self.attacks else [*preset.conditions[external.identity["answers"]]]
        content = GridFile(
            title=f"How robust {name} is",
            datasets=[found.wanted],
            seeds=[self.options.seed],
            conditions=attacks,
            audit=preset.audit and not self.attacks if self.audit is None else self.audit,
            models=[ModelEntry(name=self.name, external=self.asked)],
        )
        return Grid(name, Path.cwd(), "evaluate", content)


def run(grid: str | Path, *, out: str | Path = "runs", watch: Watch = unwatched, **options: Any) -> dict[str, Report]:
    """Sweep a grid: train, attack, score and write its boards; what the store holds is not done again.

    Args:
        grid: Name of a built-in grid, or a TOML file.
        out: The store.
        watch: Shows the work.
        options: Other fields of ``Request``, as ``dataset="cifar10"`` or ``limit=100``.

    Returns:
        A report per board.

    Raises:
        RequestError: If the request is wrong; nothing is written then.
        StoreError: If results cannot be kept.

    Example:
        >>> reports = robbench.run("smoke")
        >>> reports["smoke-digits"].rows
        ('cross-entropy · no defense',)
    """
    boards = run_grid(Request(str(grid), Path(out), **options), watch=watch)
    names = boards.boards if isinstance(boards, Finished) else boards.files
    return {board: load(out, board) for board in names}


def _with_clean(attacks: Sequence[str | Mapping[str, Any]]) -> list[str | dict[str, Any]]:
    """Conditions of the user's own, clean images among them: robust accuracy says little without clean accuracy."""
    given = [attack if isinstance(attack, str) else dict(attack) for attack in attacks]
    return given if "clean" in given else ["clean", *given]


# --- data


def _wanted(data: object, root: Path, registry: Registry) -> str | dict[str, Any]:
    """A data set as a grid asks for it; arrays are kept in the store first.

    A name of a data set means the data set, whatever folder lies here; ``./name`` means the folder.
    """
    if isinstance(data, dict):
        return data
    if isinstance(data, str | Path):
        path = Path(data).expanduser()
        if path.suffix in _FILES and (path.exists() or isinstance(data, Path)):
            return {"name": _FILES[path.suffix], "path": str(path.absolute())}
        if path.is_dir() and (isinstance(data, Path) or "/" in data or data not in registry.entries("dataset")):
            kinds = {_FILES[file.suffix] for file in path.iterdir() if file.suffix in _FILES}
            return {"name": next(iter(sorted(kinds)), "image-folder"), "path": str(path.absolute())}
        if path.suffix and not path.exists() and "[" not in str(data):
            raise RequestError(f'"{data}" is not there', "data")
        return str(data)
    return {"name": "arrays", "path": str(_kept(*_arrays(data), root)), "label": "images"}


_FILES = {".npz": "arrays", ".npy": "arrays", ".parquet": "parquet"}


def _arrays(data: object) -> tuple[NDArray[Any], NDArray[Any]]:
    """Images and labels as arrays.

    Raises:
        RequestError: If they are none.
    """
    if isinstance(data, tuple | list) and len(data) == 2:
        images, labels = data
    elif hasattr(data, "__getitem__") and hasattr(data, "__len__"):
        pairs = [data[index] for index in range(len(data))]
        if not all(isinstance(pair, tuple | list) and len(pair) >= 2 for pair in pairs):
            raise RequestError("a data set gives pairs of an image and a label", "data")
        images = np.stack([_pixels(pair[0]) for pair in pairs]) if pairs else np.zeros((0, 1, 1, 1))
        labels = [int(pair[1]) for pair in pairs]
    else:
        raise RequestError(
            f"{type(data).__name__} is no data: name a data set or a file, or hand over (images, labels)", "data"
        )
    return _pixels(images), np.asarray(labels.cpu() if hasattr(labels, "cpu") else labels)


def _pixels(images: Any) -> NDArray[Any]:
    """A tensor, an array or a picture as an array; pictures become channels, height and width."""
    if hasattr(images, "detach"):
        images = images.detach().cpu()
    array = np.asarray(images)
    if hasattr(images, "getbands"):
        array = array[None] if array.ndim == 2 else array.transpose(2, 0, 1)
    return array


def _kept(images: NDArray[Any], labels: NDArray[Any], root: Path) -> Path:
    """Keep arrays in a store, named after their content, so that they are found again."""
    buffer = io.BytesIO()
    np.savez(buffer, images=images, labels=labels)
    content = buffer.getvalue()
    path = root / "data" / f"given-{hashlib.sha256(content).hexdigest()[:16]}.npz"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, content)
    return path


# --- the model


def _subject(
    model: object, asked: ExternalRequest, wanted: Any, registry: Registry, root: Path, options: _Options
) -> tuple[FoundDataset, External]:
    """The data set and the model; of the user's own data without names of classes the model tells their number."""
    found = find_dataset(registry, wanted, options.data_dir, "data")
    table = wanted if isinstance(wanted, dict) else _table(wanted)
    own = found.choice.name in _OWN_DATA and "split" not in table

    if own:
        # What is left to all images being test images says nothing to a reader.
        label = Path(str(table.get("path") or options.data_dir or found.choice.name)).stem
        table = {"label": label, "split": list(TEST_ALONE), **table}
        found = find_dataset(registry, table, options.data_dir, "data")
    component = found.choice.component
    decoded = decode(found.files, root / "data")
    counted = isinstance(component, Arrays) and not component.num_classes and not component.classes
    counted = counted and all(name.isdecimal() for name in decoded.class_names)
    classes = None if counted else read_data(found, root).num_classes
    shape = decoded.images.shape[1:]
    if asked.source.startswith(PREFIX):
        model, label = stored_model(asked.source, Store(root), registry, shape)
        asked = asked.model_copy(update={"source": ""})
        external = replace(_external(model, asked, shape, classes), label=label)
    else:
        external = _external(model, asked, shape, classes)
    if counted:
        table = {**table, "num_classes": external.model.num_classes}
        found = find_dataset(registry, table, options.data_dir, "data")
    return found, external


def _table(text: str) -> dict[str, object]:
    name, given = read_text(text, "data")
    return {"name": name, **given}


def _external(model: object, asked: ExternalRequest, shape: tuple[int, ...], classes: int | None) -> External:
    from robbench.models._external.loading import as_external, load_external

    channels, height, width = shape
    if asked.source:
        return load_external(asked, (channels, height, width), classes, Path.cwd())
    return as_external(
        model,
        (channels, height, width),
        classes,
        mean=asked.mean,
        std=asked.std,
        normalization=asked.normalization,
        input_size=asked.input_size,
        answers=asked.answers,
    )
