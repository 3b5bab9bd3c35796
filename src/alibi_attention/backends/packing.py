"""Which rows of packed sequences the cpu kernels may take together in a block."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from alibi_attention.backends.native import BLOCK_Q
from alibi_attention.horizon.tiles import BLOCK_K
from alibi_attention.problem import Problem


class Groups(NamedTuple):
    """Rows that no block mixes with others; int64 on the CPU.

    Attributes:
        rows: (groups + 1,), the first row of each, and q_len.
        blocks: (groups,), the number of the first block of each.
    """

    rows: Tensor
    blocks: Tensor


def groups_of(problem: Problem) -> Groups | None:
    """The groups of a packed problem, None for another.

    Sequences of which several have their keys in a tile share blocks, so that lanes are full. Others have blocks of
    their own: a block sweeps all that lies between what its rows see, and stops only where every one of them may.
    """
    if problem.cu_seqlens is None:
        return None
    q_ends = problem.cu_seqlens.to(torch.int64)
    k_ends = q_ends if problem.cu_seqlens_k is None else problem.cu_seqlens_k.to(torch.int64)
    has_rows = q_ends.diff() > 0
    queries, keys = q_ends.diff()[has_rows], k_ends.diff()[has_rows]
    first_key, end_key = k_ends[:-1][has_rows], k_ends[1:][has_rows]
    # Where keys are many for their queries, a block of several sequences has more tiles than each has rows of its own.
    share = (keys <= BLOCK_K) & (keys <= 2 * queries)
    joins = share[1:] & share[:-1] & (first_key[1:] == end_key[:-1])
    begins = torch.cat([joins.new_ones(1), ~joins])
    rows = torch.cat([q_ends[:-1][has_rows][begins], q_ends[-1:]])
    counts = (rows.diff() + BLOCK_Q - 1) // BLOCK_Q
    return Groups(rows, counts.cumsum(0) - counts)


def most_blocks(problem: Problem) -> int:
    """How many blocks of queries a call can have, known from shapes alone: a group adds one at most."""
    blocks = -(-problem.q_len // BLOCK_Q)
    return blocks if problem.cu_seqlens is None else blocks + problem.cu_seqlens.shape[0] - 2
