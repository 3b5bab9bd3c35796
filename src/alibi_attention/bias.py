"""The bias itself, as a matrix to look at. No operator here ever builds it."""

from __future__ import annotations

import torch
from torch import Tensor

from alibi_attention.slopes import alibi_slopes


def relative_bias(slopes: Tensor, query_positions: Tensor, key_positions: Tensor) -> Tensor:
    """-m * |i - j|, from the relative distance: exact where positions themselves are too large for the dtype.

    Args:
        slopes: (..., num_heads), floating point.
        query_positions: (q_len,) integers.
        key_positions: (k_len,) integers.

    Returns:
        (..., num_heads, q_len, k_len) in the dtype of ``slopes``.
    """
    # Negated as an integer: a negated float would turn the diagonal into -0.0.
    fall = -(query_positions.unsqueeze(-1) - key_positions).abs()
    return slopes[..., None, None] * fall.to(slopes.dtype)


def build_alibi_bias(
    num_heads: int,
    seq_len: int,
    dtype: torch.dtype = torch.float32,
    *,
    is_causal: bool = True,
    key_len: int | None = None,
    query_offset: int | None = None,
    slopes: Tensor | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    """The bias matrix of ALiBi, for study and for attention code that takes an additive mask.

    ::

        bias[h, i, j] = -m_h * |i + query_offset - j|        -inf where is_causal and j > i + query_offset

    in nats: a factor exp(bias) on the weight of a key. Add it to scale * q . k, before the softmax.
    Its size is num_heads * seq_len * key_len; `alibi_attention` computes the same attention without it.

    Args:
        num_heads: H.
        seq_len: number of queries.
        dtype: of the result. The product is formed in float32 (float64 for float64) and rounded once.
        is_causal: exclude keys after the query.
        key_len: number of keys; ``seq_len`` by default.
        query_offset: position of query 0 among the keys; ``key_len - seq_len`` by default, so that the last query
            stands at the last key.
        slopes: (num_heads,) in nats per token, to use in place of `alibi_slopes`.
        device: where to build it; that of ``slopes`` by default.

    Returns:
        (num_heads, seq_len, key_len) of ``dtype``.

    Raises:
        ValueError: for lengths below 1, a dtype that is not floating point, or slopes of another shape.

    Source: Press, Smith, Lewis, "Train Short, Test Long", ICLR 2022, section 3.
    """
    key_len = seq_len if key_len is None else key_len
    for name, value in (("seq_len", seq_len), ("key_len", key_len)):
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f"{name}: expected an integer of at least 1, got {value!r}")
    if not dtype.is_floating_point:
        raise ValueError(f"dtype: expected a floating-point dtype, got {dtype}")
    if slopes is None:
        slopes = alibi_slopes(num_heads)
    elif tuple(slopes.shape) != (num_heads,):
        raise ValueError(f"slopes: expected shape ({num_heads},), got {tuple(slopes.shape)}")
    work = torch.float64 if dtype == torch.float64 else torch.float32
    slopes = slopes.to(device=device or slopes.device, dtype=work)
    offset = key_len - seq_len if query_offset is None else query_offset
    rows = torch.arange(seq_len, device=slopes.device) + offset
    columns = torch.arange(key_len, device=slopes.device)
    bias = relative_bias(slopes, rows, columns)
    if is_causal:
        bias = bias.masked_fill(columns > rows.unsqueeze(-1), -torch.inf)
    return bias.to(dtype)
