"""Pictures of what is inside a trained decoder."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from alibi_attention.lab.figures import MARKERS, save_figure
from alibi_attention.lab.inside import Horizon, Inside, Tiles

NARROW = 4.6
"""Inches: the width of what is drawn for a phone."""

MOST_PANELS = 4
"""Heads whose tiles are drawn: of many, the steepest and the flattest and some between."""


def save_inside_figures(inside: Inside, folder: Path) -> list[Path]:
    """Draw all there is to draw, each as PNG and SVG; the paths."""
    figures = {"mass": draw_mass(inside)}
    if inside.horizon:
        figures["horizon"] = draw_horizon(inside)
        figures["tiles"] = draw_tiles(inside.tiles[0])
    paths = []
    for name, figure in figures.items():
        both = [folder / f"{name}.{suffix}" for suffix in ("png", "svg")]
        save_figure(figure, both)
        paths += both
    return paths


def draw_mass(inside: Inside, unit: str = "tokens", *, narrow: bool = False) -> Figure:
    """A row for each head, a column for each bin of distance, the share of mass as a colour."""
    mass = inside.mass
    shares = np.array(mass.shares)
    layers, heads, bins = shares.shape
    width, height, apart = (NARROW, 2.4, "\n") if narrow else (1.6 + 0.62 * bins, 1.5, " ")
    figure = Figure(figsize=(width, height + 0.2 * layers * heads), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(shares.reshape(-1, bins), cmap="cividis", aspect="auto", vmin=0.0, vmax=float(shares.max()))
    axes.set_xticks(range(bins), [bin_label(a, b) for a, b in pairwise(mass.edges)], rotation=90 if narrow else 0)
    axes.tick_params(axis="x", labelsize=8)
    axes.set_yticks([heads * layer + (heads - 1) / 2 for layer in range(layers)], [f"layer {i}" for i in range(layers)])
    for layer in range(1, layers):
        axes.axhline(heads * layer - 0.5, color="white", linewidth=2)
    axes.set_xlabel(f"distance to the key ({unit});{apart}head 0 of each layer on top")
    label = "share of a query's mass"
    if narrow:
        figure.colorbar(image, ax=axes, label=label, location="top", aspect=30)
    else:
        axes.set_title(f"Share of attention by distance, {mass.length:,} {unit}", fontsize=10)
        # Of a single layer the bar is shorter than its words.
        figure.colorbar(image, ax=axes, label=label.replace(" of ", "\nof ") if layers == 1 else label, shrink=0.9)
    return figure


def bin_label(first: int, end: int) -> str:
    """``"2–3"`` for [2, 4)."""
    return str(first) if end == first + 1 else f"{first}\u2013{end - 1}"


def draw_horizon(inside: Inside, unit: str = "tokens", *, narrow: bool = False) -> Figure:
    """Keys a block of queries needs against the length, one panel for each layer, one line for each head."""
    layers = 1 + max(cell.layer for cell in inside.horizon)
    heads = 1 + max(cell.head for cell in inside.horizon)
    columns = min(layers, 2 if narrow or layers == 4 else 3)
    rows = -(-layers // columns)
    size = (NARROW, 2.6 * rows + 0.5 + 0.1 * heads) if narrow else (2.9 * columns + 1.6, 3.2 * rows)
    figure = Figure(figsize=size, layout="constrained")
    panels: list[Axes] = figure.subplots(rows, columns, sharey=True, squeeze=False).flatten().tolist()
    # Neither end of the map, which would be lost on a dark page or on a white one.
    colours = mpl.colormaps["viridis"](np.linspace(0.25, 0.85, heads))
    lengths = sorted({cell.length for cell in inside.horizon})
    every = [every_key(n, inside.tiles[0].block_q) for n in lengths]
    for layer, axes in enumerate(panels[:layers]):
        for head in range(heads):
            cells = [cell for cell in inside.horizon if (cell.layer, cell.head) == (layer, head)]
            windows = [cell.mean_window for cell in cells]
            look = {"color": colours[head], "marker": MARKERS[head % len(MARKERS)], "markersize": 4}
            axes.plot(lengths, windows, label=_slopes_of(cells), **look)
        axes.plot(lengths, every, color="#888888", linestyle=":", label="all keys")
        axes.set_xscale("log", base=2)
        axes.set_yscale("log", base=2)
        axes.set_xticks(lengths, [f"{n:,}" for n in lengths], rotation=45, fontsize=8)
        axes.yaxis.set_major_formatter("{x:,.0f}")
        axes.minorticks_off()
        axes.set_title(f"layer {layer}", fontsize=10)
        axes.spines[["top", "right"]].set_visible(False)
    for axes in panels[max(0, layers - columns) : layers]:
        axes.set_xlabel(f"length ({unit})", fontsize=10)
    for axes in panels[layers:]:
        axes.set_axis_off()
    figure.supylabel("keys needed, mean over blocks of queries", fontsize=10)
    named = panels[0].get_lines()
    if narrow:
        figure.legend(handles=named, loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    else:
        figure.legend(handles=named, loc="outside right center", frameon=False, fontsize=9)
    return figure


def every_key(length: int, block: int) -> float:
    """Keys that blocks of queries need when nothing is skipped, those up to their ends: their mean."""
    return float(np.mean([min(first + block, length) for first in range(0, length, block)]))


def _slopes_of(cells: Sequence[Horizon]) -> str:
    """A head's slope, or the first and last of those that were scaled for each length."""
    slopes = [cell.slope for cell in cells]
    if min(slopes) == max(slopes):
        return f"m = {slopes[0]:.3g}"
    return f"m = {slopes[0]:.3g} to {slopes[-1]:.3g}"


