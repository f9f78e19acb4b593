"""What cells leave beside their outcomes: attacked images with their scores, all of them on request, and embeddings."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from robbench.core.batches import StoredSamples, fitting, in_batches, loaded
from robbench.core.contracts import Classifier, Samples, to_float
from robbench.core.errors import Damaged
from robbench.data.splits import stratified
from robbench.evaluation.attack_run import KeptImages
from robbench.evaluation.referee import check_embeddings, check_scores
from robbench.evaluation.subject import ANSWERED, Subject
from robbench.planning.conditions import Condition
from robbench.results.schema import Ints, Outcome
from robbench.results.store import EMBEDDINGS, EXAMPLES, IMAGES, Store
from robbench.training.judging import JUDGING_BATCH

EXAMPLED = 16
"""Attacked images of a cell that are kept."""


def needed(subject: Subject, condition: Condition, index: Tensor) -> Tensor:
    """Positions of the samples whose images after a condition are needed once it is over, rising.

    Args:
        subject: Model and samples.
        condition: What is done to the images.
        index: Positions of the samples that it is applied to, rising.
    """
    if IMAGES in condition.keeps:
        return index
    labels = subject.samples.labels[index].numpy()
    at = np.zeros(len(labels), dtype=np.bool_)
    if condition.kind != "clean":
        at[:ANSWERED] = True
        at[in_turn(labels)] = True
    if condition.embed:
        at[stratified(labels, condition.embed, subject.split_seed)] = True
    return index[torch.from_numpy(at)]


def artifacts(
    subject: Subject, condition: Condition, outcome: Outcome, index: Tensor, kept: KeptImages
) -> dict[str, bytes]:
    """Contents of the archives that a cell leaves, by name.

    Args:
        subject: Model and samples.
        condition: What was done to the images.
        outcome: What came of it.
        index: Positions of the samples that it was applied to, rising.
        kept: The images after it, as stored where clean, of those samples that are ``needed``.
    """
    model, files = subject.model, {}
    labels = subject.samples.labels[index].numpy()

    def some(positions: Ints) -> tuple[Samples, Tensor, Ints]:
        at = index[torch.from_numpy(positions)]
        return loaded(subject.samples[at]), kept.at(at), at.numpy()

    if condition.kind != "clean":
        samples, images, at = some(in_turn(labels))
        files[EXAMPLES] = examples(model, samples, images, outcome.clean[at], outcome.final[at], subject.device)
    if condition.embed:
        samples, images, _ = some(stratified(labels, condition.embed, subject.split_seed))
        files[EMBEDDINGS] = embeddings(model, samples, images, subject.device)
    if IMAGES in condition.keeps:
        files[IMAGES] = every_image(subject.samples[index], kept.at(index))
    return files


def every_image(samples: StoredSamples, attacked: Tensor) -> bytes:
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
    """Images before and after a condition as an npz, with predictions and scores.

    Args:
        model: The model, in evaluation mode.
        samples: The clean images.
        attacked: The changed ones, float in [0, 1], shape ``(N, C, H, W)``.
        clean: Predictions on the clean images, shape ``(N,)``.
        final: Predictions on the changed ones.
        device: Where the model is.
    """
    return _npz(
        ids=samples.ids.numpy(),
        labels=samples.labels.numpy(),
        images=samples.images.numpy(),
        attacked=attacked.numpy(),
        clean=clean,
        final=final,
        clean_scores=_shares(model, to_float(samples.images), device),
        final_scores=_shares(model, attacked, device),
    )


def embeddings(model: Classifier, samples: Samples, images: Tensor, device: str) -> bytes:
    """Embeddings of images as an npz: ids, labels, and embeddings float32, shape ``(N, D)``.

    Args:
        model: The model, in evaluation mode.
        samples: The samples that the images are of or were made from.
        images: uint8, or float in [0, 1], shape ``(N, C, H, W)``.
        device: Where the model is.
    """

    def embedded_here(index: Tensor, batch: Samples) -> Tensor:
        with torch.no_grad():
            features = model.embed(to_float(batch.images).to(device))
        return check_embeddings(features, len(batch)).float().cpu()

    given = replace(samples, images=images)
    parts = [*in_batches(given, fitting(JUDGING_BATCH, given.image_shape, device), embedded_here)]
    found = torch.cat(parts).numpy() if parts else np.zeros((0, 0), dtype=np.float32)
    return _npz(ids=samples.ids.numpy(), labels=samples.labels.numpy(), embeddings=found)


def embedded(store: Store, path: Path) -> int:
    """How many embeddings a file of a store holds; 0 where it is missing or damaged."""
    try:
        with np.load(io.BytesIO(store.content(path)), allow_pickle=False) as found:
            return len(found["ids"])
    except (Damaged, ValueError, KeyError):
        return 0


def in_turn(labels: Ints) -> Ints:
    """Positions of the samples that are shown: at most ``EXAMPLED``, one of each class in turn."""
    earlier = np.zeros(len(labels), dtype=np.int64)
    for label in np.unique(labels):
        own = labels == label
        earlier[own] = np.arange(own.sum())
    return np.lexsort((labels, earlier))[:EXAMPLED]


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
