"""Conditions, the columns of a board: read from text, resolved for a data set.

A condition is a chain of attacks joined by ``+``, each ``name[parameters]@norm:eps``; ``->rule`` at the end makes it
targeted, and ``->#2`` aims at the class of that index. ``@8/255`` leaves the norm to the attack, ``@ref`` means the
data set's reference eps and ``@each`` all of its eps in turn.

``union@linf:ref|l2:ref|l1:ref`` is the worst case over several threat models: an image counts as robust only if it is
robust to every ranking attack of each of them. It follows from the row's other cells and costs no passes.

``certify[method=crown]@8/255`` is a bound from below: an image counts only where it is proved that no change within eps
alters its prediction. It is no attack: it stands alone, takes no target, and has no part in any worst case.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Annotated, cast

from pydantic import Field

from robbench.core.attack import Attack, Needs
from robbench.core.component import Component
from robbench.core.contracts import ANSWERS, Classifier
from robbench.core.errors import RequestError, did_you_mean
from robbench.core.registry import Registry
from robbench.core.threat_model import LP_NORMS, NORMS, Norm, Threat, format_eps
from robbench.data.dataset import EpsList
from robbench.models._external.request import Answers
from robbench.planning.component_spec import Choice, choose, full_choice, size_doubts, split_outside_brackets
from robbench.planning.proofs import Proof, certifies, read_proofs
from robbench.planning.sizes import partition_outside, sizes_named
from robbench.results.schema import ConditionKind, ConditionSpec, StageSpec
from robbench.results.store import EMBEDDINGS, IMAGES

_ASKED: tuple[Needs, ...] = ("nothing", "decisions", "scores", "gradients")
"""What attacks ask of a model, in rising order: nothing, or as much as ``ANSWERS`` lists."""
TARGET_RULES = ("next", "random", "least-likely", "all")
UNION = "union"


@dataclass(frozen=True)
class Stage:
    """One attack of a chain under its own limits.

    Attributes:
        attack: The attack.
        threat: Its limits.
        usual: Whether the norm is the one that the attack means where none is named.
    """

    attack: Choice[Attack]
    threat: Threat
    usual: bool = True

    @property
    def label(self) -> str:
        """The stage as it can be asked for again."""
        if self.threat.eps is None:
            return self.attack.label if self.usual else f"{self.attack.label}@{self.threat.norm}:"
        norm = "" if self.threat.norm == "linf" else f"{self.threat.norm}:"
        return f"{self.attack.label}@{norm}{format_eps(self.threat.eps)}"

    def spec(self) -> StageSpec:
        """The stage as plain data."""
        attack = self.attack.component
        return StageSpec(
            **self.attack.spec().model_dump(),
            norm=self.threat.norm,
            eps=self.threat.eps,
            white_box=attack.white_box,
            black_box=attack.black_box,
            losses=attack.losses,
            gradient_steps=attack.gradient_steps,
            averaged_draws=attack.averaged_draws,
            through_peers=attack.needs_peers,
            bounded=attack.bounded,
            global_state=attack.global_state,
        )


@dataclass(frozen=True)
class Condition:
    """A chain of attacks, and how it is applied.

    Attributes:
        stages: The attacks in order; none for ``clean``.
        target: How targets are chosen, or None for an untargeted condition: ``next``, ``random``, ``least-likely``,
            ``all`` others in turn, or the name of a class.
        draws: Independent draws of a random transform.
        sample: Largest number of test images to apply it to, stratified; None for all.
        check: Whether it only looks into some rows or samples and has no part in the ranking.
        survivors: Whether its samples are drawn among those that the row's other attacks of its threat model left.
        undefended: Whether it is run on the model without its inference-time defenses.
        models: Labels of the rows that it is for; None for all.
        embed: How many of the images to keep embeddings of, for figures.
        union: The threat models that it is the worst case over; then there are no stages.
        keep_images: Whether to keep all attacked images as they are judged.
        proof: The certificate that stands in place of attacks.
    """

    stages: tuple[Stage, ...] = ()
    target: str | None = None
    draws: int = 1
    sample: int | None = None
    check: bool = False
    survivors: bool = False
    undefended: bool = False
    models: tuple[str, ...] | None = None
    embed: int = 0
    union: tuple[Threat, ...] = ()
    keep_images: bool = False
    proof: Proof | None = None

    @property
    def keeps(self) -> tuple[str, ...]:
        """Names of the archives that its cells are asked to leave beside their outcomes; no part of their identity."""
        images = self.keep_images and self.kind not in ("clean", "union", "certificate")
        return (*([EMBEDDINGS] if self.embed else []), *([IMAGES] if images else []))

    @property
    def kind(self) -> ConditionKind:
        """``clean``, ``natural`` (no adversary), ``attack`` (one alone), ``chain``, ``union`` or ``certificate``."""
        if self.union:
            return "union"
        if self.proof:
            return "certificate"
        if not self.stages:
            return "clean"
        if all(stage.threat.norm == "none" and not stage.attack.component.adversarial for stage in self.stages):
            return "natural"
        return "attack" if len(self.stages) == 1 else "chain"

    @property
    def label(self) -> str:
        """The condition as it can be asked for again."""
        if self.union:
            return f"{UNION}@" + "|".join(f"{threat.norm}:{format_eps(threat.radius)}" for threat in self.union)
        if self.proof:
            return self.proof.label
        text = "+".join(stage.label for stage in self.stages) or "clean"
        text = f"{text}->{self.target}" if self.target else text
        return f"{text}, undefended" if self.undefended else text

    def spec(self) -> ConditionSpec:
        """The condition as plain data."""
        return self._spec

    @cached_property
    def _spec(self) -> ConditionSpec:
        return ConditionSpec(
            label=self.label,
            kind=self.kind,
            stages=tuple(stage.spec() for stage in self.stages),
            target=self.target,
            draws=self.draws if self.kind == "natural" else 0,
            sample=self.sample,
            check=self.check,
            survivors=self.survivors,
            undefended=self.undefended,
            union=tuple((threat.norm, threat.radius) for threat in self.union),
            certificate=self.proof.spec() if self.proof else None,
        )

    def bound(self, peers: Sequence[Classifier]) -> Condition:
        """The condition with the models that its attacks work through."""
        stages = tuple(
            replace(stage, attack=replace(stage.attack, component=stage.attack.component.bind(peers)))
            for stage in self.stages
        )
        return replace(self, stages=stages)

    @property
    def ranks(self) -> bool:
        """Whether it is part of a worst case: an attack within a ball on any wrong class, and no check."""
        within = len(self.stages) == 1 and self.stages[0].threat.eps is not None
        return self.kind == "attack" and within and self.target in (None, "all") and not self.check

    def within(self, threat: Threat) -> bool:
        """Whether it is a single attack of the norm and eps of these limits."""
        own = self.stages[0].threat if len(self.stages) == 1 else None
        return own is not None and (own.norm, own.eps) == (threat.norm, threat.eps)

    @property
    def needs_peers(self) -> bool:
        """Whether any of its attacks works through other models."""
        return any(stage.attack.component.needs_peers for stage in self.stages)

    def limited(self, limit: int | None, available: int) -> Condition:
        """The condition on at most ``limit`` of the test images, of which so many are available."""
        if self.union:
            return self  # on the images of the attacks that it rests on
        size = min(size for size in (self.sample, limit, available) if size is not None)
        return replace(self, sample=None if size == available else size)

    def doubts(self, values: int) -> list[str]:
        """What is odd about its limits.

        Args:
            values: Number of values of an image, channels times height times width.
        """
        threats = [stage.threat for stage in self.stages] + ([self.proof.threat] if self.proof else [])
        odd = [f'"{self.label}": {doubt}' for threat in threats if (doubt := threat.doubt(values))]
        return [*odd, *(doubt for stage in self.stages for doubt in size_doubts(stage.attack, values))]

    def out_of_reach(self, answers: Answers) -> str | None:
        """Why it cannot be run on a model that answers no more than that, or None."""
        needs = max((_ASKED.index(stage.attack.component.needs) for stage in self.stages), default=0)
        if needs <= ANSWERS.index(answers) + 1:
            return None
        return f"needs {_ASKED[needs]}; the model answers {answers} alone"

    def refusal(self, num_classes: int) -> str | None:
        """Why it cannot be run on so many classes, or None."""
        reasons = (stage.attack.component.refusal(stage.threat, num_classes) for stage in self.stages)
        return next((reason for reason in reasons if reason), None)


@dataclass(frozen=True)
class ConditionRequest(Component):
    """A condition as a grid asks for it, before it is resolved for a data set.

    Attributes:
        chain: The chain as text.
        draws: Independent draws of a random transform.
        sample: Largest number of test images, stratified.
        check: Whether it only looks into some rows or samples, and has no part in the ranking.
        models: Labels of the rows that it is for, where it has no part in the ranking; all where it is None.
        embed: How many of the images to keep embeddings of, for figures.
        keep_images: Whether to keep all attacked images as they are judged, float32.
    """

    chain: str
    draws: Annotated[int, Field(ge=1, le=10_000)] = 1
    sample: Annotated[int, Field(ge=1)] | None = None
    check: bool = False
    models: tuple[str, ...] | None = None
    embed: Annotated[int, Field(ge=0)] = 0
    keep_images: bool = False

    @classmethod
    def read(cls, wanted: object, where: str) -> ConditionRequest:
        """Read a text or a table.

        Raises:
            RequestError: If it is neither, or a key or a value does not fit.
        """
        if isinstance(wanted, str):
            return cls(wanted)
        if isinstance(wanted, Mapping):
            return cls.make({str(key): value for key, value in wanted.items()}, where)
        raise RequestError(f"{wanted!r} is not a condition: write a text or a table with a chain", where)

    def resolve(
        self, registry: Registry, eps: Mapping[Norm, EpsList], class_names: tuple[str, ...], where: str
    ) -> list[Condition]:
        """The conditions that are meant for a data set; several where ``@each`` is used.

        Args:
            registry: The known attacks.
            eps: The data set's eps per norm.
            class_names: The data set's classes, which a target may name.
            where: File and key, for messages.

        Raises:
            RequestError: If the chain is malformed, an attack is unknown, or limits do not suit an attack.
        """
        head, _, limits = self.chain.partition("@")
        if head.strip() == UNION:
            return [self._union(limits, eps, where)]
        if certifies(self.chain):
            if self.draws > 1 or self.check or self.embed:
                raise RequestError(f'"{self.chain}": a certificate takes no draws, check or embed', where)
            proofs = read_proofs(self.chain, registry, eps, where)
            return [Condition(sample=self.sample, models=self.models, proof=proof) for proof in proofs]
        chain, arrow, rule = self.chain.partition("->")
        target = rule.strip() if arrow else None
        rules = (*TARGET_RULES, *class_names)
        if target is not None and target not in rules and target.startswith("#"):
            target = _numbered(target, class_names, self.chain, where)
        if target is not None and target not in rules:
            raise RequestError(f'"{self.chain}": there is no target "{target}"; {did_you_mean(target, rules)}', where)
        variants: list[tuple[Stage, ...]] = [()]
        for part in split_outside_brackets(chain, "+"):
            if part.strip() in ("clean", "none"):
                continue
            options = self._stages(part, registry, eps, target is not None, where)
            variants = [(*stages, stage) for stages in variants for stage in options]
        conditions = [
            Condition(
                stages,
                target,
                self.draws,
                self.sample,
                self.check,
                models=self.models,
                embed=self.embed,
                keep_images=self.keep_images,
            )
            for stages in variants
        ]
        self._check(conditions[0], where)
        return conditions

    def _union(self, limits: str, eps: Mapping[Norm, EpsList], where: str) -> Condition:
        """The worst case over several threat models, in one order whatever the one they are named in."""
        if self.draws > 1 or self.sample is not None or self.check or self.embed:
            raise RequestError(
                f'"{self.chain}": it has the images of its attacks; leave out draws, sample, check and embed',
                where,
            )
        example = "write it as union@linf:ref|l2:ref"
        threats: list[Threat] = []
        for text in limits.split("|"):
            name, colon, size = (part.strip() for part in text.partition(":"))
            norm = next((norm for norm in LP_NORMS if norm == name), None)
            if norm is None or not colon or size == "each":
                raise RequestError(f'"{self.chain}": "{text.strip()}" is no norm with one size; {example}', where)
            threats.append(Threat(norm, sizes_named(size, norm, eps, self.chain, where)[0]))
        threats.sort(key=lambda threat: (NORMS.index(threat.norm), threat.radius))
        if len(set(threats)) < max(2, len(threats)):
            raise RequestError(f'"{self.chain}": a union has two threat models or more, each once; {example}', where)
        return Condition(models=self.models, union=tuple(threats))

    def _check(self, condition: Condition, where: str) -> None:
        if self.models is not None and (condition.ranks or condition.kind == "clean"):
            raise RequestError(
                f'"{self.chain}" ranks, so it is for all models; add check = true or leave models out', where
            )
        if self.check and condition.kind != "attack":
            raise RequestError(f'"{self.chain}": only a single attack can be a check', where)
        if condition.target and condition.kind in ("clean", "natural"):
            raise RequestError(f'"{self.chain}": only attacks can have a target', where)
        if condition.target == "all" and condition.kind == "chain":
            raise RequestError(f'"{self.chain}": a chain takes one target rule, not "all"', where)
        if self.draws > 1 and condition.kind != "natural":
            raise RequestError(f'"{self.chain}": draws = {self.draws}, but only natural perturbations are drawn', where)

    def _stages(
        self, text: str, registry: Registry, eps: Mapping[Norm, EpsList], targeted: bool, where: str
    ) -> list[Stage]:
        head, at, limit = partition_outside(text.strip(), "@")
        attack: Choice[Attack] = choose(registry, "attack", head, where)
        norms = attack_norms(registry, attack)
        norm_text, colon, eps_text = limit.partition(":")
        norm = norm_text.strip() if colon else norms[0]
        eps_text = (eps_text if colon else norm_text).strip()
        if norm not in norms:
            raise RequestError(
                f'"{text}": {attack.name} works in {", ".join(norms)}, not in "{norm}"; '
                f"{did_you_mean(norm, NORMS if norm not in NORMS else norms)}",
                where,
            )
        component = attack.component
        if targeted and norm != "none" and not component.targetable:
            raise RequestError(f'"{self.chain}": {attack.name} takes no target', where)
        targeted = targeted and component.targetable
        if norm == "none" or not component.bounded:
            if at and eps_text:
                variants = [full_choice(attack, variant) for variant in component.variants(eps_text)]
                if not variants:
                    raise RequestError(f'"{text}": {attack.name} takes no eps', where)
                return [Stage(variant, Threat(norm, None, targeted)) for variant in variants]
            return [Stage(attack, Threat(norm, None, targeted), usual=norm == norms[0])]
        if not at or not eps_text:
            raise RequestError(f'"{text}": {attack.name} needs an eps, as in "{head}@ref" or "{head}@0.1"', where)
        return [Stage(attack, Threat(norm, size, targeted)) for size in sizes_named(eps_text, norm, eps, text, where)]


def attack_norms(registry: Registry, attack: Choice[Attack]) -> tuple[Norm, ...]:
    """The norms that a chosen attack works in, its usual one first."""
    if attack.name.startswith("art:"):
        return cast(tuple[Norm, ...], attack.component.norms)  # type: ignore[attr-defined]
    return registry.entry("attack", attack.name).mark.norms


def _numbered(target: str, class_names: tuple[str, ...], chain: str, where: str) -> str:
    number = target.removeprefix("#")
    if not number.isascii() or not number.isdigit() or int(number) >= len(class_names):
        last = len(class_names) - 1
        raise RequestError(f'"{chain}": there is no class "{target}"; they are numbered #0 to #{last}', where)
    return class_names[int(number)]
