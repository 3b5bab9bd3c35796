"""Checks of what flash-attn's functions are given, under the names its users know."""

from __future__ import annotations

import itertools
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad

from alibi_attention.checks.options import check_flag, check_scalars
from alibi_attention.checks.slopes import check_finite_slopes
from alibi_attention.checks.tensors import check_tensor
from alibi_attention.checks.values import is_integer, is_number, plain, values_can_be_read
from alibi_attention.problem import SUPPORTED_DTYPES

_LAYOUTS = {
    3: ("total", "nheads", "headdim"),
    4: ("batch", "seqlen", "nheads", "headdim"),
}


class Held(NamedTuple):
    """What the rows of a cache hold: tokens before and after the new ones, how many indices to read, which count."""

    before: int | Tensor
    after: int | Tensor
    span: int
    mask: Tensor | None


def refuse(name: str, value: object, what: str, remedy: str) -> None:
    """Raise for an option that is not carried, unless it is left out."""
    if value is not None:
        raise NotImplementedError(f"{name}: expected None, {what} is not carried; {remedy}")


def check_options(
    dropout_p: Any, softmax_scale: Any, causal: object, softcap: object, deterministic: object, probs: object
) -> None:
    """The plain values; softcap, and probabilities under dropout, are refused."""
    for name, flag in (("causal", causal), ("deterministic", deterministic), ("return_attn_probs", probs)):
        check_flag(name, flag)
    dropout_p, softmax_scale = plain(dropout_p), plain(softmax_scale)
    if not is_number(plain(softcap)):
        got = f"{softcap!r}"
        if isinstance(softcap, Tensor):
            # Of seven arguments without names it was the last before softcap came.
            got = f"a tensor of shape {tuple(softcap.shape)}; pass alibi_slopes by name"
        raise ValueError(f"softcap: expected 0.0, got {got}")
    if softcap != 0.0:
        raise NotImplementedError(
            f"softcap: expected 0.0, got {softcap!r}; capped scores are not carried, here linear biases bound them"
        )
    if not is_number(dropout_p) or not 0.0 <= dropout_p < 1.0:
        raise ValueError(f"dropout_p: expected a probability in [0, 1), got {dropout_p!r}")
    if softmax_scale is not None and not is_number(softmax_scale):
        raise ValueError(f"softmax_scale: expected a number, got {softmax_scale!r}; None is 1 / sqrt(headdim)")
    if softmax_scale is not None:
        try:
            check_scalars(softmax_scale, 0.0, 0.0)
        except ValueError as error:
            # There it is called scale.
            raise ValueError(f"softmax_{error}") from None
    if probs and dropout_p:
        raise NotImplementedError(
            "return_attn_probs: expected with dropout_p 0, where the lse alone is returned; the probabilities that "
            "show which weights were dropped are never formed"
        )


def window_of(window_size: object) -> tuple[int | None, int | None]:
    """flash-attn's (left, right), where a negative side is open, as `alibi_attention` takes it."""
    if not isinstance(window_size, (tuple, list)) or len(window_size) != 2:
        raise ValueError(f"window_size: expected (left, right) in tokens, -1 for an open side, got {window_size!r}")
    sides = [plain(side) for side in window_size]
    if not all(map(is_integer, sides)):
        raise ValueError(f"window_size: expected two integers, -1 for an open side, got {window_size!r}")
    left, right = (None if side < 0 else side for side in sides)
    return (left, right)


def unpack(name: str, packed: object, *, dims: int, parts: int) -> tuple[Tensor, ...]:
    """The tensors stacked along the third dimension from the end."""
    if not isinstance(packed, Tensor) or packed.dim() != dims or packed.shape[-3] != parts:
        layout = list(_LAYOUTS[dims - 1])
        layout.insert(-2, str(parts))
        got = tuple(packed.shape) if isinstance(packed, Tensor) else type(packed).__name__
        raise ValueError(f"{name}: expected a tensor ({', '.join(layout)}), got {got}")
    return packed.unbind(-3)


