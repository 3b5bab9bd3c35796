"""Pictures of a run: speed-up over the strongest peer, and time per token, against length."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import wrap

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, NullLocator

from alibi_attention.bench.case import short
from alibi_attention.bench.compare import comparisons
from alibi_attention.bench.results import Results, TrialResult
from alibi_attention.lab.files import replacing

PEER = "sdpa-row"
PEER_TITLE = "SDPA with row bias"

# Okabe and Ito's palette, told apart with every kind of colour vision; markers for print without colour.
BLUE, VERMILION, GREY = "#0072B2", "#D55E00", "#555555"


@dataclass(frozen=True)
class Point:
    length: int
    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Line:
    """A line and how it is drawn; with ``solid`` false dashed, with hollow markers."""

    title: str
    colour: str
    marker: str
    solid: bool
    points: Sequence[Point]


def save_figures(results: Results, folder: Path, stem: str) -> list[Path]:
    """Write ``stem``-speedup and ``stem``-per-token as PNG and SVG, those that have anything to show."""
    drawn = {"speedup": draw_speedup(results), "per-token": draw_per_token(results)}
    written = []
    for name, figure in drawn.items():
        for suffix in (".png", ".svg"):
            if figure is not None:
                path = folder / f"{stem}-{name}{suffix}"
                save_figure(figure, path)
                written.append(path)
    return written


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure as PNG or SVG, the same file for the same figure."""
    metadata = {"Date": None} if path.suffix == ".svg" else None
    # A fixed salt and no date: the same results give the same SVG.
    with mpl.rc_context({"svg.hashsalt": "alibi", "svg.fonttype": "none", "font.size": 11.0}), replacing(path) as file:
        figure.savefig(file, dpi=160, metadata=metadata)


def draw_speedup(results: Results) -> Figure | None:
    """The default backend's ratio to the row bias, one panel for forward and one for forward and backward."""
    panels = []
    for mode, title in (("forward", "Forward"), ("training", "Forward and backward")):
        lines = [
            _speedup_line(results, f"{mode}-{kind}", words, colour, head_dim)
            for kind, words, colour in (("horizon", "skipping", VERMILION), ("dense", "every tile", BLUE))
            for head_dim in (64, 128)
        ]
        panels.append((title, [line for line in lines if line.points]))
    panels = [panel for panel in panels if panel[1]]
    if not panels:
        return None
    title = f"Speed-up over {PEER_TITLE}, the strongest form of the peer"
    return _draw(panels, title, "times faster", _source(results), _mark_peer)


def draw_per_token(results: Results) -> Figure | None:
    """Microseconds per token of a forward pass, one panel for each head dimension."""
    panels = []
    for head_dim in (64, 128):
        lines = [
            Line(
                "alibi-attention, skipping",
                VERMILION,
                "o",
                True,
                _times(results, head_dim, ("sweep", "forward-horizon"), None),
            ),
            Line("alibi-attention, every tile", BLUE, "s", True, _times(results, head_dim, ("forward-dense",), None)),
            Line(PEER_TITLE, GREY, "^", False, _times(results, head_dim, ("forward-dense", "forward-horizon"), PEER)),
        ]
        panels.append((f"Head dimension {head_dim}", [line for line in lines if line.points]))
    panels = [panel for panel in panels if panel[1]]
    if not panels:
        return None
    title = "Time of a forward pass per token, 8 heads"
    return _draw(panels, title, "µs per token, lower is better", _source(results))


def _speedup_line(results: Results, case: str, words: str, colour: str, head_dim: int) -> Line:
    points = [
        Point(trial.keys, each.ratio.median, each.ratio.low, each.ratio.high)
        for trial in results.trials
        if trial.case == case and trial.head_dim == head_dim
        for each in comparisons(trial)
        if each.ours.default and each.peer.name == PEER
    ]
    points.sort(key=lambda point: point.length)
    small = head_dim == 64
    return Line(f"{words}, D={head_dim}", colour, "o" if small else "s", small, points)


def _times(results: Results, head_dim: int, cases: Sequence[str], peer: str | None) -> list[Point]:
    """Per token, of a peer or of our default; the first of the cases has the say where several know a length."""
    found: dict[int, Point] = {}
    for case in cases:
        for trial in results.trials:
            if (trial.case, trial.head_dim) == (case, head_dim) and trial.keys not in found:
                point = _time(trial, peer)
                if point is not None:
                    found[trial.keys] = point
    return [found[length] for length in sorted(found)]


