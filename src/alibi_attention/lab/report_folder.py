"""Where a report is written: what is there from elsewhere, and what an earlier report leaves."""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path

from alibi_attention.lab.errors import LabError
from alibi_attention.lab.files import read_json

# Parts of every summary.json that a report wrote.
_PARTS = frozenset({"config", "corpus", "evaluations"})

_FIXED = ("report.md", "report.html", "summary.json", "figures")
_OF_A_RUN = re.compile(r"(?:config-(?:shorter-)?seed-\d+\.yaml|run-(?:shorter-)?seed-\d+\.json)")

# How report.md shows a figure.
_SHOWN = re.compile(r"\]\(figures/([\w.-]+)\.png\)")


def refuse_strangers(folder: Path, inputs: Collection[Path]) -> None:
    """Raise `LabError` for files of a report's names that no report wrote, other than its inputs, which are resolved.

    A folder is a report's whose ``summary.json`` is.
    """
    if _is_summary(folder / "summary.json"):
        return
    names = [*(name for name in _FIXED if _is_taken(folder / name)), *_of_runs(folder)]
    taken = [name for name in names if (folder / name).resolve() not in inputs]
    if taken:
        got = f"{folder}, whose {', '.join(taken)} {'comes' if len(taken) == 1 else 'come'} from elsewhere"
        raise LabError("output", expected="a new folder, or one with an earlier report", got=got, remedy="name another")


def refuse_other_runs(folder: Path, written: Collection[str], inputs: Collection[Path]) -> None:
    """Raise `LabError` where an earlier report keeps runs that this one, which writes ``written``, has not got.

    They would pass for runs of this one, and may be all that is left of them: they are neither kept in silence nor
    removed.
    """
    left = [name for name in _of_runs(folder) if name not in written]
    left = [name for name in left if (folder / name).resolve() not in inputs]
    if left:
        expected = "a new folder, or one whose report is of no other runs"
        remedy = "report their runs as well, move them away, or name another folder"
        raise LabError("output", expected=expected, got=f"{folder}, which has {', '.join(left)}", remedy=remedy)


def remove_figures(folder: Path, drawn: Collection[str]) -> None:
    """Remove the figures that the report there shows and that are not drawn again."""
    try:
        shown = set(_SHOWN.findall((folder / "report.md").read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return
    for name in shown.difference(drawn):
        for suffix in ("png", "svg"):
            (folder / "figures" / f"{name}.{suffix}").unlink(missing_ok=True)


def _is_summary(path: Path) -> bool:
    try:
        found = read_json(path)
    except (OSError, ValueError):
        return False
    return isinstance(found, dict) and found.keys() >= _PARTS


def _is_taken(path: Path) -> bool:
    return any(path.iterdir()) if path.is_dir() else path.exists()


def _of_runs(folder: Path) -> list[str]:
    """Names of the files that a report keeps of runs."""
    names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    return [name for name in names if _OF_A_RUN.fullmatch(name)]
