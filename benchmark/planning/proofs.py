"""Conditions that prove: ``certify[method=NAME]@eps``, read from text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from robbench.core.certificate import Certificate
from robbench.core.errors import RequestError, did_you_mean
from robbench.core.registry import Registry
from robbench.core.threat_model import Norm, Threat, format_eps
from robbench.data.dataset import EpsList
from robbench.planning.component_spec import Choice, choose, read_text, split_outside_brackets
from robbench.planning.sizes import partition_outside, sizes_named
from robbench.results.schema import CertificateSpec

CERTIFY = "certify"


@dataclass(frozen=True)
class Proof:
    """A certificate and what it is to prove.

    Attributes:
        method: The certificate.
        threat: The ball within which predictions are to stay.
    """

    method: Choice[Certificate]
    threat: Threat

    @property
    def label(self) -> str:
        """The condition as it can be asked for again."""
        name, bracket, options = self.method.label.partition("[")
        norm = "" if self.threat.norm == "linf" else f"{self.threat.norm}:"
        inside = f"method={name}{',' if bracket else ''}{options.removesuffix(']')}"
        return f"{CERTIFY}[{inside}]@{norm}{format_eps(self.threat.radius)}"

    def spec(self) -> CertificateSpec:
        """The proof as plain data."""
        return CertificateSpec(**self.method.spec().model_dump(), norm=self.threat.norm, eps=self.threat.radius)


def certifies(chain: str) -> bool:
    """Whether a condition asks for a certificate, rightly or not."""
    parts = split_outside_brackets(chain.partition("->")[0], "+")
    return any(part.partition("@")[0].partition("[")[0].strip() == CERTIFY for part in parts)


def read_proofs(chain: str, registry: Registry, eps: Mapping[Norm, EpsList], where: str) -> list[Proof]:
    """What ``certify[method=NAME]@eps`` asks to prove, for one size of change or several.

    Args:
        chain: The condition.
        registry: The known certificates.
        eps: The data set's eps per norm.
        where: File and key, for messages.

    Raises:
        RequestError: If it is part of a chain or has a target, its method is unknown, or is not sound for the norm.
    """
    if "->" in chain or len(split_outside_brackets(chain, "+")) > 1:
        raise RequestError(f'"{chain}": a certificate is no attack: it stands alone and takes no target', where)
    head, _, limit = partition_outside(chain.strip(), "@")
    _, options = read_text(head, where)
    name = options.pop("method", None)
    if name is None:
        known = ", ".join(registry.entries("certificate"))
        raise RequestError(f'"{chain}": say by which method, as in certify[method=crown]; known: {known}', where)
    method: Choice[Certificate] = choose(registry, "certificate", {"name": name, **options}, where)
    norms = registry.entry("certificate", method.name).mark.norms
    named, colon, size = limit.partition(":")
    norm = next((norm for norm in norms if norm == named.strip()), None) if colon else norms[0]
    if norm is None:
        reason = f'{method.name} is sound for {", ".join(norms)}, not for "{named.strip()}"'
        raise RequestError(f'"{chain}": {reason}; {did_you_mean(named.strip(), norms)}', where)
    sizes = sizes_named((size if colon else named).strip(), norm, eps, chain, where)
    return [Proof(method, Threat(norm, size)) for size in sizes]
