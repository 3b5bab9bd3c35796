"""The operator: what PyTorch sees (schema, shapes, gradients), and the function users call."""

from __future__ import annotations

from typing import Any, Literal, overload

import torch
from torch import Tensor

from alibi_attention.dispatch import choose
from alibi_attention.problem import (
    Problem,
    Saved,
    check_key_mask,
    check_packed,
    check_query_offset,
    check_scalars,
    check_tensors,
    check_window,
    compute_dtype,
    default_tolerance,
)
from alibi_attention.slopes import alibi_slopes

# What follows the tensors in both operators. Strings stand for the backend, "" for the choice of `dispatch`.
_CALL = (
    "Tensor? offsets, Tensor? key_mask, Tensor? cu_seqlens, Tensor? cu_seqlens_k, Tensor? seed, bool is_causal, "
    "float scale, SymInt query_offset, SymInt window_left, SymInt window_right, float dropout_p, float tolerance, "
    "bool learned_slopes, str backend"
)
_LIBRARY = torch.library.Library("alibi_attention", "DEF")
_LIBRARY.define(f"forward(Tensor query, Tensor key, Tensor value, Tensor slopes, {_CALL}) -> (Tensor, Tensor, Tensor)")
_LIBRARY.define(
    "backward(Tensor grad_out, Tensor grad_lse, Tensor query, Tensor key, Tensor value, Tensor slopes, Tensor out, "
    f"Tensor lse, Tensor plan, {_CALL}) -> (Tensor, Tensor, Tensor, Tensor)"
)


def _problem(query: Tensor, key: Tensor, value: Tensor, *call: Any) -> tuple[Problem, str | None]:
    """The description of a call from the operator's arguments."""
    (
        offsets, key_mask, cu_seqlens, cu_seqlens_k, seed, is_causal,
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
    )
    return problem, backend or None


def _forward(query: Tensor, key: Tensor, value: Tensor, slopes: Tensor, *call: Any) -> tuple[Tensor, Tensor, Tensor]:
    problem, backend = _problem(query, key, value, *call)
    return choose(problem, backend).forward(problem, query, key, value, slopes)


def _forward_fake(
    query: Tensor, key: Tensor, value: Tensor, slopes: Tensor, *call: Any
) -> tuple[Tensor, Tensor, Tensor]:
    problem, backend = _problem(query, key, value, *call)
    rows = (problem.batch, problem.num_heads, problem.q_len)
    out = query.new_empty(*rows, problem.value_dim)
    lse = query.new_empty(rows, dtype=problem.compute_dtype)
    return out, lse, query.new_empty(choose(problem, backend).plan_shape(problem), dtype=torch.int32)


