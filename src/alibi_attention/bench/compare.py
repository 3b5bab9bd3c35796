"""What the samples say: ratios to peers, and where they are against us."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from alibi_attention.bench.case import short
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
        """Met or missed; unsettled where not every round says so."""
        if self.target is None:
            return ""
        agreed = (self.ratio.low < self.target) == (self.ratio.high < self.target)
        return ("missed" if self.missed else "met") + ("" if agreed else ", unsettled")


def size_of(trial: TrialResult) -> str:
    """Case and size in one line."""
    return f"{trial.case}, D={trial.head_dim}, {short(trial.keys)}"


def comparisons(trial: TrialResult) -> Iterator[Comparison]:
    """Our default against every peer, and our other backends against the peer of the target."""
    for ours in trial.entries:
        for peer in trial.entries:
            # A backend that nobody gets unasked is compared with the strongest peer alone.
            if not ours.ours or peer.ours or not (ours.default or peer.name == trial.target_peer):
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
        and trial.target_peer in results.settings.get("peers", [])
        and not any(each.trial is trial for each in asked)
    ]
    missed = [f"{_line(each)}, target {each.target:g}x" for each in asked if each.missed]
    return [
        (f"Slower than a peer (of {len(unasked)} comparisons)", [_line(each) for each in unasked if each.slower]),
        (f"Targets missed (of {len(asked)})", missed),
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


def _line(each: Comparison) -> str:
    return (
        f"{size_of(each.trial)}: {each.ours.name} is {times(each.ratio.median)} as fast as {each.peer.name} "
        f"({_range(each.ratio)})"
    )


def _range(found: Ratio) -> str:
    if found.rounds == 1:
        return "one round"
    return f"{times(found.low)} to {times(found.high)} in {found.rounds} rounds"
