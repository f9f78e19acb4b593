"""What a user asks to be run. Needs no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Request:
    """What a user asks to be run. Holds plain values only, so that a worker can be handed it.

    Attributes:
        grid: Built-in name or TOML file.
        out: The store's directory.
        dataset: What ``{dataset}`` stands for, or None for the grid's own.
        data_dir: Where data lies.
        limit: Largest number of test images per condition.
        seeds: Seeds in place of the grid's.
        device: ``cpu``, ``cuda``, or ``auto`` for CUDA where there is any.
        precision: ``float32``, or ``bfloat16``, for training; attacks and decisions are always in float32.
        plugins: Plugin files.
        audit: Whether to add the audit's checks, whatever the grid says.
    """

    grid: str
    out: Path = Path("runs")
    dataset: str | None = None
    data_dir: Path | None = None
    limit: int | None = None
    seeds: tuple[int, ...] = ()
    device: str = "auto"
    precision: str = "float32"
    plugins: tuple[Path, ...] = ()
    audit: bool = False
