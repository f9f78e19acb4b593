from __future__ import annotations

import functools
from collections import OrderedDict, namedtuple
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from external_networks import SHAPE, images, network
from networks import Network
from pydantic import ValidationError
from sklearn.ensemble import RandomForestClassifier
from torch import Tensor, nn

from robbench.core.errors import RequestError
from robbench.models._external.classifier import ExternalClassifier
from robbench.models._external.loading import External, as_external
from robbench.models._external.normalization import PRESETS, plausible
from robbench.models._external.questioning import other_normalizations, questioned
from robbench.models._external.request import ExternalRequest

WEIGHTS = torch.randn(768, 5, generator=torch.Generator().manual_seed(3))


def scores(batch: Tensor) -> Tensor:
    return batch.flatten(1) @ WEIGHTS


def external(model: object, **declared: Any) -> External:
    return as_external(model, SHAPE, 5, **declared)


# --- what it answers


class Output(OrderedDict):  # type: ignore[type-arg]
    """As transformers return it."""

    @property
    def logits(self) -> Tensor:
        return self["logits"]  # type: ignore[no-any-return]


Pair = namedtuple("Pair", ["logits", "aux"])


@pytest.mark.parametrize(
    "returned",
    [
        scores,
        lambda x: (scores(x), x),
        lambda x: [scores(x)],
        lambda x: {"logits": scores(x), "features": x},
        lambda x: {"out": scores(x)},
        lambda x: Output(logits=scores(x), hidden=x),
        lambda x: Pair(scores(x), x),
        lambda x: SimpleNamespace(logits=scores(x)),
        lambda x: scores(x)[:, :, None, None],
        functools.partial(lambda scale, x: scale * scores(x), 1.0),
        lambda x: scores(x).double(),
    ],
)
def test_scores_are_found_in_what_is_returned(returned: Callable[[Tensor], Any]) -> None:
    found = external(returned)
    assert found.model.answers == "gradients"
    x = images().requires_grad_()
    torch.testing.assert_close(found.model(x), scores(x))
    torch.testing.assert_close(torch.autograd.grad(found.model(x)[:, 1].sum(), x)[0][0].flatten(), WEIGHTS[:, 1])


@pytest.mark.parametrize(
    ("answer", "gives"),
    [
        (lambda x: scores(x).detach(), "scores"),
        (lambda x: torch.no_grad()(scores)(x), "scores"),
        (lambda x: scores(torch.from_numpy(x)).numpy(), "scores"),
        (lambda x: scores(torch.tensor(np.asarray(x))).tolist(), "scores"),
        (lambda x: scores(x).round().long(), "scores"),
        (lambda x: scores(torch.from_numpy(x.numpy())), "scores"),
        (lambda x: scores(x).argmax(1), "labels"),
        (lambda x: scores(torch.from_numpy(x)).argmax(1).numpy(), "labels"),
        (lambda x: scores(x).argmax(1).int().tolist(), "labels"),
        (lambda x: (scores(x).argmax(1), "more"), "labels"),
        (lambda x: [scores(torch.from_numpy(x)).numpy(), x], "scores"),
        (lambda x: list(scores(torch.from_numpy(x)).numpy()), "scores"),
    ],
)
def test_what_a_callable_answers_is_found_out(answer: Callable[[Any], Any], gives: str) -> None:
    found = external(answer)
    assert found.model.answers == gives == found.identity["answers"] == found.facts["answers"]
    assert any(note.startswith(f"{gives} only") for note in found.notes)
    x = images().requires_grad_()
    out = found.model(x)
    assert out.shape == (5, 5)
    assert out.dtype == torch.float32
    assert not out.requires_grad
    assert torch.equal(found.model.predict(x), scores(x).argmax(1)) or "round" in str(answer)
    if gives == "labels":
        assert torch.equal(out, F.one_hot(scores(x).argmax(1), 5).float())


