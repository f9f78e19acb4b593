"""What is to be swept: the user's request, and grid files, read from TOML and checked key by key. Needs no torch."""

from __future__ import annotations

import importlib.resources
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from robbench.core.component import number
from robbench.core.device import named_devices
from robbench.core.errors import RequestError, did_you_mean
from robbench.core.safe_text import file_text
from robbench.core.threat_model import LP_NORMS, Norm, asked_threat, size_name
from robbench.data.dataset import EpsList
from robbench.models._external.request import ExternalRequest
from robbench.results.schema import Bound, Reference

Sweep = str | dict[str, Any] | list[str | dict[str, Any]]
Seed = Annotated[int, Field(ge=0, lt=2**31)]


def absolute(path: str | Path) -> Path:
    """A path that means the same whatever becomes of the working directory."""
    return Path(path).expanduser().absolute()


@dataclass(frozen=True)
class Request:
    """What a user asks to be run.

    Attributes:
        grid: Built-in name or TOML file, or a grid that was read or made.
        out: The store's directory.
        dataset: What ``{dataset}`` stands for, or None for the grid's own.
        data_dir: Where data lies.
        limit: Largest number of test images per condition.
        seeds: Seeds in place of the grid's.
        device: ``cpu``, ``cuda``, ``cuda:0,cuda:1`` for some of several, or ``auto`` for CUDA where there is any.
        precision: ``float32``, or ``bfloat16``, for training; attacks and predictions are always in float32.
        deterministic: Whether to let only deterministic algorithms run, which costs speed on a GPU. Recorded with
            results, part of no key; what the store holds is not done again.
        plugins: Plugin files.
        audit: Whether to add the audit's checks, whatever the grid says.
        overrides: Keys of the grid to set, as in ``recipe.epochs=5``; see ``robbench.planning.overrides``.
        keep_images: Whether every cell keeps all attacked images as they are judged.
    """

    grid: str | Grid
    out: Path = Path("runs")
    dataset: str | None = None
    data_dir: Path | None = None
    limit: int | None = None
    seeds: tuple[int, ...] = ()
    device: str = "auto"
    precision: str = "float32"
    plugins: tuple[Path, ...] = ()
    audit: bool = False
    overrides: tuple[str, ...] = ()
    keep_images: bool = False
    deterministic: bool = False

    def __post_init__(self) -> None:
        """Check what every grid takes.

        Raises:
            RequestError: If there would be no images, or there is no such device.
        """
        if self.limit is not None and self.limit < 1:
            raise RequestError(f"{self.limit} images per condition are none; write 1 or more", "limit")
        named_devices(self.device)

    def absolute(self) -> Request:
        """The same request, whatever becomes of the working directory; paths may be texts, and tuples lists."""
        return replace(
            self,
            out=absolute(self.out),
            data_dir=None if self.data_dir is None else absolute(self.data_dir),
            seeds=tuple(self.seeds),
            plugins=tuple(map(absolute, self.plugins)),
            overrides=tuple(self.overrides),
        )


OF_TRAINING = frozenset({"architecture", "objective", "balancer", "start", "recipe"})
"""Keys of models that are trained here, and of no others."""


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class ModelEntry(_Table):
    """One ``[[models]]`` table. Lists are swept; components are texts or tables with a name.

    Attributes:
        external: A model that others trained, in place of how to train one: ``file.py:factory``,
            ``torchvision:resnet18``, a file, or a table with such a ``source``. Only defenses in front go with it.
        vote: Rows of the grid that vote, in place of how to train a model: each with its model of the same seed. Only
            defenses in front go with it.
        name: Name of the row; only where the entry stands for a single model per data set.
        architecture: Architectures; the data set's own where none is given.
        objective: Objectives.
        defense: Defenses, ``+`` between those that apply together.
        balancer: Balancers.
        datasets: The data sets it is trained on; all of the grid's where none is given.
        start: Where training starts from: the name of another entry, or ``imagenet`` for weights that the architecture
            has from there; of several, the first that can be had.
        recipe: Fields of the recipe that differ from the grid's.
        seeds: Those of the grid's seeds that it is trained with; all where none are given.
    """

    name: str | None = None
    external: str | ExternalRequest | None = None
    vote: Annotated[list[str], Field(min_length=2)] | None = None
    architecture: Sweep | None = None
    objective: Sweep = "cross-entropy"
    defense: Sweep = "none"
    balancer: Sweep = "none"
    datasets: Annotated[list[str], Field(min_length=1)] | None = None
    start: str | Annotated[list[str], Field(min_length=1)] | None = None
    recipe: dict[str, Any] = {}
    seeds: Annotated[list[Seed], Field(min_length=1)] | None = None

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        odd = self.model_fields_set & OF_TRAINING
        if self.external is not None and odd:
            raise ValueError(f"a model that others trained is not trained here; leave out {', '.join(sorted(odd))}")
        if self.vote is not None and (odd or self.external is not None):
            unfit = sorted(odd | ({"external"} & self.model_fields_set))
            raise ValueError(f"a vote is not trained, its members are; leave out {', '.join(unfit)}")
        if self.vote is not None and len({*self.vote}) < len(self.vote):
            raise ValueError("a vote names each of its members once")
        return self

    @property
    def asked(self) -> ExternalRequest | None:
        """The model that others trained, where it is one."""
        return ExternalRequest(source=self.external) if isinstance(self.external, str) else self.external

    @property
    def starts(self) -> tuple[str, ...]:
        """Where training may start from, in order of preference."""
        if self.start is None:
            return ()
        return (self.start,) if isinstance(self.start, str) else tuple(self.start)


