"""Evaluating somebody's model, and running grids: what ``robbench evaluate`` and ``robbench run`` are layers over."""

from __future__ import annotations

import re
import tempfile
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import ValidationError

from robbench.api.board_results import BoardResults
from robbench.api.given_data import asked_data
from robbench.api.loading import load
from robbench.api.report import Report
from robbench.api.stored_models import PREFIX, stored_model
from robbench.api.thresholds import check_threshold
from robbench.core.errors import RequestError, did_you_mean
from robbench.core.registry import Registry
from robbench.core.safe_text import file_text
from robbench.data.cache import decode
from robbench.data.datasets.arrays import Arrays
from robbench.data.splits import TEST_ALONE
from robbench.execution.runner import Watch, unwatched
from robbench.execution.runner import run as run_grid
from robbench.models._external.request import Answers, ExternalRequest
from robbench.planning.grid import Grid, ModelEntry, Request, absolute, check_grid
from robbench.planning.inputs import Finished, FoundDataset, Inputs, find_dataset
from robbench.planning.planner import read_data
from robbench.planning.presets import PRESETS
from robbench.results.schema import BoardNote, Record
from robbench.results.store import Store

if TYPE_CHECKING:
    from robbench.models._external.loading import External
    from robbench.planning.plan import Plan

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
    deterministic: bool
    plugins: tuple[Path, ...]
    keep_images: bool
    fresh: bool
    timeout: float | None
    thresholds: tuple[str, ...]


def evaluate(
    model: object,
    data: object,
    *,
    attacks: Sequence[str | Mapping[str, Any]] | str = (),
    preset: str = "standard",
    audit: bool | None = None,
    eps: Mapping[str, Sequence[float | str] | float | str] | Sequence[float | str] | float | str = (),
    num_classes: int | None = None,
    name: str | None = None,
    normalization: str = "",
    mean: Sequence[float] | float = (),
    std: Sequence[float] | float = (),
    input_size: Sequence[int] | int = (),
    answers: Answers | Literal["auto"] = "auto",
    weights: str | Path = "",
    arguments: Mapping[str, Any] | None = None,
    limit: int | None = None,
    seed: int = 0,
    data_dir: str | Path | None = None,
    device: Device = "auto",
    deterministic: bool = False,
    plugins: Sequence[str | Path] = (),
    keep_images: bool = False,
    fresh: bool = False,
    timeout: float | None = None,
    thresholds: Sequence[str] = (),
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
            ``["2/255", "8/255"]``, ``"8/255"`` or ``{"l2": 0.5}``.
        num_classes: Of arrays whose labels count from 0; needed where neither names of classes nor the scores of the
            model tell it.
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
        deterministic: Whether to let only deterministic algorithms run, which costs speed on a GPU.
        plugins: Plugin files.
        keep_images: Whether to keep all attacked images, for ``Report.adversarial_examples``.
        fresh: Whether to do again what the store holds already.
        timeout: Seconds that one cell may take; None for a day.
        thresholds: What the report is going to be held to, as ``linf:8/255=40``: what is not attacked is refused before
            anything is.
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
            mean=_several(mean),
            std=_several(std),
            input_size=_several(input_size),
            answers=answers,
        )
    except ValidationError as error:
        first = error.errors()[0]
        said = first["msg"].removeprefix("Value error, ")
        raise RequestError(f"{'.'.join(map(str, first['loc']))} = {first['input']!r}: {said}", "model") from None
    given = eps if isinstance(eps, Mapping) else {"linf": eps}
    sizes = {norm: list(found) for norm, one in given.items() if (found := _several(one))}
    stated = ({"eps": sizes} if sizes else {}) | ({} if num_classes is None else {"num_classes": num_classes})
    options = _Options(
        limit,
        seed,
        None if data_dir is None else absolute(data_dir),
        device,
        deterministic,
        tuple(map(absolute, plugins)),
        keep_images,
        fresh,
        timeout,
        _several(thresholds),
    )
    asking = _Asking(model, asked, _several(attacks), preset, audit, stated, file_text(name) if name else None, options)
    if out is not None:
        return asking.carry_out(absolute(out), data, watch)
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
    stated: dict[str, Any]
    """Options of the data set that are given apart from it."""
    name: str | None
    options: _Options

    def carry_out(self, root: Path, data: object, watch: Watch) -> Report:
        """Evaluate into a store."""
        Store(root).check()
        options = self.options
        registry = Registry(options.plugins)
        wanted = asked_data(data, root, registry) | self.stated
        found, external = _subject(self.model, self.asked, wanted, registry, root, options)
        grid = self.grid(found, external)
        request = Request(
            grid=grid,
            out=root,
            data_dir=options.data_dir,
            limit=options.limit,
            device=options.device,
            deterministic=options.deterministic,
            plugins=options.plugins,
            keep_images=options.keep_images,
        )
        inputs = Inputs(request.absolute(), grid, registry, (found,))
        known = {self.asked.source: external}
        boards = run_grid(inputs, None, options.fresh, watch, options.timeout, known, self._check_thresholds)
        assert not isinstance(boards, Finished)
        (board,) = boards.files
        return load(root, board)

    def _check_thresholds(self, plan: Plan) -> None:
        """Refuse thresholds of what the plan does not attack."""
        records = [
            Record(
                key=cell.key, status="unsupported" if cell.refusal else "failed", reason=cell.refusal, spec=cell.spec
            )
            for _, cell in plan.cells
        ]
        note = BoardNote(grid=plan.name, title=plan.grid.title)
        planned = BoardResults(plan.name, note, tuple((record, None) for record in records))
        for threshold in self.options.thresholds:
            check_threshold(planned, threshold)

    def grid(self, found: FoundDataset, external: External) -> Grid:
        """The grid of one row that is asked for."""
        preset, name = PRESETS[self.preset], self.name or external.label
        attacks = _with_clean(self.attacks) if self.attacks else [*preset.conditions[external.identity["answers"]]]
        content = {
            "title": f"How robust {name} is",
            "datasets": [found.wanted],
            "seeds": [self.options.seed],
            "conditions": attacks,
            "audit": preset.audit and not self.attacks if self.audit is None else self.audit,
            "models": [ModelEntry(name=self.name, external=self.asked)],
        }
        return Grid(name, Path.cwd(), "evaluate", check_grid(content, "evaluate"))


