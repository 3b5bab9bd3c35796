"""Processes that share a sequence or heads: `run_checks`, run by all of them, looked at one by one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import run_checks
import torch
from process_checks import CHECKS, PROCESSES

from alibi_attention import alibi_slopes
from alibi_attention.parallel import context_attention
from alibi_attention.parallel.exchange import segments, together
from alibi_attention.parallel.windows import ContextWindows, Need, block_of

SECONDS = 600.0


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, str | None]]:
    """Of each process, the checks it came to, each with its failure or None."""
    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        # Workers share what one of them runs.
        root = root.parent
    folder, deadline = root / "parallel", time.monotonic() + SECONDS
    try:
        folder.mkdir()
    except FileExistsError:
        while not (folder / "done").exists() and time.monotonic() < deadline:
            time.sleep(0.1)
    else:
        try:
            run_processes(folder, deadline)
        finally:
            (folder / "done").touch()
    files = [folder / f"{rank}.json" for rank in range(PROCESSES)]
    return [json.loads(path.read_text(encoding="utf-8")) if path.exists() else {} for path in files]


def run_processes(folder: Path, deadline: float) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TRANSFORMERS_VERBOSITY": "error"}
    command = [sys.executable, "-W", "error::RuntimeWarning", run_checks.__file__]
    running = [
        subprocess.Popen([*command, str(rank), str(folder / "store"), str(folder)], env=environment)
        for rank in range(PROCESSES)
    ]
    for process in running:
        try:
            process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()


@pytest.mark.parametrize("name", list(CHECKS))
def test_several_processes(found: list[dict[str, str | None]], name: str) -> None:
    failures = {rank: of_rank[name] for rank, of_rank in enumerate(found) if of_rank.get(name) is not None}
    assert not failures, "\n".join(f"rank {rank}: {text}" for rank, text in failures.items())
    assert all(name in of_rank for of_rank in found), f"not come to: {[sorted(of_rank) for of_rank in found]}"


def test_without_processes_that_know_each_other() -> None:
    tensors = torch.randn(3, 1, 2, 8, 8).unbind(0)
    with pytest.raises(ValueError, match=r"^group: expected processes that know each other, got none; call torch\."):
        context_attention(*tensors, alibi_slopes(2))


def test_what_is_taken_from_whom() -> None:
    needs = (Need(100, 300, 64), Need(0, 300), Need(100, 300, 64))
    groups = together(needs)
    assert groups == (((0, 2), needs[0]), ((1,), needs[1]))
    assert [group.picked() for group in groups] == [[0, 2], slice(1, 2)]
    # By group, and range of its need.
    assert segments(groups, (0, 150)) == [(0, 0, 0, 64), (0, 1, 100, 150), (1, 0, 0, 150)]
    assert segments(groups, (40, 50)) == [(0, 0, 40, 50), (1, 0, 40, 50)]
    assert segments(groups, (300, 400)) == []
    windows = ContextWindows(1, (0, 200, 300), ((Need(0, 200),) * 3, needs), token_bytes=10)
    assert windows.received(0) == 0
    assert windows.received(1) == 10 * (2 * (100 + 64) + 200)


def test_norms_of_a_long_sequence_are_of_more_keys() -> None:
    assert [block_of(total) for total in (1, 4096 * 64, 4096 * 64 + 1, 1 << 20)] == [64, 64, 128, 256]
