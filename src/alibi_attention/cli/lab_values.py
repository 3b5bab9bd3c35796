"""Flags of the laboratory as the settings they stand for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import typer

from alibi_attention.cli.errors import refuse
from alibi_attention.lab.numerals import whole_number

_NAMES = ("methods", "variants", "protocols")
_NUMBERS = ("eval_lengths", "cutoffs")


def given_settings(context: typer.Context, *, ignored: Sequence[str] = ()) -> dict[str, Any]:
    """What was written on the command line, lists taken apart at their commas."""
    settings = {}
    for name, value in context.params.items():
        source = context.get_parameter_source(name)
        if name in ignored or source is None or source.name != "COMMANDLINE":
            continue
        if name in _NAMES:
            settings[name] = [part.strip() for part in value.split(",") if part.strip()]
        elif name in _NUMBERS:
            settings[name] = whole_numbers(f"--{name.replace('_', '-')}", value)
        else:
            settings[name] = value
    return settings


def _count(text: str) -> int:
    try:
        return whole_number(str(text))
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not a valid integer, such as 8192 or 8K.") from None


COUNT: Mapping[str, Any] = {"parser": _count, "metavar": "<int>"}
"""What makes a flag one that counts tokens, as ``1024`` or ``1K``."""


def whole_numbers(flag: str, text: str) -> list[int]:
    """``"256,1K"`` to ``[256, 1024]``."""
    try:
        return [whole_number(part) for part in text.split(",")]
    except ValueError:
        complaint = f"expected whole numbers joined by commas, got {text!r}"
        raise refuse(flag, complaint, "such as 256,512,1024") from None
