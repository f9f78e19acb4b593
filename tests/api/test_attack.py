from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NoReturn

import numpy as np
import pytest
import torch
from closed_forms import SHAPE
from resident import held
from subjects import condition, exact, subject
from torch import Tensor, nn

import robbench
from robbench import RequestError
from robbench.core.contracts import to_float
from robbench.core.global_rng import GlobalState
from robbench.evaluation.evaluator import evaluate
from robbench.planning.conditions import Condition
from robbench.results.store import IMAGES

EPS = 8 / 255


class Net(nn.Module):
    """With all that an attack could leave changed: dropout, batch statistics, weights with gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(SHAPE[0], 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5), nn.Flatten()
        )
        self.head: nn.Linear = nn.LazyLinear(4)

    def forward(self, images: Tensor) -> Tensor:
        scores: Tensor = self.head(self.layers(images))
        return scores


def net() -> Net:
    torch.manual_seed(0)
    made = Net()
    made(torch.rand(2, *SHAPE))
    return made.eval()


X = torch.rand(12, *SHAPE, generator=torch.Generator().manual_seed(1))
Y = torch.arange(12) % 4


def kept(chain: str) -> Condition:
    return replace(condition(chain), keep_images=True)


@pytest.mark.parametrize(
    ("name", "options", "chain"),
    [
        ("pgd", {"steps": 3}, "pgd[steps=3]@0.1"),
        ("fgsm", {}, "fgsm@0.1"),
        ("square", {"queries": 20}, "square[queries=20]@0.1"),
        pytest.param(
            "art:BasicIterativeMethod",
            {"max_iter": 2},
            "art:BasicIterativeMethod[max_iter=2]@0.1",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_an_attack_alone_gives_the_images_of_a_run(name: str, options: dict[str, int], chain: str) -> None:
    """To the last bit, for the same ids and seed."""
    tried = subject(exact(4), wrong=0)
    found = evaluate(tried, kept(chain))
    arrays = np.load(io.BytesIO(found.extras[IMAGES]))
    given = tried.samples
    made = robbench.attack(name, **options)(
        tried.model, to_float(held(given).images), given.labels, eps=0.1, seed=tried.seed, ids=given.ids
    )
    assert np.array_equal(arrays["ids"], given.ids.numpy())
    assert np.array_equal(arrays["attacked"], made.numpy())


def test_it_breaks_a_linear_model_where_its_closed_form_says() -> None:
    """In Linf the gradient's sign is the best step, as long as the box has room."""
    model = exact(3)
    images = 0.3 + 0.4 * torch.rand(50, *SHAPE, generator=torch.Generator().manual_seed(2))
    labels = model.predict(images)
    assert (model.predict(robbench.attack("pgd")(model, images, labels, eps=0.3)) != labels).all()
    assert torch.equal(robbench.attack("fgsm")(model, images, labels, eps=0.0), images)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_changes_stay_within_the_ball_of_the_norm(norm: str) -> None:
    changed = robbench.attack("pgd", steps=2)(net(), X, Y, eps="8/255", norm=norm)
    change = (changed - X).flatten(1)
    size = change.abs().amax(1) if norm == "linf" else change.norm(dim=1)
    assert float(size.max()) <= EPS * 1.001
    assert float(size.min()) > 0


def test_a_model_and_the_process_are_left_as_they_were() -> None:
    model = net().train()
    model.layers[1].eval()
    model.head.weight.requires_grad_(False)
    model(X).sum().backward()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modes = [part.training for part in model.modules()]
    gradients = [None if weight.grad is None else weight.grad.clone() for weight in model.parameters()]
    state, images, labels = GlobalState.now(), X.clone(), Y.clone()
    with torch.no_grad():
        changed = robbench.attack("pgd", steps=2)(model, images, labels, eps=EPS)
        assert not torch.is_grad_enabled()
    assert GlobalState.now() == state
    assert [part.training for part in model.modules()] == modes
    assert [weight.requires_grad for weight in model.parameters()].count(False) == 1
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    for weight, gradient in zip(model.parameters(), gradients, strict=True):
        assert (weight.grad is None and gradient is None) or torch.equal(weight.grad, gradient)  # type: ignore[arg-type]
    assert torch.equal(images, X)
    assert torch.equal(labels, Y)
    assert not changed.requires_grad


