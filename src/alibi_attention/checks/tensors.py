"""Query, key and value: dense, of shapes that fit, of one dtype and device."""

from __future__ import annotations

import torch
from torch import Tensor

from alibi_attention.checks.slopes import check_slopes
from alibi_attention.checks.values import shape_of
from alibi_attention.problem import SUPPORTED_DTYPES

_DENSE = torch.strided


def check_tensor(name: str, given: object) -> None:
    """Whether it is a dense tensor."""
    if not isinstance(given, Tensor):
        raise ValueError(f"{name}: expected a torch.Tensor, got {type(given).__name__}; make it one first")
    if given.is_nested or given.layout is not _DENSE:
        got, remedy = "one of layout " + str(given.layout), "tensor.to_dense()"
        if given.is_nested:
            got, remedy = "a nested one", "pad sequences to one length and say with key_mask which keys are there"
        raise ValueError(f"{name}: expected a dense tensor, got {got}; {remedy}")


def check_types(*, query: object, key: object, value: object, **options: object) -> None:
    """Each is a dense tensor or, for an option left out, None."""
    for name, given in (("query", query), ("key", key), ("value", value)):
        if given is None:
            raise ValueError(f"{name}: expected a torch.Tensor, got None; pass the tensor")
    for name, given in {"query": query, "key": key, "value": value, **options}.items():
        if given is not None:
            check_tensor(name, given)


def _fit(query: torch.Size, key: torch.Size, value: torch.Size) -> bool:
    return (
        len(query) == len(key) == len(value) == 4
        and query[0] == key[0] == value[0]
        and key[1:3] == value[1:3]
        and query[3] == key[3]
        and min(query) > 0 < min(value)
        and query[1] % key[1] == 0
    )


def _alike(query: Tensor, key: Tensor, value: Tensor, slopes: Tensor) -> bool:
    dtype, device = query.dtype, query.device
    return (
        dtype in SUPPORTED_DTYPES
        and key.dtype == dtype == value.dtype
        and key.device == device == value.device
        and slopes.device == device
    )


def check_tensors(query: Tensor, key: Tensor, value: Tensor, slopes: Tensor) -> None:
    """Ranks, shapes, dtypes and devices of the four tensors."""
    if _fit(query.shape, key.shape, value.shape) and _alike(query, key, value, slopes):
        # The usual case, on the way of every call: one look, and no message to prepare.
        check_slopes(slopes, query.shape[0], query.shape[1], q_len=query.shape[2])
        return
    for name, tensor in (("query", query), ("key", key), ("value", value)):
        if tensor.dim() != 4:
            raise ValueError(
                f"{name}: expected 4 dimensions (batch, num_heads, seq_len, head_dim), got shape {shape_of(tensor)}; "
                "for (batch, seq_len, num_heads, head_dim) memory pass tensor.transpose(1, 2)"
            )
        for axis, label in enumerate(("batch", "num_heads", "seq_len", "head_dim")):
            if tensor.shape[axis] == 0:
                raise ValueError(
                    f"{name}: expected at least one element along {label}, got shape {shape_of(tensor)}; "
                    "leave out the call where there is nothing to attend"
                )
        if tensor.dtype not in SUPPORTED_DTYPES:
            raise ValueError(
                f"{name}: expected float64, float32, bfloat16 or float16, got {tensor.dtype}; "
                "convert it with tensor.to(torch.float32)"
            )
    for name, tensor in (("key", key), ("value", value)):
        if tensor.dtype != query.dtype:
            raise ValueError(
                f"{name}: expected the dtype of query, {query.dtype}, got {tensor.dtype}; "
                "convert one of them, or run under torch.autocast"
            )
        if tensor.shape[0] != query.shape[0]:
            raise ValueError(
                f"{name}: expected the batch size of query, {query.shape[0]}, got shape {shape_of(tensor)}; "
                "expand it to the batch"
            )
    for name, tensor in (("key", key), ("value", value), ("slopes", slopes)):
        if tensor.device != query.device:
            raise ValueError(
                f"{name}: expected the device of query, {query.device}, got {tensor.device}; "
                f"move it with tensor.to({str(query.device)!r})"
            )
    if key.shape[3] != query.shape[3]:
        raise ValueError(
            f"key: expected the head_dim of query, {query.shape[3]}, got shape {shape_of(key)}; "
            "query and key meet in a dot product (value may have another size)"
        )
    if value.shape[1] != key.shape[1] or value.shape[2] != key.shape[2]:
        raise ValueError(
            f"value: expected the heads and length of key, ({key.shape[1]}, {key.shape[2]}), "
            f"got shape {shape_of(value)}; every key needs its value"
        )
    if query.shape[1] % key.shape[1] != 0:
        swapped = query.shape[2] == key.shape[1] or query.shape[1] == key.shape[2]
        hint = "; where query is (batch, seq_len, num_heads, head_dim), pass query.transpose(1, 2)" if swapped else ""
        raise ValueError(
            f"key: expected a number of heads that divides query's {query.shape[1]}, got {key.shape[1]}; "
            f"grouped-query attention shares each key head among equally many query heads{hint}"
        )
    check_slopes(slopes, query.shape[0], query.shape[1], q_len=query.shape[2])
