from __future__ import annotations

import numpy as np
import pytest
import torch
from closed_forms import largest_gain
from resident import held
from subjects import (
    CLASSES,
    Towards,
    arrays,
    condition,
    exact,
    examples,
    put_to,
    samples,
    subject,
)

from robbench.attacks.noise import GaussianNoise
from robbench.core.contracts import to_float
from robbench.core.sample_rng import Streams
from robbench.core.threat_model import Threat
from robbench.evaluation import attack_run
from robbench.evaluation.evaluator import evaluate
from robbench.planning.conditions import Condition

# --- what is attacked, and what counts


def test_clean_is_the_decisions_on_the_images() -> None:
    here = subject(exact(4))
    result = evaluate(here, condition("clean"))
    assert not result.extras
    outcome = result.outcome
    np.testing.assert_array_equal(outcome.final, here.clean)
    np.testing.assert_array_equal(outcome.final, outcome.clean)
    assert not outcome.attempted.any()
    assert outcome.robust.sum() == 50
    assert outcome.forwards.sum() == outcome.linf.sum() == 0


def test_samples_that_are_wrong_when_clean_are_not_attacked_and_keep_their_decision() -> None:
    outcome = evaluate(subject(exact(4)), condition("fgsm@0.02")).outcome
    wrong = outcome.clean != outcome.labels
    assert wrong.sum() == 10
    np.testing.assert_array_equal(outcome.attempted, ~wrong)
    np.testing.assert_array_equal(outcome.final[wrong], outcome.clean[wrong])
    assert not outcome.robust[wrong].any()
    for spent in (outcome.forwards, outcome.backwards, outcome.linf, outcome.l2, outcome.l1, outcome.l0):
        assert not spent[wrong].any()
        assert (spent[~wrong] > 0).all()
    np.testing.assert_array_equal(outcome.robust, ~wrong & (outcome.final == outcome.labels))
    assert 0 < outcome.robust.sum() < 50


def test_robust_accuracy_of_a_binary_linear_model_is_the_closed_form() -> None:
    model = exact(2)
    here = subject(model)
    outcome = evaluate(here, condition("fgsm@0.1")).outcome
    images, labels = to_float(held(here.samples).images, dtype=torch.float64), here.samples.labels
    slopes = model.weight[1 - labels] - model.weight[labels]
    with torch.no_grad():
        scores = model(images)
    margin = scores.gather(1, labels[:, None]) - scores.gather(1, 1 - labels[:, None])
    survives = margin[:, 0] > largest_gain(slopes, images, "linf", 0.1)
    np.testing.assert_array_equal(outcome.robust, survives.numpy())
    assert 0 < outcome.robust.sum() < 50


def test_chains_are_applied_to_every_sample() -> None:
    outcome = evaluate(subject(exact(4)), condition("gaussian-noise[std=0.3]+fgsm@0.1")).outcome
    assert outcome.kind == "chain"
    assert outcome.attempted.all()
    assert (outcome.backwards == 1).all()
    wrong = outcome.clean != outcome.labels
    assert (outcome.final[wrong] != outcome.clean[wrong]).any()
    assert not outcome.robust[wrong].any(), "robust means right on the unchanged image too"


def test_natural_perturbations_are_drawn_independently_for_every_sample() -> None:
    here = subject(exact(4))
    outcome = evaluate(here, condition("gaussian-noise[std=0.3]", draws=3)).outcome
    assert outcome.kind == "natural"
    assert outcome.attempted.all()
    assert outcome.draws.shape == (60, 3)
    np.testing.assert_array_equal(outcome.draws[:, 0], outcome.final)
    np.testing.assert_array_equal(outcome.robust, outcome.final == outcome.labels)
    images = to_float(held(here.samples).images)
    for draw in range(3):
        streams = Streams.of(here.samples.ids, here.seed, "gaussian-noise", 0, draw)
        noisy = GaussianNoise(0.3).perturb(here.model, images, here.samples.labels, Threat("none"), streams)
        np.testing.assert_array_equal(outcome.draws[:, draw], here.model.predict(noisy).numpy())
    assert (outcome.draws[:, 0] != outcome.draws[:, 1]).any()
    assert (outcome.draws[:, 1] != outcome.draws[:, 2]).any()


def test_stages_of_a_chain_draw_from_streams_of_their_own() -> None:
    here = subject(exact(4))
    noise = condition("gaussian-noise[std=0.1]").stages[0]
    twice = Condition((noise, noise))
    found = examples(evaluate(here, twice))
    attacked, images = torch.from_numpy(found["attacked"]), to_float(torch.from_numpy(found["images"]))
    change = attacked - images
    inside = (attacked > 0) & (attacked < 1) & (images > 0.3) & (images < 0.7)
    # Were both draws the same, the variance would be four times that of one instead of twice.
    assert float(change[inside].square().mean()) == pytest.approx(2 * 0.1**2, rel=0.3)


