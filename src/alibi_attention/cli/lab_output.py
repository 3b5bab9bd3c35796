"""Results of the laboratory on a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from alibi_attention.lab.runs import MethodResult


def print_results(results: Sequence[MethodResult], output: Path) -> None:
    """The tables of a run, why numbers are missing, and where everything was written."""
    from rich.console import Console

    from alibi_attention.lab.tables import notes, result_tables

    console = Console()
    for number, table in enumerate(result_tables(results)):
        if number:
            console.print()
        print_table(console, *table)
    for note in notes(results):
        console.print(f"{note}.", highlight=False, soft_wrap=True)
    console.print(
        f"Written to {output}: results.json, table.md, figure.png, figure.svg", highlight=False, soft_wrap=True
    )


def print_report(folder: Path, page: Path) -> None:
    """Where a report was written."""
    each = "config-seed-*.yaml, run-seed-*.json"
    typer.echo(f"Written to {folder}: {page.name}, report.md, summary.json, figures/, {each}")


def print_table(console: Console, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Words to the left, numbers to the right."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for index, title in enumerate(header):
        table.add_column(title, justify="right" if index else "left")
    for row in rows:
        table.add_row(*row)
    console.print(table)
