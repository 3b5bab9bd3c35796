"""``alibi demo``: the layer, its slopes and its bias, to look at."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from alibi_attention.cli.errors import refuse
from alibi_attention.cli.extras import missing_from, require
from alibi_attention.extras import installing

if TYPE_CHECKING:
    from rich.console import Console
    from torch import Tensor

DEFAULT_PICTURE = Path("alibi-demo.png")

BATCH, SEQ_LEN, EMBED_DIM, HEADS = 2, 8, 128, 8
CORNER = 4
PICTURE_LENGTHS = (64, 1024)  # of the four steep heads, of the four flat ones
DRAWN_WITH = ("matplotlib",)
SHADES = " ░▒▓█"
NATS = (1.0, 5.0, 10.0)


def demo(
    context: typer.Context,
    output: Annotated[
        Path, typer.Option(help="Picture of bias and slopes, as PNG, SVG or PDF; never overwritten.")
    ] = DEFAULT_PICTURE,
) -> None:
    """Run the attention layer on a small input, and show its slopes and its bias."""
    source = context.get_parameter_source("output")
    asked = source is not None and source.name == "COMMANDLINE"
    _check_output(output, asked)
    if asked:
        # Before anything is shown: who asks for a picture wants that.
        require("lab", *DRAWN_WITH)

    import torch
    from rich.console import Console

    from alibi_attention import ALiBiAttention, alibi_slopes, build_alibi_bias
    from alibi_attention.slopes import slope_spans

    console = Console(highlight=False)
    layer = ALiBiAttention(EMBED_DIM, HEADS)
    x = torch.randn(BATCH, SEQ_LEN, EMBED_DIM, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        y = layer(x)
    slopes = alibi_slopes(HEADS)
    console.print(f"ALiBiAttention(embed_dim={EMBED_DIM}, num_heads={HEADS})")
    console.print(f"  input   {tuple(x.shape)}  (batch, seq_len, embed_dim)")
    console.print(f"  output  {tuple(y.shape)}\n")
    _print_corner(console, build_alibi_bias(HEADS, CORNER)[0])
    _print_spans(console, slopes, slope_spans(slopes, NATS))
    _print_bias(console, build_alibi_bias(HEADS, SEQ_LEN))
    _picture(output, asked)


def _check_output(output: Path, asked: bool) -> None:
    if asked and output.exists():
        raise refuse("--output", f"expected a new file, got {output}, which exists", "choose another name")
    if output.suffix.lower() not in (".png", ".svg", ".pdf"):
        raise refuse(
            "--output",
            f"expected a name ending in .png, .svg or .pdf, got {output}",
            f"try {output.with_suffix('.png')}",
        )
    if not output.parent.is_dir():
        raise refuse("--output", f"expected an existing folder, got {output.parent}", "create it first")


def _print_corner(console: Console, bias: Tensor) -> None:
    console.print(f"Bias of head 0 over {CORNER} tokens, added to q·k / sqrt(d) before the softmax (rows are queries)")
    for row in bias.tolist():
        console.print("  " + " ".join(f"{value:6.1f}" for value in row))
    console.print()


def _print_spans(console: Console, slopes: Tensor, spans: Tensor) -> None:
    from rich.table import Table

    table = Table(
        box=None, pad_edge=False, title_justify="left", title="Slopes, and tokens until the bias takes", title_style=""
    )
    for title in ("  head", "slope", *(f"{level:g} nat{'s' * (level > 1)}" for level in NATS)):
        table.add_column(title, justify="right")
    for head, (slope, row) in enumerate(zip(slopes.tolist(), spans.tolist(), strict=True)):
        table.add_row(str(head), f"{slope:.6g}", *(f"{tokens:,.0f}" for tokens in row))
    console.print(table)
    console.print()


def _print_bias(console: Console, bias: Tensor) -> None:
    """Each head's bias as cells: the share exp(bias) that a key keeps of its weight, by shade and by colour."""
    from rich.text import Text

    console.print("What the bias leaves a key of its weight, heads 0 to 7 (full: all of it, empty: nothing)")
    weight = bias.exp()
    for row in range(bias.shape[1]):
        line = Text("  ")
        for head in range(bias.shape[0]):
            for share in weight[head, row].tolist():
                red, green, blue = (round(60 + share * (light - 60)) for light in (240, 228, 66))
                shade = SHADES[math.ceil(share * (len(SHADES) - 1))]
                line.append(shade, style=f"rgb({red},{green},{blue})")
            line.append(" ")
        console.print(line)
    console.print()


def _picture(output: Path, asked: bool) -> None:
    if output.exists() and not asked:
        typer.echo(f"{output} exists and was left as it is; --output NAME writes another picture.")
        return
    if missing_from(DRAWN_WITH):
        typer.echo(f"No picture of them: that needs {DRAWN_WITH[0]}, which {installing('lab')} brings.")
        return
    from alibi_attention.lab.bias_figure import save_bias_figure

    try:
        save_bias_figure(HEADS, PICTURE_LENGTHS, output)
    except OSError as error:
        raise refuse(
            "--output", f"expected a folder that can be written, got {output} ({error.strerror})", "choose another"
        ) from None
    typer.echo(f"Picture of bias and slopes: {output}")