def run(
    grid: str | Path,
    *,
    out: str | Path = "runs",
    store_from: Sequence[str | Path] = (),
    watch: Watch = unwatched,
    **options: Any,
) -> dict[str, Report]:
    """Sweep a grid: train, attack, score and write its boards; what the store holds is not done again.

    Args:
        grid: Name of a built-in grid, or a TOML file.
        out: The store.
        store_from: Other stores, whose finished work is taken over; they are only read.
        watch: Shows the work.
        options: Other fields of ``Request``, as ``dataset="cifar10"``, ``limit=100`` or ``seeds=[0, 1]``.

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
    boards = run_grid(Request(str(grid), absolute(out), **options), watch=watch, sources=list(map(Path, store_from)))
    names = boards.boards if isinstance(boards, Finished) else boards.files
    return {board: load(out, board) for board in names}


def _several(values: Any) -> tuple[Any, ...]:
    """Values of which there may be one, without a list around it; numbers of an array or a tensor are plain ones."""
    plain = values.tolist() if hasattr(values, "tolist") else values
    return (plain,) if isinstance(plain, str | int | float | Mapping) else tuple(plain)


def _with_clean(attacks: Sequence[str | Mapping[str, Any]]) -> list[str | dict[str, Any]]:
    """Conditions of the user's own, clean images among them: robust accuracy says little without clean accuracy."""
    given = [attack if isinstance(attack, str) else dict(attack) for attack in attacks]
    return given if "clean" in given else ["clean", *given]


# --- the model


def _subject(
    model: object, asked: ExternalRequest, table: dict[str, Any], registry: Registry, root: Path, options: _Options
) -> tuple[FoundDataset, External]:
    """The data set and the model; of the user's own data without names of classes the model tells their number."""
    found = find_dataset(registry, table, options.data_dir, "data")
    own = found.choice.name in _OWN_DATA and "split" not in table
    if own:
        # What is left to all images being test images says nothing to a reader.
        label = Path(str(table.get("path") or options.data_dir or found.choice.name)).stem
        table = {"label": label, "split": list(TEST_ALONE), **table}
        found = find_dataset(registry, table, options.data_dir, "data")
    component = found.choice.component
    decoded = decode(found.files, root / "data")
    counted = isinstance(component, Arrays) and not component.num_classes and not component.classes
    counted = counted and all(re.fullmatch(r"-?\d+", name) for name in decoded.class_names)
    names = None if counted else read_data(found, root).splits.class_names
    classes = None if names is None else len(names)
    shape = decoded.images.shape[1:]
    if asked.source.startswith(PREFIX):
        model, label = stored_model(asked.source, Store(root), registry, shape, names)
        asked = asked.model_copy(update={"source": ""})
        external = replace(_external(model, asked, shape, classes), label=label)
    else:
        external = _external(model, asked, shape, classes)
    if counted:
        table = {**table, "num_classes": external.model.num_classes}
        found = find_dataset(registry, table, options.data_dir, "data")
    return found, external


def _external(model: object, asked: ExternalRequest, shape: tuple[int, ...], classes: int | None) -> External:
    from robbench.models._external.loading import as_external, load_external

    channels, height, width = shape
    if asked.source:
        if classes is None:
            # A grid knows how many classes there are, on which a model's metadata may depend.
            classes = load_external(asked, (channels, height, width), None, Path.cwd()).model.num_classes
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