def draw_tiles(tiles: Tiles, unit: str = "tokens", *, narrow: bool = False) -> Figure:
    """For some heads of a layer: tiles computed, skipped, and beyond the diagonal; queries down, keys across."""
    heads = len(tiles.ranges)
    chosen = sorted({round(i * (heads - 1) / max(1, MOST_PANELS - 1)) for i in range(min(MOST_PANELS, heads))})
    columns = min(len(chosen), 2) if narrow else len(chosen)
    rows = -(-len(chosen) // columns)
    figure = Figure(figsize=(NARROW, 2.3 * rows + 0.4) if narrow else (2.4 * columns, 3.0), layout="constrained")
    panels: list[Axes] = figure.subplots(rows, columns, squeeze=False).flatten().tolist()
    # The page shows beyond the diagonal, whatever its colour.
    colours = mpl.colors.ListedColormap(["#00000000", "#88888855", "#0072B2"])
    for axes in panels:
        axes.set_axis_off()
    for axes, head in zip(panels, chosen, strict=False):
        axes.set_axis_on()
        axes.imshow(tile_map(tiles, head), cmap=colours, vmin=0, vmax=2, aspect="auto", interpolation="nearest")
        axes.set_xticks([])
        axes.set_yticks([])
        axes.set_title(f"head {head}", fontsize=10)
    figure.supxlabel("keys", fontsize=9)
    figure.supylabel("queries, first on top", fontsize=9)
    what = "computed (blue), skipped (grey)"
    where = f"Layer {tiles.layer}, {tiles.length:,} {unit}: "
    figure.suptitle(what if narrow else f"{where}tiles {what}", fontsize=10)
    return figure


def tile_map(tiles: Tiles, head: int) -> np.ndarray:
    """(blocks of queries, tiles of keys) of 0 beyond the diagonal, 1 skipped, 2 computed."""
    columns = -(-tiles.length // tiles.block_k)
    found = np.zeros((len(tiles.ranges[head]), columns), dtype=np.uint8)
    for row, (first, end, sink) in enumerate(tiles.ranges[head]):
        last_query = min((row + 1) * tiles.block_q, tiles.length) - 1
        found[row, : last_query // tiles.block_k + 1] = 1
        found[row, first // tiles.block_k : -(-end // tiles.block_k)] = 2
        if sink:
            found[row, 0] = 2
    return found
