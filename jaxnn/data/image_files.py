"""Image files: finding them, telling before training which cannot be used, and opening one upright."""

import difflib
import os
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
SHOWN = 3
_USABLE = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV", "I;16", "I;16L", "I;16B")
_PARTS = {"train", "training", "val", "valid", "validation", "test", "testing"}
_TAIL = 2**16  # bytes in which the end mark of a whole file is looked for


def pillow() -> Any:
    """Pillow's `Image` and `ImageOps`.

    Raises:
        ImportError: If it is not installed.
    """
    try:
        from PIL import Image, ImageOps
    except ImportError as error:
        raise ImportError(
            "data.ImageFolder: Pillow is not installed. Tried: import PIL. Install it: pip install pillow."
        ) from error
    return Image, ImageOps


def image_files(where: str, folder: Path) -> tuple[list[Path], list[Path]]:
    """The images below a folder, sorted, and the files that do not end like one; what is hidden is left out.

    Raises:
        ValueError: If a folder cannot be listed.
    """
    images: list[Path] = []
    others: list[Path] = []

    def refuse(error: OSError) -> None:
        raise ValueError(
            f"{where}: {str(error.filename)!r} cannot be listed ({error.strerror}). Tried: reading the folder. Make it "
            "readable, or take it out."
        ) from error

    for at, folders, files in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in files:
            if not name.startswith("."):
                path = Path(at) / name
                (images if path.suffix.lower() in SUFFIXES else others).append(path)
    return sorted(images), sorted(others)


def beside(root: Path) -> list[Path]:
    """The files that lie beside the class folders, in none of them, sorted; what is hidden is left out."""
    return sorted(f for f in root.iterdir() if f.is_file() and not f.name.startswith("."))


def is_part(name: str) -> bool:
    """Whether a folder's name is that of a part of a data set, "train" or "val", and not of a class."""
    return name.lower() in _PARTS


def classes_of(where: str, root: Path, wanted: Sequence[str] | None) -> list[str]:
    """The names of the class folders, in order of their numbers.

    Raises:
        ValueError: If there are none, they are parts of a data set or differ only in case, or are not the ones wanted.
    """
    if not root.is_dir():
        raise ValueError(
            f"{where}: {str(root)!r} is no folder. Tried: listing it. Give the folder of the class folders."
        )
    try:
        found = sorted(f.name for f in root.iterdir() if f.is_dir() and not f.name.startswith("."))
    except OSError as error:
        raise ValueError(
            f"{where}: {str(root)!r} cannot be listed ({error.strerror}). Tried: reading the folder. Make it readable."
        ) from error
    if not found:
        raise ValueError(
            f"{where}: {str(root)!r} has no class folders. Tried: {root}/CLASS/IMAGE. "
            f"Put the images of each class into a folder of its name."
        )
    if all(map(is_part, found)) and wanted is None:
        raise ValueError(
            f"{where}: {str(root)!r} holds parts of a data set ({', '.join(found)}), not classes. Tried: one class a "
            f"folder. Read each part by itself: ImageFolder({str(root / found[0])!r}, ...)."
        )
    alike: dict[str, list[str]] = defaultdict(list)
    for name in found:
        alike[name.casefold()].append(name)
    if doubled := [" and ".join(map(repr, names)) for names in alike.values() if len(names) > 1]:
        raise ValueError(
            f"{where}: class folders that differ only in case: {'; '.join(doubled[:SHOWN])}. Tried: one class a "
            "folder. Put them together, or rename one."
        )
    if wanted is None:
        return found
    for what, names, others in (("has no folder", wanted, found), ("is no class", found, wanted)):
        if missing := [name for name in names if name not in others]:
            near = difflib.get_close_matches(missing[0], list(others), 1)
            hint = f"Did you mean {near[0]!r}? " if near else ""
            raise ValueError(
                f"{where}: {', '.join(map(repr, missing[:SHOWN]))} {what} in {str(root)!r}. Tried: classes="
                f"{list(wanted)[:8]}, folders {found[:8]}. {hint}Give the same classes to every part."
            )
    return list(wanted)


def _looks_cut(path: Path, kind: str | None) -> bool:
    """Whether the end mark that a format has is not where it should be."""
    if kind not in ("JPEG", "MPO", "PNG"):
        return False
    with open(path, "rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - _TAIL))
        tail = file.read()
    # Coded data of a JPEG holds no FF D9, and cameras put further bytes after it.
    return (b"IEND" if kind == "PNG" else b"\xff\xd9") not in tail


def trouble(path: Path) -> str | None:
    """Why a file cannot be used, in a few words; None where nothing is wrong as far as a cheap look tells."""
    image, _ = pillow()
    try:
        with image.open(path) as opened:
            if opened.mode not in _USABLE:
                return f"pixels of mode {opened.mode}, of no known range"
            if _looks_cut(path, opened.format):
                opened.load()
    except FileNotFoundError:
        return "a link to nowhere" if path.is_symlink() else "not there"
    except PermissionError:
        return "no permission to read it"
    except IsADirectoryError:
        return "a folder"
    except image.UnidentifiedImageError:
        return "empty" if path.stat().st_size == 0 else "no image, whatever its name says"
    except Exception as error:  # Pillow's decoders raise whatever they meet
        return str(error) or type(error).__name__
    return None


def check(where: str, files: Sequence[Path]) -> None:
    """Refuses files that cannot be used, all at once.

    Raises:
        ValueError: Names the first and counts all.
    """
    bad = [f"{str(path)!r} ({why})" for path in files if (why := trouble(path)) is not None]
    if bad:
        rest = f" and {len(bad) - SHOWN} more" if len(bad) > SHOWN else ""
        many = "1 file" if len(bad) == 1 else f"{len(bad)} files"
        raise ValueError(
            f"{where}: {many} of {len(files)} cannot be read as an image: {', '.join(bad[:SHOWN])}{rest}. Tried: "
            "Pillow, on the header and the end of each. Remove or repair them."
        )


def upright(opened: Any, mode: str) -> Any:
    """An opened image as `mode`, turned as its camera said; what is transparent lies on white, but in RGBA."""
    image, ops = pillow()
    if opened.mode.startswith("I;16"):
        # Pillow's own conversion cuts off at 255.
        wide = np.asarray(opened).astype(np.uint32)
        grey = image.fromarray(((wide * 255 + 32767) // 65535).astype(np.uint8))
        grey.info |= opened.info
        grey.getexif().update(opened.getexif())
        opened = grey
    try:
        turned = ops.exif_transpose(opened)
    except Exception:  # a broken tag, whatever it holds, is not worth an image
        turned = opened
    if mode != "RGBA" and turned.has_transparency_data:
        over = turned.convert("RGBA")
        turned = image.alpha_composite(image.new("RGBA", over.size, "white"), over).convert("RGB")
    return turned.convert(mode)
