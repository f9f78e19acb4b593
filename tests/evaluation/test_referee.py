from __future__ import annotations

import os
import random
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import SHAPE, Network
from torch import Tensor, nn

from robbench.core.contracts import Classifier
from robbench.core.global_rng import GlobalState
from robbench.core.threat_model import Norm, Threat
from robbench.evaluation.query_counter import Oracle
from robbench.evaluation.referee import Breach, change_norms, check_images, fair_play


@pytest.fixture
def model() -> Classifier:
    return Network().eval().requires_grad_(False)


def network(model: Classifier) -> Network:
    assert isinstance(model, Network)
    return model


def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return 0.2 + 0.6 * torch.rand(SHAPE, generator=generator), torch.tensor([0, 1, 2, 0])


# --- what is returned


def moved(norm: Norm, size: float) -> tuple[Tensor, Tensor]:
    """Images in float64 and images a change of exactly that norm away."""
    images = torch.full(SHAPE, 0.5, dtype=torch.float64)
    change = torch.zeros(SHAPE, dtype=torch.float64)
    if norm == "linf":
        change += size
    elif norm == "l2":
        change += size / np.sqrt(75)
    elif norm == "l1":
        change += size / 75
    else:
        change.flatten(1)[:, : round(size)] = 0.25
    return images, images + change


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.1), ("l2", 1.0), ("l1", 10.0)])
def test_the_ball_has_the_tolerance_of_the_protocol_and_no_more(norm: Norm, eps: float) -> None:
    allowed = eps * (1 + 1e-5) + 1e-6
    for size in (0.0, eps, allowed * (1 - 1e-9)):
        images, changed = moved(norm, size)
        assert torch.equal(check_images(images, changed, Threat(norm, eps)), changed)
    for size in (allowed * (1 + 1e-8), 1.01 * eps, 2 * eps):
        with pytest.raises(Breach, match="within eps"):
            check_images(*moved(norm, size), Threat(norm, eps))


def test_the_ball_in_l0_counts_changed_values() -> None:
    check_images(*moved("l0", 5), Threat("l0", 5))
    with pytest.raises(Breach, match="within eps"):
        check_images(*moved("l0", 6), Threat("l0", 5))


def test_one_sample_outside_the_ball_is_enough() -> None:
    images, changed = batch()[0], batch()[0]
    changed[2, 0, 0, 0] += 0.11
    with pytest.raises(Breach, match="in 1 samples"):
        check_images(images, changed, Threat("linf", 0.1))


@pytest.mark.parametrize("threat", [Threat("none"), Threat("l1")])
def test_what_is_not_bounded_may_go_anywhere_inside_the_box(threat: Threat) -> None:
    images = batch()[0]
    check_images(images, 1 - images, threat)
    with pytest.raises(Breach, match=r"inside \[0, 1\]"):
        check_images(images, images + 1, threat)


def test_no_eps_means_no_change() -> None:
    images = batch()[0]
    check_images(images, images.clone(), Threat("linf", 0))
    with pytest.raises(Breach, match="within eps"):
        check_images(images, images + 1e-5, Threat("linf", 0))


@pytest.mark.parametrize(
    ("spoil", "rule"),
    [
        (lambda images: images.numpy(), "tensor"),
        (lambda images: None, "tensor"),
        (lambda images: images[:-1], "shape"),
        (lambda images: images[:, :1], "shape"),
        (lambda images: images.flatten(1), "shape"),
        (lambda images: images.double(), "floats"),
        (lambda images: images.half(), "floats"),
        (lambda images: (images * 255).to(torch.uint8), "floats"),
        (lambda images: torch.full_like(images, torch.nan), "finite"),
        (lambda images: images.index_fill(0, torch.tensor([1]), torch.inf), "finite"),
        (lambda images: images - images.min() - 1e-7, r"inside \[0, 1\]"),
        (lambda images: images.index_fill(0, torch.tensor([1]), 1 + 1e-6), r"inside \[0, 1\]"),
    ],
)
def test_every_fault_of_returned_images_is_named(spoil: Callable[[Tensor], object], rule: str) -> None:
    images = batch()[0]
    with pytest.raises(Breach, match=rule):
        check_images(images, spoil(images), Threat("linf", 1.0))


def test_returned_images_are_detached() -> None:
    images = batch()[0]
    changed = images.clone().requires_grad_()
    assert not check_images(images, changed, Threat("linf", 0.1)).requires_grad


@settings(deadline=None)
@given(st.integers(0, 2**31))
def test_norms_are_those_of_numpy(seed: int) -> None:
    rng = np.random.default_rng(seed)
    images, changed = rng.random(SHAPE), rng.random(SHAPE)
    changed = np.where(rng.random(SHAPE) < 0.5, images, changed)
    found = change_norms(torch.from_numpy(images), torch.from_numpy(changed))
    change = (changed - images).reshape(4, -1)
    for norm, order in {"linf": np.inf, "l2": 2, "l1": 1, "l0": 0}.items():
        expected = np.array([np.linalg.norm(row, order) for row in change])
        np.testing.assert_allclose(found[norm].numpy(), expected, rtol=1e-12)  # type: ignore[index]


