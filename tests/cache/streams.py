"""Streams of queries, keys and values for the caches, and the truth about them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor


class Stream(NamedTuple):
    query: Tensor
    key: Tensor
    value: Tensor

    def parts(self, *sizes: int) -> Iterator[Stream]:
        """Cut into pieces of these sizes, over and over."""
        at = turn = 0
        while at < self.key.shape[2]:
            end = at + sizes[turn % len(sizes)]
            yield Stream(*(t[:, :, at:end] for t in self))
            at, turn = end, turn + 1


def stream(
    length: int, *, batch: int = 1, heads: int = 4, kv_heads: int = 4, dim: int = 16, value_dim: int | None = None,
    dtype: torch.dtype = torch.float32, spread: float = 1.0, mean: float = 0.0,
) -> Stream:  # fmt: skip
    """Standard normal but for a mean that all keys share."""
    query = spread * torch.randn(batch, heads, length, dim)
    key = torch.randn(batch, kv_heads, length, dim) + mean
    value = torch.randn(batch, kv_heads, length, value_dim or dim)
    return Stream(query.to(dtype), key.to(dtype), value.to(dtype))


def true_shares(
    query: Tensor, key: Tensor, slopes: Tensor, evicted: Tensor, first_query: int, *, merged: int = 0
) -> Tensor:
    """(heads, q_len): mass that the first ``evicted`` keys of each key head hold over that of the others, float64.

    Of the first row of the batch; query i stands at first_query + i and sees no later key. The first ``merged`` keys
    are among the others: a first tile that was read after all.
    """
    group = query.shape[1] // key.shape[1]
    keys = key[0].double().repeat_interleave(group, 0)
    scores = query[0].double() @ keys.transpose(-1, -2) * query.shape[-1] ** -0.5
    index = torch.arange(key.shape[2])
    distance = torch.arange(first_query, first_query + query.shape[2])[:, None] - index
    scores = scores - slopes.double()[:, None, None] * distance
    scores = scores.masked_fill(distance < 0, -torch.inf)
    gone = ((index < evicted.repeat_interleave(group)[:, None]) & (index >= merged))[:, None]
    dropped = scores.masked_fill(~gone, -torch.inf).logsumexp(-1)
    return torch.exp(dropped - scores.masked_fill(gone, -torch.inf).logsumexp(-1))
