"""``alibi extrapolate``: train short, test long."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from alibi_attention.cli.errors import laboratory_errors, refuse
from alibi_attention.cli.extras import require

if TYPE_CHECKING:
    from alibi_attention.lab.config import ExperimentConfig
    from alibi_attention.lab.runs import MethodResult

DEFAULT_OUTPUT = Path("runs/extrapolate")

_EXPERIMENT = "Experiment"
_MODEL = "Model and training"
_RUN = "Run"

# Parameters of the command that describe the run rather than the experiment.
_RUN_PARAMETERS = frozenset({"output", "resume", "more_text"})


def extrapolate(
    context: typer.Context,
    methods: Annotated[
        str,
        typer.Option(
            metavar="NAMES", help="Position methods to compare, joined by commas.", rich_help_panel=_EXPERIMENT
        ),
    ] = "alibi,sinusoidal,rope",
    length: Annotated[
        int, typer.Option(help="Length of training sequences, in bytes.", rich_help_panel=_EXPERIMENT)
    ] = 256,
    eval_lengths: Annotated[
        str | None,
        typer.Option(
            metavar="LENGTHS",
            help="Lengths to evaluate at, joined by commas.",
            show_default="--length and its five doublings",
            rich_help_panel=_EXPERIMENT,
        ),
    ] = None,
    eval_bytes: Annotated[
        int,
        typer.Option(help="About how many held-out bytes to score at each length.", rich_help_panel=_EXPERIMENT),
    ] = 131_072,
    text: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="PATH...",
            help="Your own text: UTF-8 files and folders. Documents are held out whole; a single one is cut once, "
            "its end held out.",
            show_default="Python's standard library",
            rich_help_panel=_EXPERIMENT,
        ),
    ] = None,
    more_text: Annotated[list[Path] | None, typer.Argument(hidden=True, metavar="PATH")] = None,
    held_out_share: Annotated[
        float, typer.Option(help="Share of the text kept for evaluation.", rich_help_panel=_EXPERIMENT)
    ] = 0.1,
    seed: Annotated[
        int,
        typer.Option(help="Of initial weights and batches; the same for every method.", rich_help_panel=_EXPERIMENT),
    ] = 0,
    layers: Annotated[int, typer.Option(help="Layers of the decoder.", rich_help_panel=_MODEL)] = 4,
    heads: Annotated[int, typer.Option(help="Attention heads.", rich_help_panel=_MODEL)] = 8,
    width: Annotated[int, typer.Option(help="Width of the decoder.", rich_help_panel=_MODEL)] = 128,
    activation: Annotated[
        str,
        typer.Option(
            metavar="gelu|gelu-tanh",
            help="GELU by the error function, as MPT has it, or by tanh, as BLOOM has it.",
            rich_help_panel=_MODEL,
        ),
    ] = "gelu",
    steps: Annotated[int, typer.Option(help="Optimiser steps.", rich_help_panel=_MODEL)] = 900,
    batch_size: Annotated[int, typer.Option(help="Sequences in a step.", rich_help_panel=_MODEL)] = 8,
    learning_rate: Annotated[float, typer.Option(help="Peak learning rate.", rich_help_panel=_MODEL)] = 3e-3,
    warmup: Annotated[int, typer.Option(help="Steps up to the peak.", rich_help_panel=_MODEL)] = 50,
    weight_decay: Annotated[float, typer.Option(help="AdamW's, on matrices.", rich_help_panel=_MODEL)] = 0.1,
    clip: Annotated[float, typer.Option(help="Largest gradient norm.", rich_help_panel=_MODEL)] = 1.0,
    device: Annotated[str, typer.Option(metavar="cpu|cuda", help="Where to compute.", rich_help_panel=_MODEL)] = "cpu",
    output: Annotated[
        Path, typer.Option(help="Folder of the run; must be new.", rich_help_panel=_RUN)
    ] = DEFAULT_OUTPUT,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue the interrupted run in --output.", rich_help_panel=_RUN)
    ] = False,
    checkpoint_every: Annotated[int, typer.Option(help="Steps between resumable states.", rich_help_panel=_RUN)] = 50,
) -> None:
    """Train short, test long: one small byte-level decoder per position method, evaluated beyond its training length.

    Writes a folder: configuration, results (JSON), weights (safetensors), a table, and a figure (PNG and SVG).
    Ctrl-C stops after the step at hand; --resume continues to the very same result.
    """
    del methods, length, eval_bytes, held_out_share, seed, layers, heads, width, activation, steps
    del batch_size, learning_rate, warmup, weight_decay, clip, device, checkpoint_every
    if more_text and not text:
        extra = " ".join(map(str, more_text))
        raise refuse("arguments", f"expected options only, got {extra}", "put --text before the names of files")
    values = {name: value for name, value in context.params.items() if name not in _RUN_PARAMETERS}
    values["methods"] = tuple(name.strip() for name in values["methods"].split(","))
    values["eval_lengths"] = _lengths(eval_lengths)
    # The run must find its corpus again from any folder.
    values["text"] = tuple(str(path.resolve()) for path in [*(text or []), *(more_text or [])])
    given = {name: value for name, value in values.items() if _was_given(context, name)}

    require("lab")
    with laboratory_errors(output):
        from alibi_attention.lab.config import make_config

        if resume:
            _resume(output, given)
        else:
            _start(make_config(values), output)


def _was_given(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def _lengths(text: str | None) -> tuple[int, ...]:
    if text is None:
        return ()
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise refuse(
            "--eval-lengths", f"expected whole numbers joined by commas, got {text!r}", "such as 256,512,1024"
        ) from None


def _start(config: ExperimentConfig, output: Path) -> None:
    from rich.console import Console

    from alibi_attention.lab.experiment import start_experiment
    from alibi_attention.lab.progress import Progress

    results = start_experiment(config, output, Progress(Console()))
    _report(results, output)


def _resume(output: Path, given: dict[str, Any]) -> None:
    from rich.console import Console

    from alibi_attention.lab.experiment import resume_experiment
    from alibi_attention.lab.progress import Progress

    results = resume_experiment(output, Progress(Console()), expected=given)
    _report(results, output)


def _report(results: list[MethodResult], output: Path) -> None:
    from rich.console import Console
    from rich.table import Table

    from alibi_attention.lab.tables import table_rows

    header, rows = table_rows(results)
    table = Table(box=None, pad_edge=False)
    for index, title in enumerate(header):
        table.add_column(title, justify="right" if index else "left")
    for row in rows:
        table.add_row(*row)
    console = Console()
    console.print(table)
    console.print(
        f"Written to {output}: results.json, table.md, figure.png, figure.svg", highlight=False, soft_wrap=True
    )
