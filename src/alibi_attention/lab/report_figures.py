"""The figures of a report."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from alibi_attention.lab.figures import line_styles, name_lines
from alibi_attention.lab.report_table import Picture
from alibi_attention.lab.scores import LossProtocol
from alibi_attention.lab.summary import Line, farthest, longest_bins

_TITLES: dict[LossProtocol, str] = {
    "windows": "Non-overlapping windows",
    "sliding": "Sliding window",
    "targets": "The same tokens with more before them",
}


def draw_report_figures(lines: Sequence[Line], train_length: int, unit: str) -> dict[str, Picture]:
    """A picture for every protocol that was evaluated, by the name of the table that has its numbers."""
    pictures: dict[str, Picture] = {}
    for protocol in ("windows", "sliding", "targets"):
        if protocol in lines[0].losses:
            lengths = [point.length for point in lines[0].losses[protocol]]
            broad, narrow = (_draw_losses(lines, protocol, train_length, unit, narrow=n) for n in (False, True))
            shown = [line for line in lines if any(point.mean is not None for point in line.losses[protocol])]
            words = _words(shown, f"bits per byte against the length of the window, {_span(lengths)} {unit}")
            pictures[protocol] = Picture(broad, narrow, words)
        if protocol == "windows" and (bins := longest_bins(lines)):
            longest = bins[-1].end
            broad, narrow = (_draw_positions(lines, train_length, unit, narrow=n) for n in (False, True))
            shown = [line for line in lines if line.by_position]
            words = _words(shown, f"bits per byte against the position in the window, to {longest:,} {unit}")
            pictures["positions"] = Picture(broad, narrow, words)
    if lines[0].recall:
        longest = max(point.length for point in lines[0].recall)
        broad, narrow = (_draw_recall(lines, train_length, unit, narrow=n) for n in (False, True))
        words = f"the share of values recalled against the distance they were told at, windows of {longest:,} {unit}"
        shown = [line for line in lines if any(p.length == longest and p.median is not None for p in line.recall)]
        pictures["recall"] = Picture(broad, narrow, _words(shown, words))
    return pictures


def _words(lines: Sequence[Line], what: str) -> str:
    """Of the lines that have a number to show."""
    of = f"one line for each of {len(lines)} methods and variants"
    if len(lines) < 2:
        of = f"of {lines[0].title}" if lines else "without a line, as no method has a number"
    return f"Line chart: {what}, {of}." + (" The table below has the numbers." if lines else "")


def _span(lengths: Sequence[int]) -> str:
    return f"{lengths[0]:,}" if len(lengths) == 1 else f"{lengths[0]:,} to {lengths[-1]:,}"


class Curve(NamedTuple):
    """A line's places on the axis of lengths, its values there, and those of each seed, where they are to be shown."""

    line: Line
    lengths: list[int]
    values: list[float]
    by_seed: Sequence[Sequence[float]] = ()


# Of the mark of a seed, beside the line of all.
_SEED = {"linestyle": "none", "markersize": 2.5, "alpha": 0.45, "markeredgewidth": 0.0}

# Above the best value at the trained length, of what the enlarged panel shows.
ENLARGED = 0.05


def _figure(title: str, panels: int = 1, *, narrow: bool = False) -> tuple[Figure, list[Axes]]:
    size = (4.6, 3.4 if panels == 1 else 6.0) if narrow else (8.0, 4.6 if panels == 1 else 7.6)
    figure = Figure(figsize=size, layout="constrained")
    axes = list(figure.subplots(panels, 1, sharex=True, squeeze=False)[:, 0])
    if not narrow:  # where there is no room beside the heading it stands under
        axes[0].set_title(title, loc="left", weight="bold")
    for panel in axes:
        panel.grid(axis="y", color="#888888", alpha=0.3, linewidth=0.8)
        panel.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _mark_training(axes: Axes, train_length: int) -> None:
    axes.axvline(train_length, color="#888888", linestyle=":", linewidth=1.2)


def _mark_seeds(axes: Axes, places: Sequence[int], by_seed: Sequence[Sequence[float]], style: dict[str, Any]) -> None:
    if not by_seed:
        return
    values = zip(places, by_seed, strict=True)
    marks = [(place, value) for place, seeds in values if len(seeds) > 1 for value in seeds]
    if marks:
        look = {**style, **_SEED}
        axes.plot([place for place, _ in marks], [value for _, value in marks], label="_seeds", **look)


def _told(lines: Sequence[Line]) -> str:
    """What a figure's marks mean."""
    return "dotted: trained length" + ("; small marks: each seed" if len(lines[0].seeds) > 1 else "")


