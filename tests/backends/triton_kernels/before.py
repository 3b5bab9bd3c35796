"""What the commands of this folder import first: it ends them, with a word and status 2, where something is missing."""

from __future__ import annotations

import argparse
import importlib.util
import sys
from collections.abc import Sequence
from typing import Any

_REMEDIES = {
    "torch": "name an interpreter that has it",
    "triton": "pip install -c constraints.txt '.[triton]' in a checkout of alibi-attention",
    "alibi_attention": "set PYTHONPATH=src in a checkout of alibi-attention",
}


for _name, _remedy in _REMEDIES.items():
    if importlib.util.find_spec(_name) is None:
        _program = sys.argv[0].rpartition("/")[2]
        print(f"{_program}: error: expected {_name}, got none in {sys.executable}; {_remedy}", file=sys.stderr)
        sys.exit(2)


class Once(argparse.Action):
    """An option that would forget what was given before, and takes no empty text, which a shell's variable may be."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option: str | None = None,
    ) -> None:
        before = getattr(namespace, self.dest)
        if before:
            parser.error(
                f"{option}: expected to be given once, got {before!r} and {values!r}; give words of both in one"
            )
        if not str(values).strip():
            parser.error(f"{option}: expected some text, got {values!r}; leave it out for everything")
        setattr(namespace, self.dest, values)