def test_judging_rounds_to_8_bits_too() -> None:
    here = subject(exact(4))
    outcome = evaluate(here, condition("fgsm@0.0019")).outcome  # less than half a level
    np.testing.assert_array_equal(outcome.rounded, outcome.clean)
    large = evaluate(here, condition("fgsm@10/255")).outcome  # whole levels
    np.testing.assert_array_equal(large.rounded, large.final)
    assert (large.rounded != large.clean).any()


def test_norms_are_those_of_the_whole_change() -> None:
    here = subject(exact(4), wrong=0)
    result = evaluate(here, condition("pgd[steps=3]@l2:0.5"))
    found, outcome = examples(result), result.outcome
    at = np.array([int(np.flatnonzero(outcome.ids == number)[0]) for number in found["ids"]])
    assert len(set(at.tolist())) == 16
    images = held(here.samples).images[torch.from_numpy(at)]
    change = (found["attacked"].astype(np.float64) - to_float(images).double().numpy()).reshape(16, -1)
    np.testing.assert_array_equal(found["images"], images.numpy())
    np.testing.assert_array_equal(found["final"], outcome.final[at])
    np.testing.assert_allclose(outcome.linf[at], np.abs(change).max(axis=1))
    np.testing.assert_allclose(outcome.l2[at], np.sqrt((change**2).sum(axis=1)))
    np.testing.assert_allclose(outcome.l1[at], np.abs(change).sum(axis=1))
    np.testing.assert_array_equal(outcome.l0[at], (change != 0).sum(axis=1))


def test_examples_are_of_all_classes_though_the_samples_are_sorted_by_class() -> None:
    order = samples(60, 4).labels.argsort()
    here = subject(exact(4), samples(60, 4)[order])
    found = examples(evaluate(here, condition("gaussian-noise")))
    assert len(found["labels"]) == 16
    assert set(found["labels"].tolist()) == set(range(4))
    assert np.bincount(found["labels"]).tolist() == [4] * 4


def test_progress_is_told() -> None:
    told: list[tuple[int, int]] = []
    evaluate(subject(exact(4)), condition("gaussian-noise", draws=2), lambda done, of: told.append((done, of)))
    assert told == [(60, 120), (120, 120)]


def test_nothing_to_attack_is_no_error() -> None:
    here = subject(exact(4), wrong=60)
    for chain in ("fgsm@0.1", "fgsm@0.1->all", "fgsm@0.1->next"):
        outcome = evaluate(here, condition(chain)).outcome
        assert not outcome.attempted.any()
        assert not outcome.robust.any()


# --- targets


def test_next_targets() -> None:
    here = subject(exact(4))
    outcome = evaluate(here, condition("fgsm@0.1->next")).outcome
    at = outcome.attempted
    np.testing.assert_array_equal(outcome.targets[at], (outcome.labels[at] + 1) % 4)
    assert (outcome.targets[~at] == -1).all()


def test_random_targets_belong_to_samples_and_are_never_the_true_class() -> None:
    here = subject(exact(4), wrong=0)
    outcome = evaluate(here, condition("fgsm@0.1->random")).outcome
    assert outcome.attempted.all()
    assert (outcome.targets != outcome.labels).all()
    assert {(int(a), int(b)) for a, b in zip(outcome.labels, outcome.targets, strict=True)} >= {
        (a, b) for a in range(4) for b in range(4) if a != b and (outcome.labels == a).sum() > 12
    }
    order = torch.randperm(60, generator=torch.Generator().manual_seed(0))
    other = evaluate(subject(exact(4), held(here.samples)[order]), condition("fgsm@0.1->random")).outcome
    np.testing.assert_array_equal(other.targets, outcome.targets[order.numpy()])


def test_least_likely_targets_have_the_lowest_score() -> None:
    here = subject(exact(4), wrong=0)
    outcome = evaluate(here, condition("fgsm@0.1->least-likely")).outcome
    with torch.no_grad():
        scores = here.model(to_float(held(here.samples).images))
    np.testing.assert_array_equal(outcome.targets, scores.argmin(dim=1).numpy())


def test_a_named_target_leaves_out_the_samples_of_that_class() -> None:
    here = subject(exact(4))
    outcome = evaluate(here, condition("fgsm@0.1->cow")).outcome
    right = outcome.clean == outcome.labels
    np.testing.assert_array_equal(outcome.attempted, right & (outcome.labels != 2))
    assert set(outcome.targets[outcome.attempted]) == {2}
    # A sample of the target's class is not attacked, and so not fooled.
    assert outcome.robust[right & (outcome.labels == 2)].all()


