"""The shape that the file of a network declares for its input, and how images are brought into it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from robbench.core.errors import RequestError


@dataclass(frozen=True)
class Layout:
    """How images of shape ``(N, C, H, W)`` go into a network.

    Attributes:
        order: ``NCHW``, ``NHWC`` or ``flat``.
        batch: Images per call that the network demands, or 0.
        input_size: Height and width that it demands, or empty.
    """

    order: str = "NCHW"
    batch: int = 0
    input_size: tuple[int, ...] = ()

    @classmethod
    def of(cls, sizes: Sequence[int | None], image_shape: tuple[int, int, int]) -> Layout:
        """The layout that suits a declared shape.

        Args:
            sizes: Its dimensions; None for one that is left open.
            image_shape: ``(C, H, W)`` of the images.

        Raises:
            RequestError: If none does.
        """
        channels, height, width = image_shape
        if not sizes:
            return cls()  # nothing is declared
        batch = sizes[0] or 0
        if len(sizes) == 2 and sizes[1] in (None, channels * height * width):
            return cls("flat", batch)
        if len(sizes) == 4 and (sizes[1] == channels or (sizes[1] is None and sizes[3] != channels)):
            order, size = "NCHW", tuple(sizes[2:])
        elif len(sizes) == 4 and sizes[3] == channels:
            order, size = "NHWC", tuple(sizes[1:3])
        else:
            shape = "×".join("N" if size is None else str(size) for size in sizes)
            raise RequestError(f"it takes {shape}, the images are {channels}×{height}×{width}")
        fixed = tuple(known if known is not None else own for known, own in zip(size, image_shape[1:], strict=True))
        return cls(order, batch, fixed if any(size) else ())


class Arranged(nn.Module):
    """A network that takes its images in another order."""

    def __init__(self, network: nn.Module, order: str) -> None:
        super().__init__()
        self.network, self.order = network, order

    def forward(self, images: Tensor) -> object:
        """What the network returns."""
        return self.network(images.permute(0, 2, 3, 1) if self.order == "NHWC" else images.flatten(1))


def arranged(network: nn.Module, layout: Layout) -> nn.Module:
    """The network, taking images of shape ``(N, C, H, W)``."""
    return network if layout.order == "NCHW" else Arranged(network, layout.order)
