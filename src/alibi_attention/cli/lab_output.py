"""Results of the laboratory on a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

    from alibi_attention.lab.runs import MethodResult


def print_results(results: Sequence[MethodResult], output: Path) -> None:
    """The tables of a run, why numbers are missing, and where everything was written."""
    from rich.console import Console

    from alibi_attention.lab.runs import evaluations_of
    from alibi_attention.lab.tables import notes, recall_rows, table_rows, verdict_rows

    console = Console()
    evaluations = evaluations_of(results)
    print_table(console, *table_rows(results))
    if evaluations[0].recall:
        console.print()
        print_table(console, *recall_rows(evaluations))
        console.print()
        print_table(console, *verdict_rows(evaluations))
    for note in notes(results):
        console.print(f"{note}.", highlight=False, soft_wrap=True)
    console.print(
        f"Written to {output}: results.json, table.md, figure.png, figure.svg", highlight=False, soft_wrap=True
    )


def print_table(console: Console, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Words to the left, numbers to the right."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for index, title in enumerate(header):
        table.add_column(title, justify="right" if index else "left")
    for row in rows:
        table.add_row(*row)
    console.print(table)
