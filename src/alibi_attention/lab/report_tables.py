"""The tables of a report: title, header, rows, and what to know when reading them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from alibi_attention.lab.scores import RECALLED, SLACK
from alibi_attention.lab.summary import Line, LossProtocol, Point
from alibi_attention.lab.tables import NONE


class Table(NamedTuple):
    name: str
    title: str
    note: str
    header: list[str]
    rows: list[list[str]]


_LOSSES: tuple[tuple[LossProtocol, str, str], ...] = (
    (
        "windows",
        "Non-overlapping windows: bits per byte",
        "Each window is read on its own; all lengths score the same tokens. Part of what is gained with length is that "
        "fewer tokens stand near the beginning of a window.",
    ),
    (
        "sliding",
        "Sliding window: bits per byte",
        "Every scored token has at least the length less one stride before it, so that no token suffers from standing "
        "at a beginning.",
    ),
    (
        "targets",
        "Fixed targets: bits per byte",
        "The same few tokens, read with more and more text before them: the only one of the three that isolates use of "
        "context.",
    ),
)


def report_tables(lines: Sequence[Line]) -> list[Table]:
    """Verdicts first, then a table for each protocol, then what each method costs."""
    tables = [_verdicts(lines)]
    tables += [_losses(lines, *which) for which in _LOSSES if which[0] in lines[0].losses]
    if lines[0].recall:
        tables.append(_recall(lines))
    tables.append(_costs(lines))
    return tables


def _verdicts(lines: Sequence[Line]) -> Table:
    rows = [[line.title, _length(line.usable_by_perplexity), _length(line.usable_by_recall)] for line in lines]
    note = (
        f"By perplexity: the longest length up to which bits per byte (non-overlapping windows, mean over seeds) stay "
        f"within {SLACK:.0%} of those at the trained length. By recall: the longest length up to which at least "
        f"{RECALLED:.0%} of the values told at the farthest distance tested are recalled. {NONE}: at no length, or not "
        "measured. A flat perplexity alone does not show that the context is used."
    )
    return Table("verdicts", "Usable length", note, ["", "by perplexity", "by recall"], rows)


def _length(length: int | None) -> str:
    return NONE if length is None else f"{length:,}"


def _losses(lines: Sequence[Line], protocol: LossProtocol, title: str, note: str) -> Table:
    points = lines[0].losses[protocol]
    scored = max(point.scored_bytes for point in points)
    note += (
        f" Mean over seeds; at the trained length ± half of its 95% bootstrap interval over documents and seeds, "
        f"elsewhere the change from there with half of its own, paired by document. {scored:,} bytes scored a length "
        "and seed."
    )
    rows = [[line.title, *map(_cell, line.losses[protocol])] for line in lines]
    reasons = sorted({f"{line.title}: {p.note}." for line in lines for p in line.losses[protocol] if p.note})
    return Table(protocol, title, " ".join([note, *reasons]), ["", *(f"{p.length:,}" for p in points)], rows)


def _cell(point: Point) -> str:
    if point.mean is None:
        return NONE
    if point.change is not None:
        return f"{point.mean:.3f} ({point.change:+.3f}{_half(point.change_interval)})"
    return f"{point.mean:.3f}{_half(point.interval)}"


def _half(interval: tuple[float, float] | None) -> str:
    return "" if interval is None else f" ± {(interval[1] - interval[0]) / 2:.3f}"


def _recall(lines: Sequence[Line]) -> Table:
    cells: dict[int, int] = {}
    for score in lines[0].recall:
        cells[score.length] = max(cells.get(score.length, 0), score.distance)
    rows = []
    for line in lines:
        found = {(score.length, score.distance): score for score in line.recall}
        shares = [found[cell].share for cell in cells.items()]
        rows.append([line.title, *(NONE if share is None else f"{share:.0%}" for share in shares)])
    asked = {score.asked for line in lines for score in line.recall if score.asked}
    note = (
        f"Values recalled from the farthest distance tested in windows of each length, asked {min(asked)} to "
        f"{max(asked)} times; guessing recalls one in a thousand."
        if asked
        else "Nothing could be asked."
    )
    header = ["", *(f"{distance:,} of {length:,}" for length, distance in cells.items())]
    return Table("recall", "Recall by distance", note, header, rows)


def _costs(lines: Sequence[Line]) -> Table:
    header = ["", "parameters", "of positions", "training, s", "evaluation, s"]
    rows = []
    for line in lines:
        if ":" not in line.name:
            numbers = [f"{line.parameters:,}", f"{line.position_parameters:,}"]
            rows.append([line.title, *numbers, f"{line.train_seconds:,.0f}", f"{line.eval_seconds:,.0f}"])
    note = (
        "Means over seeds; evaluation includes the method's variants. Seconds are wall time of these runs, which may "
        "have shared the machine: no benchmark."
    )
    return Table("costs", "Size and time", note, header, rows)
