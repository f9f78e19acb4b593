"""Which devices there are to be asked for, and what is asked of one before anything is computed on it."""

from __future__ import annotations

import os
import re

from robbench.core.errors import RequestError, did_you_mean

WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"
"""Where cuBLAS looks for the size of its workspace, a fixed one of which it needs to give the same sums every time."""

DEVICES = ("auto", "cpu", "cuda")


def named_devices(wanted: str) -> tuple[str, tuple[int, ...]]:
    """The type of device that is asked for, and the numbers of those that are named, as in ``cuda:0,cuda:1``.

    Raises:
        RequestError: If there is no such type, or a device is named twice.
    """
    if wanted in DEVICES:
        return wanted, ()
    found = [re.fullmatch(r"cuda:(\d{1,4})", name.strip()) for name in wanted.split(",")]
    numbers = [int(one[1]) for one in found if one]
    if wanted == "mps":
        raise RequestError("mps has no float64, in which sizes of changes are measured; say cpu", "--device")
    if len(numbers) < len(found):
        hint = did_you_mean(wanted, (*DEVICES, "cuda:0", "cuda:0,cuda:1"))
        raise RequestError(f'there is no device "{wanted}"; {hint}', "--device")
    if len(set(numbers)) < len(numbers):
        raise RequestError(f'"{wanted}" names a device twice; --workers 2 has two processes share one', "--device")
    return "cuda", tuple(numbers)


def visible_to(number: int | None) -> dict[str, str]:
    """Environment variables of a process that is to see one CUDA device alone; None for all that this one sees."""
    if number is None:
        return {}
    seen = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    return {"CUDA_VISIBLE_DEVICES": seen[number] if seen else str(number)}


def prepare_device(device: str, deterministic: bool = False) -> None:
    """Have an accelerator compute in true float32.

    Args:
        device: Device type.
        deterministic: Whether to let only algorithms run that give the same result to the last bit every time; where
            there is none for an operation, it fails with a ``RuntimeError`` that names it. To be asked for before
            anything is multiplied on a GPU.
    """
    import torch

    if device == "cuda":
        torch.backends.cudnn.allow_tf32 = False
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.benchmark = False
        torch.backends.cudnn.deterministic = True
    if deterministic:
        os.environ.setdefault(WORKSPACE, ":4096:8")
        torch.use_deterministic_algorithms(True)
