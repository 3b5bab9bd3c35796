"""The kernels' checks on the device, in several processes at once: most of their time is compilation."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from alibi_attention.bench.gpu.part import Part
from alibi_attention.bench.gpu.process import end_all

_POLL = 0.2
# After the time at which no check is begun any more, those under way have so long.
_GRACE = 12.0


@dataclass
class Findings:
    """What the checks found.

    Attributes:
        passed, left_out: names; left out is what time or memory did not suffice for.
        failed: reasons by name; what felled a process is the failure of the check it was at.
        cut_short: those left out that were under way when time was up, or that waited too long for the compiler.
        short_of_memory: those left out that did not fit.
        tracebacks: of those that failed, by name.
        restarts: processes that took the place of one that fell.
        reason: why nothing ran, or None.
    """

    passed: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)
    cut_short: list[str] = field(default_factory=list)
    short_of_memory: list[str] = field(default_factory=list)
    tracebacks: dict[str, str] = field(default_factory=dict)
    restarts: int = 0
    seconds: float = 0.0
    reason: str | None = None

    def summary(self) -> dict[str, Any]:
        """For the file of results."""
        return {
            "passed": len(self.passed), "failed": self.failed, "left_out": self.left_out, "cut_short": self.cut_short,
            "short_of_memory": self.short_of_memory, "restarts": self.restarts, "seconds": round(self.seconds, 1),
            "reason": self.reason, "checks": self.passed, "tracebacks": self.tracebacks,
        }  # fmt: skip

    def line(self) -> str:
        if self.reason is not None:
            return f"checks: not run, {self.reason}"
        notes = {"for memory": len(self.short_of_memory), "cut short": len(self.cut_short)}
        of_them = ", ".join(f"{number} {what}" for what, number in notes.items() if number)
        return (
            f"checks: {len(self.passed)} passed, {len(self.failed)} failed, {len(self.left_out)} left out"
            f"{f' ({of_them})' if of_them else ''}, {self.seconds:.0f} s"
        )


class Suite:
    """The checks under way."""

    def __init__(self, script: Path, folder: Path, parts: int, seconds: float, cases: int) -> None:
        self._begin = time.monotonic()
        self._script, self._folder, self._cases = script, folder, cases
        self._missing = None if script.is_file() else f"{script} is not there: it needs a checkout of the repository"
        self._parts: list[Part] = []
        if self._missing is None:
            for number in range(1, parts + 1):
                self._start(f"part {number}", ["--part", f"{number}/{parts}"], seconds)

    def _start(self, name: str, arguments: Sequence[str], seconds: float) -> Part:
        log = self._folder / f"suite-{name.replace(' ', '-')}.log"
        command = [str(self._script), "--cases", str(self._cases), *arguments]
        part = Part(name, command, log, until=time.time() + seconds)
        self._parts.append(part)
        return part

    def wait(self, tell: Callable[[Findings], None] = lambda found: None) -> Findings:  # noqa: ARG005
        """Until every process has ended, or has been ended for want of time."""
        told = -1
        while [part for part in self._parts if not part.watch()]:
            time.sleep(_POLL)
            found = self.findings()
            if len(found.passed) + len(found.failed) != told:
                told = len(found.passed) + len(found.failed)
                tell(found)
            late = [part for part in self._parts if time.time() > part.until + _GRACE]
            if late:
                for part in late:
                    part.ended = True
                end_all([part.process for part in late])
        return self.findings()

    def again(self, seconds: float) -> Findings:
        """Once more, one after the other, what did not fit in memory beside others; for when nothing else runs."""
        names = self.findings().short_of_memory
        if names:
            self._start("alone", [argument for name in names for argument in ("--exactly", name)], seconds)
        return self.wait()

    def end(self) -> None:
        for part in self._parts:
            part.ended = True
        end_all([part.process for part in self._parts])

    def findings(self) -> Findings:
        """As far as known."""
        found = Findings(seconds=time.monotonic() - self._begin, reason=self._missing)
        planned: dict[str, None] = {}
        cut_short: list[str] = []
        short: dict[str, None] = {}
        for part in self._parts:
            told = part.told()
            found.restarts += part.restarts
            planned.update(dict.fromkeys(told.planned))
            cut_short += part.cut_short
            if part.ended and told.under_way is not None and told.under_way not in part.fallen:
                cut_short.append(told.under_way)
            for record in told.records:
                name = record["check"]
                if record.get("memory"):
                    short[name] = None
                elif record["failure"] is None:
                    found.passed.append(name)
                else:
                    found.failed[name] = record["failure"]
                    found.tracebacks[name] = record.get("traceback") or ""
            found.failed.update(part.fallen)
        known = {*found.passed, *found.failed}
        found.left_out = [name for name in planned if name not in known]
        found.cut_short = [name for name in cut_short if name not in known]
        found.short_of_memory = [name for name in short if name not in known]
        return found
