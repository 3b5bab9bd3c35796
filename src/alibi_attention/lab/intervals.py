"""How sure a mean over documents and seeds, or a share, is."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import stdtrit

LEVEL = 0.95
# Of fewer documents of one size nothing can be said of how they differ.
_LEAST_DOCUMENTS = 1.5


def mean_interval(totals: ArrayLike, sizes: ArrayLike) -> tuple[float, float] | None:
    r"""Student's interval, at 95%, of a ratio of sums over documents, averaged over seeds.

    With :math:`R_s = \sum_d y_{sd} / W` of seed s, :math:`W = \sum_d w_d`, and R their mean over S seeds, it is

    .. math:: R \pm \sqrt{t_{n-1}^2 V_d + t_{S-1}^2 V_s}

    Documents are wholes, because the bytes of one are not independent: :math:`V_d` is the jackknife's variance of R,
    each of them left out in turn, and t is of their `effective_number` n. Seeds are drawn, too: :math:`V_s` is the
    sample variance of :math:`R_s` over S. What a document costs one seed alone is in both: where that is most of the
    doubt the interval is wider than need be. Three seeds count as three: where they are all the doubt, their deviation
    is taken 4.3 times; resampling three would give the range of three, which holds the truth in three of four cases. Of
    one seed the interval is over documents alone.

    Args:
        totals: (seeds, documents) or (documents,), such as bits; differences of two models for a paired interval.
        sizes: (documents,), such as bytes, each above 0.

    Returns:
        Lower and upper bound, or None for fewer than two documents, or where one is nearly all there is.

    Source: Cochran, "Sampling Techniques", 1977, chapter 6, for the ratio; Zou and Donner, "Construction of confidence
        limits about effect measures", 2008, for two sources of variance as one interval.
    """
    values: NDArray[np.float64] = np.atleast_2d(np.asarray(totals, dtype=np.float64))
    weights: NDArray[np.float64] = np.asarray(sizes, dtype=np.float64)
    seeds, documents = values.shape
    if documents < 2 or effective_number(weights) < _LEAST_DOCUMENTS:
        return None
    whole = weights.sum()
    # A loss that is no number, or none that a float holds, has no interval: neither end is a number.
    with np.errstate(invalid="ignore", over="ignore"):
        by_seed = values.sum(-1) / whole
        mean = float(by_seed.mean())
        # What R moves by when a document is left out, up to its sign.
        moved = (values.mean(0) - mean * weights) / (whole - weights)
        of_documents = float((moved**2).sum()) * (documents - 1) / documents
        of_seeds = float(by_seed.var(ddof=1)) / seeds if seeds > 1 else 0.0
    variance = student(effective_number(weights) - 1.0) ** 2 * of_documents
    if seeds > 1:
        variance += student(seeds - 1) ** 2 * of_seeds
    if not variance < math.inf:
        return math.nan, math.nan
    reach = math.sqrt(variance)
    return mean - reach, mean + reach


def student(freedom: float) -> float:
    """How many deviations Student's interval at 95% reaches to either side."""
    # Documents of unequal size can have less than one degree of freedom; of one it reaches far enough.
    return float(stdtrit(max(1.0, freedom), (1.0 + LEVEL) / 2.0))


def effective_number(sizes: ArrayLike) -> float:
    r"""How many documents of one size say as much as these: :math:`(\sum_d w_d)^2 / \sum_d w_d^2`.

    Source: Kish, "Survey Sampling", 1965.
    """
    weights: NDArray[np.float64] = np.asarray(sizes, dtype=np.float64)
    return float(weights.sum() ** 2 / (weights**2).sum())


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
