"""The kernels in Triton's interpreter, in processes of their own: the interpreter is chosen before Triton loads.

Longer: ``pytest tests/backends/triton_kernels/test_interpreter.py --cases 500``: all combinations, 500 random calls.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="runs Triton's interpreter")

HERE = Path(__file__).parent
PARTS = 3
QUICK_CASES = 20


def interpret(*arguments: str, timeout: float, path: str = "") -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    # A worker of pytest-xdist that starts pytest is no worker there.
    for name in [name for name in environment if name.startswith("PYTEST_")]:
        del environment[name]
    if path:
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [path, environment.get("PYTHONPATH")]))
    return subprocess.run(
        [sys.executable, "-W", "error", *arguments],
        env=environment, capture_output=True, text=True, timeout=timeout, check=False,
    )  # fmt: skip


def test_the_repairs_of_the_interpreter_hold():
    done = interpret(str(HERE / "interpreter_selftest.py"), timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("part", range(1, PARTS + 1))
def test_the_kernels_agree_with_the_reference(part: int, request: pytest.FixtureRequest):
    asked = request.config.getoption("--cases")
    amount = ["--cases", str(QUICK_CASES), "--quick"] if asked is None else ["--cases", str(asked)]
    done = interpret(str(HERE / "kernel_suite.py"), "--part", f"{part}/{PARTS}", *amount, timeout=7200)
    records = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"check"')]
    failed = [f"{record['check']}: {record['failure']}" for record in records if record["failure"] is not None]
    assert not failed, "\n".join(failed)
    assert done.returncode == 0, done.stderr[-3000:]
    assert len(records) > 15


def test_the_operator_suite_holds_for_interpreted_kernels(request: pytest.FixtureRequest):
    """Random calls as hypothesis draws them, few unless more are asked for: each is seconds here."""
    asked = request.config.getoption("--cases")
    done = interpret(
        "-m", "pytest", str(HERE.parents[1] / "operator" / "test_conformance.py"), "-k", "triton", "-q",
        "--cases", str(3 if asked is None else asked), "-p", "interpreter_plugin", "-p", "no:cacheprovider",
        timeout=7200, path=str(HERE),
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert " passed" in done.stdout
