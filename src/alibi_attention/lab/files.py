"""Files that are either whole or absent."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from alibi_attention.lab.errors import LabError

_PARTIAL = ".partial"

# What is missing, and what gets it: the disk, or a user's share of it, is full; or a file is larger than the process,
# or the file system, may make it.
_FULL = ("room on the disk", "make room")
_TOO_LARGE = ("leave to write files this large", "raise their limit (ulimit -f) or use another file system")
_NO_ROOM = {errno.ENOSPC: _FULL, errno.EDQUOT: _FULL, errno.EFBIG: _TOO_LARGE}


class NoRoomError(LabError):
    """A file for which there is no room.

    How to go on once there is is for those to say who know what was under way.

    Attributes:
        means: what makes room, in words.
    """

    def __init__(self, path: Path, code: int) -> None:
        expected, self.means = _NO_ROOM[code]
        remedy = f"{self.means} and go on; nothing that was written before is lost"
        super().__init__("output", expected=expected, got=f"no room for {path}", remedy=remedy)


def is_partial(path: Path) -> bool:
    """Whether it is what a process that was killed while writing left behind, to be overwritten by the next."""
    return path.name.startswith(".") and path.with_suffix("").suffix == _PARTIAL and path.is_file()


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path`` that takes its place when the block ends well, and vanishes otherwise.

    The temporary name keeps the suffix, because writers such as matplotlib choose the format by it; and it is always
    the same, so that what a killed process left is overwritten by the next.

    Raises:
        NoRoomError: if the disk is full, or the file larger than may be.
        OSError: if it cannot be written, with a path in ``filename``: not every system call tells which file it was of.
    """
    temporary = path.with_name(f".{path.stem}{_PARTIAL}{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        # A crash of the machine must not leave the new name pointing at bytes that never reached the disk.
        with temporary.open("rb+") as written:
            os.fsync(written.fileno())
        temporary.replace(path)
    except OSError as error:
        if error.errno in _NO_ROOM:
            raise NoRoomError(path, error.errno) from error
        if error.filename is not None and str(error.filename) != str(temporary):
            raise
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error
    finally:
        with suppress(OSError):  # a parent that is no folder
            temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))
