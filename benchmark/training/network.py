"""The network of a job before its training: backbone, normalization and head, with random or given weights."""

from __future__ import annotations

import torch
from torch import Tensor

from robbench.core.contracts import Backbone, Classifier
from robbench.core.global_rng import seeded
from robbench.core.sample_rng import digest64
from robbench.planning.plan import TrainedJob

BACKBONE = "backbone."


class NormalizedBackbone(Backbone):
    """A backbone behind the normalization of its training data, so that the model takes images in [0, 1].

    Args:
        backbone: Network on normalized images.
        mean: Per channel, shape ``(C,)``.
        std: Per channel, shape ``(C,)``.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, backbone: Backbone, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        self.out_features = backbone.out_features
        self.network = backbone
        self.register_buffer("mean", mean.reshape(1, -1, 1, 1))
        self.register_buffer("std", std.reshape(1, -1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """Features of images in [0, 1], shape ``(N, out_features)``."""
        features: Tensor = self.network((images - self.mean) / self.std)
        return features


def build(job: TrainedJob, gallery_labels: Tensor, mean: Tensor, std: Tensor) -> Classifier:
    """The job's model, untrained; its random weights depend on the job's seed alone.

    Args:
        job: The job.
        gallery_labels: Labels of the reference images, int64, shape ``(G,)``.
        mean: Mean of the training pixels per channel, shape ``(C,)``.
        std: Their standard deviation.
    """
    channels, height, width = job.data.decoded.images.shape[1:]
    with seeded(digest64("weights", job.seed)):
        backbone = job.architecture.component.build((channels, height, width))
        normalized = NormalizedBackbone(backbone, mean, std)
        model = job.objective.component.build(normalized, job.data.num_classes, gallery_labels)
    return model.to(memory_format=torch.channels_last)


def pixel_statistics(images: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation per channel of stored images in [0, 1], shape ``(C,)`` each.

    The same everywhere: of uint8 from counts, of floats from sums of whole numbers.
    """
    if images.is_floating_point():
        channels = images.transpose(0, 1).flatten(1).double()
        mean = _mean(channels)
        return mean.float(), _mean((channels - mean[:, None]) ** 2).sqrt().clamp_min(1e-3).float()
    counts = torch.stack([torch.bincount(images[:, c].flatten(), minlength=256) for c in range(images.shape[1])])
    share = counts.double() / counts.sum(dim=1, keepdim=True)
    levels = torch.arange(256, dtype=torch.float64) / 255
    mean = share @ levels
    variance = (share * (levels - mean[:, None]) ** 2).sum(dim=1)
    return mean.float(), variance.sqrt().clamp_min(1e-3).float()


def _mean(values: Tensor) -> Tensor:
    """The mean of each row of float64 in [0, 1], to 32 bits behind the point, whatever the order of its sum."""
    return (values * 2**32).round().long().sum(dim=1).double() / 2**32 / values.shape[1]


def warm_start(model: Classifier, weights: dict[str, Tensor], own: bool = False) -> None:
    """Take over the backbone; the head belongs to the objective, and with ``own`` the normalization to the data.

    Raises:
        ValueError: If the weights are those of another architecture.
    """
    wanted = {name for name in model.state_dict() if name.startswith(BACKBONE)}
    wanted -= {f"{BACKBONE}mean", f"{BACKBONE}std"} if own else set()
    given = {name: value for name, value in weights.items() if name in wanted}
    if given.keys() != wanted:
        raise ValueError("it cannot start from weights of another architecture")
    model.load_state_dict(given, strict=False)
