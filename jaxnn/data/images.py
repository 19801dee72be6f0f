"""Folders of images, one folder a class, decoded when they are taken.

Whatever cannot be used is found by a look at each file's header and last bytes before training starts, and told at
once. What can be used is made the same: see `ImageFolder` for what becomes of grey, transparent, CMYK, palette and
16-bit images.
"""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxnn.data import order
from jaxnn.data.given import example_numbers, is_size
from jaxnn.data.image_files import beside, check, classes_of, image_files, pillow, upright
from jaxnn.typing import HostArray

_MODES = {1: "L", 3: "RGB", 4: "RGBA"}


class ImageFiles:
    """Image files without labels: examples are {"x": float32 [B, height, width, channels] in [0, 1]}.

    Decoded as in `ImageFolder`. For predictions: `train.predict(task, state, ImageFiles("new/", size))` is in the order
    of `files`.

    Attributes:
        files: Paths, by example.
    """

    where = "data.ImageFiles"

    def __init__(
        self,
        files: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
        size: tuple[int, int],
        channels: int = 3,
    ):
        """Takes the files and looks at each.

        Args:
            files: A folder, whose images are taken sorted by path, at any depth; or paths, in their order.
            size: (height, width) in pixels.
            channels: 1 (grey), 3 (RGB) or 4 (RGBA).

        Raises:
            ValueError: If there are none, one cannot be read as an image, or size or channels are impossible.
            ImportError: If Pillow is not installed.
        """
        self._settings(size, channels)
        if isinstance(files, str | os.PathLike):
            root = Path(files).expanduser()
            if not root.is_dir():
                raise ValueError(
                    f"{self.where}: {str(root)!r} is no folder. Tried: listing it. Give a folder, or a list of files."
                )
            self.files = image_files(self.where, root)[0]
        else:
            self.files = [Path(file).expanduser() for file in files]
        if not self.files:
            raise ValueError(f"{self.where}: no images in {str(files)!r:.200}. Give a folder that holds some.")
        check(self.where, self.files)

    def _settings(self, size: tuple[int, int], channels: int) -> None:
        if not is_size(size):
            raise ValueError(
                f"{self.where}: size is {size}. Tried: (height, width) in pixels. Give two positive integers."
            )
        if channels not in _MODES:
            raise ValueError(f"{self.where}: {channels} channels. Tried: {_MODES}. Give one of their numbers.")
        self.size, self.channels = (size[0], size[1]), channels

    def __len__(self) -> int:
        return len(self.files)

    def __repr__(self) -> str:
        return f"ImageFiles({len(self)} images, {(*self.size, self.channels)})"

    def _decode(self, file: Path) -> HostArray:
        image, ops = pillow()
        try:
            with image.open(file) as opened:
                whole = upright(opened, _MODES[self.channels])
            fitted = ops.fit(whole, self.size[::-1], image.Resampling.BILINEAR)
        except Exception as error:  # Pillow's decoders raise whatever they meet
            raise ValueError(
                f"{self.where}: {str(file)!r} cannot be read as an image ({error}). Tried: decoding it, after its "
                "header and end were whole when training began. Remove or repair it."
            ) from error
        return np.asarray(fitted, np.uint8).reshape(*self.size, self.channels)

    def take(self, index: HostArray) -> dict[str, HostArray]:
        """Decodes the images `index` [B].

        Raises:
            TypeError: If they are no integers.
            ValueError: If one is not there, or cannot be decoded.
        """
        index = example_numbers(self.where, index, len(self))
        x = np.empty((len(index), *self.size, self.channels), np.float32)
        for row, i in enumerate(index):
            x[row] = self._decode(self.files[int(i)])
        x /= np.float32(255)
        return {"x": x}

    def resident(self) -> None:
        """None: decoding happens on the host."""
        return None


