"""The kernels of the horizon, started: which calls have one, and what it leaves for the sweeps."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from alibi_attention.backends.triton import arguments, configs, packing
from alibi_attention.backends.triton.horizon import plan_kernel, summary_kernel
from alibi_attention.backends.triton.ranges import envelope_kernel, ranges_kernel
from alibi_attention.backends.triton.start import common, start
from alibi_attention.horizon import BLOCK_K, BLOCK_Q, blocks_of, is_worthwhile
from alibi_attention.problem import Problem

# Below this many keys the pre-pass, three short kernels, costs about what the tiles it saves would: at 2048 the dense
# sweep of 32 heads is some tens of microseconds.
LEAST_KEYS = 2048


class Plan(NamedTuple):
    """Views of the int32 tensor that forward leaves to backward; all None where every visible tile is computed.

    Attributes:
        tiles: (pairs, blocks of up to 128 queries, 3): first tile of 64 keys, end, and one tile kept apart or -1.
        order: the pairs of (batch, head), flattest first.
        key_order: the pairs of (batch, key head), flattest first.
    """

    tiles: Tensor | None
    order: Tensor | None
    key_order: Tensor | None


def plan_shape(problem: Problem) -> tuple[int, ...]:
    heads = 3 * packing.most_blocks(problem) * problem.num_heads + problem.num_heads + problem.num_kv_heads
    return (problem.batch * heads,)


def has_horizon(problem: Problem) -> bool:
    return problem.k_len >= LEAST_KEYS and is_worthwhile(problem)


def view(problem: Problem, flat: Tensor) -> Plan:
    """The parts of a plan, or nothing where the problem has no horizon."""
    if not has_horizon(problem):
        return Plan(None, None, None)
    pairs, shared = problem.batch * problem.num_heads, problem.batch * problem.num_kv_heads
    tiles = pairs * 3 * packing.most_blocks(problem)
    return Plan(*flat.split([tiles, pairs, shared]))


def make(
    problem: Problem, query: Tensor, key: Tensor, value: Tensor, slopes: Tensor, seen: dict[str, Any], flat: Tensor
) -> Plan:
    """Fills ``flat`` with the plan of the call."""
    plan = view(problem, flat)
    if plan.tiles is None:
        return plan
    shared, tiles = problem.batch * problem.num_kv_heads, blocks_of(problem.k_len, BLOCK_K)
    given = {**common(problem, slopes), **seen, **arguments.strides(query=query, key=key, value=value)}
    largest = None
    if problem.key_norms is not None and problem.key_center is not None:
        # A cache's own, float64; one block of queries looks for their maximum itself.
        radius, center = problem.key_norms, problem.key_center.to(torch.float32).contiguous()
        if problem.q_len > BLOCK_Q:
            largest = radius.amax(-1)
    else:
        center = key.new_empty(problem.batch, problem.num_kv_heads, problem.head_dim, dtype=torch.float32)
        radius = key.new_empty(problem.batch, problem.num_kv_heads, tiles, dtype=torch.float32)
        summary = {
            **given, "key": key, "value": value, "center": center, "radius": radius, "tiles": tiles,
            "kv_heads": problem.num_kv_heads,
        }  # fmt: skip
        config = configs.config_for("summary", *configs.kind(problem))
        grid = (shared * blocks_of(tiles, config.constants["tiles_at_once"]),)
        start(summary_kernel, problem, grid, config, summary)
        largest = radius.amax(-1)
    given |= {
        "query": query, "key": key, "center": center, "radius": radius, "largest": largest, "plan": plan.tiles,
        "order": plan.order, "key_order": plan.key_order, "tiles": tiles,
        "pairs": problem.batch * problem.num_heads, **_radius_strides(radius),
        "scale": problem.scale, "budget": math.log(problem.tolerance) - (math.log(2) if given["two_sided"] else 0.0),
        "learned": problem.learned_slopes, "with_sink": not problem.is_packed,
    }  # fmt: skip
    config = configs.config_for("plan" if problem.q_len > 16 else "plan_few", *configs.kind(problem))
    grid = (problem.batch * problem.num_heads * packing.most_blocks(problem),)
    start(plan_kernel, problem, grid, config, given)
    return plan


def _radius_strides(radius: Tensor) -> dict[str, int]:
    return dict(zip(("radius_batch", "radius_head", "radius_step"), radius.stride(), strict=True))


def ranges(problem: Problem, plan: Plan, seen: dict[str, Any], block_n: int) -> Tensor | None:
    """(pairs, blocks of ``block_n`` keys, 2): first and end of the rows, in whole blocks, that need a block of keys."""
    if plan.tiles is None:
        return None
    pairs, entries = problem.batch * problem.num_heads, packing.most_blocks(problem)
    key_blocks = blocks_of(problem.k_len, block_n)
    late, early = (plan.tiles.new_empty(pairs, entries) for _ in range(2))
    sink_rows = plan.tiles.new_empty(pairs, 2)
    found = plan.tiles.new_empty(pairs, key_blocks, 2)
    given = {
        **seen, "plan": plan.tiles, "late": late, "early": early, "sink_rows": sink_rows, "ranges": found,
        "key_blocks": key_blocks, "steps": entries.bit_length(), "num_heads": problem.num_heads,
        "with_sink": not problem.is_packed, "block_n": block_n,
    }  # fmt: skip
    config = configs.Config({}, 4, 1)
    start(envelope_kernel, problem, (pairs,), config, given)
    start(ranges_kernel, problem, (pairs * blocks_of(key_blocks, 128),), config, given)
    return found