class DatasetReference(Reference):
    """A figure from elsewhere, found on one of the grid's data sets."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    dataset: str
    """Name of the data set, perhaps with options."""


class DatasetBound(Bound):
    """A proved interval of robust accuracy on one of the grid's data sets."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    dataset: str


class GridFile(_Table):
    """A grid.

    Attributes:
        title: What it is for, in a line.
        about: What readers of its boards should know, paragraphs of plain text.
        references: Figures from elsewhere that its boards show beside their own; those of other data sets are left out.
        bounds: Proved intervals of robust accuracy, beside which its boards show the attacks.
        differences: By data set, why its figures differ from those; paragraphs of plain text.
        dataset: What ``{dataset}`` stands for unless ``--dataset`` says otherwise.
        datasets: The data sets, texts or tables; a table may say with ``label`` what it is called.
        seeds: The seeds.
        conditions: The conditions, texts or tables.
        audit: Whether to add the audit's checks.
        rank_by: Norm and size of change by whose worst case boards rank, as ``linf@8/255``; ``l2@ref`` is the data
            set's reference eps, ``l2@middle`` the middle one of its eps. Where it is empty, the reference eps in Linf,
            or what the grid has nearest to it. ``clean`` ranks by balanced clean accuracy, with that worst case beside
            it.
        recipe: Fields of the recipe that differ from those that the data set suggests.
        plugins: Plugin files to load, relative to the grid file.
        models: The models.
    """

    title: str = ""
    about: str = ""
    references: list[DatasetReference] = []
    bounds: list[DatasetBound] = []
    differences: dict[str, str] = {}
    dataset: str = "digits"
    datasets: Annotated[list[str | dict[str, Any]], Field(min_length=1)] = ["{dataset}"]
    seeds: Annotated[list[Seed], Field(min_length=1)] = [0]
    conditions: Annotated[list[str | dict[str, Any]], Field(min_length=1)]
    audit: bool = False
    rank_by: str = ""
    recipe: dict[str, Any] = {}
    plugins: list[str] = []
    models: Annotated[list[ModelEntry], Field(min_length=1)]

    @field_validator("rank_by")
    @classmethod
    def _ranks(cls, wanted: str) -> str:
        ranked_by(wanted, dict.fromkeys(LP_NORMS, EpsList((0.0,), 0.0)))
        return wanted

    def filled(self, wanted: Any, dataset: str | None) -> Any:
        """A data set as it is asked for, with ``{dataset}`` replaced.

        Args:
            wanted: A text or a table.
            dataset: What ``{dataset}`` stands for, or None for the grid's own.
        """
        if isinstance(wanted, dict):
            return {key: self.filled(value, dataset) for key, value in wanted.items()}
        if not (isinstance(wanted, str) and "{dataset}" in wanted):
            return wanted
        name, bracket, options = (dataset or self.dataset).partition("[")
        return wanted.replace("{dataset}", name) + bracket + options


@dataclass(frozen=True)
class Grid:
    """A grid that was read.

    Attributes:
        name: Its name, which its boards carry.
        folder: The folder that its paths are relative to.
        where: What messages call it.
        content: What it says.
        built_in: Whether it comes with the package and is as it was written.
    """

    name: str
    folder: Path
    where: str
    content: GridFile
    built_in: bool = False


def ranked_by(wanted: str, eps: Mapping[Norm, EpsList]) -> str:
    """What a grid asks to rank by, as boards note it: ``linf@8/255``, or ``clean``; nothing where it asks for nothing.

    Args:
        wanted: The grid's ``rank_by``.
        eps: Those of the data set by norm.

    Raises:
        ValueError: If it is not ``clean`` and names no norm or no size.
    """
    if wanted in ("", "clean"):
        return wanted
    if "@" not in wanted:
        raise ValueError("name a norm and a size of change, as in linf@8/255; or clean")
    return named_size(wanted, eps)


