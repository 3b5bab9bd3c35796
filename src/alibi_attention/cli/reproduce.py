"""``alibi reproduce``: published experiments through this laboratory's code."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from alibi_attention.cli.commands import Command, Group
from alibi_attention.cli.errors import laboratory_errors
from alibi_attention.cli.extras import require
from alibi_attention.cli.lab_output import print_results
from alibi_attention.cli.settings import RUN, Shown, given_experiment, option, over_file, takes_settings

reproduce = typer.Typer(cls=Group, help="Published experiments, run through the laboratory.", no_args_is_help=True)


@reproduce.callback()
def experiments() -> None:
    """Published experiments, run through the laboratory."""


@reproduce.command(cls=Command)
@takes_settings(
    # The paper predicts the next word of a data set.
    leave_out=("objective", "mask_share", "text", "held_out_text", "more_text", "held_out_share"),
    defaults={
        "methods": "alibi,sinusoidal,rope,t5",
        "length": Shown(512, help="Training length, in words; the paper's are 64 to 3072."),
        "eval_lengths": Shown(words="the trained one, and the paper's that are longer"),
        "eval_tokens": 217_646,
        "protocols": "windows,sliding",
        "dataset": Shown(
            "Salesforce/wikitext",
            help="WikiText-103 by name, or the path of a local copy, of whose configurations an only one is taken.",
        ),
        "dataset_config": "wikitext-103-v1",
        "dataset_held_out": "validation",
        "document_start": "^ = [^=]",
        "tokenizer": "words",
        "layers": 16,
        "width": 1024,
        "activation": "relu",
        "bias": True,
        "embedding_scale": "sqrt-width",
        "final_norm": False,
        "dropout": 0.3,
        "attention_dropout": 0.1,
        "cutoffs": "20000,60000",
        "steps": 286_000,
        "batch_size": Shown(words="up to 9,216 words a device"),
        "accumulate": Shown(words="as many as make 73,728 words"),
        "optimizer": "nag",
        "learning_rate": 1.0,
        "warmup": 16_000,
        "final_rate": 1e-4,
        "weight_decay": 0.0,
        "clip": 0.1,
        "precision": "bf16",
        "checkpoint_every": 1000,
        "device": "cuda",
        "devices": Shown(1, help="GPUs that share every batch."),
    },
)
def paper(
    context: typer.Context,
    output: Annotated[Path, option(RUN, "Folder of the run; must be new.")] = Path("runs/paper"),
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue the interrupted run in --output.", rich_help_panel=RUN)
    ] = False,
    config: Annotated[
        Path | None, option(RUN, "YAML file of settings that replace the paper's.", metavar="FILE")
    ] = None,
    show: Annotated[
        bool,
        typer.Option(
            "--show",
            help="Print the configuration (--resume: the run's) and differences, and exit.",
            rich_help_panel=RUN,
        ),
    ] = False,
) -> None:
    """Train short, test long as in Press, Smith and Lewis (2022): WikiText-103, 16 layers, 8 heads, width 1024.

    Needs a GPU and the extra `data` (pip install -c constraints.txt '.\\[data]' in a checkout).
    """
    given = given_experiment(context, ignored=("output", "resume", "config", "show"))
    require("lab")
    names = {"run": "--output"}
    with laboratory_errors(output, names=names):
        from rich.console import Console

        from alibi_attention.lab.experiment import read_as_started, resume_experiment, start_experiment
        from alibi_attention.lab.paper import differences, paper_config
        from alibi_attention.lab.progress import Progress
        from alibi_attention.lab.runs import RunFolder

        settings = over_file(config, given, names)
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
