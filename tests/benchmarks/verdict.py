"""Verdict against passes: ``python tests/benchmarks/verdict.py TRUTHS --out runs > leaderboards/published/verdict.md``.

Every attack is put to the same images of the same networks through ``robbench.evaluate``; what is in the store is not
done again. Of networks with hundreds of images, those are taken that a short ascent breaks or comes nearest to
breaking, since on all others every attack says the same.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from proved_networks import make
from third_party_grid import FACTORY, NETWORKS

import robbench
from robbench.api.attack import attack
from robbench.core.errors import RequestError

PLUGIN = Path(__file__).with_name("verdict_attacks.py")
NEAREST = 40
SEEDS = {"strong": 5, "autoattack": 1, "thorough": 1}
OTHER_SEEDS = 2
LINES = {
    "autoattack": "AutoAttack",
    "strong-before": "`strong`, version 1",
    "thorough": "**`thorough`**",
    "strong": "**`strong`**",
    "strong[queries=94]": "`strong`, half of the queries",
    "strong[targets=0]": "`strong`, no targets",
    "margin-first": "`strong`, its first ascent on the margin",
    "no-climb": "`strong`, ascent not from where the search ended",
    "no-search": "`strong`, nine targets in place of the search",
    "two-rounds": "20 steps on the margin, two searches of 100 queries with 15 steps after each, three targets",
    "mm-like": "as the minimum-margin attack: 3 targets, 20 steps each",
    "pma-like": "as the probability-margin attack: 100 steps",
    "a3-like": "as A3: 10 runs of 25 steps",
    "apgd-margin": "Auto-PGD on the margin, 100 steps",
    "pgd[steps=20]": "PGD, 20 steps",
}


@dataclass(frozen=True)
class Subject:
    """A network and its images.

    Attributes:
        name: What the table calls it.
        model: As ``robbench.evaluate`` takes it, like the next.
        data: The images.
        eps: Size of change in Linf.
        seen: Whether ``strong`` was designed on it.
        plain: Whether it has no further scores, which cost passes of their own.
        options: Further arguments of ``robbench.evaluate``.
    """

    name: str
    model: str
    data: Any
    eps: str
    seen: bool
    plain: bool
    options: Mapping[str, Any] = field(default_factory=dict)


def others(folder: Path) -> Iterator[Subject]:
    """Networks that others trained."""
    for network in NETWORKS:
        path = folder / f"{network.file}.npz"
        with np.load(path, allow_pickle=False) as arrays:
            options: dict[str, Any] = {key: arrays[key].tolist() for key in ("mean", "std") if key in arrays}
            images, labels = arrays["images"], arrays["labels"]
        nearest = _nearest(str(path), images, labels, network.eps) if network.images > 100 else slice(None)
        options |= {"arguments": {"path": str(path)}, "num_classes": 10}
        name = network.file.removesuffix("_no_maxpool_tiny")
        yield Subject(name, FACTORY, (images[nearest], labels[nearest]), network.eps, True, True, options)


def _nearest(path: str, images: np.ndarray, labels: np.ndarray, eps: str) -> np.ndarray:
    """The images that ten steps of gradient ascent break, and those next to them by their margin there."""
    model, right = make(path).eval(), []
    margins = np.full(len(images), -np.inf)
    for start in range(0, len(images), 1000):
        part = slice(start, start + 1000)
        x, y = torch.from_numpy(images[part]).float() / 255, torch.from_numpy(labels[part])
        changed = torch.from_numpy(np.asarray(attack("ascent", steps=10)(model, x, y, eps=float(Fraction(eps)))))
        with torch.no_grad():
            right.append((model(x).argmax(dim=1) == y).numpy())
            scores = model(changed)
        rivals = scores.scatter(1, y[:, None], -torch.inf).amax(dim=1)
        margins[part] = (rivals - scores.gather(1, y[:, None])[:, 0]).numpy()
    margins[~np.concatenate(right)] = -np.inf
    broken = int((margins > 0).sum())
    return np.sort(np.argsort(-margins, kind="stable")[: broken + NEAREST])


def ours(out: Path, data_dir: str | None) -> Iterator[Subject]:
    """Networks that robbench trains: with FGM, shallow and deep, of both objectives, on digits and CIFAR-10."""
    asked = (
        ("digits, compact CNN", "digits", "cross-entropy", "compact-cnn", 20, "0.1", 150, True),
        ("digits, ResNet-18", "digits", "cross-entropy", "resnet18", 20, "0.1", 60, True),
        ("digits, embedding", "digits", "angular", "compact-cnn", 20, "0.1", 80, True),
        ("imbalanced digits, small CNN", "digits-imbalanced", "cross-entropy", "small-cnn", 20, "0.1", 100, False),
        ("CIFAR-10, small CNN", "cifar10", "cross-entropy", "small-cnn", 3, "8/255", 80, False),
    )
    for name, dataset, objective, architecture, epochs, eps, images, seen in asked:
        store = out / _folder(name)
        store.mkdir(parents=True, exist_ok=True)
        grid = store / "train.toml"
        grid.write_text(
            f'datasets = ["{dataset}"]\nconditions = ["clean"]\n[[models]]\nobjective = "{objective}"\n'
            f'architecture = "{architecture}"\ndefense = "fgm"\nrecipe = {{ epochs = {epochs} }}\n'
        )
        options: dict[str, Any] = {} if data_dir is None else {"data_dir": Path(data_dir)}
        try:
            robbench.run(grid, out=store, **options)
        except RequestError as error:
            print(f"{name} left out: {error}", file=sys.stderr)
            continue
        (model,) = (store / "models").iterdir()
        plain, options = objective != "angular", {"limit": images, **options}
        yield Subject(name, f"store:{model.name}", dataset, eps, seen, plain, options)


def verdicts(subject: Subject, out: Path) -> Iterator[tuple[str, int, list[float]]]:
    """For each attack and seed, how many right images it breaks, and what the samples that it leaves cost."""
    own = subject.model.startswith("store:")
    for seed in range(max(SEEDS.values())):
        lines = [line for line in LINES if seed < SEEDS.get(line, OTHER_SEEDS)]
        report = robbench.evaluate(
            subject.model,
            subject.data,
            attacks=[f"{line}@{subject.eps}" for line in lines],
            eps=[subject.eps],
            seed=seed,
            plugins=[PLUGIN],
            out=out / _folder(subject.name) if own else out / "others",
            name=subject.name,
            **subject.options,
        )
        for line in lines:
            outcome = report.outcome(f"{line}@{subject.eps}")
            right = outcome.clean == outcome.labels
            left = outcome.robust & right
            yield line, int((right & ~left).sum()), (outcome.forwards + outcome.backwards)[left].tolist()
        print(f"{subject.name}, seed {seed} done", file=sys.stderr, flush=True)


def rows(subjects: list[Subject], out: Path) -> Iterator[tuple[str, list[float], float]]:
    """For each attack, the mean number of right images that it breaks on each network, and a survivor's passes."""
    broken = {line: {subject.name: list[int]() for subject in subjects} for line in LINES}
    passes = {line: list[float]() for line in LINES}
    for subject in subjects:
        for line, count, spent in verdicts(subject, out):
            broken[line][subject.name].append(count)
            passes[line] += spent if subject.plain else []
    for line in LINES:
        yield line, [statistics.mean(counts) for counts in broken[line].values()], statistics.median(passes[line])


