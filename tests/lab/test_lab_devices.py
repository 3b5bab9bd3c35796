"""Several processes that train together, killed in the middle."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from alibi_attention.lab.checkpoint import load_tensors

# Where `alibi` would be typed.
ALIBI = [sys.executable, "-c", "from alibi_attention.cli import main; main()"]

TWO = [
    *("--methods=alibi", "--devices=2", "--batch-size=4", "--length=16", "--eval-lengths=16,64", "--eval-tokens=256"),
    *("--layers=1", "--heads=2", "--width=16", "--steps=60", "--warmup=2", "--checkpoint-every=5"),
    *("--dropout=0.2", "--accumulate=2"),
]


def alibi(*arguments: str) -> subprocess.Popen[bytes]:
    """A process group of its own, all of it with one thread each."""
    return subprocess.Popen(
        [*ALIBI, "extrapolate", *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def finish(running: subprocess.Popen[bytes]) -> None:
    _, errors = running.communicate(timeout=300)
    assert running.returncode == 0, errors.decode()
    # Nothing of the engine's: neither its announcements nor warnings about its inside.
    for word in (b"distributed", b"deprecated", b"Trainer", b"Warning"):
        assert word not in errors, errors.decode()


@pytest.mark.skipif(sys.platform == "win32", reason="process groups are POSIX's")
def test_two_processes_killed_in_the_middle_come_to_the_same_bits(texts: Path, tmp_path: Path) -> None:
    """Masked: what the other objective draws, and masks besides."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    arguments = [*TWO, "--objective=masked", "--text", str(texts)]
    finish(alibi(*arguments, "--output", str(whole)))

    running = alibi(*arguments, "--output", str(killed))
    state = killed / "alibi" / "checkpoint.safetensors"
    deadline = time.monotonic() + 300
    while not state.exists() and running.poll() is None and time.monotonic() < deadline:
        time.sleep(0.001)
    # Parent and both that train, without a word of warning.
    os.killpg(running.pid, signal.SIGKILL)
    running.communicate()
    assert running.returncode == -signal.SIGKILL
    assert not (killed / "alibi" / "weights.safetensors").exists()
    _, header = load_tensors(state)
    assert 0 < header["step"] < 60

    finish(alibi("--resume", "--output", str(killed)))
    weights = [(root / "alibi" / "weights.safetensors").read_bytes() for root in (whole, killed)]
    assert weights[0] == weights[1]
    scores = [
        json.loads((root / "results.json").read_text(encoding="utf-8"))["results"][0]["evaluations"]
        for root in (whole, killed)
    ]
    assert scores[0] == scores[1]
