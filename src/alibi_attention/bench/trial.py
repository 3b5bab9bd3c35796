"""One size measured: contestants made, checked, warmed up, and timed in turn."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from torch import Tensor

from alibi_attention.bench.accuracy import error, expected_rows
from alibi_attention.bench.case import Trial, short
from alibi_attention.bench.inputs import Inputs, make_inputs
from alibi_attention.bench.memory import peak_memory
from alibi_attention.bench.ours import LAYER, computed_tiles, default_of, make_ours, why_not_ours
from alibi_attention.bench.peer import Peer
from alibi_attention.bench.peers import PEERS
from alibi_attention.bench.results import Entry, TrialResult
from alibi_attention.bench.threads import in_fresh_thread
from alibi_attention.bench.timing import Contestant, Samples, Settings, play_rounds, warm_up

# Calls of so many seconds are not repeated where one says enough.
_LONG = 0.5


def measure_trial(
    trial: Trial,
    result: TrialResult,
    before: Sequence[TrialResult],
    peers: Sequence[str],
    settings: Settings,
    goes_on: Callable[[], None],
    sampled: Callable[[str], None],
) -> None:
    """Fill ``result`` as measurements come in, so that whatever stops them leaves what there is.

    Args:
        before: sizes measured already, from which long calls are predicted.
    """
    # In fresh threads, all of it: workers of this one would stand in the way of those that are timed.
    inputs: Inputs = in_fresh_thread(partial(make_inputs, trial, settings.memory_budget))
    result.note = inputs.note
    makers = _enter(trial, result, before, inputs, peers, settings)
    default = result.default
    if trial.case.mode != "layer" and default is not None:
        found = in_fresh_thread(partial(computed_tiles, trial, inputs, default.name))
        result.tiles, result.kept_share, result.tile_rows, result.tiles_scored = found
    checks = _Checks(trial, inputs)
    contestants: list[Contestant] = []
    for entry, make in makers:
        contestants += _prepare(trial, entry, make, settings, goes_on, checks)
        sampled(entry.name)
    for contestant in play_rounds(contestants, goes_on):
        sampled(contestant.name)
    del contestants, makers, checks, inputs
    gc.collect()
    if settings.measure_memory and trial.keys in trial.case.memory_lengths:
        for entry in result.entries:
            if entry.seconds is not None and (entry.ours or trial.case.memory_of_peers):
                goes_on()
                _remember(entry, peak_memory(trial, entry.name))
                sampled(entry.name)


Maker = Callable[[], Callable[[], Any]]


def _enter(
    trial: Trial,
    result: TrialResult,
    before: Sequence[TrialResult],
    inputs: Inputs,
    peers: Sequence[str],
    settings: Settings,
) -> list[tuple[Entry, Maker]]:
    """Enter everyone into the result, and return those that run with what makes their call."""
    makers: list[tuple[Entry, Maker]] = []
    refusals = why_not_ours(trial, inputs.groups[0])
    default = default_of(refusals)
    for name, reason in refusals.items():
        if name != default and (trial.case.alone or settings.default_alone):
            continue
        title = "ALiBiAttention" if name == LAYER else f"alibi-attention, backend {name.removeprefix('alibi-')}"
        entry = Entry(name, title, ours=True, default=name == default, refused=reason)
        result.entries.append(entry)
        if reason is None:
            makers.append((entry, partial(make_ours, name, trial, inputs)))
    for name in trial.case.peers:
        if name not in peers:
            continue
        peer = PEERS[name]
        refused = peer.why_not(trial, settings.memory_budget) or _too_long(trial, name, before, settings)
        entry = Entry(name, peer.title, ours=False, alibi=peer.alibi, exact=peer.exact, refused=refused)
        result.entries.append(entry)
        if refused is None:
            makers.append((entry, partial(Peer.make, peer, trial, inputs)))
    return makers


def _too_long(trial: Trial, name: str, before: Sequence[TrialResult], settings: Settings) -> str | None:
    """Why the patience with a peer ends here, from its time at a shorter length; targets are waited for."""
    if trial.case.target is not None and name in trial.case.target.peers:
        return None
    for shorter in reversed(before):
        if (shorter.case, shorter.head_dim) == (trial.case.name, trial.head_dim) and shorter.keys < trial.keys:
            entry = shorter.entry(name)
            if entry is None or entry.seconds is None:
                continue
            work = (trial.queries * trial.keys) / (shorter.queries * shorter.keys)
            if entry.seconds * work > settings.patience:
                return (
                    f"would take about {entry.seconds * work:.0f} s a call, from its time at {short(shorter.keys)}, "
                    f"over the patience of {settings.patience:.0f} s"
                )
            return None
    return None


def _prepare(
    trial: Trial,
    entry: Entry,
    make: Maker,
    settings: Settings,
    goes_on: Callable[[], None],
    checks: _Checks,
) -> list[Contestant]:
    """Make the call and warm it up: ours with denormals as they come, peers both ways, flushed first."""
    goes_on()
    gradients = trial.case.mode == "training"
    contestants = []
    try:
        call = in_fresh_thread(make, flush=not entry.ours)
        for flush in (False,) if entry.ours else (True, False):
            goes_on()
            contestant = Contestant(entry.name, call, flush, gradients)
            warm_up(contestant, settings)
            if flush:
                entry.flushed = contestant.samples
            else:
                entry.plain = contestant.samples
            contestants.append(contestant)
            if entry.alibi and entry.error is None:
                entry.error = in_fresh_thread(partial(checks.error, contestant.result))
            contestant.result = None
            if flush and contestant.samples.first >= settings.long_call:
                entry.note = f"one flushed call alone, over {settings.long_call:.0f} s"
                break
            if not flush and entry.flushed is not None and _is_beaten(contestant.samples, entry.flushed):
                # The faster counts, and this is not it: its rounds would be long, and change nothing.
                contestant.samples.seconds, contestant.rounds = [contestant.samples.first], 0
                entry.note = "one call with denormals as they come: flushed is far faster"
    except (MemoryError, RuntimeError, NotImplementedError, ImportError, TypeError, AttributeError) as failure:
        # A contestant that fails is a result too; the others still run.
        entry.plain = entry.flushed = None
        entry.refused = f"failed: {type(failure).__name__}: {str(failure).splitlines()[0] if str(failure) else ''}"
        return []
    return contestants


def _is_beaten(plain: Samples, flushed: Samples) -> bool:
    """Whether the first calls, warm where they are long, leave no doubt which of two kinds is the faster."""
    return plain.first >= _LONG and plain.first > 1.5 * flushed.first


def _remember(entry: Entry, found: tuple[int, int] | str) -> None:
    if isinstance(found, str):
        entry.memory_note = found
    else:
        entry.memory, entry.outputs = found


class _Checks:
    """Outputs against float64; the expected rows are computed once, when first asked for."""

    def __init__(self, trial: Trial, inputs: Inputs) -> None:
        self._comparable = trial.case.mode == "forward"
        self._group = inputs.groups[0]
        self._expected: tuple[Tensor, Tensor] | None = None

    def error(self, out: Any) -> float | None:
        """Largest difference on a few rows; None for what is no output (gradients, or a layer of other weights)."""
        if not self._comparable or not isinstance(out, Tensor):
            return None
        if self._expected is None:
            self._expected = expected_rows(self._group)
        return error(out, *self._expected)
