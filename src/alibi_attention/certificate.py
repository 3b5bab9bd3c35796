"""What would be skipped, and the proof that it does not matter."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from alibi_attention.call import call_arguments, problem_of
from alibi_attention.horizon.bounds import horizon_bounds
from alibi_attention.horizon.plan import dropped_share, narrow
from alibi_attention.horizon.tiles import BLOCK_K, BLOCK_Q, visible_tiles
from alibi_attention.problem import Problem
from alibi_attention.visibility import row_ranges


@dataclass(frozen=True)
class Certificate:
    """Which keys each block of queries needs, and a sound bound on the softmax mass of the others.

    The statement: with a row's softmax taken over all the keys it sees, the keys outside its window hold a share of at
    most ``dropped_share`` of the mass, and that is at most ``tolerance``. The output then moves by at most
    dropped_share times the diameter of the values, the lse by at most dropped_share / (1 - dropped_share). It is a
    statement about one layer's attention on these inputs, not about the error of a model, and not about the gradients
    of keys and values.

    Attributes:
        tolerance: the share that was allowed.
        block_q: queries in a block.
        block_k: keys in a tile.
        first_key, end_key: (batch, num_heads, blocks) int64, the keys [first, end) a block of queries needs; equal
            where it sees none.
        sink_keys: (batch, num_heads, blocks) bool, whether the tile of the first key is needed apart from those.
        kept_share: (num_heads,) float64, tiles needed over tiles visible.
        dropped_share: (batch, num_heads, blocks) float64, bound on the share of mass any row of the block loses; for
            slopes that require a gradient, on the share weighted by 1 + m * distance, which that gradient loses.
    """

    tolerance: float
    block_q: int
    block_k: int
    first_key: Tensor
    end_key: Tensor
    sink_keys: Tensor
    kept_share: Tensor
    dropped_share: Tensor

    @property
    def window(self) -> Tensor:
        """(batch, num_heads, blocks) int64: keys each block of queries needs."""
        return self.end_key - self.first_key + self.block_k * self.sink_keys

    def __str__(self) -> str:
        heads = range(len(self.kept_share))
        lines = [
            f"tolerance {self.tolerance:.3g}, share of mass dropped at most {self.dropped_share.max().item():.3g}",
            f"{'head':>4}  {'mean window':>11}  {'kept':>6}",
        ]
        windows = self.window.double().mean((0, 2))
        lines += [f"{h:>4}  {windows[h].item():>11.0f}  {self.kept_share[h].item():>6.1%}" for h in heads]
        return "\n".join([*lines, f" all  {windows.mean().item():>11.0f}  {self.kept_share.mean().item():>6.1%}"])


def certify(
    query: Tensor,
    key: Tensor,
    slopes: Tensor | None = None,
    *,
    value: Tensor | None = None,
    is_causal: bool = True,
    scale: float | None = None,
    query_offset: int | Tensor | None = None,
    key_mask: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    cu_seqlens_k: Tensor | None = None,
    window: tuple[int | None, int | None] | None = None,
    tolerance: float | None = None,
    lse_floor: Tensor | None = None,
) -> Certificate:
    """The horizon of a call: what `alibi_attention` may skip on these inputs, and the bound that allows it.

    ::

        Z_dropped / Z <= exp(scale * |q_i| * r - m * n - ln(1 - exp(-m)) - l_i) <= tolerance

    Z sums exp(score_ij) over the keys that row i sees. The dropped ones lie n tokens away or farther, and within r of
    the head's mean key c; l_i is a lower bound on ln Z - scale * q_i . c. The bound is taken as a sum over tiles, each
    with an r of its own, so that old outliers fade. For slopes m <= 0 nothing is dropped.

    The windows are those of the pre-pass, on tiles of 128 queries by 64 keys; a fused backend that tests against the
    running lse instead skips a little more under the same tolerance. Where a pre-pass would not repay itself every tile
    is computed whatever is reported here: with up to 256 keys, with fewer than 16 queries but for those of a `KVCache`,
    whose summary takes the place of the pre-pass, and on the backend "triton" with fewer than 2,048 keys. The backend
    "reference" always computes every tile.

    Args:
        query, key, slopes, is_causal, scale, query_offset, key_mask, cu_seqlens, cu_seqlens_k, window, tolerance: as in
            `alibi_attention`.
        value: the values, if blocks of them that are not finite shall be kept as they are in attention; taken to be
            finite by default.
        lse_floor: (batch, num_heads, q_len), a lower bound on each query's lse over keys that are not in this call,
            such as another shard's lse: what counts is then the share of the mass over all of them.

    Returns:
        A `Certificate`; printing it gives a table by head.

    Raises:
        ValueError: as `alibi_attention`, and for an lse_floor of another shape.

    Source: docs/maths.md, section 7; its section 11 names what came before.
    """
    arguments = call_arguments(
        query, key, key if value is None else value, slopes, is_causal=is_causal, scale=scale,
        query_offset=query_offset, key_mask=key_mask, cu_seqlens=cu_seqlens, cu_seqlens_k=cu_seqlens_k, window=window,
        dropout_p=0.0, tolerance=tolerance, backend=None,
    )  # fmt: skip
    query, key, value_or_key, slopes, *call = arguments
    problem, _ = problem_of(query, key, value_or_key, *call)
    if lse_floor is not None and lse_floor.shape != query.shape[:3]:
        raise ValueError(
            f"lse_floor: expected shape {tuple(query.shape[:3])}, one for each query, got {tuple(lse_floor.shape)}"
        )
    with torch.no_grad():
        plan, share, seen = _plan(problem, query, key, value, slopes, lse_floor)
    apart = plan[..., 2] >= 0
    tiles = (plan[..., 1] - plan[..., 0] + apart).sum((0, 2))
    first, end = (plan[..., edge].to(torch.int64) * BLOCK_K for edge in (0, 1))
    return Certificate(
        tolerance=problem.tolerance,
        block_q=BLOCK_Q,
        block_k=BLOCK_K,
        first_key=first.clamp_max(problem.k_len),
        end_key=end.clamp_max(problem.k_len),
        sink_keys=apart,
        kept_share=tiles.double() / (seen[..., 1] - seen[..., 0]).sum((0, 2)).clamp_min(1),
        dropped_share=share,
    )


def _plan(
    problem: Problem, query: Tensor, key: Tensor, value: Tensor | None, slopes: Tensor, lse_floor: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Tiles needed, the share of mass the others may hold, and tiles visible."""
    rows = row_ranges(problem)
    seen = visible_tiles(problem, rows)
    if problem.tolerance == 0.0:
        return seen, seen.new_zeros(seen.shape[:3], dtype=torch.float64), seen
    horizon = horizon_bounds(problem, rows, query, key, value, slopes, lse_floor)
    plan = narrow(seen, horizon)
    return plan, dropped_share(problem, horizon, seen, plan), seen