@pytest.mark.parametrize("most", ["gradients", "scores", "labels"])
def test_scores_that_are_no_numbers_stay_so_whatever_is_asked(most: str) -> None:
    found = external(lambda x: scores(x).masked_fill(x[:, :1, 0, 0] > 0.5, torch.nan), answers=most).model(images(8))
    assert torch.equal(found.isfinite().all(dim=1), images(8)[:, 0, 0, 0] <= 0.5)


@pytest.mark.parametrize("most", ["gradients", "scores", "labels"])
def test_attacks_may_be_given_less_and_then_get_no_more(most: str) -> None:
    found = external(network(), answers=most)
    assert found.model.answers == most
    x = images().requires_grad_()
    out = found.model(x)
    assert out.requires_grad == (most == "gradients")
    assert torch.equal(out.argmax(1), network()(x).argmax(1))
    if most == "labels":
        assert set(out.unique().tolist()) <= {0.0, 1.0}


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (lambda x: scores(x)[:, :3], "knows 3 classes, the data set has 5"),
        (lambda x: scores(x)[:, 0], "torch.stack"),
        (lambda x: scores(x)[:, None], r"returns shape \(2, 1, 5\)"),
        (lambda x: {"a": scores(x), "b": x}, 'mapping of a, b without "logits"'),
        (lambda x: {}, "mapping of nothing"),
        (lambda x: "cat", "returns str"),
        (lambda x: None, "returns NoneType"),
        (lambda x: scores(x).sum(), r"returns shape \(\) for"),
        (lambda x: scores(torch.cat([x, x])), r"returns shape \(4, 5\) for 2 images"),
        (lambda x, y: scores(x), "missing 1 required positional argument"),
        (nn.Linear(7, 5), r"pass --input-size H,W \(input_size\)"),
        (nn.Conv2d(1, 5, 3), "the images have 3 channels; convert them"),
        (nn.Linear(48, 5, device="meta"), "device meta, which holds no values"),
        (np.zeros(3), "neither a module nor anything else that can be called"),
    ],
)
def test_what_does_not_fit_is_said_in_one_line(model: object, said: str) -> None:
    with pytest.raises(RequestError, match=said) as caught:
        external(model)
    assert "\n" not in str(caught.value)


def test_one_number_for_two_classes_is_not_guessed_at() -> None:
    for shape in ((-1,), (-1, 1)):
        with pytest.raises(RequestError, match=r"torch\.stack\(\[-z / 2, z / 2\], 1\)"):
            as_external(lambda x, shape=shape: x.flatten(1).sum(1).sigmoid().reshape(shape), SHAPE, 2)


def test_a_network_that_takes_one_image_at_a_time_is_asked_so() -> None:
    seen = []

    def one(batch: Tensor) -> Tensor:
        seen.append(len(batch))
        return scores(batch.reshape(1, -1))

    found = external(one)
    assert found.notes == ("takes 1 images a call",)
    seen.clear()
    torch.testing.assert_close(found.model(images(4)), scores(images(4)))
    assert seen == [1, 1, 1, 1]


def test_double_precision_is_kept_inside() -> None:
    net = network().double()
    found = external(net)
    out = found.model(images())
    assert out.dtype == torch.float32
    assert torch.equal(out, net(images().double()).float())


def test_embedding_says_that_there_is_none() -> None:
    with pytest.raises(NotImplementedError, match="features of an external model"):
        external(network()).model.embed(images())


# --- live objects


def test_a_module_is_copied_and_left_as_it_is() -> None:
    net = network().train()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    found = external(nn.DataParallel(net))
    assert net.training
    assert all(weights.requires_grad for weights in net.parameters())
    assert all(torch.equal(before[key], value) for key, value in net.state_dict().items())
    assert torch.equal(found.model(images()), net.eval()(images()))
    with torch.no_grad():
        next(net.parameters()).zero_()
    assert not torch.equal(found.model(images()), net(images()))


@pytest.mark.filterwarnings("ignore")
def test_programs_and_scripts_are_taken_as_live_modules() -> None:
    program = torch.export.export(network(), (images(2),), dynamic_shapes=({0: torch.export.Dim("batch")},))
    made = [program, program.module(), torch.jit.script(network()), torch.fx.symbolic_trace(network())]
    for model in made:
        found = external(model)
        assert found.model.answers == "gradients"
        torch.testing.assert_close(found.model(images()), network()(images()))
    assert len({external(model).identity["structure"] for model in made[1:]}) == 3


