"""Medians, spreads and ratios of samples."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

Seconds = Sequence[float | None]


@dataclass(frozen=True)
class Ratio:
    """Peer time over our time: above 1 we are faster.

    Attributes:
        median, low, high: over the rounds in which both were measured.
        rounds: how many those are.
    """

    median: float
    low: float
    high: float
    rounds: int


def measured(seconds: Seconds) -> list[float]:
    return [value for value in seconds if value is not None]


def median(seconds: Seconds) -> float:
    """Of the rounds that were measured, in seconds; there is at least one."""
    return statistics.median(measured(seconds))


def spread(seconds: Seconds) -> float:
    """Interquartile range over the median, as a share; 0 for a single sample."""
    values = measured(seconds)
    if len(values) < 2:
        return 0.0
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return (high - low) / statistics.median(values)


def ratio(ours: Seconds, peer: Seconds) -> Ratio | None:
    """The ratio round by round, then its median and range; None where no round has both."""
    ratios = [b / a for a, b in zip(ours, peer, strict=False) if a is not None and b is not None]
    if not ratios:
        return None
    return Ratio(statistics.median(ratios), min(ratios), max(ratios), len(ratios))


def times(value: float) -> str:
    """A ratio to three significant digits: 68.8x, 1.30x, 0.031x."""
    return f"{value:#.3g}".rstrip(".") + "x" if value < 1000 else f"{value:,.0f}x"
