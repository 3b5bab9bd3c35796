"""What the horizon knows of the keys: one pass over them, then their norms by block."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from alibi_attention.horizon.tiles import BLOCK_K, blocks_of
from alibi_attention.problem import Problem
from alibi_attention.visibility import mask_range

# Norms are taken in working precision: inflate them past their rounding, and past squares that underflow.
_NORM_INFLATION = 1.0 + 1e-3
_NORM_FLOOR = 1e-17
# Temporaries of the pre-pass stay near this many elements, whatever the batch.
_CHUNK_ELEMENTS = 1 << 20


def safe_norm(vectors: Tensor, work: torch.dtype) -> Tensor:
    """Euclidean norms over the last dimension as float64, never below the true ones."""
    norm: Tensor = torch.linalg.vector_norm(vectors, dim=-1, dtype=work)
    return norm.double() * _NORM_INFLATION + _NORM_FLOOR


class KeySummary(NamedTuple):
    """What the horizon knows of the keys without reading them again.

    Attributes:
        center: (batch, num_kv_heads, head_dim), the mean of each head's finite, unpadded keys.
        norms: (batch, num_kv_heads, blocks) float64, the largest |k - center| in each block of BLOCK_K keys, inflated
            past rounding; inf where a key or value is not finite, -inf where every key is padding.
        first_block: (batch,) the block of the first key that is not padding, where attention sinks live.
    """

    center: Tensor
    norms: Tensor
    first_block: Tensor


def summarize_keys(problem: Problem, key: Tensor, value: Tensor | None) -> KeySummary:
    """The summary the call brought with it; else one pass over keys and values."""
    device, work = problem.device, problem.compute_dtype
    first_block = torch.zeros(problem.batch, dtype=torch.int64, device=device)
    if problem.key_mask is not None:
        first_block = (mask_range(problem.key_mask)[0] // BLOCK_K).to(torch.int64)
    if problem.key_center is not None and problem.key_norms is not None:
        return KeySummary(problem.key_center, problem.key_norms, first_block)
    valid = problem.key_mask
    if valid is None:
        valid = torch.ones(problem.batch, problem.k_len, dtype=torch.bool, device=device)
    center = key.new_empty(problem.batch, problem.num_kv_heads, problem.head_dim, dtype=work)
    norms = key.new_empty(problem.batch, problem.num_kv_heads, problem.k_len, dtype=torch.float64)
    for at in head_chunks(problem):
        counted = valid[at[0], None, :, None]
        keys = key[at].to(work).masked_fill(~counted, 0.0)
        finite = keys.isfinite().all(-1, keepdim=True)
        kept = keys.masked_fill(~finite, 0.0)
        number = (counted & finite).sum(2).clamp_min(1)
        center[at] = kept.sum(2) / number
        length = distances_from(center[at], keys, None if value is None else value[at])
        norms[at] = length.masked_fill(~counted.squeeze(-1), -torch.inf)
    short = blocks_of(problem.k_len, BLOCK_K) * BLOCK_K - problem.k_len
    padded = torch.nn.functional.pad(norms, (0, short), value=-torch.inf)
    return KeySummary(center, padded.unflatten(-1, (-1, BLOCK_K)).amax(-1), first_block)


def distances_from(center: Tensor, keys: Tensor, values: Tensor | None) -> Tensor:
    """(b, h, k_len) float64, |k - center| from above; inf where a key or its value is not finite.

    Args:
        center: (b, h, head_dim).
        keys: (b, h, k_len, head_dim).
        values: (b, h, k_len, value_dim), or None to take them to be finite.
    """
    lengths = []
    for at in token_chunks(keys):
        length = safe_norm(keys[:, :, at].to(center.dtype) - center.unsqueeze(2), center.dtype)
        if values is not None:
            length = torch.where(values[:, :, at].isfinite().all(-1), length, torch.inf)
        lengths.append(torch.where(length.isnan(), torch.inf, length))
    return lengths[0] if len(lengths) == 1 else torch.cat(lengths, dim=2)


def token_chunks(keys: Tensor) -> Iterator[slice]:
    """Slices over the tokens of (b, h, k_len, head_dim) that fit the budget of the pre-pass."""
    step = max(BLOCK_K, _CHUNK_ELEMENTS // (keys.shape[0] * keys.shape[1] * keys.shape[3]))
    for start in range(0, keys.shape[2], step):
        yield slice(start, start + step)


def head_chunks(problem: Problem) -> Iterator[tuple[slice, slice]]:
    """Slices over batch and key heads whose keys fit the budget of the pre-pass."""
    each = max(problem.k_len, problem.q_len) * problem.head_dim
    heads = max(1, min(problem.num_kv_heads, _CHUNK_ELEMENTS // each))
    batches = max(1, _CHUNK_ELEMENTS // (each * heads)) if heads == problem.num_kv_heads else 1
    for b in range(0, problem.batch, batches):
        for h in range(0, problem.num_kv_heads, heads):
            yield slice(b, b + batches), slice(h, h + heads)
