"""How long a call takes: inner loops for short calls, rounds in turn, every sample kept."""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from alibi_attention.bench.threads import in_fresh_thread

# Calls shorter than this (seconds) are made once, untimed, before each sample: a fresh thread has its workers to start.
_SHORT = 0.1


@dataclass(frozen=True)
class Settings:
    """How a run measures.

    Attributes:
        repeats: rounds of short calls.
        least: samples of short calls last at least this long, seconds.
        budget: a contestant's rounds at one size take about this long, seconds; never fewer than 3 rounds.
        long_call: a first call that takes longer, seconds, is the only sample.
        patience: peers that are no target are left out where a call would take longer, seconds.
        memory_budget: bytes that inputs, biases and scores may take.
        measure_memory: whether to measure peak memory where cases ask for it.
        default_alone: whether only the backend that a call takes unasked is measured of ours.
    """

    repeats: int = 7
    least: float = 0.2
    budget: float = 20.0
    long_call: float = 20.0
    patience: float = 60.0
    memory_budget: int = 8 << 30
    measure_memory: bool = True
    default_alone: bool = False


@dataclass
class Samples:
    """Seconds per call, one entry for each round; None for a round it sat out.

    Attributes:
        inner: calls in a sample.
        first: seconds of the first call, which is a warm-up unless it is the only sample.
        seconds: the samples, each the mean of its ``inner`` calls.
    """

    inner: int = 1
    first: float = 0.0
    seconds: list[float | None] = field(default_factory=list)


@dataclass
class Contestant:
    """A call to be timed, with denormals flushed or not."""

    name: str
    call: Callable[[], Any]
    flush: bool
    gradients: bool
    samples: Samples = field(default_factory=Samples)
    rounds: int = 0
    result: Any = None


def warm_up(contestant: Contestant, settings: Settings) -> None:
    """Make the first calls and plan the samples. A first call of ``long_call`` seconds or more is the only sample."""
    contestant.samples.first, contestant.result = in_fresh_thread(
        lambda: _timed_result(contestant), flush=contestant.flush
    )
    estimate = contestant.samples.first
    if estimate >= settings.long_call:
        contestant.samples.seconds = [estimate]
        contestant.rounds = 0
        return
    if estimate < 1.0:
        estimate = in_fresh_thread(lambda: _estimate(contestant, settings), flush=contestant.flush)
    contestant.samples.inner = max(1, math.ceil(settings.least / estimate))
    each = estimate * contestant.samples.inner
    contestant.rounds = max(min(3, settings.repeats), min(settings.repeats, int(settings.budget / each)))


def play_rounds(contestants: list[Contestant], goes_on: Callable[[], None]) -> Iterator[Contestant]:
    """Time them in turn, A, B, C, A, B, C, ..., until each has its rounds; yields after every sample.

    Args:
        goes_on: called before every sample; may raise to stop.
    """
    for number in range(max((each.rounds for each in contestants), default=0)):
        gc.collect()
        for contestant in contestants:
            seconds = contestant.samples.seconds
            if number < contestant.rounds:
                goes_on()
                seconds.append(in_fresh_thread(lambda each=contestant: _sample(each), flush=contestant.flush))  # type: ignore[misc]
                yield contestant
            elif len(seconds) <= number:
                seconds.append(None)


def _estimate(contestant: Contestant, settings: Settings) -> float:
    """Seconds per call once warm, from calls of a quarter of a sample."""
    with _quiet(contestant):
        contestant.call()
        calls, begin = 0, time.perf_counter()
        while calls == 0 or time.perf_counter() - begin < settings.least / 4:
            contestant.call()
            calls += 1
        return (time.perf_counter() - begin) / calls


def _sample(contestant: Contestant) -> float:
    call, inner = contestant.call, contestant.samples.inner
    with _quiet(contestant):
        if contestant.samples.first < _SHORT or inner > 1:
            call()
        begin = time.perf_counter()
        for _ in range(inner):
            call()
        return (time.perf_counter() - begin) / inner


def _timed_result(contestant: Contestant) -> tuple[float, Any]:
    with _quiet(contestant):
        begin = time.perf_counter()
        result = contestant.call()
        return time.perf_counter() - begin, result


@contextmanager
def _quiet(contestant: Contestant) -> Iterator[None]:
    """No garbage collector, and gradients only where they are part of the call."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        with torch.set_grad_enabled(contestant.gradients):
            yield
    finally:
        if enabled:
            gc.enable()
