"""The user's own images, in one folder per class."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import Field

from robbench.core.component import NoIdentity
from robbench.core.errors import RequestError
from robbench.core.registry import register_dataset
from robbench.data.dataset import COLOR_EPS, COLOR_RECIPE, Dataset, Raw
from robbench.data.datasets._files import (
    DATA_VARIABLE,
    IMAGE_SUFFIXES,
    SPLITS,
    entries,
    is_image,
    list_images,
    named_dirs,
    shown,
    some,
    subfolders,
)
from robbench.results.schema import digest
from robbench.results.store import is_store


@register_dataset("image-folder", brief="your own images, a folder for each class")
@register_dataset(
    "image-folder-imbalanced",
    brief="your own images of three classes, 4949 : 466 : 210",
    train_shares=(1.0, 466 / 4949, 210 / 4949),
)
@dataclass(frozen=True)
class ImageFolder(Dataset):
    """Images of any size in folders that are named after their classes.

    The folder holds class folders, or folders of splits (``train`` with ``test``, and ``val`` besides, or names like
    them) which hold class folders of the same names. The images of ``val`` are added to those of ``train``, from which
    validation images are drawn; ``val`` without ``test`` is refused, since the user is to say what is tested on, and so
    are folders without images that all hold the same folders, whatever their names. Stores of robbench that lie in the
    folder are not read. What else is not read is counted and named, images behind the first of a file among it. Images
    are made square by cutting off what is longer. Where they would take more than 1 GiB, they stay in their files: they
    are indexed by the hashes of those and decoded when they are needed. The imbalanced variant has the first three
    classes, in the proportions 4949 : 466 : 210.

    Attributes:
        path: The folder; empty for the one given as data directory.
        size: Height and width to which images are scaled.
    """

    path: Annotated[str, NoIdentity] = ""
    size: Annotated[int, Field(ge=8)] = 32

    eps = COLOR_EPS
    recipe = COLOR_RECIPE

    def locate(self, data_dir: Path | None) -> tuple[str, Callable[[], Raw]]:
        """List the images.

        Raises:
            RequestError: If no folder is named, it holds no classes, or a class that is used has fewer than three
                images, naming the folder.
        """
        root = Path(self.path).expanduser() if self.path else next(iter(named_dirs(data_dir)), None)
        if root is None:
            raise RequestError(
                f"image-folder: which folder? name it with --data-dir DIR, the variable {DATA_VARIABLE} or "
                "image-folder[path=DIR]"
            )
        if not root.is_dir():
            raise RequestError(f"image-folder: {root} is not a folder")
        parts, remarks = _parts(root)
        names = _class_names(root, [part for part, _ in parts])
        images = list_images(root, names, parts)
        if not images.files:
            beside = f"; it holds {some([shown(entry.name) for entry in images.unread])}" if images.unread else ""
            raise RequestError(f"image-folder: {root} holds no images ({' '.join(IMAGE_SUFFIXES)}){beside}")
        if len(names) == 1:
            raise RequestError(f"image-folder: {root} holds one class, {names[0]}; there must be two at least")
        counts = np.bincount(images.labels, minlength=len(names))
        few = [
            f"{name} ({count})"
            for name, count in zip(names, counts, strict=True)
            if count < 3 and name in (self.classes or names)
        ]
        if few:
            raise RequestError(
                f"image-folder: in {root} too few images are of {some(few)}; a class needs at least three, to train, "
                "validate and test on"
            )
        # What stays in its files is found there again, and has to be indexed anew where they were moved.
        place = [os.path.abspath(root)] if images.large(self.size) else []
        return digest([images.stamp(), remarks, *place]), lambda: images.read(self.size, remarks)


def _parts(root: Path) -> tuple[list[tuple[str, bool]], list[str]]:
    """The folders that hold class folders, each with whether its images are test images; and what to say of that.

    Raises:
        RequestError: If it cannot be told which folders are splits and which are classes.
    """
    folders = _folders(root)
    splits: dict[str, str] = {}
    for name, path in folders.items():
        split = SPLITS.get(name.lower())
        # A class may be called "train", too; then it holds images.
        if split and _folders(Path(path)) and not any(is_image(entry) for entry in entries(path)):
            if split in splits:
                raise RequestError(
                    f'image-folder: in {root} both "{splits[split]}" and "{name}" hold {split} images; keep one of them'
                )
            splits[split] = name
    others = [name for name in folders if name not in splits.values()]
    if not splits:
        _check_depth(root, folders)
        return [("", False)], []
    train, validation, test = (splits.get(split) for split in ("train", "validation", "test"))
    if train is None or (len(splits) < 2 and others) or any(name.lower() in SPLITS for name in others):
        raise RequestError(
            f"image-folder: {root} holds {some(sorted(splits.values()))} as splits"
            + (f" beside {some(others)}" if others else " and no train")
            + "; put all class folders into train and test, or do without folders of splits"
        )
    remarks = [f"beside {train} these folders are not read: {some(others)}"] if others else []
    if validation is None:
        return [(train, False), *([(test, True)] if test else [])], remarks
    if test is None:
        # Beside a test folder, these images would be trained on; what numbers rest on must not turn round by itself.
        raise RequestError(
            f"image-folder: {root} holds {train} and {validation} and no test; to test on the images of {validation}, "
            "rename it to test"
        )
    remarks.append(f"the images of {validation} are added to those of {train}; validation images are drawn from both")
    return [(train, False), (validation, False), (test, True)], remarks


def _check_depth(root: Path, folders: Mapping[str, str]) -> None:
    """Refuse folders without images that all hold folders of the same names: those may be the classes.

    Raises:
        RequestError: If there are such, naming both.
    """
    held = [entries(path) for path in folders.values()]
    inner = [{shown(entry.name) for entry in found if entry.is_dir(follow_symlinks=False)} for found in held]
    common = sorted(set.intersection(*inner)) if len(inner) > 1 else []
    if len(common) > 1 and not any(is_image(entry) for found in held for entry in found):
        raise RequestError(
            f"image-folder: {root} holds {some(list(folders))}, each with the folders {some(common)} and no images; "
            "which are the classes? call folders of splits train and test, or put the images of each class directly "
            "into its folder"
        )


def _folders(root: Path) -> dict[str, str]:
    """The folders of a folder; a store of robbench is none.

    Raises:
        RequestError: If the folder itself is a store.
    """
    if is_store(root):
        raise RequestError(f"image-folder: {root} is a store of robbench, not images; keep them apart (--out DIR)")
    return {name: path for name, path in subfolders(root).items() if not is_store(Path(path))}


def _class_names(root: Path, parts: Sequence[str]) -> list[str]:
    """The classes, which each part has.

    Raises:
        RequestError: If a part has none, or others.
    """
    found = {part: list(_folders(root / part)) for part in parts}
    for part, names in found.items():
        if not names:
            raise RequestError(f"image-folder: {root / part} holds no folders; each class needs a folder of its own")
    names = found[parts[0]]
    odd = sorted(
        {name for held in found.values() for name in held if any(name not in other for other in found.values())}
    )
    if odd:
        raise RequestError(
            f"image-folder: not all of {', '.join(parts)} in {root} hold folders of the classes {some(odd)}"
        )
    return names
