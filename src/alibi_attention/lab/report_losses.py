"""The tables of losses of a report: bits per byte, what is gained and lost against one method, perplexity."""

from __future__ import annotations

from collections.abc import Sequence

from alibi_attention.lab.pairs import Difference
from alibi_attention.lab.report_table import Table
from alibi_attention.lab.scores import LossProtocol
from alibi_attention.lab.summary import Line, Point, reference_name
from alibi_attention.lab.tables import NONE, PROTOCOL_NAMES

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
        "The same tokens, read with more and more text before them: the only one of the three that isolates use of "
        "context.",
    ),
)


def loss_tables(lines: Sequence[Line], *, perplexity: bool) -> list[Table]:
    """Of every protocol that was evaluated; perplexity per token where tokens are more than bytes."""
    tables = []
    for protocol, title, note in _LOSSES:
        if protocol in lines[0].losses:
            tables.append(_losses(lines, protocol, title, note))
            if len(lines) > 1:
                tables.append(_against(lines, protocol))
            if perplexity:
                tables.append(_perplexity(lines, protocol))
    return tables


def _losses(lines: Sequence[Line], protocol: LossProtocol, title: str, note: str) -> Table:
    points = lines[0].losses[protocol]
    scored = max(point.scored_bytes for point in points)
    note += (
        f" Mean over seeds; at the trained length ± half of its 95% bootstrap interval over documents and seeds, "
        f"elsewhere the change from there with half of its own, paired by document. {scored:,} bytes scored a length "
        "and seed."
    )
    if protocol == "targets" and points[-1].whole_context is not None:
        note += f" At {points[-1].length:,}, {points[-1].whole_context:.0%} of the windows lie in one document."
    rows = [[line.title, *map(_cell, line.losses[protocol])] for line in lines]
    reasons = sorted({f"{line.title}: {p.note}." for line in lines for p in line.losses[protocol] if p.note})
    return Table(protocol, title, " ".join([note, *reasons]), ["", *(f"{p.length:,}" for p in points)], rows)


def _cell(point: Point) -> str:
    if point.mean is None:
        return NONE
    if point.change is not None:
        return f"{point.mean:.3f} ({point.change.mean:+.3f}{_half(point.change.interval)})"
    return f"{point.mean:.3f}{_half(point.interval)}"


def _half(interval: tuple[float, float] | None) -> str:
    return "" if interval is None else f" ± {(interval[1] - interval[0]) / 2:.3f}"


def _against(lines: Sequence[Line], protocol: LossProtocol) -> Table:
    reference = next(line for line in lines if line.name == reference_name(lines))
    seeds = len(lines[0].seeds)
    note = (
        f"Bits per byte less those of {reference.title} at the same length, paired by document and seed, ± half of the "
        "95% bootstrap interval; below 0 is better than it."
    )
    if seeds > 1:
        note += (
            f" In brackets least and most over seeds. {seeds} seeds say little of the spread over seeds: the interval "
            "is too narrow."
        )
    else:
        note += " Of one seed: the interval is over documents alone, and another seed may differ by more."
    rows = [
        [line.title, *(_difference(point.against, seeds) for point in line.losses[protocol])]
        for line in lines
        if line is not reference
    ]
    title = f"{PROTOCOL_NAMES[protocol].capitalize()}: minus {reference.title}"
    header = ["", *(f"{point.length:,}" for point in lines[0].losses[protocol])]
    return Table(f"{protocol}-against", title, note, header, rows)


def _difference(difference: Difference | None, seeds: int) -> str:
    if difference is None:
        return NONE
    cell = f"{difference.mean:+.3f}{_half(difference.interval)}"
    return cell if seeds == 1 else f"{cell} ({min(difference.by_seed):+.3f} to {max(difference.by_seed):+.3f})"


def _perplexity(lines: Sequence[Line], protocol: LossProtocol) -> Table:
    points = lines[0].losses[protocol]
    note = "Per token of this vocabulary, mean over seeds: comparable between methods here, not between vocabularies."
    rows = [
        [line.title, *(NONE if p.perplexity is None else f"{p.perplexity:,.2f}" for p in line.losses[protocol])]
        for line in lines
    ]
    title = f"{PROTOCOL_NAMES[protocol].capitalize()}: perplexity"
    return Table(f"{protocol}-perplexity", title, note, ["", *(f"{p.length:,}" for p in points)], rows)