def test_a_model_is_restored_when_an_attack_fails() -> None:
    class Failing(Net):
        def forward(self, images: Tensor) -> Tensor:
            if len(images) > 1:
                raise ValueError("no")
            return super().forward(images)

    model = Failing()
    model.head = nn.Linear(4 * SHAPE[1] * SHAPE[2], 4)
    model.train()
    with pytest.raises(ValueError, match="no"):
        robbench.attack("fgsm")(model, X, Y, eps=EPS)
    assert all(part.training for part in model.modules())
    assert all(weight.requires_grad for weight in model.parameters())


def test_batches_and_their_order_change_no_draw() -> None:
    ready, model = robbench.attack("uniform-noise"), net()
    ids = torch.arange(100, 112)
    whole = ready(model, X, Y, eps=0.1, ids=ids)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(3))
    parts = [ready(model, X[part], Y[part], eps=0.1, ids=ids[part]) for part in torch.split(order, 5)]
    assert torch.equal(torch.cat(parts), whole[order])
    assert torch.equal(ready(model, X, Y, eps=0.1), ready(model, X, Y, eps=0.1))
    assert not torch.equal(ready(model, X, Y, eps=0.1), ready(model, X, Y, eps=0.1, seed=1))


def test_arrays_give_arrays() -> None:
    model = net()
    array = robbench.attack("fgsm")(model, X.numpy(), Y.numpy(), eps=EPS)
    assert isinstance(array, np.ndarray)
    assert array.dtype == np.float32
    assert np.array_equal(array, robbench.attack("fgsm")(model, X, Y, eps=EPS).numpy())
    stored = (X * 255).round().to(torch.uint8)
    expected = robbench.attack("fgsm")(model, to_float(stored), Y, eps=EPS)
    assert torch.equal(robbench.attack("fgsm")(model, stored, Y, eps=EPS), expected)
    assert robbench.attack("fgsm")(model, X[:0], Y[:0], eps=EPS).shape == (0, *SHAPE)
    assert robbench.attack("fgsm")(model.double(), X.double(), Y, eps=EPS).dtype == torch.float64


def test_functions_and_networks_are_attacked_alike() -> None:
    model = net()
    by_function = robbench.attack("pgd", steps=2)(lambda images: model(images), X, Y, eps=EPS)
    assert torch.equal(by_function, robbench.attack("pgd", steps=2)(model, X, Y, eps=EPS))


