"""`mend` for the gradients of keys and values: a query or a gradient that is not finite, and the keys its row sees."""

# Triton's language has no static types, and its loops no underscore for what is not wanted.
# mypy: ignore-errors
# ruff: noqa: RUF059

from __future__ import annotations

import triton
import triton.language as tl

from alibi_attention.backends.triton.backward_keys import masked_grad_transposed, query_tiles
from alibi_attention.backends.triton.common import (
    LOG2E,
    NO_MASS,
    is_finite,
    rows_seen,
    shift_and_mean,
    weighs_something,
)
from alibi_attention.backends.triton.mend import any_marked


@triton.jit
def add_rows_not_finite(
    total, terms, stride, first, key_index, batch, q_len, k_len, offset, left, right, offsets, key_range, position_of,
    lower_of, upper_of, notes, width: tl.constexpr, block: tl.constexpr, number: tl.constexpr,
    only_with_mass: tl.constexpr,
):  # fmt: skip
    """Adds to each key of ``total`` the infinities and NaN of those rows, ``number`` from ``first``, that see it."""
    element = tl.arange(0, block)
    for index in range(tl.minimum(number, q_len - first)):
        at = first + index
        position, near, lower, upper, sees = rows_seen(
            at, batch, q_len, k_len, offset, left, right, offsets, key_range, position_of, lower_of, upper_of
        )
        term = tl.load(terms + at.to(tl.int64) * stride + element, mask=element < width, other=0.0).to(tl.float32)
        if only_with_mass:
            shift, mean = shift_and_mean(tl.load(notes + at))
            term = tl.where(weighs_something(shift, mean), term, 0.0)
        reaches = ((key_index >= lower) & (key_index < upper))[:, None] & (is_finite(term) == 0)[None, :]
        total += tl.where(reaches, tl.zeros_like(total) + term[None, :], 0.0)
    return total


@triton.jit
def mend_keys(
    start, shared,
    query, key, value, slopes, grad_out, notes, grad_key, grad_value, ranges, seed,
    offsets, key_range, position_of, lower_of, upper_of, key_rows,
    query_batch, query_head, query_row, key_batch, key_head, key_row, value_batch, value_head, value_row,
    flow_batch, flow_head, flow_row, slope_batch, slope_head, num_heads, group, q_len, k_len, range_keys,
    offset, left, right, scale, score_scale, threshold, keep_scale,
    head_dim: tl.constexpr, value_dim: tl.constexpr, block_d: tl.constexpr, block_v: tl.constexpr,
    block_m: tl.constexpr, block_n: tl.constexpr, two_sided: tl.constexpr, precision: tl.constexpr,
):  # fmt: skip
    """Gradients of the keys and values from ``start``."""
    key_index = start + tl.arange(0, block_n)
    ranged = (k_len + range_keys - 1) // range_keys
    own_range = start // range_keys
    kv_heads = num_heads // group
    batch, kv_head = shared // kv_heads, shared % kv_heads
    element, value_element = tl.arange(0, block_d), tl.arange(0, block_v)
    key_inside = (key_index < k_len)[:, None] & (element < head_dim)[None, :]
    value_inside = (key_index < k_len)[:, None] & (value_element < value_dim)[None, :]
    keys = tl.load(
        key + batch.to(tl.int64) * key_batch + kv_head.to(tl.int64) * key_head
        + key_index.to(tl.int64)[:, None] * key_row + element[None, :], mask=key_inside, other=0.0,
    )  # fmt: skip
    values = tl.load(
        value + batch.to(tl.int64) * value_batch + kv_head.to(tl.int64) * value_head
        + key_index.to(tl.int64)[:, None] * value_row + value_element[None, :], mask=value_inside, other=0.0,
    )  # fmt: skip
    grad_keys = tl.zeros([block_n, block_d], tl.float32)
    grad_values = tl.zeros([block_n, block_v], tl.float32)
    if key_rows is not None:
        key_rows += own_range * 4
    end = tl.minimum(start + block_n, k_len)
    for member in range(group):
        head = kv_head * group + member
        pair = batch * num_heads + head
        slope = tl.load(slopes + batch * slope_batch + head * slope_head) * LOG2E
        flat = pair.to(tl.int64) * q_len
        queries = query + batch.to(tl.int64) * query_batch + head.to(tl.int64) * query_head
        flows = grad_out + batch.to(tl.int64) * flow_batch + head.to(tl.int64) * flow_head
        entry = ranges
        if ranges is not None:
            entry = ranges + (pair.to(tl.int64) * ranged + own_range) * 2
        base, count, a, b, c, d, shifted = query_tiles(
            start, end, batch, q_len, k_len, offset, left, right, offsets, key_range, position_of, key_rows, entry,
            block_m, block_n, two_sided,
        )  # fmt: skip
        for tile in tl.range(0, count, num_stages=1):
            first_row = base + tile * block_m
            row = first_row + tl.arange(0, block_m)
            position, near, lower, upper, sees = rows_seen(
                row, batch, q_len, k_len, offset, left, right, offsets, key_range, position_of, lower_of, upper_of
            )
            row_shift, row_mean = shift_and_mean(tl.load(notes + flat + row, mask=sees, other=NO_MASS))
            rows = tl.load(
                queries + row.to(tl.int64)[:, None] * query_row + element[None, :],
                mask=sees[:, None] & (element < head_dim)[None, :], other=0.0,
            )  # fmt: skip
            flow = tl.load(
                flows + row.to(tl.int64)[:, None] * flow_row + value_element[None, :],
                mask=(sees & weighs_something(row_shift, row_mean))[:, None] & (value_element < value_dim)[None, :],
                other=0.0,
            )  # fmt: skip
            weights, grad_scores = masked_grad_transposed(
                keys, values, rows, flow, key_index, near, lower, upper, row_shift, row_mean, scale, slope,
                seed, pair, first_row, start, threshold, keep_scale, block_m, block_n, True, precision,
            )  # fmt: skip
            flow = tl.where(is_finite(flow), flow, 0.0)
            rows = tl.where(is_finite(rows), rows, 0.0)
            grad_values = tl.dot(weights.to(flow.dtype), flow, grad_values, input_precision=precision)
            grad_keys = tl.dot(grad_scores.to(rows.dtype), rows, grad_keys, input_precision=precision)
            grad_keys = add_rows_not_finite(
                grad_keys, queries, query_row, first_row, key_index, batch, q_len, k_len, offset, left, right,
                offsets, key_range, position_of, lower_of, upper_of, notes + flat,
                head_dim, block_d, block_m, False,
            )  # fmt: skip
            grad_values = add_rows_not_finite(
                grad_values, flows, flow_row, first_row, key_index, batch, q_len, k_len, offset, left, right,
                offsets, key_range, position_of, lower_of, upper_of, notes + flat,
                value_dim, block_v, block_m, True,
            )  # fmt: skip
    flat_key = shared.to(tl.int64) * k_len + key_index
    tl.store(
        grad_key + flat_key[:, None] * head_dim + element[None, :],
        (grad_keys * score_scale).to(grad_key.dtype.element_ty), mask=key_inside,
    )  # fmt: skip
    tl.store(
        grad_value + flat_key[:, None] * value_dim + value_element[None, :],
        (grad_values * keep_scale).to(grad_value.dtype.element_ty), mask=value_inside,
    )  # fmt: skip


