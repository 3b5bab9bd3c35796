"""``alibi evaluate``: a run's trained models, evaluated otherwise."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from alibi_attention.cli.errors import laboratory_errors
from alibi_attention.cli.extras import require
from alibi_attention.cli.lab_output import print_results
from alibi_attention.cli.lab_values import COUNT, given_settings


def evaluate(
    context: typer.Context,
    run: Annotated[Path, typer.Argument(help="Folder of a run whose models are trained.", show_default=False)],
    output: Annotated[Path, typer.Option(help="Folder of the new run, which gets weights and evaluations.")],
    eval_lengths: Annotated[
        str | None,
        typer.Option(
            help="Lengths to evaluate at, joined by commas.", metavar="LENGTHS", show_default="those of the run"
        ),
    ] = None,
    eval_tokens: Annotated[
        int | None,
        typer.Option(
            help="About how many held-out tokens to read at each length.", **COUNT, show_default="as in the run"
        ),
    ] = None,
    eval_precision: Annotated[
        str | None,
        typer.Option(help="Precision of matrix products.", metavar="fp32|bf16", show_default="as in the run"),
    ] = None,
    variants: Annotated[
        str | None,
        typer.Option(
            help="Other ways to evaluate the trained models, such as alibi:ntk,rope:yarn; or all.",
            metavar="NAMES",
            show_default="those of the run",
        ),
    ] = None,
    protocols: Annotated[
        str | None,
        typer.Option(
            help="What to evaluate, of windows, sliding, targets and recall; or all.",
            metavar="NAMES",
            show_default="those of the run",
        ),
    ] = None,
    stride: Annotated[
        int | None,
        typer.Option(
            help="Stride of the sliding window; 0 for a quarter of each length.",
            **COUNT,
            show_default="as in the run",
        ),
    ] = None,
    recall_trials: Annotated[
        int | None,
        typer.Option(
            help="Most windows per length to test recall in; --eval-tokens may lower this, but not below 32.",
            show_default="as in the run",
        ),
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="Where to compute.", metavar="cpu|cuda", show_default="as in the run")
    ] = None,
) -> None:
    """Evaluate the trained models of a run at other lengths, in other variants or by other protocols.

    Nothing is trained. An interruption is continued with: alibi extrapolate --resume --output FOLDER.
    """
    del eval_lengths, eval_tokens, eval_precision, variants, protocols, stride, recall_trials, device
    changes = given_settings(context, ignored=("run", "output"))
    require("lab")
    with laboratory_errors(output, names={"run": "RUN", "resume": "RUN"}):
        from rich.console import Console

        from alibi_attention.lab.experiment import reevaluate_experiment
        from alibi_attention.lab.progress import Progress

        print_results(reevaluate_experiment(run, output, changes, Progress(Console())), output)
