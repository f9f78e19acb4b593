"""The audit: each rule by itself."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from audits import Cells, cautions, flags, row
from board_cells import A_MODEL, CLEAN, cell, outcome, stage
from subjects import condition, exact, subject
from torch import Tensor
from traps import Quantised

from robbench.core.contracts import Classifier
from robbench.evaluation.audit import examine, marked
from robbench.evaluation.audit_flags import CAUTIONS, FLAGS
from robbench.results.schema import ConditionSpec, Outcome, StageSpec

CHAINS = ("fgsm@0.1", "pgd[steps=20]@0.1", "square[queries=300]@0.1", "uniform-noise@0.1")


N = 100
LABELS = np.arange(N) % 4


def spec(name: str, eps: float | None = 0.1, check: bool = False, **fields: object) -> ConditionSpec:
    parameters = {key: fields.pop(key) for key in ("steps", "restarts") if key in fields}
    made = stage(name, "linf", eps, **parameters).model_dump() | fields
    label = f"{name}{parameters or ''}@{eps}"
    return ConditionSpec(label=label, kind="attack", stages=(StageSpec(**made),), check=check)


PGD = spec("pgd", steps=20)
NOISE = spec("noise", white_box=False, gradient_steps=0)


def attacked(fooled: int, first: int = 0, **arrays: Any) -> Outcome:
    """Of a hundred images that are right unchanged, so many are fooled, from the first on."""
    final = LABELS.copy()
    final[first : first + fooled] = (final[first : first + fooled] + 1) % 4
    return outcome("attack", LABELS, LABELS, final, k=4, **arrays)


def cells(*pairs: tuple[ConditionSpec, Outcome]) -> Cells:
    made = [cell(A_MODEL, condition, result) for condition, result in pairs]
    return [(record, result) for record, result in made if result is not None]


@pytest.mark.parametrize(("won", "flagged"), [(0, False), (1, False), (2, False), (3, True), (30, True)])
def test_a_weaker_attack_must_win_three_samples_and_more_than_one_percent(won: int, flagged: bool) -> None:
    found = flags(cells((PGD, attacked(10)), (NOISE, attacked(won, first=50))))
    assert ("noise-wins" in found) is flagged


def test_one_percent_of_many_samples_is_not_enough() -> None:
    labels = np.arange(1000) % 4
    final = labels.copy()
    final[:10] = (final[:10] + 1) % 4
    nothing = outcome("attack", labels, labels, labels, k=4)
    assert flags(cells((PGD, nothing), (NOISE, outcome("attack", labels, labels, final, k=4)))) == {}


def test_what_the_strong_attack_fools_as_well_is_no_win() -> None:
    assert flags(cells((PGD, attacked(30)), (NOISE, attacked(20)))) == {}


@pytest.mark.parametrize(
    ("fields", "flag"),
    [
        ({"white_box": True, "gradient_steps": 1}, "single-step-wins"),
        ({"white_box": False, "gradient_steps": 0, "black_box": True}, "black-box-wins"),
        ({"white_box": False, "gradient_steps": 0, "through_peers": True}, "transfer-wins"),
        ({"white_box": False, "gradient_steps": 0}, "noise-wins"),
    ],
)
def test_each_weaker_attack_raises_its_own_flag(fields: dict[str, Any], flag: str) -> None:
    found = cells((PGD, attacked(10)), (spec("weak", **fields), attacked(20, first=5)))
    assert list(flags(found)) == [flag]
    assert "15 of 100 images" in flags(found)[flag]
    (finding,) = examine(found)
    assert finding.key == found[1][0].key


ENSEMBLE = spec("ensemble", steps=20, black_box=True)


@pytest.mark.parametrize(
    ("won", "found"),
    [(0, []), (2, []), (3, [False]), (5, [False]), (6, [True]), (40, [True])],
)
def test_search_inside_an_attack_tells_against_its_gradients(won: int, found: list[bool]) -> None:
    searched = (np.arange(N) >= 10) & (np.arange(N) < 10 + won)
    findings = examine(cells((CLEAN, outcome("clean", LABELS, k=4)), (ENSEMBLE, attacked(50, searched=searched))))
    assert [(finding.name, finding.blocks) for finding in findings] == [("black-box-wins", blocks) for blocks in found]
    for finding in findings:
        assert finding.text == f"the search inside {ENSEMBLE.label} fools {won} of 100 images that gradients left"


def test_what_gradients_of_another_attack_fool_is_no_win_of_the_search_inside() -> None:
    searched = np.arange(N) < 30
    pair = cells((PGD, attacked(20)), (ENSEMBLE, attacked(50, searched=searched)))
    assert "10 of 100 images" in flags(pair)["black-box-wins"]
    assert examine(cells((PGD, attacked(40)), (ENSEMBLE, attacked(50, searched=searched)))) == []
    # What the search of both fools is fooled by no gradient.
    other = spec("other", steps=20, black_box=True)
    both = cells((ENSEMBLE, attacked(50, searched=searched)), (other, attacked(50, searched=searched)))
    assert "30 of 100 images" in flags(both)["black-box-wins"]
    # Nor does it count at another size, or where the judge saw no error.
    assert flags(cells((ENSEMBLE, attacked(5, searched=searched)))) == {}
    larger = replaced(PGD, eps=0.2)
    assert "black-box-wins" in flags(cells((ENSEMBLE, attacked(50, searched=searched)), (larger, attacked(60))))


def test_averages_over_draws_are_wasted_on_a_model_that_draws_nothing() -> None:
    averaging = spec("averaging", steps=20, averaged_draws=20)
    found = cells((CLEAN, outcome("clean", LABELS, k=4)), (averaging, attacked(50)), (PGD, attacked(50)))
    (finding,) = examine(found)
    assert (finding.name, finding.key, finding.blocks) == ("draws-nothing", found[1][0].key, False)
    assert "averages over 20 draws, which are all the same" in finding.text
    assert examine(found[1:]) == [], "nobody looked at whether it draws"


def test_averages_alone_do_not_make_up_for_a_prediction_of_one_draw() -> None:
    def row_of(attack: ConditionSpec, *traits: str) -> Cells:
        made = cells((CLEAN, outcome("clean", LABELS, k=4)), (attack, attacked(50)))
        return [(made[0][0].model_copy(update={"traits": ("randomized", *traits)}), made[0][1]), *made[1:]]

    averaging = spec("averaging", steps=20, averaged_draws=20)
    assert flags(row_of(PGD))["randomized"] == FLAGS["randomized"]
    assert "its prediction is a single draw" in flags(row_of(averaging))["randomized"]
    for attack in (PGD, averaging):
        assert flags(row_of(attack, "averaged")) == {}
        assert "randomized" in cautions(row_of(attack, "averaged"))


def test_several_strong_attacks_are_compared_together() -> None:
    pair = cells((PGD, attacked(10)), (spec("other", steps=20), attacked(10, first=10)), (NOISE, attacked(20)))
    assert flags(pair) == {}
    assert "noise-wins" in flags([pair[0], pair[2]])


def test_a_check_that_finds_more_hides_no_weakness_of_the_attacks_that_rank() -> None:
    costly = spec("costly", steps=100, check=True)
    found = flags(cells((PGD, attacked(0)), (costly, attacked(50)), (NOISE, attacked(30))))
    assert list(found) == ["noise-wins", "not-converged"]


def test_a_smallest_change_without_gradients_counts_within_the_ball() -> None:
    search = spec("boundary", eps=None, white_box=False, gradient_steps=0, black_box=True)
    near = np.full(N, 0.05)
    assert "black-box-wins" in flags(cells((PGD, attacked(0)), (search, attacked(20, linf=near))))
    assert flags(cells((PGD, attacked(0)), (search, attacked(20, linf=near + 0.1)))) == {}


MINIMAL = spec("minimal", eps=None)


@pytest.mark.parametrize(
    ("distance", "flagged"), [(0.05, False), (0.1, False), (0.1009, False), (0.102, True), (0.3, True)]
)
def test_a_smallest_change_that_an_attack_of_a_fixed_size_undercuts(distance: float, flagged: bool) -> None:
    found = cells((PGD, attacked(20)), (MINIMAL, attacked(N, linf=np.full(N, distance))))
    assert [finding.name for finding in examine(found)] == ["smallest-change-beaten"] * flagged
    if flagged:
        (finding,) = examine(found)
        assert finding.key == found[1][0].key
        assert not finding.blocks, "no number of the row rests on that attack alone"
        assert f"fools 20 of {N} images that" in finding.text


def test_a_smallest_change_that_was_not_found_at_all_is_beaten() -> None:
    (finding,) = examine(cells((PGD, attacked(20)), (MINIMAL, attacked(10))))
    assert finding.name == "smallest-change-beaten"
    assert examine(cells((PGD, attacked(2)), (MINIMAL, attacked(0)))) == [], "three images at least"


def test_smallest_changes_are_compared_in_their_own_norm_and_on_shared_images() -> None:
    far = attacked(N, linf=np.full(N, 0.3), l2=np.full(N, 0.3))
    other = spec("minimal", eps=None, norm="l2")
    assert flags(cells((PGD, attacked(20)), (other, far))) == {}
    assert flags(cells((replaced(PGD, eps=0.4), attacked(20)), (MINIMAL, far))) == {}, "within its own radius"
    search = spec("search", eps=None, white_box=False, gradient_steps=0, black_box=True)
    assert flags(cells((PGD, attacked(20)), (search, far))) == {}, "expected of a search"
    check = MINIMAL.model_copy(update={"check": True})
    assert flags(cells((PGD, attacked(20)), (check, far))) == {}, "no column of the board"


def test_weaker_attacks_at_another_size_are_not_compared() -> None:
    assert flags(cells((PGD, attacked(0)), (replaced(NOISE, eps=0.2), attacked(50)))) == {}


def replaced(condition: ConditionSpec, **fields: object) -> ConditionSpec:
    made = condition.stages[0].model_copy(update=fields)
    return condition.model_copy(update={"stages": (made,), "label": f"{condition.label} {fields}"})


def test_fooled_at_a_small_eps_and_not_at_the_next() -> None:
    larger = replaced(PGD, eps=0.2)
    assert "not-monotone" in flags(cells((PGD, attacked(30)), (larger, attacked(20))))
    assert flags(cells((PGD, attacked(30)), (larger, attacked(40)))) == {}
    # What another attack fools at the larger eps is no loss.
    other = replaced(spec("other", steps=20), eps=0.2)
    assert flags(cells((PGD, attacked(30)), (larger, attacked(20)), (other, attacked(30)))) == {}
    # Of another attack alone nothing follows.
    other = replaced(PGD, eps=0.2, parameters={"steps": 40})
    assert flags(cells((PGD, attacked(30)), (other, attacked(20)))) == {}


@pytest.mark.parametrize(("fooled", "flagged"), [(10, False), (12, False), (13, True), (20, True)])
def test_twice_the_steps(fooled: int, flagged: bool) -> None:
    doubled = spec("pgd", steps=40, check=True)
    assert ("not-converged" in flags(cells((PGD, attacked(10)), (doubled, attacked(fooled))))) is flagged
    # So does a costlier attack that is run as a check.
    other = spec("other", steps=5, check=True)
    assert ("not-converged" in flags(cells((PGD, attacked(10)), (other, attacked(fooled))))) is flagged
    # As part of the ranking it is simply the stronger attack.
    assert flags(cells((PGD, attacked(10)), (spec("pgd", steps=40), attacked(fooled)))) == {}


@pytest.mark.parametrize(("still", "flagged"), [(0, False), (5, False), (6, True), (100, True)])
def test_zero_gradients(still: int, flagged: bool) -> None:
    clean = outcome("clean", LABELS, k=4, flat=np.arange(N) < still)
    assert ("zero-gradient" in flags(cells((CLEAN, clean), (PGD, attacked(50))))) is flagged


def test_a_gap_between_scores_and_decision() -> None:
    scored = (LABELS + 1) % 4
    assert "surrogate-gap" in flags(cells((PGD, attacked(10, scored=scored))))
    # Where the decision is fooled, it does not matter what the scores say.
    assert flags(cells((PGD, attacked(N, scored=LABELS)))) == {}
    # Nor does it where another attack that ranks has changed it.
    assert flags(cells((PGD, attacked(0, scored=scored)), (spec("other", steps=20), attacked(N)))) == {}
    few = np.where(np.arange(N) >= N - 1, scored, attacked(10).final)
    assert flags(cells((PGD, attacked(10, scored=few)))) == {}


@pytest.mark.parametrize(
    ("eps", "left", "flagged"), [(0.5, 0, False), (0.5, 1, False), (0.5, 2, True), (1.0, 0, False), (1.0, 1, True)]
)
def test_what_nothing_withstands(eps: float, left: int, flagged: bool) -> None:
    found = flags(cells((replaced(PGD, eps=eps), attacked(N - left))))
    assert ("survives-everything" in found) is flagged


def test_survivors_of_one_attack_that_another_fools_are_none() -> None:
    sizes = [replaced(PGD, eps=0.5), replaced(spec("other", steps=20), eps=0.5)]
    assert flags(cells((sizes[0], attacked(50)), (sizes[1], attacked(50, first=50)))) == {}


def test_an_attack_that_goes_through_a_defense_must_work_without_it() -> None:
    clean = outcome("clean", LABELS, k=4)
    bare = PGD.model_copy(update={"undefended": True, "check": True, "label": f"{PGD.label}, undefended"})

    def row_of(with_it: int, without: int) -> Cells:
        made = cells((CLEAN, clean), (PGD, attacked(with_it)), (bare, attacked(without)))
        traits = ("defense-in-the-way", "straight-through")
        return [(made[0][0].model_copy(update={"traits": traits}), made[0][1]), *made[1:]]

    assert flags(row_of(0, 90)) == {}
    findings = [finding.text for finding in examine(row_of(0, 90)) if not finding.blocks]
    assert "without it, pgd{'steps': 20}@0.1 fools 90 of 100 images" in findings
    assert "defense-in-the-way" in flags(row_of(0, 0))


def test_every_finding_is_explained() -> None:
    assert CAUTIONS.keys() - FLAGS.keys() == {"smallest-change-beaten", "draws-nothing", "rejects-attacked"}, (
        "the others are cautions once there is a remedy"
    )
    assert all(text and not text.endswith(".") for text in (*FLAGS.values(), *CAUTIONS.values()))


def test_nothing_follows_from_nothing() -> None:
    assert examine([]) == []
    assert flags(cells((CLEAN, outcome("clean", LABELS, k=4)))) == {}


# ---------------------------------------------------------------------------------------------------- what is measured


def test_the_clean_condition_looks_at_gradients() -> None:
    (_, honest), *_ = row(subject(exact(4)))
    assert not honest.flat.any()
    (_, rounded), *_ = row(subject(Quantised(exact(4))))
    assert rounded.flat.all()


def test_one_dead_loss_is_not_enough_to_be_flat() -> None:
    class Certain(Classifier):
        """Its cross-entropy is zero to the last bit; its margin is not flat."""

        num_classes = 2

        def forward(self, images: Tensor) -> Tensor:
            brightness = images.double().flatten(1).mean(dim=1)
            return torch.stack([1e4 + brightness, -brightness], dim=1)

        def embed(self, images: Tensor) -> Tensor:
            return images

    (_, found), *_ = row(subject(Certain().eval()))
    assert not found.flat.any()


def test_scores_after_an_attack_are_kept() -> None:
    class Late(type(exact(4))):  # type: ignore[misc]
        """Decides by other scores than those it shows."""

        def decide(self, images: Tensor) -> tuple[Tensor, Tensor]:
            scores = self(images)
            return scores, (scores.argmax(dim=1) + 1) % self.num_classes

    model = Late(exact(4).weight, exact(4).bias).eval()
    _, (_, found) = row(subject(model, wrong=0), "pgd[steps=2]@0.1")
    tried = found.attempted
    np.testing.assert_array_equal(found.final[tried], (found.scored[tried] + 1) % 4)


def test_survivors_are_the_only_ones_to_be_drawn_from() -> None:
    from robbench.evaluation.evaluator import evaluate

    given = subject(exact(4))
    wanted = replace(condition("uniform-noise@0.1"), sample=5, check=True, survivors=True)
    ids = given.samples.ids[20:40].numpy()
    found = evaluate(given, wanted, survivors=ids).outcome
    assert len(found) == 5
    assert set(found.ids) <= set(ids)
    assert len(evaluate(given, wanted, survivors=ids[:0]).outcome) == 0


def test_the_audit_looks_at_the_attacks_of_the_size_that_ranks() -> None:
    """At the reference size the loss has gradients and a remedy was run; where the board ranks, neither."""
    clean = outcome("clean", LABELS, k=4, flat_ce=np.arange(N) < 50)
    margins = spec("apgd-margin", steps=20, losses=("margin",))
    larger = spec("pgd", eps=0.2, steps=20, losses=())
    found = cells((CLEAN, clean), (margins, attacked(50)), (larger, attacked(60)))
    found[0] = found[0][0].model_copy(update={"traits": ("outputs-probabilities",)}), found[0][1]

    def blocking(rank_by: str) -> set[str]:
        (marks,) = [record.flags for record, _ in marked(found, rank_by) if record.spec.condition.kind == "clean"]
        return set(marks)

    assert blocking("") == blocking("linf@0.1") == blocking("l2@3") == set()
    assert blocking("linf@0.2") == {"zero-gradient", "outputs-probabilities"}
