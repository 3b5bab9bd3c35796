"""What compiles the kernels on this machine: results of one assembler say little about another's."""

from __future__ import annotations

import importlib
import os
from importlib import metadata
from typing import Any

# Where it is set, Triton assembles with this program in place of the one it brings.
PTXAS = "TRITON_PTXAS_PATH"


def compiler() -> dict[str, Any]:
    """Versions of Triton and of the assembler it uses, and whether that one is its own."""
    return {
        "triton": _triton_version(),
        "ptxas": _ptxas_version(),
        "ptxas_from": PTXAS if os.environ.get(PTXAS) else "triton",
    }


def _triton_version() -> str | None:
    for name in ("triton", "pytorch-triton", "pytorch-triton-rocm"):
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return None


def _ptxas_version() -> str | None:
    try:
        return str(importlib.import_module("triton.knobs").nvidia.ptxas.version)
    except Exception:
        # No Triton, one that keeps its tools elsewhere, or a tool that does not start: nothing to fail for.
        return None
