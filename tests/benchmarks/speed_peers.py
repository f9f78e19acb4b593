"""The same attacks in other libraries, each as a function of a network, images, labels, a norm and a radius."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from robbench.core.threat_model import Norm

Peer: TypeAlias = Callable[[nn.Module, Tensor, Tensor, Norm, float], Tensor]

PGD_STEPS, APGD_STEPS, QUERIES = 20, 100, 300
REL_STEP = 2.5 / PGD_STEPS
CW_ROUNDS, CW_STEPS, CW_RATE, CW_FIRST = 3, 50, 0.01, 0.1

ORDERS = {"linf": math.inf, "l2": 2}
NAMES = {"linf": "Linf", "l2": "L2"}
LIBRARIES: Mapping[str, str] = {
    "foolbox": "foolbox",
    "torchattacks": "torchattacks",
    "ART": "art.attacks.evasion",
    "adv-lib": "adv_lib.attacks",
    "pyautoattack": "pyautoattack",
}


def peers() -> tuple[Mapping[str, Mapping[str, Peer]], Mapping[str, str]]:
    """Attacks by name of the attack, then of the library; and why libraries are missing."""
    found: dict[str, dict[str, Peer]] = {}
    missing: dict[str, str] = {}
    for library, module in LIBRARIES.items():
        try:
            importlib.import_module(module)
        except ImportError as error:
            missing[library] = str(error)
            continue
        for attack, peer in _OF[library]():
            found.setdefault(attack, {})[library] = peer
    return found, missing


def _foolbox() -> Iterator[tuple[str, Peer]]:
    import foolbox

    attacks = foolbox.attacks

    def run(make: Callable[[Norm], Any], unbounded: bool = False) -> Peer:
        def attack(model: nn.Module, images: Tensor, labels: Tensor, norm: Norm, eps: float) -> Tensor:
            wrapped = foolbox.PyTorchModel(model, bounds=(0, 1), device=images.device)
            found: Tensor = make(norm)(wrapped, images, labels, epsilons=None if unbounded else eps)[1]
            return found

        return attack

    descents = {"linf": attacks.LinfProjectedGradientDescentAttack, "l2": attacks.L2ProjectedGradientDescentAttack}
    steps = {"linf": attacks.LinfFastGradientAttack, "l2": attacks.L2FastGradientAttack}
    yield "FGSM", run(lambda norm: steps[norm]())
    yield f"PGD-{PGD_STEPS}", run(lambda norm: descents[norm](rel_stepsize=REL_STEP, steps=PGD_STEPS))
    options = {"binary_search_steps": CW_ROUNDS, "steps": CW_STEPS, "stepsize": CW_RATE, "initial_const": CW_FIRST}
    yield "C&W", run(lambda norm: attacks.L2CarliniWagnerAttack(**options), unbounded=True)


def _torchattacks() -> Iterator[tuple[str, Peer]]:
    import torchattacks

    def run(make: Callable[[nn.Module, Norm, float], Any]) -> Peer:
        def attack(model: nn.Module, images: Tensor, labels: Tensor, norm: Norm, eps: float) -> Tensor:
            found: Tensor = make(model, norm, eps)(images, labels)
            return found

        return attack

    def pgd(model: nn.Module, norm: Norm, eps: float) -> Any:
        cls = {"linf": torchattacks.PGD, "l2": torchattacks.PGDL2}[norm]
        return cls(model, eps=eps, alpha=REL_STEP * eps, steps=PGD_STEPS)

    yield "FGSM", run(lambda model, norm, eps: torchattacks.FGSM(model, eps=eps) if norm == "linf" else None)
    yield f"PGD-{PGD_STEPS}", run(pgd)
    yield "APGD", run(lambda model, norm, eps: torchattacks.APGD(model, NAMES[norm], eps, steps=APGD_STEPS))
    yield (
        "Square",
        run(
            lambda model, norm, eps: torchattacks.Square(
                model, NAMES[norm], eps, n_queries=QUERIES, resc_schedule=False, seed=1
            )
        ),
    )
    yield (
        "C&W",
        run(lambda model, norm, eps: torchattacks.CW(model, c=1, steps=CW_ROUNDS * CW_STEPS, lr=CW_RATE)),
    )
    yield "autoattack", run(lambda model, norm, eps: torchattacks.AutoAttack(model, NAMES[norm], eps, seed=1))


def _art() -> Iterator[tuple[str, Peer]]:
    from art.attacks import evasion
    from art.estimators.classification import PyTorchClassifier

    def run(cls: Any, bounded: bool = True, **options: Any) -> Peer:
        def attack(model: nn.Module, images: Tensor, labels: Tensor, norm: Norm, eps: float) -> Tensor:
            classifier = PyTorchClassifier(
                model, nn.CrossEntropyLoss(), tuple(images.shape[1:]), 10, clip_values=(0, 1), device_type="cpu"
            )
            settings = dict(options, batch_size=len(images))
            if bounded:
                settings |= {"norm": ORDERS[norm], "eps": eps}
            if "eps_step" in options:
                settings["eps_step"] = options["eps_step"] * eps
            made = cls(classifier, **settings)
            return torch.from_numpy(made.generate(images.numpy(), labels.numpy()))

        return attack

    yield "FGSM", run(evasion.FastGradientMethod)
    yield (
        f"PGD-{PGD_STEPS}",
        run(
            evasion.ProjectedGradientDescentPyTorch,
            eps_step=REL_STEP,
            max_iter=PGD_STEPS,
            num_random_init=1,
            verbose=False,
        ),
    )
    yield (
        "APGD",
        run(
            evasion.AutoProjectedGradientDescent,
            eps_step=2.0,
            max_iter=APGD_STEPS,
            nb_random_init=1,
            loss_type="cross_entropy",
            verbose=False,
        ),
    )
    yield "Square", run(evasion.SquareAttack, max_iter=QUERIES, p_init=0.8, verbose=False)
    yield (
        "C&W",
        run(
            evasion.CarliniL2Method,
            bounded=False,
            learning_rate=CW_RATE,
            binary_search_steps=CW_ROUNDS,
            max_iter=CW_STEPS,
            initial_const=CW_FIRST,
            verbose=False,
        ),
    )


def _adv_lib() -> Iterator[tuple[str, Peer]]:
    from adv_lib import attacks

    def pgd(model: nn.Module, images: Tensor, labels: Tensor, norm: Norm, eps: float) -> Tensor:
        found: Tensor = attacks.pgd_linf(model, images, labels, eps, steps=PGD_STEPS, relative_step_size=REL_STEP)
        return found

    def apgd(model: nn.Module, images: Tensor, labels: Tensor, norm: Norm, eps: float) -> Tensor:
        found: Tensor = attacks.apgd(
            model, images, labels, eps, norm=ORDERS[norm], n_iter=APGD_STEPS, loss_function="ce"
        )
        return found

    def carlini(model: nn.Module, images: Tensor, labels: Tensor, norm: Norm, eps: float) -> Tensor:
        found: Tensor = attacks.carlini_wagner_l2(
            model,
            images,
            labels,
            learning_rate=CW_RATE,
            initial_const=CW_FIRST,
            binary_search_steps=CW_ROUNDS,
            max_iterations=CW_STEPS,
        )
        return found

    yield f"PGD-{PGD_STEPS}", pgd
    yield "APGD", apgd
    yield "C&W", carlini


def _pyautoattack() -> Iterator[tuple[str, Peer]]:
    from pyautoattack import AutoAttack
    from pyautoattack.autopgd_base import APGDAttack
    from pyautoattack.square import SquareAttack

    def apgd(model: nn.Module, images: Tensor, labels: Tensor, norm: Norm, eps: float) -> Tensor:
        found: Tensor = APGDAttack(model, APGD_STEPS, NAMES[norm], eps=eps, seed=1, device="cpu").perturb(
            images, labels
        )
        return found

    def square(model: nn.Module, images: Tensor, labels: Tensor, norm: Norm, eps: float) -> Tensor:
        found: Tensor = SquareAttack(
            model, NAMES[norm], QUERIES, eps, seed=1, resc_schedule=False, device="cpu"
        ).perturb(images, labels)
        return found

    def ensemble(model: nn.Module, images: Tensor, labels: Tensor, norm: Norm, eps: float) -> Tensor:
        attack = AutoAttack(model, eps=eps, norm=NAMES[norm], seed=1)
        attack.verbose = False
        found = attack.run_standard_evaluation(images, labels, batch_size=len(images))
        changed: Tensor = found[0] if isinstance(found, tuple) else found
        return changed

    yield "APGD", apgd
    yield "Square", square
    yield "autoattack", ensemble


_OF: Mapping[str, Callable[[], Iterator[tuple[str, Peer]]]] = {
    "foolbox": _foolbox,
    "torchattacks": _torchattacks,
    "ART": _art,
    "adv-lib": _adv_lib,
    "pyautoattack": _pyautoattack,
}
# Those that work in one norm only.
ONLY: Mapping[tuple[str, str], Norm] = {
    ("torchattacks", "FGSM"): "linf",
    ("adv-lib", f"PGD-{PGD_STEPS}"): "linf",
}