@triton.jit(
    do_not_specialize=["num_heads", "group", "q_len", "k_len", "threshold", "range_keys", "offset", "left", "right"]
)
def mend_key_kernel(
    query, key, value, slopes, grad_out, notes, grad_key, grad_value, spoilt, ranges, seed,
    offsets, key_range, position_of, lower_of, upper_of, key_rows,
    query_batch, query_head, query_row, key_batch, key_head, key_row, value_batch, value_head, value_row,
    flow_batch, flow_head, flow_row, slope_batch, slope_head, num_heads, group, q_len, k_len, range_keys,
    offset: tl.int64, left: tl.int64, right: tl.int64, scale, score_scale, threshold, keep_scale,
    head_dim: tl.constexpr, value_dim: tl.constexpr, block_d: tl.constexpr, block_v: tl.constexpr,
    at_once: tl.constexpr, block_m: tl.constexpr, block_n: tl.constexpr, two_sided: tl.constexpr,
    precision: tl.constexpr,
):  # fmt: skip
    """`key_kernel` for blocks with a key marked in ``spoilt``, (batch, kv_heads, k_len); ``ranges`` and ``key_rows``
    are for blocks of ``range_keys`` keys.
    """
    blocks = (k_len + at_once - 1) // at_once
    shared = tl.program_id(0) // blocks
    begin = tl.program_id(0) % blocks * at_once
    marks = spoilt + shared.to(tl.int64) * k_len
    if not any_marked(marks, begin, k_len, at_once):
        return
    for start in range(begin, tl.minimum(begin + at_once, k_len), block_n):
        if any_marked(marks, start, k_len, block_n):
            mend_keys(
                start, shared, query, key, value, slopes, grad_out, notes, grad_key, grad_value, ranges, seed,
                offsets, key_range, position_of, lower_of, upper_of, key_rows,
                query_batch, query_head, query_row, key_batch, key_head, key_row, value_batch, value_head, value_row,
                flow_batch, flow_head, flow_row, slope_batch, slope_head, num_heads, group, q_len, k_len, range_keys,
                offset, left, right, scale, score_scale, threshold, keep_scale,
                head_dim, value_dim, block_d, block_v, block_m, block_n, two_sided, precision,
            )  # fmt: skip
