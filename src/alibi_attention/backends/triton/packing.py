"""Which rows of packed sequences make a block: found on the device, in as many blocks as shapes alone allow for."""

from __future__ import annotations

import torch
from torch import Tensor

from alibi_attention.horizon import BLOCK_K, BLOCK_Q, blocks_of
from alibi_attention.problem import Problem


def most_blocks(problem: Problem) -> int:
    """Blocks of 128 rows that a call has at most: a sequence adds one, and some of those may turn out empty."""
    blocks = blocks_of(problem.q_len, BLOCK_Q)
    return blocks if problem.cu_seqlens is None else blocks + problem.cu_seqlens.shape[0] - 2


def programs_over_rows(problem: Problem, block: int) -> int:
    """Programs that a pair of (batch, head) needs where each takes ``block`` rows, which divides 128."""
    if problem.cu_seqlens is None:
        return blocks_of(problem.q_len, block)
    return most_blocks(problem) * (BLOCK_Q // block)


def row_blocks(problem: Problem) -> Tensor | None:
    """(`most_blocks`, 2) int32, first and end row of each block of a packed call; None for another call.

    A block sweeps all keys between the first and the last that its rows see, and can leave out only what none of them
    needs. So sequences have blocks of their own, but for neighbours whose keys all fit in a tile or two.
    """
    if problem.cu_seqlens is None:
        return None
    q_ends = problem.cu_seqlens.to(torch.int64)
    k_ends = q_ends if problem.cu_seqlens_k is None else problem.cu_seqlens_k.to(torch.int64)
    queries, keys = q_ends.diff(), k_ends.diff()
    # One without queries shares only if it has no keys either: there would be keys in between that nobody sees.
    shares = (keys <= BLOCK_K) & (keys <= 2 * queries)
    begins = torch.cat([shares.new_ones(1), ~(shares[1:] & shares[:-1])])
    first = q_ends[:-1]
    after = torch.cat([torch.where(begins, first, problem.q_len)[1:], q_ends[-1:]])
    end = after.flip(0).cummin(0).values.flip(0)
    counts = torch.where(begins, (end - first + BLOCK_Q - 1) // BLOCK_Q, 0)
    until = counts.cumsum(0)
    number = torch.arange(most_blocks(problem), device=problem.device)
    group = torch.searchsorted(until, number, right=True).clamp_max(counts.shape[0] - 1)
    start = first[group] + (number - until[group] + counts[group]) * BLOCK_Q
    found = torch.stack([start, torch.minimum(start + BLOCK_Q, end[group])], dim=1)
    # Behind the last there are no rows. Nobody has looked at the values: kernels write to no rows but the call's.
    found = torch.where((number < until[-1])[:, None], found, problem.q_len)
    return found.clamp(0, problem.q_len).to(torch.int32)
