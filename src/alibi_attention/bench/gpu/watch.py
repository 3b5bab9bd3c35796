"""Processes that may fall: watched, ended in time, and replaced without what felled them."""

from __future__ import annotations

import contextlib
import json
import time
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from alibi_attention.bench.gpu.cases import GpuTrial
from alibi_attention.bench.gpu.process import Process
from alibi_attention.bench.gpu.trial import blank_result
from alibi_attention.bench.gpu.worker import Plan
from alibi_attention.bench.results import TrialResult, trial_result

_POLL = 0.1
# Until a process has first told something it has torch to load and a device to wake, which takes no part in a stall.
_WAKING = 60.0
_MOST_RESTARTS = 25


# So often a contestant may cost a process in one case; after that it is left out of the rest of the case.
_MOST_LOSSES = 2


@dataclass(frozen=True)
class Patience:
    """How long one step of a contestant may take, in seconds.

    Attributes:
        cold: compilation included.
        warm: at sizes that were compiled beforehand.
    """

    cold: float = 75.0
    warm: float = 60.0


class Measuring:
    """The benchmarks' process: replaced when it falls or stalls, without the contestant that was under way."""

    def __init__(self, folder: Path, plan: Plan, patience: Patience, warmed: Collection[int] = ()) -> None:
        self._folder, self._plan, self._patience, self._warmed = folder, plan, patience, warmed
        self._excluded: dict[int, dict[str, str]] = {}
        self._abandoned: dict[int, str] = {}
        self._losses: Counter[tuple[str, str]] = Counter()
        self.restarts = 0

    def run(self, until: float, changed: Callable[[dict[int, TrialResult]], None]) -> dict[int, TrialResult]:
        """Measure until everything is known or the clock (time.monotonic) reads ``until``.

        Args:
            changed: is told the results so far whenever they have changed.
        """
        while time.monotonic() < until and self.restarts <= _MOST_RESTARTS:
            left = self._left()
            if not left:
                break
            if self._watch(left, until, changed):
                break
            self.restarts += 1
        return self.results()

    def results(self) -> dict[int, TrialResult]:
        """By number of the trial, as far as known."""
        found = {number: read_trial(self._folder / f"trial-{number}.json") for number in self._plan.trials}
        for number, reason in self._abandoned.items():
            result = found.get(number) or blank_result(self._plan.trials[number])
            found[number] = replace(result, note=reason)
        return {number: result for number, result in found.items() if result is not None}

    def _left(self) -> dict[int, GpuTrial]:
        done = {number for number, result in self.results().items() if result.complete} | set(self._abandoned)
        return {number: trial for number, trial in self._plan.trials.items() if number not in done}

    def _watch(
        self, left: dict[int, GpuTrial], until: float, changed: Callable[[dict[int, TrialResult]], None]
    ) -> bool:
        """Whether the process has done all it was given, or time is up."""
        plan = replace(self._plan, trials=left, excluded=self._excluded)
        plan.write(self._folder / "plan.json")
        process = Process(["-m", "alibi_attention.bench.gpu.worker", str(self._folder)], self._folder / "worker.log")
        seen, moved = self._stamps(), time.monotonic() + _WAKING
        try:
            while process.status is None:
                time.sleep(_POLL)
                stamps = self._stamps()
                if stamps != seen:
                    seen, moved = stamps, time.monotonic()
                    changed(self.results())
                if time.monotonic() > until:
                    return True
                if time.monotonic() - moved > self._stall():
                    process.end()
                    self._blame(f"gave no answer within {self._stall():.0f} s")
                    return False
        finally:
            process.end()
        changed(self.results())
        if process.status == 0:
            return True
        self._blame(f"ended the process (status {process.status}): {process.last_words()}")
        return False

    def _state(self) -> dict[str, Any] | None:
        try:
            state: dict[str, Any] = json.loads((self._folder / "state.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return state

    def _stall(self) -> float:
        state = self._state()
        return self._patience.warm if state and state["trial"] in self._warmed else self._patience.cold

    def _blame(self, reason: str) -> None:
        state = self._state()
        if state is None:
            # It fell before it began: there is nothing to leave out.
            self.restarts = _MOST_RESTARTS
            return
        number, name = state["trial"], state["contestant"]
        excluded = self._excluded.setdefault(number, {})
        if name is None or name == "certify" or name in excluded:
            self._abandoned[number] = reason
            return
        excluded[name] = reason
        case = self._plan.trials[number].case.name
        self._losses[case, name] += 1
        if self._losses[case, name] >= _MOST_LOSSES:
            # A fault that is common to all sizes would take the time of everybody else.
            for other in self._left():
                if self._plan.trials[other].case.name == case:
                    elsewhere = f"left out after {_MOST_LOSSES} faults in this case, the last: {reason}"
                    self._excluded.setdefault(other, {}).setdefault(name, elsewhere)

    def _stamps(self) -> dict[str, int]:
        found = {}
        for path in self._folder.glob("*.json"):
            with contextlib.suppress(OSError):
                found[path.name] = path.stat().st_mtime_ns
        return found


def read_trial(path: Path) -> TrialResult | None:
    """A file the worker wrote; None where there is none."""
    try:
        value: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return trial_result(value)
