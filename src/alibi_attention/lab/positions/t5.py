"""T5's relative bias."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from alibi_attention import HorizonCache
from alibi_attention.lab.errors import LabError
from alibi_attention.lab.positions.base import Cache, DecoderShape, PositionMethod

BUCKETS = 32
FURTHEST = 128
"""Distances from here on share the last bucket."""

# Queries at a time. With gradients a block holds its scores, and commonly trained lengths are one block.
_ROWS = 128
_ROWS_WITH_GRADIENTS = 1024


def distance_buckets(distances: Tensor, buckets: int = BUCKETS) -> Tensor:
    """The bucket of each distance i - j >= 0, as the causal T5 has them.

    ::

        r                                               for r < 16
        16 + floor(16 * ln(r / 16) / ln(128 / 16))      up to 31

    Args:
        distances: any shape, integers of at least 0.
        buckets: how many there are; half of them hold one distance each.

    Returns:
        The same shape, int64. The logarithm is taken in float32 in the order Transformers takes it, so that a distance
        on an edge falls to the same side.
    """
    exact = buckets // 2
    wide = torch.log(distances.float() / exact) / math.log(FURTHEST / exact) * (buckets - exact)
    # ln 0 is a distance the first half holds.
    wide = wide.clamp_min(0.0).long() + exact
    return torch.where(distances < exact, distances, wide.clamp_max(buckets - 1))


def offset_buckets(offsets: Tensor) -> Tensor:
    """The bucket of each offset i - j of any sign, as T5's encoder has them: half the buckets for either side.

    Those of keys ahead, i < j, are the upper half; within a half as `distance_buckets` of so many.
    """
    side = BUCKETS // 2
    return distance_buckets(offsets.abs(), side) + side * (offsets < 0)


class T5Bias(PositionMethod):
    """The score of query i and key j gains table[bucket(i - j), h], trained, one table shared by all layers.

    In an encoder half of the buckets are for keys ahead.

    What is trained is the table in units of 10 nats. AdamW moves a number by about the learning rate a step, whatever
    its gradient: in nats, the table of a study of 900 steps would move by one at most, which is next to no positions at
    all (ALiBi's slopes begin with eight nats over sixteen tokens). Predicted: the loss follows ALiBi's, not NoPE's.
    Measured at 3 M parameters and L = 256, nats per byte of the batch after 250 steps: 2.77 in these units, 3.50 in
    nats, ALiBi 2.86. No other unit was tried.

    Scores stay divided by sqrt(head_dim), as in every other method here; T5 itself folds that into its initial weights.

    Blocks of queries meet the keys before them one after the other, each with its own stretch of bias: a view of one
    row per head, since the bias depends on i - j alone. Memory is linear in the length; where gradients are kept and
    the length takes several blocks, each block is computed again in the backward pass.

    Source: Raffel et al., "Exploring the Limits of Transfer Learning with a Unified Text-to-Text Transformer", 2020.
    """

    name = "t5"
    title = "T5 bias"
    unit = 10.0
    """Nats."""
    bidirectional = True

    def __init__(self, shape: DecoderShape) -> None:
        super().__init__(shape)
        self.units = nn.Parameter(torch.zeros(BUCKETS, shape.heads))

    @property
    def table(self) -> Tensor:
        """(buckets, heads), in nats."""
        return self.unit * self.units

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return self._attend_last(query, key, value)

    def continue_with(self, cache: Cache, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        if isinstance(cache, HorizonCache):
            remedy = "use a KVCache"
            raise LabError("cache", expected="one that keeps every key", got="a HorizonCache", remedy=remedy)
        cache.append(key, value)
        return self._attend_last(query, cache.key, cache.value)

    def _attend_last(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """The queries are those of the last keys."""
        rows, keys = query.shape[-2], key.shape[-2]
        line = self._line(rows, keys).to(query.dtype)
        block = _ROWS_WITH_GRADIENTS if torch.is_grad_enabled() else _ROWS
        if rows <= block:
            return _attend_block(query, key, value, line, self.dropout_p)
        out = []
        for first in range(0, rows, block):
            end = min(first + block, rows)
            seen = keys - rows + end if self.causal else keys
            begin = rows - end
            part = line[:, begin : begin + end - first - 1 + seen]
            arguments = query[..., first:end, :], key[..., :seen, :], value[..., :seen, :], part, self.dropout_p
            if torch.is_grad_enabled():
                out.append(checkpoint(_attend_block, *arguments, use_reentrant=False))
            else:
                out.append(_attend_block(*arguments))
        return torch.cat(out, dim=-2)

    def _line(self, rows: int, keys: int) -> Tensor:
        """(heads, keys + rows - 1): the bias of the last row from its first key on, then one key further on for each
        row before it. -inf for keys that are not to be seen."""
        device = self.table.device
        if self.causal:
            behind = self.table[distance_buckets(torch.arange(keys, device=device))].T
            return torch.cat((behind.flip(-1), behind.new_full((len(behind), rows - 1), -math.inf)), dim=-1)
        offsets = torch.arange(keys - 1, -rows, -1, device=device)
        return self.table[offset_buckets(offsets)].T


def _attend_block(query: Tensor, key: Tensor, value: Tensor, line: Tensor, dropout_p: float) -> Tensor:
    """Rows of attention: ``query`` (batch, heads, rows, head_dim), ``line`` (heads, keys + rows - 1)."""
    # Rows from last to first each see the same line one key further on, so that all are one strided view.
    mask = line.unfold(-1, key.shape[-2], 1)
    out = F.scaled_dot_product_attention(query.flip(-2), key, value, attn_mask=mask.unsqueeze(0), dropout_p=dropout_p)
    return out.flip(-2)
