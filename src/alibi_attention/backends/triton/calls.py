"""Which kernels a call starts, with which arguments. Nothing here waits for the device."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from alibi_attention.backends.base import Gradients
from alibi_attention.backends.triton import arguments, configs, packing, plans, tune
from alibi_attention.backends.triton import device as devices
from alibi_attention.backends.triton.backward import query_kernel, rows_kernel
from alibi_attention.backends.triton.backward_keys import key_kernel
from alibi_attention.backends.triton.decode import merge_kernel, split_kernel
from alibi_attention.backends.triton.forward import forward_kernel
from alibi_attention.backends.triton.mend import mend_forward_kernel, mend_query_kernel
from alibi_attention.backends.triton.mend_keys import mend_key_kernel
from alibi_attention.backends.triton.start import common, start
from alibi_attention.horizon import BLOCK_K, blocks_of
from alibi_attention.problem import Problem, Saved

# Rows that one program of a decoding step may hold: the queries of the heads that share a key.
MOST_ROWS = 64
# Queries a head that always count as few, and those that do where there are fewer heads than processors.
FEW, STILL_FEW = 16, 64
LEAST_DECODED = 512
MOST_SPLITS = 64

plan_shape = plans.plan_shape


def forward(
    problem: Problem, query: Tensor, key: Tensor, value: Tensor, slopes: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    query, key, value = (arguments.contiguous_rows(t) for t in (query, key, value))
    rows = (problem.batch, problem.num_heads, problem.q_len)
    out = query.new_empty(*rows, problem.value_dim)
    lse = query.new_empty(rows, dtype=torch.float32)
    plan = query.new_empty(plan_shape(problem), dtype=torch.int32)
    seen = arguments.visibility(problem)
    made = plans.make(problem, query, key, value, slopes, seen, plan)
    given = {
        **common(problem, slopes), **seen, **arguments.strides(query=query, key=key, value=value),
        "query": query, "key": key, "value": value, "out": out, "lse": lse, "plan": made.tiles, "order": made.order,
        "bias": True, "spoilt": torch.empty_like(lse, dtype=torch.int32),
    }  # fmt: skip
    decoding = is_decoding(problem)
    if decoding:
        _decode(problem, given, made.key_order)
    else:
        config = tune.pick("forward", problem, lambda trial: _over_queries(forward_kernel, problem, trial, given))
        _over_queries(forward_kernel, problem, config, given)
    if not (decoding and problem.q_len == 1):
        # With one query a head, what is not seen has not been read.
        _mend_rows(mend_forward_kernel, problem, given)
    return out, lse, plan


def is_decoding(problem: Problem) -> bool:
    """Whether the keys are split among programs, a few rows having too little work to go around."""
    few = problem.q_len <= FEW
    if FEW < problem.q_len <= STILL_FEW:
        few = problem.batch * problem.num_heads < devices.processors(problem.device)
    return few and problem.k_len >= LEAST_DECODED and not problem.is_packed and problem.dropout_p == 0.0


def _decode(problem: Problem, given: dict[str, Any], key_order: Tensor | None) -> None:
    config = _config("decode", problem)
    shared, rows = problem.batch * problem.num_kv_heads, problem.batch * problem.num_heads * problem.q_len
    rows_of_group = problem.q_len * problem.group_size
    at_once = min(MOST_ROWS, max(16, 1 << (rows_of_group - 1).bit_length()))
    parts = blocks_of(rows_of_group, at_once)
    splits = _splits(problem, shared * parts, key_order is not None)
    tensor = given["lse"]
    given |= {
        "order": key_order,
        "peaks": tensor.new_empty(rows, splits), "masses": tensor.new_empty(rows, splits),
        "totals": tensor.new_empty(rows, splits, problem.value_dim), "splits": splits,
        "block_s": max(2, 1 << (splits - 1).bit_length()),
        "rows_of_group": at_once, "parts": parts,
    }  # fmt: skip
    start(split_kernel, problem, (shared * parts * splits,), config, given)
    start(merge_kernel, problem, (rows,), configs.Config({}, 4, 1), given)


def _splits(problem: Problem, shared: int, planned: bool) -> int:
    """Programs for each part of the rows of a key head: about four for each processor, each with a tile at least.

    With a horizon four times as many: the flattest head alone may need half of all the tiles, and its share of them is
    what a step waits for, while programs of heads that need a tile or two end at once.
    """
    wanted = -(-(16 if planned else 4) * devices.processors(problem.device) // shared)
    most = min(MOST_SPLITS, blocks_of(problem.k_len, BLOCK_K))
    return 1 << (max(1, min(wanted, most)).bit_length() - 1)


def backward(problem: Problem, saved: Saved, grad_out: Tensor, grad_lse: Tensor) -> Gradients:
    query, key, value = (arguments.contiguous_rows(t) for t in (saved.query, saved.key, saved.value))
    lse, grad_out = saved.lse.contiguous(), arguments.contiguous_rows(grad_out)
    # A shift and a mean of each row, 64 bits: `rows_kernel` says of what.
    notes, notes_left = (torch.empty_like(lse, dtype=torch.int64) for _ in range(2))
    plan = plans.view(problem, saved.plan)
    grads = Gradients(query.new_empty(query.shape), key.new_empty(key.shape), value.new_empty(value.shape), lse)
    given = {
        **common(problem, saved.slopes), **arguments.visibility(problem),
        **arguments.strides(query=query, key=key, value=value, flow=grad_out),
        "query": query, "key": key, "value": value, "out": saved.out.contiguous(), "lse": lse, "grad_out": grad_out,
        "grad_lse": grad_lse.contiguous(), "notes": notes, "notes_left": notes_left,
        "notes_right": torch.empty_like(notes) if arguments.is_two_sided(problem) else None,
        "grad_query": grads.query, "grad_key": grads.key, "grad_value": grads.value, "score_scale": problem.scale,
        "bias": True, "learned": problem.learned_slopes,
    }  # fmt: skip
    # First the keys: their tiles of rows decide a part of what is noted of each row.
    config = tune.pick("key", problem, lambda trial: _keys(problem, plan, trial, given))
    _keys(problem, plan, config, given)
    given |= {"plan": plan.tiles, "order": plan.order}
    config = tune.pick("query", problem, lambda trial: _queries(problem, trial, given))
    return grads._replace(slopes=_queries(problem, config, given))


def _keys(problem: Problem, plan: plans.Plan, config: configs.Config, given: dict[str, Any]) -> None:
    """What backward needs of each row, then the gradients of keys and values."""
    block_m, block_n = config.constants["block_m"], config.constants["block_n"]
    rows = _config("rows", problem)
    grid = (problem.batch * problem.num_heads * blocks_of(problem.q_len, rows.constants["block_m"]),)
    start(rows_kernel, problem, grid, rows, {**given, "tile": block_m})
    grid = (problem.batch * problem.num_kv_heads * blocks_of(problem.k_len, block_n),)
    given = {
        **given, "ranges": plans.ranges(problem, plan, given, block_n), "order": plan.key_order,
        "key_rows": packing.rows_by_key_block(problem, given, block_n),
        "spoilt": given["key"].new_empty(given["key"].shape[:3], dtype=torch.int32), "range_keys": block_n,
    }  # fmt: skip
    for of in config.of:
        start(key_kernel, problem, grid, config, {**given, "of": of})
    mend = _config("mend", problem)
    grid = (problem.batch * problem.num_kv_heads * blocks_of(problem.k_len, mend.constants["at_once"]),)
    start(mend_key_kernel, problem, grid, mend, {**given, "precision": "ieee"})


def _queries(problem: Problem, config: configs.Config, given: dict[str, Any]) -> Tensor:
    """The gradients of queries, and that of slopes, (batch, num_heads), out of one number for each block of rows."""
    blocks = packing.programs_over_rows(problem, config.constants["block_m"]) if problem.learned_slopes else 0
    slopes: Tensor = given["lse"].new_zeros(problem.batch, problem.num_heads, blocks)
    given = {**given, "grad_slopes": slopes, "spoilt": torch.empty_like(given["lse"], dtype=torch.int32)}
    _over_queries(query_kernel, problem, config, given)
    _mend_rows(mend_query_kernel, problem, given)
    return slopes.sum(-1)


def _over_queries(kernel: Any, problem: Problem, config: configs.Config, given: dict[str, Any]) -> None:
    start(kernel, problem, _grid_over_rows(problem, config.constants["block_m"]), config, given)


def _mend_rows(kernel: Any, problem: Problem, given: dict[str, Any]) -> None:
    config = _config("mend", problem)
    grid = _grid_over_rows(problem, config.constants["at_once"])
    start(kernel, problem, grid, config, {**given, "precision": "ieee"})


def _config(kernel: str, problem: Problem) -> configs.Config:
    return configs.config_for(kernel, *configs.kind(problem))


def _grid_over_rows(problem: Problem, block: int) -> tuple[int]:
    return (problem.batch * problem.num_heads * packing.programs_over_rows(problem, block),)