def check_tensors(q: object, k: object, v: object, *, dims: int, names: tuple[str, str] = ("k", "v")) -> None:
    """Ranks, shapes, dtypes and devices of q, k and v (or of the caches that stand for them)."""
    key_name, value_name = names
    layout = ", ".join(_LAYOUTS[dims])
    for name, tensor in (("q", q), (key_name, k), (value_name, v)):
        check_tensor(name, tensor)
        assert isinstance(tensor, Tensor)
        if tensor.dim() != dims or 0 in tensor.shape:
            raise ValueError(f"{name}: expected ({layout}), none of them 0, got shape {tuple(tensor.shape)}")
        if tensor.dtype not in SUPPORTED_DTYPES:
            raise ValueError(f"{name}: expected float16, bfloat16, float32 or float64, got {tensor.dtype}")
    assert isinstance(q, Tensor)
    assert isinstance(k, Tensor)
    assert isinstance(v, Tensor)
    for name, tensor in ((key_name, k), (value_name, v)):
        check_alike(name, tensor, q)
        if tensor.shape[-1] != q.shape[-1]:
            raise ValueError(f"{name}: expected the headdim of q, {q.shape[-1]}, got shape {tuple(tensor.shape)}")
    if k.shape != v.shape:
        raise ValueError(f"{value_name}: expected the shape of {key_name}, {tuple(k.shape)}, got {tuple(v.shape)}")
    if q.shape[-2] % k.shape[-2]:
        raise ValueError(
            f"{key_name}: expected a number of heads that divides q's {q.shape[-2]}, got {k.shape[-2]}; "
            "each key head serves equally many query heads"
        )
    if dims == 4 and names == ("k", "v") and k.shape[0] != q.shape[0]:
        raise ValueError(f"k: expected the batch of q, {q.shape[0]}, got shape {tuple(k.shape)}")


def check_alike(name: str, tensor: Tensor, q: Tensor) -> None:
    if tensor.dtype != q.dtype or tensor.device != q.device:
        raise ValueError(
            f"{name}: expected {q.dtype} on {q.device}, as q, got {tensor.dtype} on {tensor.device}; "
            "convert or move one of them"
        )


def check_deterministic(deterministic: bool, q: Tensor) -> None:
    """Refuse a promise that only torch's own switch can keep: on a GPU some sums are made in any order without it."""
    if deterministic and q.device.type != "cpu" and not torch.are_deterministic_algorithms_enabled():
        raise NotImplementedError(
            f"deterministic: expected False on {q.device.type}; call torch.use_deterministic_algorithms(True), which "
            "reaches every operation"
        )


def slopes_for(q: Tensor, slopes: object, *, sequences: int) -> Tensor:
    """The slopes, checked; zeros, which are no bias, where none are given."""
    heads = q.shape[-2]
    if slopes is None:
        return torch.zeros(heads, device=q.device)
    if not isinstance(slopes, Tensor):
        raise ValueError(f"alibi_slopes: expected a float32 tensor, got {type(slopes).__name__}")
    check_tensor("alibi_slopes", slopes)
    if slopes.shape != (heads,) and slopes.shape != (sequences, heads):
        raise ValueError(
            f"alibi_slopes: expected shape ({heads},) or ({sequences}, {heads}), got {tuple(slopes.shape)}; "
            "one slope for each head of q"
        )
    if slopes.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"alibi_slopes: expected float32, got {slopes.dtype}; keep slopes in full precision")
    if slopes.device != q.device:
        raise ValueError(f"alibi_slopes: expected the device of q, {q.device}, got {slopes.device}")
    try:
        check_finite_slopes(slopes)
    except ValueError as error:
        # There they are called slopes.
        raise ValueError(f"alibi_{error}") from None
    return slopes


