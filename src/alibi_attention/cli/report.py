"""``alibi report``: runs as a page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from alibi_attention.cli.errors import laboratory_errors
from alibi_attention.cli.extras import require
from alibi_attention.cli.lab_output import print_report


def report(
    runs: Annotated[
        list[Path], typer.Argument(help="Complete runs of one experiment: folders, or files such as run-seed-0.json.")
    ],
    shorter: Annotated[
        list[Path] | None,
        typer.Option(
            help="A run trained shorter and evaluated at the lengths of the others, to compare; once for each seed.",
            metavar="RUN",
        ),
    ] = None,
    output: Annotated[Path, typer.Option(help="Folder to write to.")] = Path("report"),
) -> None:
    """One self-contained HTML page and Markdown from runs, with every figure as SVG and PNG.

    Runs differ in their seed. Those of one seed are its parts, each with methods of its own. A report that is there
    is written anew.
    """
    require("lab")
    names = dict.fromkeys(("run", "runs", "inside"), "RUNS...")
    with laboratory_errors(output, again="the same command, which begins anew", names=names):
        from alibi_attention.lab.report import write_report

        print_report(output, write_report(runs, output, shorter=shorter or ()))
