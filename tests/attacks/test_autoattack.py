"""AutoAttack and attacks in turn."""

from __future__ import annotations

from typing import Literal

import pytest
import torch
from closed_forms import SHAPE, Counting, Linear, assert_allowed, images_near, linear, streams
from subjects import Idle
from torch import Tensor

from robbench.attacks._ensemble import in_turn, passes_in_turn
from robbench.attacks.apgd import APGD
from robbench.attacks.autoattack import AutoAttack
from robbench.attacks.fab import FAB
from robbench.attacks.fgm import FGM
from robbench.attacks.noise import UniformNoise
from robbench.attacks.pgd import PGD
from robbench.attacks.square import Square
from robbench.core.attack import Attack
from robbench.core.errors import RequestError
from robbench.core.registry import Registry
from robbench.core.sample_rng import Draw
from robbench.core.threat_model import Norm, Threat
from robbench.evaluation.query_counter import Oracle
from robbench.planning.component_spec import choose

SIZES: dict[Norm, float] = {"linf": 0.02, "l2": 0.15, "l1": 0.6}


class Deaf(Linear):
    """A linear model of which gradients say nothing."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images.detach()) + 0 * images.sum()


class TestInTurn:
    def test_each_attack_sees_only_what_survived_and_is_charged_for_it(self) -> None:
        plain, images = linear(13, 4), images_near(0.5, 0.3, 40)
        labels, threat, rng = plain.predict(images), Threat("linf", 0.02), streams(40)
        model = Counting.of(plain, 40)
        attacks: dict[Draw, Attack] = {"fgm": FGM(), "pgd": PGD(steps=20, restarts=2)}
        attacked = in_turn(attacks, model, images, labels, threat, rng)
        assert_allowed(images, attacked, threat)
        first = FGM().perturb(plain, images, labels, threat, rng)
        early = plain.predict(first) != labels
        late = (plain.predict(attacked) != labels) & ~early
        robust = plain.predict(attacked) == labels
        assert min(int(early.sum()), int(robust.sum())) > 0
        assert torch.equal(attacked[early], first[early])
        assert model.forwards[early].tolist() == [2] * int(early.sum())
        assert float(model.forwards.max()) <= passes_in_turn(attacks, 4)[0] == 2 + 42 + 1
        alone = attacks["pgd"].perturb(plain, images[~early], labels[~early], threat, rng[~early].fork("pgd"))
        assert torch.equal(attacked[~early], alone)
        assert int(late.sum()) == int((plain.predict(alone) != labels[~early]).sum())

    def test_attacks_of_one_kind_draw_apart_by_their_names(self) -> None:
        model, images = linear(13, 3), images_near(0.5, 0.01, 60)
        labels, threat, rng = model.predict(images), Threat("linf", 0.02), streams(60)
        once = in_turn({"a": UniformNoise(signs=True)}, model, images, labels, threat, rng)
        often = in_turn({name: UniformNoise(signs=True) for name in "abcdefgh"}, model, images, labels, threat, rng)
        fooled = [int((model.predict(found) != labels).sum()) for found in (once, often)]
        assert fooled[0] < fooled[1]

    def test_survival_is_by_the_hard_decision(self) -> None:
        class Stubborn(Linear):
            def decide(self, images: Tensor) -> tuple[Tensor, Tensor]:
                return self(images), torch.zeros(len(images), dtype=torch.int64)

        base, images = linear(13, 3), images_near(0.5, 0.3, 8)
        labels, threat = torch.zeros(8, dtype=torch.int64), Threat("linf", 0.3)
        assert bool((base.predict(FGM().perturb(base, images, labels, threat, streams(8))) != 0).all())
        stubborn = Stubborn(base.weight, base.bias).eval()
        last = in_turn({"fgm": FGM(), "idle": Idle()}, stubborn, images, labels, threat, streams(8))
        assert torch.equal(last, images)

    def test_batch_and_order_change_nothing(self) -> None:
        model, images = linear(13, 4), images_near(0.5, 0.3, 40)
        labels, threat, rng = model.predict(images), Threat("l2", 0.15), streams(40)
        attacks: dict[Draw, Attack] = {"short": APGD(steps=3), "apgd": APGD("dlr", steps=10, targets=3)}
        whole = in_turn(attacks, model, images, labels, threat, rng)
        order = torch.randperm(40, generator=torch.Generator().manual_seed(1))
        for index in (*order[:3].split(1), *order.split(7)):
            part = in_turn(attacks, model, images[index], labels[index], threat, rng[index])
            torch.testing.assert_close(part, whole[index], rtol=0, atol=1e-12)

    def test_what_search_alone_fools_is_told(self) -> None:
        base = linear(9, 4)
        images, threat = images_near(0.5, 0.3, 12), Threat("linf", 0.03)
        labels = base.predict(images)
        gradients, search = APGD("margin", steps=10), Square(queries=60)
        deaf = Deaf(base.weight, base.bias).eval()

        def told(model: Linear, attacks: dict[Draw, Attack]) -> tuple[Tensor, Tensor]:
            oracle = Oracle(model, 12)
            attacked = in_turn(attacks, oracle, images, labels, threat, streams(12))
            return oracle.searched, model.predict(attacked) != labels

        for model in (base, deaf):
            first = model.predict(gradients.perturb(model, images, labels, threat, streams(12).fork("g"))) != labels
            searched, fooled = told(model, {"g": gradients, "s": search})
            assert torch.equal(searched, fooled & ~first)
            assert bool(searched.any()) == (model is deaf)
        # Nothing follows from search that comes first, nor from gradients that come last.
        assert not bool(told(deaf, {"s": search, "g": gradients})[0].any())
        assert not bool(told(deaf, {"g": gradients, "again": gradients})[0].any())

    def test_targets_end_the_turn_of_a_sample(self) -> None:
        model, images = linear(13, 3), images_near(0.5, 0.3, 20)
        targets, threat = (model.predict(images) + 1) % 3, Threat("linf", 0.3, targeted=True)
        found = in_turn({"apgd": APGD(steps=20), "idle": Idle()}, model, images, targets, threat, streams(20))
        assert torch.equal(model.predict(found), targets)
        none = in_turn({"apgd": APGD()}, model, images[:0], targets[:0], threat, streams(0))
        assert none.shape == (0, *SHAPE)


class TestAutoAttack:
    @pytest.mark.parametrize(
        ("version", "norm"),
        [
            ("standard", "linf"),
            *(pytest.param("standard", norm, marks=pytest.mark.slow) for norm in ("l2", "l1")),
            *(pytest.param("plus", norm, marks=pytest.mark.slow) for norm in SIZES),
            *(pytest.param("rand", norm, marks=pytest.mark.slow) for norm in SIZES),
        ],
    )
    def test_no_part_of_it_fools_more_and_survivors_cost_what_is_announced(
        self, version: Literal["standard", "plus", "rand"], norm: Norm
    ) -> None:
        plain, images = linear(9, 4), images_near(0.5, 0.3, 12)
        model, labels = Counting.of(plain, 12), plain.predict(images)
        threat, rng, attack = Threat(norm, SIZES[norm]), streams(12), AutoAttack(version)
        attacked = attack.perturb(model, images, labels, threat, rng)
        assert_allowed(images, attacked, threat)
        robust = plain.predict(attacked) == labels
        assert 0 < int(robust.sum()) < 12
        alone = APGD("margin", targets=3).perturb(plain, images, labels, threat, rng)
        assert not bool((robust & (plain.predict(alone) != labels)).any())
        assert version == "standard" or torch.equal(robust, plain.predict(alone) == labels)
        if version != "rand":  # which asks a copy
            forwards, backwards = attack.passes(4)
            spared = 300 * {"standard": 3, "plus": 30}[version]
            assert model.backwards[robust].tolist() == [backwards] * int(robust.sum())
            assert forwards - spared <= float(model.forwards[robust].min()) <= float(model.forwards.max()) <= forwards

    def test_square_finds_what_has_no_gradient(self) -> None:
        base = linear(9, 4)
        model, images = Deaf(base.weight, base.bias).eval(), images_near(0.5, 0.3, 6)
        labels, threat = model.predict(images), Threat("linf", 0.1)
        attacked = AutoAttack().perturb(model, images, labels, threat, streams(6))
        assert bool((model.predict(attacked) != labels).all())

    def test_it_is_that_ensemble_and_nothing_but_its_version_can_be_changed(self) -> None:
        entry = Registry(installed=False).entries("attack")["autoattack"]
        assert entry.cls is AutoAttack
        assert entry.mark.norms == ("linf", "l2", "l1")
        attack = AutoAttack()
        assert attack.field_names() == ("version",)
        assert attack.identity() == {}
        assert attack.losses == ("ce", "margin", "dlr")
        assert attack.gradient_steps == 100
        parts = (APGD("ce"), APGD("dlr", targets=9), FAB(steps=100, targets=9), Square(queries=5000, p_init=0.8))
        assert attack.passes(10) == passes_in_turn({str(part): part for part in parts}, 10)
        forwards, backwards = attack.passes(10)
        assert forwards == pytest.approx(7850, rel=0.02)
        assert backwards == pytest.approx(1910, rel=0.02)

    def test_its_versions_are_those_of_its_authors(self) -> None:
        registry, standard = Registry(installed=False), AutoAttack()
        found = {
            version: choose(registry, "attack", f"autoattack[version={version}]", "here")
            for version in ("standard", "plus", "rand")
        }
        assert found["standard"].spec() == choose(registry, "attack", "autoattack", "here").spec()
        assert found["standard"].spec().parameters == {}
        for version in ("plus", "rand"):
            assert found[version].label == f"autoattack[version={version}]"
            assert found[version].spec().parameters == {"version": version}
            assert found[version].component.version == standard.version
        with pytest.raises(RequestError, match="version = 'custom': Input should be 'standard', 'plus' or 'rand'"):
            choose(registry, "attack", "autoattack[version=custom]", "here")
        plus, rand = found["plus"].component, found["rand"].component
        parts = (
            *(APGD(loss, restarts=5) for loss in ("ce", "dlr")),
            *(FAB(targets=0, restarts=5), Square(queries=5000, p_init=0.8), APGD("dlr", targets=9), FAB()),
        )
        assert plus.passes(10) == passes_in_turn({str(part): part for part in parts}, 10)
        assert rand.passes(10) == (2 * (20 * 101 + 1), 2 * 20 * 100)
        assert [attack.averaged_draws for attack in (standard, plus, rand)] == [1, 1, 20]
        assert [attack.black_box for attack in (standard, plus, rand)] == [True, True, False]
        assert rand.losses == ("ce", "dlr")
        assert plus.losses == standard.losses

    @pytest.mark.parametrize(
        ("threat", "classes", "reason"),
        [
            (Threat("linf", 0.1), 3, "four classes"),
            (Threat("l2", 0.1), 2, "use strong"),
            (Threat("linf", 0.1, targeted=True), 10, "targeted"),
        ],
    )
    def test_what_it_cannot_do_is_refused(self, threat: Threat, classes: int, reason: str) -> None:
        for attack in (AutoAttack(), AutoAttack("plus")):
            assert reason in str(attack.refusal(threat, classes))
            assert attack.refusal(Threat("l1", 0.1), 4) is None

    def test_averages_need_a_class_less(self) -> None:
        rand = AutoAttack("rand")
        assert "targeted" in str(rand.refusal(Threat("linf", 0.1, targeted=True), 10))
        assert "use apgd-margin[eot=20]" in str(rand.refusal(Threat("linf", 0.1), 2))
        assert rand.refusal(Threat("linf", 0.1), 3) is None
