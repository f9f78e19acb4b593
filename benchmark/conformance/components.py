"""What balancers, architectures and objectives are held to."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from robbench.conformance.rules import Broken, Rule, demand
from robbench.conformance.scenarios import SHAPE, Features
from robbench.core.contracts import (
    Architecture,
    Backbone,
    Balancer,
    Classifier,
    Objective,
    Samples,
    to_float,
)
from robbench.core.errors import Breach, RequestError
from robbench.core.global_rng import GlobalState, seeded
from robbench.core.process_state import settings_kept
from robbench.core.sample_rng import Streams
from robbench.data.dataset import Dataset, Raw
from robbench.evaluation.referee import check_answers, check_embeddings
from robbench.training.balancing import check_class_weights, check_samples

CLASSES = 3
COUNTS = (12, 6, 4)


@contextmanager
def breaches_told(where: str = "") -> Iterator[None]:
    """Turn a breach of what a run asks into one of a rule of the suite.

    Args:
        where: What stands before the message.

    Raises:
        Broken: With the breach in its message.
    """
    try:
        yield
    except Breach as breach:
        raise Broken(f"{where}{breach}") from breach


@contextmanager
def nothing_left_behind() -> Iterator[None]:
    """Watch over the global random state and the settings of the process, and put them back.

    Raises:
        Broken: If the state was drawn from or set, or a setting changed.
    """
    before = GlobalState.now()
    try:
        with breaches_told(), settings_kept():
            yield
            demand(GlobalState.now() == before, "the global random state is drawn from or set; draw from the streams")
    finally:
        before.restore()


def labeled_samples() -> Samples:
    """Random images of unequally many classes."""
    labels = torch.repeat_interleave(torch.arange(CLASSES), torch.tensor(COUNTS))
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (len(labels), *SHAPE), generator=generator).to(torch.uint8)
    return Samples(images, labels, 1000 + torch.arange(len(labels)))


def check_descent(loss: Tensor, model: nn.Module) -> None:
    """The loss is a finite scalar whose gradient reaches the weights, in which none was left before."""
    demand(isinstance(loss, Tensor) and loss.ndim == 0, "the loss is not a scalar tensor")
    demand(bool(loss.isfinite()), f"the loss is {loss.item()}")
    demand(all(weight.grad is None for weight in model.parameters()), "a gradient is left in a weight")
    demand(loss.requires_grad, "no gradient flows from the loss")
    loss.backward()
    gradients = [weight.grad for weight in model.parameters() if weight.grad is not None]
    demand(any(bool(gradient.any()) for gradient in gradients), "the gradient of every weight is zero")
    demand(all(bool(gradient.isfinite().all()) for gradient in gradients), "the gradient of a weight is not finite")


def check_answering(model: Classifier, images: Tensor) -> Tensor:
    """Predictions of a model whose answers have the right form, and whose ways of being asked agree."""
    with breaches_told():
        check_answers(model, images)
        check_embeddings(model.embed(images), len(images))
    with torch.no_grad():
        demand(bool(model(images).isfinite().all()), "scores are not finite")
        return model.predict(images)


# --- balancers


@dataclass(frozen=True)
class _NoFiles(Dataset):
    """A data set of which nothing but its options is asked."""

    def locate(self, data_dir: Path | None) -> tuple[str, Callable[[], Raw]]:
        raise RequestError("there are no files")


def _balancer_refusal(balancer: Balancer) -> str:
    told = []
    for counts in (COUNTS, (12, 6, 1), (12, 6, 0)):
        reason = balancer.refusal(torch.tensor(counts))
        demand(reason is None or (isinstance(reason, str) and bool(reason.strip())), f"{reason!r} is no reason")
        told += [f"{'/'.join(map(str, counts))}: {reason}"] if reason else []
    return "; ".join(told)


def _resampled(balancer: Balancer) -> str:
    samples = labeled_samples()
    before = copy.deepcopy(samples)
    with nothing_left_behind():
        (made, notes), (again, _) = (balancer.resample(samples, _NoFiles(), 0) for _ in range(2))
    with breaches_told():
        check_samples(made, samples, CLASSES)
    for name in ("images", "labels", "ids"):
        new, old = getattr(made, name), getattr(samples, name)
        demand(torch.equal(new, getattr(again, name)), f"a seed gives other {name} the second time")
        demand(torch.equal(old, getattr(before, name)), f"the {name} that it was given are written to")
    demand(bool(torch.isin(made.labels, samples.labels).all()), "there are labels that were not there before")
    demand(all(isinstance(note, str) for note in notes), "notes are not text")
    return "/".join(str(count) for count in COUNTS) + " became " + "/".join(map(str, made.counts(CLASSES).tolist()))


def _class_weights(balancer: Balancer) -> str:
    with breaches_told():
        weights = check_class_weights(balancer.class_weights(torch.tensor(COUNTS)), CLASSES)
    if weights is None:
        return "none"
    return ", ".join(f"{weight:.3g}" for weight in weights.tolist())


def _augmented(balancer: Balancer) -> str:
    samples = labeled_samples()
    images, streams = to_float(samples.images), Streams.of(samples.ids, 0, "training")
    with nothing_left_behind():
        whole = balancer.augment(images.clone(), _NoFiles(), streams)
        part = balancer.augment(images[:1], _NoFiles(), streams[:1])
    demand(whole.shape == images.shape and whole.dtype == images.dtype, "images change their type or shape")
    demand(bool(((whole >= 0) & (whole <= 1)).all()), "images leave [0, 1]")
    demand(torch.allclose(part, whole[:1], atol=1e-5), "an image's transform depends on the batch")
    return "as they are" if torch.equal(whole, images) else ""


# --- architectures and objectives


def _backbones(architecture: Architecture) -> str:
    told = []
    for shape in ((3, 32, 32), (3, 64, 64), (1, 8, 8)):
        size, reason = "×".join(map(str, shape)), architecture.refusal(shape)
        demand(reason is None or (isinstance(reason, str) and bool(reason)), f"refusing {size} gives no reason")
        if reason is not None:
            told.append(f"refuses {size}: {reason}")
            continue
        with seeded(0):
            backbone = architecture.build(shape)
        with seeded(0):
            again = architecture.build(shape)
        demand(isinstance(backbone, Backbone), f"build returns a {type(backbone).__name__}, not a Backbone")
        backbone.eval()
        images = torch.rand(2, *shape, generator=torch.Generator().manual_seed(0)).requires_grad_()
        features = backbone(images)
        wanted = (2, backbone.out_features)
        demand(features.shape == wanted, f"features of {shape} have shape {tuple(features.shape)}, not {wanted}")
        (gradient,) = torch.autograd.grad(features.square().sum(), images, allow_unused=True)
        demand(gradient is not None and bool(gradient.any()), f"no gradient reaches images of {shape}")
        pairs = zip(backbone.state_dict().values(), again.state_dict().values(), strict=True)
        demand(all(torch.equal(one, other) for one, other in pairs), "a seed gives other weights the second time")
        trained = backbone.train()(images.detach())
        demand(trained.shape == wanted, f"features in training have shape {tuple(trained.shape)}, not {wanted}")
        told.append(f"{backbone.out_features} features of {size}")
    return ", ".join(told)


def _classifier(objective: Objective) -> Classifier:
    gallery = torch.arange(CLASSES).repeat_interleave(min(COUNTS))
    with seeded(0):
        model = objective.build(Features(SHAPE), CLASSES, gallery)
    demand(isinstance(model, Classifier), f"build returns a {type(model).__name__}, not a Classifier")
    demand(model.num_classes == CLASSES, f"num_classes is {model.num_classes}, not {CLASSES}")
    return model


def _gallery() -> Tensor:
    samples = labeled_samples()
    return torch.cat([samples.images[samples.labels == label][: min(COUNTS)] for label in range(CLASSES)])


def _batches(objective: Objective) -> str:
    labels = labeled_samples().labels
    first, again = (list(objective.batches(labels, 8, np.random.default_rng(0))) for _ in range(2))
    demand(bool(first) and all(len(batch) > 0 for batch in first), "there is no batch, or an empty one")
    seen = torch.cat(first)
    demand(seen.dtype == torch.int64 and bool(((seen >= 0) & (seen < len(labels))).all()), "they are no indices")
    demand(len(seen) >= len(labels), f"they hold {len(seen)} images in all, fewer than the {len(labels)} there are")
    demand(torch.equal(seen, torch.cat(again)), "a generator in the same state gives other batches")
    return f"{len(first)} of {', '.join(sorted({str(len(batch)) for batch in first}))}"


def _objective_loss(objective: Objective) -> str:
    samples = labeled_samples()
    images = to_float(samples.images)
    for weights, anchor in ((None, None), (torch.tensor([1.0, 2.0, 3.0]), None), (None, images)):
        model = _classifier(objective).train()
        check_descent(objective.loss(model, images, samples.labels, weights, anchor), model)
    return ""


def _classifies(objective: Objective) -> str:
    model, images = _classifier(objective).eval().requires_grad_(False), to_float(labeled_samples().images)
    objective.finish(model, _gallery())
    predicted = check_answering(model, images)
    copied = _classifier(objective).eval()
    copied.load_state_dict(model.state_dict())
    demand(torch.equal(copied.predict(images), predicted), "a copy with the same state predicts otherwise")
    return ""


BALANCERS = (
    Rule("refusals give a reason", _balancer_refusal),
    Rule("resampled sets are whole", _resampled),
    Rule("class weights fit", _class_weights),
    Rule("augmented images are images", _augmented),
)
ARCHITECTURES = (Rule("backbones are as announced", _backbones),)
OBJECTIVES = (
    Rule("batches cover the set", _batches),
    Rule("the training loss descends", _objective_loss),
    Rule("the classifier answers", _classifies),
)
