"""Functions with the signatures and semantics of flash-attn's, for code that is written to them.

::

    from alibi_attention.integrations.flash_attn import flash_attn_func      # was: from flash_attn import ...

Layouts, defaults and the bottom-right alignment are flash-attn's (version 2): tensors are (batch, seqlen, nheads,
headdim), ``causal`` is False by default, a window side below 0 is open, and without ``alibi_slopes`` there is no bias.
They run wherever `alibi_attention` runs, in float64 and float32 too, skip what lies beyond the certified horizon, and
have gradients, for the slopes as well. What is not carried (softcap, rotary embedding, paged caches, attention
probabilities under dropout) is refused.

Two results differ on purpose. The log-sum-exp is that of the scores as documented; flash-attn's causal kernel adds
m * j instead of -m * |p_i - j|, and its lse is larger by m * p_i, with p_i the position of the query among the keys.
And a row that sees no key has lse -inf, the logarithm of its empty sum, where flash-attn stores +inf.

Source: Dao, "FlashAttention-2", 2023, and the interface of its package, flash_attn_interface.py.
"""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor

from alibi_attention import alibi_attention
from alibi_attention.call import autocast_is_on
from alibi_attention.integrations import flash_attn_arguments as arguments

__all__ = [
    "flash_attn_func",
    "flash_attn_kvpacked_func",
    "flash_attn_qkvpacked_func",
    "flash_attn_varlen_func",
    "flash_attn_varlen_kvpacked_func",
    "flash_attn_varlen_qkvpacked_func",
    "flash_attn_with_kvcache",
]

Returned = Tensor | tuple[Tensor, Tensor, Tensor]


def flash_attn_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
) -> Returned:
    """Attention with linear biases over a padded-free batch.

    ::

        score_ij = softmax_scale * q_i . k_j - alibi_slope * |p_i - j|        p_i = i + seqlen_k - seqlen_q

    With ``causal`` query i sees the keys j <= p_i, aligned bottom right; a query that sees none gives 0::

        seqlen_q 2, seqlen_k 5:  1 1 1 1 0       seqlen_q 5, seqlen_k 2:  0 0
                                 1 1 1 1 1                                0 0
                                                                          0 0
                                                                          1 0
                                                                          1 1

    Args:
        q: (batch, seqlen_q, nheads, headdim).
        k, v: (batch, seqlen_k, nheads_k, headdim); nheads_k divides nheads.
        dropout_p: probability of dropping an attention weight; 0 in evaluation.
        softmax_scale: factor on the dot products; 1 / sqrt(headdim) by default.
        causal: whether to hide the keys after a query.
        window_size: (left, right), keys p_i - left to p_i + right inclusive; a negative side is open.
        softcap: 0; any other is refused.
        alibi_slopes: (nheads,) or (batch, nheads) float32; None for no bias.
        deterministic: on the CPU every backward pass is; elsewhere True is refused unless
            torch.use_deterministic_algorithms is on.
        return_attn_probs: also return the lse and, in the place of the probabilities, which are never formed, a tensor
            without elements.

    Returns:
        out (batch, seqlen_q, nheads, headdim); with return_attn_probs (out, lse (batch, nheads, seqlen_q), probs (0,)).

    Raises:
        ValueError: for an argument that cannot be used; the message names it.
        NotImplementedError: for softcap, for return_attn_probs together with dropout, and for deterministic as above.
    """
    arguments.check_options(dropout_p, softmax_scale, causal, softcap, deterministic, return_attn_probs)
    arguments.check_tensors(q, k, v, dims=4)
    arguments.check_deterministic(deterministic, q)
    slopes = arguments.slopes_for(q, alibi_slopes, sequences=q.shape[0])
    out, lse = _attend(
        q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), slopes, is_causal=causal, scale=softmax_scale,
        window=arguments.window_of(window_size), dropout_p=dropout_p,
    )  # fmt: skip
    return _returned(out.transpose(1, 2), lse, return_attn_probs)


def flash_attn_kvpacked_func(q: Tensor, kv: Tensor, *args: Any, **kwargs: Any) -> Returned:
    """`flash_attn_func` with ``kv`` (batch, seqlen_k, 2, nheads_k, headdim); the other arguments follow as there."""
    k, v = arguments.unpack("kv", kv, dims=5, parts=2)
    return flash_attn_func(q, k, v, *args, **kwargs)


def flash_attn_qkvpacked_func(qkv: Tensor, *args: Any, **kwargs: Any) -> Returned:
    """`flash_attn_func` with ``qkv`` (batch, seqlen, 3, nheads, headdim); the other arguments follow as there."""
    q, k, v = arguments.unpack("qkv", qkv, dims=5, parts=3)
    return flash_attn_func(q, k, v, *args, **kwargs)


