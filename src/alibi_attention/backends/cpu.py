"""Fused kernels for the CPU (csrc/), reached through a C interface: one packed struct a call."""

from __future__ import annotations

import torch
from torch import Tensor

from alibi_attention.backends import native
from alibi_attention.backends.base import Gradients
from alibi_attention.backends.native import CALL, PLAN
from alibi_attention.backends.packing import Groups, groups_of, most_blocks
from alibi_attention.problem import Problem, Saved
from alibi_attention.visibility import row_ranges

MAX_HEAD_DIM = 256

_TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}

_NO_GRADIENTS = (0,) * 18
_NOTHING = (0, 0, 0, 0)


class CpuBackend:
    name = "cpu"

    def why_not(self, problem: Problem) -> str | None:
        if problem.device.type != "cpu":
            return f"runs on the CPU, the tensors are on {problem.device}"
        if problem.dtype not in _TYPES:
            return f"computes in float32, the tensors are {problem.dtype}"
        if max(problem.head_dim, problem.value_dim) > MAX_HEAD_DIM:
            return f"head dimensions up to {MAX_HEAD_DIM}, got {problem.head_dim} and {problem.value_dim}"
        library = native.load()
        return library if isinstance(library, str) else None

    def plan_shape(self, problem: Problem) -> tuple[int, ...]:
        # Flat: a dimension that can be 1 would make a compiler specialise on it and compile again for others.
        return (problem.batch * problem.num_heads * most_blocks(problem) * PLAN,)

    def forward(
        self, problem: Problem, query: Tensor, key: Tensor, value: Tensor, slopes: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        query, key, value = _rows(query), _rows(key), _rows(value)
        rows = (problem.batch, problem.num_heads, problem.q_len)
        out = query.new_empty(*rows, problem.value_dim)
        lse = query.new_empty(rows, dtype=torch.float32)
        plan = query.new_empty(self.plan_shape(problem), dtype=torch.int32)
        slopes, ranges, problem = _slopes(slopes), _ranges(problem), _with_plain_summary(problem)
        groups = groups_of(problem)
        if groups is not None:
            # It has room for more blocks than there may be.
            plan.zero_()
        packed = _pack(problem, ranges, groups, slopes, query, key, value, out, lse, plan)
        native.check(_library().forward(packed))
        return out, lse, plan

    def backward(self, problem: Problem, saved: Saved, grad_out: Tensor, grad_lse: Tensor) -> Gradients:
        query, key, value = _rows(saved.query), _rows(saved.key), _rows(saved.value)
        out, grad_out = _rows(saved.out), _rows(grad_out)
        lse, grad_lse, plan = saved.lse.contiguous(), grad_lse.contiguous(), saved.plan.contiguous()
        grads = Gradients(
            query.new_empty(query.shape),
            key.new_empty(key.shape),
            value.new_empty(value.shape),
            lse.new_empty(problem.batch, problem.num_heads),
        )
        slopes, ranges, groups = _slopes(saved.slopes), _ranges(problem), groups_of(problem)
        packed = _pack(
            problem, ranges, groups, slopes, query, key, value, out, lse, plan,
            *_place(grad_out), grad_lse.data_ptr(), *_place(grads.query), *_place(grads.key), *_place(grads.value),
            grads.slopes.data_ptr(),
        )  # fmt: skip
        native.check(_library().backward(packed))
        return grads


def _library() -> native.Native:
    library = native.load()
    assert not isinstance(library, str), library
    return library


def _rows(tensor: Tensor) -> Tensor:
    """The tensor, copied only where its last dimension is not contiguous."""
    return tensor if tensor.stride(3) == 1 or tensor.shape[3] == 1 else tensor.contiguous()


def _slopes(slopes: Tensor) -> Tensor:
    return slopes if slopes.dtype is torch.float32 else slopes.detach().to(torch.float32)


def _ranges(problem: Problem) -> tuple[Tensor, Tensor, Tensor] | None:
    """Position, lower and upper of every row, or None where the kernel knows them from the offset and the window."""
    plain = problem.key_mask is None and not problem.is_packed and isinstance(problem.query_offset, int)
    if plain:
        return None
    position, lower, upper = row_ranges(problem)
    return position.contiguous(), lower.contiguous(), upper.contiguous()


def _with_plain_summary(problem: Problem) -> Problem:
    """The problem, its summary of the keys in the types and the layout the kernels read."""
    center, norms = problem.key_center, problem.key_norms
    if center is None or norms is None:
        return problem
    norms = norms.to(torch.float64)
    return problem._replace(
        key_center=center.to(torch.float32).contiguous(),
        key_norms=norms if norms.stride(2) == 1 else norms.contiguous(),
    )


def _place(tensor: Tensor) -> tuple[int, int, int, int]:
    strides = tensor.stride()
    return tensor.data_ptr(), strides[0], strides[1], strides[2]


def _pack(
    problem: Problem,
    ranges: tuple[Tensor, Tensor, Tensor] | None,
    groups: Groups | None,
    slopes: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    lse: Tensor,
    plan: Tensor,
    *gradients: int,
) -> bytes:
    left, right = problem.window
    if problem.is_causal:
        right = 0
    if ranges is None:
        offset = problem.query_offset
        places = _NOTHING
    else:
        offset = 0
        position, lower, upper = ranges
        step = problem.q_len if position.shape[0] > 1 else 0
        places = (position.data_ptr(), lower.data_ptr(), upper.data_ptr(), step)
    summary = _NOTHING
    center, norms = problem.key_center, problem.key_norms
    if center is not None and norms is not None:
        summary = (center.data_ptr(), norms.data_ptr(), norms.stride(0), norms.stride(1))
    grouping = (0, 0, 0)
    if groups is not None:
        grouping = (groups.blocks.shape[0], groups.rows.data_ptr(), groups.blocks.data_ptr())
    slope_strides = (0, slopes.stride(0)) if slopes.dim() == 1 else slopes.stride()
    return CALL.pack(
        CALL.size, torch.get_num_threads(), _TYPES[problem.dtype], problem.batch, problem.num_heads,
        problem.num_kv_heads, problem.q_len, problem.k_len, problem.head_dim, problem.value_dim,
        right != 0, offset, left, right, *places, not problem.is_packed, problem.learned_slopes,
        problem.scale, problem.tolerance, problem.dropout_p, 0 if problem.seed is None else problem.seed.data_ptr(),
        slopes.data_ptr(), *slope_strides, *_place(query), *_place(key), *_place(value), *_place(out),
        lse.data_ptr(), plan.data_ptr(), *summary, *grouping, *(gradients or _NO_GRADIENTS),
    )  # fmt: skip
