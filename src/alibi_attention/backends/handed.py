"""What the operators are handed, held against itself: a kernel reads memory by the sizes that it is told.

`alibi_attention` has checked its arguments long before; these are for operators called by hand, for saved tensors that
hooks have brought back as something else, and for values that a compiler had none of when arguments were checked.
"""

from __future__ import annotations

import os

import torch
from torch import Tensor

from alibi_attention.checks.options import check_scalars
from alibi_attention.checks.positions import check_key_mask, check_packed, check_query_offset
from alibi_attention.checks.slopes import check_finite_slopes
from alibi_attention.checks.tensors import check_tensors
from alibi_attention.horizon.tiles import BLOCK_K, blocks_of
from alibi_attention.problem import Problem, Saved

_INTEGERS = (torch.int32, torch.int64)
_FLOATS = (torch.float32, torch.float64)


def check_handed(problem: Problem, query: Tensor, key: Tensor, value: Tensor, slopes: Tensor) -> None:
    """The arguments of the forward operator.

    Raises:
        ValueError: for a tensor whose shape, dtype or device does not go with the others, and for values of cu_seqlens
            that are no bounds of the sequences, where they can be read without waiting; with ALIBI_DEBUG=1 for all that
            `alibi_attention` says of values, on any device.
    """
    check_tensors(query, key, value, slopes)
    check_scalars(problem.scale, problem.dropout_p, problem.tolerance)
    batch, kv_heads, device = problem.batch, problem.num_kv_heads, problem.device
    if isinstance(problem.query_offset, Tensor):
        _expect("offsets", problem.query_offset, (batch,), _INTEGERS, device)
    if problem.key_mask is not None:
        _expect("key_mask", problem.key_mask, (batch, problem.k_len), (torch.bool,), device)
    for name, starts in (("cu_seqlens", problem.cu_seqlens), ("cu_seqlens_k", problem.cu_seqlens_k)):
        if starts is not None:
            _expect(name, starts, (max(starts.numel(), 2),), _INTEGERS, device)
    if problem.cu_seqlens is not None:
        # Kernels write where it says.
        check_packed(
            problem.cu_seqlens, problem.cu_seqlens_k, batch, problem.q_len, problem.k_len, device=device,
            alone=problem.key_mask is None and not isinstance(problem.query_offset, Tensor),
        )  # fmt: skip
    if os.environ.get("ALIBI_DEBUG") == "1":
        check_finite_slopes(slopes, problem.compute_dtype)
        check_query_offset(problem.query_offset, batch, device)
        if problem.key_mask is not None:
            check_key_mask(problem.key_mask, batch, problem.k_len, device)
    if problem.dropout_p > 0.0:
        if problem.seed is None:
            raise ValueError(f"seed: expected an int64 scalar with dropout_p={problem.dropout_p:g}, got None")
        _expect("seed", problem.seed, (), (torch.int64,), device)
    if problem.key_center is not None:
        _expect("key_center", problem.key_center, (batch, kv_heads, problem.head_dim), _FLOATS, device)
    if problem.key_norms is not None:
        tiles = blocks_of(problem.k_len, BLOCK_K)
        _expect("key_norms", problem.key_norms, (batch, kv_heads, tiles), _FLOATS, device)


def check_saved(
    problem: Problem, plan_shape: tuple[int, ...], saved: Saved, grad_out: Tensor, grad_lse: Tensor
) -> None:
    """The arguments of the backward operator.

    Raises:
        ValueError: for a tensor whose shape, dtype or device is not what forward was given or gave.
    """
    check_handed(problem, saved.query, saved.key, saved.value, saved.slopes)
    rows = (problem.batch, problem.num_heads, problem.q_len)
    for name, tensor, shape, dtype in (
        ("out", saved.out, (*rows, problem.value_dim), problem.dtype),
        ("lse", saved.lse, rows, problem.compute_dtype),
        ("plan", saved.plan, plan_shape, torch.int32),
        ("grad_out", grad_out, (*rows, problem.value_dim), problem.dtype),
        ("grad_lse", grad_lse, rows, problem.compute_dtype),
    ):
        _expect(name, tensor, shape, (dtype,), problem.device, saved=True)


def _expect(
    name: str, tensor: Tensor, shape: tuple[int, ...], dtypes: tuple[torch.dtype, ...], device: torch.device,
    saved: bool = False,
) -> None:  # fmt: skip
    if tensor.shape == shape and tensor.dtype in dtypes and tensor.device == device:
        return
    who, why, remedy = "", "", ""
    if saved:
        who, why = "backward ", ", which goes with query, key and value as they were saved"
        remedy = "; saved-tensor hooks must hand back what they were given, in its shape and dtype"
    raise ValueError(
        f"{name}: {who}expected {' or '.join(map(str, dtypes))} of shape {shape} on {device}{why}, got "
        f"{tensor.dtype} of shape {tuple(tensor.shape)} on {tensor.device}{remedy}"
    )
