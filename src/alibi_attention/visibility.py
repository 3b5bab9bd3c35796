"""Where each query stands and which keys it sees.

Causality, offsets, padding, windows and packing all leave a query one contiguous range of keys, so every backend works
from the same three numbers a row: its position among the keys, and the first and the end of what it sees.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from alibi_attention.problem import UNBOUNDED, Problem


class Rows(NamedTuple):
    """Integer tensors (1 or batch, q_len): a query at ``position`` sees the keys j with lower <= j < upper."""

    position: Tensor
    lower: Tensor
    upper: Tensor


def row_ranges(problem: Problem) -> Rows:
    """Position and visible key range of every query; ``upper == lower`` for one that sees nothing."""
    device = problem.device
    index = torch.arange(problem.q_len, device=device)
    if problem.is_packed:
        position, lower, upper = _packed(problem, index)
    else:
        offset = problem.query_offset
        shift = offset.to(torch.int64).unsqueeze(1) if isinstance(offset, torch.Tensor) else offset
        position = (index.unsqueeze(0) + shift).expand(-1, problem.q_len)
        lower = torch.zeros_like(position)
        upper = torch.full_like(position, problem.k_len)
    if problem.key_mask is not None:
        start, end = mask_range(problem.key_mask)
        lower = torch.maximum(lower, start.unsqueeze(1))
        upper = torch.minimum(upper, end.unsqueeze(1))
    left, right = problem.window
    if problem.is_causal:
        right = 0
    if left != UNBOUNDED:
        lower = torch.maximum(lower, position - left)
    if right != UNBOUNDED:
        upper = torch.minimum(upper, position + right + 1)
    position, lower, upper = torch.broadcast_tensors(position, lower, upper)
    return Rows(position, lower, torch.maximum(lower, upper))


def _packed(problem: Problem, index: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Each sequence is aligned at its own end, as separate calls would align it."""
    assert problem.cu_seqlens is not None
    q_ends = problem.cu_seqlens.to(torch.int64)
    k_ends = q_ends if problem.cu_seqlens_k is None else problem.cu_seqlens_k.to(torch.int64)
    sequence = torch.searchsorted(q_ends[1:], index, right=True).clamp_max(q_ends.shape[0] - 2)
    # Queries outside of all sequences, of which a GPU is not told that there are none, see nothing.
    upper = torch.where(index < q_ends[0], k_ends[0], k_ends[sequence + 1])
    lower = torch.where(index < q_ends[-1], torch.minimum(k_ends[sequence], upper), upper)
    # The last query of a sequence stands at its last key: i - q_end + k_end.
    position = index - q_ends[sequence + 1] + upper
    return position.unsqueeze(0), lower.unsqueeze(0), upper.unsqueeze(0)


def mask_range(key_mask: Tensor) -> tuple[Tensor, Tensor]:
    """First and end, each (batch,), of the contiguous True keys of each row; (0, 0) for a row of False."""
    first = key_mask.to(torch.int8).argmax(1)
    return first, first + key_mask.sum(1)


def visible(rows: Rows, keys: Tensor) -> Tensor:
    """(1 or batch, q_len, k_len) bool over the key indices ``keys`` of shape (k_len,)."""
    return (keys >= rows.lower.unsqueeze(-1)) & (keys < rows.upper.unsqueeze(-1))


def distances(rows: Rows, keys: Tensor, dtype: torch.dtype) -> Tensor:
    """|position - j|, (1 or batch, q_len, k_len): formed from integers, so exact at any length."""
    return (rows.position.unsqueeze(-1) - keys).abs().to(dtype)