def test_norms_of_float32_images_are_taken_in_float64() -> None:
    images = torch.full((1, 3, 200, 200), 0.5)
    change = images + 2.0**-20
    assert float(change_norms(images, change)["l1"]) == pytest.approx(120_000 * 2.0**-20, rel=1e-12)


# --- what is left behind


def write_weights(model: Classifier, images: Tensor, labels: Tensor) -> None:
    next(model.parameters()).data += 1


def write_one_weight(model: Classifier, images: Tensor, labels: Tensor) -> None:
    with torch.no_grad():
        network(model).head.bias[0] += 1e-6


def write_statistics(model: Classifier, images: Tensor, labels: Tensor) -> None:
    model.train()
    model(images)
    model.eval()
    torch.manual_seed(3)


def replace_a_weight(model: Classifier, images: Tensor, labels: Tensor) -> None:
    network(model).head.weight = nn.Parameter(torch.zeros(3, 36), requires_grad=False)


def switch_training_mode(model: Classifier, images: Tensor, labels: Tensor) -> None:
    model.train()


def switch_mode_of_a_part(model: Classifier, images: Tensor, labels: Tensor) -> None:
    network(model).body[1].train()


def switch_requires_grad(model: Classifier, images: Tensor, labels: Tensor) -> None:
    model.requires_grad_()


def leave_gradients(model: Classifier, images: Tensor, labels: Tensor) -> None:
    for parameter in model.parameters():
        parameter.requires_grad_()
    with torch.enable_grad():
        model(images).sum().backward()
    for parameter in model.parameters():
        parameter.requires_grad_(False)


def switch_gradients_off(model: Classifier, images: Tensor, labels: Tensor) -> None:
    torch.set_grad_enabled(False)


def write_inputs(model: Classifier, images: Tensor, labels: Tensor) -> None:
    images[0, 0, 0, 0] += 0.01


def resize_inputs(model: Classifier, images: Tensor, labels: Tensor) -> None:
    images.resize_(1, 2)


def write_labels(model: Classifier, images: Tensor, labels: Tensor) -> None:
    labels[0] = 1


def draw_from_python(model: Classifier, images: Tensor, labels: Tensor) -> None:
    random.random()


def draw_from_numpy(model: Classifier, images: Tensor, labels: Tensor) -> None:
    np.random.rand()


def seed_numpy(model: Classifier, images: Tensor, labels: Tensor) -> None:
    np.random.seed(0)


def draw_from_torch(model: Classifier, images: Tensor, labels: Tensor) -> None:
    torch.rand(1)


def seed_torch(model: Classifier, images: Tensor, labels: Tensor) -> None:
    torch.manual_seed(0)


def switch_default_type(model: Classifier, images: Tensor, labels: Tensor) -> None:
    torch.set_default_dtype(torch.float64)


def move_away(model: Classifier, images: Tensor, labels: Tensor) -> None:
    os.chdir("/")


def replace_a_method(model: Classifier, images: Tensor, labels: Tensor) -> None:
    setattr(torch.Tensor, "argmax", torch.Tensor.argmin)  # noqa: B010


FOULS: list[tuple[Callable[[Classifier, Tensor, Tensor], None], str]] = [
    (write_weights, "weights"),
    (write_one_weight, "head.bias"),
    (write_statistics, "running_mean"),
    (replace_a_weight, "head.weight"),
    (switch_training_mode, "training mode"),
    (switch_mode_of_a_part, "training mode"),
    (switch_requires_grad, "requires_grad"),
    (leave_gradients, "gradient was left"),
    (switch_gradients_off, "gradients were switched"),
    (write_inputs, "inputs"),
    (resize_inputs, "inputs"),
    (write_labels, "labels"),
    (draw_from_python, "random state"),
    (draw_from_numpy, "random state"),
    (seed_numpy, "random state"),
    (draw_from_torch, "random state"),
    (seed_torch, "random state"),
    (switch_default_type, "default type"),
    (move_away, "the working directory stays"),
    (replace_a_method, "the code of torch.Tensor stays: argmax changed"),
]


def everything(model: Classifier, images: Tensor, labels: Tensor) -> list[object]:
    """All that must be as before, in a form that can be compared."""
    return [
        {name: value.tolist() for name, value in model.state_dict().items()},
        [module.training for module in model.modules()],
        [parameter.requires_grad for parameter in model.parameters()],
        [parameter.grad for parameter in model.parameters()],
        images.tolist(),
        labels.tolist(),
        torch.is_grad_enabled(),
        torch.get_default_dtype(),
        GlobalState.now(),
        os.getcwd(),
        torch.Tensor.argmax,
    ]


