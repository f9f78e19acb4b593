"""What is asked of a device before anything is computed on it."""

from __future__ import annotations

import os

WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"
"""Where cuBLAS looks for the size of its workspace, a fixed one of which it needs to give the same sums every time."""


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
