"""Public data sets that torchvision knows how to read and download."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from robbench.core.errors import RequestError
from robbench.core.registry import register_dataset
from robbench.core.threat_model import Norm
from robbench.data.dataset import COLOR_EPS, COLOR_RECIPE, Dataset, EpsList, Raw
from robbench.data.datasets._files import download, roots
from robbench.data.datasets._image_decoding import square
from robbench.results.schema import digest

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True)
class Holder:
    """How torchvision is asked for a data set.

    Attributes:
        name: Its class in ``torchvision.datasets``.
        files: Pattern of its files below the data directory, by which it is found.
        train: Arguments for each part that is trained on.
        test: Arguments for the test images; none where the publisher set none aside.
        more: Arguments for all parts.
    """

    name: str
    files: str
    train: tuple[Mapping[str, Any], ...] = ({"split": "train"},)
    test: tuple[Mapping[str, Any], ...] = ({"split": "test"},)
    more: Mapping[str, Any] = field(default_factory=dict)

    def parts(self, root: Path, fetch: bool = False) -> Iterator[tuple[Any, bool]]:
        """Torchvision's data sets of all parts, each with whether it holds the test images."""
        from torchvision import datasets

        kind = getattr(datasets, self.name)
        for options, is_test in (*((part, False) for part in self.train), *((part, True) for part in self.test)):
            yield kind(str(root), download=fetch, **options, **self.more), is_test


_FLAG: dict[str, Any] = {"train": ({"train": True},), "test": ({"train": False},)}
_GRAY = {
    "mnist": Holder("MNIST", "MNIST/raw/*", **_FLAG),
    "kmnist": Holder("KMNIST", "KMNIST/raw/*", **_FLAG),
    "qmnist": Holder("QMNIST", "QMNIST/raw/*", ({"what": "train"},), ({"what": "test10k"},)),
    "emnist-balanced": Holder("EMNIST", "EMNIST/raw/emnist-balanced*", **_FLAG, more={"split": "balanced"}),
    "emnist-letters": Holder("EMNIST", "EMNIST/raw/emnist-letters*", **_FLAG, more={"split": "letters"}),
    "emnist-digits": Holder("EMNIST", "EMNIST/raw/emnist-digits*", **_FLAG, more={"split": "digits"}),
    "emnist-byclass": Holder("EMNIST", "EMNIST/raw/emnist-byclass*", **_FLAG, more={"split": "byclass"}),
    "usps": Holder("USPS", "usps*.bz2", **_FLAG),
}
_COLOR = {
    "cifar100": Holder("CIFAR100", "cifar-100-python/*", **_FLAG),
    "svhn": Holder("SVHN", "*_32x32.mat"),
    "stl10": Holder("STL10", "stl10_binary/*"),
    "gtsrb": Holder("GTSRB", "gtsrb/*"),
    "flowers102": Holder("Flowers102", "flowers-102/*", ({"split": "train"}, {"split": "val"})),
    "imagenette": Holder("Imagenette", "imagenette2-160/*", test=({"split": "val"},), more={"size": "160px"}),
    "food101": Holder("Food101", "food-101/*"),
    "oxford-pets": Holder("OxfordIIITPet", "oxford-iiit-pet/*", ({"split": "trainval"},)),
    "dtd": Holder("DTD", "dtd/*", ({"split": "train"}, {"split": "val"})),
    "fgvc-aircraft": Holder("FGVCAircraft", "fgvc-aircraft-2013b/*", ({"split": "trainval"},)),
    "country211": Holder("Country211", "country211/*", ({"split": "train"}, {"split": "valid"})),
    "caltech101": Holder("Caltech101", "caltech101/*", ({},), ()),
    "eurosat": Holder("EuroSAT", "eurosat/*", ({},), ()),
}


def _locate(name: str, holder: Holder, size: int, data_dir: Path | None) -> tuple[str, Callable[[], Raw]]:
    places = roots(data_dir)
    files, root = _found(places, holder)
    if root is None:
        target = download(name, holder.files, places, data_dir, lambda target: list(holder.parts(target, fetch=True)))
        files, root = _found((target,), holder)
    if root is None:
        raise RequestError(f"{name} was downloaded to {target} and is not there")
    stats = [[file.name, status.st_size, status.st_mtime_ns] for file in files for status in [file.stat()]]
    return digest(stats), lambda root=root: _read(name, holder, size, root)


def _found(places: tuple[Path, ...], holder: Holder) -> tuple[list[Path], Path | None]:
    for place in places:
        files = sorted(place.glob(holder.files))
        if files:
            return files, place
    return [], None


def _read(name: str, holder: Holder, size: int, root: Path) -> Raw:
    images: list[NDArray[np.uint8]] = []
    labels: list[int] = []
    is_test: list[bool] = []
    classes: list[str] = []
    try:
        for part, test in holder.parts(root):
            classes = classes or [str(known) for known in getattr(part, "classes", getattr(part, "categories", ()))]
            for image, label in part:
                images.append(_array(image, size))
                labels.append(int(label))
                is_test.append(test)
    except Exception as error:  # readers raise almost anything on damaged files
        raise RequestError(
            f"{name} in {root} is damaged or not whole ({error}); remove it to download it again"
        ) from error
    if len({image.shape for image in images}) > 1:
        raise RequestError(f"{name}: its images differ in size; scale them, as in {name}[size=64]")
    present, indices = np.unique(np.array(labels, dtype=np.int64), return_inverse=True)
    named = len(classes) > int(present[-1])
    names = tuple(classes[value] if named else str(value) for value in present)
    return Raw(np.stack(images), indices.astype(np.int64), names, np.array(is_test, dtype=np.bool_))