def test_all_targets_are_the_closed_form_on_a_linear_model() -> None:
    model, eps = exact(4), 0.05
    here = subject(model)
    outcome = evaluate(here, put_to(Towards(), eps=eps, target="all")).outcome
    images, labels = to_float(held(here.samples).images, dtype=torch.float64), here.samples.labels
    with torch.no_grad():
        scores = model(images)
    right = (outcome.clean == outcome.labels).copy()
    survives = right.copy()
    for target in range(4):
        slopes = model.weight[target] - model.weight[labels]
        margin = scores.gather(1, labels[:, None])[:, 0] - scores[:, target]
        reached = margin < largest_gain(slopes, images, "linf", eps)
        survives &= ~(reached & (labels != target)).numpy()
        tried = outcome.every_target[:, target]
        np.testing.assert_array_equal(tried == -1, ~right | (labels == target).numpy())
    np.testing.assert_array_equal(outcome.robust, survives)
    assert 0 < survives.sum() < 50
    fooled = right & ~survives
    chosen = outcome.every_target[np.arange(60), outcome.targets.clip(0)]
    np.testing.assert_array_equal(chosen[fooled], outcome.final[fooled])
    assert (outcome.final[fooled] != outcome.labels[fooled]).all()
    np.testing.assert_array_equal(outcome.forwards, 3.0 * right)


def test_of_all_targets_the_smallest_change_that_fools_counts() -> None:
    here = subject(exact(4), wrong=0)
    whole = evaluate(here, put_to(Towards(), eps=0.1, target="all")).outcome
    single = [evaluate(here, put_to(Towards(), eps=0.1, target=name)).outcome for name in CLASSES]
    for i in range(60):
        tried = [outcome for outcome in single if outcome.attempted[i]]
        fooling = [outcome for outcome in tried if outcome.final[i] != outcome.labels[i]]
        assert len(tried) == 3
        assert (whole.final[i] != whole.labels[i]) == bool(fooling)
        if fooling:
            assert whole.l2[i] == min(outcome.l2[i] for outcome in fooling)


# --- samples, batches, order


def test_every_model_is_put_to_the_same_stratified_sample() -> None:
    given = samples(200, 4)
    chosen = [
        evaluate(subject(exact(4, seed), given, seed=seed), condition("fgsm@0.1", sample=40)).outcome for seed in (3, 4)
    ]
    np.testing.assert_array_equal(chosen[0].ids, chosen[1].ids)
    shares = np.bincount(given.labels.numpy(), minlength=4) / 200
    np.testing.assert_allclose(np.bincount(chosen[0].labels, minlength=4) / 40, shares, atol=1 / 40)
    other = evaluate(subject(exact(4), given, split_seed=1), condition("fgsm@0.1", sample=40)).outcome
    assert set(other.ids) != set(chosen[0].ids)
    everything = evaluate(subject(exact(4), given), condition("fgsm@0.1", sample=500)).outcome
    np.testing.assert_array_equal(everything.ids, given.ids.numpy())


CHAINS = [
    "fgsm@0.05",
    "pgd[steps=4,restarts=2]@0.05",
    "pgd[steps=3]@l2:0.5",
    "pgd[steps=3]@0.05->all",
    "gaussian-noise[std=0.2]",
    "gaussian-noise+uniform-noise@0.1",
    "noise-optimization[steps=5,start=gaussian]->random",
]


@pytest.mark.parametrize("chain", CHAINS)
def test_the_size_of_batches_changes_nothing(chain: str, monkeypatch: pytest.MonkeyPatch) -> None:
    here, outcomes = subject(exact(4)), []
    for size in (128, 7, 1):
        monkeypatch.setattr(attack_run, "attack_batch", lambda shape, size=size: size)
        outcomes.append(evaluate(here, condition(chain)).outcome)
    assert (outcomes[0].final != outcomes[0].clean).any()
    for other in outcomes[1:]:
        for name in ("ids", "attempted", "final", "rounded", "targets", "draws", "every_target"):
            np.testing.assert_array_equal(arrays(other)[name], arrays(outcomes[0])[name], err_msg=name)
        for name in ("linf", "l2", "l1", "forwards", "backwards"):
            np.testing.assert_allclose(arrays(other)[name], arrays(outcomes[0])[name], rtol=1e-6, err_msg=name)


@pytest.mark.parametrize("chain", CHAINS)
def test_the_order_of_samples_changes_nothing(chain: str) -> None:
    here = subject(exact(4))
    order = torch.randperm(60, generator=torch.Generator().manual_seed(0))
    first = evaluate(here, condition(chain)).outcome
    second = evaluate(subject(exact(4), held(here.samples)[order]), condition(chain)).outcome
    for name in ("ids", "attempted", "final", "rounded", "targets", "draws", "every_target"):
        np.testing.assert_array_equal(arrays(second)[name], arrays(first)[name][order.numpy()], err_msg=name)
