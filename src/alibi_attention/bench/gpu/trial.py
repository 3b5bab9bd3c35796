"""One size measured on a device: contestants made, checked and timed in turn, every step recorded beforehand."""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from alibi_attention.bench.accuracy import error
from alibi_attention.bench.gpu.agreement import most_off
from alibi_attention.bench.gpu.cases import AS_GRAPHS, GpuTrial
from alibi_attention.bench.gpu.clock import Call, Clock, calls_in
from alibi_attention.bench.gpu.inputs import GpuInputs, make_gpu_inputs
from alibi_attention.bench.gpu.peers import GPU_PEERS, Attend
from alibi_attention.bench.results import Entry, TrialResult
from alibi_attention.bench.timing import Samples
from alibi_attention.cache import KVCache
from alibi_attention.dispatch import explain_backends
from alibi_attention.ops import alibi_attention

# A contestant with a row of the output, or a gradient of a query, key or value, that is off by this part of its length
# (or of the usual length of its head) does not compute ALiBi, whatever it was asked for. What a flash kernel rounds to
# bfloat16 comes to 0.004 in flat heads and up to 0.025 in steep ones (400 draws of 8 heads); gradients that are missing
# to 0.18 at least.
_WRONG = 0.05


class DeviceLostError(RuntimeError):
    """The device answers nothing any more in this process; what was under way is to blame."""


@dataclass(frozen=True)
class GpuSettings:
    """How sizes are measured.

    Attributes:
        rounds: samples of each contestant, taken in turn.
        long_rounds: the same where a round of everyone takes more than ``long`` seconds.
        least: seconds a sample of short calls lasts.
        memory_share: of the free memory, how much a mask of a peer may take.
        backend: ours.
    """

    rounds: int = 5
    long_rounds: int = 3
    long: float = 1.5
    least: float = 0.05
    memory_share: float = 0.4
    backend: str = "triton"


@dataclass
class Record:
    """Where results go: ``status`` is called before every step, ``save`` after every one that told something."""

    result: TrialResult
    status: Callable[[str | None], None] = lambda name: None  # noqa: ARG005
    save: Callable[[TrialResult], None] = lambda result: None  # noqa: ARG005
    excluded: Mapping[str, str] = field(default_factory=dict)


@dataclass
class _Contestant:
    entry: Entry
    call: Call
    samples: Samples
    # What a sample takes, as far as one call tells.
    expected: float


def blank_result(trial: GpuTrial) -> TrialResult:
    """The size without any measurement; its first target is the one tables of a single peer show."""
    targets = trial.targets
    peer = next(iter(targets), None)
    return TrialResult(
        case=trial.case.name, title=trial.case.title, mode=trial.case.mode,
        heads=trial.case.heads * trial.case.batch, head_dim=trial.head_dim, queries=trial.queries, keys=trial.keys,
        dtype=str(trial.case.dtype).removeprefix("torch."), tolerance=trial.case.tolerance,
        target_peer=peer, target_ratio=None if peer is None else targets[peer],
        note=AS_GRAPHS if trial.case.cached else "",
    )  # fmt: skip


def measure_gpu_trial(trial: GpuTrial, record: Record, clock: Clock, settings: GpuSettings) -> None:
    """Fill ``record.result``; a contestant that fails is a result too.

    Raises:
        DeviceLostError: where a failure took the device with it.
    """
    result = record.result
    record.status(None)
    _forget_compiled()
    inputs = make_gpu_inputs(trial, clock.device)
    contestants = []
    ours = f"alibi-{settings.backend}"
    for name in (ours, *trial.case.peers):
        entry = _entry(name, trial, inputs, clock, settings, record.excluded)
        result.entries.append(entry)
        record.save(result)
        if entry.refused is None:
            record.status(name)
            made = _prepared(entry, trial, inputs, clock, settings)
            contestants += [] if made is None else [made]
            record.save(result)
    rounds = _rounds(contestants, settings)
    if trial.case.tolerance != 0.0 and trial.queries > 1 and rounds:
        record.status("certify")
        result.kept_share = _kept_share(inputs, clock)
    for _ in range(rounds):
        for each in list(contestants):
            record.status(each.entry.name)
            failure = _sampled(each, trial, clock)
            if failure is not None:
                contestants.remove(each)
                each.entry.refused, each.entry.plain = failure, None
        record.save(result)
    result.complete = True
    record.save(result)
    del contestants, inputs
    gc.collect()
    clock.tidy()


def _rounds(contestants: list[_Contestant], settings: GpuSettings) -> int:
    slow = sum(each.expected for each in contestants) > settings.long
    return min(settings.rounds, settings.long_rounds) if slow else settings.rounds


