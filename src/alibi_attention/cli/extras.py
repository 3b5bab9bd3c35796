"""Optional packages: which extra brings them, and what to say when they are not there."""

from __future__ import annotations

import sys
from importlib.util import find_spec

EXTRAS = {
    "cli": ("typer", "rich"),
    "lab": ("lightning", "matplotlib", "numpy", "pydantic", "safetensors", "tensorboard", "yaml"),
}


def require(extra: str) -> None:
    """End the program with the way to mend it if a package of the extra is not installed. Imports none of them."""
    missing = [package for package in EXTRAS[extra] if find_spec(package) is None]
    if missing:
        print(
            f"error: this needs {', '.join(missing)}, not installed here\n  pip install 'alibi-attention[{extra}]'",
            file=sys.stderr,
        )
        raise SystemExit(2)
