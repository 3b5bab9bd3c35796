"""The audit of a cache that forgets, by the compiled library: what `cache.audit` and `cache.auditor` compute of rows.

The work is little; what is spared is some thirty calls of torch for a step.
"""

from __future__ import annotations

from array import array
from typing import NamedTuple

import torch
from torch import Tensor

from alibi_attention.backends import cpu, native


class Learning(NamedTuple):
    """What windows are found from.

    Attributes:
        farther: (batch, num_kv_heads) float64, the largest distance of a key from the center.
        series: (num_heads,) float64.
        nats, largest: (num_heads,) float64, raised.
    """

    farther: Tensor
    series: Tensor
    nats: Tensor
    largest: Tensor


class Books(NamedTuple):
    """What is known of the keys that are gone.

    Attributes:
        at, rise: (batch, num_heads, 1, lines) float64, of lines whose maximum bounds their mass.
        place: the position that this is the mass for.
        least: (num_heads,) float64, positions at which a head would be at its worst.
        limit: of the excess, a logarithm.
        worst: (num_heads,) float64, raised where all is within the limit.
    """

    at: Tensor
    rise: Tensor
    place: int
    least: Tensor
    limit: float
    worst: Tensor


class Verdict(NamedTuple):
    """The largest excess, what it would be at its worst, and that of every row: (batch, num_heads, q_len) float64."""

    worst: float
    coming: float
    excess: Tensor


def audit(
    query: Tensor, lse: Tensor, center: Tensor, longest: Tensor, slopes: Tensor, *, scale: float, rounding: float,
    slack: float, position: int, learning: Learning | None, books: Books | None,
) -> Verdict | None:  # fmt: skip
    """How rows stand against the keys that are gone; None without ``books``.

    Args:
        query: (batch, num_heads, q_len, head_dim), the last dimension contiguous.
        lse: (batch, num_heads, q_len) float32, over what is held.
        center: (batch, num_kv_heads, head_dim) float32.
        longest: (batch, num_kv_heads) float64, no key is longer.
        slopes: (num_heads,) float64.
        scale: factor on the dot products.
        rounding, slack: what a score may round by, as a share of the product of lengths, and whatever their size.
        position: of the first row.

    All but ``query`` are contiguous, in memory of the CPU.
    """
    library = native.load()
    assert not isinstance(library, str)
    batch, heads, q_len, head_dim = query.shape
    learned, places, limit, outcome = (0, 0, 0, 0), (0, 0, 0, 0, 0, 0), 0.0, (0, 0, 0)
    if learning is not None:
        learned = (
            learning.farther.data_ptr(), learning.series.data_ptr(), learning.nats.data_ptr(),
            learning.largest.data_ptr(),
        )  # fmt: skip
    verdict = array("d", (0.0, 0.0))
    excess = None
    if books is not None:
        excess = torch.empty((batch, heads, q_len), dtype=torch.float64)
        limit = books.limit
        places = (
            books.at.data_ptr(), books.rise.data_ptr(), books.at.shape[3], books.place, position,
            books.least.data_ptr(),
        )  # fmt: skip
        outcome = books.worst.data_ptr(), excess.data_ptr(), verdict.buffer_info()[0]
    packed = native.AUDIT.pack(
        native.AUDIT.size, cpu._TYPES[query.dtype], batch, heads, center.shape[1], q_len, head_dim, *cpu._place(query),
        lse.data_ptr(), center.data_ptr(), longest.data_ptr(), scale, rounding, slack, slopes.data_ptr(), *learned,
        *places, limit, *outcome,
    )  # fmt: skip
    native.check(library.audit(packed))
    return None if excess is None else Verdict(verdict[0], verdict[1], excess)
