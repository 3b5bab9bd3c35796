"""Checks first, and compilation beside them; then benchmarks until time is up; results on disk all the while."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from alibi_attention.bench.case import short
from alibi_attention.bench.gpu.cases import FASTEST, GpuTrial
from alibi_attention.bench.gpu.logs import keep_logs
from alibi_attention.bench.gpu.suite import Findings, Suite
from alibi_attention.bench.gpu.trial import GpuSettings, blank_result
from alibi_attention.bench.gpu.warm import Warming
from alibi_attention.bench.gpu.watch import Measuring, Patience
from alibi_attention.bench.gpu.worker import Plan
from alibi_attention.bench.machine import machine, usable_cores
from alibi_attention.bench.results import Results, TrialResult
from alibi_attention.bench.tables import milliseconds

SCRIPT = Path(__file__).resolve().parents[4] / "tests" / "backends" / "triton_kernels" / "kernel_suite.py"


@dataclass(frozen=True)
class Budget:
    """How long what may take, in seconds from the start.

    Attributes:
        suite: after that no check is begun; compilation goes on beside the checks until they end.
        again: what did not fit in memory beside others is tried alone for so long.
        whole: everything; under eight minutes with a margin for the last process to end.
        cold, warm: how long one step of a benchmark may go without an answer, by whether it was compiled beforehand.
    """

    suite: float = 140.0
    again: float = 10.0
    whole: float = 445.0
    cold: float = 75.0
    warm: float = 60.0


@dataclass
class GpuRun:
    """One run.

    Attributes:
        trials: sizes to measure, in order; none for checks alone.
        with_suite: whether to run the checks.
        workers: processes for checks and for compilation.
        cases: random calls among the checks.
        tell: is given lines for people.
    """

    trials: Sequence[GpuTrial]
    output: Path
    device: str = "cuda"
    settings: GpuSettings = field(default_factory=GpuSettings)
    budget: Budget = field(default_factory=Budget)
    with_suite: bool = True
    workers: tuple[int, int] = (4, 2)
    cases: int = 20
    script: Path = SCRIPT
    tell: Callable[[str], None] = print
    _warmed: Collection[int] = field(default=(), init=False)

    def run(self) -> Results:
        """Run, keeping ``output`` and the logs beside it up to date: a stop, Ctrl-C too, leaves what is known."""
        begin = time.monotonic()
        results = Results(machine(), {
            **asdict(self.settings), **asdict(self.budget), "device": self.device,
            "cases": list(dict.fromkeys(trial.case.name for trial in self.trials)),
            "peers": list(dict.fromkeys(peer for trial in self.trials for peer in trial.case.peers)),
        }, [with_targets(blank_result(trial), trial) for trial in self.trials])  # fmt: skip
        results.write(self.output)
        folder = Path(tempfile.mkdtemp(prefix="alibi-gpu-"))
        try:
            try:
                self._checks(folder, results)
            except Exception as error:
                # Whatever goes wrong around the checks is no reason to measure nothing.
                results.suite = {**results.suite, "fault": _named(error)}
                self.tell(f"The checks were broken off, the benchmarks go on: {_named(error)}")
            self._benchmarks(folder, results, begin)
        finally:
            results.seconds = time.monotonic() - begin
            results.write(self.output)
            self._keep_logs(folder, results)
            shutil.rmtree(folder, ignore_errors=True)
        return results

    def _keep_logs(self, folder: Path, results: Results) -> None:
        """After the results, which matter more, and never instead of them."""
        try:
            keep_logs(folder, self.output)
        except Exception as error:
            results.machine["logs"] = f"not kept: {_named(error)}"
            self.tell(f"The logs could not be kept: {_named(error)}")
            results.write(self.output)

    def _checks(self, folder: Path, results: Results) -> None:
        if not self.with_suite:
            results.suite = Findings(reason="it was not asked for").summary()
            return
        suite_workers, warm_workers = self.workers
        warming = Warming(folder, self.trials, warm_workers, self.device, self.settings)
        try:
            suite = Suite(self.script, folder, suite_workers, self.budget.suite, self.cases)
            try:
                found = suite.wait(lambda found: self.tell(found.line()))
                warming.end()
                self._warmed = warming.warmed()
                found = suite.again(self.budget.again)
            finally:
                suite.end()
                results.suite = suite.findings().summary()
        finally:
            # Nothing may go on compiling beside what is measured.
            warming.end()
            results.write(self.output)
            self._keep_logs(folder, results)
        self.tell(found.line())
        for name, reason in found.failed.items():
            self.tell(f"  FAILED {name}: {reason}")

    def _benchmarks(self, folder: Path, results: Results, begin: float) -> None:
        place = folder / "measured"
        place.mkdir()
        if not self.trials:
            results.status = "complete"
            return
        plan = Plan(self.device, dict(enumerate(self.trials)), self.settings)
        # Trying tiles compiles dozens of them for one call.
        slow = 4.0 if os.environ.get("ALIBI_TRITON_AUTOTUNE") == "1" else 1.0
        patience = Patience(slow * self.budget.cold, slow * self.budget.warm)
        measuring = Measuring(place, plan, patience, self._warmed)
        told: set[int] = set()

        def changed(found: dict[int, TrialResult]) -> None:
            results.machine["gpu"] = results.machine.get("gpu") or _json(place / "machine.json")
            # What is not reached stands in the file too: its targets are untested, not forgotten.
            known = [found.get(number) or blank_result(trial) for number, trial in enumerate(self.trials)]
            results.trials = [with_targets(*pair) for pair in zip(known, self.trials, strict=True)]
            results.write(self.output)
            for number, trial in found.items():
                if trial.complete and number not in told:
                    told.add(number)
                    self.tell(_line(trial, time.monotonic() - begin))

        found = measuring.run(begin + self.budget.whole, changed)
        changed(found)
        if results.machine.get("gpu") is None:
            results.machine["gpu"] = {"name": "unknown: the measuring process never began", "last words": _log(place)}
        whole = len(found) == len(self.trials) and all(trial.complete for trial in found.values())
        results.status = "complete" if whole else "incomplete"


def with_targets(result: TrialResult, trial: GpuTrial) -> TrialResult:
    """The result with what was asked for; `FASTEST` becomes the peer that was."""
    asked = dict(trial.targets)
    ratio = asked.pop(FASTEST, None)
    if ratio is not None:
        peers = [entry for entry in result.entries if not entry.ours and entry.seconds is not None]
        fastest = min(peers, key=lambda entry: entry.seconds or 0.0, default=None)
        asked[FASTEST if fastest is None else fastest.name] = ratio
    first = next(iter(asked), None)
    return replace(result, targets=asked, target_peer=first, target_ratio=None if first is None else asked[first])


def _named(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip()[:300]}"


def _line(trial: TrialResult, seconds: float) -> str:
    parts = [
        f"{entry.name} {milliseconds(entry.seconds)} ms" if entry.seconds is not None else f"{entry.name} –"
        for entry in trial.entries
    ]
    note = f"  ({trial.note})" if trial.note else ""
    return f"[{seconds:4.0f} s] {trial.case}, D={trial.head_dim}, {short(trial.keys)}: {', '.join(parts)}{note}"


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _log(place: Path) -> str:
    try:
        return (place / "worker.log").read_text(encoding="utf-8", errors="replace")[-2000:]
    except OSError:
        return ""


def spare_workers(cores: int | None = None) -> tuple[int, int]:
    """Processes for checks and for compilation beside them, one for each core: both mostly wait for a compiler."""
    cores = cores or usable_cores()
    compiling = max(1, min(6, cores // 4))
    return max(1, min(24, cores - compiling)), compiling
