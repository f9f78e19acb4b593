"""The flags and cautions of the audit, and what they mean in plain words. Needs no torch."""

from __future__ import annotations

from dataclasses import dataclass

FLAGS = {
    "survives-everything": "keeps predictions that an attack of this size must be able to change",
    "not-monotone": "images fooled within a small eps are robust to a larger one: the attack fails there",
    "single-step-wins": "one gradient step fools images that many steps do not: gradient masking",
    "noise-wins": "random noise fools images that gradients do not: gradient masking",
    "black-box-wins": "search without gradients fools images that gradients do not: gradient masking",
    "transfer-wins": "images transferred from other models fool it where its own gradients do not: gradient masking",
    "not-converged": "more steps still lower robust accuracy: what is shown is too high",
    "zero-gradient": "the input gradient of a loss that attacks followed is zero: they stand still",
    "non-finite": "scores are infinite or no numbers: no attack can follow them",
    "certificate-broken": "a change alters a prediction that is proved to stay: the software is wrong, not the model",
    "collapsed": "predicts the same class for nearly all images, whatever they show",
    "rejects-clean": "rejects many clean images: what rejects everything is robust to every attack",
    "surrogate-gap": "the scores that attacks follow are already fooled where the prediction is not",
    "randomized": "answers the same image differently, and no attack averaged over its draws",
    "outputs-probabilities": "gives probabilities, which saturate, and no attack followed margins between them",
    "no-gradient": "cannot be differentiated, and no attack did without gradients",
    "defense-in-the-way": "a defense stops the gradient, and no attack went straight through it",
}
"""What each flag means, in plain words."""

DRAWN_ONCE = "answers the same image differently; attacks averaged over its draws, but its prediction is a single draw"
"""The first of the remedies of ``randomized`` without the second."""

CAUTIONS = {
    "randomized": "answers the same image differently; attacks follow an average over draws",
    "outputs-probabilities": "gives probabilities, which saturate; an attack on margins was run",
    "no-gradient": "cannot be differentiated; attacks without gradients were run",
    "defense-in-the-way": "a defense stops the gradient; attacks went straight through it",
    "black-box-wins": "the search without gradients that is part of an attack fools images that its gradients do not; "
    "they count as fooled",
    "rejects-clean": "rejects clean images, which count as wrong",
    "rejects-attacked": "rejects attacked images, which count as right",
    "draws-nothing": "draws nothing: an attack that averages over its draws repeats the same pass, and does not search",
    "smallest-change-beaten": "an attack of a fixed size fools images within what another calls the smallest change; "
    "what is shown is the smallest over all attacks",
}
"""What each caution means, and its remedy."""


UNRANKED = "certificate-broken"
"""The flag of a row that cannot be ranked at all: what it rests on contradicts itself."""


@dataclass(frozen=True)
class Flag:
    """What the audit found on one row.

    Attributes:
        key: The record that it belongs to.
        name: One of ``FLAGS`` or ``CAUTIONS``.
        text: What was found, with its figures.
        blocks: Whether it is a flag.
    """

    key: str
    name: str
    text: str
    blocks: bool = True
