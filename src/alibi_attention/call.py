"""From the arguments users give to the arguments operators take, checked; and from those to a `Problem`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from alibi_attention.checks.options import check_options, check_scalars, check_window
from alibi_attention.checks.positions import check_key_mask, check_packed, check_query_offset
from alibi_attention.checks.slopes import check_finite_slopes
from alibi_attention.checks.tensors import check_tensors, check_types
from alibi_attention.checks.values import plain
from alibi_attention.problem import Problem, compute_dtype, default_tolerance
from alibi_attention.slopes import alibi_slopes


def call_arguments(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    slopes: Tensor | None,
    *,
    is_causal: bool,
    scale: float | None,
    query_offset: int | Tensor | None,
    key_mask: Tensor | None,
    cu_seqlens: Tensor | None,
    cu_seqlens_k: Tensor | None,
    window: tuple[int | None, int | None] | None,
    dropout_p: float,
    tolerance: float | None,
    backend: str | None,
    key_center: Tensor | None = None,
    key_norms: Tensor | None = None,
    draws_seed: bool = True,
    autocast: bool = True,
) -> tuple[Any, ...]:
    """What `alibi_attention` was given, with defaults filled in, in the order of the operator's schema.

    Raises:
        ValueError: as `alibi_attention` documents.
    """
    check_types(
        query=query, key=key, value=value, slopes=slopes, key_mask=key_mask, cu_seqlens=cu_seqlens,
        cu_seqlens_k=cu_seqlens_k,
    )  # fmt: skip
    is_causal, scale, query_offset, dropout_p, tolerance = map(
        plain, (is_causal, scale, query_offset, dropout_p, tolerance)
    )
    check_options(is_causal, backend)
    if autocast and autocast_is_on(query.device.type):
        query, key, value = _autocast(query), _autocast(key), _autocast(value)
    learned_slopes = slopes is not None and _are_learned(slopes)
    if slopes is None:
        slopes = preset_slopes(int(query.shape[1]), query.device)
    else:
        check_finite_slopes(slopes, compute_dtype(query.dtype))
    check_tensors(query, key, value, slopes)
    batch, q_len, k_len = query.shape[0], query.shape[2], key.shape[2]
    scale = query.shape[3] ** -0.5 if scale is None else scale
    tolerance = default_tolerance(query.dtype) if tolerance is None else tolerance
    check_scalars(scale, dropout_p, tolerance)
    window_left, window_right = check_window(window)
    if key_mask is not None:
        check_key_mask(key_mask, batch, k_len, query.device)
    if cu_seqlens is not None:
        alone = query_offset is None and key_mask is None
        check_packed(cu_seqlens, cu_seqlens_k, batch, q_len, k_len, device=query.device, alone=alone)
    elif cu_seqlens_k is not None:
        raise ValueError(
            "cu_seqlens_k: expected together with cu_seqlens, got it alone; give cu_seqlens for the queries"
        )
    offsets, offset = None, k_len - q_len
    if isinstance(query_offset, Tensor):
        check_query_offset(query_offset, batch, query.device)
        offsets, offset = query_offset, 0
    elif query_offset is not None:
        check_query_offset(query_offset, batch, query.device)
        offset = query_offset
    seed = None
    if dropout_p > 0.0 and draws_seed:
        seed = torch.randint(-(2**63), 2**63 - 1, (), dtype=torch.int64, device=query.device)
    return (
        query, key, value, slopes.to(compute_dtype(query.dtype)),
        offsets, key_mask, cu_seqlens, cu_seqlens_k, seed, key_center, key_norms, is_causal,
        scale, offset, window_left, window_right, dropout_p, tolerance,
        learned_slopes, backend or "",
    )  # fmt: skip


def _are_learned(slopes: Tensor) -> bool:
    """Whether the horizon has to mind the gradient of slopes, too: it is what keys far away matter most to.

    A tensor of torch.func's vmap does not tell whether it is differentiated outside of it; it may be.
    """
    if not torch.is_grad_enabled():
        return False
    if torch.compiler.is_compiling() or not torch._C._are_functorch_transforms_active():
        return slopes.requires_grad
    return slopes.requires_grad or bool(torch._C._functorch.is_functorch_wrapped_tensor(slopes))


_PRESETS: dict[tuple[int, torch.device], Tensor] = {}


def preset_slopes(num_heads: int, device: torch.device) -> Tensor:
    """`alibi_slopes` on a device, made once: making them takes longer than a small call."""
    # A mode, such as one of fake tensors, may take no other tensors than those made under it.
    if torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack():
        return _slopes_made_there(num_heads, device) if device.type == "cuda" else alibi_slopes(num_heads).to(device)
    found = _PRESETS.get((num_heads, device))
    if found is None:
        # An inference tensor could not be saved for a backward pass later on.
        with torch.inference_mode(False):
            found = alibi_slopes(num_heads).to(device)
        if type(found) is Tensor:
            # Not a fake or a functional one, which belongs to whoever is tracing.
            _PRESETS[num_heads, device] = found
    return found


def _slopes_made_there(num_heads: int, device: torch.device) -> Tensor:
    """The same numbers, for graphs: those that copy them from the host in every call make the stream wait each time."""
    head = torch.arange(1, num_heads + 1, dtype=torch.float64, device=device)
    return torch.exp2(-8.0 * head / num_heads).to(torch.float32)


def problem_of(query: Tensor, key: Tensor, value: Tensor, *call: Any) -> tuple[Problem, str | None]:
    """The description of a call from the operator's arguments."""
    (
        offsets, key_mask, cu_seqlens, cu_seqlens_k, seed, key_center, key_norms, is_causal,
        scale, query_offset, window_left, window_right, dropout_p, tolerance, learned_slopes, backend,
    ) = call  # fmt: skip
    problem = Problem(
        batch=query.shape[0],
        num_heads=query.shape[1],
        num_kv_heads=key.shape[1],
        q_len=query.shape[2],
        k_len=key.shape[2],
        head_dim=query.shape[3],
        value_dim=value.shape[3],
        dtype=query.dtype,
        device=query.device,
        is_causal=is_causal,
        scale=scale,
        query_offset=query_offset if offsets is None else offsets,
        key_mask=key_mask,
        cu_seqlens=cu_seqlens,
        cu_seqlens_k=cu_seqlens_k,
        window=(window_left, window_right),
        dropout_p=dropout_p,
        seed=seed,
        tolerance=tolerance,
        learned_slopes=learned_slopes,
        key_center=key_center,
        key_norms=key_norms,
    )
    return problem, backend or None


def autocast_is_on(device_type: str) -> bool:
    """Some devices, meta among them, have no autocast to ask about."""
    return torch.amp.is_autocast_available(device_type) and torch.is_autocast_enabled(device_type)


def _autocast(tensor: Tensor) -> Tensor:
    """As autocast treats SDPA: everything below float64 goes to the autocast dtype."""
    if tensor.dtype == torch.float64 or not tensor.dtype.is_floating_point:
        return tensor
    return tensor.to(torch.get_autocast_dtype(tensor.device.type))
