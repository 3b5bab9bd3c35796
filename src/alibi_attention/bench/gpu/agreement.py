"""How far rows of an output or of a gradient are from what is right there."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def most_off(found: Tensor, expected: Tensor) -> float:
    """The largest |found - expected| / |expected| of a row, both (heads, rows, dim); NaN where something is.

    Lengths differ a hundredfold among heads and among rows (the first key has gradients from every query): one measure
    for all would leave the flat heads out, which have most of the work. A row shorter than most of its head is held
    against the median there, since rounding may be all that it has: the first query has no gradient at all.
    """
    lengths = expected.norm(dim=-1)
    shares = (found.to(expected.dtype) - expected).norm(dim=-1) / lengths.maximum(lengths.median(1, keepdim=True)[0])
    # A NaN among them is the largest; an infinity that is expected would be held for any length.
    return float(shares.max()) if torch.isfinite(expected).all() else math.nan
