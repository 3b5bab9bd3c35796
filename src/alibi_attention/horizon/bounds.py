"""The two sides of the skipping test: what a run of key blocks can hold at most, and what a row may lose."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from alibi_attention.horizon.floor import mass_floor
from alibi_attention.horizon.summary import KeySummary, safe_norm, summarize_keys
from alibi_attention.horizon.tiles import BLOCK_K, BLOCK_Q, blocks_of
from alibi_attention.problem import Problem
from alibi_attention.visibility import Rows

# Query norms are rounded up to at most this many levels: one cumulative sum over blocks serves every row of a level.
_NORM_LEVELS = 16
# What the sums of the test themselves may round by.
_ROUNDING_NATS = 0.02
_DOT_ROUNDING = 2.0**-20
# Stands for "never skip" where an infinity would turn a cumulative sum into NaN.
_HUGE = 1e300


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

    def first_tile(self) -> Tensor:
        """(batch, num_heads, query blocks): the first key block needed, all before it being skippable."""
        return torch.searchsorted(self.mass, self.room, right=True).amin(-2)

    def excess(self, count: Tensor) -> Tensor:
        """Log of (bound on what ``count`` leading blocks hold) / (what may be lost); -inf for a count of 0."""
        last = (count - 1).clamp_min(0).to(torch.int64).unsqueeze(-2).expand_as(self.room)
        over = (self.mass.gather(-1, last) - self.room).amax(-2)
        return over.masked_fill(count <= 0, -torch.inf)


class Horizon(NamedTuple):
    """The bounds a plan is made from.

    Attributes:
        left: on keys before the queries.
        sink: the same without the block of the first key, to be kept apart; None in a packed call, where each sequence
            has a first key of its own.
        right: on keys after the queries, blocks in reverse; None in a causal call.
        sink_block: (batch,) the block ``sink`` leaves out.
    """

    left: Bounds
    sink: Bounds | None
    right: Bounds | None
    sink_block: Tensor


def horizon_bounds(
    problem: Problem,
    rows: Rows,
    query: Tensor,
    key: Tensor,
    value: Tensor | None,
    slopes: Tensor,
    lse_floor: Tensor | None = None,
    floor: Tensor | None = None,
    block: int = BLOCK_K,
) -> Horizon:
    """One pass over queries and keys, O(length).

    Args:
        problem, query, key, value, slopes: the call; without ``value`` it is taken to be finite.
        rows: its `row_ranges`.
        lse_floor: (batch, num_heads, q_len), a lower bound on each row's lse from elsewhere, such as another part of
            the keys; the dropped share is then of the mass over all parts.
        floor: of `mass_floor`, where the keys that it reads are not those of the call.
        block: keys in each block of a summary that the call brings.
    """
    summary = summarize_keys(problem, key, value)
    norm = safe_norm(query, problem.compute_dtype)
    falling = slopes.detach().double().expand(problem.batch, -1)
    if floor is None:
        floor = mass_floor(problem, rows, query, key, slopes, summary)
    if lse_floor is not None:
        floor = torch.maximum(floor, _about_center(problem, query, summary, norm, lse_floor))
    radius = summary.norms.amax(-1).repeat_interleave(problem.group_size, dim=1).clamp_max(_HUGE)
    floor = floor - (_DOT_ROUNDING * abs(problem.scale) * norm * radius.unsqueeze(-1) + _ROUNDING_NATS)
    levels, level = _norm_levels(norm)

    room = floor + side_budget(problem)
    steep = falling.unsqueeze(-1)
    if problem.learned_slopes:
        # The gradient of a slope weighs each key by its distance.
        room = room - torch.log1p(steep.clamp_min(0.0) * _greatest_distance(rows))
    room = torch.where((steep > 0) & room.isfinite() & norm.isfinite(), room, -_HUGE)
    blind = (rows.upper <= rows.lower).unsqueeze(1)
    position = rows.position.double().unsqueeze(1)

    def room_from(side: int) -> Tensor:
        lean = torch.where(room > -_HUGE, room + side * steep * position, room)
        return _tightest_row(lean.masked_fill(blind, torch.inf), level, levels.shape[-1])

    masses = _log_masses(problem, summary.norms, levels, falling, +1, block)
    sink = None
    if problem.is_packed:
        left = Bounds(torch.logcumsumexp(masses, dim=-1), room_from(+1))
    else:
        left, sink = _with_sink_apart(masses, summary.first_block, room_from(+1))
    right = None
    if not problem.is_causal:
        masses = _log_masses(problem, summary.norms, levels, falling, -1, block).flip(-1)
        right = Bounds(torch.logcumsumexp(masses, dim=-1), room_from(-1))
    return Horizon(left, sink, right, summary.first_block)


def _with_sink_apart(masses: Tensor, sink_block: Tensor, room: Tensor) -> tuple[Bounds, Bounds]:
    """The bounds with and without the sink's block, from one cumulative sum."""
    at = sink_block[:, None, None, None].expand(*masses.shape[:3], 1)
    spared = torch.logcumsumexp(masses.scatter(-1, at, -_HUGE), dim=-1)
    met = torch.arange(masses.shape[-1], device=masses.device) >= at
    whole = torch.where(met, torch.logaddexp(spared, masses.gather(-1, at)), spared)
    return Bounds(whole, room), Bounds(spared, room)


