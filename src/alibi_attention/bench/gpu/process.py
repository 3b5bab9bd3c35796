"""Python processes of ours, each in a group of its own: their words are kept, and none outlives who started it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import alibi_attention

LOST = 75
"""Exit status of a process whose device answers no more: what it would do next has to be done by another."""

_PATIENCE = 5.0
_BOUND = Path(__file__).with_name("bound.py")
# By faulthandler, and followed by a list of frames and modules that no one reads first.
_FATAL = "Fatal Python error"


class Process:
    """A Python process of ours, in a group of its own, so that what it started ends with it.

    It is killed when its parent dies in whatever way (on Linux): left behind, it would hold the device against whoever
    is measured there next. Where native code fells it, the stack is in its log.
    """

    def __init__(self, arguments: Sequence[str], log: Path, environment: Mapping[str, str] | None = None) -> None:
        source = str(Path(alibi_attention.__file__).parents[1])
        path = os.pathsep.join([source, *filter(None, [os.environ.get("PYTHONPATH")])])
        self.log = log
        with log.open("ab") as output:
            if output.tell():
                # Its predecessor may have fallen in the middle of a line.
                output.write(b"\n")
                output.flush()
            self._begin = output.tell()
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", str(_BOUND), str(os.getpid()), sys.executable, *arguments],
                stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, start_new_session=True,
                env={**os.environ, "PYTHONFAULTHANDLER": "1", **(environment or {}), "PYTHONPATH": path},
            )  # fmt: skip

    @property
    def status(self) -> int | None:
        return self._process.poll()

    def end(self) -> None:
        """End it and everything it started; nothing where it has ended by itself."""
        end_all([self])

    def send(self, number: int) -> None:
        """A signal to its whole group; nothing where it has ended."""
        if self.status is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, number)

    def last_words(self) -> str:
        """The last line it wrote, or the line in which Python named a fault and what was written before that."""
        try:
            written = self.log.read_bytes()[self._begin :]
        except OSError:
            return ""
        text = written.decode("utf-8", errors="replace")
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        fatal = next((at for at in reversed(range(len(lines))) if _FATAL in lines[at]), None)
        words = lines[-1:] if fatal is None else lines[max(0, fatal - 1) : fatal + 1]
        return "; ".join(words)[:600]


def end_all(processes: Sequence[Process]) -> None:
    """End all of them at once: asked first, killed where they do not listen."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        for process in processes:
            process.send(number)
        until = time.monotonic() + _PATIENCE
        while any(process.status is None for process in processes):
            if time.monotonic() > until:
                break
            time.sleep(0.02)
