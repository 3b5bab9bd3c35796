"""What a report is made of."""

from __future__ import annotations

from typing import NamedTuple

from matplotlib.figure import Figure


class Table(NamedTuple):
    """Name, title, what to know when reading it, header and rows; a part that is a picture alone has neither."""

    name: str
    title: str
    note: str
    header: list[str]
    rows: list[list[str]]


class Picture(NamedTuple):
    """One figure drawn twice, and in words for those who do not see it.

    Attributes:
        broad: for a desk, for print, and as a file of its own.
        narrow: for a phone, its legend below.
        words: what is drawn, of what, and where the numbers are.
    """

    broad: Figure
    narrow: Figure
    words: str
