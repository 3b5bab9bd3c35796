"""The command line, ``alibi``. Only a command that runs imports what it needs, so help is quick."""

from __future__ import annotations

from alibi_attention.cli.extras import require


def main() -> None:
    """Entry point of ``alibi``."""
    require("cli")
    from alibi_attention.cli.app import app

    app(prog_name="alibi")
