"""Passes are counted in the network, whoever calls it and however."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pytest
import torch
from networks import SHAPE, Network
from subjects import condition, exact, put_to, subject
from torch import Tensor, nn
from torch.func import functional_call, grad, jacrev, vmap

from robbench.attacks.toolbox import toolbox_attack
from robbench.conformance.scenarios import Features
from robbench.core.attack import Attack
from robbench.core.contracts import Classifier
from robbench.core.errors import Breach
from robbench.core.sample_rng import Streams
from robbench.core.threat_model import Threat
from robbench.defenses.jpeg import Jpeg
from robbench.defenses.smoothing import Smoothed
from robbench.evaluation.evaluator import evaluate
from robbench.evaluation.query_counter import Oracle, put_under_test
from robbench.models._neighbors import NeighborClassifier
from robbench.models.cross_entropy import LogitClassifier

COUNT = SHAPE[0]
IMAGES = torch.rand(SHAPE, generator=torch.Generator().manual_seed(0))


def frozen(model: Classifier) -> Classifier:
    return model.eval().requires_grad_(False)


def neighbors() -> Classifier:
    return frozen(NeighborClassifier(Features(SHAPE[1:]), 6, 3, torch.arange(12) % 3, 2, 0.1))


def passes(ask: Callable[[Oracle], object], model: Classifier | None = None) -> tuple[list[float], list[float]]:
    """Forward and backward passes of each sample that a question costs."""
    oracle = Oracle(model or frozen(Network()), COUNT)
    with oracle.watching(IMAGES):
        ask(oracle)
    return oracle.forwards.tolist(), oracle.backwards.tolist()


def alike(forwards: float, backwards: float = 0.0) -> tuple[list[float], list[float]]:
    return [forwards] * COUNT, [backwards] * COUNT


def gradient(function: Callable[[Tensor], Tensor]) -> Tensor:
    images = IMAGES.clone().requires_grad_()
    return torch.autograd.grad(function(images).sum(), images)[0]


def network(oracle: Oracle) -> Network:
    assert isinstance(oracle.model, Network)
    return oracle.model


def saved(model: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    loaded: nn.Module = torch.load(file, weights_only=False)
    return loaded


def layer_by_layer(oracle: Oracle) -> None:
    found = IMAGES
    for layer in network(oracle).body:
        found = layer(found)
    network(oracle).head(found)


def in_a_thread(oracle: Oracle) -> None:
    with ThreadPoolExecutor(1) as threads:
        threads.submit(oracle.model, IMAGES).result()


def after_an_error(oracle: Oracle) -> None:
    with pytest.raises(RuntimeError):
        oracle.model(IMAGES[:, :, :1])
    oracle.model(IMAGES)


def forgetting(oracle: Oracle) -> None:
    oracle.model(IMAGES)
    oracle.spent.zero_()
    oracle.forwards.zero_()


@pytest.mark.parametrize(
    "ask",
    [
        lambda oracle: oracle(IMAGES),
        lambda oracle: oracle.model(IMAGES),
        lambda oracle: oracle.model(images=IMAGES),
        lambda oracle: oracle.model.forward(IMAGES),
        lambda oracle: oracle.model.predict(IMAGES),
        lambda oracle: oracle.model.decide(IMAGES),
        lambda oracle: oracle.model.embed(IMAGES),
        lambda oracle: network(oracle).body(IMAGES),
        lambda oracle: copy.deepcopy(oracle.model)(IMAGES),
        lambda oracle: copy.copy(oracle.model)(IMAGES),
        lambda oracle: copy.deepcopy(oracle)(IMAGES),
        lambda oracle: pickle.loads(pickle.dumps(oracle.model))(IMAGES),
        lambda oracle: saved(oracle.model)(IMAGES),
        lambda oracle: functional_call(oracle.model, dict(oracle.model.named_parameters()), (IMAGES,)),
        lambda oracle: torch.fx.symbolic_trace(network(oracle).body)(IMAGES),
        lambda oracle: vmap(lambda image: oracle.model(image[None]))(IMAGES),
        lambda oracle: vmap(oracle.model, in_dims=1)(IMAGES[:, None]),
        lambda oracle: [oracle.model(image[None]) for image in IMAGES],
        layer_by_layer,
        in_a_thread,
        forgetting,
    ],
)
def test_a_pass_is_counted_once_whoever_makes_it(ask: Callable[[Oracle], object]) -> None:
    assert passes(ask) == alike(1)


def test_a_pass_that_breaks_off_is_one_and_the_next_is_counted() -> None:
    assert passes(after_an_error) == alike(2)


@pytest.mark.parametrize(
    "ask",
    [
        lambda oracle: gradient(oracle),
        lambda oracle: gradient(oracle.model),
        lambda oracle: gradient(lambda images: oracle.model.decide(images)[0]),
        lambda oracle: gradient(oracle.model.embed),
        lambda oracle: gradient(copy.deepcopy(oracle.model)),
        lambda oracle: grad(lambda images: oracle.model(images).sum())(IMAGES),
        lambda oracle: vmap(grad(lambda image: oracle.model(image[None]).sum()))(IMAGES),
        lambda oracle: vmap(grad(lambda image: oracle(image[None]).sum()))(IMAGES),
    ],
)
def test_a_backward_pass_is_counted_once_whoever_makes_it(ask: Callable[[Oracle], object]) -> None:
    assert passes(ask) == alike(1, 1)


def test_gradients_of_several_scores_at_once_are_several_passes() -> None:
    assert passes(lambda oracle: jacrev(lambda images: oracle.model(images).sum(dim=0))(IMAGES)) == alike(1, 3)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.parametrize(
    "record",
    [
        lambda oracle: torch.jit.trace(oracle.model, IMAGES),
        lambda oracle: torch.export.export(oracle.model, (IMAGES,)),
        lambda oracle: pickle.dumps(oracle),
    ],
)
def test_what_would_run_where_nobody_counts_is_refused(record: Callable[[Oracle], object]) -> None:
    with pytest.raises(Breach, match="passes are counted"):
        passes(record)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_compiled_models_are_counted() -> None:
    def compiled(oracle: Oracle) -> None:
        for faster in (
            torch.compile(oracle.model, backend="eager"),
            torch.compile(lambda images: oracle.model(images) + 1, backend="eager"),
        ):
            for _ in range(3):
                faster(IMAGES)

    assert passes(compiled) == alike(6)


def test_calls_that_go_round_the_view_are_spread_over_all_samples() -> None:
    def ask(oracle: Oracle) -> None:
        oracle.subset(torch.tensor([0, 2]))(IMAGES[:2])
        oracle.model(IMAGES[:1])

    assert passes(ask) == ([1.25, 0.25, 1.25, 0.25], [0.0] * COUNT)


def test_another_model_is_not_counted() -> None:
    other = frozen(Network())
    assert passes(lambda oracle: other(IMAGES)) == alike(0)
    assert passes(lambda oracle: nn.Conv2d(3, 1, 1)(IMAGES)) == alike(0)


def test_the_judges_copy_is_counted_too() -> None:
    model = frozen(Network())
    put_under_test(model)
    judge = copy.deepcopy(model)
    assert passes(lambda oracle: judge(IMAGES), model) == alike(1)


def test_counting_ends_with_the_attack_and_leaves_no_hook() -> None:
    oracle = Oracle(frozen(Network()), COUNT)
    with pytest.raises(ZeroDivisionError), oracle.watching(IMAGES):
        raise ZeroDivisionError
    oracle.model(IMAGES)
    assert not oracle.spent.any()
    assert not nn.modules.module._global_forward_hooks
    assert not nn.modules.module._global_forward_pre_hooks


@pytest.mark.parametrize("size", [COUNT, 2 * COUNT, COUNT - 1])
@pytest.mark.parametrize(
    "make",
    [
        lambda: frozen(Network()),
        lambda: frozen(LogitClassifier(Features(SHAPE[1:]), 3)),
        neighbors,
        lambda: Jpeg().wrap(neighbors()),
        lambda: Smoothed(frozen(Network()), 0.1, 5, 7).eval(),
        lambda: Smoothed(Jpeg().wrap(neighbors()), 0.1, 5, 7).eval(),
        lambda: Smoothed(Smoothed(neighbors(), 0.1, 2, 3).eval(), 0.1, 5, 7).eval(),
    ],
)
def test_what_is_seen_is_what_models_declare(make: Callable[[], Classifier], size: int) -> None:
    """Without watching, passes are those that a model declares; the built-in ones declare the truth."""
    images = torch.cat([IMAGES, IMAGES])[:size]
    seen, declared = Oracle(make(), COUNT), Oracle(make(), COUNT)

    def ask(oracle: Oracle) -> None:
        for view in (oracle, *(oracle.surrogate(name) for name in oracle.surrogates)):
            given = images.clone().requires_grad_()
            view.predict(images)
            torch.autograd.grad(view(given).sum(), given)
            torch.autograd.grad(view.decide(given)[0].sum(), given)

    with seen.watching(images):
        ask(seen)
    ask(declared)
    torch.testing.assert_close(seen.spent, declared.spent, rtol=1e-12, atol=0)
    assert seen.spent.min() > 0


class Greedy(Classifier):
    """Asks its model five times and says that it does so once."""

    def __init__(self, model: Classifier) -> None:
        super().__init__()
        self.model, self.num_classes = model, model.num_classes

    def forward(self, images: Tensor) -> Tensor:
        return torch.stack([self.model(images) for _ in range(5)]).mean(dim=0)

    def embed(self, images: Tensor) -> Tensor:
        return self.model.embed(images)


class Hidden(Greedy):
    """Keeps its model where nobody looks for it, and says what it costs."""

    def __init__(self, model: Classifier) -> None:
        super().__init__(model)
        del self.model
        self.models, self.draws = [model], 5

    def forward(self, images: Tensor) -> Tensor:
        return torch.stack([self.models[0](images) for _ in range(5)]).mean(dim=0)


@pytest.mark.parametrize("make", [Greedy, Hidden])
def test_a_defense_that_asks_several_times_pays_for_it(make: Callable[[Classifier], Classifier]) -> None:
    assert passes(gradient, make(frozen(Network())).eval()) == alike(5, 5)


@dataclass(frozen=True)
class Round(Attack):
    """A gradient step past the oracle."""

    def perturb(self, model: Classifier, images: Tensor, labels: Tensor, threat: Threat, rng: Streams) -> Tensor:
        given = images.clone().requires_grad_()
        assert isinstance(model.model, nn.Module)
        scores = model.model(given)
        (slope,) = torch.autograd.grad(nn.functional.cross_entropy(scores, labels, reduction="sum"), given)
        return (images + threat.radius * slope.sign()).clamp(0, 1)


def test_an_attack_that_goes_round_the_oracle_pays_what_the_same_attack_pays() -> None:
    here = subject(exact(4))
    plain, round_it = evaluate(here, condition("fgsm@0.1")).outcome, evaluate(here, put_to(Round())).outcome
    assert round_it.forwards.tolist() == plain.forwards.tolist()
    assert round_it.backwards.tolist() == plain.backwards.tolist()
    assert plain.forwards.sum() == plain.backwards.sum() == 50


def test_attacks_of_the_toolbox_are_counted() -> None:
    attack = toolbox_attack("ProjectedGradientDescentPyTorch", {"max_iter": 4}, "")
    rng = Streams.of(torch.arange(COUNT), 0, "test")

    def ask(oracle: Oracle) -> None:
        attack.perturb(oracle, IMAGES, torch.zeros(COUNT, dtype=torch.int64), Threat("linf", 0.1), rng)

    forwards, backwards = passes(ask)
    assert forwards == [forwards[0]] * COUNT
    assert forwards[0] >= 4
    assert backwards == alike(0, 4)[1]
