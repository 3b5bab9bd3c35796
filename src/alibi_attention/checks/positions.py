"""Where rows stand and which keys there are: offsets, padding, packed sequences."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from alibi_attention.checks.tensors import check_tensor
from alibi_attention.checks.values import is_integer, shape_of, values_can_be_read
from alibi_attention.problem import FURTHEST


def check_query_offset(offset: int | Tensor, batch: int, device: torch.device) -> None:
    if not isinstance(offset, Tensor):
        if not is_integer(offset):
            raise ValueError(
                f"query_offset: expected an int or a ({batch},) integer tensor, one for each batch element, "
                f"got {offset!r}"
            )
        if abs(offset) > FURTHEST:
            raise ValueError(f"query_offset: expected at most 2^40 either way, got {offset}; distances count from 0")
        return
    if tuple(offset.shape) != (batch,) or offset.dtype not in (torch.int32, torch.int64):
        raise ValueError(
            f"query_offset: expected an int or a ({batch},) integer tensor, one for each batch element, "
            f"got shape {shape_of(offset)} of {offset.dtype}"
        )
    if offset.device != device:
        raise ValueError(f"query_offset: expected the device of query, {device}, got {offset.device}; move it there")
    if values_can_be_read(offset) and offset.dtype == torch.int64:
        farthest = offset.tolist()
        if any(abs(each) > FURTHEST for each in farthest):
            raise ValueError(f"query_offset: expected at most 2^40 either way, got {farthest}; distances count from 0")


def check_key_mask(key_mask: Tensor, batch: int, k_len: int, device: torch.device) -> None:
    check_tensor("key_mask", key_mask)
    if tuple(key_mask.shape) != (batch, k_len) or key_mask.dtype != torch.bool:
        raise ValueError(
            f"key_mask: expected bool of shape ({batch}, {k_len}), True where a key takes part, "
            f"got {key_mask.dtype} of shape {shape_of(key_mask)}; a 0/1 mask becomes one with mask.bool(), "
            "nn.MultiheadAttention's key_padding_mask with ~mask"
        )
    if key_mask.device != device:
        raise ValueError(f"key_mask: expected the device of query, {device}, got {key_mask.device}; move it there")
    if values_can_be_read(key_mask):
        steps = torch.diff(key_mask.to(torch.int8), dim=1, prepend=key_mask.new_zeros(batch, 1).to(torch.int8))
        holed = ((steps == 1).sum(1) > 1).nonzero().flatten().tolist()
        if holed:
            raise ValueError(
                f"key_mask: expected the True keys of each row to be contiguous (left or right padding), "
                f"got holes in batch rows {holed[:8]}; drop the masked keys from the tensors, "
                "or pack the sequences with cu_seqlens"
            )


def check_packed(
    cu_seqlens: Tensor,
    cu_seqlens_k: Tensor | None,
    batch: int,
    q_len: int,
    k_len: int,
    *,
    device: torch.device,
    alone: bool,
) -> None:
    if not alone:
        raise ValueError(
            "cu_seqlens: expected without query_offset and key_mask, got them together; each packed sequence is "
            "aligned at its own end and holds no padding"
        )
    if batch != 1:
        raise ValueError(
            f"cu_seqlens: expected packed sequences in one row of batch 1, got a batch of {batch}; "
            "concatenate the sequences along seq_len"
        )
    if cu_seqlens_k is None:
        if q_len != k_len:
            raise ValueError(
                f"cu_seqlens_k: expected where queries and keys differ in length, got None for {q_len} queries and "
                f"{k_len} keys; give the cumulative lengths of the keys"
            )
        cu_seqlens_k = cu_seqlens
    for name, bounds, length, of in (
        ("cu_seqlens", cu_seqlens, q_len, "query"),
        ("cu_seqlens_k", cu_seqlens_k, k_len, "key"),
    ):
        if bounds.device != device:
            raise ValueError(f"{name}: expected the device of query, {device}, got {bounds.device}; move it there")
        if bounds.dim() != 1 or bounds.dtype != torch.int32 or bounds.shape[0] < 2:
            raise ValueError(
                f"{name}: expected int32 of shape (sequences + 1,), cumulative lengths from 0, "
                f"got {bounds.dtype} of shape {shape_of(bounds)}; convert them with .to(torch.int32)"
            )
        if values_can_be_read(bounds):
            ends = bounds.tolist()
            if ends[0] != 0 or ends[-1] != length or any(b < a for a, b in itertools.pairwise(ends)):
                raise ValueError(
                    f"{name}: expected values that rise from 0 to the {of} length {length}, got {_abbreviate(ends)}; "
                    "they are cumulative lengths, torch.cumsum of the lengths after a 0"
                )
    if cu_seqlens.shape != cu_seqlens_k.shape:
        raise ValueError(
            f"cu_seqlens_k: expected as many sequences as cu_seqlens, {cu_seqlens.shape[0] - 1}, "
            f"got {cu_seqlens_k.shape[0] - 1}"
        )


def _abbreviate(values: list[int]) -> str:
    if len(values) <= 8:
        return str(values)
    return f"[{', '.join(map(str, values[:4]))}, ..., {', '.join(map(str, values[-3:]))}]"
