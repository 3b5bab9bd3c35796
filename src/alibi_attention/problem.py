"""One call of the operator, described and checked once. Every error about arguments is worded here."""

from __future__ import annotations

import itertools
import math
import numbers
import os
import sys
from typing import Any, NamedTuple

import torch
from torch import Tensor

UNBOUNDED = -1
FURTHEST = 1 << 40
# Tracers whose tensors are shapes alone.
_WITHOUT_VALUES = (torch._C._TorchDispatchModeKey.FAKE, torch._C._TorchDispatchModeKey.PROXY)

# Times log2(e) it is still a float.
_STEEPEST = 2e38
_FEW_SLOPES = 32
_PLAIN = {bool, int, float, type(None)}
_DENSE = torch.strided
SUPPORTED_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


class Problem(NamedTuple):
    """What is to be computed, apart from the values of query, key, value and slopes.

    Lengths are in tokens. ``window`` holds UNBOUNDED where a side is open; ``query_offset`` is an int or a (batch,)
    tensor; ``seed`` is a scalar int64 tensor wherever ``dropout_p`` is above zero; ``key_center`` and ``key_norms`` are
    the summary of the keys (`horizon.summary`) where a cache has kept one. (A tuple, because a frozen dataclass
    takes four microseconds to make.)
    """

    batch: int
    num_heads: int
    num_kv_heads: int
    q_len: int
    k_len: int
    head_dim: int
    value_dim: int
    dtype: torch.dtype
    device: torch.device
    is_causal: bool
    scale: float
    query_offset: int | Tensor
    key_mask: Tensor | None
    cu_seqlens: Tensor | None
    cu_seqlens_k: Tensor | None
    window: tuple[int, int]
    dropout_p: float
    seed: Tensor | None
    tolerance: float
    learned_slopes: bool
    key_center: Tensor | None = None
    key_norms: Tensor | None = None

    @property
    def group_size(self) -> int:
        """Query heads that share one key and value head."""
        return self.num_heads // self.num_kv_heads

    @property
    def compute_dtype(self) -> torch.dtype:
        """The dtype scores, sums and lse are held in."""
        return compute_dtype(self.dtype)

    @property
    def is_packed(self) -> bool:
        return self.cu_seqlens is not None


class Saved(NamedTuple):
    """What backward needs of the call: its inputs, its results and the plan of tiles forward ran."""

    query: Tensor
    key: Tensor
    value: Tensor
    slopes: Tensor
    out: Tensor
    lse: Tensor
    plan: Tensor


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def default_tolerance(dtype: torch.dtype) -> float:
    """Rounding level: the largest share of softmax mass that may be skipped without showing in the result."""
    return 2.0**-53 if dtype == torch.float64 else 2.0**-24


def values_can_be_read(where: Tensor | torch.device) -> bool:
    """Whether looking at values costs no synchronisation; ALIBI_DEBUG=1 accepts the cost on any device.

    Args:
        where: the tensor in question; or a device, for tensors that are still to be made: under a transform of
            torch.func these have no values, while one that the transform does not wrap has.
    """
    if torch.compiler.is_compiling():
        return False
    device = where.device if isinstance(where, Tensor) else where
    if isinstance(where, Tensor):
        if torch._C._functorch.is_functorch_wrapped_tensor(where):
            return False
    elif torch._C._are_functorch_transforms_active():
        return False
    if any(torch._C._get_dispatch_mode(mode) is not None for mode in _WITHOUT_VALUES):
        return False
    return device.type == "cpu" or os.environ.get("ALIBI_DEBUG") == "1"


def plain(value: Any) -> Any:
    """A number or truth value of numpy's, or of another kind, as Python's own; anything else as it is.

    Operators take Python's alone. Tensors stay tensors: to look at one would make a GPU be waited for.
    """
    if type(value) in _PLAIN:
        return value
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        return float(value)
    numpy = sys.modules.get("numpy")
    return bool(value) if numpy is not None and isinstance(value, numpy.bool_) else value


def is_integer(value: object) -> bool:
    return isinstance(value, (int, torch.SymInt)) and not isinstance(value, bool)


def is_number(value: object) -> bool:
    return isinstance(value, (int, float, torch.SymInt, torch.SymFloat)) and not isinstance(value, bool)


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


def _shape(tensor: Tensor) -> str:
    return str(tuple(tensor.shape))


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
                f"{name}: expected 4 dimensions (batch, num_heads, seq_len, head_dim), got shape {_shape(tensor)}; "
                "for (batch, seq_len, num_heads, head_dim) memory pass tensor.transpose(1, 2)"
            )
        for axis, label in enumerate(("batch", "num_heads", "seq_len", "head_dim")):
            if tensor.shape[axis] == 0:
                raise ValueError(
                    f"{name}: expected at least one element along {label}, got shape {_shape(tensor)}; "
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
                f"{name}: expected the batch size of query, {query.shape[0]}, got shape {_shape(tensor)}; "
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
            f"key: expected the head_dim of query, {query.shape[3]}, got shape {_shape(key)}; "
            "query and key meet in a dot product (value may have another size)"
        )
    if value.shape[1] != key.shape[1] or value.shape[2] != key.shape[2]:
        raise ValueError(
            f"value: expected the heads and length of key, ({key.shape[1]}, {key.shape[2]}), "
            f"got shape {_shape(value)}; every key needs its value"
        )
    if query.shape[1] % key.shape[1] != 0:
        swapped = query.shape[2] == key.shape[1] or query.shape[1] == key.shape[2]
        hint = "; where query is (batch, seq_len, num_heads, head_dim), pass query.transpose(1, 2)" if swapped else ""
        raise ValueError(
            f"key: expected a number of heads that divides query's {query.shape[1]}, got {key.shape[1]}; "
            f"grouped-query attention shares each key head among equally many query heads{hint}"
        )
    check_slopes(slopes, query.shape[0], query.shape[1], q_len=query.shape[2])


