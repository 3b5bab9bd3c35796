"""How sure a mean over documents and seeds is."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

RESAMPLES = 2000
LEVEL = 0.95


def bootstrap_interval(totals: ArrayLike, sizes: ArrayLike) -> tuple[float, float] | None:
    """Percentile interval, at 95%, of sum(totals) / sum(sizes) under resampling of documents and of seeds.

    Documents are drawn with replacement, whole, because the bytes of one document are not independent; where there are
    several seeds they are drawn with replacement, too, independently of the documents, which all seeds share. 2000
    resamples from a fixed generator. With few documents or seeds such an interval is too narrow: three seeds bound the
    spread over seeds only roughly.

    Args:
        totals: (seeds, documents) or (documents,), such as bits; differences of two models for a paired interval.
        sizes: (documents,), such as bytes.

    Returns:
        Lower and upper bound, or None for fewer than two documents.

    Source: Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, chapters 8 and 13.
    """
    values: NDArray[np.float64] = np.atleast_2d(np.asarray(totals, dtype=np.float64))
    weights: NDArray[np.float64] = np.asarray(sizes, dtype=np.float64)
    seeds, documents = values.shape
    if documents < 2:
        return None
    generator = np.random.default_rng(0)
    drawn = generator.multinomial(documents, np.full(documents, 1 / documents), size=RESAMPLES)
    drawn_seeds = generator.multinomial(seeds, np.full(seeds, 1 / seeds), size=RESAMPLES)
    sums = ((drawn_seeds @ values) * drawn).sum(-1) / seeds
    counts = drawn @ weights
    ratios = sums[counts > 0] / counts[counts > 0]
    low, high = np.quantile(ratios, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def wilson_interval(successes: int, trials: int) -> tuple[float, float]:
    """Wilson's 95% interval of a share: successes / trials, never outside [0, 1].

    Source: Wilson, "Probable inference, the law of succession, and statistical inference", 1927.
    """
    z = 1.959963984540054
    share = successes / trials
    centre = share + z * z / (2 * trials)
    spread = z * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials))
    scale = 1 + z * z / trials
    return max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale)
