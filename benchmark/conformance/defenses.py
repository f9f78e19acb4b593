"""What defenses are held to, in training and at inference."""

from __future__ import annotations

import copy
import io
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from robbench.conformance.components import (
    CLASSES,
    check_answering,
    check_descent,
    labeled_samples,
    nothing_left_behind,
)
from robbench.conformance.rules import NotApplicable, Rule, demand
from robbench.conformance.scenarios import SHAPE, network
from robbench.core.contracts import Classifier, Defense, to_float
from robbench.core.sample_rng import Streams
from robbench.core.threat_model import Threat
from robbench.core.training_step import Batch
from robbench.models.cross_entropy import CrossEntropy
from robbench.training.passes import counted


@dataclass(frozen=True)
class _Watched(Batch):
    """A step that writes down which training passes are asked for, and whether labels were mixed for them."""

    passes: list[bool] = field(default_factory=list)

    def loss(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        self.passes.append(labels is not None and labels.is_floating_point())
        return super().loss(images, labels)

    def scores(self, images: Tensor) -> Tensor:
        self.passes.append(False)
        return super().scores(images)


def _step(model: Classifier) -> _Watched:
    samples = labeled_samples()
    streams = Streams.of(samples.ids, 0, "training")
    weights = torch.tensor([1.0, 2.0, 3.0])
    return _Watched(to_float(samples.images), samples.labels, streams, 0.1, model, CrossEntropy(), weights, 0.5, True)


def _trainee() -> Classifier:
    return network(CLASSES).requires_grad_(True).train()


def _training_loss(defense: Defense) -> str:
    model = _trainee()
    batch = _step(model)
    before = batch.images.clone()
    with nothing_left_behind():
        loss = defense.training_loss(batch)
    demand(torch.equal(defense.training_loss(_step(_trainee())), loss), "the same streams give another loss")
    check_descent(loss, model)
    demand(torch.equal(batch.images, before), "the training images are written to")
    return "" if type(defense).training_loss is not Defense.training_loss else "the loss as it is"


def _network_untouched(defense: Defense) -> str:
    if type(defense).training_loss is Defense.training_loss:
        raise NotApplicable("its training loss is the loss as it is")
    model, reference = _trainee(), _trainee()
    batch = _step(model)
    defense.training_loss(batch).backward()
    for (name, weight), start in zip(model.named_parameters(), reference.parameters(), strict=True):
        demand(torch.equal(weight, start), f"the weights {name} are changed")
        demand(weight.requires_grad, f"the weights {name} are no longer trained")
    for part, other in zip(model.modules(), reference.modules(), strict=True):
        demand(part.training == other.training, "a part of the network is left in another mode")
        if isinstance(part, nn.BatchNorm2d):
            demand(part.track_running_stats, "batch statistics are left switched off")
            moved, asked = int(part.num_batches_tracked or 0), len(batch.passes)
            demand(moved <= asked, f"batch statistics move {moved} times in {asked} training passes: use attack_loss")
    if not defense.uses_scores:
        demand(bool(batch.passes), "it never asks for batch.loss: override uses_scores")
    demand(defense.mixes_labels or not any(batch.passes), "labels are mixed: set mixes_labels")
    return f"{len(batch.passes)} passes of training"


def _passes(defense: Defense) -> str:
    model = _trainee()
    batch = _step(model)
    with counted(model.get_submodule("backbone")) as passes:
        defense.training_loss(replace(batch, spent=passes.add)).backward()
    told = defense.passes(CLASSES)
    for kind, number, found in zip(("forward", "backward"), told, (passes.forwards, passes.backwards), strict=True):
        demand(isinstance(number, int) and number >= 0, f"passes tells {number!r} {kind} passes, no number from 0 on")
        asked = found / len(batch.images)
        demand(asked <= 1 + number, f"a step takes {asked:g} {kind} passes per image, passes tells 1 + {number}")
    return ""


def _hooks(defense: Defense) -> str:
    """What it does around the loss, with a checkpoint in between."""
    if not defense.trains:
        raise NotApplicable("it leaves training as it is")
    steps = defense.steps_per_batch()
    demand(isinstance(steps, int) and steps >= 1, f"steps_per_batch is {steps!r}, not a number from 1 on")
    model = _trainee()
    state: dict[str, Tensor] = {}
    with nothing_left_behind():
        _trained(defense, model, state, (0.2, 0.6))
    demand(all(isinstance(value, Tensor) for value in state.values()), "its state holds what is no tensor")
    saved = io.BytesIO()
    torch.save([model.state_dict(), state], saved)
    saved.seek(0)
    weights, read = torch.load(saved, weights_only=True)
    resumed = _trainee()
    resumed.load_state_dict(weights)
    first, second = _trained(defense, model, state, (0.8, 0.9)), _trained(defense, resumed, read, (0.8, 0.9))
    for name, value in first.items():
        demand(
            torch.equal(value, second[name]), f"after a checkpoint, {name} comes out otherwise: keep all in batch.state"
        )
    wanted = {name: value.shape for name, value in model.state_dict().items()}
    demand({name: value.shape for name, value in first.items()} == wanted, "final_weights is no state of the model")
    demand(all(bool(value.isfinite().all()) for value in first.values()), "final weights are not finite")
    watched = defense.watched(0.1)
    demand(watched is None or isinstance(watched, Threat), f"watched is {watched!r}, no Threat")
    for seen in ((), (0.5,), (0.5, 0.0)):
        reason = defense.stop(seen)
        demand(reason is None or (isinstance(reason, str) and bool(reason.strip())), f"{reason!r} is no reason to stop")
    return f"{len(state)} tensors kept" if state else ""


def _trained(
    defense: Defense, model: Classifier, state: dict[str, Tensor], progress: Sequence[float]
) -> dict[str, Tensor]:
    """Take steps, and give what would be kept then."""
    for share in progress:
        batch = replace(_step(model), state=state, progress=share)
        model.zero_grad()
        defense.training_loss(batch).backward()
        with torch.no_grad():
            for weight in model.parameters():
                if weight.grad is not None:
                    weight.sub_(0.01 * weight.grad)
        defense.after_step(batch)
    before = copy.deepcopy(model.state_dict())
    handed = defense.final_weights(model, state)
    changed = [name for name, value in model.state_dict().items() if not torch.equal(value, before[name])]
    demand(not changed, f"final_weights changes the network in training: {', '.join(changed)}")
    return dict(before if handed is None else handed)


def _wrapped(defense: Defense) -> Classifier:
    if type(defense).wrap is Defense.wrap:
        raise NotApplicable("it leaves the trained model as it is")
    model = defense.wrap(network(CLASSES))
    demand(isinstance(model, Classifier), f"wrap returns a {type(model).__name__}, not a Classifier")
    return model.eval()


def _defended(defense: Defense) -> str:
    model, images = _wrapped(defense), to_float(labeled_samples().images)
    demand(model.num_classes == CLASSES, f"num_classes is {model.num_classes}, not {CLASSES}")
    before = images.clone()
    with nothing_left_behind():
        check_answering(model, images)
    demand(torch.equal(images, before), "the images are written to")
    return f"{model.draws} passes a call" if model.draws > 1 else ""


def _defended_gradient(defense: Defense) -> str:
    model, images = _wrapped(defense), to_float(labeled_samples().images).requires_grad_()
    if defense.gradients == "none":
        raise NotApplicable("it says that none pass")
    with torch.enable_grad():
        scores = model(images)
    reaches = scores.requires_grad
    if reaches:
        (gradient,) = torch.autograd.grad(scores.square().sum(), images, allow_unused=True)
        reaches = gradient is not None and bool(gradient.any())
    demand(reaches, f'gradients = "{defense.gradients}", but none reaches the images')
    if defense.gradients == "exact":
        _derivative(defense)
    return defense.gradients


def _derivative(defense: Defense) -> None:
    """What is called exact is the derivative, along most directions: near a kink differences tell nothing."""
    model = defense.wrap(network(CLASSES)).eval().double()
    generator = torch.Generator().manual_seed(0)
    images, *ways = torch.rand(12, 4, *SHAPE, generator=generator, dtype=torch.float64)
    step, right = 1e-6, 0
    with torch.enable_grad():
        (gradient,) = torch.autograd.grad(model(images.requires_grad_())[:, 0].sum(), images)
    for way in ways:
        with torch.no_grad():
            ahead, behind = (model(images + side * step * (way - 0.5))[:, 0].sum() for side in (1, -1))
        expected, found = (ahead - behind) / (2 * step), (gradient * (way - 0.5)).sum()
        right += bool((found - expected).abs() <= 1e-3 * expected.abs() + 1e-6)
    demand(2 * right > len(ways), f'gradients = "exact", but they are the derivative along {right} of {len(ways)} ways')


def _defended_batches(defense: Defense) -> str:
    model, images = _wrapped(defense), to_float(labeled_samples().images)
    if model.draws > 1 or model.votes:
        raise NotApplicable("the defense is random")
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        whole = model.predict(images)
        parts = torch.cat([model.predict(images[index]) for index in (order[:1], order[1:8], order[8:])])
    demand(torch.equal(parts, whole[order]), "predictions change with the batch or the order of its samples")
    return ""


DEFENSES = (
    Rule("the training loss descends", _training_loss),
    Rule("training leaves the network as it was", _network_untouched),
    Rule("a step takes the passes that are told", _passes),
    Rule("hooks keep their promises", _hooks),
    Rule("the wrapped model answers", _defended),
    Rule("gradients pass as it says", _defended_gradient),
    Rule("batch and order change nothing", _defended_batches),
)
