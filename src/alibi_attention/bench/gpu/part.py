"""One part of the checks: a process and, where that falls, another that goes on behind the check it was at."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from alibi_attention.bench.gpu.process import LOST, Process

# Without a sign: that a check was begun or has ended, or a kernel of it was or is compiled.
_STALL = 60.0
_MOST_RESTARTS = 12


@dataclass
class Told:
    """What the processes of a part have written.

    Attributes:
        planned: names of all checks of the part.
        records: one for each check that has come to an end.
        under_way: the check that was begun and has no record, or None.
        compiling: the kernel that the check under way waits for, or None.
        signs: how many lines of all kinds there are.
    """

    planned: list[str] = field(default_factory=list)
    records: list[dict[str, Any]] = field(default_factory=list)
    under_way: str | None = None
    compiling: str | None = None
    signs: int = 0

    @property
    def last(self) -> str | None:
        """The check that was begun last."""
        return self.under_way or (self.records[-1]["check"] if self.records else None)


class Part:
    """Checks in one process at a time.

    Attributes:
        fallen: for a check that took its process along, the reason.
        cut_short: checks that were ended while they waited for the compiler, which says nothing of the kernels.
        ended: whether it was ended from outside, for want of time.
        until: when no further check is begun, by time.time().
    """

    def __init__(self, name: str, command: Sequence[str], log: Path, *, until: float) -> None:
        self.name, self.until = name, until
        self.fallen: dict[str, str] = {}
        self.cut_short: list[str] = []
        self.ended = False
        self.restarts = 0
        self._command, self._log = [*command, "--until", f"{until:.3f}"], log
        self._step = (0, time.monotonic())
        self._behind: str | None = None
        self.process = self._start([])

    def _start(self, further: Sequence[str]) -> Process:
        return Process(["-u", *self._command, *further], self._log)

    def watch(self) -> bool:
        """Whether it has come to its end; a process that fell is replaced."""
        if self.ended:
            # Whether it obeyed or not: one that hangs in a driver may never be reaped.
            return True
        told = self.told()
        status = self.process.status
        if status is None:
            self._look_for_a_stall(told)
            return False
        if status == 0 or self._is_done(status, told):
            return True
        if self.restarts >= _MOST_RESTARTS or time.time() > self.until:
            return True
        self.restarts += 1
        self._behind = told.last
        self.process = self._start(["--after", str(told.last)])
        return False

    def _look_for_a_stall(self, told: Told) -> None:
        if told.signs != self._step[0]:
            self._step = (told.signs, time.monotonic())
        name = told.under_way
        if name is None or name in self.fallen or name in self.cut_short or time.monotonic() - self._step[1] <= _STALL:
            return
        if told.compiling is None:
            self.fallen[name] = f"gave no answer within {_STALL:.0f} s"
        else:
            self.cut_short.append(name)
        self.process.end()

    def _is_done(self, status: int, told: Told) -> bool:
        """Whether nothing is left for another process to do, with what felled this one noted."""
        words = self.process.last_words()
        if told.last == self._behind:
            # Not one check was begun: another process would fare no better.
            where = "at its start" if told.last is None else f"started again behind {told.last}"
            self.fallen[f"{self.name}, {where}"] = words
            return True
        if told.under_way is not None:
            if told.under_way not in self.cut_short:
                self.fallen.setdefault(told.under_way, f"the process ended with status {status}: {words}")
            return False
        if status == LOST:
            return False
        if status != 1 or not any(record["failure"] for record in told.records):
            # Status 1 is that of failed checks, and of an exception outside of them.
            self.fallen[f"{self.name}, after {told.last}"] = f"the process ended with status {status}: {words}"
        return True

    def told(self) -> Told:
        """From the log: a library may print between the lines of JSON, and the last may be half written."""
        told = Told()
        try:
            lines = self._log.read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError:
            return told
        for line in lines:
            if not line.startswith(('{"planned"', '{"begun"', '{"compiling"', '{"check"')):
                continue
            try:
                value = json.loads(line)
            except ValueError:
                continue
            told.signs += 1
            if "compiling" in value:
                told.compiling = value["compiling"]
                continue
            told.compiling = None
            if "planned" in value:
                told.planned += [name for name in value["planned"] if name not in told.planned]
            elif "begun" in value:
                told.under_way = value["begun"]
            else:
                told.records.append(value)
                told.under_way = None
        return told
