"""What is asked of an accelerator before anything is computed on it."""

from __future__ import annotations


def require_float32(device: str) -> None:
    """Have an accelerator compute in true float32, and the same each time."""
    import torch

    if device == "cuda":
        torch.backends.cudnn.allow_tf32 = False
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.benchmark = False
        torch.backends.cudnn.deterministic = True
