"""The audit: models with masked gradients are caught, honest ones are not."""

from __future__ import annotations

import pytest
from audits import cautions, flags, row
from subjects import Constant, exact, subject
from traps import Blocked, Misleading, Noisy, OnlyOnLevels, Quantised, Saturated, Winners

from robbench.defenses.jpeg import Jpeg
from robbench.evaluation.audit import examine

CHAINS = ("fgsm@0.1", "pgd[steps=20]@0.1", "square[queries=300]@0.1", "uniform-noise@0.1")


class TestTraps:
    def test_a_model_that_rounds_its_input(self) -> None:
        found = flags(row(subject(Quantised(exact(4)), wrong=0), *CHAINS))
        assert "zero-gradient" in found
        assert "60 of 60" in found["zero-gradient"]
        assert "black-box-wins" in found

    @pytest.mark.parametrize(
        "attack", ["pgd[steps=20]@0.1", "strong[steps=24]@0.1", "carlini-wagner[steps=20]", "ddn[steps=20]"]
    )
    def test_gradients_that_are_honest_on_8_bit_images_alone(self, attack: str) -> None:
        cells = row(subject(OnlyOnLevels(exact(4)), wrong=0), attack)
        assert not cells[0][1].flat.any()
        assert "between 8-bit pixel values on 60 of 60" in flags(cells)["zero-gradient"]
        assert "zero-gradient" not in flags(row(subject(OnlyOnLevels(exact(4)), wrong=0), "fgsm@0.1"))

    def test_probabilities_that_are_saturated(self) -> None:
        cells = row(subject(Saturated(exact(4)), wrong=0), *CHAINS)
        assert "zero-gradient" in flags(cells)
        assert "outputs-probabilities" in cautions(cells)  # square follows margins
        assert "outputs-probabilities" in flags(cells[:3])

    def test_random_scores(self) -> None:
        found = flags(row(subject(Noisy(exact(4)), wrong=0), *CHAINS))
        assert "randomized" in found
        cells = row(subject(Noisy(exact(4)), wrong=0), *CHAINS, traits=("averaged",))
        assert "randomized" in cautions(cells)
        assert "randomized" not in flags(cells)

    def test_k_winners_take_all(self) -> None:
        chains = [chain.replace("0.1", "0.02") for chain in CHAINS]
        assert "black-box-wins" in flags(row(subject(Winners(exact(4)), wrong=0), *chains))

    def test_a_gradient_that_points_the_wrong_way(self) -> None:
        cells = row(subject(Misleading(exact(4)), wrong=0), *CHAINS)
        left = {record.spec.condition.label: result.robust.mean() for record, result in cells}
        assert left["pgd[steps=20]@0.1"] > 0.7  # what a board without the audit would show
        assert left["square[queries=300]@0.1"] < 0.2
        assert {"black-box-wins", "noise-wins"} <= flags(cells).keys()

    def test_a_model_without_any_gradient(self) -> None:
        cells = row(subject(Blocked(exact(4)), wrong=0), *CHAINS)
        assert "zero-gradient" in flags(cells)
        assert "no-gradient" in cautions(cells)
        assert "no-gradient" in flags(row(subject(Blocked(exact(4)), wrong=0), *CHAINS[:2]))

    def test_a_constant_model(self) -> None:
        found = flags(row(subject(Constant(exact(4).weight, exact(4).bias).eval()), "pgd[steps=2]@0.1"))
        assert "predicts cat for 60 of 60 clean images" in found["collapsed"]

    def test_a_model_that_nothing_can_fool_because_its_gradient_is_gone(self) -> None:
        cells = row(subject(Blocked(exact(4)), wrong=0), "pgd[steps=2]@0.5", "pgd[steps=2]@1")
        assert "survives-everything" in flags(cells)

    def test_images_that_are_stored_in_between_and_no_gradient_through_it(self) -> None:
        cells = row(
            subject(Jpeg(straight_through=False).wrap(exact(4)), wrong=0), *CHAINS, traits=("defense-in-the-way",)
        )
        assert {"zero-gradient", "defense-in-the-way"} <= flags(cells).keys()

    def test_the_same_with_the_gradient_straight_through(self) -> None:
        traits = ("defense-in-the-way", "straight-through")
        cells = row(subject(Jpeg(quality=95).wrap(exact(4)), wrong=0), *CHAINS, traits=traits)
        assert "zero-gradient" not in flags(cells)
        assert "defense-in-the-way" in cautions(cells)

    def test_an_honest_model(self) -> None:
        cells = row(
            subject(exact(4)),
            *("fgsm@0.02", "pgd[steps=20]@0.02", "pgd[steps=20]@0.1", "pgd[steps=20]@0.5", "pgd[steps=20]@1"),
            *("square[queries=300]@0.02", "uniform-noise@0.02"),
        )
        assert 0.1 < cells[2][1].robust.mean() < 0.8  # there is something left that a weaker attack could have found
        assert examine(cells) == []

    @pytest.mark.parametrize(("trap", "eps"), [(Quantised, 0.1), (Misleading, 0.05), (Winners, 0.02)])
    def test_search_inside_an_ensemble_finds_what_its_gradients_do_not(
        self, trap: type[Quantised | Misleading | Winners], eps: float
    ) -> None:
        ensemble = f"strong[steps=24,targets=2]@{eps}"
        cells = row(subject(trap(exact(4)), wrong=0), ensemble)
        assert f"the search inside {ensemble}" in flags(cells)["black-box-wins"]
        assert (cells[1][1].searched & ~cells[1][1].robust).sum() > 3
        assert not (cells[1][1].searched & cells[1][1].robust).any()

    @pytest.mark.parametrize("attack", ["strong[steps=25]@0.02", "strong[steps=25]@l2:0.15", "strong@0.01"])
    def test_nor_does_it_on_an_honest_model(self, attack: str) -> None:
        cells = row(subject(exact(4)), attack)
        assert 0.1 < cells[1][1].robust.mean() < 0.8
        assert examine(cells) == []
        assert "searched" not in cells[1][1].written()
        assert "flat_between" not in cells[0][1].written()

    def test_images_of_other_models(self) -> None:
        misled = Misleading(exact(4))
        cells = row(subject(misled, wrong=0), "pgd[steps=20]@0.1", "transfer[steps=5]@0.1", peers=[exact(4)])
        assert "transfer-wins" in flags(cells)
        assert cells[2][1].robust.mean() < 0.1
        assert flags(row(subject(exact(4)), "pgd[steps=20]@0.02", "transfer@0.02", peers=[exact(4, seed=9)])) == {}
