"""Rows of a grid whose models are the votes of other rows' models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from robbench.core.contracts import ANSWERS, Defense
from robbench.core.errors import RequestError
from robbench.planning.component_spec import Choice
from robbench.planning.plan import Job, model_key
from robbench.results.schema import ExternalSpec, ModelSpec, PartSpec

_NONE = PartSpec(name="none", label="none", version=1, parameters={})


def vote_job(
    name: str | None, members: Sequence[Job], defenses: Sequence[Choice[Defense]], device: str, where: str
) -> Job:
    """The job of a vote, without cells: identified by its members, which others of the grid train.

    Args:
        name: Name of the row; None to name it after its members.
        members: The models that vote, of one data set and seed.
        defenses: What stands in front of all of them.
        device: Device type.
        where: File and key that ask for it, for messages.

    Raises:
        RequestError: If a defense acts in training.
    """
    for defense in defenses:
        if type(defense.component).training_loss is not Defense.training_loss:
            raise RequestError(f'"{defense.label}" acts in training, and a vote is not trained', where)
    data, seed = members[0].data, members[0].seed
    labels = [member.spec.label for member in members]
    known = [member.spec.external for member in members]
    answers = min((spec.identity["answers"] if spec else "gradients" for spec in known), key=ANSWERS.index)
    named = [defense.label for defense in defenses if defense.name != "none"]
    part = PartSpec(name="vote", label=f"vote of {len(members)}", version=1, parameters={})
    spec = ModelSpec(
        label=name or " · ".join([f"vote of {', '.join(labels)}", *named]),
        architecture=part,
        objective=part,
        balancer=_NONE,
        defenses=tuple(defense.spec() for defense in defenses),
        recipe={},
        external=ExternalSpec(
            identity={"vote": sorted(member.key for member in members), "answers": answers}, facts={"members": labels}
        ),
    )
    refused = next((member for member in members if member.refusal), None)
    return Job(
        key=model_key("float32", device, data.spec, spec, seed, None),
        data=data,
        defenses=tuple(defenses),
        seed=seed,
        spec=spec,
        refusal=None if refused is None else f'its member "{refused.spec.label}" is refused: {refused.refusal}',
        members=tuple(replace(member, cells=()) for member in members),
    )