def _entry(
    name: str, trial: GpuTrial, inputs: GpuInputs, clock: Clock, settings: GpuSettings, excluded: Mapping[str, str]
) -> Entry:
    if name.startswith("alibi-"):
        entry = Entry(name, f"alibi-attention, backend {settings.backend}", ours=True, default=True)
        entry.refused = excluded.get(name) or explain_backends(
            inputs.query, inputs.key, inputs.value, inputs.slopes, tolerance=trial.case.tolerance
        ).get(settings.backend, "there is no such backend")
        return entry
    peer = GPU_PEERS[name]
    entry = Entry(name, peer.title, ours=False, alibi=peer.alibi)
    entry.refused = excluded.get(name) or peer.refuses(trial, int(clock.free_memory() * settings.memory_share))
    return entry


def _prepared(
    entry: Entry, trial: GpuTrial, inputs: GpuInputs, clock: Clock, settings: GpuSettings
) -> _Contestant | None:
    """The contestant warmed up, its output compared; None, with the reason entered, where that fails."""
    if entry.alibi and (failure := _without_reference(inputs, trial, clock)) is not None:
        entry.refused = f"nothing to compare it with: {failure}"
        return None
    try:
        with torch.set_grad_enabled(trial.case.mode == "training"):
            attend = _ours(trial, inputs, settings) if entry.ours else GPU_PEERS[entry.name].prepare(trial, inputs)
            out = attend()
            if entry.alibi:
                rows, expected = inputs.expected
                entry.error, off = error(out, rows, expected), most_off(out.detach()[0][:, rows], expected)
                if not off < _WRONG:
                    entry.refused = f"a row of its output is {off:.0%} of its length from ALiBi's in float64"
                    return None
            del out
            call: Call = partial(_gradients, attend, inputs) if trial.case.mode == "training" else attend
            first, _ = clock.once(call)
            if trial.case.cached:
                call = clock.graph(call)
            again, found = clock.once(call)
            if entry.alibi and trial.case.mode == "training":
                entry.grad_error = inputs.expected_gradients.error(found)
                if not entry.grad_error < _WRONG:
                    entry.refused = f"a gradient is {entry.grad_error:.0%} of its length from ALiBi's in float32"
                    return None
            del found
            quickest = min(first, again)
            entry.plain = Samples(inner=calls_in(quickest, settings.least), first=first)
            return _Contestant(entry, call, entry.plain, quickest * entry.plain.inner)
    except Exception as failure:
        entry.refused, entry.plain = _text(failure), None
        _check(clock, entry.name, failure)
        return None


def _without_reference(inputs: GpuInputs, trial: GpuTrial, clock: Clock) -> str | None:
    """Why there is nothing to hold a contestant against, which is no fault of its own."""
    try:
        _ = inputs.expected
        _ = trial.case.mode == "training" and inputs.expected_gradients
    except Exception as failure:
        _check(clock, "the reference", failure)
        return _text(failure)
    return None


def _sampled(each: _Contestant, trial: GpuTrial, clock: Clock) -> str | None:
    """Take one sample; the reason why not where that fails."""
    try:
        with torch.set_grad_enabled(trial.case.mode == "training"):
            each.samples.seconds.append(clock.seconds(each.call, each.samples.inner))
    except Exception as failure:
        _check(clock, each.entry.name, failure)
        return _text(failure)
    return None


def _kept_share(inputs: GpuInputs, clock: Clock) -> float | None:
    """That of `certify`; the kernels' own plan comes from other bounds, and keeps other tiles."""
    try:
        return float(inputs.certificate.kept_share.mean())
    except Exception as failure:
        _check(clock, "certify", failure)
        return None


def _check(clock: Clock, name: str, failure: Exception) -> None:
    clock.tidy()
    try:
        clock.check()
    except Exception:
        raise DeviceLostError(f"{name} took the device with it: {_text(failure)}") from failure


def _text(failure: Exception) -> str:
    lines = str(failure).strip().splitlines()
    return f"failed: {type(failure).__name__}: {lines[0][:300] if lines else ''}"


def _ours(trial: GpuTrial, inputs: GpuInputs, settings: GpuSettings) -> Attend:
    query, key, value, slopes, backend = inputs.query, inputs.key, inputs.value, inputs.slopes, settings.backend
    tolerance = trial.case.tolerance
    if trial.case.cached:
        cache = KVCache(key.shape[2])
        cache.append(key.detach(), value.detach())
        return lambda: cache.attend(query, slopes, tolerance=tolerance, backend=backend)
    return lambda: alibi_attention(query, key, value, slopes, tolerance=tolerance, backend=backend)


def _gradients(attend: Attend, inputs: GpuInputs) -> tuple[Tensor, ...]:
    return torch.autograd.grad(attend(), (inputs.query, inputs.key, inputs.value), inputs.grad)


def _forget_compiled() -> None:
    """Compiled for one size: torch gives up compiling a function anew after a few, with nothing but a warning."""
    import sys

    dynamo: Any = sys.modules.get("torch._dynamo")
    if dynamo is not None:
        dynamo.reset()
