"""The toolbox's attacks through the adapter, and ours against the toolbox's."""

from __future__ import annotations

import random
import warnings

import numpy as np
import pytest
import torch
from closed_forms import Constant, Linear, assert_allowed, images_near, linear, norms, numbers, streams
from torch import Tensor, nn

from robbench.attacks.fgm import FGM
from robbench.attacks.pgd import PGD
from robbench.attacks.toolbox import ToolboxAttack, toolbox_attack, toolbox_names
from robbench.core.contracts import Classifier
from robbench.core.errors import RequestError
from robbench.core.threat_model import Norm, Threat

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from art.attacks import evasion
    from art.estimators.classification import PyTorchClassifier

HERE = 'grid.toml: attack "art:x"'
FAST: dict[str, dict[str, object]] = {
    "AutoProjectedGradientDescent": {"max_iter": 5, "nb_random_init": 1},
    "BasicIterativeMethod": {"max_iter": 5},
    "CarliniL2Method": {
        "max_iter": 5,
        "binary_search_steps": 3,
        "initial_const": 10.0,
        "learning_rate": 0.1,
        "max_halving": 3,
        "max_doubling": 3,
    },
    "DeepFool": {"max_iter": 10, "nb_grads": 3},
    "FastGradientMethod": {},
    "MomentumIterativeMethod": {"max_iter": 5},
    "ProjectedGradientDescent": {"max_iter": 5},
    "ProjectedGradientDescentNumpy": {"max_iter": 5},
    "SquareAttack": {"max_iter": 20},
}


class ConvNet(Classifier):
    """A small network with everything that training mode would disturb."""

    num_classes = 3

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.features = nn.Sequential(
                nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.AvgPool2d(2), nn.Dropout(), nn.Flatten()
            )
            self.head = nn.Linear(128, 3)
        self.requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        result: Tensor = 8 * self.head(self.features(images))
        return result

    def embed(self, images: Tensor) -> Tensor:
        result: Tensor = self.features(images)
        return result