def _backward(
    grad_out: Tensor, grad_lse: Tensor, query: Tensor, key: Tensor, value: Tensor, slopes: Tensor,
    out: Tensor, lse: Tensor, plan: Tensor, *call: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    problem, backend = _problem(query, key, value, *call)
    saved = Saved(query, key, value, slopes, out, lse, plan)
    grads = choose(problem, backend).backward(problem, saved, grad_out, grad_lse)
    grad_slopes = grads.slopes if slopes.dim() == 2 else grads.slopes.sum(0)
    return grads.query, grads.key, grads.value, grad_slopes.to(slopes.dtype)


def _backward_fake(
    grad_out: Tensor,
    grad_lse: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    slopes: Tensor,
    *rest: Any,  # noqa: ARG001
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return (
        query.new_empty(query.shape),
        key.new_empty(key.shape),
        value.new_empty(value.shape),
        torch.empty_like(slopes),
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    tensors, call = inputs[:4], inputs[4:]
    ctx.mark_non_differentiable(output[2])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*tensors, *output, *call[:5])
    ctx.call = call[5:]


def _gradients(ctx: Any, grad_out: Tensor | None, grad_lse: Tensor | None, _: Tensor | None) -> tuple[Any, ...]:
    query, key, value, slopes, out, lse, plan, *optional = ctx.saved_tensors
    grad_out = torch.zeros_like(out) if grad_out is None else grad_out
    grad_lse = torch.zeros_like(lse) if grad_lse is None else grad_lse
    grads = torch.ops.alibi_attention.backward(
        grad_out, grad_lse, query, key, value, slopes, out, lse, plan, *optional, *ctx.call
    )
    return (*grads, *(None for _ in range(len(optional) + len(ctx.call))))


_LIBRARY.impl("forward", _forward, "CompositeExplicitAutograd")
_LIBRARY.impl("backward", _backward, "CompositeExplicitAutograd")
torch.library.register_fake("alibi_attention::forward", _forward_fake, lib=_LIBRARY)
torch.library.register_fake("alibi_attention::backward", _backward_fake, lib=_LIBRARY)
torch.library.register_autograd("alibi_attention::forward", _gradients, setup_context=_setup_context, lib=_LIBRARY)


def _twice(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:  # noqa: ARG001
    raise RuntimeError(
        "alibi_attention has no second derivative: call it without create_graph=True, "
        "or differentiate alibi_attention.reference.reference_attention, which has every derivative"
    )


torch.library.register_autograd("alibi_attention::backward", _twice, lib=_LIBRARY)


@overload
def alibi_attention(
    query: Tensor, key: Tensor, value: Tensor, slopes: Tensor | None = ..., *, is_causal: bool = ...,
    scale: float | None = ..., query_offset: int | Tensor | None = ..., key_mask: Tensor | None = ...,
    cu_seqlens: Tensor | None = ..., cu_seqlens_k: Tensor | None = ...,
    window: tuple[int | None, int | None] | None = ..., dropout_p: float = ..., tolerance: float | None = ...,
    return_lse: Literal[False] = ..., backend: str | None = ...,
) -> Tensor: ...  # fmt: skip
@overload
def alibi_attention(
    query: Tensor, key: Tensor, value: Tensor, slopes: Tensor | None = ..., *, is_causal: bool = ...,
    scale: float | None = ..., query_offset: int | Tensor | None = ..., key_mask: Tensor | None = ...,
    cu_seqlens: Tensor | None = ..., cu_seqlens_k: Tensor | None = ...,
    window: tuple[int | None, int | None] | None = ..., dropout_p: float = ..., tolerance: float | None = ...,
    return_lse: Literal[True], backend: str | None = ...,
) -> tuple[Tensor, Tensor]: ...  # fmt: skip
def alibi_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    slopes: Tensor | None = None,
    *,
    is_causal: bool = True,
    scale: float | None = None,
    query_offset: int | Tensor | None = None,
    key_mask: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    cu_seqlens_k: Tensor | None = None,
    window: tuple[int | None, int | None] | None = None,
    dropout_p: float = 0.0,
    tolerance: float | None = None,
    return_lse: bool = False,
    backend: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Attention with linear biases, in O(length) memory, without the keys too far away to matter.

    ::

        score_ij = scale * q_i . k_j - m_h * |p_i - j|        p_i = i + query_offset
        out_i    = sum_j softmax_j(score_ij) v_j              over the keys j that query i sees

    Query i sees key j unless is_causal and j > p_i, or key_mask is False there, or it is outside the window or in
    another packed sequence. A query that sees no key gets output 0, lse -inf and zero gradients. The default
    query_offset, k_len - q_len, stands the last query at the last key (x: seen, causal)::

        q_len 2, k_len 5:  x x x x .       q_len 5, k_len 2:  . .
                           x x x x x                          . .
                                                              . .
                                                              x .
                                                              x x

    Args:
        query: (batch, num_heads, q_len, head_dim); float64, float32, bfloat16 or float16; any strides.
        key: (batch, num_kv_heads, k_len, head_dim); num_kv_heads divides num_heads (grouped-query attention).
        value: (batch, num_kv_heads, k_len, value_dim).
        slopes: (num_heads,) or (batch, num_heads) float32, nats per token, any sign; `alibi_slopes(num_heads)` by
            default. Differentiable.
        is_causal: whether a query is kept from the keys after it.
        scale: factor on the dot products, not on the bias; 1 / sqrt(head_dim) by default.
        query_offset: position of query 0 among the keys, in tokens: an int, or a (batch,) integer tensor.
        key_mask: (batch, k_len) bool, True where a key takes part, as in SDPA's boolean attn_mask
            (nn.MultiheadAttention's key_padding_mask is the opposite). The True keys of a row are contiguous.
        cu_seqlens: (sequences + 1,) int32: packed sequences in one row of batch 1, sequence n in
            [cu_seqlens[n], cu_seqlens[n + 1]).
        cu_seqlens_k: the same for the keys, where they are packed differently.
        window: (left, right) in tokens: how far before and after itself a query sees; None for unbounded.
        dropout_p: probability of dropping each attention weight, seeded from torch's generator.
        tolerance: the largest share of a row's softmax mass that skipped keys may hold. None is rounding level, 2^-24
            (2^-53 in float64); 0 computes every tile. See docs/maths.md for what is certified.
        return_lse: also return the logarithm of each row's softmax denominator.
        backend: "blocked" or "reference"; None chooses.

    Returns:
        out (batch, num_heads, q_len, value_dim) in the dtype of query. With return_lse also lse
        (batch, num_heads, q_len), natural logarithm, float32 (float64 for float64), which has a gradient.

    Raises:
        ValueError: for an argument of the wrong shape, dtype, device or value; the message names it.
        NotImplementedError: where the backend asked for cannot run the call; lists each backend with its reason.

    Source: Press, Smith, Lewis, "Train Short, Test Long: Attention with Linear Biases Enables Input Length
    Extrapolation", ICLR 2022, arXiv 2108.12409.
    """
    if torch.is_autocast_enabled(query.device.type):
        query, key, value = _autocast(query), _autocast(key), _autocast(value)
    if slopes is None:
        slopes = alibi_slopes(query.shape[1]).to(query.device)
    check_tensors(query, key, value, slopes)
    batch, q_len, k_len = query.shape[0], query.shape[2], key.shape[2]
    scale = query.shape[3] ** -0.5 if scale is None else float(scale)
    tolerance = default_tolerance(query.dtype) if tolerance is None else float(tolerance)
    check_scalars(scale, dropout_p, tolerance)
    window_left, window_right = check_window(window)
    if key_mask is not None:
        check_key_mask(key_mask, batch, k_len, query.device)
    if cu_seqlens is not None:
        check_packed(cu_seqlens, cu_seqlens_k, batch, q_len, k_len, alone=query_offset is None and key_mask is None)
    elif cu_seqlens_k is not None:
        raise ValueError(
            "cu_seqlens_k: expected together with cu_seqlens, got it alone; give cu_seqlens for the queries"
        )
    offsets, offset = None, k_len - q_len
    if isinstance(query_offset, Tensor):
        check_query_offset(query_offset, batch, query.device)
        offsets, offset = query_offset, 0
    elif query_offset is not None:
        offset = query_offset
    seed = None
    if dropout_p > 0.0:
        seed = torch.randint(-(2**63), 2**63 - 1, (), dtype=torch.int64, device=query.device)
    out, lse, _ = torch.ops.alibi_attention.forward(
        query, key, value, slopes.to(compute_dtype(query.dtype)),
        offsets, key_mask, cu_seqlens, cu_seqlens_k, seed, is_causal,
        scale, offset, window_left, window_right, dropout_p, tolerance,
        slopes.requires_grad and torch.is_grad_enabled(), backend or "",
    )  # fmt: skip
    return (out, lse) if return_lse else out


def _autocast(tensor: Tensor) -> Tensor:
    """As autocast treats SDPA: everything below float64 goes to the autocast dtype."""
    if tensor.dtype == torch.float64 or not tensor.dtype.is_floating_point:
        return tensor
    return tensor.to(torch.get_autocast_dtype(tensor.device.type))
