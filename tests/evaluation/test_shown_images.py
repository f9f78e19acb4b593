"""Attacked images are kept in memory for what is shown, and are those of the attempt that counts."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from subjects import condition, exact, examples, subject
from torch import Tensor

from robbench.core.contracts import to_float
from robbench.evaluation import attack_run
from robbench.evaluation.artifacts import EXAMPLED
from robbench.evaluation.attack_run import KeptImages
from robbench.evaluation.evaluator import evaluate
from robbench.evaluation.subject import ANSWERED


def test_of_many_draws_no_more_images_are_kept_than_are_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[int] = []

    def counted(index: Tensor, images: Tensor) -> KeptImages:
        kept.append(len(index))
        return KeptImages(index, images)

    monkeypatch.setattr(attack_run, "KeptImages", counted)
    monkeypatch.setattr(attack_run, "attack_batch", lambda shape: 20)
    here = subject(exact(4))
    result = evaluate(here, condition("gaussian-noise", draws=5))
    assert result.outcome.draws.shape[1] == 5
    of_first, of_others = kept[:4], kept[4:]  # three batches, and all of them
    assert of_first[-1] == sum(of_first[:-1]) <= EXAMPLED + ANSWERED < len(here.samples)
    assert sum(of_others) == 0


@pytest.mark.parametrize("chain", ["fgsm@0.1", "fgsm@0.1->next", "fgsm@0.1->all"])
def test_examples_are_what_was_judged(chain: str) -> None:
    here = subject(exact(4))
    result = evaluate(here, condition(chain))
    found = examples(result)
    at = [here.samples.ids.tolist().index(number) for number in found["ids"]]
    assert len(at) == EXAMPLED
    attacked = torch.from_numpy(found["attacked"])
    assert here.model.predict(attacked).tolist() == result.outcome.final[at].tolist() == found["final"].tolist()
    change = attacked - to_float(torch.from_numpy(found["images"]))
    np.testing.assert_allclose(change.abs().flatten(1).amax(dim=1), result.outcome.linf[at], atol=1e-6)
    np.testing.assert_allclose(change.flatten(1).norm(dim=1), result.outcome.l2[at], rtol=1e-5)