def test_a_classifier_is_taken_as_it_is() -> None:
    model = Network()
    found = as_external(model, (3, 5, 5), 3, label="mine")
    assert type(found.model) is Network
    assert found.label == "mine"
    assert found.identity["answers"] == "gradients"
    assert other_normalizations(found) == {}
    for declared, said in ({"mean": (0.5,)}, "leave out mean"), ({"answers": "scores"}, "answers gradients"):
        with pytest.raises(RequestError, match=said):
            as_external(model, (3, 5, 5), 3, **declared)
    with pytest.raises(RequestError, match="knows 3 classes"):
        as_external(model, (3, 5, 5), 4)


def test_live_objects_are_told_apart_by_what_they_hold_and_do() -> None:
    def around(weights: Tensor) -> Callable[[Tensor], Tensor]:
        return lambda batch: batch.flatten(1) @ weights

    class Holder:
        def __init__(self, array: np.ndarray[Any, Any], power: int = 1) -> None:
            self.inner = {"list": [array]}
            self.power = power

        def __call__(self, batch: Tensor) -> Tensor:
            return batch.flatten(1) @ torch.as_tensor(self.inner["list"][0]) ** self.power

    class Plain(nn.Module):
        def __init__(self, temperature: float, constant: Tensor) -> None:
            super().__init__()
            self.temperature, self.constants = temperature, [constant]

        def forward(self, batch: Tensor) -> Tensor:
            return batch.flatten(1) @ self.constants[0] / self.temperature

    def forest(seed: int) -> Callable[[Any], Any]:
        rng = np.random.default_rng(seed)
        trees = RandomForestClassifier(3, random_state=0).fit(rng.random((40, 768)), np.arange(40) % 5)
        return lambda batch: trees.predict_proba(np.asarray(batch).reshape(len(batch), -1))

    made: list[Callable[[], Any]] = [
        lambda: around(WEIGHTS),
        lambda: around(2 * WEIGHTS),
        lambda: Holder(WEIGHTS.numpy()),
        lambda: Holder(2 * WEIGHTS.numpy()),
        lambda: Holder(WEIGHTS.numpy(), power=2),
        lambda: forest(0),
        lambda: forest(1),
        lambda: Plain(1.0, WEIGHTS),
        lambda: Plain(2.0, WEIGHTS),
        lambda: Plain(1.0, 2 * WEIGHTS),
        network,
        lambda: network(3),
    ]
    identities = [external(make()).identity for make in made]
    assert identities == [external(make()).identity for make in made]
    assert len({repr(sorted(one.items())) for one in identities}) == len(made)
    assert all(one["weights_sha256"] and one["code_sha256"] for one in identities[:-2])


# --- normalization and size


def test_normalization_and_resizing_are_inside_and_differentiable() -> None:
    net = network()
    found = as_external(net, (3, 11, 20), 5, mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7), input_size=(16, 16))
    x = torch.rand(4, 3, 11, 20, generator=torch.Generator().manual_seed(2)).requires_grad_()
    mean, std = torch.tensor([0.1, 0.2, 0.3]).reshape(3, 1, 1), torch.tensor([0.5, 0.6, 0.7]).reshape(3, 1, 1)
    resized = F.interpolate(x, (16, 16), mode="bilinear", antialias=True)
    expected = net((resized - mean) / std)
    torch.testing.assert_close(found.model(x), expected)
    ours, theirs = (torch.autograd.grad(out.logsumexp(1).sum(), x)[0] for out in (found.model(x), expected))
    torch.testing.assert_close(ours, theirs)
    assert ours.flatten(1).abs().sum(1).min() > 0
    assert found.facts["input_size"] == [16, 16] == found.identity["input_size"]


