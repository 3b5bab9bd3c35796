"""``alibi dissect``: what a trained model's attention looks like."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from alibi_attention.cli.errors import laboratory_errors, refuse
from alibi_attention.cli.extras import require
from alibi_attention.cli.lab_output import print_table
from alibi_attention.cli.lab_values import COUNT, whole_numbers

if TYPE_CHECKING:
    from rich.console import Console

    from alibi_attention.lab.inside import Inside


def dissect(
    run: Annotated[Path, typer.Argument(help="Folder of a run whose models are trained.", show_default=False)],
    method: Annotated[str, typer.Option(help="Position method, or method:variant.")] = "alibi",
    lengths: Annotated[
        str | None,
        typer.Option(
            help="Lengths at which the horizon is certified, joined by commas.",
            metavar="LENGTHS",
            show_default="1024,2048,4096,8192 for ALiBi",
        ),
    ] = None,
    mass_length: Annotated[
        int | None,
        typer.Option(
            help="Length at which attention mass is added up by distance.",
            **COUNT,
            show_default="1024, or where the positions end",
        ),
    ] = None,
    tolerance: Annotated[
        float | None, typer.Option(help="Share of a row's mass that may be skipped.", show_default="2^-24")
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="Folder to write to.", show_default="RUN/METHOD/inside, or inside-VARIANT")
    ] = None,
) -> None:
    """Attention mass by distance and head, and for ALiBi the certified horizon and the tiles that are computed.

    Writes inside.json and figures (PNG and SVG), anew where they are there; alibi report shows what lies in the run's
    own folder. The certificate is about each layer's attention on this text.
    """
    asked = None if lengths is None else whole_numbers("--lengths", lengths)
    if tolerance is not None and not 0.0 <= tolerance < 1.0:
        complaint = f"expected a share of a row's mass from 0 up to, not including, 1, got {tolerance}"
        raise refuse("--tolerance", complaint, "leave it out for 2^-24, what float32 rounds by")
    require("lab")
    names = {"run": "RUN", "methods": "--method", "variants": "--method"}
    with laboratory_errors(run, again="the same command, which begins anew", names=names):
        from rich.console import Console

        from alibi_attention.lab.dissection import dissect_run
        from alibi_attention.lab.progress import Progress

        console = Console()
        inside, folder = dissect_run(
            run, method, asked, output, mass_length=mass_length, tolerance=tolerance, progress=Progress(console)
        )
        _print_mass(console, inside)
        if inside.horizon:
            _print_horizon(console, inside)
        console.print(f"Written to {folder}", highlight=False, soft_wrap=True)


def _print_mass(console: Console, inside: Inside) -> None:
    header = [
        f"mean distance at {inside.mass.length}",
        *(f"head {i}" for i in range(len(inside.mass.mean_distance[0]))),
    ]
    rows = [
        [f"layer {layer}", *(f"{mean:.1f}" for mean in means)] for layer, means in enumerate(inside.mass.mean_distance)
    ]
    print_table(console, header, rows)
    console.print()


def _print_horizon(console: Console, inside: Inside) -> None:
    lengths = sorted({cell.length for cell in inside.horizon})
    rows = []
    for layer in range(1 + max(cell.layer for cell in inside.horizon)):
        row = [f"layer {layer}"]
        for length in lengths:
            cells = [c for c in inside.horizon if (c.length, c.layer) == (length, layer)]
            row.append(f"{sum(c.kept_share for c in cells) / len(cells):.1%}")
        rows.append(row)
    print_table(console, ["tiles computed at", *map(str, lengths)], rows)
    dropped = max(cell.dropped_share for cell in inside.horizon)
    console.print(f"Share of any row's softmax mass skipped: at most {dropped:.3g} (proved)", highlight=False)
