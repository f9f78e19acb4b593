"""Training images whose label looks wrong: finding them, and training without them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn

from robbench.core.contracts import Balancer, Samples, to_float
from robbench.core.errors import RequestError
from robbench.core.extras import require
from robbench.core.registry import register_balancer
from robbench.data.dataset import Dataset
from robbench.results.schema import Floats, Ints

SIDE = 32
"""Larger images are averaged down to this many pixels a side before they are looked at."""
_PATCH, _STRIDE, _FILTERS = 6, 2, 128
_SMOOTHING, _THRESHOLD = 0.1, 0.25
_EXAMPLES = 250
"""Images that filters and whitening are taken from."""
_CHUNK = 128


@dataclass(frozen=True)
class Suspects:
    """Images whose label is improbable to a model that has not seen them, the worst first.

    Attributes:
        ids: Their sample ids, shape ``(S,)``.
        given: The labels that they have, shape ``(S,)``.
        suggested: The classes that are the most probable ones, other than ``given``, shape ``(S,)``.
        scores: Probabilities of the given labels in [0, 1], rising, shape ``(S,)``.
        balanced_accuracy: Share of all images whose given label is the most probable one, averaged over classes. The
            lower it is, the more of the suspects are images that are merely hard.
    """

    ids: Ints
    given: Ints
    suggested: Ints
    scores: Floats
    balanced_accuracy: float

    def __len__(self) -> int:
        """The number of suspects."""
        return len(self.ids)


def suspects(samples: Samples, num_classes: int, seed: int, folds: int = 5) -> Suspects:
    """Find the images whose label is likely to be wrong, by confident learning (Northcutt et al., 2021).

    The probabilities come from logistic regression on patch features (Coates, Ng and Lee, 2011), cross-validated: those
    of an image are from a model that was fitted without it. Such a model needs neither a GPU nor a training run of the
    benchmark, but it is far from the best that there is: what it finds is to be looked at, and what it does not find is
    not proven right. Images of rare classes are doubted more readily. The order of the samples does not matter.

    Args:
        samples: Images with the labels to be checked.
        num_classes: Number of classes K.
        seed: Seed of the folds and of the patches.
        folds: In how many parts the samples are cut; as many as the smallest class has images where that is fewer.

    Raises:
        RequestError: If a class has fewer than two images, or cleanlab is not installed.
    """
    from sklearn.metrics import balanced_accuracy_score

    reason = _refusal(samples.counts(num_classes))
    if reason:
        raise RequestError(reason)
    cleanlab = _cleanlab()
    samples = samples[samples.ids.argsort()]
    labels, ids = samples.labels.numpy(), samples.ids.numpy()
    probabilities = _out_of_sample(_features(samples.images, seed), labels, seed, folds)
    worst = cleanlab.find_label_issues(labels, probabilities, return_indices_ranked_by="self_confidence", n_jobs=1)
    predicted = probabilities.argmax(axis=1)
    return Suspects(
        ids=ids[worst],
        given=labels[worst],
        suggested=predicted[worst],
        scores=probabilities[worst, labels[worst]],
        balanced_accuracy=float(balanced_accuracy_score(labels, predicted)),
    )


@register_balancer("without-suspects")
@dataclass(frozen=True)
class WithoutSuspects(Balancer):
    """Training without the images whose label looks wrong (confident learning; Northcutt et al., 2021).

    Nearest-neighbor models still refer to all images of the gallery.

    Attributes:
        share: Largest share of a class that is left out, the worst ones of it; rounded down, so that none is emptied.
        folds: Parts of the cross-validation behind it.
    """

    share: Annotated[float, Field(gt=0, lt=1)] = 0.2
    folds: Annotated[int, Field(ge=2)] = 5

    def refusal(self, counts: Tensor) -> str | None:
        """An image that is alone in its class can only be judged by a model that knows nothing of the class.

        Raises:
            RequestError: If cleanlab is not installed: before any training.
        """
        _cleanlab()
        return _refusal(counts)

    def resample(self, samples: Samples, dataset: Dataset, seed: int) -> tuple[Samples, tuple[str, ...]]:
        """The samples without the suspects among them.

        Raises:
            RequestError: If a class has fewer than two images.
        """
        counts = samples.counts(int(samples.labels.max()) + 1)
        found = suspects(samples, len(counts), seed, self.folds)
        most = (counts * self.share).long().tolist()
        dropped = [found.ids[found.given == label][:limit] for label, limit in enumerate(most)]
        note = f"left out {'/'.join(str(len(part)) for part in dropped)} images per class, whose labels look wrong"
        kept = ~torch.isin(samples.ids, torch.from_numpy(np.concatenate(dropped)))
        return samples[kept], (note,)


def _cleanlab() -> Any:
    return require("cleanlab.filter", "labels", "finding suspected label errors")


def _refusal(counts: Tensor) -> str | None:
    if int(counts.min()) < 2:
        return "suspected label errors are found by cross-validation, which needs at least two images of every class"
    return None


def _out_of_sample(features: NDArray[np.float32], labels: Ints, seed: int, folds: int) -> Floats:
    """Probabilities of the classes, shape ``(N, K)``, of each image by a model that was fitted without it."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    parts = StratifiedKFold(min(folds, int(np.bincount(labels).min())), shuffle=True, random_state=seed % 2**32)
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, tol=0.01, max_iter=500))
    found: Floats = cross_val_predict(model, features, labels, cv=parts, method="predict_proba").astype(np.float64)
    shares: Floats = found / found.sum(axis=1, keepdims=True)
    return shares


def _features(images: Tensor, seed: int) -> NDArray[np.float32]:
    """How much each quarter of an image resembles patches drawn from all of them, shape ``(N, 8F)``; sees no label."""
    side = [min(SIDE, size) for size in images.shape[-2:]]
    patch = min(_PATCH, *side)

    def patches(part: Tensor) -> Tensor:
        """Patches without their brightness and contrast, shape ``(M, C·P·P, L)``."""
        small = nn.functional.interpolate(to_float(part), side, mode="area")
        found = nn.functional.unfold(small, patch, stride=_STRIDE)
        centered = found - found.mean(dim=1, keepdim=True)
        return centered / (centered.square().mean(dim=1, keepdim=True) + 1e-3).sqrt()

    rng = np.random.default_rng(seed)
    some = torch.from_numpy(rng.permutation(len(images))[:_EXAMPLES])
    seen = patches(images[some]).transpose(1, 2).flatten(0, 1).double()
    variances, axes = torch.linalg.eigh(seen.T @ seen / len(seen))
    whiten = axes @ torch.diag((variances.clamp_min(0) + _SMOOTHING).rsqrt()) @ axes.T
    filters = nn.functional.normalize(seen[torch.from_numpy(rng.choice(len(seen), _FILTERS))] @ whiten, dim=1)
    weights = (filters @ whiten).float()

    def respond(part: Tensor) -> Tensor:
        found = weights @ patches(part)
        found = torch.cat([found - _THRESHOLD, -found - _THRESHOLD], dim=1).clamp_min(0)
        maps = found.reshape(*found.shape[:2], *((size - patch) // _STRIDE + 1 for size in side))
        return nn.functional.adaptive_avg_pool2d(maps, 2).flatten(1)

    with torch.no_grad():
        return torch.cat([respond(part) for part in torch.split(images, _CHUNK)]).numpy()
