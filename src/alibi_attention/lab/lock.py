"""One process at a time in a folder."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from alibi_attention.lab.errors import LabError

try:
    import fcntl
except ImportError:  # Windows, which has no locks of this kind: there it is up to the user
    fcntl = None  # type: ignore[assignment]


@contextmanager
def locked(folder: Path, *, wait: bool = False) -> Iterator[None]:
    """Hold a folder, made if need be, so that no other process does at the same time.

    The lock is the system's own, on the folder itself: it leaves no file behind, and ends with the process, however
    that ends. Where a file system has no locks, none is held.

    Args:
        folder: to hold.
        wait: for another process to let go, instead of refusing.

    Raises:
        LabError: if it cannot be made, or another process holds it.
    """
    try:
        # Of a link to nothing, what it leads to.
        (folder.resolve() if folder.is_symlink() else folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        got = f"{folder} ({error.strerror})"
        raise LabError("output", expected="a folder that can be written", got=got, remedy="choose another") from None
    if fcntl is None:
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise LabError(
                "output",
                expected="a folder no other process works in",
                got=f"{folder}, which one does",
                remedy="wait until it is done, or name another folder",
            ) from None
        except OSError:
            pass
        yield
    finally:
        os.close(descriptor)
