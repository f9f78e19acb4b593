"""What cells leave beside their outcomes: attacked images with their scores, all of them on request, and embeddings."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from robbench.core.contracts import Classifier, Samples, to_float
from robbench.core.errors import Damaged
from robbench.data.splits import stratified
from robbench.evaluation.referee import check_embeddings, check_scores
from robbench.evaluation.subject import Subject
from robbench.planning.conditions import Condition
from robbench.results.schema import Ints, Outcome
from robbench.results.store import EMBEDDINGS, EXAMPLES, IMAGES, Store
from robbench.training.judging import JUDGING_BATCH

EXAMPLED = 16
"""Attacked images of a cell that are kept."""


def artifacts(
    subject: Subject, condition: Condition, outcome: Outcome, index: Tensor, images: Tensor
) -> dict[str, bytes]:
    """Contents of the archives that a cell leaves, by name.

    Args:
        subject: Model and samples.
        condition: What was done to the images.
        outcome: What came of it.
        index: Positions of the samples that it was applied to.
        images: Their images after it, as stored where clean, shape ``(M, C, H, W)``.
    """
    model, given, at, files = subject.model, subject.samples[index], index.numpy(), {}
    if condition.kind != "clean":
        files[EXAMPLES] = examples(model, given, images, outcome.clean[at], outcome.final[at], subject.device)
    if condition.embed:
        size, seed = condition.embed, subject.split_seed
        files[EMBEDDINGS] = embeddings(model, given, images, size, seed, subject.device)
    if IMAGES in condition.keeps:
        files[IMAGES] = every_image(given, images)
    return files


def every_image(samples: Samples, attacked: Tensor) -> bytes:
    """All images after a condition, as they were judged, as an npz: ids, labels, and images float32 in [0, 1].

    Args:
        samples: The clean images.
        attacked: The changed ones, shape ``(N, C, H, W)``.
    """
    buffer = io.BytesIO()
    # What attacks add is noise, which takes long to compress and gets no smaller.
    np.savez(buffer, ids=samples.ids.numpy(), labels=samples.labels.numpy(), attacked=to_float(attacked).numpy())
    return buffer.getvalue()


def examples(model: Classifier, samples: Samples, attacked: Tensor, clean: Ints, final: Ints, device: str) -> bytes:
    """Images before and after a condition as an npz, with predictions and scores; at most ``EXAMPLED``, of all classes.

    Args:
        model: The model, in evaluation mode.
        samples: The clean images.
        attacked: The changed ones, float in [0, 1], shape ``(N, C, H, W)``.
        clean: Predictions on the clean images, shape ``(N,)``.
        final: Predictions on the changed ones.
        device: Where the model is.
    """
    index = torch.from_numpy(_in_turn(samples.labels.numpy())[:EXAMPLED])
    shown, after = samples[index], attacked[index]
    return _npz(
        ids=shown.ids.numpy(),
        labels=shown.labels.numpy(),
        images=shown.images.numpy(),
        attacked=after.numpy(),
        clean=clean[index.numpy()],
        final=final[index.numpy()],
        clean_scores=_shares(model, to_float(shown.images), device),
        final_scores=_shares(model, after, device),
    )


def embeddings(model: Classifier, samples: Samples, images: Tensor, size: int, seed: int, device: str) -> bytes:
    """Embeddings of some images as an npz: ids, labels, and embeddings float32, shape ``(size, D)``.

    Args:
        model: The model, in evaluation mode.
        samples: The samples that the images are of or were made from.
        images: uint8, or float in [0, 1], shape ``(N, C, H, W)``.
        size: How many of them, stratified; all where there are no more.
        seed: The same seed takes the same samples.
        device: Where the model is.
    """
    index = torch.from_numpy(stratified(samples.labels.numpy(), size, seed))
    taken = to_float(images[index])
    with torch.no_grad():
        parts = [
            check_embeddings(model.embed(part.to(device)), len(part)).float().cpu()
            for part in torch.split(taken, JUDGING_BATCH)
        ]
    chosen = samples[index]
    found = torch.cat(parts).numpy() if parts else np.zeros((0, 0), dtype=np.float32)
    return _npz(ids=chosen.ids.numpy(), labels=chosen.labels.numpy(), embeddings=found)


def embedded(store: Store, path: Path) -> int:
    """How many embeddings a file of a store holds; 0 where it is missing or damaged."""
    try:
        with np.load(io.BytesIO(store.content(path)), allow_pickle=False) as found:
            return len(found["ids"])
    except (Damaged, ValueError, KeyError):
        return 0


def _in_turn(labels: Ints) -> Ints:
    """Positions of the samples, one of each class in turn, whatever order and proportions the classes have."""
    earlier = np.zeros(len(labels), dtype=np.int64)
    for label in np.unique(labels):
        own = labels == label
        earlier[own] = np.arange(own.sum())
    return np.lexsort((labels, earlier))


def _shares(model: Classifier, images: Tensor, device: str) -> NDArray[np.float32]:
    """The model's scores as shares that sum to 1, float32, shape ``(N, K)``."""
    with torch.no_grad():
        scores = check_scores(model(images.to(device)), len(images), model.num_classes)
        shares: NDArray[np.float32] = scores.softmax(dim=1).float().cpu().numpy()
    return shares


def _npz(**arrays: Any) -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()
