"""What `alibi dissect` saw in the runs of a report, as tables and pictures."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import NamedTuple

from alibi_attention.lab.complete import Run
from alibi_attention.lab.inside import Horizon, Inside
from alibi_attention.lab.inside_figures import draw_horizon, draw_mass, draw_tiles
from alibi_attention.lab.positions import full_title
from alibi_attention.lab.report_table import Picture, Table
from alibi_attention.lab.summary import Line


class Look(NamedTuple):
    """Into one evaluation of one run; one seed is enough to show what such a model looks like."""

    seed: int
    name: str
    inside: Inside


def find_looks(runs: Sequence[Run], lines: Sequence[Line]) -> list[Look]:
    """Of every method, and of every variant that was evaluated, the look of the first seed that has one."""
    looks = []
    # A method is one of the lines, the same without its variants.
    for line in lines:
        seen = next((run for run in runs if line.name in run.looks), None)
        if seen is not None:
            looks.append(Look(seen.config.seed, line.name, seen.looks[line.name]))
    return looks


def look_command(look: Look, root: str) -> str:
    """What looks again."""
    inside = look.inside
    lengths = sorted({cell.length for cell in inside.horizon}) or [inside.mass.length]
    words = ["alibi", "dissect", root, "--method", look.name, "--lengths", ",".join(map(str, lengths))]
    words += ["--mass-length", str(inside.mass.length)]
    if inside.tolerance is not None:
        words += ["--tolerance", f"{inside.tolerance!r}"]
    return shlex.join(words)


def inside_parts(looks: Sequence[Look], unit: str) -> tuple[list[Table], dict[str, Picture]]:
    """Tables and pictures of all looks, in their order."""
    tables: list[Table] = []
    pictures: dict[str, Picture] = {}
    for look in looks:
        part = f"inside-{look.name.replace(':', '-')}"
        tables.append(_mass_table(look, f"{part}-mass", unit))
        words = (
            f"Map of colours: for each head of each layer the share of attention at each distance, in {unit}. "
            "The table below has the mean distances."
        )
        broad, narrow = (draw_mass(look.inside, unit, narrow=n) for n in (False, True))
        pictures[f"{part}-mass"] = Picture(broad, narrow, words)
        if look.inside.horizon:
            tables.append(_horizon_table(look, f"{part}-horizon", unit))
            words = (
                "Line charts, one for each layer: keys needed against length, one line for each head; flat where the "
                "horizon of a head is reached. The table below has the numbers."
            )
            broad, narrow = (draw_horizon(look.inside, unit, narrow=n) for n in (False, True))
            pictures[f"{part}-horizon"] = Picture(broad, narrow, words)
            tables.append(_tiles_table(look, f"{part}-tiles", unit))
            words = (
                "Squares of queries by keys, one for each of some heads: computed tiles lie along the diagonal, "
                "skipped ones far from it. The table below has the shares."
            )
            broad, narrow = (draw_tiles(look.inside.tiles[0], unit, narrow=n) for n in (False, True))
            pictures[f"{part}-tiles"] = Picture(broad, narrow, words)
    return tables, pictures


def _of(look: Look) -> str:
    return f"The model of seed {look.seed}, on the beginning of the held-out text."


def _mass_table(look: Look, name: str, unit: str) -> Table:
    mass = look.inside.mass
    header = [f"mean distance ({unit})", *(f"head {head}" for head in range(len(mass.mean_distance[0])))]
    rows = [[f"layer {i}", *(f"{mean:,.1f}" for mean in means)] for i, means in enumerate(mass.mean_distance)]
    note = (
        f"How far back each head looks. {_of(look)} Each query spreads a softmax mass of 1 over the keys before it; "
        f"here are the means over the queries of the second half of {mass.length:,} {unit}. Computed exactly."
    )
    return Table(name, f"Inside {full_title(look.name)}: attention by distance", note, header, rows)


def _horizon_table(look: Look, name: str, unit: str) -> Table:
    cells = {(cell.layer, cell.head, cell.length): cell for cell in look.inside.horizon}
    lengths = sorted({length for _, _, length in cells})
    rows = []
    for layer, head in sorted({(layer, head) for layer, head, _ in cells}):
        of_head = [cells[layer, head, length] for length in lengths]
        numbers = [f"{cell.mean_window:,.0f} (to {cell.max_window:,})" for cell in of_head]
        dropped = max(cell.dropped_share for cell in of_head)
        rows.append(
            [f"layer {layer}, head {head}, m = {of_head[0].slope:.3g}", *numbers, f"{dropped:.1e}" if dropped else "0"]
        )
    note = (
        "Keys that blocks of queries need, mean and in brackets the most, at each length of text. The keys beyond are "
        "skipped: the last column is a proved bound on the share of any row's softmax mass that they hold, the largest "
        f"of all lengths; {look.inside.tolerance:.1e} was allowed. m is the slope in nats per token"
        f"{_scaled(look, lengths)}. {_of(look)} The bound is about each layer's attention on this text, and says "
        "nothing of the error of the model."
    )
    header = [f"length ({unit})", *(f"{length:,}" for length in lengths), "skipped mass, at most"]
    return Table(name, f"Inside {full_title(look.name)}: keys each head needs", note, header, rows)


def _scaled(look: Look, lengths: Sequence[int]) -> str:
    return f", as scaled for {lengths[0]:,}" if look.inside.variant is not None else ""


def _tiles_table(look: Look, name: str, unit: str) -> Table:
    inside, tiles = look.inside, look.inside.tiles[0]
    lengths = sorted({cell.length for cell in inside.horizon})
    rows = [
        [f"layer {layer}", *(_kept([c for c in inside.horizon if (c.layer, c.length) == (layer, n)]) for n in lengths)]
        for layer in sorted({cell.layer for cell in inside.horizon})
    ]
    note = (
        f"Share of the tiles at or below the diagonal that are computed, mean over heads. A tile is {tiles.block_q} "
        f"queries by {tiles.block_k} keys. The figure is of layer {tiles.layer} at {tiles.length:,} {unit}: blue is "
        f"computed, grey skipped. {_of(look)}"
    )
    header = [f"length ({unit})", *(f"{length:,}" for length in lengths)]
    return Table(name, f"Inside {full_title(look.name)}: tiles computed", note, header, rows)


def _kept(cells: Sequence[Horizon]) -> str:
    return f"{sum(cell.kept_share for cell in cells) / len(cells):.1%}"
