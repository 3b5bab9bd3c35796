"""A run: every contestant at every size, results on disk after each."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from alibi_attention.bench.case import Trial
from alibi_attention.bench.errors import BenchError
from alibi_attention.bench.machine import load, machine, usable_cores
from alibi_attention.bench.results import Results, TrialResult
from alibi_attention.bench.timing import Settings
from alibi_attention.bench.trial import measure_trial

# For predictions of time: arithmetic of a processor thread, FLOP/s; keys a query needs, on average over heads; seconds.
_SPEED, _WINDOW, _COMPILATION = 8e10, 2000.0, 15.0


@dataclass(frozen=True)
class Watch:
    """What a run tells, and asks, whoever started it.

    Attributes:
        started: a size begins.
        sampled: a contestant has been sampled: its name, and the seconds spent on it.
        finished: a size is done.
        goes_on: called before every sample; raises to stop the run.
    """

    started: Callable[[Trial], None] = lambda trial: None  # noqa: ARG005
    sampled: Callable[[str], None] = lambda name: None  # noqa: ARG005
    finished: Callable[[TrialResult], None] = lambda result: None  # noqa: ARG005
    goes_on: Callable[[], None] = lambda: None


@dataclass
class Bench:
    """One run of some trials.

    Attributes:
        trials: sizes, each measured to the end before the next.
        peers: names of peers to compare with, of those a case lists.
        threads: torch threads.
        asked: what the user asked for, for the record.
    """

    trials: Sequence[Trial]
    peers: Sequence[str]
    threads: int
    settings: Settings = field(default_factory=Settings)
    asked: dict[str, Any] = field(default_factory=dict)

    def run(self, output: Path, watch: Watch | None = None) -> Results:
        """Measure, and write ``output`` after every size; what is there when something stops the run is kept.

        Raises:
            BenchError: for an output that exists or cannot be written, or a number of threads there are not.
            Whatever ``watch.goes_on`` raises.
        """
        watch = watch or Watch()
        _refuse(output)
        threads = torch.get_num_threads()
        torch.set_num_threads(self.threads)
        begin = time.perf_counter()
        try:
            results = Results(_machine(), {**self.asked, "peers": list(self.peers), **asdict(self.settings)})
            try:
                results.write(output)
            except OSError as error:
                got = f"{output} ({error.strerror})"
                raise BenchError(
                    "output", expected="a file that can be written", got=got, remedy="choose another"
                ) from None
            try:
                for trial in self.trials:
                    watch.started(trial)
                    self._measure(trial, results, watch)
                    # What takes the process down, or its machine, takes no more than the size at hand.
                    results.write(output)
                results.status = "complete"
            finally:
                results.seconds = time.perf_counter() - begin
                results.write(output)
        finally:
            torch.set_num_threads(threads)
        return results

    def _measure(self, trial: Trial, results: Results, watch: Watch) -> None:
        result = TrialResult(
            case=trial.case.name,
            title=trial.case.title,
            mode=trial.case.mode,
            heads=trial.case.heads,
            head_dim=trial.head_dim,
            queries=trial.queries,
            keys=trial.keys,
            dtype=str(trial.case.dtype).removeprefix("torch."),
            tolerance=trial.case.tolerance,
            target_peer=trial.case.target.peer if trial.case.target else None,
            target_ratio=trial.target_ratio,
            target_also=list(trial.case.target.also) if trial.case.target else [],
            target_mean=list(trial.case.lengths) if trial.case.target and trial.case.target.mean else [],
            limits=_limits(trial),
            load=load(),
        )
        before = list(results.trials)
        results.trials.append(result)
        measure_trial(trial, result, before, self.peers, self.settings, watch.goes_on, watch.sampled)
        result.complete = True
        watch.finished(result)
        gc.collect()


def check_threads(threads: int) -> None:
    """Raise `BenchError` for a number of threads this process cannot have at once."""
    most = usable_cores()
    if not 1 <= threads <= most:
        expected = f"1 to {most}, the processors there are"
        raise BenchError("threads", expected=expected, got=str(threads), remedy=f"such as --threads {most}")


def expected_seconds(trial: Trial, peers: Sequence[str], settings: Settings, threads: int) -> float:
    """A rough prediction of how long a trial takes, seconds: for a bar, not for the record."""
    dense = trial.flops / (_SPEED * threads)
    skips = trial.case.tolerance != 0.0 and trial.queries > 1
    # Three contestants: ours, and another backend that is half as fast.
    ours = 1.0 if trial.case.alone or settings.default_alone else 3.0
    seconds = 3.0 + ours * _rounds(dense * min(1.0, _WINDOW / trial.keys) if skips else dense, settings)
    for name in trial.case.peers:
        target = trial.case.target is not None and name in trial.case.target.peers
        # Nothing shorter tells the patience that a peer of one length is slow.
        if name in peers and (target or dense <= settings.patience or len(trial.case.lengths) == 1):
            both = 1.0 if dense >= settings.long_call else 2.0
            seconds += both * _rounds(dense, settings) + (_COMPILATION if name.startswith("flex") else 0.0)
    return seconds


def _rounds(call: float, settings: Settings) -> float:
    """Seconds for all samples of a contestant whose call takes so many, the first call with them."""
    if call >= settings.long_call:
        return call
    each = max(settings.least, call)
    return call + each * max(3.0, min(float(settings.repeats), settings.budget / each))


def _limits(trial: Trial) -> dict[str, Any]:
    """What is asked of us by ourselves at this size; nothing at lengths that are not the case's own."""
    asked = asdict(trial.case.limits) if trial.keys in trial.case.lengths else {}
    return {name: value for name, value in asked.items() if value is not None}


def _machine() -> dict[str, Any]:
    try:
        return machine()
    except RuntimeError as error:  # a wrong ALIBI_CPU_ISA
        name, _, complaint = str(error).partition(": ")
        got, _, remedy = complaint.partition("; ")
        raise BenchError(
            name, expected="an instruction set of this machine", got=got.removeprefix("got "), remedy=remedy
        ) from None


def _refuse(output: Path) -> None:
    if output.exists():
        raise BenchError("output", expected="a new file", got=f"{output}, which exists", remedy="choose another name")
    if output.suffix != ".json":
        raise BenchError(
            "output", expected="a name ending in .json", got=str(output), remedy=f"try {output.with_suffix('.json')}"
        )
