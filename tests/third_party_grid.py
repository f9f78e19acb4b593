"""The grid of the board ``third-party``: ``python tests/third_party_grid.py FOLDER > third-party.toml``."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

TJENG = "MIPVerify_data 35578a1 (Tjeng et al., ICLR 2019)"
ZHANG = "alpha-beta-CROWN 8250d5f (Zhang et al., 2022)"


@dataclass(frozen=True)
class Network:
    """A network with its images, and what is proved of it.

    Attributes:
        file: Name of the file.
        eps: Size of change in Linf, as text.
        images: Number of images.
        low: The least share of them that is robust.
        high: The greatest.
        trained: Who trained it.
        proved: Who proved it.
        license: That of the network.
    """

    file: str
    eps: str
    images: int
    low: float
    high: float
    trained: str
    proved: str
    license: str


NETWORKS = (
    Network("wk17a_mnist", "0.1", 10_000, 0.9562, 0.9562, "Wong and Kolter, 2018", f"exact, {TJENG}", "MIT"),
    Network("rsl18a_mnist", "0.1", 10_000, 0.6919, 0.8564, "Raghunathan et al., 2018", TJENG, "MIT"),
    Network("sdp_cifar_cnn_a_adv", "2/255", 200, 0.485, 1.0, "Dathathri et al., 2020", ZHANG, "BSD-3-Clause"),
    Network("sdp_cifar_cnn_a_mix", "2/255", 200, 0.48, 1.0, "Dathathri et al., 2020", ZHANG, "BSD-3-Clause"),
    Network(
        "hard_mnist_MadryCNN_no_maxpool_tiny",
        "0.3",
        20,
        0.0,
        0.0,
        "Zhang et al., 2022",
        f"exact, {ZHANG}",
        "BSD-3-Clause",
    ),
)

FACTORY = f"{Path(__file__).with_name('proved_networks.py').resolve()}:make"

CONDITIONS = ("clean", "fgsm@ref", "pgd[steps=20]@ref", "apgd-margin@ref", "strong@ref")


def grid(folder: Path, networks: tuple[Network, ...] = NETWORKS, conditions: tuple[str, ...] = CONDITIONS) -> str:
    """The grid as TOML.

    Args:
        folder: Where the files of the networks are.
        networks: Those to evaluate.
        conditions: What they are put to.
    """
    lines = [
        'title = "Networks of others, with proved robustness"',
        "about = \"Each attack beside what a solver or a verifier proved. Networks and images are others' and are not "
        'part of robbench."',
        f"conditions = {list(conditions)}",
        "datasets = [",
        *(f"    {_dataset(folder, network)}," for network in networks),
        "]",
    ]
    for network in networks:
        path = (folder / f"{network.file}.npz").resolve()
        with np.load(path, allow_pickle=False) as arrays:
            mean, std = ([float(value) for value in arrays[name]] if name in arrays else [] for name in ("mean", "std"))
        lines += [
            "[[models]]",
            f"name = {network.file!r}",
            f"datasets = [{network.file!r}]",
            "[models.external]",
            f"source = '{FACTORY}'",
            f"arguments = {{ path = '{path}' }}",
            f"mean = {mean}",
            f"std = {std}",
            f"license = '{network.license}'",
            f"origin = 'trained by {network.trained}; {network.proved.removeprefix('exact, ')}'",
            "[[bounds]]",
            f"dataset = {network.file!r}",
            f"row = {network.file!r}",
            f"threat = 'linf@{network.eps}'",
            f"low = {network.low}",
            f"high = {network.high}",
            f"images = {network.images}",
            f"source = '{network.proved}; trained by {network.trained}'",
        ]
    return "\n".join(lines) + "\n"


def _dataset(folder: Path, network: Network) -> str:
    path = (folder / f"{network.file}.npz").resolve()
    eps = f"eps = {{ linf = ['{network.eps}'] }}"
    split = "num_classes = 10, split = [0.0, 0.0, 1.0]"
    return f"{{ name = 'arrays', path = '{path}', label = '{network.file}', {eps}, {split} }}"


if __name__ == "__main__":
    print(grid(Path(sys.argv[1])), end="")
