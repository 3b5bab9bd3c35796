"""What the commands that measure have in common: their flags, their refusals, their console."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import typer

from alibi_attention.cli.errors import refuse
from alibi_attention.lab.numerals import whole_number

if TYPE_CHECKING:
    from rich.console import Console


def wide_console() -> Console:
    """The terminal; a file or a pipe has room for wide tables."""
    from rich.console import Console

    found = Console()
    return found if found.is_terminal or "COLUMNS" in os.environ else Console(width=160)


@contextmanager
def bench_errors() -> Iterator[None]:
    """Wrong input ends a command in words, without a traceback."""
    from alibi_attention.bench.errors import BenchError

    try:
        yield
    except BenchError as error:
        # Options are named by a word of ours; arguments and variables of the environment name themselves.
        flag = f"--{error.argument}" if error.argument.islower() else error.argument
        raise refuse(flag, error.complaint, error.remedy) from None
    except KeyboardInterrupt:
        typer.echo("Stopped at once.", err=True)
        raise typer.Exit(128 + signal.SIGINT) from None


def split_names(text: str | None) -> list[str]:
    """``"a, b"`` to ``["a", "b"]``; nothing to nothing."""
    return [] if text is None else [part.strip() for part in text.split(",")]


def read_length(text: str) -> int:
    """Tokens: ``"8K"`` to 8192."""
    from alibi_attention.bench.errors import BenchError

    try:
        return whole_number(text)
    except ValueError:
        expected = "numbers joined by commas"
        raise BenchError("lengths", expected=expected, got=repr(text), remedy="such as 1K,8K") from None