@pytest.mark.parametrize(("foul", "rule"), FOULS)
def test_every_foul_is_named_and_put_right(
    foul: Callable[[Classifier, Tensor, Tensor], None], rule: str, model: Classifier
) -> None:
    images, labels = batch()
    before = everything(model, images, labels)
    # Attacks are given the oracle in the model's place; these two pass through it.
    seen = Oracle(model, len(images)) if foul in (switch_requires_grad, switch_training_mode) else model
    with pytest.raises(Breach, match=rule), fair_play(model, images, labels):
        foul(seen, images, labels)
    assert everything(model, images, labels) == before


@pytest.mark.parametrize("foul", [foul for foul, _ in FOULS])
def test_everything_is_put_right_after_an_error_as_well(
    foul: Callable[[Classifier, Tensor, Tensor], None], model: Classifier
) -> None:
    images, labels = batch()
    before = everything(model, images, labels)

    def foul_and_fail() -> None:
        foul(model, images, labels)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), fair_play(model, images, labels):
        foul_and_fail()
    assert everything(model, images, labels) == before


def test_a_gradient_that_was_there_may_stay_and_not_be_taken_away(model: Classifier) -> None:
    images, labels = batch()
    weight = next(model.parameters())
    weight.grad = given = torch.ones_like(weight)
    with fair_play(model, images, labels):
        pass
    assert weight.grad is given
    with pytest.raises(Breach, match="gradient"), fair_play(model, images, labels):
        weight.grad = None
    assert weight.grad is given


def test_gradients_off_outside_must_stay_off(model: Classifier) -> None:
    images, labels = batch()
    with torch.no_grad():
        with pytest.raises(Breach, match="gradients were switched"), fair_play(model, images, labels):
            torch.set_grad_enabled(True)
        assert not torch.is_grad_enabled()


@pytest.mark.parametrize("kind", ["buffer", "parameter", "module"])
def test_a_model_that_was_rebuilt_is_a_breach(kind: str, model: Classifier) -> None:
    images, labels = batch()
    before = everything(model, images, labels)

    def rebuild() -> None:
        torch.manual_seed(1)
        model.train()
        if kind == "buffer":
            model.register_buffer("extra", torch.zeros(3))
        elif kind == "parameter":
            del network(model).head.bias
        else:
            model.add_module("extra", nn.Linear(2, 2))

    with pytest.raises(Breach, match="rebuilt"), fair_play(model, images, labels):
        rebuild()
    assert everything(model, images, labels) == before


def test_hooks_that_were_left_are_taken_out_and_those_before_them_stay(model: Classifier) -> None:
    images, labels = batch()
    calls: list[str] = []
    own = network(model).head.register_forward_hook(lambda *rest: calls.append("own"))
    with fair_play(model, images, labels):
        network(model).head.register_forward_hook(lambda *rest: calls.append("left"))
        network(model).body.register_forward_pre_hook(lambda *rest: calls.append("left"))
    model(images)
    assert calls == ["own"]
    own.remove()
    model(images)
    assert calls == ["own"]


@pytest.mark.parametrize(
    "form",
    [
        torch.jit.script,
        lambda net: torch.jit.trace(net, torch.zeros(SHAPE)),
        torch.fx.symbolic_trace,
        lambda net: torch.export.export(net, (torch.zeros(SHAPE),)).module(),
    ],
    ids=["script", "trace", "fx", "export"],
)
@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_networks_of_every_form_are_put_back(form: Callable[[nn.Module], nn.Module]) -> None:
    """TorchScript keeps its parts in mappings of its own, which cannot be emptied."""
    images, labels = batch()
    net = form(nn.Sequential(nn.Flatten(), nn.Linear(75, 5)).requires_grad_(False).eval())
    scores = net(images)
    with fair_play(net, images, labels):
        net(images)
    weight = net.state_dict()["1.weight"]
    with pytest.raises(Breach, match="weights and statistics stay"), fair_play(net, images, labels):
        weight.zero_()
    assert torch.equal(net(images), scores)


def test_weights_of_another_type_are_a_breach(model: Classifier) -> None:
    images, labels = batch()
    with pytest.raises(Breach, match="weights and statistics stay"), fair_play(model, images, labels):
        network(model).head.double()


def test_fair_play_is_let_pass(model: Classifier) -> None:
    images, labels = batch()
    before = everything(model, images, labels)
    with fair_play(model, images, labels):
        given = images.clone().requires_grad_()
        oracle = Oracle(model, len(images))
        (gradient,) = torch.autograd.grad(oracle(given).sum(), given)
        (images + 0.1 * gradient.sign()).clamp(0, 1)
        torch.rand(3, generator=torch.Generator().manual_seed(0))
        np.random.default_rng(0).random()
    assert everything(model, images, labels) == before
