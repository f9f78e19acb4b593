"""A cell's outcome: arrays with one entry per sample, each declared once. Needs no torch."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from robbench.results.npz import read_npz

ConditionKind = Literal["clean", "natural", "attack", "chain", "union", "certificate"]

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class ArraySpec:
    """Declaration of one array of an outcome: what writing, reading, verifying, merging and tabulating it need.

    Attributes:
        meaning: What an entry says.
        dtype: Type of an entry.
        holds: ``ids`` (none twice), ``classes``, ``sizes`` (finite, not negative) or ``marks``.
        least: For classes the smallest number allowed: -1 where an entry may be of no class.
        columns: ``one`` entry per sample, ``any`` number of them, or one per class (``classes``) or none.
        fill: The entry of a sample to which the condition was not applied: a value, or the array to copy it from.
            None for what has to be given.
        attempts: What two attempts at the same samples give together: the first one's entry (``first``), that of the
            stronger attempt (``stronger``), whether it holds in ``any``, or the ``sum``.
        since: Record schema that brought the array; files of older ones are read with ``fill``. From schema 4 on, an
            array that holds nothing else is not written, so that files and hashes of older outcomes stay as they are.
    """

    meaning: str
    dtype: type[np.generic]
    holds: Literal["ids", "classes", "sizes", "marks"]
    least: int = 0
    columns: Literal["one", "any", "classes"] = "one"
    fill: float | str | None = None
    attempts: Literal["first", "stronger", "any", "sum"] = "first"
    since: int = 1

    def filled(self, known: Mapping[str, Any]) -> NDArray[Any]:
        """The array of samples to which the condition was not applied.

        Args:
            known: The arrays declared before it.
        """
        if isinstance(self.fill, str):
            return np.array(known[self.fill], dtype=self.dtype)
        size = len(known["ids"])
        return np.full((size,) if self.columns == "one" else (size, 0), self.fill or 0, dtype=self.dtype)

    def together(self, first: NDArray[Any], second: NDArray[Any], stronger: Bools) -> NDArray[Any]:
        """The array of two attempts at the same samples.

        Args:
            first: Of one attempt.
            second: Of the other.
            stronger: Where the second is the stronger one, shape ``(N,)``.
        """
        joined: NDArray[Any] = first
        if self.attempts == "stronger":
            joined = np.where(stronger, second, first)
        elif self.attempts == "any":
            joined = first | second
        elif self.attempts == "sum":
            joined = first + second
        return joined

    def fault(self, array: NDArray[Any], size: int, num_classes: int) -> str | None:
        """What in an array is not as it is declared, or None.

        Args:
            array: The array.
            size: Number of samples.
            num_classes: Number of classes K.
        """
        width = array.shape[1:2] or (0,)
        shapes = {"one": [(size,)], "any": [(size, *width)], "classes": [(size, 0), (size, num_classes)]}
        if array.dtype != self.dtype or array.shape not in shapes[self.columns]:
            return f"is {array.dtype} of shape {array.shape}, not {size} of {np.dtype(self.dtype)}"
        if self.holds == "ids" and len(np.unique(array)) != size:
            return "holds a sample twice"
        if self.holds == "classes" and array.size and not self.least <= array.min() <= array.max() < num_classes:
            return "names classes that are not there"
        if self.holds == "sizes" and not (np.isfinite(array) & (array >= 0)).all():
            return "holds numbers that are no sizes"
        return None


def classes(meaning: str, **rest: Any) -> dict[str, ArraySpec]:
    """Metadata of a field that holds classes."""
    return {"array": ArraySpec(meaning, np.int64, "classes", **rest)}


def sizes(meaning: str, attempts: Literal["stronger", "sum"], **rest: Any) -> dict[str, ArraySpec]:
    """Metadata of a field that holds sizes or counts, 0 where the condition was not applied."""
    return {"array": ArraySpec(meaning, np.float64, "sizes", fill=0.0, attempts=attempts, **rest)}


def marks(meaning: str, **rest: Any) -> dict[str, ArraySpec]:
    """Metadata of a field that holds truth values, False where the condition was not applied."""
    return {"array": ArraySpec(meaning, np.bool_, "marks", **{"fill": False, **rest})}


@dataclass(frozen=True)
class Outcome:
    """The arrays of one cell, one entry per test sample, in the order of the samples' ids; not to be written to.

    Each array is declared here and nowhere else; see ``ArraySpec``.
    """

    ids: Ints = field(metadata={"array": ArraySpec("sample ids", np.int64, "ids")})
    labels: Ints = field(metadata=classes("true classes"))
    clean: Ints = field(
        metadata=classes("predictions on the clean images; a wrong class where a score is not finite or it is rejected")
    )
    final: Ints = field(
        metadata=classes(
            "predictions after the condition, a wrong class where a score is not finite; the clean one where it was "
            "not applied",
            fill="clean",
            attempts="stronger",
        )
    )
    rounded: Ints = field(
        metadata=classes(
            "predictions on the attacked images rounded to 8 bits; as final", fill="clean", attempts="stronger"
        )
    )
    attempted: Bools = field(metadata=marks("whether the condition was applied", attempts="any"))
    targets: Ints = field(
        metadata=classes(
            "target class at which final was reached, -1 where there is none", least=-1, fill=-1, attempts="stronger"
        )
    )
    draws: Ints = field(
        metadata=classes(
            "predictions after each independent random draw, shape (N, D); the first column is final; D is 0 for "
            "conditions that are no random transform",
            columns="any",
            fill=0,
        )
    )
    every_target: Ints = field(
        metadata=classes(
            "for conditions that try all targets in turn the prediction after each, shape (N, K) by target, -1 at the "
            "true class and where nothing was tried; otherwise shape (N, 0)",
            least=-1,
            columns="classes",
            fill=-1,
        )
    )
    linf: Floats = field(metadata=sizes("Linf norm of the whole change", "stronger"))
    l2: Floats = field(metadata=sizes("L2 norm of the whole change", "stronger"))
    l1: Floats = field(metadata=sizes("L1 norm of the whole change", "stronger"))
    l0: Floats = field(metadata=sizes("L0 norm of the whole change: changed values", "stronger"))
    forwards: Floats = field(
        metadata=sizes("forward passes; fractions where an attack's calls cannot be told apart by sample", "sum")
    )
    backwards: Floats = field(metadata=sizes("backward passes, likewise", "sum"))
    scored: Ints = field(
        metadata=classes(
            "arg max of the differentiable scores on the changed image; final where nobody looked",
            fill="final",
            attempts="stronger",
            since=2,
        )
    )
    flat: Bools = field(
        metadata=marks(
            "whether the input gradient at the clean image is zero under both cross-entropy and margin loss; "
            "measured in the clean condition alone",
            since=2,
        )
    )
    flat_ce: Bools = field(
        metadata=marks(
            "whether it is zero, too small for its type or not finite under cross-entropy", fill="flat", since=4
        )
    )
    flat_margin: Bools = field(
        metadata=marks("the same under the margin to the best other class", fill="flat", since=4)
    )
    flat_dlr: Bools = field(metadata=marks("the same under the difference of logits ratio", fill="flat", since=4))
    flat_between: Bools = field(
        metadata=marks(
            "whether it is so under every loss a fraction of a level beside the 8-bit values of the clean image, and "
            "not on them; measured in the clean condition alone",
            since=4,
        )
    )
    non_finite: Bools = field(
        metadata=marks(
            "whether a score is infinite or no number on the changed image, in the clean condition on the clean one",
            attempts="any",
            since=4,
        )
    )
    searched: Bools = field(
        metadata=marks(
            "whether a part of the attack that searches without gradients fooled the model after those that follow "
            "them had not",
            attempts="any",
            since=4,
        )
    )
    rejected: Bools = field(
        metadata=marks(
            "whether the model rejects the changed image, in the clean condition the clean one; final is then the true "
            "class where an attack made the image and a wrong one elsewhere",
            attempts="stronger",
            since=4,
        )
    )
    certified: Bools = field(
        metadata=marks(
            "whether the prediction is proved to stay within the condition's eps; attempted where the clean prediction "
            "is right",
            since=4,
        )
    )
    radius: Floats = field(
        metadata=sizes("the size of change up to which that is proved, 0 where nothing is", "stronger", since=4)
    )
    chance: Floats = field(
        metadata=sizes(
            "the chance, at most, that a change within eps alters the prediction all the same; 0 for proofs that are "
            "certain",
            "stronger",
            since=4,
        )
    )
    num_classes: int
    """Number of classes K."""
    kind: ConditionKind
    """Kind of the condition."""

    def __post_init__(self) -> None:
        """Let nobody write to what was judged: an array over bytes cannot be made writeable."""
        for name in self.arrays():
            array = np.asarray(getattr(self, name))
            owner: object = array.base
            if not isinstance(owner, bytes):
                array = np.ndarray(array.shape, array.dtype, array.tobytes())
            object.__setattr__(self, name, array)

    def __len__(self) -> int:
        """The number of samples."""
        return len(self.ids)

    @classmethod
    def arrays(cls) -> dict[str, ArraySpec]:
        """The declarations by name, in the order in which arrays are written."""
        return {item.name: item.metadata["array"] for item in fields(cls) if "array" in item.metadata}

    @classmethod
    def of(cls, num_classes: int, kind: ConditionKind, **arrays: NDArray[Any]) -> Self:
        """An outcome of some arrays; the others are those of a condition that was not applied.

        Args:
            num_classes: Number of classes K.
            kind: Of the condition.
            **arrays: ``ids``, ``labels``, ``clean`` and whichever others there are.
        """
        for name, spec in cls.arrays().items():
            if name not in arrays and spec.fill is not None:
                arrays[name] = spec.filled(arrays)
        return cls(num_classes=num_classes, kind=kind, **arrays)

    @property
    def robust(self) -> Bools:
        """Whether the prediction is right both on the clean image and after the condition; shape ``(N,)``.

        For natural perturbations, which have no adversary, right after the condition alone; for certificates, proved
        right.
        """
        right: Bools = np.equal(self.final, self.labels)
        if self.kind == "certificate":
            right = right & self.certified
        return right if self.kind == "natural" else right & np.equal(self.clean, self.labels)

    def together(self, other: Self, stronger: Bools) -> Self:
        """What two attempts at the same samples give together; see ``ArraySpec.attempts``.

        Args:
            other: The second attempt.
            stronger: Where it is the stronger one, shape ``(N,)``.
        """
        pairs = ((name, spec, getattr(self, name), getattr(other, name)) for name, spec in self.arrays().items())
        arrays: dict[str, Any] = {name: spec.together(first, second, stronger) for name, spec, first, second in pairs}
        return replace(self, **arrays)

    def written(self) -> dict[str, NDArray[Any]]:
        """The arrays that are written, number of classes and kind among them; see ``ArraySpec.since``."""
        arrays = {item.name: np.asarray(getattr(self, item.name)) for item in fields(self)}
        implied = {
            name
            for name, spec in self.arrays().items()
            if spec.since >= 4 and np.array_equal(arrays[name], spec.filled(arrays))
        }
        return {name: array for name, array in arrays.items() if name not in implied}

    def to_bytes(self) -> bytes:
        """The outcome as an uncompressed npz, the same bytes for the same arrays."""
        buffer = io.BytesIO()
        written: dict[str, Any] = self.written()
        np.savez(buffer, **written)
        return buffer.getvalue()

    def sha256(self) -> str:
        """The hash that a record keeps of its outcome."""
        return hashlib.sha256(self.to_bytes()).hexdigest()

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """The outcome that ``to_bytes`` wrote, here or in an older version.

        Raises:
            ValueError: If it is none.
        """
        # Uncompressed, so that it holds no more than it is long.
        values: dict[str, Any] = dict(read_npz(io.BytesIO(data), len(data)))
        for name, spec in cls.arrays().items():
            if name not in values and spec.since > 1:
                values[name] = spec.filled(values)
        return cls(**values | {"num_classes": int(values["num_classes"]), "kind": str(values["kind"])})
