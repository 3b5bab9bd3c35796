"""What was asked and what came of it, as text."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from alibi_attention.bench.case import short
from alibi_attention.bench.compare import comparisons, refusals, verdict
from alibi_attention.bench.gpu.cases import AS_GRAPHS, FASTEST
from alibi_attention.bench.gpu.further import commands, has_failed, left_out, not_reached_lines
from alibi_attention.bench.results import Results, TrialResult
from alibi_attention.bench.summary import Ratio, times
from alibi_attention.bench.tables import NONE, Table, milliseconds


@dataclass(frozen=True)
class Verdict:
    """One target: the ratio found, with its range in ``why``, or None with the reason there."""

    trial: TrialResult
    peer: str
    target: float
    ratio: Ratio | None
    why: str

    @property
    def word(self) -> str:
        return "untested" if self.ratio is None else verdict(self.ratio, self.target)


def verdicts(results: Results) -> list[Verdict]:
    """Every target of the run, those that could not be tested among them."""
    return [verdict for trial in results.trials for verdict in _of_trial(trial)]


def _of_trial(trial: TrialResult) -> Iterator[Verdict]:
    found = {each.peer.name: each for each in comparisons(trial) if each.ours.default}
    for peer, target in trial.targets.items():
        if peer in found:
            ratio = found[peer].ratio
            spread = f"{times(ratio.low)}–{times(ratio.high)} over {ratio.rounds} rounds" if ratio.rounds > 1 else NONE
            yield Verdict(trial, peer, target, ratio, spread)
        else:
            yield Verdict(trial, peer, target, None, _why_not(trial, peer))


def _why_not(trial: TrialResult, peer: str) -> str:
    ours, theirs = trial.default, trial.entry(peer)
    if ours is not None and ours.refused:
        return f"{ours.name}: {ours.refused}"
    if theirs is not None and theirs.refused:
        return f"{peer}: {theirs.refused}"
    if peer == FASTEST and trial.complete:
        return "no dense peer was measured"
    # That calls are replayed is no reason.
    return trial.note.removeprefix(AS_GRAPHS) or "not reached in time"


def verdict_table(results: Results) -> Table:
    """Targets, with the ratio found and its range, case by case."""
    rows = []
    cases = list(dict.fromkeys(trial.case for trial in results.trials))
    ordered = sorted(
        verdicts(results), key=lambda each: (cases.index(each.trial.case), each.trial.head_dim, each.trial.keys)
    )
    for each in ordered:
        found = NONE if each.ratio is None else times(each.ratio.median)
        size = [each.trial.case, str(each.trial.head_dim), short(each.trial.keys), each.peer]
        rows.append([*size, f"{each.target:g}x", found, each.word, each.why])
    header = ["case", "D", "length", "against", "target", "found", "verdict", "range, or why not"]
    return Table("Targets", header, rows, labels=len(header))


def has_times(trial: TrialResult) -> bool:
    return any(entry.seconds is not None for entry in trial.entries)


def time_lines(results: Results) -> list[str]:
    """Milliseconds of everyone at every size, with error and speed where they are known."""
    lines = []
    for trial in results.trials:
        if not has_times(trial) and not has_failed(trial):
            continue
        kept = f", certify keeps {trial.kept_share:.1%} of the tiles" if trial.kept_share is not None else ""
        lines.append(f"{trial.case}, D={trial.head_dim}, {short(trial.keys)}, {trial.heads} heads{kept}")
        if has_failed(trial):
            lines.append(f"    {trial.note}")
        for entry in trial.entries:
            if entry.seconds is None:
                continue
            error = "" if entry.error is None else f", error {entry.error:.1e}"
            error += "" if entry.grad_error is None else f", of gradients {entry.grad_error:.1e} of their length"
            lines.append(f"    {entry.name:<14} {milliseconds(entry.seconds):>10} ms{error}")
    return lines


def report(results: Results) -> str:
    """Everything worth reading at the end of a run."""
    parts = []
    if results.trials:
        table = verdict_table(results)
        if table.rows:
            parts += ["Targets: time of the peer over ours, in the same rounds", _aligned([table.header, *table.rows])]
        taken = time_lines(results)
        parts += ["", "Times", *taken] if taken else []
    left = refusals(results)
    if left:
        parts += ["", "Peers not measured", *left]
    sizes = not_reached_lines(results)
    if sizes:
        parts += ["", "Sizes not reached", *sizes]
    suite = results.suite
    if suite.get("fault"):
        parts += ["", f"Checks broken off: {suite['fault']}"]
    if suite.get("reason"):
        parts += ["", f"Checks not run: {suite['reason']}"]
    elif "passed" in suite:
        others = len(suite["left_out"])
        parts += ["", f"Checks: {suite['passed']} passed, {len(suite['failed'])} failed, {others} left out"]
        parts += [f"    FAILED {name}: {reason}" for name, reason in suite["failed"].items()]
        parts += [f"    left out: {name}" for name in left_out(suite)]
    further = list(commands(results))
    if further:
        parts += ["", "To go on, from the top of the checkout", *(f"    {command}" for command in further)]
    return "\n".join(parts)


def _aligned(rows: list[list[str]]) -> str:
    """Columns of one width each; the last runs free."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]) - 1)]
    lines = []
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=False)]
        lines.append("  ".join([*cells, row[-1]]).rstrip())
    return "\n".join(lines)