@pytest.fixture(scope="module")
def net() -> Classifier:
    return ConvNet().eval()


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.rand(6, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def estimator(model: Classifier) -> PyTorchClassifier:
    return PyTorchClassifier(
        model, nn.CrossEntropyLoss(), (3, 8, 8), model.num_classes, clip_values=(0.0, 1.0), device_type="cpu"
    )


ORDERS = {"linf": np.inf, "l2": 2, "l1": 1}


class TestAgreement:
    @pytest.mark.parametrize("targeted", [False, True])
    @pytest.mark.parametrize(("norm", "eps"), [("linf", 8 / 255), ("linf", 0.3), ("l2", 0.5)])
    def test_fgm(self, net: Classifier, images: Tensor, norm: Norm, eps: float, targeted: bool) -> None:
        labels = torch.arange(6) % 3
        theirs = evasion.FastGradientMethod(estimator(net), norm=ORDERS[norm], eps=eps, targeted=targeted)
        expected = theirs.generate(images.numpy(), y=labels.numpy())
        found = FGM().perturb(net, images, labels, Threat(norm, eps, targeted), streams(6))
        torch.testing.assert_close(found, torch.as_tensor(expected), rtol=0, atol=1e-6)

    @pytest.mark.parametrize("targeted", [False, True])
    @pytest.mark.parametrize(("norm", "eps"), [("linf", 8 / 255), ("l2", 0.5)])
    def test_pgd(self, net: Classifier, images: Tensor, norm: Norm, eps: float, targeted: bool) -> None:
        labels = torch.arange(6) % 3
        theirs = evasion.ProjectedGradientDescentPyTorch(
            estimator(net), norm=ORDERS[norm], eps=eps, eps_step=eps / 4, max_iter=10, targeted=targeted, verbose=False
        )
        expected = theirs.generate(images.numpy(), y=labels.numpy())
        ours = PGD(steps=10, rel_step=0.25, random_start=False, early_stop=False)
        found = ours.perturb(net, images, labels, Threat(norm, eps, targeted), streams(6))
        torch.testing.assert_close(found, torch.as_tensor(expected), rtol=0, atol=1e-5)


class TestAdapter:
    @pytest.mark.parametrize("name", FAST)
    def test_what_it_returns_is_allowed_and_the_model_is_left_alone(
        self, net: Classifier, images: Tensor, name: str
    ) -> None:
        attack = toolbox_attack(name, FAST[name], HERE)
        images, labels = images[:3], net.predict(images[:3])
        before = images.clone()
        state = {key: value.clone() for key, value in net.state_dict().items()}
        for norm in attack.norms:
            for targeted in (False, True) if attack.targetable else (False,):
                threat = Threat(norm, 0.5 if attack.bounded else None, targeted)
                assert attack.refusal(threat, 3) is None
                given = (labels + 1) % 3 if targeted else labels
                attacked = attack.perturb(net, images, given, threat, streams(3))
                assert_allowed(images, attacked, threat)
        assert torch.equal(images, before)
        assert all(torch.equal(value, state[key]) for key, value in net.state_dict().items())
        assert not any(module.training for module in net.modules())
        assert not any(parameter.requires_grad for parameter in net.parameters())

    @pytest.mark.parametrize(
        ("name", "norm", "eps"),
        [
            ("FastGradientMethod", "linf", 0.3),
            ("ProjectedGradientDescent", "linf", 0.3),
            ("SquareAttack", "linf", 0.5),
            ("CarliniL2Method", "l2", None),
            ("DeepFool", "l2", None),
        ],
    )
    def test_they_fool_a_network(
        self, net: Classifier, images: Tensor, name: str, norm: Norm, eps: float | None
    ) -> None:
        attack = toolbox_attack(name, FAST[name], HERE)
        labels = net.predict(images)
        attacked = attack.perturb(net, images, labels, Threat(norm, eps), streams(6))
        assert float((net.predict(attacked) != labels).double().mean()) > 0.5

    def test_deepfool_finds_the_distance_of_a_linear_model(self) -> None:
        model, images = linear(3, 2), images_near(0.5, 0.05, 8)
        model.weight.data *= 0.2
        model.bias.data *= 0.2
        labels = model.predict(images)
        scores = model(images)
        distance = (scores[:, 0] - scores[:, 1]).abs() / torch.linalg.vector_norm(model.weight[0] - model.weight[1])
        attack = toolbox_attack("DeepFool", {"epsilon": 0.001}, HERE)
        attacked = attack.perturb(model, images, labels, Threat("l2"), streams(8))
        assert attacked.dtype == torch.float64
        assert bool((model.predict(attacked) != labels).all())
        torch.testing.assert_close(norms(attacked - images, "l2"), distance, rtol=0.01, atol=1e-4)

    @pytest.mark.parametrize("name", ["FastGradientMethod", "ProjectedGradientDescent"])
    def test_it_is_the_toolboxs_attack(self, net: Classifier, images: Tensor, name: str) -> None:
        labels = torch.arange(6) % 3
        options = {} if name == "FastGradientMethod" else {"max_iter": 4}
        attack = toolbox_attack(name, options, HERE)
        steps = {} if name == "FastGradientMethod" else {"max_iter": 4, "eps_step": 0.09 / 3, "verbose": False}
        expected = getattr(evasion, name)(estimator(net), eps=0.09, **steps).generate(images.numpy(), y=labels.numpy())
        found = attack.perturb(net, images, labels, Threat("linf", 0.09), streams(6))
        torch.testing.assert_close(found, torch.as_tensor(expected), rtol=0, atol=1e-6)

    def test_global_state_is_put_back_and_the_streams_decide(self, net: Classifier, images: Tensor) -> None:
        attack = toolbox_attack("SquareAttack", {"max_iter": 3}, HERE)
        labels, threat = net.predict(images), Threat("linf", 0.01)
        state = (np.random.get_state()[1].copy(), random.getstate(), torch.get_rng_state())  # type: ignore[index]
        one = attack.perturb(net, images, labels, threat, streams(6))
        assert np.array_equal(np.random.get_state()[1], state[0])  # type: ignore[index]
        assert random.getstate() == state[1]
        assert torch.equal(torch.get_rng_state(), state[2])
        np.random.random(7)
        assert torch.equal(attack.perturb(net, images, labels, threat, streams(6)), one)
        assert not torch.equal(attack.perturb(net, images, labels, threat, streams(6, 1)), one)

    def test_state_is_put_back_after_an_error(self, images: Tensor) -> None:
        class Broken(Linear):
            def forward(self, images: Tensor) -> Tensor:
                raise ArithmeticError("broken")

        model = Broken(numbers(0, 2, 192), torch.zeros(2).double())
        state = np.random.get_state()[1].copy()  # type: ignore[index]
        with pytest.raises(ArithmeticError, match="broken"):
            toolbox_attack("SquareAttack", {}, HERE).perturb(
                model, images, torch.zeros(6).long(), Threat("linf", 0.1), streams(6)
            )
        assert np.array_equal(np.random.get_state()[1], state)  # type: ignore[index]

    def test_eps_zero_changes_nothing(self, net: Classifier, images: Tensor) -> None:
        attack = toolbox_attack("FastGradientMethod", {}, HERE)
        assert torch.equal(attack.perturb(net, images, torch.zeros(6).long(), Threat("linf", 0.0), streams(6)), images)

    def test_an_empty_batch_comes_back(self, net: Classifier, images: Tensor) -> None:
        for name in FAST:
            attack = toolbox_attack(name, FAST[name], HERE)
            threat = Threat(attack.norms[0], 0.1 if attack.bounded else None)
            attacked = attack.perturb(net, images[:0], torch.zeros(0).long(), threat, streams(0))
            assert attacked.shape == (0, 3, 8, 8)

    def test_weights_in_training_keep_their_gradients(self, images: Tensor) -> None:
        net = ConvNet().eval()
        net.head.requires_grad_(True)
        net.head.bias.grad = torch.ones(3)
        attack = toolbox_attack("FastGradientMethod", {}, HERE)
        attack.perturb(net, images, net.predict(images), Threat("linf", 0.1), streams(6))
        assert [weight.requires_grad for weight in net.parameters()] == 4 * [False] + 2 * [True]
        assert net.head.weight.grad is None
        assert torch.equal(net.head.bias.grad, torch.ones(3))

    @pytest.mark.parametrize("name", ["FastGradientMethod", "ProjectedGradientDescent", "MomentumIterativeMethod"])
    def test_scores_without_a_gradient_are_no_error(self, images: Tensor, name: str) -> None:
        model = Constant(torch.zeros(3, 192), torch.eye(3)[0]).eval()
        threat = Threat("linf", 0.1)
        attacked = toolbox_attack(name, {}, HERE).perturb(model, images, torch.zeros(6).long(), threat, streams(6))
        assert_allowed(images, attacked, threat)

    def test_attacks_that_nothing_can_seed_are_left_out(self) -> None:
        assert not {"art:HopSkipJump", "art:BoundaryAttack"} & set(toolbox_names())

    def test_gradients_switched_off_outside_do_not_matter(self, net: Classifier, images: Tensor) -> None:
        attack, labels, threat = toolbox_attack("FastGradientMethod", {}, HERE), net.predict(images), Threat("l2", 0.3)
        with torch.no_grad():
            off = attack.perturb(net, images, labels, threat, streams(6))
            assert not torch.is_grad_enabled()
        assert torch.equal(off, attack.perturb(net, images, labels, threat, streams(6)))


class TestRequests:
    @pytest.mark.parametrize("name", toolbox_names())
    def test_every_listed_attack_is_there_and_fits_a_classifier(self, name: str) -> None:
        attack = toolbox_attack(name.removeprefix("art:"), {}, HERE)
        threat = Threat(attack.norms[0], 0.1 if attack.bounded else None)
        assert attack.refusal(threat, 10) is None
        assert attack.passes(10)[0] >= 1

    def test_options_are_read_from_text(self) -> None:
        attack = toolbox_attack("CarliniL2Method", {"max_iter": "7", "confidence": "1/2"}, HERE)
        assert attack == ToolboxAttack("CarliniL2Method", (("confidence", 0.5), ("max_iter", 7)))

    @pytest.mark.parametrize(
        ("name", "options", "message"),
        [
            ("DeepFol", {}, 'did you mean "DeepFool"'),
            ("AdversarialPatch", {}, "no attack"),
            ("DeepFool", {"max_itr": 3}, 'did you mean "max_iter"'),
            ("DeepFool", {"max_iter": -3}, "positive"),
            ("FastGradientMethod", {"eps": 0.1}, "threat model"),
        ],
    )
    def test_what_does_not_fit_is_one_line_that_says_where(
        self, name: str, options: dict[str, object], message: str
    ) -> None:
        with pytest.raises(RequestError, match=message) as error:
            toolbox_attack(name, options, HERE)
        assert str(error.value).startswith(HERE)
        assert "\n" not in str(error.value)

    def test_facts_follow_the_class(self) -> None:
        fgm, square, deepfool = (
            toolbox_attack(name, {}, HERE) for name in ("FastGradientMethod", "SquareAttack", "DeepFool")
        )
        assert (fgm.white_box, fgm.bounded, fgm.targetable, fgm.global_state) == (True, True, True, True)
        assert (square.white_box, square.bounded, square.targetable) == (False, True, False)
        assert (deepfool.white_box, deepfool.bounded, deepfool.targetable) == (True, False, False)
        assert fgm.norms == ("linf", "l2", "l1")

    @pytest.mark.parametrize(
        ("name", "threat", "reason"),
        [
            ("DeepFool", Threat("linf"), "works in l2"),
            ("DeepFool", Threat("l2", targeted=True), "targeted"),
            ("DeepFool", Threat("l2", 0.5), "no eps"),
            ("FastGradientMethod", Threat("linf"), "needs an eps"),
        ],
    )
    def test_threats_that_do_not_fit_are_refused_with_the_reason(self, name: str, threat: Threat, reason: str) -> None:
        assert reason in str(toolbox_attack(name, {}, HERE).refusal(threat, 3))
