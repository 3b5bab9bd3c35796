"""The picture of an experiment."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from alibi_attention.lab.config import ExperimentConfig
from alibi_attention.lab.files import replacing
from alibi_attention.lab.runs import MethodResult

# Okabe and Ito's palette, told apart with every kind of colour vision, and markers for print without colour.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
GREY = "#555555"
MARKERS = ("o", "s", "^", "D", "v", "P", "X")

# Labels at line ends stand at least this share of the axis apart.
LABEL_GAP = 0.055

# How many methods the line under the title has room for.
MAX_IN_FINDING = 4


def save_figures(results: Sequence[MethodResult], config: ExperimentConfig, paths: Sequence[Path]) -> None:
    """Draw the results and write them to each path, in the format of its suffix."""
    # A fixed salt and no date: the same results give the same SVG.
    with mpl.rc_context({"svg.hashsalt": "alibi", "svg.fonttype": "none", "font.size": 11.0}):
        figure = draw_figure(results, config)
        for path in paths:
            metadata = {"Date": None} if path.suffix == ".svg" else None
            with replacing(path) as temporary:
                figure.savefig(temporary, dpi=160, metadata=metadata)


def draw_figure(results: Sequence[MethodResult], config: ExperimentConfig) -> Figure:
    """Bits per byte against evaluation length, one labelled line per method, the training length marked."""
    figure = Figure(figsize=(8.0, 4.6), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.12, h_pad=0.08)  # type: ignore[union-attr, call-arg]
    axes = figure.subplots()
    styles = cycle(zip(COLOURS, MARKERS, strict=True))
    for result, (colour, marker) in zip(results, styles, strict=False):
        lengths = [score.length for score in result.scores]
        bits = [score.bits_per_byte for score in result.scores]
        axes.plot(lengths, bits, color=colour, marker=marker, markersize=5, linewidth=2, label=result.title)
    _label_ends(axes, results)
    _dress(axes, results, config)
    axes.set_title(f"Trained at {config.length} bytes, evaluated at longer lengths", loc="left", weight="bold", pad=26)
    axes.annotate(
        _finding(results),
        (0.0, 1.0),
        xycoords="axes fraction",
        xytext=(0, 8),
        textcoords="offset points",
        fontsize=10,
        color=GREY,
    )
    return figure


def _finding(results: Sequence[MethodResult]) -> str:
    """What the lines say, in numbers; of many methods only those that changed least and most."""
    changes = {result.title: result.scores[-1].bits_per_byte - result.scores[0].bits_per_byte for result in results}
    if len(changes) > MAX_IN_FINDING:
        ranked = sorted(changes, key=lambda title: changes[title])
        changes = {title: changes[title] for title in (ranked[0], ranked[-1])}
    first, last = results[0].scores[0].length, results[0].scores[-1].length
    listed = ", ".join(f"{title} {change:+.2f}".replace("-", "\N{MINUS SIGN}") for title, change in changes.items())
    return f"Change in bits per byte from {first} to {last}: {listed}"


def _dress(axes: Axes, results: Sequence[MethodResult], config: ExperimentConfig) -> None:
    lengths = [score.length for score in results[0].scores]
    axes.set_xscale("log", base=2)
    axes.set_xticks(lengths, [str(length) for length in lengths])
    axes.minorticks_off()
    axes.set_xlabel("evaluation length (bytes)")
    axes.set_ylabel("bits per byte, lower is better")
    axes.grid(axis="y", color="#dddddd", linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.axvline(config.length, color="#888888", linestyle=":", linewidth=1.2)
    axes.annotate(
        "training length",
        (config.length, 1.0),
        xycoords=("data", "axes fraction"),
        xytext=(5, -4),
        textcoords="offset points",
        va="top",
        fontsize=9,
        color=GREY,
    )


def _label_ends(axes: Axes, results: Sequence[MethodResult]) -> None:
    """Write each method's name at the right end of its line, pushed apart where lines end together."""
    low, high = axes.get_ylim()
    gap = LABEL_GAP * (high - low)
    floor = -float("inf")
    for line in sorted(axes.get_lines(), key=lambda line: float(line.get_ydata()[-1])):  # type: ignore[index, arg-type]
        end = float(line.get_ydata()[-1])  # type: ignore[index, arg-type]
        floor = max(end, floor + gap)
        axes.annotate(
            str(line.get_label()),
            (results[0].scores[-1].length, floor),
            xytext=(10, 0),
            textcoords="offset points",
            va="center",
            color=str(line.get_color()),
            weight="bold",
            annotation_clip=False,
        )
