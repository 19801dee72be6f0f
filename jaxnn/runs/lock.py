"""One writer a folder: a lock that the operating system drops when its process ends, however it ends."""

import fcntl
import os
import warnings
from pathlib import Path

LOCK = "lock"


class FolderLock:
    """Holds `folder` against other writers, in this process and in others; readers need no lock.

    The lock is `flock` on the file "lock" in the folder, which holds its holder's process id as text and is empty while
    nobody holds it. The file stays: removing it would let two processes lock two files of one name.

    Args:
        folder: The folder; it exists.

    Raises:
        ValueError: If another holds it; names its process.
        OSError: If the file cannot be written.
    """

    def __init__(self, folder: Path):
        path = folder / LOCK
        self._handle: int | None = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.pread(self._handle, 32, 0).decode(errors="replace").strip() or "of unknown number"
            os.close(self._handle)
            own = " (this one)" if holder == str(os.getpid()) else ""
            raise ValueError(
                f"runs.RunFolder: process {holder}{own} is writing the run in {folder}; two at once would mix their "
                "files. Wait until it has ended, end it, or give another out=."
            ) from error
        except OSError as error:
            warnings.warn(
                f"runs.RunFolder: {folder} is on a file system without locks ({error.strerror}): nothing keeps a "
                "second process from writing the same run.",
                RuntimeWarning,
                stacklevel=4,
            )
        os.ftruncate(self._handle, 0)
        os.pwrite(self._handle, str(os.getpid()).encode(), 0)

    def release(self) -> None:
        """Lets others write; may be called twice."""
        if self._handle is not None:
            os.ftruncate(self._handle, 0)
            os.close(self._handle)
            self._handle = None