def check_slopes(slopes: Tensor, batch: int, num_heads: int, q_len: int | None = None) -> None:
    """``q_len`` is looked at for a hint alone: heads and tokens are easily exchanged."""
    # Spelled out: a compiler's symbolic sizes compare equal but are not found in a tuple.
    if slopes.shape != (num_heads,) and slopes.shape != (batch, num_heads):
        hint = "one slope for each query head"
        if slopes.dim() in (1, 2) and slopes.shape[-1] == q_len:
            hint += (
                "; where query, key and value are (batch, seq_len, num_heads, head_dim), pass tensor.transpose(1, 2)"
            )
        elif slopes.dim() == 4:
            hint += "; a value has no place here"
        raise ValueError(
            f"slopes: expected shape ({num_heads},) or ({batch}, {num_heads}), got {_shape(slopes)}; {hint}"
        )
    if not slopes.dtype.is_floating_point:
        raise ValueError(f"slopes: expected float32 (or float64), got {slopes.dtype}; convert them with slopes.float()")
    if slopes.dtype not in (torch.float32, torch.float64):
        raise ValueError(
            f"slopes: expected float32 (or float64), got {slopes.dtype}; 16-bit slopes are rounded by up to 0.4%, "
            "whole nats at long range: keep them in float32"
        )


def check_scalars(scale: float, dropout_p: float, tolerance: float) -> None:
    for name, value in (("scale", scale), ("dropout_p", dropout_p), ("tolerance", tolerance)):
        if not isinstance(value, (int, float, torch.SymFloat, torch.SymInt)):
            raise ValueError(f"{name}: expected a number, got {value!r}; leave it out for the default")
    if not -_STEEPEST < scale < _STEEPEST:
        raise ValueError(
            f"scale: expected a number between -{_STEEPEST:g} and {_STEEPEST:g}, got {scale!r}; the default is "
            "1 / sqrt(head_dim)"
        )
    if not 0.0 <= dropout_p < 1.0:
        raise ValueError(f"dropout_p: expected a probability in [0, 1), got {dropout_p!r}; 0.0 drops nothing")
    if not 0.0 <= tolerance < 1.0:
        raise ValueError(
            f"tolerance: expected a share of softmax mass in [0, 1), got {tolerance!r}; "
            "None skips at rounding level, 0 computes every tile"
        )


def check_flag(name: str, given: object) -> None:
    if not isinstance(given, bool) and not isinstance(plain(given), bool):
        raise ValueError(f"{name}: expected True or False, got {given!r}")


def check_options(is_causal: object, backend: object) -> None:
    check_flag("is_causal", is_causal)
    if backend is not None and not isinstance(backend, str):
        raise ValueError(f"backend: expected None or a name, got {backend!r}")


def check_finite_slopes(slopes: Tensor, compute: torch.dtype = torch.float32) -> None:
    """``compute`` is what they are computed with, which may hold less than their own dtype does."""
    if not values_can_be_read(slopes):
        return
    if not slopes.dtype.is_floating_point:
        # Said by who looks at dtypes.
        return
    most = torch.finfo(compute).max
    # Few numbers are looked at sooner by Python. What is not a number is not within.
    if slopes.numel() <= _FEW_SLOPES:
        if all(-most <= each <= most for each in slopes.detach().flatten().tolist()):
            return
    elif bool((slopes.detach().abs() <= most).all()):
        return
    given = slopes.detach().flatten().tolist()
    wrong = [each for each in given if not -most <= each <= most]
    shown = f"[{', '.join(map(str, given[:8]))}{', ...' if len(given) > 8 else ''}]"
    if all(map(math.isfinite, wrong)):
        name = str(compute).removeprefix("torch.")
        raise ValueError(
            f"slopes: expected numbers that {name} can hold, got {shown}; they are computed with in {name}"
        )
    raise ValueError(f"slopes: expected finite numbers, got {shown}")


def check_window(window: tuple[int | None, int | None] | None) -> tuple[int, int]:
    if window is None:
        return (UNBOUNDED, UNBOUNDED)
    proper = isinstance(window, (tuple, list)) and len(window) == 2
    if not proper or not all(side is None or (is_integer(side) and side >= 0) for side in map(plain, window)):
        raise ValueError(
            f"window: expected (left, right) in tokens, each at least 0 or None for unbounded, got {window!r}; "
            "(n, 0) is the n tokens before each and itself"
        )
    # Beyond any length, and far below where sums of positions would wrap around.
    left, right = (UNBOUNDED if side is None else min(side, FURTHEST) for side in map(plain, window))
    return (left, right)


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
            f"got shape {_shape(offset)} of {offset.dtype}"
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
            f"got {key_mask.dtype} of shape {_shape(key_mask)}; a 0/1 mask becomes one with mask.bool(), "
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
                f"got {bounds.dtype} of shape {_shape(bounds)}; convert them with .to(torch.int32)"
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
