"""The tables of recall of a report."""

from __future__ import annotations

from collections.abc import Sequence

from alibi_attention.lab.passages import VALUES
from alibi_attention.lab.report_table import Table
from alibi_attention.lab.summary import Line, RecallPoint
from alibi_attention.lab.tables import NONE


def recall_tables(lines: Sequence[Line], train_length: int, unit: str) -> list[Table]:
    """The farthest distance of each length, then every distance at the trained length and at the longest."""
    lengths = sorted({point.length for point in lines[0].recall})
    farthest = [[p for p in lines[0].recall if p.length == length][-1] for length in lengths]
    asked = {score.asked for line in lines for point in line.recall for score in point.by_seed if score.asked}
    note = (
        f"{_meaning(lines)} Asked {_from_to(asked)} times a cell and seed; guessing recalls one in {len(VALUES)}."
        if asked
        else "Nothing could be asked."
    )
    tables = [
        _table("recall-farthest", "Recall from the farthest distance of each length", note, lines, farthest, unit)
    ]
    # The last has the name of the figure, which shows the same.
    for length, which, name in ((train_length, "trained", "recall-trained"), (lengths[-1], "longest", "recall")):
        cells = [point for point in lines[0].recall if point.length == length]
        if cells and (name == "recall" or length < lengths[-1]):
            title = f"Recall by distance at the {which} length, {length:,} {unit}"
            tables.append(_table(name, title, _meaning(lines), lines, cells, unit))
    return tables


def _table(name: str, title: str, note: str, lines: Sequence[Line], cells: Sequence[RecallPoint], unit: str) -> Table:
    rows = []
    for line in lines:
        found = {(point.length, point.distance): point for point in line.recall}
        rows.append([line.title, *(_cell(found[cell.length, cell.distance]) for cell in cells)])
    several = len({cell.length for cell in cells}) > 1
    header = [
        f"distance ({unit})",
        *(f"{c.distance:,} of {c.length:,}" if several else f"{c.distance:,}" for c in cells),
    ]
    return Table(name, title, note, header, rows)


def _meaning(lines: Sequence[Line]) -> str:
    if len(lines[0].seeds) > 1:
        return "Median over seeds, least and most in brackets: seeds are not pooled, as models may differ in kind."
    return "In brackets Wilson's 95% interval."


def _cell(point: RecallPoint) -> str:
    if point.median is None:
        return NONE
    spread: tuple[float, float] | None = min(point.shares), max(point.shares)
    if len(point.by_seed) == 1:
        spread = point.by_seed[0].interval
    return f"{point.median:.0%}" + ("" if spread is None else f" ({spread[0]:.0%}–{spread[1]:.0%})")


def _from_to(numbers: set[int]) -> str:
    return f"{min(numbers)}" if len(numbers) == 1 else f"{min(numbers)} to {max(numbers)}"
