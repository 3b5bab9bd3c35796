"""What help and usage make of parameters: a flag takes no value, an argument is a name in capitals."""

from __future__ import annotations

from typing import Any

from typer.core import TyperCommand, TyperGroup


def _as_usual(params: list[Any]) -> list[Any]:
    """Typer would write ``--flag <bool>``, and ``{name} <list[Path]>`` for an argument."""
    for param in params:
        if param.param_type_name == "option":
            param.metavar = "" if param.is_flag else param.metavar
        elif hasattr(param, "display_type_rich"):
            # Before it had this, Typer wrote arguments in capitals by itself.
            param.metavar = param.metavar or param.name.upper()
            param.display_type_rich = lambda **_: None
    return params


class Command(TyperCommand):
    """A command."""

    def __init__(self, *args: Any, help: str | None = None, **kwargs: Any) -> None:  # noqa: A002
        # Typer joins the lines of the first paragraph, and breaks the others where the docstring did.
        paragraphs = (help or "").split("\n\n")
        joined = "\n\n".join(" ".join(line.strip() for line in each.splitlines()) for each in paragraphs)
        super().__init__(*args, help=joined or None, **kwargs)

    def get_params(self, ctx: Any) -> list[Any]:
        return _as_usual(super().get_params(ctx))

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        shown = [param for param in self.get_params(ctx) if not getattr(param, "hidden", False)]
        pieces = [piece for param in shown for piece in param.get_usage_pieces(ctx)]
        # Required arguments stand in braces, which elsewhere mean a choice.
        return [self.options_metavar or "", *(piece.replace("{", "").replace("}", "") for piece in pieces)]


class Group(TyperGroup):
    """A command that has commands."""

    def get_params(self, ctx: Any) -> list[Any]:
        return _as_usual(super().get_params(ctx))