def sequences_of(
    q: Tensor, k: Tensor, cu_seqlens_q: object, cu_seqlens_k: object, max_seqlen_q: object, max_seqlen_k: object
) -> tuple[Tensor, Tensor]:
    """Cumulative lengths of packed sequences to the ends of q and k, checked, and that the longest are as said.

    What lies behind the last sequence is in two more, queries without keys and keys without queries: they cost nothing,
    and where lengths cannot be read they are there in any case.
    """
    has_tail = False
    for which, cumulative, longest, total in (
        ("q", cu_seqlens_q, max_seqlen_q, q.shape[0]),
        ("k", cu_seqlens_k, max_seqlen_k, k.shape[0]),
    ):
        name = f"cu_seqlens_{which}"
        if not isinstance(cumulative, Tensor) or cumulative.dim() != 1 or cumulative.dtype != torch.int32:
            got = f"{cumulative.dtype} of shape {tuple(cumulative.shape)}" if isinstance(cumulative, Tensor) else None
            raise ValueError(
                f"{name}: expected int32 of shape (sequences + 1,), got {got or type(cumulative).__name__}; convert it "
                "with .to(torch.int32)"
            )
        if cumulative.device != q.device or cumulative.shape[0] < 2:
            raise ValueError(
                f"{name}: expected (sequences + 1,) on {q.device}, got shape {tuple(cumulative.shape)} "
                f"on {cumulative.device}"
            )
        if not is_integer(plain(longest)):
            raise ValueError(f"max_seqlen_{which}: expected an integer, got {longest!r}")
        if values_can_be_read(cumulative):
            ends = cumulative.tolist()
            lengths = [b - a for a, b in itertools.pairwise(ends)]
            if ends[0] != 0 or ends[-1] > total or min(lengths) < 0:
                raise ValueError(
                    f"{name}: expected values that rise from 0 to at most {which}'s total {total}, got {ends[:8]}"
                )
            has_tail |= ends[-1] < total
            if max(lengths) > longest:
                raise ValueError(
                    f"max_seqlen_{which}: expected at least the longest sequence, {max(lengths)}, got {longest}"
                )
        else:
            has_tail = True
    assert isinstance(cu_seqlens_q, Tensor)
    assert isinstance(cu_seqlens_k, Tensor)
    if cu_seqlens_q.shape != cu_seqlens_k.shape:
        raise ValueError(
            f"cu_seqlens_k: expected as many sequences as cu_seqlens_q, {cu_seqlens_q.shape[0] - 1}, "
            f"got {cu_seqlens_k.shape[0] - 1}"
        )
    if not has_tail:
        return cu_seqlens_q, cu_seqlens_k
    end_q, end_k = (cu.new_full((1,), t.shape[0]) for cu, t in ((cu_seqlens_q, q), (cu_seqlens_k, k)))
    return torch.cat([cu_seqlens_q, end_q, end_q]), torch.cat([cu_seqlens_k, cu_seqlens_k[-1:], end_k])


def check_cache(
    q: Any,
    k_cache: Any,
    v_cache: Any,
    k: Tensor | None,
    v: Tensor | None,
    slopes: Any,
    cache_batch_idx: Tensor | None,
) -> Tensor | None:
    """Tensors of a call with a cache; the rows of the cache to use as int64, or None for the first ones in order."""
    check_tensors(q, k_cache, v_cache, dims=4, names=("k_cache", "v_cache"))
    if (k is None) != (v is None):
        raise ValueError("k: expected together with v, got one of them; new keys need their values")
    tensors = {"q": q, "k_cache": k_cache, "v_cache": v_cache}
    if k is not None and v is not None:
        check_tensors(q, k, v, dims=4)
        tensors |= {"k": k, "v": v}
        if k.shape[2] != k_cache.shape[2]:
            raise ValueError(f"k: expected the heads of k_cache, {k_cache.shape[2]}, got shape {tuple(k.shape)}")
        for name, cache in (("k_cache", k_cache), ("v_cache", v_cache)):
            _check_writable(name, cache)
    for name, tensor in {**tensors, "alibi_slopes": slopes}.items():
        if torch.is_grad_enabled() and isinstance(tensor, Tensor) and tensor.requires_grad:
            raise ValueError(
                f"{name}: expected a tensor without a gradient, got one that requires it; attention over a cache has "
                "no backward pass: run under torch.no_grad()"
            )
        if isinstance(tensor, Tensor) and _has_tangent(tensor):
            raise NotImplementedError(
                f"{name}: expected a tensor without a tangent, got one of forward-mode differentiation, which the "
                "operator does not have; use torch.autograd.forward_ad.unpack_dual(tensor).primal"
            )
    if cache_batch_idx is None:
        if k_cache.shape[0] != q.shape[0]:
            raise ValueError(
                f"k_cache: expected one row for each of the {q.shape[0]} of q, got {k_cache.shape[0]}; "
                "cache_batch_idx chooses rows of a larger cache"
            )
        return None
    _check_per_row("cache_batch_idx", cache_batch_idx, q)
    if values_can_be_read(cache_batch_idx) and not 0 <= int(cache_batch_idx.min()) <= int(cache_batch_idx.max()) < len(
        k_cache
    ):
        raise ValueError(
            f"cache_batch_idx: expected rows of the cache, 0 to {len(k_cache) - 1}, got {cache_batch_idx.tolist()}"
        )
    return cache_batch_idx.to(torch.int64)