def test_presets_are_the_published_numbers_and_nothing_is_guessed() -> None:
    for name, preset in PRESETS.items():
        if preset.fits(3):
            assert external(network(), normalization=name).identity["mean"] == list(preset.wide(3).mean)
    assert external(network()).identity["mean"] == [0.0, 0.0, 0.0]
    for declared, said in (
        ({"normalization": "imagnet"}, 'did you mean "imagenet"'),
        ({"normalization": "model"}, "has no metadata"),
        ({"normalization": "half", "mean": (0.5,)}, "leave out one"),
        ({"mean": (0.5, 0.5)}, "has 2 channels, the images have 3"),
        ({"std": (0.0,)}, "above 0"),
        ({"mean": (float("nan"),)}, "finite"),
        ({"input_size": (1, 2, 3)}, "height and a width"),
        ({"input_size": (0, 4)}, "above 0"),
        ({"answers": "everything"}, "answers"),
    ):
        with pytest.raises(RequestError, match=said):
            external(network(), **declared)
    with pytest.raises(RequestError, match="has 3 channels, the images have 1"):
        as_external(lambda x: x.flatten(1)[:, :5], (1, 8, 8), 5, normalization="imagenet")


def test_a_request_may_come_from_toml() -> None:
    request = ExternalRequest.model_validate({"source": "a.py:b", "mean": [0.5], "std": [1], "input_size": [32]})
    assert request.mean == (0.5,)
    assert request.input_size == (32, 32)
    with pytest.raises(ValidationError):
        ExternalRequest.model_validate({"source": "a.py:b", "input_size": ["32"]})


def test_plausible_normalizations_follow_the_data_set() -> None:
    assert set(plausible("", 3)) == {"none", "half", "bytes", "imagenet"}
    assert set(plausible("cifar10", 3)) - set(plausible("", 3)) == {"cifar10", "cifar10-mean-std"}
    assert set(plausible("CIFAR-100", 3)) - set(plausible("", 3)) == {"cifar100"}
    assert set(plausible("mnist", 1)) == {"none", "half", "bytes", "mnist"}


def test_a_forgotten_normalization_is_questioned_in_one_line() -> None:
    """A network that tells dark from light images only around the mean that it was trained with."""
    labels = torch.arange(200) % 2
    x = 0.4 + 0.2 * labels.reshape(-1, 1, 1, 1) + torch.zeros(200, 3, 4, 4)

    def classify(batch: Tensor) -> Tensor:
        value = batch.flatten(1).mean(1)
        return torch.stack([-value, value, (value.abs() - 0.25) * 10], 1)

    wrong = as_external(classify, (3, 4, 4), 3)
    line = questioned(wrong, x, labels)
    assert line == (
        '0.0 % clean accuracy on 200 images, 100.0 % with the normalization "half"; '
        'pass normalization = "half" if it was trained so'
    )
    assert questioned(as_external(classify, (3, 4, 4), 3, normalization="half"), x, labels) is None
    assert questioned(as_external(classify, (3, 4, 4), 3, mean=(0.5,), std=(0.5,)), x, labels) is None
    assert "half" in other_normalizations(wrong)
    assert "none" not in other_normalizations(wrong)


def test_a_network_that_knows_nothing_is_not_questioned() -> None:
    labels = torch.randint(5, (300,), generator=torch.Generator().manual_seed(0))
    for seed in range(5):
        weights = torch.randn(768, 5, generator=torch.Generator().manual_seed(seed))
        found = external(lambda x, weights=weights: x.flatten(1) @ weights)
        assert questioned(found, images(300), labels, "cifar10") is None


@pytest.mark.parametrize("batch", [0, 1, 4])
def test_no_image_has_no_answer(batch: int) -> None:
    def one_at_least(batch: Tensor) -> Tensor:
        assert len(batch)
        return batch.flatten(1)[:, :5]

    model = as_external(one_at_least, SHAPE, 5).model
    assert isinstance(model, ExternalClassifier)
    model.batch = batch
    assert model(torch.zeros(0, *SHAPE)).shape == (0, 5)
    assert model.predict(torch.zeros(0, *SHAPE)).shape == (0,)