def _array(image: Image, size: int) -> NDArray[np.uint8]:
    """An image, uint8, shape ``(1, H, W)`` or ``(3, H, W)``; made square where a size is asked for."""
    if size:
        image = square(image.convert("RGB"), size)
    array = np.asarray(image if image.mode in ("L", "RGB") else image.convert("RGB"))
    return array[None] if array.ndim == 2 else array.transpose(2, 0, 1)


@register_dataset("mnist", brief="70,000 handwritten digits, gray, 28 × 28")
@register_dataset("kmnist", brief="70,000 Japanese characters in ten classes, gray", which="kmnist")
@register_dataset("qmnist", brief="MNIST with its 10,000 test digits found again", which="qmnist")
@register_dataset("emnist-balanced", brief="131,600 letters and digits in 47 classes", which="emnist-balanced")
@register_dataset("emnist-letters", brief="145,600 letters in 26 classes", which="emnist-letters")
@register_dataset("emnist-digits", brief="280,000 digits", which="emnist-digits")
@register_dataset("emnist-byclass", brief="814,255 letters and digits in 62 classes", which="emnist-byclass")
@register_dataset("usps", brief="9,298 digits from envelopes, gray, 16 × 16", which="usps")
@dataclass(frozen=True)
class HandwrittenCharacters(Dataset):
    """Handwritten characters in gray, one channel, at their own size, as torchvision reads and downloads them.

    MNIST (LeCun et al., 1998), KMNIST (Clanuwat et al., 2018), QMNIST (Yadav and Bottou, 2019), EMNIST (Cohen et al.,
    2017) and USPS (Hull, 1994), with the publishers' test images.

    Attributes:
        which: Which of them.
    """

    which: Literal[
        "mnist",
        "kmnist",
        "qmnist",
        "emnist-balanced",
        "emnist-letters",
        "emnist-digits",
        "emnist-byclass",
        "usps",
    ] = "mnist"
    split: tuple[float, float, float] = (0.8, 0.05, 0.15)

    eps: ClassVar[Mapping[Norm, EpsList]] = {
        "linf": EpsList((0.1, 0.2, 0.3), reference=0.3),
        "l2": EpsList((1.0, 1.5, 2.0), reference=1.5),
        "l1": EpsList((5.0, 10.0, 20.0), reference=10.0),
    }
    recipe: ClassVar[Mapping[str, object]] = {
        "architecture": "compact-cnn",
        "epochs": 5,
        "batch_size": 128,
        "lr": 0.003,
    }

    def locate(self, data_dir: Path | None) -> tuple[str, Callable[[], Raw]]:
        """Find or download the files, where torchvision looks for them below each directory for data.

        Raises:
            RequestError: If they are not found and cannot be downloaded.
        """
        return _locate(self.which, _GRAY[self.which], 0, data_dir)


@register_dataset("cifar100", brief="60,000 photographs in a hundred classes")
@register_dataset("svhn", brief="99,289 house numbers in ten classes", which="svhn")
@register_dataset("stl10", brief="13,000 photographs in ten classes, 96 × 96", which="stl10")
@register_dataset("gtsrb", brief="39,270 traffic signs in 43 classes, scaled to 32 × 32", which="gtsrb", size=32)
@register_dataset("flowers102", brief="8,189 photographs of 102 flowers, 64 × 64", which="flowers102", size=64)
@register_dataset(
    "imagenette", brief="13,394 photographs, ten classes of ImageNet, 64 × 64", which="imagenette", size=64
)
@register_dataset("food101", brief="101,000 photographs of 101 dishes, 64 × 64", which="food101", size=64)
@register_dataset("oxford-pets", brief="7,349 photographs of 37 breeds, 64 × 64", which="oxford-pets", size=64)
@register_dataset("dtd", brief="5,640 textures in 47 classes, 64 × 64", which="dtd", size=64)
@register_dataset("fgvc-aircraft", brief="10,000 photographs of 100 aircraft, 64 × 64", which="fgvc-aircraft", size=64)
@register_dataset("country211", brief="63,300 photographs of 211 countries, 64 × 64", which="country211", size=64)
@register_dataset("caltech101", brief="8,677 photographs of 101 things, 64 × 64", which="caltech101", size=64)
@register_dataset("eurosat", brief="27,000 satellite images in ten classes, 64 × 64", which="eurosat")
@dataclass(frozen=True)
class Photographs(Dataset):
    """Color images, as torchvision reads and downloads them, with the publishers' test images where there are any.

    Attributes:
        which: Which of torchvision's data sets.
        size: Height and width to which images are scaled, the longer side cut; 0 for their own size.
    """

    which: Literal[
        "cifar100",
        "svhn",
        "stl10",
        "gtsrb",
        "flowers102",
        "imagenette",
        "food101",
        "oxford-pets",
        "dtd",
        "fgvc-aircraft",
        "country211",
        "caltech101",
        "eurosat",
    ] = "cifar100"
    size: Annotated[int, Field(ge=0)] = 0
    split: tuple[float, float, float] = (0.75, 0.1, 0.15)

    eps = COLOR_EPS
    recipe = COLOR_RECIPE

    def locate(self, data_dir: Path | None) -> tuple[str, Callable[[], Raw]]:
        """Find or download the files, where torchvision looks for them below each directory for data.

        Raises:
            RequestError: If they are not found and cannot be downloaded.
        """
        return _locate(self.which, _COLOR[self.which], self.size, data_dir)
