"""The commands and what they are called."""

from __future__ import annotations

import os
from importlib.metadata import version
from typing import Annotated

import typer

from alibi_attention.cli.bench import bench
from alibi_attention.cli.commands import Command, Group
from alibi_attention.cli.demo import demo
from alibi_attention.cli.dissect import dissect
from alibi_attention.cli.errors import refuse
from alibi_attention.cli.evaluate import evaluate
from alibi_attention.cli.export import export
from alibi_attention.cli.extrapolate import extrapolate
from alibi_attention.cli.generate import generate
from alibi_attention.cli.inspect import inspect
from alibi_attention.cli.report import report
from alibi_attention.cli.reproduce import reproduce
from alibi_attention.cli.study import study
from alibi_attention.cli.versus import versus

app = typer.Typer(
    cls=Group,
    help="ALiBi attention: see it, and measure what it does beyond the length of training.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    # As Typer takes it by default, but not in every version: a bracket in a docstring is escaped.
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command in (demo, extrapolate, evaluate, dissect, study, report, generate, export, inspect, versus):
    app.command(cls=Command)(command)
app.add_typer(reproduce, name="reproduce")
app.add_typer(bench, name="bench")


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"alibi-attention {version('alibi-attention')}")
        raise typer.Exit


@app.callback()
def options(
    show_version: Annotated[
        bool,
        typer.Option("--version", help="Print the version and exit.", callback=_print_version, is_eager=True),
    ] = False,
) -> None:
    del show_version
    if "ALIBI_CPU_ISA" not in os.environ:
        return
    from alibi_attention.backends import native

    try:
        native.load()
    except RuntimeError as error:
        name, _, complaint = str(error).partition(": ")
        complaint, _, remedy = complaint.partition("; ")
        raise refuse(name, complaint, remedy) from None
