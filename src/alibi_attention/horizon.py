"""The certified horizon: which tiles of keys cannot change the result by more than rounding, known before they are read.

The bias falls linearly, so for a row at position p every key at distance >= n holds at most

    exp(a * |q| * K) * e^(-m n) / (1 - e^-m)                    a = scale, K = the largest key norm

of unnormalised mass. Tiles are skipped once such a bound, summed over all of them, is below ``tolerance`` times a lower
bound on the mass the row has. Three refinements make it tight: keys are taken about their mean (softmax ignores what
q . mean adds to a whole row), K is kept per block so that an old outlier fades with its distance, and the lower bound
is Jensen's inequality over the nearest 2/m keys. docs/maths.md has the theorem and its proof.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from alibi_attention.problem import Problem
from alibi_attention.visibility import Rows, mask_range, row_ranges

BLOCK_Q = 128
BLOCK_K = 64

# Query norms are rounded up to this many levels, so that one cumulative sum over blocks serves every row of a level.
_NORM_LEVELS = 16
# Norms are taken in working precision: inflate them past their rounding, and charge the sums of the test as well.
_NORM_INFLATION = 1.0 + 1e-3
_ROUNDING_NATS = 0.02
_DOT_ROUNDING = 2.0**-20
# Stands for "never skip" where an infinity would turn a cumulative sum into NaN.
_HUGE = 1e300
# Temporaries of the pre-pass stay near this many elements, whatever the batch.
_CHUNK_ELEMENTS = 1 << 21


class KeySummary(NamedTuple):
    """What the horizon knows of the keys without reading them again.

    Attributes:
        center: (batch, num_kv_heads, head_dim), the mean of each head's finite, unpadded keys.
        norms: (batch, num_kv_heads, blocks) float64, the largest |k - center| in each block of BLOCK_K keys, inflated
            past rounding; inf where a key or value is not finite, -inf where every key is padding.
        first_block: (batch,) the block of the first key that is not padding, where attention sinks live.
    """

    center: Tensor
    norms: Tensor
    first_block: Tensor


class Bounds(NamedTuple):
    """Both sides of the skipping test, for each block of queries; all float64.

    A prefix of key blocks 0..b may be skipped by a block of queries where, at every norm level g,
    ``mass[..., g, b] <= room[..., g]``. Both are logarithms with m * position added, so that the sum over blocks is one
    cumulative sum for all queries.

    Attributes:
        mass: (batch, num_heads, levels, key blocks), bound on what blocks 0..b hold together; never falls with b.
        room: (batch, num_heads, levels, query blocks), what the tightest row of that level may lose.
    """

    mass: Tensor
    room: Tensor

    def count(self) -> Tensor:
        """(batch, num_heads, query blocks): how many leading key blocks may be skipped."""
        return torch.searchsorted(self.mass, self.room, right=True).amin(-2)


def blocks_of(length: int, size: int) -> int:
    return -(-length // size)


def is_worthwhile(problem: Problem) -> bool:
    """Whether there is anything to skip that would repay reading the keys once."""
    return problem.tolerance > 0.0 and problem.k_len > 4 * BLOCK_K and problem.q_len >= BLOCK_Q // 8


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
    seen = _visible_tiles(problem, rows)
    if not is_worthwhile(problem):
        return seen
    return _narrow(seen, *horizon_bounds(problem, rows, query, key, value, slopes))


def _narrow(seen: Tensor, left: Bounds, sink: Bounds | None, right: Bounds | None, first_block: Tensor) -> Tensor:
    first, end, _ = seen.unbind(-1)
    skipped = left.count().to(torch.int32)
    apart = torch.full_like(first, -1)
    if sink is not None:
        sink_block = first_block.to(torch.int32)[:, None, None]
        skipped_past_sink = sink.count().to(torch.int32)
        gains = skipped_past_sink > torch.maximum(skipped, sink_block + 1)
        sink_seen = first <= sink_block
        apart = torch.where(gains & sink_seen & (first < end), sink_block, apart)
        skipped = torch.where(gains, skipped_past_sink, skipped)
    narrow_end = end
    if right is not None:
        narrow_end = torch.minimum(end, right.mass.shape[-1] - right.count().to(torch.int32))
    # The tests never skip everything a row sees; rounding shall not either.
    narrow_first = torch.maximum(first, torch.minimum(skipped, narrow_end - 1))
    apart = torch.where(apart < narrow_first, apart, -1)
    return torch.stack([narrow_first, torch.maximum(narrow_end, narrow_first), apart], dim=-1)


def _visible_tiles(problem: Problem, rows: Rows) -> Tensor:
    """The plan that skips only what no row of a block sees."""
    sees = rows.upper > rows.lower
    first = by_query_block(torch.where(sees, rows.lower, problem.k_len), problem.k_len).amin(-1) // BLOCK_K
    end = -(-by_query_block(torch.where(sees, rows.upper, 0), 0).amax(-1) // BLOCK_K)
    first = torch.minimum(first, end)
    tiles = torch.stack([first, end, torch.full_like(first, -1)], dim=-1).to(torch.int32)
    return tiles.unsqueeze(1).expand(problem.batch, problem.num_heads, -1, -1).contiguous()


def by_query_block(per_row: Tensor, fill: int) -> Tensor:
    """(..., q_len) to (..., query blocks, BLOCK_Q)."""
    length = per_row.shape[-1]
    padded = torch.nn.functional.pad(per_row, (0, blocks_of(length, BLOCK_Q) * BLOCK_Q - length), value=fill)
    return padded.unflatten(-1, (-1, BLOCK_Q))


def horizon_bounds(
    problem: Problem, rows: Rows, query: Tensor, key: Tensor, value: Tensor | None, slopes: Tensor
) -> tuple[Bounds, Bounds | None, Bounds | None, Tensor]:
    """The bounds to the left, to the left with the sink tile kept apart, and to the right, and the sink tile.

    The sink has no bound of its own in a packed call (each sequence has its own first key); the right has none in a
    causal call.
    """
    summary = summarize_keys(problem, key, value)
    norm = torch.linalg.vector_norm(query, dim=-1, dtype=problem.compute_dtype).double() * _NORM_INFLATION
    falling = slopes.detach().double().expand(problem.batch, -1)
    floor = _mass_floor(problem, rows, query, key, slopes, summary)
    radius = summary.norms.amax(-1).repeat_interleave(problem.group_size, dim=1).clamp_max(_HUGE)
    floor = floor - (_DOT_ROUNDING * abs(problem.scale) * norm * radius.unsqueeze(-1) + _ROUNDING_NATS)
    levels, level = _norm_levels(norm)

    sides = 1 if problem.is_causal else 2
    room = floor + math.log(problem.tolerance / sides)
    steep = falling.unsqueeze(-1)
    if problem.learned_slopes:
        # The gradient of a slope weighs each key by its distance.
        room = room - torch.log1p(steep * float(problem.k_len + problem.q_len))
    room = torch.where((steep > 0) & room.isfinite() & norm.isfinite(), room, -_HUGE)
    blind = (rows.upper <= rows.lower).unsqueeze(1)
    position = rows.position.double().unsqueeze(1)

    def bounds(side: int, norms: Tensor) -> Bounds:
        lean = torch.where(room > -_HUGE, room + side * steep * position, room)
        tightest = _tightest_row(lean.masked_fill(blind, torch.inf), level)
        return Bounds(_cumulative_mass(problem, norms, levels, falling, side), tightest)

    left = bounds(+1, summary.norms)
    sink = None
    if not problem.is_packed:
        spared = summary.norms.scatter(
            2, summary.first_block[:, None, None].expand(-1, problem.num_kv_heads, 1), -torch.inf
        )
        sink = Bounds(_cumulative_mass(problem, spared, levels, falling, +1), left.room)
    right = None if problem.is_causal else bounds(-1, summary.norms)
    return left, sink, right, summary.first_block


def summarize_keys(problem: Problem, key: Tensor, value: Tensor | None) -> KeySummary:
    """One pass over keys and values: their mean, and the norms about it by block."""
    device, work = problem.device, problem.compute_dtype
    valid = torch.ones(problem.batch, problem.k_len, dtype=torch.bool, device=device)
    first_block = torch.zeros(problem.batch, dtype=torch.int64, device=device)
    if problem.key_mask is not None:
        valid = problem.key_mask
        first_block = (mask_range(valid)[0] // BLOCK_K).to(torch.int64)
    center = key.new_empty(problem.batch, problem.num_kv_heads, problem.head_dim, dtype=work)
    norms = key.new_empty(problem.batch, problem.num_kv_heads, problem.k_len, dtype=torch.float64)
    for at in _head_chunks(problem):
        counted = valid[at[0], None, :, None]
        keys = key[at].to(work).masked_fill(~counted, 0.0)
        finite = keys.isfinite().all(-1, keepdim=True)
        kept = keys.masked_fill(~finite, 0.0)
        number = (counted & finite).sum(2).clamp_min(1)
        center[at] = kept.sum(2) / number
        length = torch.linalg.vector_norm(keys - center[at].unsqueeze(2), dim=-1).double()
        if value is not None:
            length = torch.where(value[at].isfinite().all(-1), length, torch.inf)
        norms[at] = torch.where(length.isnan(), torch.inf, length).masked_fill(~counted.squeeze(-1), -torch.inf)
    short = blocks_of(problem.k_len, BLOCK_K) * BLOCK_K - problem.k_len
    padded = torch.nn.functional.pad(norms, (0, short), value=-torch.inf)
    return KeySummary(center, padded.unflatten(-1, (-1, BLOCK_K)).amax(-1) * _NORM_INFLATION, first_block)


def _head_chunks(problem: Problem) -> Iterator[tuple[slice, slice]]:
    """Slices over batch and key heads whose keys fit the budget of the pre-pass."""
    each = max(problem.k_len, problem.q_len) * problem.head_dim
    heads = max(1, min(problem.num_kv_heads, _CHUNK_ELEMENTS // each))
    batches = max(1, _CHUNK_ELEMENTS // (each * heads)) if heads == problem.num_kv_heads else 1
    for b in range(0, problem.batch, batches):
        for h in range(0, problem.num_kv_heads, heads):
            yield slice(b, b + batches), slice(h, h + heads)


def _mass_floor(
    problem: Problem, rows: Rows, query: Tensor, key: Tensor, slopes: Tensor, summary: KeySummary
) -> Tensor:
    """A lower bound on each row's lse, less its own scale * q . center; (batch, num_heads, q_len) float64.

    Jensen: the log of a sum of W exponentials is at least ln W plus their mean exponent. Over the W keys nearest the
    row the mean score takes one difference of prefix sums of the keys; W = 1 (the nearest key alone) and W = 2/m,
    which is where ln W - m (W - 1) / 2 peaks, are both tried.
    """
    falling = slopes.detach().double().expand(problem.batch, -1)
    floor = torch.full((problem.batch, problem.num_heads, problem.q_len), -torch.inf, dtype=torch.float64)
    floor = floor.to(problem.device)
    widest = (2.0 / falling.clamp_min(1e-9)).round().clamp(1, problem.k_len).to(torch.int64)
    group = problem.group_size
    grouped_query = query.unflatten(1, (problem.num_kv_heads, group))
    for at in _head_chunks(problem):
        centered = key[at].double() - summary.center[at].double().unsqueeze(2)
        if problem.key_mask is not None:
            centered = centered.masked_fill(~problem.key_mask[at[0], None, :, None], 0.0)
        prefix = torch.nn.functional.pad(centered.cumsum(2), (0, 0, 1, 0))
        del centered
        for member in range(group):
            heads = slice(at[1].start * group + member, at[1].stop * group, group)
            queries = grouped_query[at[0], at[1], member].double() * problem.scale
            best = floor[at[0], heads]
            for width in (widest[at[0], heads], torch.ones_like(widest[at[0], heads])):
                for start, end in _nearest(problem, rows, at[0], width.unsqueeze(-1)):
                    bound = _jensen(queries, prefix, start, end, rows.position, at[0], falling[at[0], heads])
                    best = torch.fmax(best, bound)
            floor[at[0], heads] = best
    return floor


def _nearest(problem: Problem, rows: Rows, batches: slice, width: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """First and end of the ``width`` visible keys nearest each row on its left, then, if not causal, on its right."""
    position, lower, upper = (_rows_of(part, batches).unsqueeze(1) for part in rows)
    end = torch.minimum(upper, position + 1)
    yield torch.maximum(lower, end - width), end.expand(-1, width.shape[1], -1)
    if not problem.is_causal:
        start = torch.maximum(lower, position)
        yield start.expand(-1, width.shape[1], -1), torch.minimum(upper, start + width)


def _rows_of(part: Tensor, batches: slice) -> Tensor:
    return part if part.shape[0] == 1 else part[batches]


def _jensen(
    queries: Tensor,
    prefix: Tensor,
    start: Tensor,
    end: Tensor,
    position: Tensor,
    batches: slice,
    falling: Tensor,
) -> Tensor:
    number = end - start
    length = prefix.shape[2] - 1
    total = _rows_at(prefix, end.clamp(0, length)) - _rows_at(prefix, start.clamp(0, length))
    count = number.clamp_min(1).double()
    mean_score = torch.einsum("bhqd,bhqd->bhq", queries, total) / count
    middle = (start + end - 1).double() / 2
    mean_bias = falling.unsqueeze(-1) * (_rows_of(position, batches).unsqueeze(1).double() - middle).abs()
    return torch.where(number > 0, count.log() + mean_score - mean_bias, -torch.inf)


def _rows_at(table: Tensor, index: Tensor) -> Tensor:
    """table[b, h, index[b, h, q]] as one selection of whole rows, several times faster than advanced indexing."""
    batch, heads, length, dim = table.shape
    head = torch.arange(batch * heads, device=table.device).view(batch, heads, 1) * length
    flat = table.reshape(-1, dim).index_select(0, (head + index).flatten())
    return flat.view(batch, heads, -1, dim)


def _norm_levels(norm: Tensor) -> tuple[Tensor, Tensor]:
    """Levels (batch, num_heads, levels) and, for each row, the lowest level at or above its norm."""
    usable = torch.where(norm.isfinite(), norm, 0.0)
    low, high = usable.amin(-1, keepdim=True), usable.amax(-1, keepdim=True)
    step = (high - low).clamp_min(1e-12 + 1e-9 * high) / (_NORM_LEVELS - 1)
    level = ((usable - low) / step).ceil().clamp(0, _NORM_LEVELS - 1).to(torch.int64)
    # One part in 10^9 above, so that a row at its level is not above it by a rounding.
    return (low + step * torch.arange(_NORM_LEVELS, device=norm.device)) * (1 + 1e-9), level


def _tightest_row(room: Tensor, level: Tensor) -> Tensor:
    """The least room of any row, by norm level and query block; inf where a block has no row of that level."""
    blocks = blocks_of(room.shape[-1], BLOCK_Q)
    block = torch.arange(room.shape[-1], device=room.device) // BLOCK_Q
    least = room.new_full((*room.shape[:2], _NORM_LEVELS * blocks), torch.inf)
    least.scatter_reduce_(2, level * blocks + block, room, "amin")
    return least.unflatten(2, (_NORM_LEVELS, blocks))


def _cumulative_mass(problem: Problem, norms: Tensor, levels: Tensor, falling: Tensor, side: int) -> Tensor:
    """`Bounds.mass` seen from the right of the keys (side +1), or from their left with the blocks reversed (-1)."""
    block_norm = norms.repeat_interleave(problem.group_size, dim=1).unsqueeze(2)
    steep = falling[:, :, None, None].clamp_min(1e-300)
    series = torch.log(torch.expm1(-steep * BLOCK_K) / torch.expm1(-steep))
    index = torch.arange(norms.shape[-1], device=norms.device, dtype=torch.float64)
    nearest = index * BLOCK_K + (BLOCK_K - 1 if side > 0 else 0)
    log_mass = abs(problem.scale) * levels.unsqueeze(-1) * block_norm + series + side * steep * nearest
    log_mass = torch.where(block_norm == -torch.inf, -_HUGE, log_mass)
    log_mass = torch.where(log_mass.isnan() | (block_norm == torch.inf), _HUGE, log_mass.clamp_max(_HUGE))
    if side < 0:
        log_mass = log_mass.flip(-1)
    return torch.logcumsumexp(log_mass, dim=-1)
