"""Results as tables, for a terminal and for Markdown."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from alibi_attention.bench.case import short
from alibi_attention.bench.compare import comparisons, means
from alibi_attention.bench.limits import judgements, per_tile
from alibi_attention.bench.results import Entry, TrialResult
from alibi_attention.bench.summary import median, spread, times
from alibi_attention.bench.timing import Samples

if TYPE_CHECKING:
    from rich.table import Table as RichTable

NONE = "–"


@dataclass(frozen=True)
class Table:
    """Cells as text; the first ``labels`` columns are aligned to the left."""

    title: str
    header: list[str]
    rows: list[list[str]]
    labels: int = 1

    def markdown(self) -> str:
        rule = ["---"] * self.labels + ["---:"] * (len(self.header) - self.labels)
        return "".join(f"| {' | '.join(cells)} |\n" for cells in [self.header, rule, *self.rows])

    def rich(self) -> RichTable:
        from rich.table import Table as RichTable

        table = RichTable(box=None, pad_edge=False, title=self.title, title_justify="left", title_style="bold")
        for index, name in enumerate(self.header):
            label = index < self.labels
            # Where the terminal is narrow, numbers go on in a second line: a number cut short would be another one.
            table.add_column(name, justify="left" if label else "right", no_wrap=label, overflow="fold")
        for row in self.rows:
            table.add_row(*row)
        return table


def milliseconds(seconds: float) -> str:
    """Three significant digits, without an exponent."""
    value = seconds * 1e3
    digits = next((digits for limit, digits in ((100, 0), (10, 1), (1, 2), (0.1, 3)) if value >= limit), 4)
    return f"{value:,.{digits}f}"


def ratio_table(trials: Sequence[TrialResult], *, every_peer: bool) -> Table:
    """Ours against the peers of the target, or against every peer: times, ratio and its range, target, verdict."""
    found = [
        (trial, each)
        for trial in trials
        for each in comparisons(trial)
        if every_peer or each.peer.name in trial.target_peers
    ]
    peers = {each.peer.name for _, each in found}
    named = every_peer or len(peers) > 1
    rows = []
    for trial, each in found:
        span = f"{times(each.ratio.low)}–{times(each.ratio.high)}" if each.ratio.rounds > 1 else "one round"
        rows.append([
            str(trial.head_dim), short(trial.keys), each.ours.name + " *" * each.ours.default,
            *([each.peer.name] if named else []),
            milliseconds(each.ours.seconds or 0.0), milliseconds(each.peer.seconds or 0.0),
            times(each.ratio.median), span, NONE if each.target is None else f"{each.target:g}x", each.verdict,
        ])  # fmt: skip
    header = ["D", "length", "ours", *(["peer"] if named else [])]
    header += ["ours ms", "peer ms", "ratio", "range", "target", "verdict"]
    peer = "peer" if named or not peers else peers.pop()
    return Table(f"Ratio: time of {peer} / our time, above 1 we are faster", header, rows, labels=3 + named)


def time_table(trials: Sequence[TrialResult]) -> Table:
    """Median milliseconds and interquartile range of everyone; the faster of flushed and plain."""

    def cell(entry: Entry) -> str:
        if entry.counted is None:
            return NONE
        return f"{milliseconds(median(entry.counted.seconds))} ±{spread(entry.counted.seconds):.0%}"

    return _by_contestant("Milliseconds a call: median ± interquartile range", trials, cell)


def denormal_table(trials: Sequence[TrialResult]) -> Table:
    """Both measurements of every peer."""

    def both(entry: Entry) -> str:
        return f"{_median(entry.plain)} / {_median(entry.flushed)}" if entry.flushed is not None else NONE

    return _by_contestant("Milliseconds, denormals as they come / flushed to zero", trials, both, ours=False)


def error_table(trials: Sequence[TrialResult]) -> Table:
    """Largest absolute difference to float64, on eight rows of the output."""
    return _by_contestant(
        "Largest error against float64 (8 rows)", trials, lambda entry: _or_none(entry.error, "{:.1e}")
    )


def grad_error_table(trials: Sequence[TrialResult]) -> Table:
    """The most that gradients of eight queries and eight keys are off, to float32, as a part of their length."""
    return _by_contestant(
        "Largest error of gradients against float32 (8 queries, 8 keys of every head), as a part of their length",
        [trial for trial in trials if any(entry.grad_error is not None for entry in trial.entries)],
        lambda entry: _or_none(entry.grad_error, "{:.1e}"),
    )


def memory_table(trials: Sequence[TrialResult]) -> Table:
    """Peak memory beyond the inputs, with what of it is left when the outputs are taken off, MiB."""

    def cell(entry: Entry) -> str:
        if entry.memory is None:
            return NONE
        beyond = "" if entry.outputs is None else f" ({max(0, entry.memory - entry.outputs) / 2**20:,.0f})"
        return f"{entry.memory / 2**20:,.0f}{beyond}"

    return _by_contestant("Peak memory beyond the inputs, MiB (and beyond the outputs)", trials, cell)


def mean_table(trials: Sequence[TrialResult]) -> Table:
    """Geometric means over lengths, where a target is one."""
    rows = [
        [
            each.case, str(each.head_dim), each.peer, ", ".join(map(short, each.lengths)), times(each.ratio.median),
            f"{times(each.ratio.low)}–{times(each.ratio.high)}", f"{each.target:g}x", each.verdict,
        ]
        for each in means(trials)
    ]  # fmt: skip
    header = ["case", "D", "peer", "lengths", "geometric mean", "range", "target", "verdict"]
    return Table("Geometric mean of the ratio over lengths", header, rows, labels=4)


def limit_table(trials: Sequence[TrialResult]) -> Table:
    """What is asked of us by ourselves."""
    rows = [[each.where, each.found, each.asked, each.verdict] for each in judgements(trials)]
    return Table("Asked of the default backend by itself", ["what", "found", "asked", "verdict"], rows, labels=4)


def horizon_table(trials: Sequence[TrialResult]) -> Table:
    """What skipping leaves of the work, and time per token and per tile, microseconds."""
    rows = []
    for trial in trials:
        for entry in trial.entries:
            # The tiles are the default's own; another backend may keep others.
            if entry.default and entry.seconds is not None and trial.tiles and trial.kept_share is not None:
                micro = entry.seconds * 1e6
                rows.append([
                    str(trial.head_dim), short(trial.keys), entry.name + " *", f"{trial.tile_rows} x 64",
                    f"{trial.kept_share:.1%}", f"{trial.tiles_scored or trial.tiles:,}", milliseconds(entry.seconds),
                    f"{micro / trial.queries:.3g}", f"{(per_tile(trial) or 0.0) * 1e6:.3g}",
                ])  # fmt: skip
    header = ["D", "length", "ours", "tile", "kept", "tiles computed", "ms", "µs a token", "µs a tile"]
    return Table("Tiles kept of those visible, and time for each computed", header, rows, labels=4)


def _by_contestant(
    title: str, trials: Sequence[TrialResult], cell: Callable[[Entry], str], *, ours: bool = True
) -> Table:
    """A row for each size, a column for each contestant that has a cell anywhere."""
    cells = {
        (index, entry.name): cell(entry)
        for index, trial in enumerate(trials)
        for entry in trial.entries
        if ours or not entry.ours
    }
    names = [
        name
        for name in _in_order(trials)
        if any(cells.get((index, name), NONE) != NONE for index in range(len(trials)))
    ]
    if not names:
        return Table(title, [], [])
    rows = [
        [str(trial.head_dim), short(trial.keys), *(cells.get((index, name), NONE) for name in names)]
        for index, trial in enumerate(trials)
    ]
    rows = [row for row in rows if any(text != NONE for text in row[2:])]
    return Table(title, ["D", "length", *names], rows, labels=2)


def _in_order(trials: Sequence[TrialResult]) -> Iterator[str]:
    yield from dict.fromkeys(entry.name for trial in trials for entry in trial.entries)


def _median(samples: Samples | None) -> str:
    return NONE if samples is None or not any(samples.seconds) else milliseconds(median(samples.seconds))


def _or_none(value: float | None, form: str) -> str:
    return NONE if value is None else form.format(value)
