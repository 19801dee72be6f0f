"""Data sets that are on the disk already: the real sources of Python's standard library."""

import hashlib
import os
import sysconfig
from pathlib import Path

# Other people's packages, tests (a third of the tree, much of it malformed on purpose) and what is not source.
_LEFT_OUT = frozenset({"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"})


def stdlib_files(held_out: float = 0.1, seed: int = 0) -> tuple[list[Path], list[Path]]:
    """The sources of the running Python's standard library, split by file.

    Left out are `site-packages`, `dist-packages`, tests, links, empty files and `_sysconfigdata*`, which the build
    generates with this machine's paths in it. A file's side is a hash of (seed, relative path): it stays where it is
    when other files come and go, from one Python version to the next.

    Args:
        held_out: Share of the files that is held out, in [0, 1); about a tenth gives 60 files, 1 MB.
        seed: Another seed is another split.

    Returns:
        (train, held out), each sorted by path relative to the library.

    Raises:
        ValueError: If `held_out` is out of range or a side is empty although it should not be.
    """
    if not 0 <= held_out < 1:
        raise ValueError(
            f"data.stdlib_files: held_out is {held_out}. Tried: a share of the files. Give 0 <= held_out < 1."
        )
    root = Path(sysconfig.get_path("stdlib"))
    named: list[tuple[str, Path]] = []
    for folder, folders, files in os.walk(root):
        folders[:] = [f for f in folders if f not in _LEFT_OUT]
        for file in (Path(folder, f) for f in files if f.endswith(".py") and not f.startswith("_sysconfigdata")):
            if not file.is_symlink() and file.stat().st_size:
                named.append((file.relative_to(root).as_posix(), file))
    sides: tuple[list[Path], list[Path]] = ([], [])
    for name, file in sorted(named):
        digest = hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=8).digest()
        sides[int.from_bytes(digest, "big") < held_out * 2**64].append(file)
    if not sides[0] or (held_out and not sides[1]):
        raise ValueError(
            f"data.stdlib_files: {len(named)} files in {str(root)!r} give {len(sides[0])} and {len(sides[1])}. Tried: "
            f"a split with held_out={held_out}. Use a Python that has its library's sources, or another share."
        )
    return sides