def _folder(name: str) -> str:
    return name.replace(", ", "-").replace(" ", "-").lower()


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("truths", type=Path)
    parser.add_argument("--out", type=Path, default=Path("runs"))
    parser.add_argument("--data-dir")
    options = parser.parse_args()
    subjects = [*others(options.truths), *ours(options.out, options.data_dir)]
    found = list(rows(subjects, options.out))
    reference = next(broken for line, broken, _ in found if line == "autoattack")
    most = next(passes for line, _, passes in found if line == "autoattack")
    print("# Verdict against passes\n")
    strong = next((broken, passes) for line, broken, passes in found if line == "strong")
    short = sum(max(a - b, 0) for a, b in zip(reference, strong[0], strict=True))
    print(
        f"`strong` breaks {sum(strong[0]):.1f} images of {len(subjects)} networks where AutoAttack breaks "
        f"{sum(reference):.1f}, at {100 * strong[1] / most:.1f} % of its passes; summed over the networks where it "
        f"breaks fewer, {short:.1f} images are missing.\n"
    )
    print("| attack | passes on a survivor | of AutoAttack's | " + " | ".join(s.name for s in subjects) + " | sum |")
    print("|:--|--:|--:|" + "--:|" * (len(subjects) + 1))
    for line, broken, passes in found:
        cells = [f"{value:g}" if value == int(value) else f"{value:.1f}" for value in broken]
        share = f"{100 * passes / most:.1f} %"
        print(f"| {LINES[line]} | {passes:,.0f} | {share} | " + " | ".join(cells) + f" | {sum(broken):.1f} |")
    sizes = ", ".join(f"{s.name} {s.eps}" for s in subjects)
    held = ", ".join(s.name for s in subjects if not s.seen)
    print(
        f"\nRight images that an attack breaks, in Linf; `strong`: mean of {SEEDS['strong']} seeds, AutoAttack and "
        f"`thorough`: one, others: {OTHER_SEEDS}. Forward and backward passes on a sample that no part breaks, "
        f"median over networks but the embedding, whose further scores are attacked too. Sizes: {sizes}. `strong` "
        f"was not designed on: {held}. The first five networks are [others'](../README.md); of those with more than"
        f" 100 images, the ones are taken that ten steps break and the {NEAREST} next to them. Lines that follow a "
        f"published attack use its losses, targets and number of steps with this package's ascent, and are no "
        f"reproductions. Made by `python tests/benchmarks/verdict.py`."
    )


if __name__ == "__main__":
    main()
