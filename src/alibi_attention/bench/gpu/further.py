"""What a run did not come to, by name, and the commands that go on with it."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from typing import Any

from alibi_attention.bench.case import short
from alibi_attention.bench.compare import size_of
from alibi_attention.bench.gpu.cases import AS_GRAPHS
from alibi_attention.bench.results import Results, TrialResult

# Of names in a list, and of checks that one command still names: each is some words of a line.
_MOST_NAMES = 10
_ALONE = "PYTHONPATH=src python tests/backends/triton_kernels/kernel_suite.py"
_COMMAND = "python benchmarks/gpu.py"
_WHY = (("cut_short", "time was up while it ran"), ("short_of_memory", "it did not fit in memory"))


def left_out(suite: dict[str, Any]) -> Iterator[str]:
    """Checks without a verdict, those with a reason of their own first, at most ten; then how many more there are."""
    names: list[str] = suite.get("left_out", [])
    reasons = {name: why for kind, why in _WHY for name in suite.get(kind, ())}
    ordered = sorted(names, key=lambda name: name not in reasons)
    for name in ordered[:_MOST_NAMES]:
        yield f"{name} ({reasons[name]})" if name in reasons else name
    if len(ordered) > _MOST_NAMES:
        yield f"and {len(ordered) - _MOST_NAMES} more"


def has_failed(trial: TrialResult) -> bool:
    """Whether a size was given up as a whole, for the reason in its note."""
    return trial.note not in ("", AS_GRAPHS)


def not_reached(results: Results) -> list[TrialResult]:
    """Sizes that time did not suffice for; one that felled its process would do so again."""
    return [trial for trial in results.trials if not trial.complete and not has_failed(trial)]


def not_reached_lines(results: Results) -> list[str]:
    return [f"{size_of(trial)}{' (begun)' if trial.entries else ''}" for trial in not_reached(results)]


def commands(results: Results) -> Iterator[str]:
    """From the top of the checkout; what was compiled lies in Triton's cache, so the same takes less time again."""
    names: list[str] = results.suite.get("left_out", [])
    if 0 < len(names) <= _MOST_NAMES:
        yield " ".join([_ALONE, *(f"--exactly {shlex.quote(name)}" for name in names), "| tee checks.jsonl"])
    elif names:
        yield f"{_COMMAND} --no-benchmarks --minutes 10"
    lengths: dict[str, dict[str, None]] = {}
    for trial in not_reached(results):
        lengths.setdefault(trial.case, {})[short(trial.keys)] = None
    for case, of_case in lengths.items():
        yield f"{_COMMAND} {case} --lengths {','.join(of_case)} --no-suite"
