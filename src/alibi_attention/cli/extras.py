"""Optional packages: which extra brings them, and what to say when they are not there."""

from __future__ import annotations

import sys
from importlib.util import find_spec

from alibi_attention.extras import installing

EXTRAS = {
    "cli": ("typer", "rich"),
    "export": ("gguf", "safetensors", "tokenizers"),
    "lab": ("lightning", "matplotlib", "numpy", "pydantic", "safetensors", "tensorboard", "yaml"),
    "transformers": ("transformers",),
}


def missing_from(packages: tuple[str, ...]) -> list[str]:
    """Those that are not installed; none is imported."""
    return [package for package in packages if find_spec(package) is None]


def require(extra: str, *packages: str) -> None:
    """End the program with the way to mend it if the extra is not installed, or those packages of it."""
    missing = missing_from(packages or EXTRAS[extra])
    if missing:
        print(
            f"error: this needs {', '.join(missing)}, not installed here\n  {installing(extra)}",
            file=sys.stderr,
        )
        raise SystemExit(2)
