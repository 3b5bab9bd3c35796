"""What processes wrote, kept beside the results: a fault of a compiler is explained there and nowhere else."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path

# Of each log, from its end.
_MOST = 200_000


def logs_of(output: Path) -> Path:
    """Where the logs of a run with these results are."""
    return output.with_name(f"{output.stem}-logs.tar.gz")


def keep_logs(folder: Path, output: Path) -> None:
    """One archive of the ends of all logs in the folder, in place of an earlier one."""
    target = logs_of(output)
    partial = target.with_name(f".{target.name}.partial")
    with tarfile.open(partial, "w:gz") as archive:
        for log in sorted(folder.rglob("*.log")):
            with log.open("rb") as file:
                file.seek(max(0, os.fstat(file.fileno()).st_size - _MOST))
                text = file.read()
            entry = tarfile.TarInfo(str(log.relative_to(folder)))
            entry.size, entry.mtime = len(text), int(log.stat().st_mtime)
            archive.addfile(entry, io.BytesIO(text))
    partial.replace(target)
