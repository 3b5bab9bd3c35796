"""``alibi extrapolate``: train short, test long."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from alibi_attention.cli.errors import laboratory_errors
from alibi_attention.cli.extras import require
from alibi_attention.cli.lab_output import print_results
from alibi_attention.cli.settings import RUN, given_experiment, option, over_file, takes_settings

DEFAULT_OUTPUT = Path("runs/extrapolate")


@takes_settings()
def extrapolate(
    context: typer.Context,
    output: Annotated[Path, option(RUN, "Folder of the run; must be new.")] = DEFAULT_OUTPUT,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue the interrupted run in --output.", rich_help_panel=RUN)
    ] = False,
    config: Annotated[Path | None, option(RUN, "YAML file of settings; flags take precedence.", metavar="FILE")] = None,
) -> None:
    """Train short, test long: one small decoder per position method, evaluated beyond its training length.

    Writes a folder: configuration, results (JSON), weights (safetensors), tables, and a figure (PNG and SVG).
    Ctrl-C stops after the step at hand; --resume continues to the very same result.
    """
    given = given_experiment(context, ignored=("output", "resume", "config"))
    require("lab")
    names = {"run": "--output"}
    with laboratory_errors(output, names=names):
        from rich.console import Console

        from alibi_attention.lab.config import make_config
        from alibi_attention.lab.experiment import resume_experiment, start_experiment
        from alibi_attention.lab.progress import Progress

        settings = over_file(config, given, names)
        if resume:
            results = resume_experiment(output, Progress(Console()), expected=settings)
        else:
            results = start_experiment(make_config(settings), output, Progress(Console()))
        print_results(results, output)
