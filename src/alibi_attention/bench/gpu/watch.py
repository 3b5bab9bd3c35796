"""Processes that may fall: watched, ended in time, and replaced without what felled them."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import alibi_attention
from alibi_attention.bench.gpu.cases import GpuTrial
from alibi_attention.bench.gpu.trial import blank_result
from alibi_attention.bench.gpu.worker import Plan
from alibi_attention.bench.results import TrialResult, trial_result

_POLL = 0.1
# Until a process has first told something it has torch to load and a device to wake, which takes no part in a stall.
_WAKING = 60.0
_MOST_RESTARTS = 25


class Process:
    """A Python process of ours, in a group of its own, so that what it started ends with it."""

    def __init__(self, arguments: Sequence[str], log: Path) -> None:
        source = str(Path(alibi_attention.__file__).parents[1])
        path = os.pathsep.join([source, *filter(None, [os.environ.get("PYTHONPATH")])])
        self.log = log
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                [sys.executable, *arguments], stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
                env={**os.environ, "PYTHONPATH": path}, start_new_session=True,
            )  # fmt: skip

    @property
    def status(self) -> int | None:
        return self._process.poll()

    def end(self) -> None:
        """End it and everything it started; nothing where it has ended by itself."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            if self._process.poll() is not None:
                return
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout=5.0)

    def last_words(self) -> str:
        """The last line it wrote."""
        try:
            lines = self.log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        except OSError:
            return ""
        return lines[-1].strip()[:300] if lines else ""


class Measuring:
    """The benchmarks' process: replaced when it falls or stalls, without the contestant that was under way."""

    def __init__(self, folder: Path, plan: Plan, stall: float) -> None:
        self._folder, self._plan, self._stall = folder, plan, stall
        self._excluded: dict[int, dict[str, str]] = {}
        self._abandoned: dict[int, str] = {}
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
                if time.monotonic() - moved > self._stall:
                    process.end()
                    self._blame(f"gave no answer within {self._stall:.0f} s")
                    return False
        finally:
            process.end()
        changed(self.results())
        if process.status == 0:
            return True
        self._blame(f"ended the process (status {process.status}): {process.last_words()}")
        return False

    def _blame(self, reason: str) -> None:
        try:
            state: dict[str, Any] = json.loads((self._folder / "state.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            # It fell before it began: there is nothing to leave out.
            self.restarts = _MOST_RESTARTS
            return
        number, name = state["trial"], state["contestant"]
        excluded = self._excluded.setdefault(number, {})
        if name is None or name == "certify" or name in excluded:
            self._abandoned[number] = reason
        else:
            excluded[name] = reason

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
