"""Results as rows."""

from __future__ import annotations

from collections.abc import Sequence

from alibi_attention.lab.runs import MethodResult


def table_rows(results: Sequence[MethodResult]) -> tuple[list[str], list[list[str]]]:
    """Header and rows: one row per method, one column of bits per byte per evaluation length, and the change."""
    lengths = [score.length for score in results[0].scores]
    header = ["bits per byte at", *map(str, lengths), f"{lengths[0]} → {lengths[-1]}"]
    rows = []
    for result in results:
        bits = [score.bits_per_byte for score in result.scores]
        rows.append([result.title, *(f"{value:.3f}" for value in bits), f"{bits[-1] - bits[0]:+.3f}"])
    return header, rows


def markdown_table(results: Sequence[MethodResult]) -> str:
    """The same as a Markdown table."""
    header, rows = table_rows(results)
    rule = ["---", *["---:"] * (len(header) - 1)]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in [header, rule, *rows])
