"""How far rows of an output or of a gradient are from what is right there."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def most_off(found: Tensor, expected: Tensor) -> float:
    """The largest |found - expected| / |expected| of a row, both (heads, rows, dim); NaN where something is.

    Lengths differ a hundredfold among heads and among rows (the first key has gradients from every query): one measure
    for all would leave the flat heads out, which have most of the work. A row that is shorter than the root mean square
    of its head's is held against that: a query that sees next to nothing but itself has next to no gradient, and the
    rounding of its output in it.
    """
    lengths = expected.norm(dim=-1)
    usual = lengths.square().mean(1, keepdim=True).sqrt()
    off = (found.to(expected.dtype) - expected).norm(dim=-1)
    # Where a head has nothing at all, nothing is right.
    shares = torch.where(off == 0.0, 0.0, off / lengths.maximum(usual))
    # A NaN among them is the largest; an infinity that is expected would be held for any length.
    return float(shares.max()) if torch.isfinite(expected).all() else math.nan