def flash_attn_varlen_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
    block_table: Tensor | None = None,
) -> Returned:
    """`flash_attn_func` over sequences of different lengths packed end to end, each aligned at its own end.

    Args:
        q: (total_q, nheads, headdim).
        k, v: (total_k, nheads_k, headdim).
        cu_seqlens_q, cu_seqlens_k: (sequences + 1,) int32, cumulative lengths from 0 to at most total_q and total_k.
            What lies behind the last sequence takes no part: such a query gives 0, lse -inf, and has no gradient.
        max_seqlen_q, max_seqlen_k: at least the longest sequence; checked where that costs nothing, else unused.
        block_table: None; paged caches are refused.
        alibi_slopes: (nheads,), or (sequences, nheads), which attends sequence by sequence.
        dropout_p, softmax_scale, causal, window_size, softcap, deterministic, return_attn_probs: as in
            `flash_attn_func`.

    Returns:
        out (total_q, nheads, headdim); with return_attn_probs (out, lse (nheads, total_q), probs (0,)).

    Raises:
        ValueError, NotImplementedError: as `flash_attn_func`.
    """
    arguments.check_options(dropout_p, softmax_scale, causal, softcap, deterministic, return_attn_probs)
    arguments.refuse("block_table", block_table, "a paged cache", "gather the pages of each sequence into k and v")
    arguments.check_tensors(q, k, v, dims=3)
    arguments.check_deterministic(deterministic, q)
    bounds = arguments.sequences_of(q, k, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k)
    slopes = arguments.slopes_for(q, alibi_slopes, sequences=cu_seqlens_q.shape[0] - 1)
    options: dict[str, Any] = {
        "is_causal": causal,
        "scale": softmax_scale,
        "window": arguments.window_of(window_size),
        "dropout_p": dropout_p,
    }
    q, k, v = (tensor.transpose(0, 1).unsqueeze(0) for tensor in (q, k, v))
    if slopes.dim() == 1:
        out, lse = _attend(q, k, v, slopes, cu_seqlens=bounds[0], cu_seqlens_k=bounds[1], **options)
    else:
        out, lse = _one_by_one(q, k, v, slopes, bounds[0].tolist(), bounds[1].tolist(), options)
    return _returned(out.squeeze(0).transpose(0, 1), lse.squeeze(0), return_attn_probs)


def flash_attn_varlen_kvpacked_func(
    q: Tensor, kv: Tensor, cu_seqlens_q: Tensor, cu_seqlens_k: Tensor, max_seqlen_q: int, max_seqlen_k: int,
    *args: Any, **kwargs: Any,
) -> Returned:  # fmt: skip
    """`flash_attn_varlen_func` with ``kv`` (total_k, 2, nheads_k, headdim); the other arguments follow as there."""
    k, v = arguments.unpack("kv", kv, dims=4, parts=2)
    return flash_attn_varlen_func(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, *args, **kwargs)


def flash_attn_varlen_qkvpacked_func(
    qkv: Tensor, cu_seqlens: Tensor, max_seqlen: int, *args: Any, **kwargs: Any
) -> Returned:
    """`flash_attn_varlen_func` with ``qkv`` (total, 3, nheads, headdim); the other arguments follow as there."""
    q, k, v = arguments.unpack("qkv", qkv, dims=4, parts=3)
    return flash_attn_varlen_func(q, k, v, cu_seqlens, cu_seqlens, max_seqlen, max_seqlen, *args, **kwargs)


