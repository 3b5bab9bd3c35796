"""From the bounds to the tiles that a backend computes."""

from __future__ import annotations

import torch
from torch import Tensor

from alibi_attention.horizon.bounds import Horizon, horizon_bounds, side_budget
from alibi_attention.horizon.tiles import BLOCK_K, BLOCK_Q, visible_tiles
from alibi_attention.problem import Problem
from alibi_attention.visibility import row_ranges


def is_worthwhile(problem: Problem) -> bool:
    """Whether there is anything to skip that would repay reading the keys once."""
    few = problem.q_len < BLOCK_Q // 8 and problem.key_norms is None
    return problem.tolerance > 0.0 and problem.k_len > 4 * BLOCK_K and not few


def plan_tiles(problem: Problem, query: Tensor, key: Tensor, value: Tensor | None, slopes: Tensor) -> Tensor:
    """The tiles to compute: for each block of BLOCK_Q queries, a range of blocks of BLOCK_K keys.

    Args:
        problem: the call; ``tolerance`` is the share of softmax mass that skipped keys may hold.
        query, key, value, slopes: as in `reference_attention`. Without ``value`` it is taken to be finite.

    Returns:
        (batch, num_heads, query blocks, 3) int32: first tile, end tile, and one tile kept apart before the first (the
        attention sink) or -1.
    """
    rows = row_ranges(problem)
    seen = visible_tiles(problem, rows)
    if not is_worthwhile(problem):
        return seen
    return narrow(seen, horizon_bounds(problem, rows, query, key, value, slopes))


def narrow(seen: Tensor, horizon: Horizon) -> Tensor:
    """The visible tiles less those the horizon lets a backend skip; shapes as `plan_tiles` returns."""
    left, sink, right, sink_block = horizon
    first, end, _ = seen.unbind(-1)
    skipped = left.first_tile().to(torch.int32)
    apart = torch.full_like(first, -1)
    if sink is not None:
        sink_tile = sink_block.to(torch.int32)[:, None, None]
        skipped_past_sink = sink.first_tile().to(torch.int32)
        gains = skipped_past_sink > torch.maximum(skipped, sink_tile + 1)
        sink_seen = first <= sink_tile
        apart = torch.where(gains & sink_seen & (first < end), sink_tile, apart)
        skipped = torch.where(gains, skipped_past_sink, skipped)
    narrow_end = end
    if right is not None:
        narrow_end = torch.minimum(end, right.mass.shape[-1] - right.first_tile().to(torch.int32))
    # The tests never skip everything a row sees; rounding shall not either.
    narrow_first = torch.maximum(first, torch.minimum(skipped, narrow_end - 1))
    apart = torch.where(apart < narrow_first, apart, -1)
    return torch.stack([narrow_first, torch.maximum(narrow_end, narrow_first), apart], dim=-1)


def dropped_share(problem: Problem, horizon: Horizon, seen: Tensor, plan: Tensor) -> Tensor:
    """(batch, num_heads, query blocks) float64: bound on the share of mass any row loses to the tiles skipped."""
    left = horizon.left.excess(_skipped(plan[..., 0], seen[..., 0]))
    if horizon.sink is not None:
        past_sink = horizon.sink.excess(_skipped(plan[..., 0], seen[..., 0]))
        sink_kept = (plan[..., 2] >= 0) | (seen[..., 0] > horizon.sink_block[:, None, None])
        left = torch.where(sink_kept, past_sink, left)
    share = torch.exp(left + side_budget(problem))
    if horizon.right is not None:
        blocks = horizon.right.mass.shape[-1]
        skipped = _skipped(blocks - plan[..., 1], blocks - seen[..., 1])
        share = share + torch.exp(horizon.right.excess(skipped) + side_budget(problem))
    return share


def _skipped(count: Tensor, unseen: Tensor) -> Tensor:
    """Blocks left out, or 0 where they are only those no row sees."""
    return torch.where(count > unseen, count, 0)
