"""What the samples say: ratios to peers, and where they are against us."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from alibi_attention.bench.case import short
from alibi_attention.bench.limits import judgements
from alibi_attention.bench.results import Entry, Results, TrialResult
from alibi_attention.bench.summary import Ratio, ratio, times


@dataclass(frozen=True)
class Comparison:
    """One of our contestants and one peer at one size, measured in the same rounds.

    Attributes:
        target: the ratio asked for, where this is the peer it is asked against.
    """

    trial: TrialResult
    ours: Entry
    peer: Entry
    ratio: Ratio
    target: float | None

    @property
    def slower(self) -> bool:
        return self.ratio.median < 1.0

    @property
    def missed(self) -> bool:
        return self.target is not None and self.ratio.median < self.target

    @property
    def verdict(self) -> str:
        """Met or missed; unsettled where not every round says so, and a single round is named."""
        return "" if self.target is None else verdict(self.ratio, self.target)


@dataclass(frozen=True)
class Mean:
    """The geometric mean of a ratio over the lengths of a case, asked for as one number.

    Attributes:
        ratio: of the medians over the lengths, and of their lows and highs; its rounds are the fewest of any length.
        lengths: those there are.
        missing: those the mean wants besides.
    """

    case: str
    head_dim: int
    peer: str
    ratio: Ratio
    target: float
    lengths: tuple[int, ...]
    missing: tuple[int, ...]

    @property
    def verdict(self) -> str:
        return "untested" if self.missing else verdict(self.ratio, self.target)


def verdict(found: Ratio, target: float) -> str:
    """Met or missed, and how far that can be relied on: rounds may disagree, and one round has nobody to agree with."""
    if found.rounds == 1:
        return ("missed" if found.median < target else "met") + ", one round"
    agreed = (found.low < target) == (found.high < target)
    return ("missed" if found.median < target else "met") + ("" if agreed else ", unsettled")


def geometric_mean(values: Sequence[float]) -> float:
    return math.exp(sum(map(math.log, values)) / len(values))


def means(trials: Sequence[TrialResult]) -> list[Mean]:
    """Every geometric mean that is asked for, for each head dimension and peer; of lengths measured twice the last."""
    found: dict[tuple[str, int, str], dict[int, Comparison]] = {}
    for trial in trials:
        for each in comparisons(trial) if trial.target_mean else ():
            if each.ours.default and each.peer.name in trial.target_peers and trial.keys in trial.target_mean:
                found.setdefault((trial.case, trial.head_dim, each.peer.name), {})[trial.keys] = each
    told = []
    for (case, head_dim, peer), by_length in found.items():
        trial = next(iter(by_length.values())).trial
        ratios = [each.ratio for each in by_length.values()]
        mean = Ratio(
            geometric_mean([each.median for each in ratios]),
            geometric_mean([each.low for each in ratios]),
            geometric_mean([each.high for each in ratios]),
            min(each.rounds for each in ratios),
        )
        missing = tuple(length for length in trial.target_mean if length not in by_length)
        if trial.target_ratio is not None:
            told.append(Mean(case, head_dim, peer, mean, trial.target_ratio, tuple(sorted(by_length)), missing))
    return told


def size_of(trial: TrialResult) -> str:
    """Case and size in one line."""
    return f"{trial.case}, D={trial.head_dim}, {short(trial.keys)}"


def comparisons(trial: TrialResult) -> Iterator[Comparison]:
    """Our default against every peer, and our other backends against those of the target."""
    for ours in trial.entries:
        for peer in trial.entries:
            # A backend that nobody gets unasked is compared with the strongest peer alone.
            if not ours.ours or peer.ours or not (ours.default or peer.name in trial.target_peers):
                continue
            if ours.counted is None or peer.counted is None:
                continue
            found = ratio(ours.counted.seconds, peer.counted.seconds)
            if found is not None:
                yield Comparison(trial, ours, peer, found, trial.asked(peer.name) if ours.default else None)


def against_us(results: Results) -> list[tuple[str, list[str]]]:
    """Everything that went against us, as (heading, lines); a heading without lines is good news."""
    found = [each for trial in results.trials for each in comparisons(trial)]
    unasked = [each for each in found if each.ours.default]
    asked = [each for each in unasked if each.target is not None]
    named = [each for each in found if not each.ours.default]
    failed = [
        f"{size_of(trial)}: {entry.name} {entry.refused}"
        for trial in results.trials
        for entry in trial.entries
        if entry.ours and entry.refused is not None
    ]
    targetless = [
        f"{size_of(trial)}: no ratio against {trial.target_peer}, asked {trial.target_ratio:g}x"
        for trial in results.trials
        if trial.target_ratio is not None
        and not trial.target_mean
        and trial.target_peer in results.settings.get("peers", [])
        and not any(each.trial is trial for each in asked)
    ]
    averages = means(results.trials)
    targetless += [
        f"{mean_line(each)}, target {each.target:g}x; {', '.join(map(short, each.missing))} not measured"
        for each in averages
        if each.missing
    ]
    missed = [f"{_line(each)}, target {each.target:g}x" for each in asked if each.missed]
    missed += [f"{mean_line(each)}, target {each.target:g}x" for each in averages if each.verdict.startswith("missed")]
    found_limits = judgements(results.trials)
    missed += [each.line for each in found_limits if each.verdict.startswith("missed")]
    targetless += [each.line for each in found_limits if each.verdict == "untested"]
    count = len(asked) + sum(not each.missing for each in averages)
    count += sum(each.verdict != "untested" for each in found_limits)
    return [
        (f"Slower than a peer (of {len(unasked)} comparisons)", [_line(each) for each in unasked if each.slower]),
        (f"Targets missed (of {count})", missed),
        ("Targets that could not be tested", targetless),
        (f"Backends on request, slower than the target's peer (of {len(named)})",
         [_line(each) for each in named if each.slower]),
        ("Our own contestants that did not run", failed),
    ]  # fmt: skip


def refusals(results: Results) -> list[str]:
    """Peers that were not measured, with the reason, sizes of the same reason together."""
    reasons: dict[tuple[str, str], list[str]] = {}
    for trial in results.trials:
        for entry in trial.entries:
            if not entry.ours and entry.refused is not None:
                reasons.setdefault((entry.name, entry.refused), []).append(size_of(trial))
    return [f"{name}: {reason} ({'; '.join(sizes)})" for (name, reason), sizes in reasons.items()]


def mean_line(each: Mean) -> str:
    lengths = ", ".join(map(short, each.lengths))
    return (
        f"{each.case}, D={each.head_dim}, geometric mean over {lengths}: {times(each.ratio.median)} as fast as "
        f"{each.peer} ({_range(each.ratio)})"
    )


def _line(each: Comparison) -> str:
    return (
        f"{size_of(each.trial)}: {each.ours.name} is {times(each.ratio.median)} as fast as {each.peer.name} "
        f"({_range(each.ratio)})"
    )


def _range(found: Ratio) -> str:
    if found.rounds == 1:
        return "one round"
    return f"{times(found.low)} to {times(found.high)} in {found.rounds} rounds"
