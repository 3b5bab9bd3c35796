"""Which kernels a call starts, with which arguments. Nothing here waits for the device."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from alibi_attention.backends.base import Gradients
from alibi_attention.backends.triton import arguments, configs, launch
from alibi_attention.backends.triton import device as devices
from alibi_attention.backends.triton.backward import query_kernel, rows_kernel
from alibi_attention.backends.triton.backward_keys import key_kernel
from alibi_attention.backends.triton.forward import forward_kernel
from alibi_attention.backends.triton.mend import mend_forward_kernel, mend_key_kernel, mend_query_kernel
from alibi_attention.horizon import BLOCK_Q, blocks_of
from alibi_attention.problem import Problem, Saved
from alibi_attention.visibility import row_ranges

ROWS_AT_ONCE = 64


def plan_shape(problem: Problem) -> tuple[int, ...]:
    """For each (batch, head): three numbers for each block of queries, and its place in the order of launch; flat."""
    return (problem.batch * problem.num_heads * (3 * blocks_of(problem.q_len, BLOCK_Q) + 1),)


def forward(
    problem: Problem, query: Tensor, key: Tensor, value: Tensor, slopes: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    query, key, value = (arguments.contiguous_rows(t) for t in (query, key, value))
    rows = (problem.batch, problem.num_heads, problem.q_len)
    out = query.new_empty(*rows, problem.value_dim)
    lse = query.new_empty(rows, dtype=torch.float32)
    plan = query.new_empty(plan_shape(problem), dtype=torch.int32)
    config = _config("forward", problem)
    given = {
        **_common(problem, slopes),
        **arguments.visibility(problem),
        **arguments.strides(query=query, key=key, value=value),
        "query": query, "key": key, "value": value, "out": out, "lse": lse, "plan": None, "order": None,
        "bias": True, **_marks(problem, config),
    }  # fmt: skip
    _run(forward_kernel, problem, _blocks(problem, problem.q_len, config.constants["block_m"]), config, given)
    _mend_rows(mend_forward_kernel, problem, given)
    return out, lse, plan


def backward(problem: Problem, saved: Saved, grad_out: Tensor, grad_lse: Tensor) -> Gradients:
    query, key, value = (arguments.contiguous_rows(t) for t in (saved.query, saved.key, saved.value))
    out, lse, grad_lse = saved.out.contiguous(), saved.lse.contiguous(), grad_lse.contiguous()
    grad_out = arguments.contiguous_rows(grad_out)
    seen = arguments.visibility(problem)
    common = _common(problem, saved.slopes)
    query_config, key_config = _config("query", problem), _config("key", problem)
    mean, shift, shift_left = (torch.empty_like(lse) for _ in range(3))
    shift_right = torch.empty_like(lse) if arguments.is_two_sided(problem) else None
    flow = arguments.strides(flow=grad_out)
    _rows(
        problem, key_config, common, seen, flow,
        {
            "out": out, "lse": lse, "grad_out": grad_out, "grad_lse": grad_lse, "mean": mean, "shift": shift,
            "shift_left": shift_left, "shift_right": shift_right,
        },
    )  # fmt: skip
    places = arguments.strides(query=query, key=key, value=value)
    shared = {
        **common, **seen, **flow, **places, "query": query, "key": key, "value": value, "grad_out": grad_out,
        "mean": mean, "shift": shift, "score_scale": problem.scale, "order": None, "bias": True,
    }  # fmt: skip

    blocks = blocks_of(problem.q_len, query_config.constants["block_m"])
    grad_query = query.new_empty(query.shape)
    grad_slopes = lse.new_zeros(problem.batch, problem.num_heads, blocks if problem.learned_slopes else 0)
    given = {
        **shared, "lse": lse, "grad_lse": grad_lse, "grad_query": grad_query, "grad_slopes": grad_slopes,
        "plan": None, "learned": problem.learned_slopes, **_marks(problem, query_config),
    }  # fmt: skip
    _run(query_kernel, problem, _blocks(problem, problem.q_len, query_config.constants["block_m"]), query_config, given)
    _mend_rows(mend_query_kernel, problem, given)

    block_n = key_config.constants["block_n"]
    grad_key, grad_value = key.new_empty(key.shape), value.new_empty(value.shape)
    grid = (problem.batch * problem.num_kv_heads * blocks_of(problem.k_len, block_n),)
    given = {
        **shared, "spoilt": lse.new_empty(grid, dtype=torch.int32), "shift_left": shift_left, "shift_right": shift_right, "grad_key": grad_key,
        "grad_value": grad_value, "ranges": None, "key_rows": _rows_by_key_block(problem, block_n),
    }  # fmt: skip
    _run(key_kernel, problem, grid, key_config, given)
    mend = _config("mend", problem)
    _run(mend_key_kernel, problem, grid, mend._replace(constants={**mend.constants, "block_n": block_n}), given)
    return Gradients(grad_query, grad_key, grad_value, grad_slopes.sum(-1))


def _marks(problem: Problem, config: configs.Config) -> dict[str, Any]:
    """Room for the kernel to note which of its blocks of rows are not finite."""
    rows = config.constants["block_m"]
    marks = torch.empty(_blocks(problem, problem.q_len, rows), dtype=torch.int32, device=problem.device)
    return {"spoilt": marks, "spoilt_rows": rows}


def _mend_rows(kernel: Any, problem: Problem, given: dict[str, Any]) -> None:
    config = _config("mend", problem)
    _run(kernel, problem, _blocks(problem, problem.q_len, config.constants["block_m"]), config, given)


def _rows(
    problem: Problem, key_config: configs.Config, common: dict[str, Any], seen: dict[str, Any], flow: dict[str, int],
    tensors: dict[str, Any],
) -> None:  # fmt: skip
    given = {**common, **seen, **flow, **tensors, "tile": key_config.constants["block_m"]}
    config = configs.Config({"block_m": ROWS_AT_ONCE}, 4, 1)
    _run(rows_kernel, problem, _blocks(problem, problem.q_len, ROWS_AT_ONCE), config, given)


def _rows_by_key_block(problem: Problem, block: int) -> Tensor | None:
    """(key blocks, 4) for a packed call: first and end of the rows that see any key of a block, and that see them all.

    Both bounds of what a row sees rise with the row.
    """
    if not problem.is_packed:
        return None
    _, lower, upper = (part[0].contiguous() for part in row_ranges(problem))
    start = torch.arange(0, problem.k_len, block, device=problem.device)
    return torch.stack(
        [
            torch.searchsorted(upper, start, right=True),
            torch.searchsorted(lower, (start + block).clamp_max(problem.k_len)),
            torch.searchsorted(upper, start + block),
            torch.searchsorted(lower, start, right=True),
        ],
        dim=1,
    ).to(torch.int32)


def _config(kernel: str, problem: Problem) -> configs.Config:
    width = configs.width_of(problem.head_dim, problem.value_dim)
    return configs.config_for(kernel, _architecture(problem), problem.dtype.itemsize, width)


def _architecture(problem: Problem) -> str:
    architecture = devices.target(problem.device)
    assert architecture is not None, problem.device
    return architecture


def _common(problem: Problem, slopes: Tensor) -> dict[str, Any]:
    return {
        **arguments.slope_arguments(slopes),
        **arguments.scales(problem),
        "num_heads": problem.num_heads,
        "group": problem.group_size,
        "head_dim": problem.head_dim,
        "value_dim": problem.value_dim,
        "block_d": configs.padded(problem.head_dim),
        "block_v": configs.padded(problem.value_dim),
        "two_sided": arguments.is_two_sided(problem),
        "precision": configs.precision_for(_architecture(problem), problem.dtype.itemsize),
    }


def _blocks(problem: Problem, length: int, block: int) -> tuple[int]:
    return (problem.batch * problem.num_heads * blocks_of(length, block),)


def _run(kernel: Any, problem: Problem, grid: tuple[int, ...], config: configs.Config, given: dict[str, Any]) -> None:
    """Starts a kernel with those of the given arguments that it takes."""
    taken = {name: given[name] for name in kernel.arg_names if name not in config.constants}
    launch.run(kernel, grid, config, problem.device, taken)
