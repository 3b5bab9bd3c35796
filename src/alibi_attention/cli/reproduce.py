"""``alibi reproduce``: published experiments through this laboratory's code."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from alibi_attention.cli.commands import Command, Group
from alibi_attention.cli.errors import laboratory_errors
from alibi_attention.cli.extras import require
from alibi_attention.cli.lab_output import print_results
from alibi_attention.cli.lab_values import COUNT, given_settings

reproduce = typer.Typer(cls=Group, help="Published experiments, run through the laboratory.", no_args_is_help=True)


@reproduce.callback()
def experiments() -> None:
    """Published experiments, run through the laboratory."""


@reproduce.command(cls=Command)
def paper(
    context: typer.Context,
    output: Annotated[Path, typer.Option(help="Folder of the run; must be new.")] = Path("runs/paper"),
    resume: Annotated[bool, typer.Option("--resume", help="Continue the interrupted run in --output.")] = False,
    config: Annotated[
        Path | None, typer.Option(help="YAML file of settings that replace the paper's.", metavar="FILE")
    ] = None,
    methods: Annotated[str, typer.Option(help="Position methods, joined by commas.")] = "alibi,sinusoidal,rope,t5",
    length: Annotated[int, typer.Option(help="Training length, in words; the paper's are 64 to 3072.", **COUNT)] = 512,
    eval_lengths: Annotated[
        str | None,
        typer.Option(
            help="Lengths to evaluate at, joined by commas.",
            metavar="LENGTHS",
            show_default="the trained one, and the paper's that are longer",
        ),
    ] = None,
    dataset: Annotated[
        str, typer.Option(help="WikiText-103 by name, or the path of a local copy.")
    ] = "Salesforce/wikitext",
    steps: Annotated[int, typer.Option(help="Optimiser steps.")] = 286_000,
    batch_size: Annotated[
        int | None,
        typer.Option(help="Sequences in each part of a step.", show_default="up to 9,216 words a device"),
    ] = None,
    accumulate: Annotated[
        int | None,
        typer.Option(help="Parts of a step whose gradients are added up.", show_default="as many as make 73,728 words"),
    ] = None,
    device: Annotated[str, typer.Option(help="Where to compute.", metavar="cpu|cuda")] = "cuda",
    devices: Annotated[int, typer.Option(help="GPUs that share every batch.")] = 1,
    seed: Annotated[int, typer.Option(help="Seed of the initial weights and the batches.")] = 0,
    show: Annotated[
        bool, typer.Option("--show", help="Print the configuration (--resume: the run's) and differences, and exit.")
    ] = False,
) -> None:
    """Train short, test long as in Press, Smith and Lewis (2022): WikiText-103, 16 layers, 8 heads, width 1024.

    Needs a GPU and the extra `data` (pip install -c constraints.txt '.\\[data]' in a checkout). Other settings go into
    a --config file.
    """
    del methods, length, eval_lengths, dataset, steps, batch_size, accumulate, device, devices, seed
    given = given_settings(context, ignored=("output", "resume", "config", "show"))
    if given.get("dataset") and Path(given["dataset"]).exists():
        given["dataset"] = str(Path(given["dataset"]).resolve())
    require("lab")
    with laboratory_errors(output):
        from rich.console import Console

        from alibi_attention.lab.config_file import read_settings
        from alibi_attention.lab.experiment import read_as_started, resume_experiment, start_experiment
        from alibi_attention.lab.paper import differences, paper_config
        from alibi_attention.lab.progress import Progress
        from alibi_attention.lab.runs import RunFolder

        settings = {**(read_settings(config) if config else {}), **given}
        console = Console()
        if resume and not show:
            print_results(resume_experiment(output, Progress(console), expected=settings), output)
            return
        experiment = read_as_started(RunFolder(output), settings) if resume else paper_config(settings)
        console.print(
            "Not as in the paper:", *(f"  - {text}" for text in differences(experiment)), sep="\n", soft_wrap=True
        )
        if show:
            for name, value in experiment.model_dump(mode="json").items():
                console.print(f"{name}: {value}", highlight=False, soft_wrap=True)
            return
        print_results(start_experiment(experiment, output, Progress(console)), output)
