"""Votes of several models: their predictions and scores, and that attacks get at them."""

from __future__ import annotations

import pytest
import torch
from audits import flags, row
from closed_forms import images_near, linear
from galleries import neighbors
from networks import Network
from subjects import exact, subject
from torch import Tensor
from torch.nn import functional

from robbench.core.contracts import Classifier
from robbench.core.errors import RequestError
from robbench.defenses.detector import Detector
from robbench.defenses.noise import Noise
from robbench.evaluation.query_counter import Oracle
from robbench.models._external.classifier import ExternalClassifier
from robbench.models._external.normalization import NONE
from robbench.models._vote import Vote


class Saying(Classifier):
    """Gives the same probabilities whatever it sees."""

    def __init__(self, *shares: float) -> None:
        super().__init__()
        self.shares, self.num_classes = torch.tensor(shares, dtype=torch.float64), len(shares)
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        return self.shares.log().expand(len(images), -1)

    def embed(self, images: Tensor) -> Tensor:
        return images.flatten(1)


@pytest.mark.parametrize(
    ("shares", "wanted"),
    [
        ([(0.9, 0.1, 0.0), (0.4, 0.6, 0.0), (0.4, 0.6, 0.0)], 1),  # the votes, not the mean
        ([(0.9, 0.1, 0.0), (0.4, 0.6, 0.0)], 0),  # as many votes: the mean
        ([(0.6, 0.4, 0.0), (0.1, 0.9, 0.0)], 1),
        ([(0.5, 0.1, 0.4), (0.1, 0.5, 0.4)], 0),  # the third has the highest mean and no vote
    ],
)
def test_most_votes_win_and_the_mean_breaks_ties(shares: list[tuple[float, ...]], wanted: int) -> None:
    model, images = Vote([Saying(*own) for own in shares]), images_near(0.5, 0.5, 3)
    assert model.predict(images).tolist() == [wanted] * 3
    torch.testing.assert_close(model(images)[0].exp(), torch.tensor(shares, dtype=torch.float64).mean(dim=0))


def test_votes_are_those_of_the_members_predictions() -> None:
    gallery = torch.rand(15, 48, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    members = [neighbors(gallery, torch.arange(15) % 3), linear(3, 3), linear(4, 3), linear(5, 3), linear(6, 3)]
    model, images = Vote(members), images_near(0.5, 0.5, 60)
    votes = torch.stack([functional.one_hot(member.predict(images), 3) for member in members]).sum(dim=0)
    predicted = model.predict(images)
    assert bool((votes.gather(1, predicted[:, None])[:, 0] == votes.amax(dim=1)).all())
    assert torch.equal(model.decide(images)[0], model(images))
    assert model.embed(images).shape == (60, 5 * 48)
    some = torch.tensor([4, 0])
    assert torch.equal(model.subset(some).predict(images[some]), predicted[some])


def test_passes_of_every_member_are_counted() -> None:
    oracle = Oracle(Vote([Network().eval(), Network().eval()]), 4)
    images = torch.rand(4, 3, 5, 5, requires_grad=True)
    with oracle.watching(images):
        oracle(images).sum().backward()
        oracle.decide(images)
    assert oracle.spent.tolist() == [[4.0] * 4, [2.0] * 4]


def test_random_members_draw_anew_and_are_counted_as_the_least_of_them() -> None:
    model = Vote([Noise(votes=100).wrap(linear(3, 3)), Noise(draws=4, votes=120).wrap(linear(4, 3))])
    images = images_near(0.5, 0.5, 4)
    assert (model.draws, model.votes) == (4, 100)
    before = model(images)
    model.redraw(1)
    assert not torch.equal(model(images), before)
    model.redraw(0)
    assert torch.equal(model(images), before)
    assert Vote([Noise().wrap(linear(3, 3)), linear(4, 3)]).draws == 1


def test_a_vote_answers_no_more_than_its_members_and_rejects_nothing() -> None:
    given = ExternalClassifier(Network(), 3, NONE, answers="scores")
    assert Vote([linear(3, 3), given]).answers == "scores"
    with pytest.raises(RequestError, match="in front of the vote"):
        Vote([linear(3, 3), Detector().wrap(linear(4, 3))])
    assert Detector().wrap(Vote([linear(3, 3), linear(4, 3)])).rejects


def test_attacks_get_at_a_vote() -> None:
    model = Vote([exact(4, seed) for seed in (3, 4, 5)]).eval()
    cells = row(subject(model, wrong=0), "strong[steps=24]@0.1", "square[queries=300]@0.1", "uniform-noise@0.1")
    assert flags(cells) == {}
    assert cells[1][1].robust.mean() < 0.3
