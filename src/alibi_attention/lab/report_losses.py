"""The tables of losses of a report: bits per byte, what is gained and lost against one method, perplexity."""

from __future__ import annotations

from collections.abc import Sequence

from alibi_attention.lab.pairs import Difference
from alibi_attention.lab.report_table import Table
from alibi_attention.lab.scores import LossProtocol
from alibi_attention.lab.summary import Line, Point, PositionMean, farthest, longest_bins, reference_name
from alibi_attention.lab.tables import NONE, signed

FEW = 30
"""Where documents are fewer than this, it is said how to read more."""

_LOSSES: tuple[tuple[LossProtocol, str, str], ...] = (
    (
        "windows",
        "Non-overlapping windows",
        "Each window is read on its own; all lengths score the same tokens. Part of what is gained with length is that "
        "fewer tokens stand near the beginning of a window.",
    ),
    (
        "sliding",
        "Sliding window",
        "Every scored token has at least the length less one stride before it, so that no token suffers from standing "
        "at a beginning.",
    ),
    (
        "targets",
        "Fixed targets",
        "The same tokens, read with more and more text before them: the only one of the three that isolates use of "
        "context.",
    ),
)


def loss_tables(lines: Sequence[Line], train_length: int, unit: str) -> list[Table]:
    """Of every protocol that was evaluated; perplexity per token where tokens are more than bytes."""
    tables = []
    for protocol, title, note in _LOSSES:
        if protocol in lines[0].losses:
            header = [f"window ({unit})", *(f"{point.length:,}" for point in lines[0].losses[protocol])]
            tables.append(_losses(lines, protocol, title, note, header))
            if len(lines) > 1:
                tables.append(_against(lines, protocol, title, header))
            if unit != "bytes":
                tables.append(_perplexity(lines, protocol, title, header))
            if protocol == "windows" and longest_bins(lines):
                tables += _positions(lines, train_length, unit)
    return tables


def _losses(lines: Sequence[Line], protocol: LossProtocol, title: str, note: str, header: list[str]) -> Table:
    points = lines[0].losses[protocol]
    scored = max(point.scored_bytes for point in points)
    most = max(points, key=lambda point: point.documents)
    note += (
        " Mean over seeds; at the trained length with its 95% interval over documents and seeds, elsewhere with the "
        f"change from there and its interval, paired by document. {scored:,} bytes of {most.documents:,} "
        f"document{'' if most.documents == 1 else 's'} scored a length and seed"
    )
    if most.documents > 1:
        note += (
            f", {most.largest_document:.0%} of them of the largest, so that the documents say as much as "
            f"{most.effective_documents:.0f} of one size"
        )
    note += "."
    if most.documents < FEW:
        note += " More are read with --eval-tokens."
    # All methods read the same windows, but for one whose positions end before.
    whole = next((share for line in lines if (share := line.losses[protocol][-1].whole_context) is not None), None)
    if protocol == "targets" and whole is not None:
        note += f" At {points[-1].length:,}, {whole:.0%} of the windows lie in one document."
    rows = [[line.title, *map(_cell, line.losses[protocol])] for line in lines]
    reasons = sorted({f"{line.title}: {p.note}." for line in lines for p in line.losses[protocol] if p.note})
    return Table(protocol, f"{title}: bits per byte", " ".join([note, *reasons]), header, rows)


def _cell(point: Point) -> str:
    if point.mean is None:
        return NONE
    if point.change is not None:
        return f"{point.mean:.3f}: {_signed(point.change)}"
    interval = "" if point.interval is None else f" ({point.interval[0]:.3f} to {point.interval[1]:.3f})"
    return f"{point.mean:.3f}{interval}"


def _signed(difference: Difference) -> str:
    """With both ends of its interval, which need not lie alike about it."""
    ends = difference.interval
    interval = "" if ends is None else f" ({signed(ends[0])} to {signed(ends[1])})"
    return f"{signed(difference.mean)}{interval}"


def _against(lines: Sequence[Line], protocol: LossProtocol, title: str, header: list[str]) -> Table:
    reference = next(line for line in lines if line.name == reference_name(lines))
    seeds = len(lines[0].seeds)
    note = (
        f"Bits per byte less those of {reference.title} at the same length, paired by document and seed, with the "
        "95% interval; below 0 is better than it. An interval is of its own comparison: of twenty with nothing behind "
        "them one is expected to leave out 0."
    )
    if seeds > 1:
        note += " Behind it least and most over seeds."
    else:
        note += " Of one seed: the interval is over documents alone, and another seed may differ by more."
    rows = [
        [line.title, *(difference_cell(point.against, seeds) for point in line.losses[protocol])]
        for line in lines
        if line is not reference
    ]
    return Table(f"{protocol}-against", f"{title}: bits per byte less {reference.title}'s", note, header, rows)


def difference_cell(difference: Difference | None, seeds: int) -> str:
    """With its interval and, of several seeds, least and most among them."""
    if difference is None:
        return NONE
    if seeds == 1:
        return _signed(difference)
    least, most = min(difference.by_seed), max(difference.by_seed)
    return f"{_signed(difference)}, seeds {signed(least)} to {signed(most)}"


def _perplexity(lines: Sequence[Line], protocol: LossProtocol, title: str, header: list[str]) -> Table:
    note = "Per token of this vocabulary, mean over seeds: comparable between methods here, not between vocabularies."
    rows = [
        [line.title, *(NONE if p.perplexity is None else f"{p.perplexity:,.2f}" for p in line.losses[protocol])]
        for line in lines
    ]
    return Table(f"{protocol}-perplexity", f"{title}: perplexity", note, header, rows)


def _positions(lines: Sequence[Line], train_length: int, unit: str) -> list[Table]:
    """Of windows of the trained length, and of the longest."""
    whose = f"in windows that do not overlap, of {{}} {unit}{{}}. Mean over seeds; first of how many tokens each"
    tables = []
    trained = [line.by_position.get(train_length, ()) for line in lines]
    bins = longest_bins(lines)
    if any(trained) and bins[-1].end != train_length:
        note = f"What the tokens at these positions cost, counted from 0, {whose.format(f'{train_length:,}', '')}."
        title = "Bits per byte by position in windows of the trained length"
        tables.append(_by_position("positions-trained", title, note, lines, trained, max(trained, key=len), unit))
    note = (
        "What the tokens at these positions cost, counted from 0 at the beginning of a window, "
        f"{whose.format(f'{bins[-1].end:,}', ' or of the longest a method can read')}. Positions past the trained "
        "length are those it never met in training."
    )
    title = "Bits per byte by position in the longest window"
    tables.append(_by_position("positions", title, note, lines, [farthest(line) for line in lines], bins, unit))
    return tables


def _by_position(
    name: str, title: str, note: str, lines: Sequence[Line], found: Sequence[Sequence[PositionMean]],
    bins: Sequence[PositionMean], unit: str,
) -> Table:  # fmt: skip
    rows = [["tokens", *(f"{bin_.tokens:,}" for bin_ in bins)]]
    for line, its in zip(lines, found, strict=True):
        bits = {bin_[:2]: bin_.bits for bin_ in its}
        rows.append([line.title, *(f"{bits[bin_[:2]]:.3f}" if bin_[:2] in bits else NONE for bin_ in bins)])
    places = [f"{a:,}" if b == a + 1 else f"{a:,}\N{EN DASH}{b - 1:,}" for a, b, *_ in bins]
    return Table(name, title, note, [f"position ({unit})", *places], rows)
