"""Attention with linear biases."""

from __future__ import annotations

from torch import Tensor

from alibi_attention import alibi_attention, alibi_slopes
from alibi_attention.lab.positions.base import Cache, DecoderShape, PositionMethod


class Alibi(PositionMethod):
    """Nothing is added to the embeddings; the score of query i and key j falls by m_h * (i - j).

    Source: Press, Smith, Lewis, "Train Short, Test Long", ICLR 2022.
    """

    name = "alibi"
    title = "ALiBi"
    can_forget = True
    slopes: Tensor

    def __init__(self, shape: DecoderShape) -> None:
        super().__init__(shape)
        self.register_buffer("slopes", alibi_slopes(shape.heads), persistent=False)

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return alibi_attention(query, key, value, self.slopes, is_causal=True)

    def continue_with(self, cache: Cache, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        cache.append(key, value)
        return cache.attend(query, self.slopes)
