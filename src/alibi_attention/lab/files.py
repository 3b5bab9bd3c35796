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

FULL = (errno.ENOSPC, errno.EDQUOT)
"""What the system says when a disk, or a user's share of it, is full."""


_PARTIAL = ".partial"


class DiskFullError(LabError):
    """A disk, or a user's share of it, that is full.

    How to go on once there is room is for those to say who know what was under way.
    """

    def __init__(self, path: Path) -> None:
        remedy = "make room and go on; nothing that was written before is lost"
        super().__init__("output", expected="room on the disk", got=f"no room for {path}", remedy=remedy)


def is_partial(path: Path) -> bool:
    """Whether it is what a process that was killed while writing left behind, to be overwritten by the next."""
    return path.name.startswith(".") and path.with_suffix("").suffix == _PARTIAL and path.is_file()


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path`` that takes its place when the block ends well, and vanishes otherwise.

    The temporary name keeps the suffix, because writers such as matplotlib choose the format by it; and it is always
    the same, so that what a killed process left is overwritten by the next.
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
        if error.errno not in FULL:
            raise
        raise DiskFullError(path) from error
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
