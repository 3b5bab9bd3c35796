"""What the laboratory tells people while it works."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as RichProgress
from rich.text import Text

Item = TypeVar("Item")

# A bar over many items is moved this often, or moving it would take longer than what it tells of.
_MOVES = 1000


class _Rate(ProgressColumn):
    """Tokens a second, or what else is counted."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else _rate(task, speed))


def _rate(task: Task, speed: float) -> str:
    unit = task.fields["unit"]
    return f"{speed * task.fields['tokens']:,.0f} {unit}/s" if unit else ""


class Progress:
    """One bar at a time, with speed and time left, and lines above it that stay.

    Where nothing can be redrawn, in a file or a pipe, a line now and then says what a bar would. A copy in another
    process writes to that one's standard output.

    Args:
        console: where to draw; nothing is drawn without one.
        every: seconds between such lines.

    Attributes:
        label: of a bar that another process is to draw.
        every: seconds between such lines.
    """

    def __init__(self, console: Console | None = None, *, every: float = 60.0) -> None:
        self._console = console or Console(quiet=True)
        self.every = every
        self._told = time.monotonic()
        self._began = self._told, 0
        self._bars = RichProgress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            _Rate(),
            TimeRemainingColumn(elapsed_when_finished=True),
            TextColumn("left"),
            console=self._console,
            transient=True,
            disable=not self._console.is_terminal,
        )
        self._task: TaskID | None = None
        self.label = ""

    @property
    def quiet(self) -> bool:
        return self._console.quiet

    def __getstate__(self) -> dict[str, Any]:
        return {"quiet": self.quiet, "every": self.every, "label": self.label}

    def __setstate__(self, state: dict[str, Any]) -> None:
        Progress.__init__(self, None if state["quiet"] else Console(), every=state["every"])
        self.label = state["label"]

    def __enter__(self) -> Progress:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def start(
        self, description: str, *, total: int, done: int = 0, tokens: int = 1, unit: str = "tokens"
    ) -> None:  # fmt: skip
        """Replace the bar by a new one of ``total`` units of ``tokens`` tokens each, ``done`` of them behind us.

        ``unit`` names what is counted where it is no tokens; without a name there is no rate.
        """
        self._clear()
        self._task = self._bars.add_task(description, total=total, completed=done, tokens=tokens, unit=unit, note="")
        self._began = time.monotonic(), done

    def through(
        self, items: Iterable[Item], description: str, *, total: int, unit: str,
        size: Callable[[Item], int] | None = None,
    ) -> Iterator[Item]:  # fmt: skip
        """The items one by one, under a bar of their own that each moves by its ``size``, one by default; it stays
        until another takes its place."""
        self.start(description, total=total, unit=unit)
        behind, least = 0, max(1, total // _MOVES)
        for item in items:
            yield item
            behind += 1 if size is None else size(item)
            if behind >= least:
                self.advance(behind)
                behind = 0

    def advance(self, units: int = 1, *, note: str | None = None) -> None:
        if self._task is not None:
            fields = {} if note is None else {"note": note}
            self._bars.update(self._task, advance=units, **fields)  # type: ignore[arg-type]
            if self._bars.disable and time.monotonic() - self._told >= self.every:
                self._tell(next(task for task in self._bars.tasks if task.id == self._task))

    def _tell(self, task: Task) -> None:
        self._told = now = time.monotonic()
        parts = [f"{task.description}: {task.completed:,.0f} of {task.total:,.0f}", task.fields["note"]]
        begin, done = self._began
        if task.total is not None and task.completed > done and now > begin:
            # Since the bar began: its own speed is of half a minute, in which a large model makes no step.
            speed = (task.completed - done) / (now - begin)
            left = math.ceil((task.total - task.completed) / speed / 60)
            parts += [_rate(task, speed), f"{left} min left"]
        self._console.print(", ".join(part for part in parts if part), highlight=False, soft_wrap=True)

    def say(self, text: str) -> None:
        """A line that stays; the bar is done."""
        self._clear()
        self.remark(text)

    def remark(self, text: str) -> None:
        """A line that stays above the bar, which goes on."""
        self._console.print(text, highlight=False, soft_wrap=True)

    def _clear(self) -> None:
        if self._task is not None:
            self._bars.remove_task(self._task)
            self._task = None
