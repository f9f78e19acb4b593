"""Square against closed forms, on models without gradients, and the shape of what it proposes."""

from __future__ import annotations

from typing import Literal

import pytest
import torch
from closed_forms import (
    Counting,
    Linear,
    assert_allowed,
    images_near,
    largest_gain,
    linear,
    margins,
    norms,
    streams,
)
from torch import Tensor

from robbench.attacks.square import Square
from robbench.core.contracts import Classifier
from robbench.core.errors import RequestError
from robbench.core.sample_rng import Streams
from robbench.core.threat_model import Norm, Threat

BALLS: list[Norm] = ["linf", "l2", "l1"]


class Floored(Linear):
    """A linear model of quantized images: no gradient anywhere."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward((images * 32).floor() / 32)


class Recording(Linear):
    """Keeps the images that it is asked about."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__(weight, bias)
        self.seen: list[Tensor] = []

    def forward(self, images: Tensor) -> Tensor:
        self.seen.append(images.clone())
        return super().forward(images)


class Blind(Linear):
    """Decides like a linear model, but its usual scores say nothing; others, ``open``, do."""

    surrogates = ("open",)

    def forward(self, images: Tensor) -> Tensor:
        return torch.zeros(len(images), self.num_classes, dtype=images.dtype)

    def decide(self, images: Tensor) -> tuple[Tensor, Tensor]:
        return self(images), Linear.forward(self, images).argmax(dim=1)

    def surrogate(self, name: str) -> Classifier:
        if name != "open":
            raise KeyError(name)
        return Linear(self.weight, self.bias).eval()


def reach(model: Linear, images: Tensor, labels: Tensor, norm: Norm, eps: float) -> Tensor:
    """The best margin, negative once fooled, that any change in ball and box can leave, shape ``(N,)`` (truth 2)."""
    scores = model(images)
    left = []
    for other in range(model.num_classes):
        slopes = model.weight[other] - model.weight[labels]
        gap = scores.gather(1, labels[:, None])[:, 0] - scores[:, other]
        left.append(torch.where(labels == other, torch.inf, gap - largest_gain(slopes, images, norm, eps)))
    return torch.stack(left).amin(dim=0)


class TestStrength:
    @pytest.mark.parametrize("classes", [2, 3, 10])
    @pytest.mark.parametrize("norm", BALLS)
    def test_breaks_what_is_clearly_within_reach_and_nothing_beyond(self, norm: Norm, classes: int) -> None:
        model, images = linear(9, classes), images_near(0.5, 0.5 if norm == "linf" else 0.05, 40)
        labels = model.predict(images)
        eps = {"linf": 0.1, "l2": 0.06, "l1": 0.2}[norm]
        threat = Threat(norm, eps)
        attacked = Square(queries=600).perturb(model, images, labels, threat, streams(40))
        assert_allowed(images, attacked, threat)
        fooled = model.predict(attacked) != labels
        assert not bool(fooled[reach(model, images, labels, norm, eps) > 1e-9].any())
        # Random search finds all of what needs 0.8 eps in Linf, and most of what needs half of it in L2.
        share = {"linf": 0.8, "l2": 0.5, "l1": 0.25}[norm]
        clear = reach(model, images, labels, norm, share * eps) < 0
        assert int(clear.sum()) >= 4
        assert float(fooled[clear].double().mean()) >= (1.0 if norm == "linf" else 0.8)
        # What is not fooled is worse off than before.
        assert bool((margins(model, attacked, labels) < margins(model, images, labels))[~fooled].all())

    def test_needs_no_gradient(self) -> None:
        smooth = linear(9, 3)
        model = Floored(smooth.weight, smooth.bias).eval()
        images = images_near(0.5, 0.3, 40)
        labels = model.predict(images)
        attacked = Square(queries=600).perturb(model, images, labels, Threat("linf", 0.1), streams(40))
        assert_allowed(images, attacked, Threat("linf", 0.1))
        # A step of the quantization is all that the floor can take away at each pixel.
        clear = reach(smooth, images, labels, "linf", 0.8 * 0.1 - 1 / 32) < 0
        assert int(clear.sum()) >= 4
        assert bool((model.predict(attacked) != labels)[clear].all())

    @pytest.mark.parametrize("loss", ["margin", "ce"])
    @pytest.mark.parametrize("classes", [2, 3, 10])
    def test_reaches_targets(self, loss: Literal["margin", "ce"], classes: int) -> None:
        model, images = linear(7, classes), images_near(0.5, 0.3, 12)
        targets = (model.predict(images) + 1) % classes
        threat = Threat("linf", 0.4, targeted=True)
        attacked = Square(queries=400, loss=loss).perturb(model, images, targets, threat, streams(12))
        assert_allowed(images, attacked, threat)
        assert float((model.predict(attacked) == targets).double().mean()) > 0.7

    def test_follows_the_scores_asked_for_and_judges_by_the_decision(self) -> None:
        plain, images = linear(9, 3), images_near(0.5, 0.3, 40)
        labels, threat = plain.predict(images), Threat("linf", 0.05)
        model = Blind(plain.weight, plain.bias).eval()
        kept = []
        for surrogate in (None, "open"):
            attack = Square(queries=300, surrogate=surrogate)
            attacked = attack.perturb(model, images, labels, threat, streams(40))
            kept.append(int((plain.predict(attacked) == labels).sum()))
        assert kept[1] < kept[0] - 3
        straight = Square(queries=300).perturb(plain, images, labels, threat, streams(40))
        assert kept[1] == int((plain.predict(straight) == labels).sum())

    def test_scores_that_are_not_there_are_refused(self) -> None:
        model, images = Blind(torch.zeros(2, 48).double(), torch.zeros(2).double()), images_near(0.5, 0.3, 2)
        with pytest.raises(
            RequestError, match='square: surrogate: the model has no scores "opne"; did you mean "open"'
        ):
            Square(surrogate="opne").perturb(model, images, torch.zeros(2).long(), Threat("linf", 0.1), streams(2))


