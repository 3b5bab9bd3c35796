"""A table of a report."""

from __future__ import annotations

from typing import NamedTuple


class Table(NamedTuple):
    """Name, title, what to know when reading it, header and rows."""

    name: str
    title: str
    note: str
    header: list[str]
    rows: list[list[str]]
