"""What a run tells people while it works."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    SpinnerColumn,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)

from alibi_attention.bench.case import Trial
from alibi_attention.bench.report import case_tables
from alibi_attention.bench.results import TrialResult
from alibi_attention.bench.run import Bench, Watch, expected_seconds
from alibi_attention.bench.tables import ratio_table


class Display:
    """A bar with the time left, and a table for every case once it is done."""

    def __init__(self, console: Console, bench: Bench, goes_on: Callable[[], None]) -> None:
        self._console = console
        self._weights = {
            trial.name: expected_seconds(trial, bench.peers, bench.settings, bench.threads) for trial in bench.trials
        }
        self._bar = Progress(
            SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(),
            TimeRemainingColumn(), TextColumn("left"),
            console=console, transient=True,
            # A drawn bar takes a core every tenth of a second; a file or a pipe gets no trace of it.
            auto_refresh=False, disable=not console.is_terminal,
        )  # fmt: skip
        self._task = self._bar.add_task("", total=sum(self._weights.values()))
        self._trials: list[TrialResult] = []
        self._behind = 0.0
        self._current: Trial | None = None
        self.watch = Watch(self._started, self._sampled, self._finished, goes_on)

    def __enter__(self) -> Display:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def tell(self) -> None:
        """Print the case at hand."""
        if self._trials:
            print_case(self._console, self._trials)
            self._trials = []

    def _started(self, trial: Trial) -> None:
        self._current = trial
        if self._trials and self._trials[0].case != trial.case.name:
            self.tell()
        self._bar.update(self._task, description=trial.name, refresh=True)

    def _sampled(self, name: str) -> None:
        description = f"{self._current.name if self._current else ''}  {name}"
        self._bar.update(self._task, description=description, refresh=True)

    def _finished(self, result: TrialResult) -> None:
        self._trials.append(result)
        if self._current is not None:
            self._behind += self._weights[self._current.name]
        self._bar.update(self._task, completed=self._behind, refresh=True)


def print_case(console: Console, trials: Sequence[TrialResult]) -> None:
    """The tables of a case that matter most: against the target's peer if there is one, everything otherwise."""
    console.print(f"\n[bold]{trials[0].case}[/bold]: {trials[0].title}", highlight=False)
    against = ratio_table(trials, every_peer=False)
    tables = [table for table in case_tables(trials) if "float64" not in table.title and "denormals" not in table.title]
    for table in [against, *tables[1:]] if against.rows else tables:
        console.print(table.rich())
