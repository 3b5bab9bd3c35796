"""The kernels' checks on the device, in several processes at once: most of their time is compilation."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from alibi_attention.bench.gpu.watch import Process

_POLL = 0.2
# Beyond its own limit a process is ended by force, so long after.
_GRACE = 20.0


@dataclass
class Findings:
    """What the checks found.

    Attributes:
        passed, left_out: names; left out is what time did not suffice for.
        failed: reasons by name; a process that fell has one for the check it was at.
        reason: why nothing ran, or None.
    """

    passed: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)
    seconds: float = 0.0
    reason: str | None = None

    def summary(self) -> dict[str, Any]:
        """For the file of results."""
        return {
            "passed": len(self.passed), "failed": self.failed, "left_out": self.left_out,
            "seconds": round(self.seconds, 1), "reason": self.reason, "checks": self.passed,
        }  # fmt: skip

    def line(self) -> str:
        if self.reason is not None:
            return f"checks: not run, {self.reason}"
        return (
            f"checks: {len(self.passed)} passed, {len(self.failed)} failed, "
            f"{len(self.left_out)} left out for time, {self.seconds:.0f} s"
        )


class Suite:
    """The checks under way."""

    def __init__(self, script: Path, folder: Path, parts: int, seconds: float, cases: int) -> None:
        self._begin = time.monotonic()
        self._limit = seconds
        self._logs: list[Path] = []
        self._processes: list[Process] = []
        self._missing = None if script.is_file() else f"{script} is not there: it needs a checkout of the repository"
        if self._missing is not None:
            return
        for part in range(1, parts + 1):
            log = folder / f"suite-{part}.log"
            arguments = [str(script), "--part", f"{part}/{parts}", "--seconds", str(seconds), "--cases", str(cases)]
            self._processes.append(Process(["-u", *arguments], log))
            self._logs.append(log)

    def wait(self, tell: Callable[[Findings], None] = lambda found: None) -> Findings:  # noqa: ARG005
        """Until every process has ended, or has been ended for want of time."""
        told = -1
        while any(process.status is None for process in self._processes):
            time.sleep(_POLL)
            found = self.findings()
            if len(found.passed) + len(found.failed) != told:
                told = len(found.passed) + len(found.failed)
                tell(found)
            if time.monotonic() - self._begin > self._limit + _GRACE:
                self.end()
        return self.findings()

    def end(self) -> None:
        for process in self._processes:
            process.end()

    def findings(self) -> Findings:
        """As far as known."""
        found = Findings(seconds=time.monotonic() - self._begin, reason=self._missing)
        for number, (process, log) in enumerate(zip(self._processes, self._logs, strict=True), start=1):
            last = "its start"
            for record in _records(log):
                last = record["check"]
                if record.get("left_out"):
                    found.left_out.append(last)
                elif record["failure"] is None:
                    found.passed.append(last)
                else:
                    found.failed[last] = record["failure"]
            if process.status not in (None, 0, 1):
                found.failed[f"part {number}, after {last}"] = (
                    f"the process ended with status {process.status}: {process.last_words()}"
                )
            elif process.status == 1 and not any(record["failure"] for record in _records(log)):
                # An exception outside of the checks: Python's own exit status for it is 1 as well.
                found.failed[f"part {number}, after {last}"] = process.last_words()
        return found


def _records(log: Path) -> list[dict[str, Any]]:
    """The lines of JSON; a library may print between them, and the last may be half written."""
    found = []
    try:
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    for line in lines:
        if line.startswith('{"check"'):
            try:
                found.append(json.loads(line))
            except ValueError:
                continue
    return found
