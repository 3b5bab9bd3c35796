"""Ctrl-C and SIGTERM as requests that are met between two steps, when the state is consistent."""

from __future__ import annotations

import multiprocessing
import signal
import threading
import time
from types import FrameType, TracebackType
from typing import Any

from alibi_attention.lab.errors import RunInterrupted

_SIGNALS = (signal.SIGINT, signal.SIGTERM)

OUT_OF_TIME = 14
"""SIGALRM, by its number, because not every system names it."""


class Interruption:
    """While entered, the first SIGINT or SIGTERM is noted; a second SIGINT interrupts at once.

    An exception in the middle of an optimiser step would leave some parameters updated and others not, so the loops
    look at `requested` between steps instead.

    Args:
        minutes: after which a stop is requested as if by SIGALRM; never by default.
    """

    def __init__(self, *, minutes: float | None = None) -> None:
        self._signal: int | None = None
        self._deadline = None if minutes is None else time.monotonic() + 60.0 * minutes
        self._previous: dict[int, Any] = {}

    def __getstate__(self) -> dict[str, Any]:
        # Handlers belong to the process that set them.
        return {"_signal": None, "_deadline": self._deadline, "_previous": {}}

    @property
    def requested(self) -> int | None:
        """The signal that asked to stop, if any has."""
        if self._signal is None and self._deadline is not None and time.monotonic() > self._deadline:
            self._signal = OUT_OF_TIME
        return self._signal

    def __enter__(self) -> Interruption:
        # Python delivers signals to the main thread only, and refuses handlers set from any other.
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._note) for number in _SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def check(self) -> None:
        """Raise `RunInterrupted` if a signal has asked for it."""
        requested = self.requested
        if requested is not None:
            raise RunInterrupted(requested)

    def _note(self, number: int, frame: FrameType | None) -> None:
        del frame
        if self._signal is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._signal = self._signal or number
        if number == signal.SIGTERM:
            # A terminal sends Ctrl-C to every process of the run by itself.
            for child in multiprocessing.active_children():
                child.terminate()
