"""Pictures of what is inside a trained decoder."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from alibi_attention.lab.figures import save_figure
from alibi_attention.lab.inside import Inside, Tiles

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


def draw_mass(inside: Inside) -> Figure:
    """A row for each head, a column for each bin of distance, the share of mass as a colour."""
    mass = inside.mass
    shares = np.array(mass.shares)
    layers, heads, bins = shares.shape
    figure = Figure(figsize=(1.6 + 0.62 * bins, 1.5 + 0.2 * layers * heads), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(shares.reshape(-1, bins), cmap="cividis", aspect="auto", vmin=0.0, vmax=float(shares.max()))
    axes.set_xticks(range(bins), [_bin_label(a, b) for a, b in pairwise(mass.edges)])
    axes.tick_params(axis="x", labelsize=8)
    axes.set_yticks([heads * layer + (heads - 1) / 2 for layer in range(layers)], [f"layer {i}" for i in range(layers)])
    for layer in range(1, layers):
        axes.axhline(heads * layer - 0.5, color="white", linewidth=2)
    axes.set_xlabel("distance to the key (tokens)")
    axes.set_title(f"Share of attention by distance, {heads} heads a layer, {mass.length} tokens", fontsize=10)
    figure.colorbar(image, ax=axes, label="share of a query's mass", shrink=0.9)
    return figure


def _bin_label(first: int, end: int) -> str:
    return str(first) if end == first + 1 else f"{first}\u2013{end - 1}"


def draw_horizon(inside: Inside) -> Figure:
    """Keys a block of queries needs against the length, one panel for each layer, one line for each head."""
    layers = 1 + max(cell.layer for cell in inside.horizon)
    heads = 1 + max(cell.head for cell in inside.horizon)
    figure = Figure(figsize=(2.6 * layers + 1.4, 3.6), layout="constrained")
    panels: Sequence[Axes] = figure.subplots(1, layers, sharey=True, squeeze=False)[0].tolist()
    colours = mpl.colormaps["viridis"](np.linspace(0.0, 0.9, heads))
    for layer, axes in enumerate(panels):
        for head in range(heads):
            cells = [cell for cell in inside.horizon if (cell.layer, cell.head) == (layer, head)]
            lengths = [cell.length for cell in cells]
            windows = [cell.mean_window for cell in cells]
            axes.plot(
                lengths, windows, color=colours[head], marker="o", markersize=3, label=f"m = {cells[0].slope:.3g}"
            )
        # What a block needs when nothing is skipped: the keys up to its end, half the length on average.
        block = inside.tiles[0].block_q
        axes.plot(lengths, [(n + block) / 2 for n in lengths], color="#888888", linestyle=":", label="all keys")
        axes.set_xscale("log", base=2)
        axes.set_yscale("log", base=2)
        axes.set_xticks(lengths, [str(n) for n in lengths], rotation=45, fontsize=8)
        axes.minorticks_off()
        axes.set_title(f"layer {layer}", fontsize=10)
        axes.set_xlabel("length (tokens)")
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("keys needed, mean")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right center", frameon=False, fontsize=8)
    return figure


def draw_tiles(tiles: Tiles) -> Figure:
    """For some heads of a layer: tiles computed, skipped, and beyond the diagonal; queries down, keys across."""
    heads = len(tiles.ranges)
    chosen = sorted({round(i * (heads - 1) / max(1, MOST_PANELS - 1)) for i in range(min(MOST_PANELS, heads))})
    figure = Figure(figsize=(2.4 * len(chosen), 3.0), layout="constrained")
    panels = figure.subplots(1, len(chosen), squeeze=False)[0].tolist()
    colours = mpl.colors.ListedColormap(["#ffffff", "#dddddd", "#0072B2"])
    for axes, head in zip(panels, chosen, strict=True):
        axes.imshow(tile_map(tiles, head), cmap=colours, vmin=0, vmax=2, aspect="auto", interpolation="nearest")
        axes.set_xticks([])
        axes.set_yticks([])
        axes.set_title(f"head {head}", fontsize=10)
    figure.suptitle(
        f"Layer {tiles.layer}, {tiles.length} tokens: tiles computed (blue) and skipped (grey)", fontsize=10
    )
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
