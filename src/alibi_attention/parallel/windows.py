"""Which keys of other processes the queries of this one need, found from the norms of all keys alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from alibi_attention.horizon import BLOCK_K, blocks_of
from alibi_attention.horizon.bounds import horizon_bounds
from alibi_attention.horizon.floor import mass_floor
from alibi_attention.horizon.plan import narrow
from alibi_attention.horizon.summary import KeySummary, distances_from, token_chunks
from alibi_attention.horizon.tiles import visible_tiles
from alibi_attention.parallel.agreement import Shares
from alibi_attention.problem import Problem
from alibi_attention.visibility import row_ranges


class Need(NamedTuple):
    """The keys [first, end) that the queries of a process need of one key head, and whether the first tile besides."""

    first: int
    end: int
    sink: bool

    def ranges(self) -> list[tuple[int, int]]:
        whole = [(self.first, self.end)]
        return [(0, BLOCK_K), *whole] if self.sink else whole


@dataclass(frozen=True)
class ContextWindows:
    """What each process needs of a sequence that several share.

    Attributes:
        rank: of this process, in the order of the sequence.
        starts: (processes + 1) positions; rank r has those from starts[r] to starts[r + 1].
        needs: [rank][key head], the keys needed, from ``first`` to ``end``, and the first 64 besides where ``sink``.
        token_bytes: of one key and value, of one head, for the whole batch.
    """

    rank: int
    starts: tuple[int, ...]
    needs: tuple[tuple[Need, ...], ...]
    token_bytes: int

    def received(self, rank: int) -> int:
        """Bytes of keys and values that a process takes from the others in a forward pass."""
        first, end = self.starts[rank], self.starts[rank + 1]
        tokens = 0
        for need in self.needs[rank]:
            tokens += sum(b - a - max(0, min(b, end) - max(a, first)) for a, b in need.ranges())
        return tokens * self.token_bytes


def find_windows(
    problem: Problem, query: Tensor, key: Tensor, value: Tensor, slopes: Tensor, shares: Shares,
    group: dist.ProcessGroup,
) -> tuple[tuple[Need, ...], ...]:  # fmt: skip
    """The needs of every process, by key head: O(total length / 64) numbers are exchanged for it.

    Args:
        problem: the call of this process, of its own keys alone.
    """
    start, end = shares.span(shares.rank)
    whole = problem._replace(k_len=shares.total, query_offset=start)
    rows = row_ranges(whole)
    plan = visible_tiles(whole, rows)
    if problem.tolerance > 0.0:
        center = _common_mean(key, problem.compute_dtype, group)
        norms = _norms_of_all(key, value, center, shares, group)
        first_block = torch.zeros(problem.batch, dtype=torch.int64, device=problem.device)
        # What a row holds at least, by the keys that are here.
        own = problem._replace(query_offset=0)
        floor = mass_floor(own, row_ranges(own), query, key, slopes, KeySummary(center, norms, first_block))
        whole = whole._replace(key_center=center, key_norms=norms)
        plan = narrow(plan, horizon_bounds(whole, rows, query, key, None, slopes, floor=floor))
    by_key_head = plan.unflatten(1, (problem.num_kv_heads, -1))
    first = by_key_head[..., 0].amin((0, 2, 3)) * BLOCK_K
    last = (by_key_head[..., 1].amax((0, 2, 3)) * BLOCK_K).clamp(
        min=end, max=end if problem.is_causal else shares.total
    )
    sink = (by_key_head[..., 2] >= 0).any(-1).any(2).any(0)
    mine = torch.stack([first.clamp(max=start), last, sink.to(first.dtype)], 1).to(torch.int64).contiguous()
    table = [torch.empty_like(mine) for _ in range(len(shares.starts) - 1)]
    dist.all_gather(table, mine, group=group)
    return tuple(
        tuple(_rounded(Need(need[0], need[1], bool(need[2])), *shares.span(rank), shares.total) for need in heads)
        for rank, heads in enumerate(torch.stack(table).tolist())
    )


def _rounded(need: Need, start: int, end: int, total: int) -> Need:
    """Lengths beyond the process's own part as powers of two tiles: heads that need about the same go together."""
    first = max(0, start - _power_of_two(start - need.first))
    last = min(total, end + _power_of_two(need.end - end))
    if need.sink and first <= BLOCK_K:
        return Need(0, last, False)
    return Need(first, last, need.sink)


def _power_of_two(tokens: int) -> int:
    return 0 if tokens <= 0 else BLOCK_K << (blocks_of(tokens, BLOCK_K) - 1).bit_length()


def _common_mean(key: Tensor, work: torch.dtype, group: dist.ProcessGroup) -> Tensor:
    """(batch, num_kv_heads, head_dim): the mean of all finite keys, the same bits in every process."""
    total = key.new_zeros(*key.shape[:2], key.shape[3] + 1, dtype=torch.float64)
    for at in token_chunks(key):
        part = key[:, :, at].double()
        finite = part.isfinite().all(-1, keepdim=True)
        total[..., :-1] += part.masked_fill(~finite, 0.0).sum(2)
        total[..., -1:] += finite.sum(2)
    dist.all_reduce(total, group=group)
    return (total[..., :-1] / total[..., -1:].clamp_min(1.0)).to(work)


def _norms_of_all(
    key: Tensor, value: Tensor, center: Tensor, shares: Shares, group: dist.ProcessGroup
) -> Tensor:  # fmt: skip
    """(batch, num_kv_heads, blocks of all keys) float64: the largest |k - center| of each, as in a `KeySummary`."""
    blocks = [(a // BLOCK_K, blocks_of(b, BLOCK_K)) for a, b in map(shares.span, range(len(shares.starts) - 1))]
    longest = max(b - a for a, b in blocks)
    start, end = shares.span(shares.rank)
    first, last = blocks[shares.rank]
    lengths = distances_from(center, key, value)
    padded = torch.nn.functional.pad(lengths, (start - first * BLOCK_K, last * BLOCK_K - end), value=-torch.inf)
    mine = torch.nn.functional.pad(padded.unflatten(-1, (-1, BLOCK_K)).amax(-1), (0, longest - (last - first)))
    table = [torch.empty_like(mine) for _ in blocks]
    dist.all_gather(table, mine.contiguous(), group=group)
    norms = mine.new_full((*key.shape[:2], blocks_of(shares.total, BLOCK_K)), -torch.inf)
    for (a, b), part in zip(blocks, table, strict=True):
        # A block may lie in two parts.
        norms[..., a:b] = torch.maximum(norms[..., a:b], part[..., : b - a])
    return norms