def _doublings(axes: Axes, lengths: Sequence[int], *, narrow: bool) -> None:
    axes.set_xscale("log", base=2)
    crowded = len(lengths) > (5 if narrow else 8)
    axes.set_xticks(lengths, [f"{length:,}" for length in lengths], rotation=45 if crowded else 0)
    axes.minorticks_off()


def enlarged(curves: Sequence[Curve], train_length: int) -> tuple[float, float] | None:
    """Limits that show the small changes of good methods where bad ones stretch the axis; None where none does."""
    values = [value for curve in curves for value in curve.values]
    trained = [c.values[c.lengths.index(train_length)] for c in curves if train_length in c.lengths]
    if not values or not trained:
        return None
    low, high = min(values), (1 + ENLARGED) * min(trained)
    margin = 0.05 * (high - low)
    return (low - margin, high) if max(values) > high + (high - low) else None


def _draw_bits(
    title: str, curves: Sequence[Curve], ticks: Sequence[int], train_length: int, label: str, *, narrow: bool
) -> Figure:
    """Means over seeds as lines, and each seed as a mark. No bands: most of an interval is that documents differ, which
    lines have in common."""
    zoom = enlarged(curves, train_length)
    figure, axes = _figure(title, panels=1 if zoom is None else 2, narrow=narrow)
    styles = line_styles([curve.line for curve in curves])
    for panel in axes:
        for (line, lengths, values, by_seed), style in zip(curves, styles, strict=True):
            _mark_seeds(panel, lengths, by_seed, style)
            # A point without a line would lie hidden behind the lines: a ring around them does not.
            ring = {"markersize": 9, "markerfacecolor": "none", "markeredgewidth": 1.5, "zorder": 3}
            look = ring if len(values) == 1 < len(ticks) else {"markersize": 4}
            panel.plot(lengths, values, label=line.title, **style, **look)
        _doublings(panel, ticks, narrow=narrow)
        _mark_training(panel, train_length)
        panel.set_ylabel("bits per byte, lower is better")
    axes[-1].set_xlabel(label)
    if zoom is not None:
        axes[1].set_ylim(zoom)
        axes[1].set_title(f"enlarged: to {ENLARGED:.0%} above the best at the trained length", loc="left", fontsize=10)
    name_lines(figure, axes[0], below=narrow)
    return figure


def _draw_losses(
    lines: Sequence[Line], protocol: LossProtocol, train_length: int, unit: str, *, narrow: bool
) -> Figure:
    curves: list[Curve] = []
    for line in lines:
        points = [(p, p.mean) for p in line.losses[protocol] if p.mean is not None]
        lengths, seeds = [p.length for p, _ in points], [p.by_seed for p, _ in points]
        curves.append(Curve(line, lengths, [mean for _, mean in points], seeds))
    ticks = [point.length for point in lines[0].losses[protocol]]
    label = f"window ({unit}); {_told(lines)}"
    return _draw_bits(_TITLES[protocol], curves, ticks, train_length, label, narrow=narrow)


def _draw_positions(lines: Sequence[Line], train_length: int, unit: str, *, narrow: bool) -> Figure:
    # The first bin begins at 0, which a logarithmic axis has not got.
    curves = [
        Curve(line, [bin_.end for bin_ in farthest(line)], [bin_.bits for bin_ in farthest(line)]) for line in lines
    ]
    ticks = [bin_.end for bin_ in longest_bins(lines)]
    label = f"position up to ({unit}); dotted: trained length"
    return _draw_bits("Loss by position in the longest window", curves, ticks, train_length, label, narrow=narrow)


def _draw_recall(lines: Sequence[Line], train_length: int, unit: str, *, narrow: bool) -> Figure:
    """Share recalled by distance, in windows of the longest length: the median over seeds."""
    longest = max(point.length for point in lines[0].recall)
    figure, (axes,) = _figure(f"Values recalled by distance, in windows of {longest:,} {unit}", narrow=narrow)
    for line, style in zip(lines, line_styles(lines), strict=True):
        points = [(p, p.median) for p in line.recall if p.length == longest and p.median is not None]
        distances = [p.distance for p, _ in points]
        _mark_seeds(axes, distances, [p.shares for p, _ in points], style)
        axes.plot(distances, [share for _, share in points], markersize=4, label=line.title, **style)
    _doublings(axes, [point.distance for point in lines[0].recall if point.length == longest], narrow=narrow)
    _mark_training(axes, train_length)
    axes.set_ylim(-0.03, 1.03)
    axes.set_xlabel(f"distance ({unit}); {_told(lines)}")
    axes.set_ylabel("share recalled" + (", median seed" if len(lines[0].seeds) > 1 else ""))
    name_lines(figure, axes, below=narrow)
    return figure
