"""The command line, ``alibi``. Only a command that runs imports what it needs, so help is quick."""

from __future__ import annotations

from collections.abc import Callable

from alibi_attention.cli.extras import require


def load() -> Callable[..., object]:
    """The commands, to be called with the name of the program; the way to mend it where an extra is missing."""
    require("cli")
    from alibi_attention.cli.app import app

    return app


def main() -> None:
    """As ``alibi`` does, by whom this package is imported already."""
    load()(prog_name="alibi")
