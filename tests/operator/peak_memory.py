"""What a piece of code takes at most, in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping

import pytest

# What a process has used at most begins with what its parent had, and is set back first.
_PROGRAM = """
import sys
{before}
def _peak():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
try:
    open("/proc/self/clear_refs", "w").write("5")
    _base = _peak()
except OSError:
    sys.exit(3)
{measured}
print(_peak() - _base)
"""


def peak_of(before: str, measured: str, environment: Mapping[str, str] | None = None) -> float:
    """MiB by which ``measured`` raises the peak once ``before`` has run. Skips where the system does not tell."""
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM.format(before=before, measured=measured)],
        capture_output=True, text=True, timeout=600, check=False, env={**os.environ, **(environment or {})},
    )  # fmt: skip
    if done.returncode == 3:
        pytest.skip("this system does not tell what memory was used at most")
    assert done.returncode == 0, done.stderr
    return int(done.stdout.splitlines()[-1]) / 1024