def flash_attn_with_kvcache(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    k: Tensor | None = None,
    v: Tensor | None = None,
    rotary_cos: Tensor | None = None,
    rotary_sin: Tensor | None = None,
    cache_seqlens: int | Tensor | None = None,
    cache_batch_idx: Tensor | None = None,
    cache_leftpad: Tensor | None = None,
    block_table: Tensor | None = None,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    rotary_interleaved: bool = True,
    alibi_slopes: Tensor | None = None,
    num_splits: int = 0,
    return_softmax_lse: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Attention over preallocated caches, into which new keys and values are written first, in place.

    Row b holds cache_seqlens[b] tokens. With ``k`` and ``v`` their seqlen_new tokens follow at that index, and the row
    holds as many more. The last of the queries stands at the last token held, as in `flash_attn_func`.

    Args:
        q: (batch, seqlen_q, nheads, headdim).
        k_cache, v_cache: (batch_cache, seqlen_cache, nheads_k, headdim); updated in place.
        k, v: (batch, seqlen_new, nheads_k, headdim), or None to read the cache alone.
        cache_seqlens: tokens held beforehand, an int or (batch,) int32; the whole cache by default.
        cache_batch_idx: (batch,) int32, the row of the cache of each batch element. Those rows are copied to be read.
        cache_leftpad: (batch,) int32, the first index that holds a token; 0 by default, and at most the tokens held.
        rotary_cos, rotary_sin, block_table: None; refused otherwise. ``rotary_interleaved`` then says nothing.
        num_splits: accepted; how a backend divides its work is its own affair.
        softmax_scale, causal, window_size, softcap, alibi_slopes: as in `flash_attn_func`.
        return_softmax_lse: also return the lse.

    Returns:
        out (batch, seqlen_q, nheads, headdim); with return_softmax_lse (out, lse (batch, nheads, seqlen_q)).

    Raises:
        ValueError: for an argument that cannot be used, also for new tokens that do not fit (where lengths can be read
            without a synchronisation) and for tensors that require a gradient: there is no backward pass.
        NotImplementedError: for softcap, rotary embedding, paged caches and forward-mode differentiation.
    """
    del rotary_interleaved, num_splits
    arguments.check_options(0.0, softmax_scale, causal, softcap, False, return_softmax_lse)
    for name, tensor in (("rotary_cos", rotary_cos), ("rotary_sin", rotary_sin)):
        arguments.refuse(name, tensor, "rotary embedding", "ALiBi takes its place; or turn q and k beforehand")
    arguments.refuse("block_table", block_table, "a paged cache", "give each sequence a row of its own")
    rows = arguments.check_cache(q, k_cache, v_cache, k, v, alibi_slopes, cache_batch_idx)
    slopes = arguments.slopes_for(q, alibi_slopes, sequences=q.shape[0])
    window = arguments.window_of(window_size)
    held = arguments.held_tokens(q, k_cache, k, cache_seqlens, cache_leftpad)
    if k is not None and v is not None:
        _write(k_cache, k, held.before, rows)
        _write(v_cache, v, held.before, rows)
    keys, values = (cache[:, : held.span] if rows is None else cache[rows, : held.span] for cache in (k_cache, v_cache))
    out, lse = _attend(
        q.transpose(1, 2), keys.transpose(1, 2), values.transpose(1, 2), slopes, is_causal=causal,
        scale=softmax_scale, query_offset=held.after - q.shape[1], key_mask=held.mask,
        window=window,
    )  # fmt: skip
    return (out.transpose(1, 2), lse) if return_softmax_lse else out.transpose(1, 2)


def _attend(q: Tensor, k: Tensor, v: Tensor, slopes: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
    """Output and lse in the dtype given: flash-attn takes no part in autocast, which would cast a cache every step."""
    if not autocast_is_on(q.device.type):
        return alibi_attention(q, k, v, slopes, return_lse=True, **options)
    with torch.autocast(q.device.type, enabled=False):
        return alibi_attention(q, k, v, slopes, return_lse=True, **options)


def _returned(out: Tensor, lse: Tensor, with_lse: bool) -> Returned:
    return (out, lse, out.new_empty(0)) if with_lse else out


def _one_by_one(
    q: Tensor, k: Tensor, v: Tensor, slopes: Tensor, q_ends: list[int], k_ends: list[int], options: dict[str, Any]
) -> tuple[Tensor, Tensor]:
    """Packed sequences with slopes of their own, (sequences, nheads), each in a call of its own."""
    outs, lses = [], []
    for n, (at_q, at_k) in enumerate(zip(_slices(q_ends), _slices(k_ends), strict=True)):
        query = q[:, :, at_q]
        if query.shape[2] == 0:
            continue
        if at_k.start == at_k.stop:
            lse = query.new_full(query.shape[:3], -torch.inf, dtype=torch.promote_types(q.dtype, torch.float32))
            outs.append(torch.zeros_like(query))
        else:
            out, lse = _attend(query, k[:, :, at_k], v[:, :, at_k], slopes[n], **options)
            outs.append(out)
        lses.append(lse)
    return torch.cat(outs, dim=2), torch.cat(lses, dim=2)


def _slices(ends: list[int]) -> list[slice]:
    return [slice(first, end) for first, end in itertools.pairwise(ends)]


def _write(cache: Tensor, new: Tensor, before: int | Tensor, rows: Tensor | None) -> None:
    """Put ``new`` (batch, tokens, ...) into the rows of the cache, from index ``before`` on."""
    tokens = new.shape[1]
    if rows is None and isinstance(before, int):
        cache[:, before : before + tokens] = new
        return
    row = torch.arange(new.shape[0], device=cache.device) if rows is None else rows
    index = torch.arange(tokens, device=cache.device)
    index = (index + before).expand(new.shape[0], -1) if isinstance(before, int) else index + before.unsqueeze(1)
    cache[row.unsqueeze(1), index] = new
