"""The table with what is to be known of it, alone or in a page with every number behind it, in Markdown."""

from __future__ import annotations

from pathlib import Path

from alibi_attention.bench.case import short
from alibi_attention.bench.errors import BenchError
from alibi_attention.bench.report import machine_text
from alibi_attention.bench.results import Results
from alibi_attention.bench.summary import measured
from alibi_attention.bench.versus.notes import notes
from alibi_attention.bench.versus.results import Comparison, Timed
from alibi_attention.bench.versus.shares import shares
from alibi_attention.bench.versus.table import memory_text, one_table, time_text
from alibi_attention.lab.files import write_text
from alibi_attention.lab.tables import markdown

BEGIN, END = "<!-- versus -->\n", "<!-- end of versus -->"

_WHOSE = {"alibi": "ALiBi", "rope": "RoPE", "t5": "T5 bias"}


def table_text(found: Comparison) -> str:
    """The one table, and the notes on its numbers."""
    return one_table(found) + "\n" + "\n".join(f"- {note}" for note in notes(found)) + "\n"


def details(found: Comparison) -> str:
    """Every contestant, and every price."""
    parts = []
    for speed in found.speed:
        parts.append(f"### {speed.phase.capitalize()} at {short(speed.length)}\n")
        rows = [
            [each.title, time_text(each) if not each.refused else each.refused, str(_rounds(each))]
            for each in speed.timed
        ]
        parts.append(markdown(["", "a call", "rounds"], rows))
        priced = [[f"{_WHOSE[s.price.method]}: {s.price.title}", s.text] for s in shares(found, speed)]
        if priced:
            parts.append(markdown(["price of positions", "share of attention time"], priced))
    if found.memory:
        parts.append("### Memory\n")
        rows = [
            [memory.phase, short(memory.length), memory.title, memory_text(memory) if not memory.note else memory.note]
            for memory in found.memory
        ]
        parts.append(markdown(["", "tokens", "", "peak"], rows))
    return "\n".join(parts)


def _rounds(timed: Timed) -> int:
    return 0 if timed.samples is None else len(measured(timed.samples.seconds))


def page_text(found: Comparison) -> str:
    """A page of its own: the table, what stands behind it, the machine."""
    methods = " and ".join(found.titles[name] for name in found.methods)
    missing = "" if found.status == "complete" else "\nStopped before everything was measured.\n"
    return f"# {methods}, measured\n{missing}\n{table_text(found)}\n{details(found)}\n{_where(found)}"


def _where(found: Comparison) -> str:
    return machine_text(Results(found.machine, found.settings, status=found.status, seconds=found.seconds))


def fill_page(found: Comparison, page: Path) -> None:
    """Replace what a page has between `<!-- versus -->` and `<!-- end of versus -->` by the table.

    Raises:
        BenchError: for a page that cannot be read, or marks no such place.
    """
    try:
        text = page.read_text(encoding="utf-8")
    except OSError as error:
        got = f"{page} ({error.strerror})"
        raise BenchError("page", expected="a page in Markdown", got=got, remedy="name one") from None
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        remedy = f"write {BEGIN.strip()} and {END} on lines of their own"
        raise BenchError("page", expected="a page that marks the place of the table", got=f"{page}", remedy=remedy)
    write_text(page, f"{before}{begin}\n{table_text(found)}\n{_where(found)}\n{end}{after}")
