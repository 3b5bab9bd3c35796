"""Peak memory of one contestant beyond its inputs, in a process of its own.

``python -m alibi_attention.bench.memory CASE HEAD_DIM KEYS NAME`` prints the bytes, and how many of them are what the
call returns. What is counted: biases and masks made beforehand, the output, what is kept for backward, gradients,
workspaces. What is not: the inputs, and libraries, which a call at a tiny size has loaded by then.
"""

from __future__ import annotations

import contextlib
import gc
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import torch

from alibi_attention.bench.case import Trial
from alibi_attention.bench.cases import CASES
from alibi_attention.bench.inputs import Inputs, make_inputs
from alibi_attention.bench.ours import make_ours
from alibi_attention.bench.peers import PEERS

T = TypeVar("T")

TINY = 64
"""Tokens of the call that loads the libraries."""

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def peak_memory(trial: Trial, name: str) -> tuple[int, int] | str:
    """Bytes at the peak of one contestant beyond its inputs, and of its outputs; or why they are not known."""
    if name.startswith("flex"):
        return "the compiler runs in the same process; its memory cannot be told apart"
    return in_fresh_process("alibi_attention.bench.memory", trial.case.name, trial.head_dim, trial.keys, name)


def in_fresh_process(module: str, *arguments: object) -> tuple[int, int] | str:
    """The two numbers that ``python -m module arguments`` prints; or why it did not."""
    done = subprocess.run(
        [sys.executable, "-m", module, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())},
        # Ctrl-C is for the parent to act on, once it has this number.
        start_new_session=True,
    )
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        return f"the process ended with status {done.returncode}: {last}"
    peak, outputs = map(int, done.stdout.split())
    return peak, outputs


def measure(trial: Trial, name: str) -> tuple[int, int]:
    """The same, in this process, which must be new."""
    # Before any worker thread starts, so that all flush: it is quicker, and memory is the same.
    torch.set_flush_denormal(True)
    with torch.set_grad_enabled(trial.case.mode == "training"):
        _call(replace(trial, keys=TINY), name)
        inputs = make_inputs(trial, sys.maxsize)
        peak, outputs = peak_beyond(inputs, lambda inputs: _maker(trial, name)(inputs)())
    if trial.case.mode == "training":
        # A call gives gradients alone, but what they are the gradients of is an output too.
        outputs += sum(group.query.numel() * group.query.element_size() for group in inputs.groups)
    return peak, outputs


def peak_beyond(inputs: T, call: Callable[[T], Any]) -> tuple[int, int]:
    """Bytes at the peak of a call beyond its inputs, which are there already, and of the tensors it returns."""
    gc.collect()
    _forget_peak()
    before = _now()
    result = call(inputs)
    returned = (result,) if isinstance(result, torch.Tensor) else result
    outputs = sum(tensor.numel() * tensor.element_size() for tensor in returned)
    return max(0, _peak() - before), outputs


def _call(trial: Trial, name: str) -> None:
    _maker(trial, name)(make_inputs(trial, sys.maxsize))()


def _maker(trial: Trial, name: str) -> Callable[[Inputs], Callable[[], Any]]:
    if name in PEERS:
        return lambda inputs: PEERS[name].make(trial, inputs)
    return lambda inputs: make_ours(name, trial, inputs)


def _forget_peak() -> None:
    # Where that is not allowed, the peak so far is the inputs', or a little more.
    with contextlib.suppress(OSError):
        _CLEAR.write_text("5", encoding="ascii")


def _now() -> int:
    return _status("VmRSS") or _peak()


def _peak() -> int:
    # On Linux ru_maxrss starts from the peak of the parent, which may be larger than anything here.
    usage = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return _status("VmHWM") or (usage if sys.platform == "darwin" else usage * 1024)


def _status(field: str) -> int | None:
    """A field of /proc/self/status in bytes; None where there is no such thing."""
    try:
        lines = _STATUS.read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:")), None)


if __name__ == "__main__":
    case, head_dim, keys, contestant = sys.argv[1:]
    print(*measure(Trial(CASES[case], int(head_dim), int(keys)), contestant))
