"""What is asked of the default backend by itself: time of a call, memory, and how both grow."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from alibi_attention.bench.case import short
from alibi_attention.bench.results import TrialResult
from alibi_attention.bench.summary import measured, median


@dataclass(frozen=True)
class Judgement:
    """One limit: where, what was found, what is asked, and "met", "missed" or "untested".

    What is met or missed by medians is "unsettled" besides where rounds say otherwise: some round of a call's time, or
    the fastest rounds where times of several lengths are compared.
    """

    where: str
    found: str
    asked: str
    verdict: str

    @property
    def line(self) -> str:
        return f"{self.where}: {self.found}, asked {self.asked}"


def judgements(trials: Sequence[TrialResult]) -> list[Judgement]:
    """Every limit of the trials, judged; those of growth over all lengths of a case and head dimension."""
    told = [judged for trial in trials for judged in (*_seconds(trial), *_memory(trial))]
    ordered = sorted((trial for trial in trials if trial.limits), key=_size)
    for _, same in groupby(ordered, key=lambda trial: (trial.case, trial.head_dim, trial.dtype)):
        # Of lengths measured twice the last.
        by_length = {trial.keys: trial for trial in same}
        told += [*_token_growth(by_length), *_tile_spread(by_length)]
    return told


def has_what_is_asked(trial: TrialResult) -> bool:
    """Whether a trial has measured what its limits are about."""
    timed = trial.default is not None and trial.default.seconds is not None
    needs_time = trial.limits.keys() - {"memory"}
    return (timed or not needs_time) and ("memory" not in trial.limits or beyond(trial) is not None)


def _size(trial: TrialResult) -> tuple[str, int, str]:
    return trial.case, trial.head_dim, trial.dtype


def _where(trial: TrialResult, length: bool = True) -> str:
    return f"{trial.case}, D={trial.head_dim}" + (f", {short(trial.keys)}" if length else "")


def _seconds(trial: TrialResult) -> Iterator[Judgement]:
    limit = trial.limits.get("seconds")
    if limit is None or trial.default is None:
        return
    found = trial.default.seconds
    if found is None:
        yield Judgement(_where(trial), "not measured", f"below {limit * 1e6:g} µs a call", "untested")
        return
    assert trial.default.counted is not None
    rounds = measured(trial.default.counted.seconds)
    times = f"{found * 1e6:.1f} µs a call"
    if len(rounds) > 1:
        times += f" ({min(rounds) * 1e6:.1f}–{max(rounds) * 1e6:.1f})"
    verdict = _verdict(found < limit, (min(rounds) < limit) == (max(rounds) < limit))
    yield Judgement(_where(trial), times, f"below {limit * 1e6:g} µs", verdict)


def _verdict(is_met: bool, agreed: bool) -> str:
    return ("met" if is_met else "missed") + ("" if agreed else ", unsettled")


def _fastest(trial: TrialResult) -> float:
    """The fastest round of our default over its median."""
    entry = trial.default
    assert entry is not None
    assert entry.counted is not None
    rounds = measured(entry.counted.seconds)
    return min(rounds) / median(entry.counted.seconds)


def _memory(trial: TrialResult) -> Iterator[Judgement]:
    limit = trial.limits.get("memory")
    if limit is None or trial.default is None:
        return
    asked = f"at most {limit / 1e6:g} MB"
    found = beyond(trial)
    if found is None:
        yield Judgement(_where(trial), trial.default.memory_note or "memory not measured", asked, "untested")
        return
    verdict = "met" if found <= limit else "missed"
    yield Judgement(_where(trial), f"{found / 1e6:.1f} MB at the peak beyond inputs and outputs", asked, verdict)


def beyond(trial: TrialResult) -> int | None:
    """Bytes of our default at the peak beyond inputs and outputs."""
    entry = trial.default
    if entry is None or entry.memory is None or entry.outputs is None:
        return None
    return max(0, entry.memory - entry.outputs)


def per_token(trial: TrialResult) -> float | None:
    """Seconds of our default for each query."""
    entry = trial.default
    return None if entry is None or entry.seconds is None else entry.seconds / trial.queries


def per_tile(trial: TrialResult) -> float | None:
    """Seconds of our default for each computed tile: each whose scores were taken, though its weights may not be."""
    entry, tiles = trial.default, trial.tiles_scored or trial.tiles
    return None if entry is None or entry.seconds is None or not tiles else entry.seconds / tiles


def per_product(trial: TrialResult) -> float | None:
    """Seconds of our default for each product of matrices: a tile kept has two, one passed over has that of scores."""
    entry = trial.default
    if entry is None or entry.seconds is None or not trial.tiles or not trial.tiles_scored:
        return None
    return entry.seconds / (trial.tiles + trial.tiles_scored)


def _token_growth(by_length: dict[int, TrialResult]) -> Iterator[Judgement]:
    trial = next(iter(by_length.values()))
    if "token_growth" not in trial.limits:
        return
    shorter, longer, limit = trial.limits["token_growth"]
    asked = f"at most {limit:g}"
    where = f"{_where(trial, length=False)}, time per token at {short(longer)} over that at {short(shorter)}"
    found = [per_token(by_length[length]) for length in (shorter, longer) if length in by_length]
    if len(found) != 2 or found[0] is None or found[1] is None:
        yield Judgement(where, "not both measured", asked, "untested")
        return
    growth = found[1] / found[0]
    fastest = growth * _fastest(by_length[longer]) / _fastest(by_length[shorter])
    verdict = _verdict(growth <= limit, (growth <= limit) == (fastest <= limit))
    yield Judgement(where, f"{growth:.2f} (fastest rounds {fastest:.2f})", asked, verdict)


def _tile_spread(by_length: dict[int, TrialResult]) -> Iterator[Judgement]:
    trial = next(iter(by_length.values()))
    if "tile_spread" not in trial.limits:
        return
    least, limit = trial.limits["tile_spread"]
    longest = trial.limits.get("token_growth", (least, least))[1]
    found = {length: per_tile(each) for length, each in by_length.items() if length >= least}
    times = [seconds for seconds in found.values() if seconds is not None]
    asked = f"at most {limit:.0%}"
    where = (
        f"{_where(trial, length=False)}, spread of the time per computed tile from {short(least)} to {short(longest)}"
    )
    if least not in found or longest not in found or len(times) < len(found):
        yield Judgement(where, "not measured from end to end", asked, "untested")
        return
    spread = max(times) / min(times) - 1.0
    best = [seconds * _fastest(by_length[length]) for length, seconds in found.items() if seconds is not None]
    fastest = max(best) / min(best) - 1.0
    verdict = _verdict(spread <= limit, (spread <= limit) == (fastest <= limit))
    yield Judgement(where, f"{spread:.1%} (fastest rounds {fastest:.1%})", asked, verdict)