def _greatest_distance(rows: Rows) -> Tensor:
    """(1 or batch, 1, 1) float64: no row sees a key further away."""
    distance = torch.maximum(rows.position - rows.lower, rows.upper - 1 - rows.position)
    return torch.where(rows.upper > rows.lower, distance, 0).amax(-1).double()[:, None, None]


def _about_center(problem: Problem, query: Tensor, summary: KeySummary, norm: Tensor, lse: Tensor) -> Tensor:
    """lse less scale * q . center, and less what that product may be rounded by."""
    center = summary.center.double().repeat_interleave(problem.group_size, dim=1)
    shift = problem.scale * torch.einsum("bhqd,bhd->bhq", query.double(), center)
    rounding = _DOT_ROUNDING * abs(problem.scale) * norm * safe_norm(center, torch.float64).unsqueeze(-1)
    return lse.double() - shift - rounding


def side_budget(problem: Problem) -> float:
    """Log of the share of mass that each side may lose."""
    # Half of the least number there is would be 0.
    return math.log(problem.tolerance) - (0.0 if problem.is_causal else math.log(2))


def _norm_levels(norm: Tensor) -> tuple[Tensor, Tensor]:
    """Levels (batch, num_heads, levels) and, for each row, the lowest level at or above its norm."""
    count = min(_NORM_LEVELS, norm.shape[-1])
    usable = torch.where(norm.isfinite(), norm, 0.0)
    high = usable.amax(-1, keepdim=True)
    low = usable.amin(-1, keepdim=True) if count > 1 else high
    step = (high - low).clamp_min(1e-12 + 1e-9 * high) / max(1, count - 1)
    level = ((usable - low) / step).ceil().clamp(0, count - 1).to(torch.int64)
    # One part in 10^9 above, so that a row at its level is not above it by a rounding.
    return (low + step * torch.arange(count, device=norm.device)) * (1 + 1e-9), level


def _tightest_row(room: Tensor, level: Tensor, levels: int) -> Tensor:
    """The least room of any row, by norm level and query block; inf where a block has no row of that level."""
    blocks = blocks_of(room.shape[-1], BLOCK_Q)
    block = torch.arange(room.shape[-1], device=room.device) // BLOCK_Q
    least = room.new_full((*room.shape[:2], levels * blocks), torch.inf)
    least.scatter_reduce_(2, level * blocks + block, room, "amin")
    return least.view(*room.shape[:2], levels, blocks)


def _log_masses(problem: Problem, norms: Tensor, levels: Tensor, falling: Tensor, side: int, block: int) -> Tensor:
    """(batch, num_heads, levels, blocks): log of what each block can hold, with side * m * its nearest key added.

    ``side`` is +1 for queries after the keys, -1 for queries before them.
    """
    block_norm = norms.repeat_interleave(problem.group_size, dim=1).unsqueeze(2)
    steep = falling[:, :, None, None].clamp_min(1e-300)
    series = torch.log(torch.expm1(-steep * block) / torch.expm1(-steep))
    index = torch.arange(norms.shape[-1], device=norms.device, dtype=torch.float64)
    nearest = index * block + (block - 1 if side > 0 else 0)
    log_mass = abs(problem.scale) * levels.unsqueeze(-1) * block_norm + series + side * steep * nearest
    log_mass = torch.where(block_norm == -torch.inf, -_HUGE, log_mass)
    return torch.where(log_mass.isnan() | (block_norm == torch.inf), _HUGE, log_mass.clamp_max(_HUGE))
