#!/usr/bin/env python3
"""Check and measure the GPU kernels of this checkout.

torch and Triton are all that must be installed, and what Triton itself builds with at run time: a C compiler and
Python's headers.
"""

import importlib.util
import sys
from pathlib import Path

if importlib.util.find_spec("torch") is None:
    told = f"expected an interpreter that has torch, got {sys.executable}, which has none"
    print(f"PYTHON: {told}; name one that has it, as in make gpu PYTHON=path/to/python", file=sys.stderr)
    sys.exit(2)
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from alibi_attention.bench.gpu.__main__ import main

if __name__ == "__main__":
    sys.exit(main())
