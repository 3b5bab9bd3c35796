"""The price of positions, a share of attention time."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from alibi_attention.bench.versus.contestants import Price, prices
from alibi_attention.bench.versus.results import Comparison, Speed, Timed


@dataclass(frozen=True)
class Share:
    """The price of positions at one size, a share of attention time: median and quartiles over rounds."""

    price: Price
    middle: float
    low: float
    high: float
    with_: Timed

    @property
    def text(self) -> str:
        return f"{self.middle:.1%} ({self.low:.1%} to {self.high:.1%})"


def shares(found: Comparison, speed: Speed) -> list[Share]:
    """Every price that was measured, round by round: 1 - without / with."""
    result = []
    for price in prices(found.timed_as.values(), bare=bool(found.settings.get("bare"))):
        without = speed.find(price.without)
        with_ = fastest(speed, price.with_)
        if without is None or without.samples is None or with_ is None or with_.samples is None:
            continue
        both = zip(with_.samples.seconds, without.samples.seconds, strict=False)
        found_shares = [1.0 - b / a for a, b in both if a is not None and b is not None]
        if found_shares:
            result.append(Share(price, *_quartiles(found_shares), with_))
    return result


def _quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """The median, then the quartiles below and above it."""
    if len(values) < 2:
        return values[0], values[0], values[0]
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return middle, low, high


def fastest(speed: Speed, names: Sequence[str]) -> Timed | None:
    """Of these contestants, those that were timed, the one with the least median."""
    there = [timed for name in names if (timed := speed.find(name)) is not None and timed.seconds is not None]
    return min(there, key=lambda timed: timed.seconds or 0.0, default=None)
