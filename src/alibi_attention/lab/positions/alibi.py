"""Attention with linear biases."""

from __future__ import annotations

from typing import ClassVar, cast

from torch import Tensor

from alibi_attention import alibi_attention, alibi_slopes, scale_slopes
from alibi_attention.lab.positions.base import Cache, DecoderShape, PositionMethod
from alibi_attention.slopes import SlopeScaling, SlopeScheme


class Alibi(PositionMethod):
    """Nothing is added to the embeddings; the score of query i and key j falls by m_h * |i - j|.

    In an encoder that is the same on both sides: read backwards, a text gives the same predictions in backward order.

    The variants flatten the slopes of the trained model (`scale_slopes`): ``linear`` and ``ntk`` for the length it is
    set up for, ``dynamic`` for the number of tokens at hand. Below the trained length all leave them alone: steeper
    ones, which is what `scale_slopes` makes of ``linear`` there, would be no extrapolation.

    Source: Press, Smith, Lewis, "Train Short, Test Long", ICLR 2022.
    """

    name = "alibi"
    title = "ALiBi"
    variants = {"linear": "linear scaling", "dynamic": "dynamic scaling", "ntk": "NTK scaling"}  # noqa: RUF012
    unsettled = frozenset({"dynamic"})
    repeated = frozenset({"dynamic"})
    can_forget = True
    bidirectional = True
    scheme: ClassVar[SlopeScheme] = "geometric"
    slopes: Tensor

    def __init__(self, shape: DecoderShape) -> None:
        super().__init__(shape)
        self._keep(alibi_slopes(shape.heads, self.scheme))

    def _keep(self, slopes: Tensor) -> None:
        self.register_buffer("slopes", slopes, persistent=False)

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        slopes = self.slopes_for(query.shape[-2])
        return alibi_attention(query, key, value, slopes, is_causal=self.causal, dropout_p=self.dropout_p)

    def continue_with(self, cache: Cache, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        cache.append(key, value)
        return cache.attend(query, self.slopes_for(cache.length))

    def slopes_for(self, seq_len: int) -> Tensor:
        """(heads,) slopes for an input of ``seq_len`` tokens, in the variant in use."""
        if self.variant is None:
            return self.slopes
        length = seq_len if self.variant == "dynamic" else self.length
        scaling = cast(SlopeScaling, self.variant)
        trained = self.shape.length
        return scale_slopes(self.slopes, scaling, train_length=trained, length=max(length, trained))