def _time(trial: TrialResult, peer: str | None) -> Point | None:
    entry = trial.default if peer is None else trial.entry(peer)
    if entry is None or entry.counted is None or entry.seconds is None:
        return None
    values = [value / trial.queries * 1e6 for value in entry.counted.seconds if value is not None]
    return Point(trial.keys, entry.seconds / trial.queries * 1e6, min(values), max(values))


def _source(results: Results) -> str:
    """Where it was measured, and what the bars are."""
    here = results.machine
    quick = "a quick look, not a measurement; " if results.settings.get("quick") else ""
    return (
        f"{quick}{here['processor']}, {here['threads']} threads, torch {here['torch']}, {here['date'][:10]}. "
        "Medians; bars are the range over rounds. Peers with denormals flushed where that is faster."
    )


def _draw(
    panels: Sequence[tuple[str, Sequence[Line]]],
    title: str,
    label: str,
    source: str,
    finish: Callable[[Axes, Sequence[Line]], None] | None = None,
) -> Figure:
    figure = Figure(figsize=(2.0 + 4.6 * len(panels), 4.8), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.1, h_pad=0.08)  # type: ignore[union-attr, call-arg]
    figure.suptitle(title, x=0.01, ha="left", weight="bold", fontsize=12)
    figure.supxlabel("\n".join(wrap(source, 85 * len(panels))), x=0.01, ha="left", fontsize=8.5, color=GREY)
    row = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    named: set[str] = set()
    for axes, (heading, lines) in zip(row, panels, strict=True):
        axes.set_title(heading, loc="left", fontsize=11)
        for line in lines:
            _plot(axes, line)
        _dress(axes, lines)
        if finish is not None:
            finish(axes, lines)
        # One legend serves panels of the same lines.
        if not {line.title for line in lines} <= named:
            axes.legend(handles=[_sample_of(line) for line in lines], frameon=False, fontsize=9.5, loc="upper left")
            named |= {line.title for line in lines}
    row[0].set_ylabel(label)
    return figure


def _sample_of(line: Line) -> Line2D:
    """The line as the legend shows it."""
    sample = Line2D([], [], color=line.colour, marker=line.marker, label=line.title)
    if not line.solid:
        sample.set_linestyle("--")
        sample.set_markerfacecolor("white")
    return sample


def _plot(axes: Axes, line: Line) -> None:
    """Medians, with the range over the rounds as a bar."""
    values = [point.value for point in line.points]
    ranges = [
        [point.value - point.low for point in line.points],
        [point.high - point.value for point in line.points],
    ]
    axes.errorbar(
        [point.length for point in line.points], values, yerr=ranges, label=line.title, color=line.colour,
        marker=line.marker, markersize=5.5, linewidth=1.8, linestyle="-" if line.solid else "--",
        markerfacecolor=line.colour if line.solid else "white", elinewidth=1.2, capsize=3,
    )  # fmt: skip


def _dress(axes: Axes, lines: Sequence[Line]) -> None:
    lengths = sorted({point.length for line in lines for point in line.points})
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=2)
    # Every second label where there is no room for all.
    shown = lengths if len(lengths) <= 6 else lengths[::-2][::-1]
    axes.set_xticks(shown, [short(length) for length in shown])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set_xlabel("length, tokens")
    axes.grid(axis="y", color="#dddddd", linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)


def _mark_peer(axes: Axes, lines: Sequence[Line]) -> None:
    axes.axhline(1.0, color=GREY, linewidth=1.2)
    values = [point.value for line in lines for point in line.points]
    low, high = min([*values, 1.0]), max([*values, 2.0])
    axes.set_ylim(min(axes.get_ylim()[0], low / 1.3), max(axes.get_ylim()[1], high * 1.3))
    axes.annotate(
        f"{PEER_TITLE} = 1", (1.0, 1.0), xycoords=("axes fraction", "data"), xytext=(0, -4),
        textcoords="offset points", ha="right", va="top", fontsize=9, color=GREY,
    )  # fmt: skip