class TestProposals:
    """On a constant model nothing is ever kept after the start, so that every query shows one proposal."""

    count, queries = 6, 400

    def proposals(self, norm: Norm, eps: float, size: tuple[int, int] = (16, 16)) -> tuple[Tensor, list[Tensor]]:
        images = torch.full((self.count, 3, *size), 0.5).double()
        model = Recording(torch.zeros(2, images[0].numel()).double(), torch.tensor([1.0, 0.0]).double()).eval()
        labels = torch.zeros(self.count, dtype=torch.int64)
        Square(queries=self.queries).perturb(model, images, labels, Threat(norm, eps), streams(self.count))
        assert len(model.seen) == self.queries
        return images, model.seen

    def test_linf_starts_with_stripes_and_proposes_shrinking_squares_of_one_sign(self) -> None:
        images, seen = self.proposals("linf", 0.1)
        start = seen[0]
        assert torch.equal(start, start[:, :, :1].expand_as(start))
        assert sorted(set((start - images).abs().flatten().tolist()))[0] == pytest.approx(0.1)
        assert 0.4 < float((start > images).double().mean()) < 0.6
        areas = []
        for query in seen[1:]:
            assert float(((query - images).abs() - 0.1).abs().max()) < 1e-12
            changed = (query != start).any(dim=1)
            rows, columns = changed.any(dim=2).sum(dim=1), changed.any(dim=1).sum(dim=1)
            areas.append(float(torch.maximum(rows, columns).max()))
        # Of 256 pixels 80 % at first, 40 % after ten queries, 20 % after fifty, and 10 % after two hundred.
        for first, side in ((1, 14), (11, 10), (51, 7), (201, 5)):
            assert max(areas[first - 1 : first + 9]) == side

    @pytest.mark.parametrize("norm", ["l2", "l1"])
    def test_l2_and_l1_spend_all_of_eps(self, norm: Norm) -> None:
        images, seen = self.proposals(norm, 0.5)
        for query in seen:
            torch.testing.assert_close(
                norms(query - images, norm), torch.full((self.count,), 0.5).double(), rtol=2e-6, atol=0
            )

    def test_l2_changes_two_squares(self) -> None:
        images, seen = self.proposals("l2", 0.5)
        assert bool((seen[0] != images).flatten(1).double().mean(dim=1).ge(0.8).all())
        changed = (torch.stack(seen[-50:]) != seen[0]).any(dim=2).flatten(2).sum(dim=2)
        assert 25 <= int(changed.max()) <= 50

    def test_more_queries_go_on_where_fewer_ended(self) -> None:
        model, images = linear(9, 3), images_near(0.5, 0.05, 24)
        labels, left = model.predict(images), []
        for queries in (20, 80, 320):
            attacked = Square(queries=queries).perturb(model, images, labels, Threat("l2", 0.03), streams(24))
            left.append(margins(model, attacked, labels))
        assert bool((left[1] <= left[0])[left[0] > 0].all())
        assert bool((left[2] <= left[1])[left[1] > 0].all())
        assert torch.equal(left[2][left[0] <= 0], left[0][left[0] <= 0])

    @pytest.mark.parametrize("norm", BALLS)
    @pytest.mark.parametrize("size", [(1, 1), (2, 5), (7, 3)])
    def test_images_of_any_size(self, norm: Norm, size: tuple[int, int]) -> None:
        images, seen = self.proposals(norm, 0.2, size)
        for query in seen:
            assert_allowed(images, query, Threat(norm, 0.2))

    def test_places_cover_the_image_evenly_and_differ_between_samples(self) -> None:
        _, seen = self.proposals("linf", 0.1, (8, 8))
        changed = torch.stack([(query != seen[0]).any(dim=1) for query in seen[-200:]]).double()
        hits = changed.sum(dim=(0, 1))
        assert float(hits.min()) > 0
        assert float(hits.max()) < 5 * float(hits.mean())
        assert not torch.equal(changed[:, 0], changed[:, 1])


