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

MOST_NORMS = 4096


class Need(NamedTuple):
    """The keys [first, end) that the queries of a process need of one key head, and so many of the first besides."""

    first: int
    end: int
    sink: int = 0

    def ranges(self) -> list[tuple[int, int]]:
        whole = [(self.first, self.end)]
        return [(0, self.sink), *whole] if self.sink else whole


@dataclass(frozen=True)
class ContextWindows:
    """What each process needs of a sequence that several share.

    Attributes:
        rank: of this process, in the order of the sequence.
        starts: (processes + 1) positions; rank r has those from starts[r] to starts[r + 1].
        needs: [rank][key head], the keys needed, from ``first`` to ``end``, and the first ``sink`` of all besides.
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


def block_of(total: int) -> int:
    """Keys that one norm stands for: `BLOCK_K`, and more of a sequence so long that its norms would be many.

    What is done with norms takes a number for each, head and level of queries, however few these are.
    """
    return max(BLOCK_K, 1 << (blocks_of(total, MOST_NORMS) - 1).bit_length())


def find_windows(
    problem: Problem, query: Tensor, key: Tensor, value: Tensor, slopes: Tensor, shares: Shares,
    group: dist.ProcessGroup,
) -> tuple[tuple[Need, ...], ...]:  # fmt: skip
    """The needs of every process, by key head: a number for every `block_of` keys is exchanged for it.

    Args:
        problem: the call of this process, of its own keys alone.
    """
    start, end = shares.span(shares.rank)
    block = block_of(shares.total)
    whole = problem._replace(k_len=shares.total, query_offset=start)
    rows = row_ranges(whole)
    plan = visible_tiles(whole, rows, block)
    if problem.tolerance > 0.0:
        center = _common_mean(key, problem.compute_dtype, group)
        norms = _norms_of_all(key, value, center, block, shares, group)
        first_block = torch.zeros(problem.batch, dtype=torch.int64, device=problem.device)
        # What a row holds at least, by the keys that are here.
        own = problem._replace(query_offset=0)
        floor = mass_floor(own, row_ranges(own), query, key, slopes, KeySummary(center, norms, first_block))
        whole = whole._replace(key_center=center, key_norms=norms)
        plan = narrow(plan, horizon_bounds(whole, rows, query, key, None, slopes, floor=floor, block=block))
    by_key_head = plan.unflatten(1, (problem.num_kv_heads, -1))
    first = by_key_head[..., 0].amin((0, 2, 3)) * block
    last = (by_key_head[..., 1].amax((0, 2, 3)) * block).clamp(min=end, max=end if problem.is_causal else shares.total)
    sink = (by_key_head[..., 2] >= 0).any(-1).any(2).any(0) * block
    mine = torch.stack([first.clamp(max=start), last, sink], 1).to(torch.int64).contiguous()
    table = [torch.empty_like(mine) for _ in range(len(shares.starts) - 1)]
    dist.all_gather(table, mine, group=group)
    return tuple(
        tuple(_rounded(Need(*need), *shares.span(rank), shares.total) for need in heads)
        for rank, heads in enumerate(torch.stack(table).tolist())
    )


def _rounded(need: Need, start: int, end: int, total: int) -> Need:
    """Lengths beyond the process's own part as powers of two tiles: heads that need about the same go together."""
    first = max(0, start - _power_of_two(start - need.first))
    last = min(total, end + _power_of_two(need.end - end))
    if need.sink and first <= need.sink:
        return Need(0, last)
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
    key: Tensor, value: Tensor, center: Tensor, block: int, shares: Shares, group: dist.ProcessGroup
) -> Tensor:  # fmt: skip
    """(batch, num_kv_heads, blocks of all keys) float64: the largest |k - center| of each, as in a `KeySummary`."""
    blocks = [(a // block, blocks_of(b, block)) for a, b in map(shares.span, range(len(shares.starts) - 1))]
    longest = max(b - a for a, b in blocks)
    start, end = shares.span(shares.rank)
    first, last = blocks[shares.rank]
    lengths = distances_from(center, key, value)
    padded = torch.nn.functional.pad(lengths, (start - first * block, last * block - end), value=-torch.inf)
    mine = torch.nn.functional.pad(padded.unflatten(-1, (-1, block)).amax(-1), (0, longest - (last - first)))
    table = [torch.empty_like(mine) for _ in blocks]
    dist.all_gather(table, mine.contiguous(), group=group)
    norms = mine.new_full((*key.shape[:2], blocks_of(shares.total, block)), -torch.inf)
    for (a, b), part in zip(blocks, table, strict=True):
        # A block may lie in two parts.
        norms[..., a:b] = torch.maximum(norms[..., a:b], part[..., : b - a])
    return norms
