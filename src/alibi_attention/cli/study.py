"""``alibi study``: all methods under several seeds, in one command."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from alibi_attention.cli.errors import laboratory_errors
from alibi_attention.cli.extras import require
from alibi_attention.cli.lab_output import print_report
from alibi_attention.cli.settings import RUN, Shown, given_experiment, option, over_file, takes_settings


@takes_settings(
    # Each run of a study has a seed of its own, and predicts the next token.
    leave_out=("seed", "objective", "mask_share"),
    defaults={
        "methods": Shown(words="every one that differs"),
        "variants": "all",
        "protocols": "all",
        "width": 256,
        "steps": 1800,
        "batch_size": 16,
        "learning_rate": 2e-3,
        "recall_share": 0.5,
        "precision": "bf16",
        "eval_precision": "bf16",
    },
)
def study(
    context: typer.Context,
    output: Annotated[Path, option(RUN, "Folder of the study; continued where it stopped.")] = Path("runs/study"),
    seeds: Annotated[int, option(RUN, "How many seeds, from 0.")] = 3,
    only_seed: Annotated[
        int | None,
        option(
            RUN,
            "Run this seed alone, so that processes can share a study; the last to end reports.",
            show_default="all of them",
        ),
    ] = None,
    minutes: Annotated[
        float | None,
        option(RUN, "Stop after so many minutes; the same command continues.", show_default="no limit"),
    ] = None,
    config: Annotated[
        Path | None, option(RUN, "YAML file of settings that replace the study's.", metavar="FILE")
    ] = None,
) -> None:
    """Every method and variant that differs, by every protocol, under several seeds, and the report.

    A study trains at width 256 with 16 sequences a step, learning rate 0.002 and bf16, and half of its sequences have
    values to recall in them.

    Ctrl-C, or the end of --minutes, stops after the step at hand, or in an evaluation, whose finished lengths are kept;
    the same command goes on from there.
    """
    given = given_experiment(context, ignored=("output", "seeds", "only_seed", "minutes", "config"))
    require("lab")
    # A study is continued by its own command, which the message must name.
    names = {"run": "--output", "resume": "--output"}
    with laboratory_errors(output, again="the same command", names=names):
        from rich.console import Console

        from alibi_attention.lab.progress import Progress
        from alibi_attention.lab.study import run_study

        settings = over_file(config, given, names)
        page = run_study(
            output, settings, seeds=seeds, only_seed=only_seed, minutes=minutes, progress=Progress(Console())
        )
        if page is not None:
            print_report(output, page)
