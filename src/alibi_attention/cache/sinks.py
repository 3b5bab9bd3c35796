"""The first tile of each sequence, kept when its place in the ring is taken: attention sinks live there.

A trained model may park mass on the first token: then its bound alone fails, long after the keys around it could go. So
that tile is judged by itself, and read by itself in a step that needs it. It costs 64 tokens a head, at any length.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from alibi_attention.cache.common import Drafted, lasting
from alibi_attention.cache.rings import Ring
from alibi_attention.call import call_arguments
from alibi_attention.horizon.tiles import BLOCK_K
from alibi_attention.ops import run_forward


class Sink(Drafted):
    """One ring's first tiles.

    Attributes:
        key, value: (batch, heads, 64, dim).
        first: (batch,) position of each row's tile; the tile of its first token that is not padding.
        there: (batch,) whether the tile has left the ring.
    """

    def __init__(self, ring: Ring, first: Tensor) -> None:
        with lasting():
            batch, heads = ring.key.shape[:2]
            self.key = torch.zeros(batch, heads, BLOCK_K, ring.key.shape[3], dtype=ring.key.dtype, device=first.device)
            self.value = torch.zeros(
                batch, heads, BLOCK_K, ring.value.shape[3], dtype=ring.value.dtype, device=first.device
            )
            self.there = torch.zeros(batch, dtype=torch.bool, device=first.device)
        self.first = first

    def take(self, ring: Ring, low: int, high: int) -> None:
        """Copy the tiles among the keys from ``low`` to ``high`` that the ring is about to lose, into new buffers."""
        with lasting():
            self.key, self.value, self.there = (t.clone() for t in (self.key, self.value, self.there))
        for row, first in enumerate(self.first.tolist()):
            if low <= first < high:
                key, value = ring.span(first, first + BLOCK_K)
                self.key[row], self.value[row], self.there[row] = key[row], value[row], True

    def attend(
        self, query: Tensor, slopes: Tensor, position: int, padding: Tensor, **call: Any
    ) -> tuple[Tensor, Tensor]:
        """Output and lse of queries from ``position`` on over the tiles."""
        index = self.first.unsqueeze(1) + torch.arange(BLOCK_K, device=self.first.device)
        seen = (index >= padding.unsqueeze(1)) & self.there.unsqueeze(1)
        arguments = call_arguments(
            query, self.key, self.value, slopes, is_causal=True, query_offset=position - self.first, key_mask=seen,
            cu_seqlens=None, cu_seqlens_k=None, dropout_p=0.0, tolerance=0.0, autocast=False, **call,
        )  # fmt: skip
        return run_forward(arguments)

    def reorder(self, index: Tensor) -> None:
        with lasting():
            self.key, self.value, self.first, self.there = (
                t.index_select(0, index) for t in (self.key, self.value, self.first, self.there)
            )
