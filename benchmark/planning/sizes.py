"""Sizes of change as conditions name them."""

from __future__ import annotations

from collections.abc import Mapping

from robbench.core.component import number
from robbench.core.errors import RequestError
from robbench.core.threat_model import Norm, asked_threat
from robbench.data.dataset import EpsList
from robbench.planning.component_spec import split_outside_brackets


def partition_outside(text: str, separator: str) -> tuple[str, str, str]:
    """``str.partition`` at the first separator outside brackets."""
    head, *rest = split_outside_brackets(text, separator)
    return head, separator if rest else "", separator.join(rest)


def sizes_named(text: str, norm: Norm, eps: Mapping[Norm, EpsList], chain: str, where: str) -> tuple[float, ...]:
    """The sizes of change that a condition names: one that is written out, ``ref`` or ``each``.

    Args:
        text: What stands behind the norm.
        norm: The norm.
        eps: The data set's eps per norm.
        chain: The condition, for messages.
        where: File and key, likewise.

    Raises:
        RequestError: If it names none.
    """
    if text in ("each", "ref"):
        if norm not in eps:
            raise RequestError(f'"{chain}": the data set has no eps in {norm}; write one out', where)
        return eps[norm].values if text == "each" else (eps[norm].reference,)
    try:
        size = number(text)
        asked_threat(norm, size)
    except ValueError as error:
        message = f'"{chain}": eps "{text}" is no size ({error}); write 0.1, 8/255, ref or each'
        raise RequestError(message, where) from None
    return (size,)
