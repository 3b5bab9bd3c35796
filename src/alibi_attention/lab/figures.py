"""The picture of an experiment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any, Protocol

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from alibi_attention.lab.config import ExperimentConfig
from alibi_attention.lab.files import replacing
from alibi_attention.lab.runs import MethodResult, evaluations_of
from alibi_attention.lab.scores import Evaluation
from alibi_attention.lab.tables import signed

# Okabe and Ito's palette, told apart with every kind of colour vision, and markers for print without colour.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C6D31")
GREY = "#555555"
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
DASHES = ("-", "--", ":", "-.")

# More lines than this, or longer names, stand in a legend, which needs so many inches.
MOST_LABELS = 6
LONG_NAME = 16
LEGEND_WIDTH = 2.6

# Labels at line ends stand at least this share of the axis apart.
LABEL_GAP = 0.055

# How many methods the line under the title has room for.
MAX_IN_FINDING = 4
MAX_LETTERS = 90


def save_figures(results: Sequence[MethodResult], config: ExperimentConfig, paths: Sequence[Path]) -> None:
    """Draw the results and write them to each path, in the format of its suffix."""
    with mpl.rc_context({"font.size": 11.0}):
        save_figure(draw_figure(results, config), paths)


def save_figure(figure: Figure, paths: Sequence[Path]) -> None:
    """Write a figure to each path, in the format of its suffix."""
    # A fixed salt and no date: the same results give the same SVG.
    with mpl.rc_context({"svg.hashsalt": "alibi", "svg.fonttype": "none"}):
        for path in paths:
            metadata = {"Date": None} if path.suffix == ".svg" else None
            with replacing(path) as temporary:
                figure.savefig(temporary, dpi=160, metadata=metadata)


def draw_figure(results: Sequence[MethodResult], config: ExperimentConfig) -> Figure:
    """Bits per byte against evaluation length, one labelled line per evaluation, the training length marked.

    Where recall alone was evaluated, the share recalled by distance.
    """
    evaluations = evaluations_of(results)
    return _draw_losses(evaluations, config) if evaluations[0].scores else _draw_recall(evaluations, config)


def _draw_recall(evaluations: Sequence[Evaluation], config: ExperimentConfig) -> Figure:
    figure = Figure(figsize=(8.0, 4.6), layout="constrained")
    axes = figure.subplots()
    longest = max(score.length for score in evaluations[0].recall)
    for evaluation, style in zip(evaluations, line_styles(evaluations), strict=True):
        scores = [score for score in evaluation.recall if score.length == longest and score.share is not None]
        shares = [float(score.share or 0.0) for score in scores]
        axes.plot([score.distance for score in scores], shares, markersize=5, label=evaluation.title, **style)
    axes.set_ylim(-0.03, 1.03)
    _dress(axes, [score.distance for score in evaluations[0].recall if score.length == longest], config)
    axes.set_ylabel("share recalled, higher is better")
    name_lines(figure, axes)
    unit = "bytes" if config.tokenizer == "bytes" else "tokens"
    axes.set_title(f"Values recalled by distance, in windows of {longest:,} {unit}", loc="left", weight="bold")
    axes.set_xlabel(f"distance ({unit})")
    return figure


def _draw_losses(evaluations: Sequence[Evaluation], config: ExperimentConfig) -> Figure:
    figure = Figure(figsize=(8.0, 4.6), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.12, h_pad=0.08)  # type: ignore[union-attr, call-arg]
    axes = figure.subplots()
    for evaluation, style in zip(evaluations, line_styles(evaluations), strict=True):
        scored = [score for score in evaluation.scores if score.bits_per_byte is not None]
        lengths = [score.length for score in scored]
        bits = [float(score.bits_per_byte or 0.0) for score in scored]
        axes.plot(lengths, bits, markersize=5, linewidth=2, label=evaluation.title, **style)
    lengths = [score.length for score in evaluations[0].scores]
    _dress(axes, lengths, config)
    name_lines(figure, axes)
    unit = "bytes" if config.tokenizer == "bytes" else "tokens"
    title = f"Trained at {config.length:,} {unit}, evaluated at longer lengths"
    axes.set_title(title, loc="left", weight="bold", pad=26)
    axes.set_xlabel(f"evaluation length ({unit})")
    finding = axes.annotate(
        _finding(evaluations),
        (0.0, 1.0),
        xycoords="axes fraction",
        xytext=(0, 8),
        textcoords="offset points",
        fontsize=10,
        color=GREY,
    )
    # A line of text above the axes has the whole figure's width; the axes need not shrink for it.
    finding.set_in_layout(False)
    return figure


class Named(Protocol):
    """What has a name such as ``"rope:yarn"``."""

    @property
    def name(self) -> str: ...


def line_styles(evaluations: Sequence[Named]) -> list[dict[str, Any]]:
    """A colour and a marker for each method; its variants have the same in other dashes."""
    looks = cycle(zip(COLOURS, MARKERS, strict=True))
    methods: dict[str, tuple[str, str]] = {}
    seen: dict[str, int] = {}
    styles = []
    for evaluation in evaluations:
        method = evaluation.name.partition(":")[0]
        if method not in methods:
            methods[method] = next(looks)
        colour, marker = methods[method]
        dash = DASHES[seen.get(method, 0) % len(DASHES)]
        seen[method] = seen.get(method, 0) + 1
        styles.append({"color": colour, "marker": marker, "linestyle": dash})
    return styles


def _finding(evaluations: Sequence[Evaluation]) -> str:
    """What the lines say, in numbers; of many only those that changed least and most."""
    changes = {}
    for evaluation in evaluations:
        first, last = evaluation.scores[0].bits_per_byte, evaluation.scores[-1].bits_per_byte
        if first is not None and last is not None:
            changes[evaluation.title] = last - first
    text = _changes(evaluations, changes)
    if len(changes) > MAX_IN_FINDING or len(text) > MAX_LETTERS:
        ranked = sorted(changes, key=lambda title: changes[title])
        text = _changes(evaluations, {title: changes[title] for title in (ranked[0], ranked[-1])})
    return text


def _changes(evaluations: Sequence[Evaluation], changes: Mapping[str, float]) -> str:
    first, last = evaluations[0].scores[0].length, evaluations[0].scores[-1].length
    listed = ", ".join(f"{title} {signed(change)}" for title, change in changes.items())
    return f"Change in {evaluations[0].unit} from {first:,} to {last:,}: {listed or 'none measured'}"


def _dress(axes: Axes, lengths: Sequence[int], config: ExperimentConfig) -> None:
    axes.set_xscale("log", base=2)
    axes.set_xticks(lengths, [f"{length:,}" for length in lengths])
    axes.minorticks_off()
    unit = "bits per masked byte" if config.objective == "masked" else "bits per byte"
    axes.set_ylabel(f"{unit}, lower is better")
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


def name_lines(figure: Figure, axes: Axes, *, below: bool = False) -> None:
    """Each line's name beside its right end, or, of many, in a legend to the right of the axes; or a legend below."""
    lines = [line for line in axes.get_lines() if len(line.get_ydata()) > 0 and not _is_mark(line)]  # type: ignore[arg-type]
    if below:
        columns = 1 if any(len(str(line.get_label())) > LONG_NAME for line in lines) else 2
        rows = -(-len(lines) // columns)
        figure.set_figheight(figure.get_figheight() + 0.3 + 0.2 * rows)
        figure.legend(
            handles=lines, loc="outside lower left", frameon=False, fontsize=9.5, handlelength=3.0, ncols=columns
        )
    elif len(lines) > MOST_LABELS or any(len(str(line.get_label())) > LONG_NAME for line in lines):
        figure.set_size_inches(8.0 + LEGEND_WIDTH, max(figure.get_figheight(), 1.4 + 0.24 * len(lines)))
        figure.legend(handles=lines, loc="outside right center", frameon=False, fontsize=9, handlelength=3.0)
    else:
        _label_ends(axes, lines)


def _label_ends(axes: Axes, lines: Sequence[Line2D]) -> None:
    """Names at the ends of lines, pushed apart where lines end together."""
    low, high = axes.get_ylim()
    gap = LABEL_GAP * (high - low)
    floor = -float("inf")
    for line in sorted(lines, key=lambda line: float(line.get_ydata()[-1])):  # type: ignore[index, arg-type]
        end = float(line.get_ydata()[-1])  # type: ignore[index, arg-type]
        floor = max(end, floor + gap)
        axes.annotate(
            str(line.get_label()),
            (float(line.get_xdata()[-1]), floor),  # type: ignore[index, arg-type]
            xytext=(10, 0),
            textcoords="offset points",
            va="center",
            color=str(line.get_color()),
            weight="bold",
            annotation_clip=False,
        )


def _is_mark(line: Line2D) -> bool:
    """Whether it is no line of ours: matplotlib gives unnamed ones, such as the training length, this prefix."""
    return str(line.get_label()).startswith("_")
