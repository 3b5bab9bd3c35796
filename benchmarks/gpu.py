#!/usr/bin/env python3
"""Check and measure the GPU kernels of this checkout: torch and Triton are all that must be installed."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from alibi_attention.bench.gpu.__main__ import main

if __name__ == "__main__":
    sys.exit(main())
