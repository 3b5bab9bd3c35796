"""Rotary position embedding."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from alibi_attention.lab.positions.base import Cache, DecoderShape, PositionMethod

BASE = 1e4


def rotation(
    seq_len: int, head_dim: int, *, start: int = 0, device: torch.device | None = None
) -> tuple[Tensor, Tensor]:
    """Cosine and sine of t * BASE ** (-2i / head_dim), each (seq_len, head_dim / 2) float32, formed in float64."""
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float64, device=device)
    rates = torch.exp(exponents * (-math.log(BASE) / head_dim))
    angles = torch.arange(start, start + seq_len, dtype=torch.float64, device=device).unsqueeze(-1) * rates
    return angles.cos().float(), angles.sin().float()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the pairs (x[i], x[i + head_dim / 2]) of (..., seq_len, head_dim) by their angles."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


class Rope(PositionMethod):
    """Queries and keys are turned by angles proportional to their positions, so scores depend on i - j.

    Beyond the training length the positions are simply continued.

    Source: Su et al., "RoFormer: Enhanced Transformer with Rotary Position Embedding", 2021.
    """

    name = "rope"
    title = "RoPE"

    def __init__(self, shape: DecoderShape) -> None:
        super().__init__(shape)
        self._table: tuple[Tensor, Tensor] | None = None

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        cos, sin = self._rotation(query.shape[-2], query.device)
        return super().attend(rotate(query, cos, sin), rotate(key, cos, sin), value)

    def continue_with(self, cache: Cache, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        cos, sin = rotation(query.shape[-2], self.shape.head_dim, start=cache.length, device=query.device)
        return super().continue_with(cache, rotate(query, cos, sin), rotate(key, cos, sin), value)

    def _rotation(self, seq_len: int, device: torch.device) -> tuple[Tensor, Tensor]:
        # All layers of a forward pass, and all steps at one length, share a table.
        if self._table is None or self._table[0].shape[0] != seq_len or self._table[0].device != device:
            self._table = rotation(seq_len, self.shape.head_dim, device=device)
        return self._table