def _check_writable(name: str, cache: Tensor) -> None:
    """Before anything is written: torch would say so of the second cache with the first one changed."""
    if any(stride == 0 and size > 1 for stride, size in zip(cache.stride(), cache.shape, strict=True)):
        raise ValueError(
            f"{name}: expected memory of its own for each element, got an expanded view of shape {tuple(cache.shape)} "
            f"and strides {cache.stride()}; new tokens would overwrite each other: pass a copy, {name}.contiguous()"
        )
    if cache.is_inference() and not torch.is_inference_mode_enabled():
        raise ValueError(
            f"{name}: expected a tensor that can be written to, got one made in inference mode outside of it; call "
            "under torch.inference_mode(), or make the cache outside of it"
        )


def _has_tangent(tensor: Tensor) -> bool:
    return forward_ad._current_level >= 0 and forward_ad.unpack_dual(tensor).tangent is not None


def _check_per_row(name: str, value: object, q: Tensor) -> None:
    proper = isinstance(value, Tensor) and value.shape == q.shape[:1] and value.dtype in (torch.int32, torch.int64)
    if not proper:
        got = f"{value.dtype} of shape {tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)
        raise ValueError(f"{name}: expected int32 of shape ({q.shape[0]},), got {got}")
    assert isinstance(value, Tensor)
    if value.device != q.device:
        raise ValueError(f"{name}: expected the device of q, {q.device}, got {value.device}")


def held_tokens(
    q: Tensor, k_cache: Tensor, k: Tensor | None, cache_seqlens: object, cache_leftpad: Tensor | None
) -> Held:
    """What the rows hold before and after the new tokens are written, checked."""
    capacity, new = k_cache.shape[1], 0 if k is None else k.shape[1]
    if cache_seqlens is None:
        if k is not None:
            raise ValueError("cache_seqlens: expected with k and v, got None; it says where the new tokens go")
        cache_seqlens = capacity
    before: int | Tensor
    given = plain(cache_seqlens)
    if isinstance(given, int) and not isinstance(given, bool):
        before = given
    else:
        _check_per_row("cache_seqlens", cache_seqlens, q)
        assert isinstance(cache_seqlens, Tensor)
        before = cache_seqlens.to(torch.int64)
    if cache_leftpad is not None:
        _check_per_row("cache_leftpad", cache_leftpad, q)
    readable = values_can_be_read(q.device)
    if isinstance(before, int) or readable:
        lengths = [before] if isinstance(before, int) else before.tolist()
        if min(lengths) < 0 or max(lengths) + new > capacity:
            raise ValueError(
                f"cache_seqlens: expected at least 0 and, with {new} new tokens, at most {capacity - new} in a cache "
                f"of {capacity}, got {lengths[:8]}"
            )
        if isinstance(before, Tensor) and len(set(lengths)) == 1:
            before = int(lengths[0])
        span = max(lengths) + new
    else:
        span = capacity
    after = before + new
    if cache_leftpad is not None and readable:
        _check_left_padding(cache_leftpad.tolist(), [after] * len(q) if isinstance(after, int) else after.tolist())
    if isinstance(after, int) and after > 0 and cache_leftpad is None:
        return Held(before, after, span, None)
    index = torch.arange(max(span, 1), device=q.device)
    ends = torch.full(q.shape[:1], after, device=q.device) if isinstance(after, int) else after
    mask = index < ends.unsqueeze(1)
    if cache_leftpad is not None:
        mask &= index >= cache_leftpad.unsqueeze(1)
    return Held(before, ends, max(span, 1), mask)


def _check_left_padding(pads: list[int], ends: list[int]) -> None:
    """Up to the end after the new tokens, which may bring the padding of a prompt with them."""
    if not all(0 <= pad <= end for pad, end in zip(pads, ends, strict=True)):
        raise ValueError(
            "cache_leftpad: expected the first index of each row that holds a token, from 0 to the tokens held, new "
            f"ones included, {ends[:8]}, got {pads[:8]}"
        )
