"""The bias of each head and the slopes behind it, as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure

from alibi_attention import alibi_slopes, build_alibi_bias
from alibi_attention.lab.files import replacing

PER_ROW = 4


def save_bias_figure(num_heads: int, lengths: Sequence[int], path: Path) -> None:
    """Draw -m_h * (i - j) for every head, and the slopes m_h, to a file of any format."""
    with mpl.rc_context({"svg.hashsalt": "alibi", "font.size": 10.0}), replacing(path) as temporary:
        draw_bias_figure(num_heads, lengths).savefig(temporary, dpi=160)


def draw_bias_figure(num_heads: int, lengths: Sequence[int]) -> Figure:
    """Left: one panel per head, one colour scale for all. Right: the slopes on a logarithmic axis.

    Args:
        num_heads: H, the steepest first.
        lengths: tokens that a row of four heads is drawn over: flat heads need more of them to show a slope.
    """
    slopes = alibi_slopes(num_heads)
    columns = min(PER_ROW, num_heads)
    rows = -(-num_heads // columns)
    figure = Figure(figsize=(10.0, 0.8 + 1.85 * rows), layout="constrained")
    left, right = figure.subfigures(1, 2, squeeze=False, width_ratios=(2.2, 1.0))[0]

    colours = mpl.colormaps["cividis"].with_extremes(bad="white")
    panels = left.subplots(rows, columns, squeeze=False).flatten().tolist()
    for head, axes in enumerate(panels):
        axes.set_axis_off()
        if head < num_heads:
            length = lengths[head // columns]
            bias = build_alibi_bias(1, length, slopes=slopes[head : head + 1])[0]
            # Ten nats down a key is as good as gone; a longer scale would hide the steep heads.
            image = axes.imshow(bias.numpy(), cmap=colours, vmin=-10.0, vmax=0.0, interpolation="nearest")
            slope = f"$m = 2^{{{slopes[head].log2().item():.3g}}}$"
            axes.set_title(f"head {head}, {slope}\n{length:,} tokens", fontsize=9)
    left.suptitle("Bias -m · (i - j): query i down, key j across", fontsize=10)
    left.colorbar(image, ax=panels, label="nats", extend="min", shrink=0.9)

    axes = right.subplots()
    axes.plot(range(num_heads), slopes.numpy(), color="#0072B2", marker="o")
    axes.set_yscale("log", base=2)
    axes.set_xticks(range(num_heads))
    axes.set_xlabel("head")
    axes.set_ylabel("slope m, nats per token")
    axes.grid(axis="y", color="#dddddd", linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    return figure