def named_size(wanted: str, eps: Mapping[Norm, EpsList]) -> str:
    """A norm and a size of change as boards note it: ``linf@8/255``.

    Args:
        wanted: It, its size written out or by name: ``linf@ref``, ``linf@middle``.
        eps: Those of the data set by norm.

    Raises:
        ValueError: If it names no norm or no size.
    """
    norm, at, text = wanted.partition("@")
    if not at:
        raise ValueError("name a norm and a size of change, as in linf@8/255")
    if norm not in LP_NORMS:
        raise ValueError(f'there is no norm "{norm}"; {did_you_mean(norm, LP_NORMS)}')
    if text in ("ref", "middle"):
        sizes = {str(known): found for known, found in eps.items()}.get(norm)
        if sizes is None:
            raise ValueError(f"the data set has no sizes of change in {norm}; write one out")
        return size_name(norm, sizes.reference if text == "ref" else sizes.values[len(sizes.values) // 2])
    try:
        size = asked_threat(norm, number(text)).radius
    except ValueError as error:
        raise ValueError(f'"{text}" is no size of change ({error}); write 0.1, 8/255, ref or middle') from None
    return size_name(norm, size)


def built_in_grids() -> dict[str, str]:
    """The texts of the grids that come with the package, by name."""
    folder = importlib.resources.files("robbench.planning.grids")
    files = sorted((item for item in folder.iterdir() if item.name.endswith(".toml")), key=lambda item: item.name)
    return {item.name.removesuffix(".toml"): item.read_text(encoding="utf-8") for item in files}


def read_grid(name: str, where: str = "--grid") -> Grid:
    """Read a built-in grid or a TOML file.

    Args:
        name: A built-in name or a path.
        where: Where it is asked for, for messages.

    Raises:
        RequestError: If there is none, or it breaks a rule: names the file, the key and the value.
    """
    grids = built_in_grids()
    if name in grids:
        where = f"grid {name}"
        return Grid(name, Path.cwd(), where, parse_grid(grids[name], where), built_in=True)
    path = Path(name)
    if path.suffix != ".toml" and not path.is_file():
        raise RequestError(f'there is no grid "{name}"; {did_you_mean(name, grids)}; or name a .toml file', where)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise RequestError(f"cannot be read: {reason}", str(path)) from None
    return Grid(file_text(path.stem), path.parent, name, parse_grid(text, name))


def parse_grid(text: str, where: str) -> GridFile:
    """Check the text of a grid.

    Args:
        text: TOML.
        where: The file's name, for messages.

    Raises:
        RequestError: If it is not TOML or breaks a rule.
    """
    try:
        content = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        # Not only TOMLDecodeError: Python refuses to read integers of thousands of digits.
        raise RequestError(f"is not TOML: {error}", where) from None
    return check_grid(content, where)


def check_grid(content: dict[str, Any], where: str) -> GridFile:
    """Check what a grid says.

    Args:
        content: Plain values, as they are read from TOML.
        where: Where they stand, for messages.

    Raises:
        RequestError: If they break a rule.
    """
    _check_integers(content, where)
    try:
        return GridFile.model_validate(content)
    except ValidationError as error:
        raise RequestError(_explain(error), where) from None


def _check_integers(content: dict[str, Any], where: str) -> None:
    """TOML's integers have 64 bits; Python's reader takes larger ones, which nothing here can be meant to be."""
    waiting: list[tuple[str, object]] = [("", content)]
    while waiting:
        key, value = waiting.pop()
        if isinstance(value, int) and not -(2**63) <= value < 2**63:
            raise RequestError(f'key "{key}" = {_short(value)}: an integer has at most 64 bits', where)
        if isinstance(value, dict | list):
            items = value.items() if isinstance(value, dict) else enumerate(value)
            waiting += [(f"{key}.{name}" if key else str(name), item) for name, item in items]


def _explain(error: ValidationError) -> str:
    problems = error.errors()
    first = max(problems, key=lambda problem: problem["type"] == "extra_forbidden")
    place = first["loc"]
    value = first["input"]
    if first["type"] == "extra_forbidden":
        known = ModelEntry.model_fields if place[0] == "models" else GridFile.model_fields
        key = ".".join(str(part) for part in place)
        return f'key "{key}" = {_short(value)}: there is no such key; {did_you_mean(str(place[-1]), known)}'
    # Behind a field that takes several types, pydantic names the type that it tried.
    key = ".".join(str(part) for part in place if not (isinstance(part, str) and ("[" in part or part in _TYPES)))
    if first["type"] == "missing":
        return f'key "{key}" is missing'
    return f'key "{key}" = {_short(value)}: {first["msg"].removeprefix("Value error, ")}'


_TYPES = ("str", "int", "list", "dict")


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