class TestPasses:
    @pytest.mark.parametrize("norm", BALLS)
    def test_counted_passes(self, norm: Norm) -> None:
        plain, images = linear(13, 3), images_near(0.5, 0.3, 20)
        labels = plain.predict(images)
        model = Counting.of(plain, 20)
        attack, threat = Square(queries=130), Threat(norm, {"linf": 0.03, "l2": 0.2, "l1": 0.6}[norm])
        attacked = attack.perturb(model, images, labels, threat, streams(20))
        robust = plain.predict(attacked) == labels
        assert 0 < int(robust.sum()) < 20
        assert (attack.passes(3), Square().passes(10)) == ((130, 0), (5000, 0))
        assert attack.gradient_steps == 0
        assert model.forwards[robust].tolist() == [130] * int(robust.sum())
        assert float(model.forwards[~robust].max()) < 130
        assert len(set(model.forwards[~robust].tolist())) > 2
        assert not bool(model.backwards.any())

    def test_random_numbers_of_a_sample_are_its_own(self) -> None:
        model, image = linear(11, 3), images_near(0.5, 0.3, 1)
        images, labels = image.repeat(8, 1, 1, 1), model.predict(image).repeat(8)
        rng = Streams(torch.cat([streams(4).keys, streams(4).keys]))
        attacked = Square(queries=20).perturb(model, images, labels, Threat("l2", 0.05), rng)
        assert torch.equal(attacked[:4], attacked[4:])
        assert len({tuple(row.tolist()) for row in attacked.flatten(1)}) == 4


@pytest.mark.parametrize("queries", [1, 2, 3, 8])
def test_samples_may_leave_at_the_last_query(queries: int) -> None:
    model, images = ThirdSums(), torch.rand(40, 1, 6, 6, generator=torch.Generator().manual_seed(0))
    labels, rng = model.predict(images), Streams.of(torch.arange(40), 0)
    found, longer = (Square(n).perturb(model, images, labels, Threat("linf", 0.1), rng) for n in (queries, queries + 1))
    fooled = model.predict(found) != labels
    assert torch.equal(found[fooled], longer[fooled])


class ThirdSums(Classifier):
    num_classes = 3

    def embed(self, images: Tensor) -> Tensor:
        return images.flatten(1)

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1).reshape(len(images), 3, 12).sum(dim=2)
