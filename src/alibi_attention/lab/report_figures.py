"""The figures of a report."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from alibi_attention.lab.figures import line_styles, name_lines
from alibi_attention.lab.summary import Line, LossProtocol

_TITLES: dict[LossProtocol, str] = {
    "windows": "Non-overlapping windows",
    "sliding": "Sliding window",
    "targets": "The same tokens with more before them",
}


def draw_report_figures(lines: Sequence[Line], train_length: int, unit: str) -> dict[str, Figure]:
    """A figure for every protocol that was evaluated, by name."""
    figures: dict[str, Figure] = {}
    for protocol in ("windows", "sliding", "targets"):
        if protocol in lines[0].losses:
            figures[protocol] = _draw_losses(lines, protocol, train_length, unit)
    if lines[0].by_position:
        figures["positions"] = _draw_positions(lines, train_length, unit)
    if lines[0].recall:
        figures["recall"] = _draw_recall(lines, train_length, unit)
    return figures


def _figure(title: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(8.0, 4.6), layout="constrained")
    axes = figure.subplots()
    axes.set_title(title, loc="left", weight="bold")
    axes.grid(axis="y", color="#888888", alpha=0.3, linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _mark_training(axes: Axes, train_length: int) -> None:
    axes.axvline(train_length, color="#888888", linestyle=":", linewidth=1.2)


def _doublings(axes: Axes, lengths: Sequence[int]) -> None:
    axes.set_xscale("log", base=2)
    axes.set_xticks(lengths, [str(length) for length in lengths], rotation=45 if len(lengths) > 8 else 0)
    axes.minorticks_off()


def _draw_losses(lines: Sequence[Line], protocol: LossProtocol, train_length: int, unit: str) -> Figure:
    """Means over seeds as lines. No bands: most of an interval is that documents differ, which lines have in common."""
    figure, axes = _figure(_TITLES[protocol])
    for line, style in zip(lines, line_styles(lines), strict=True):
        points = [point for point in line.losses[protocol] if point.mean is not None]
        lengths = [point.length for point in points]
        axes.plot(lengths, [float(point.mean or 0.0) for point in points], markersize=4, label=line.title, **style)
    _doublings(axes, [point.length for point in lines[0].losses[protocol]])
    _mark_training(axes, train_length)
    axes.set_xlabel(f"window ({unit}); dotted: trained length")
    axes.set_ylabel("bits per byte")
    name_lines(figure, axes)
    return figure


def _draw_positions(lines: Sequence[Line], train_length: int, unit: str) -> Figure:
    figure, axes = _figure("Loss by position in the longest window")
    for line, style in zip(lines, line_styles(lines), strict=True):
        if line.by_position:
            # The first bin begins at 0, which a logarithmic axis has not got.
            ends = [end for _, end, _ in line.by_position]
            bits = [value for _, _, value in line.by_position]
            axes.plot(ends, bits, markersize=3, label=line.title, **style)
    _doublings(axes, [end for _, end, _ in lines[0].by_position])
    _mark_training(axes, train_length)
    axes.set_xlabel(f"position up to ({unit}); dotted: trained length")
    axes.set_ylabel("bits per byte")
    name_lines(figure, axes)
    return figure


def _draw_recall(lines: Sequence[Line], train_length: int, unit: str) -> Figure:
    """Share recalled by distance, in windows of the longest length."""
    longest = max(score.length for score in lines[0].recall)
    figure, axes = _figure(f"Values recalled by distance, in windows of {longest}")
    for line, style in zip(lines, line_styles(lines), strict=True):
        scores = [score for score in line.recall if score.length == longest and score.share is not None]
        shares = [float(score.share or 0.0) for score in scores]
        axes.plot([score.distance for score in scores], shares, markersize=4, label=line.title, **style)
    _doublings(axes, [score.distance for score in lines[0].recall if score.length == longest])
    _mark_training(axes, train_length)
    axes.set_ylim(-0.03, 1.03)
    axes.set_xlabel(f"distance ({unit}); dotted: trained length")
    axes.set_ylabel("share recalled")
    name_lines(figure, axes)
    return figure