def test_answers_in_any_form_are_taken_as_an_evaluation_takes_them() -> None:
    model = net()
    forms: list[Callable[[Any], Any]] = [
        lambda images: (model(images), images),
        lambda images: {"logits": model(images), "loss": None},
        lambda images: [model(images)],
    ]
    expected = robbench.attack("pgd", steps=2)(model, X, Y, eps=EPS)
    for form in forms:
        assert torch.equal(robbench.attack("pgd", steps=2)(form, X, Y, eps=EPS), expected)
    weight = torch.randn(int(np.prod(SHAPE)), 4, generator=torch.Generator().manual_seed(4)).numpy()

    def in_numpy(images: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        assert isinstance(images, np.ndarray)
        scores: np.ndarray[Any, Any] = images.reshape(len(images), -1) @ weight
        return scores

    changed = robbench.attack("square", queries=50)(in_numpy, X.numpy(), Y.numpy(), eps=0.3)
    assert (in_numpy(changed).argmax(1) != Y.numpy()).sum() > (in_numpy(X.numpy()).argmax(1) != Y.numpy()).sum()


def test_labels_alone_do_for_attacks_on_predictions() -> None:
    model = exact(4)
    labels = model.predict(X)
    for answer in (model.predict, lambda images: model.predict(images).tolist()):
        changed = robbench.attack("noise-search", draws=200)(answer, X, labels, eps=0.5, num_classes=4)
        assert (model.predict(changed) != labels).any()


def test_a_network_that_cannot_be_switched_is_attacked_as_it_is() -> None:
    class Exported(Net):
        def train(self, mode: bool = True) -> NoReturn:
            raise NotImplementedError("as what torch.export makes does")

    model, exported = net(), Exported()
    exported.__dict__.update(model.__dict__)
    expected = robbench.attack("fgsm")(model, X, Y, eps=EPS)
    assert torch.equal(robbench.attack("fgsm")(exported, X, Y, eps=EPS), expected)


def test_targets_are_reached() -> None:
    model = exact(4)
    images = 0.3 + 0.4 * X
    targets = (model.predict(images) + 1) % 4
    made = robbench.attack("pgd", steps=20)(model, images, targets, eps=0.3, targeted=True)
    assert (model.predict(made) == targets).all()


def test_attacks_that_look_for_the_smallest_change_take_no_eps() -> None:
    model = exact(3)
    images = 0.3 + 0.4 * X
    labels = model.predict(images)
    changed = robbench.attack("ddn", steps=30)(model, images, labels)
    assert (model.predict(changed) != labels).all()
    with pytest.raises(RequestError, match=r"eps: ddn\[steps=30\] takes no eps"):
        robbench.attack("ddn", steps=30)(model, images, labels, eps=0.1)


def labels_alone(images: Tensor) -> Tensor:
    return images.flatten(1).sum(1).long()


@pytest.mark.parametrize(
    ("name", "given", "hint"),
    [
        ("pgd", {}, "eps: pgd needs an eps, as in eps=8/255"),
        ("pgd", {"eps": "much"}, 'eps: "much" is no size'),
        ("pgd", {"eps": -1}, 'eps: "-1" is no size: eps must be finite'),
        ("pgd", {"eps": 8}, r"eps: .* pixels lie in \[0, 1\]; did you mean 8/255\?"),
        ("pgd", {"eps": EPS, "norm": "linv"}, 'norm: pgd works in linf, .*"linv"; did you mean "linf"'),
        ("rotation", {"eps": EPS}, "eps: rotation takes no eps"),
        ("transfer", {"eps": EPS}, "works through other models of a grid"),
        ("pgd", {"eps": EPS, "images": X * 255}, r"images: values from .* not in \[0, 1\]; normalization"),
        ("pgd", {"eps": EPS, "images": X[0]}, r"images: shape .*, not \(N, C, H, W\)"),
        ("pgd", {"eps": EPS, "images": X.half()}, "images: torch.float16; give float32"),
        ("pgd", {"eps": EPS, "images": X * float("nan")}, "images: values from nan"),
        ("pgd", {"eps": EPS, "labels": Y[:3]}, "labels: .* for 12 images"),
        ("pgd", {"eps": EPS, "labels": Y.float()}, "labels: torch.float32 .* give an integer for each"),
        ("pgd", {"eps": EPS, "labels": Y + 1}, "labels: classes 1 to 4, but the model has 4"),
        ("pgd", {"eps": EPS, "model": labels_alone}, "model: it answers labels alone, so say .*: num_classes=10"),
        ("pgd", {"eps": EPS, "model": labels_alone, "num_classes": 4}, "model: pgd follows gradients"),
        ("square", {"eps": EPS, "model": labels_alone, "num_classes": 4}, "model: square asks for scores, .* labels"),
        ("pgd", {"eps": EPS, "model": lambda images: "cat"}, "model: it fails on one image of .*: it returns str"),
        ("pgd", {"eps": EPS, "model": lambda images: net()(images).detach()}, "model: pgd follows gradients"),
        ("pgd", {"eps": EPS, "model": 3}, "model: int cannot be asked"),
    ],
)
def test_wrong_requests_are_refused_in_one_line(name: str, given: dict[str, Any], hint: str) -> None:
    words: dict[str, Any] = {"model": net(), "images": X, "labels": Y} | given
    with pytest.raises(RequestError, match=hint) as error:
        robbench.attack(name)(**words)
    assert "\n" not in str(error.value)


def test_unknown_attacks_and_hyperparameters_are_refused() -> None:
    with pytest.raises(RequestError, match='there is no attack "pdg"; did you mean "pgd"'):
        robbench.attack("pdg")
    with pytest.raises(RequestError, match='did you mean "steps"'):
        robbench.attack("pgd", step=3)
    assert repr(robbench.attack("pgd[steps=3]")) == repr(robbench.attack("pgd", steps=3))