class ImageFolder(ImageFiles):
    """The images of `root/CLASS/*`, in the layout of ImageNet; a class is a folder, numbered in the order of its name.

    Examples are {"x": float32 [B, height, width, channels] in [0, 1], "y": int32 [B]}. An image is turned as its camera
    said, cropped around its centre to the target's proportions and resized by bilinear interpolation: the same bytes
    every time with one version of Pillow. Of whatever size and kind they are, images become alike:

    - grey fills every colour channel; colour becomes grey by luma (ITU-R 601);
    - where something is transparent, it lies on white, unless `channels` is 4; an opaque image has alpha 1 then;
    - palettes are looked up; CMYK is converted without a colour profile; 16 bits a channel are scaled to 8;
    - of an animation the first picture is taken; an orientation that cannot be read is none.

    Files that do not end like an image are passed over, hidden files and folders (".DS_Store", "._a.jpg") too.

    Attributes:
        classes: Names of the classes, by number.
        files: Paths, by example: sorted by class, then by path.
        labels: Class numbers, int32 [N].
        skipped: Files that were passed over: they do not end like an image, or lie beside the class folders.
    """

    where = "data.ImageFolder"

    def __init__(
        self,
        root: str | os.PathLike[str],
        size: tuple[int, int],
        channels: int = 3,
        *,
        classes: Sequence[str] | None = None,
    ):
        """Lists the files and looks at each one's header and end; one that looks cut short is decoded to be sure.

        Args:
            root: Folder of class folders.
            size: (height, width) in pixels.
            channels: 1 (grey), 3 (RGB) or 4 (RGBA).
            classes: Names of class folders in the order of their numbers: those of the training data, for a folder of
                validation data. By default all folders, sorted.

        Raises:
            ValueError: If the folder is missing or has no class folders, a class has no images, files cannot be read as
                images (the first are named, all are counted), the folders are parts ("train", "val") or differ only in
                case, or the size or the number of channels is impossible.
            ImportError: If Pillow is not installed.
        """
        self._settings(size, channels)
        self.root = Path(root).expanduser()
        self.classes = classes_of(self.where, self.root, classes)
        self.files: list[Path] = []
        self.skipped = beside(self.root)
        labels: list[int] = []
        empty: list[str] = []
        for label, name in enumerate(self.classes):
            found, passed = image_files(self.where, self.root / name)
            if not found:
                ends = sorted({f.suffix.lower() or f.name for f in passed})
                empty.append(f"{str(self.root / name)!r}" + (f" (only {', '.join(ends[:4])})" if ends else " (empty)"))
            self.files += found
            self.skipped += passed
            labels += [label] * len(found)
        if empty:
            shown = ", ".join(empty[:3]) + (f" and {len(empty) - 3} more" if len(empty) > 3 else "")
            raise ValueError(
                f"{self.where}: class folder {shown} has no images. Tried: files that end in .jpg, .png and the like, "
                "at any depth. Fill it or remove it."
            )
        self.labels = np.asarray(labels, np.int32)
        check(self.where, self.files)

    def __repr__(self) -> str:
        return f"ImageFolder({len(self)} images of {len(self.classes)} classes, {(*self.size, self.channels)})"

    def take(self, index: HostArray) -> dict[str, HostArray]:
        """Decodes the images `index` [B]."""
        return {**super().take(index), "y": self.labels[np.asarray(index, np.int64)]}

    def split(self, fraction: float, seed: int = 0) -> tuple["ImageFolder", "ImageFolder"]:
        """Two disjoint parts that together hold every image, each class parted alike; each in the order of the files.

        Args:
            fraction: Share of each class's images in the first part, in (0, 1), rounded so that both have at least one.
            seed: The split is a function of it and of the number of images in each class.

        Raises:
            ValueError: If the fraction is out of range, or a class has one image, which cannot be in both.
        """
        if not 0 < fraction < 1:
            raise ValueError(f"{self.where}.split: fraction is {fraction}. Tried: a share. Give one in (0, 1).")
        counts = np.bincount(self.labels, minlength=len(self.classes))
        if single := [name for name, n in zip(self.classes, counts) if n < 2]:
            shown = ", ".join(map(repr, single[:3])) + (f" and {len(single) - 3} more" if len(single) > 3 else "")
            raise ValueError(
                f"{self.where}.split: {shown} of {len(self.classes)} classes has one image, which cannot be in both "
                "parts. Tried: at least one image of each class in each part. Add images, or take the class out."
            )
        first = np.zeros(len(self), bool)
        for label, n in enumerate(counts.tolist()):
            count = min(max(round(n * fraction), 1), n - 1)
            places = order.permute(np.arange(n), n, order.fold(seed, label))[:count]
            first[np.flatnonzero(self.labels == label)[places]] = True
        return self._part(first), self._part(~first)

    def _part(self, chosen: HostArray) -> "ImageFolder":
        part: Any = object.__new__(ImageFolder)
        part.__dict__ |= self.__dict__
        part.files = [file for file, take in zip(self.files, chosen) if take]
        part.labels = self.labels[chosen]
        return part
