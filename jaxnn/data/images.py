"""Folders of images, one folder a class, decoded when they are taken."""

import os
from pathlib import Path
from typing import Any

import numpy as np

from jaxnn.typing import HostArray

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
_MODES = {1: "L", 3: "RGB", 4: "RGBA"}


def _pillow() -> Any:
    try:
        from PIL import Image, ImageOps
    except ImportError as error:
        raise ImportError(
            "data.ImageFolder: Pillow is not installed. Tried: import PIL. Install it: pip install pillow."
        ) from error
    return Image, ImageOps


class ImageFolder:
    """The images of `root/CLASS/*`, in the layout of ImageNet; a class is a folder, numbered in the order of its name.

    Examples are {"x": float32 [B, height, width, channels] in [0, 1], "y": int32 [B]}. An image is turned as its camera
    said, cropped around its centre to the target's proportions and resized by bilinear interpolation: the same bytes
    every time with one version of Pillow. Files that do not end like an image are passed over.

    Attributes:
        classes: Names of the classes, by number.
        files: Paths, by example: sorted by class, then by path.
        labels: Class numbers, int32 [N].
    """

    def __init__(self, root: str | os.PathLike[str], size: tuple[int, int], channels: int = 3):
        """Lists the files and reads the header of each.

        Args:
            root: Folder of class folders.
            size: (height, width) in pixels.
            channels: 1 (grey), 3 (RGB) or 4 (RGBA).

        Raises:
            ValueError: If the folder is missing or has no class folders, a class has no images, a header cannot be
                read, or the size or the number of channels is impossible.
            ImportError: If Pillow is not installed.
        """
        if len(size) != 2 or min(size) < 1:
            raise ValueError(
                f"data.ImageFolder: size is {size}. Tried: (height, width) in pixels. Give two positive integers."
            )
        if channels not in _MODES:
            raise ValueError(f"data.ImageFolder: {channels} channels. Tried: {_MODES}. Give one of their numbers.")
        self.root, self.size, self.channels = Path(root).expanduser(), (size[0], size[1]), channels
        if not self.root.is_dir():
            raise ValueError(
                f"data.ImageFolder: {str(root)!r} is no folder. Tried: listing it. Give the folder of the class "
                "folders."
            )
        folders = sorted(f for f in self.root.iterdir() if f.is_dir() and not f.name.startswith("."))
        if not folders:
            raise ValueError(
                f"data.ImageFolder: {str(root)!r} has no class folders. Tried: {root}/CLASS/IMAGE. "
                f"Put the images of each class into a folder of its name."
            )
        self.classes = [f.name for f in folders]
        self.files: list[Path] = []
        labels: list[int] = []
        for label, folder in enumerate(folders):
            found = sorted(f for f in folder.rglob("*") if f.suffix.lower() in SUFFIXES and f.is_file())
            if not found:
                raise ValueError(
                    f"data.ImageFolder: class folder {str(folder)!r} has no images. Tried: files that end in "
                    f"{', '.join(SUFFIXES)}. Fill it or remove it."
                )
            self.files += found
            labels += [label] * len(found)
        self.labels = np.asarray(labels, np.int32)
        image, _ = _pillow()
        for file in self.files:
            try:
                with image.open(file):
                    pass
            except Exception as error:
                raise self._unreadable(file, error) from error

    @staticmethod
    def _unreadable(file: Path, error: Exception) -> ValueError:
        return ValueError(
            f"data.ImageFolder: {str(file)!r} cannot be read as an image ({error}). Tried: Pillow. Remove or repair it."
        )

    def __len__(self) -> int:
        return len(self.files)

    def __repr__(self) -> str:
        return f"ImageFolder({len(self)} images of {len(self.classes)} classes, {(*self.size, self.channels)})"

    def _decode(self, file: Path) -> HostArray:
        image, ops = _pillow()
        try:
            with image.open(file) as opened:
                upright = ops.exif_transpose(opened).convert(_MODES[self.channels])
                fitted = ops.fit(upright, self.size[::-1], image.Resampling.BILINEAR)
        except Exception as error:
            raise self._unreadable(file, error) from error
        return np.asarray(fitted, np.uint8).reshape(*self.size, self.channels)

    def take(self, index: HostArray) -> dict[str, HostArray]:
        """Decodes the images `index` [B]."""
        x = np.empty((len(index), *self.size, self.channels), np.float32)
        for row, i in enumerate(index):
            x[row] = self._decode(self.files[int(i)])
        x /= np.float32(255)
        return {"x": x, "y": self.labels[index]}

    def resident(self) -> None:
        """None: decoding happens on the host."""
        return None
