"""The pictures and the numbers of docs/horizon.md.

    python docs/figures/horizon.py

writes horizon-*.png beside this file and prints every number the page quotes. Needs matplotlib (the ``lab`` extra),
one core and about a minute. Inputs are standard normal with fixed seeds, so only the times differ from run to run.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import matplotlib as mpl
import torch
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from alibi_attention import Certificate, alibi_attention, alibi_slopes, certify
from alibi_attention.call import call_arguments, problem_of
from alibi_attention.horizon.bounds import Horizon, horizon_bounds
from alibi_attention.horizon.plan import narrow
from alibi_attention.horizon.tiles import BLOCK_K, BLOCK_Q, visible_tiles
from alibi_attention.visibility import row_ranges

HERE = Path(__file__).parent
HEADS, DIM = 8, 64
SLOPES = alibi_slopes(HEADS)
SHOWN = (0, 2, 4, 7)
LENGTHS = (2048, 8192, 32768)
ROUNDING = 2.0**-24

# Okabe and Ito's palette.
BLUE, ORANGE, SKY, BLACK = "#0072B2", "#D55E00", "#56B4E9", "#222222"
INVISIBLE, SKIPPED, COMPUTED, APART = "#FFFFFF", "#DDE3E8", BLUE, ORANGE
TILE_COLOURS = ListedColormap([INVISIBLE, SKIPPED, COMPUTED, APART])
STYLE = {
    "font.size": 10.5,
    "axes.titlesize": 10.5,
    "axes.edgecolor": "#888888",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
}


def normal(length: int, *, seed: int = 0, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    """Standard normal query, key and value of shape (1, 8, length, 64)."""
    generator = torch.Generator().manual_seed(seed)
    query, key, value = (torch.randn(1, HEADS, length, DIM, generator=generator) for _ in range(3))
    return query.to(dtype), key.to(dtype), value.to(dtype)


def slope_name(head: int) -> str:
    return f"m = 1/{round(1 / SLOPES[head].item())}"


def heading(text: str) -> None:
    print(f"\n== {text}")


def save(figure: Figure, name: str) -> None:
    path = HERE / name
    # No date and no version: the same inputs give the same file.
    figure.savefig(path, dpi=200, metadata={"Software": None})
    print(f"   {path.name}: {path.stat().st_size / 1024:.0f} KB")


# Tile maps


def tile_map(certificate: Certificate, length: int, head: int) -> Tensor:
    """(query blocks, key tiles): 0 invisible, 1 skipped, 2 computed, 3 computed because it was kept apart."""
    tiles = torch.arange(-(-length // BLOCK_K))
    last_row = (torch.arange(-(-length // BLOCK_Q)) + 1) * BLOCK_Q - 1
    first = (certificate.first_key[0, head] // BLOCK_K).unsqueeze(1)
    end = (-(-certificate.end_key[0, head] // BLOCK_K)).unsqueeze(1)
    seen = tiles * BLOCK_K <= last_row.unsqueeze(1)
    found = seen.int()
    found[(tiles >= first) & (tiles < end)] = 2
    found[certificate.sink_keys[0, head], 0] = 3
    return found


def draw_tiles(axes: Axes, found: Tensor, length: int) -> None:
    axes.imshow(
        found.numpy(), cmap=TILE_COLOURS, vmin=0, vmax=3, interpolation="nearest", aspect="auto",
        extent=(0, length / 1024, length / 1024, 0),
    )  # fmt: skip
    axes.set_box_aspect(1)
    axes.set_xticks([0, length / 1024], ["0", f"{length // 1024}K"])
    axes.set_yticks([0, length / 1024], ["0", f"{length // 1024}K"])
    axes.tick_params(length=2, labelsize=9, pad=2)


def legend(figure: Figure, *, apart: bool) -> None:
    entries = [
        Patch(facecolor=COMPUTED, label="computed"),
        Patch(facecolor=SKIPPED, label="visible, skipped"),
        Patch(facecolor=INVISIBLE, edgecolor="#AAAAAA", label="not visible (causal)"),
    ]
    if apart:
        entries.insert(1, Patch(facecolor=APART, label="computed, kept apart"))
    figure.legend(handles=entries, loc="outside upper center", ncols=len(entries), frameon=False, handlelength=1.2)


def figure_tiles() -> None:
    heading("Which tiles are computed (standard normal, 8 heads, d = 64)")
    figure = Figure(figsize=(9, 7.1), layout="constrained")
    figure.get_layout_engine().set(h_pad=0.02, hspace=0)
    grid = figure.subplots(len(LENGTHS), len(SHOWN))
    for axes_row, length in zip(grid, LENGTHS, strict=True):
        query, key, _ = normal(length)
        certificate = certify(query, key)
        shares = certificate.kept_share
        windows = certificate.window.double().mean((0, 2))
        print(f"   {length}: kept " + " ".join(f"{share:.1%}" for share in shares.tolist()), end="")
        print(f", all {shares.mean().item():.1%}, mean window {windows.mean().item():.0f} keys")
        for axes, head in zip(axes_row, SHOWN, strict=True):
            draw_tiles(axes, tile_map(certificate, length, head), length)
            axes.text(
                0.97, 0.95, f"{shares[head].item():.1%}", transform=axes.transAxes, ha="right", va="top",
                fontsize=12, fontweight="bold", color=BLACK,
            )  # fmt: skip
            if length == LENGTHS[0]:
                axes.set_title(f"head {head}, {slope_name(head)}")
        axes_row[0].set_ylabel(f"{length // 1024}K tokens\nqueries", linespacing=1.6)
    for axes in grid[-1]:
        axes.set_xlabel("keys", labelpad=-4)
    legend(figure, apart=False)
    save(figure, "horizon-tiles.png")


# One query


def one_query(query: Tensor, key: Tensor, tolerance: float = ROUNDING) -> tuple[Tensor, Tensor]:
    """For the last query alone: the bound on the share dropped, and the true share, (heads, tiles dropped - 1)."""
    last = query[:, :, -1:]
    horizon, _ = bounds_of(last, key, tolerance)
    counts = torch.arange(1, horizon.left.mass.shape[-1])
    bound = torch.stack([horizon.left.excess(torch.full((1, HEADS, 1), int(n)))[0, :, 0] for n in counts], dim=-1)
    distance = torch.arange(key.shape[2] - 1, -1, -1, dtype=torch.float64)
    scores = (last.double() @ key.double().transpose(-1, -2))[0, :, 0] * DIM**-0.5
    mass = torch.softmax(scores - SLOPES.double().unsqueeze(1) * distance, -1).cumsum(-1)
    return torch.exp(bound) * tolerance, mass[:, counts * BLOCK_K - 1]


def bounds_of(query: Tensor, key: Tensor, tolerance: float = ROUNDING) -> tuple[Horizon, Tensor]:
    """The horizon as the library forms it, and the visible tiles."""
    query, key, value, slopes, *call = call_arguments(
        query, key, key, None, is_causal=True, scale=None, query_offset=None, key_mask=None, cu_seqlens=None,
        cu_seqlens_k=None, window=None, dropout_p=0.0, tolerance=tolerance, backend=None,
    )  # fmt: skip
    problem, _ = problem_of(query, key, value, *call)
    rows = row_ranges(problem)
    return horizon_bounds(problem, rows, query, key, None, slopes), visible_tiles(problem, rows)


def figure_bound() -> None:
    length = LENGTHS[-1]
    heading(f"How the bound falls: the last query of {length} keys")
    query, key, _ = normal(length)
    bound, truth = one_query(query, key)
    distance = length - torch.arange(1, bound.shape[-1] + 1) * BLOCK_K
    assert bool((truth <= bound).all()), "the bound is below the mass it bounds"
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    for axes, head in zip(figure.subplots(1, 3, sharey=True), SHOWN[1:], strict=True):
        certified = distance[bound[head] <= ROUNDING].min().item()
        needed = distance[truth[head] <= ROUNDING].min().item()
        gap = math.log((bound[head] / truth[head])[distance == certified].item())
        print(f"   head {head}: certified {certified} keys, ideal {needed}; bound {gap:.1f} nats above the true share")
        axes.axhline(ROUNDING, color=BLACK, linewidth=1, linestyle=(0, (4, 3)))
        axes.plot(distance, bound[head].clamp_max(1e3), color=ORANGE, linewidth=2)
        axes.plot(distance, truth[head], color=BLUE, linewidth=2)
        axes.plot([certified, needed], [ROUNDING] * 2, "o", color=BLACK, markersize=5)
        for line, (name, tokens, colour) in enumerate((("certified", certified, ORANGE), ("ideal", needed, BLUE))):
            axes.text(
                0.98, 0.97 - 0.09 * line, f"{name}: {tokens:,} keys", transform=axes.transAxes, ha="right", va="top",
                color=colour, fontweight="bold",
            )  # fmt: skip
        axes.set(
            yscale="log", ylim=(1e-13, 1e3), xlim=(0, 2 * certified), title=f"head {head}, {slope_name(head)}",
        )  # fmt: skip
        axes.set_yticks([1, 1e-4, 1e-8, 1e-12])
        axes.minorticks_off()
        axes.xaxis.set_major_locator(MaxNLocator(4))
        axes.xaxis.set_major_formatter(lambda x, _: f"{x:,.0f}")
        axes.set_xlabel("keys dropped from this distance on")
        if head == SHOWN[1]:
            axes.set_ylabel("share of the row's mass")
    figure.legend(
        handles=[
            mpl.lines.Line2D([], [], color=ORANGE, linewidth=2, label="certified upper bound"),
            mpl.lines.Line2D([], [], color=BLUE, linewidth=2, label="true share"),
            mpl.lines.Line2D([], [], color=BLACK, linewidth=1, linestyle=(0, (4, 3)), label="tolerance, 2⁻²⁴"),
        ],
        loc="outside upper center", ncols=3, frameon=False,
    )  # fmt: skip
    save(figure, "horizon-bound.png")


# Sinks and outliers


def figure_outliers() -> None:
    length, head, old = 8192, 4, 2048
    heading(f"A sink and an old outlier: {length} keys, head {head}, one key made longer")
    query, plain, _ = normal(length)
    with_sink, with_outlier = plain.clone(), plain.clone()
    with_sink[:, :, 0] *= 16
    with_outlier[:, :, old] *= 8
    figure = Figure(figsize=(9, 3.7), layout="constrained")
    titles = ("all keys alike", "key 0 is 16 times longer", f"key {old:,} is 8 times longer")
    for axes, title, key in zip(figure.subplots(1, 3), titles, (plain, with_sink, with_outlier), strict=True):
        certificate = certify(query, key)
        share = certificate.kept_share[head].item()
        horizon, seen = bounds_of(query, key)
        one_range = narrow(seen, horizon._replace(sink=None))
        kept = (one_range[..., 1] - one_range[..., 0]).sum((0, 2)) / (seen[..., 1] - seen[..., 0]).sum((0, 2))
        apart = certificate.sink_keys[0, head].double().mean().item()
        print(f"   {title}: kept {share:.1%}, first tile kept apart in {apart:.0%} of the query blocks", end="")
        print(f" (without that rule: kept {kept[head].item():.1%})")
        found = tile_map(certificate, length, head)
        if key is with_outlier:
            reach = (int((found[:, old // BLOCK_K] >= 2).nonzero().max()) + 1) * BLOCK_Q
            print(f"   the outlier's tile is computed up to query {reach}, {reach - old} after it")
        draw_tiles(axes, found, length)
        axes.text(
            0.97, 0.95, f"{share:.1%}", transform=axes.transAxes, ha="right", va="top", fontsize=12,
            fontweight="bold", color=BLACK,
        )  # fmt: skip
        axes.set_title(title)
        axes.set_xlabel("keys", labelpad=-4)
        axes.set_ylabel("queries", labelpad=-8)
    legend(figure, apart=True)
    save(figure, "horizon-sink.png")
    bound, _ = one_query(query, with_outlier)
    print(f"   last query: bound on all {old // BLOCK_K + 1} tiles up to the outlier {bound[head, old // BLOCK_K]:.1e}")


# Numbers without a picture


def print_certificate() -> None:
    heading("The certificate of the page")
    torch.manual_seed(0)
    query, key = torch.randn(2, 1, HEADS, 8192, DIM).unbind(0)
    print(certify(query, key))


def print_promise() -> None:
    length = 2048
    heading(f"Promise and outcome: float64, {length} tokens, against every tile computed")
    query, key, value = normal(length, dtype=torch.float64)
    diameter = max(torch.cdist(value[0, h], value[0, h]).max().item() for h in range(HEADS))
    grad_out = normal(length, seed=1, dtype=torch.float64)[0]

    def run(tolerance: float) -> tuple[Tensor, ...]:
        leaves = [t.clone().requires_grad_() for t in (query, key, value)]
        out, lse = alibi_attention(*leaves, tolerance=tolerance, return_lse=True, backend="blocked")
        return out.detach(), lse.detach(), *torch.autograd.grad(out, leaves, grad_out)

    dense = run(0.0)
    for tolerance in (ROUNDING, 1e-4, 1e-2):
        share = certify(query, key, tolerance=tolerance).dropped_share.max().item()
        near = run(tolerance)
        out, lse = (near[0] - dense[0]).norm(dim=-1).max().item(), (near[1] - dense[1]).abs().max().item()
        relative = [
            # Query 0 sees one key, so that its gradient is 0.
            ((n - d).norm(dim=-1) / d.norm(dim=-1))[..., 1:].max().item()
            for n, d in zip(near[2:], dense[2:], strict=True)
        ]
        print(f"   tolerance {tolerance:.2g}, share certified {share:.2g}:")
        print(f"      output off by {out:.1e}, promised {share * diameter:.1e}", end="")
        print(f"; lse off by {lse:.1e}, promised {share / (1 - share):.1e}")
        print("      largest relative error of a row of dq {:.1e}, of dk {:.1e}, of dv {:.1e}".format(*relative))


def print_tolerances() -> None:
    heading("What a looser tolerance gains: share of tiles kept, all heads")
    for length in LENGTHS:
        query, key, _ = normal(length)
        kept = {t: certify(query, key, tolerance=t).kept_share.mean().item() for t in (2**-53, ROUNDING, 1e-4, 1e-2)}
        print(f"   {length}: " + ", ".join(f"{tolerance:.2g} {share:.1%}" for tolerance, share in kept.items()))
    length = LENGTHS[1]
    query, key, _ = normal(length)
    upward, level = SLOPES.clone(), SLOPES.clone()
    upward[0], level[0] = -SLOPES[0], 0.0
    heading(f"What else moves the share of tiles kept, all heads, {length} tokens")
    for name, certificate in (
        ("slopes that require a gradient", certify(query, key, SLOPES.clone().requires_grad_())),
        ("queries 2 times longer", certify(2 * query, key)),
        ("queries 4 times longer", certify(4 * query, key)),
        ("the same vector (4, ..., 4) added to every key", certify(query, key + 4)),
        ("head 0 with slope -1/2", certify(query, key, upward)),
        ("head 0 with slope 0", certify(query, key, level)),
    ):
        print(f"   {name}: {certificate.kept_share.mean().item():.1%}, head 0 {certificate.kept_share[0].item():.1%}")


def print_times() -> None:
    heading('Times of backend "blocked" on 1 thread, float32, forward only (medians of 3)')
    for length in LENGTHS:
        query, key, value = normal(length)
        attend = partial(alibi_attention, query, key, value, backend="blocked")
        pre_pass, forward = median_time(partial(certify, query, key)), median_time(attend)
        print(f"   {length}: certify {pre_pass:.2f} s, attention {forward:.2f} s", end="")
        if length < LENGTHS[-1]:  # the last would take minutes
            print(f", every tile {median_time(partial(attend, tolerance=0.0)):.2f} s", end="")
        print()


def median_time(run: Callable[[], object]) -> float:
    times = []
    for _ in range(3):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return sorted(times)[1]


def main() -> None:
    torch.set_num_threads(1)
    with mpl.rc_context(STYLE):
        figure_tiles()
        figure_bound()
        figure_outliers()
    print_certificate()
    print_promise()
    print_tolerances()
    print_times()


if __name__ == "__main__":
    main()
