"""A second look at blocks that met an infinity or a NaN, which a product spreads to rows that do not see it.

0 * NaN is NaN: a value that is not finite reaches, through the zeros of a mask, every row of a tile. The main kernels
note which rows came out not finite; a program of these looks at the marks of ``at_once`` rows, returns where there are
none, and else computes the small blocks that have some, adding what is not finite to the rows that see it and to no
others. They are apart because they would cost the main ones registers; and nearly all of their programs only look, so
there shall be few.
"""

# Triton's language has no static types, and its loops no underscore for what is not wanted.
# mypy: ignore-errors
# ruff: noqa: RUF059

from __future__ import annotations

import triton
import triton.language as tl

from alibi_attention.backends.triton.backward import masked_grad
from alibi_attention.backends.triton.common import (
    INF,
    LOG2E,
    NO_MASS,
    is_finite,
    kept_weights,
    key_tiles,
    masked_count,
    masked_tile,
    programs_over_rows,
    rows_of_block,
    rows_seen,
    shift_and_mean,
    weighs_something,
)
from alibi_attention.backends.triton.forward import masked_scores


@triton.jit
def add_terms_not_finite(
    total, terms, stride, first, lower, upper, count, width: tl.constexpr, block: tl.constexpr, number: tl.constexpr
):  # fmt: skip
    """Adds to each row of ``total`` the infinities and NaN among terms first..first + number - 1 that the row sees."""
    element = tl.arange(0, block)
    for index in range(tl.minimum(number, count - first)):
        at = first + index
        term = tl.load(terms + at.to(tl.int64) * stride + element, mask=element < width, other=0.0).to(tl.float32)
        reaches = ((at >= lower) & (at < upper))[:, None] & (is_finite(term) == 0)[None, :]
        total += tl.where(reaches, tl.zeros_like(total) + term[None, :], 0.0)
    return total


@triton.jit
def any_marked(marks, first, count, number: tl.constexpr):
    """Whether one of ``number`` rows or keys from ``first``, of ``count``, was marked by the kernel before."""
    at = first + tl.arange(0, number)
    return tl.max(tl.load(marks + at, mask=at < count, other=0), 0) != 0


@triton.jit
def mend_forward(
    first_row, row_end, pair,
    query, key, value, slopes, out, lse, entry, seed, offsets, key_range, position_of, lower_of, upper_of,
    query_batch, query_head, query_row, key_batch, key_head, key_row, value_batch, value_head, value_row,
    slope_batch, slope_head, num_heads, group, q_len, k_len,
    offset, left, right, scale, threshold, keep_scale,
    head_dim: tl.constexpr, value_dim: tl.constexpr, block_d: tl.constexpr, block_v: tl.constexpr,
    block_m: tl.constexpr, block_n: tl.constexpr, two_sided: tl.constexpr, precision: tl.constexpr,
):  # fmt: skip
    """Output of the rows from ``first_row``, from their lse; ``entry`` is theirs in the plan."""
    row = first_row + tl.arange(0, block_m)
    batch, head = pair // num_heads, pair % num_heads
    position, near, lower, upper, sees = rows_seen(
        row, batch, row_end, k_len, offset, left, right, offsets, key_range, position_of, lower_of, upper_of
    )
    base, end, count, a, b, c, d, apart = key_tiles(
        lower, upper, near, sees, entry, k_len, block_n, two_sided, entry is not None
    )
    nats = tl.load(slopes + batch * slope_batch + head * slope_head)
    flat = pair.to(tl.int64) * q_len + row
    stray = tl.abs(position - near.to(tl.int64)).to(tl.float32)
    log_mass = tl.load(lse + flat, mask=sees, other=-INF)
    has_mass = sees & (log_mass != -INF)
    shift = tl.where(has_mass, (log_mass + nats * stray) * LOG2E, INF)

    element, value_element = tl.arange(0, block_d), tl.arange(0, block_v)
    rows = tl.load(
        query + batch.to(tl.int64) * query_batch + head.to(tl.int64) * query_head
        + row.to(tl.int64)[:, None] * query_row + element[None, :],
        mask=sees[:, None] & (element < head_dim)[None, :], other=0.0,
    )  # fmt: skip
    keys = key + batch.to(tl.int64) * key_batch + (head // group).to(tl.int64) * key_head
    values = value + batch.to(tl.int64) * value_batch + (head // group).to(tl.int64) * value_head
    column = tl.arange(0, block_n)
    total = tl.zeros([block_m, block_v], tl.float32)
    for index in tl.range(0, masked_count(count, 0, 0, count, count, apart, block_n), num_stages=1):
        start, limit = masked_tile(index, base, end, count, 0, 0, count, count, apart, block_n)
        at = start + column
        inside = at < tl.minimum(limit, k_len)
        key_part = tl.load(
            keys + at.to(tl.int64)[None, :] * key_row + element[:, None],
            mask=(element < head_dim)[:, None] & inside[None, :], other=0.0,
        )  # fmt: skip
        scores, seen = masked_scores(
            rows, key_part, at, limit, near, lower, upper, scale, nats * LOG2E, True, precision
        )
        weights = tl.where(seen, tl.exp2(scores - shift[:, None]), 0.0)
        if seed is not None:
            kept = kept_weights(tl.load(seed), pair, first_row, start, threshold, block_m, block_n)
            # A factor of 0: a weight that is no number stays one.
            weights *= tl.where(kept, 1.0, 0.0)
        value_part = tl.load(
            values + at.to(tl.int64)[:, None] * value_row + value_element[None, :],
            mask=(value_element < value_dim)[None, :] & inside[:, None], other=0.0,
        )  # fmt: skip
        value_part = tl.where(is_finite(value_part), value_part, 0.0)
        total = tl.dot(weights.to(value_part.dtype), value_part, total, input_precision=precision)
        total = add_terms_not_finite(
            total, values, value_row, start, lower, tl.minimum(upper, limit), k_len, value_dim, block_v, block_n
        )
    total = tl.where(has_mass[:, None], total * keep_scale, 0.0)
    # Products formed here in another way may not overflow where those of the lse did.
    total = tl.where((log_mass == INF)[:, None], float("nan"), total)
    tl.store(
        out + flat[:, None] * value_dim + value_element[None, :], total.to(out.dtype.element_ty),
        mask=(row < row_end)[:, None] & (value_element < value_dim)[None, :],
    )  # fmt: skip


@triton.jit(
    do_not_specialize=["num_heads", "group", "q_len", "k_len", "entries", "threshold", "offset", "left", "right"]
)
def mend_forward_kernel(
    query, key, value, slopes, out, lse, spoilt, plan, seed,
    offsets, key_range, position_of, lower_of, upper_of, row_blocks,
    query_batch, query_head, query_row, key_batch, key_head, key_row, value_batch, value_head, value_row,
    slope_batch, slope_head, num_heads, group, q_len, k_len, entries,
    offset: tl.int64, left: tl.int64, right: tl.int64, scale, threshold, keep_scale,
    head_dim: tl.constexpr, value_dim: tl.constexpr, block_d: tl.constexpr, block_v: tl.constexpr,
    at_once: tl.constexpr, block_m: tl.constexpr, block_n: tl.constexpr, two_sided: tl.constexpr,
    precision: tl.constexpr,
):  # fmt: skip
    """`forward_kernel` for blocks with a row marked in ``spoilt``, (batch, num_heads, q_len), from their lse."""
    blocks = programs_over_rows(q_len, entries, row_blocks, at_once)
    pair = tl.program_id(0) // blocks
    begin, row_end, number = rows_of_block(tl.program_id(0) % blocks, q_len, row_blocks, at_once)
    marks = spoilt + pair.to(tl.int64) * q_len
    if not any_marked(marks, begin, row_end, at_once):
        return
    entry = plan
    if plan is not None:
        entry = plan + (pair.to(tl.int64) * entries + number) * 3
    for first_row in range(begin, tl.minimum(begin + at_once, row_end), block_m):
        if any_marked(marks, first_row, row_end, block_m):
            mend_forward(
                first_row, row_end, pair, query, key, value, slopes, out, lse, entry, seed,
                offsets, key_range, position_of, lower_of, upper_of,
                query_batch, query_head, query_row, key_batch, key_head, key_row, value_batch, value_head, value_row,
                slope_batch, slope_head, num_heads, group, q_len, k_len, offset, left, right,
                scale, threshold, keep_scale, head_dim, value_dim, block_d, block_v, block_m, block_n, two_sided,
                precision,
            )  # fmt: skip


@triton.jit
def mend_query(
    first_row, row_end, pair,
    query, key, value, slopes, grad_out, notes, grad_query, entry, seed,
    offsets, key_range, position_of, lower_of, upper_of,
    query_batch, query_head, query_row, key_batch, key_head, key_row, value_batch, value_head, value_row,
    flow_batch, flow_head, flow_row, slope_batch, slope_head, num_heads, group, q_len, k_len,
    offset, left, right, scale, score_scale, threshold, keep_scale,
    head_dim: tl.constexpr, value_dim: tl.constexpr, block_d: tl.constexpr, block_v: tl.constexpr,
    block_m: tl.constexpr, block_n: tl.constexpr, two_sided: tl.constexpr, precision: tl.constexpr,
):  # fmt: skip
    """Gradient of the queries from ``first_row``; ``entry`` is theirs in the plan."""
    row = first_row + tl.arange(0, block_m)
    batch, head = pair // num_heads, pair % num_heads
    position, near, lower, upper, sees = rows_seen(
        row, batch, row_end, k_len, offset, left, right, offsets, key_range, position_of, lower_of, upper_of
    )
    base, end, count, a, b, c, d, apart = key_tiles(
        lower, upper, near, sees, entry, k_len, block_n, two_sided, entry is not None
    )
    slope = tl.load(slopes + batch * slope_batch + head * slope_head) * LOG2E
    flat = pair.to(tl.int64) * q_len + row
    row_shift, row_mean = shift_and_mean(tl.load(notes + flat, mask=sees, other=NO_MASS))

    element, value_element = tl.arange(0, block_d), tl.arange(0, block_v)
    rows = tl.load(
        query + batch.to(tl.int64) * query_batch + head.to(tl.int64) * query_head
        + row.to(tl.int64)[:, None] * query_row + element[None, :],
        mask=sees[:, None] & (element < head_dim)[None, :], other=0.0,
    )  # fmt: skip
    flow = tl.load(
        grad_out + batch.to(tl.int64) * flow_batch + head.to(tl.int64) * flow_head
        + row.to(tl.int64)[:, None] * flow_row + value_element[None, :],
        mask=(sees & weighs_something(row_shift, row_mean))[:, None] & (value_element < value_dim)[None, :], other=0.0,
    )  # fmt: skip
    keys = key + batch.to(tl.int64) * key_batch + (head // group).to(tl.int64) * key_head
    values = value + batch.to(tl.int64) * value_batch + (head // group).to(tl.int64) * value_head
    column = tl.arange(0, block_n)
    grad = tl.zeros([block_m, block_d], tl.float32)
    for index in tl.range(0, masked_count(count, 0, 0, count, count, apart, block_n), num_stages=1):
        start, limit = masked_tile(index, base, end, count, 0, 0, count, count, apart, block_n)
        at = start + column
        inside = at < tl.minimum(limit, k_len)
        key_part = tl.load(
            keys + at.to(tl.int64)[None, :] * key_row + element[:, None],
            mask=(element < head_dim)[:, None] & inside[None, :], other=0.0,
        )  # fmt: skip
        value_part = tl.load(
            values + at.to(tl.int64)[None, :] * value_row + value_element[:, None],
            mask=(value_element < value_dim)[:, None] & inside[None, :], other=0.0,
        )  # fmt: skip
        weights, grad_weights, seen = masked_grad(
            rows, flow, key_part, value_part, at, limit, near, lower, upper, row_shift, scale, slope, True, precision
        )
        if seed is not None:
            kept = kept_weights(tl.load(seed), pair, first_row, start, threshold, block_m, block_n)
            grad_weights = tl.where(kept, grad_weights * keep_scale, 0.0)
        grad_scores = tl.where(seen, weights * (grad_weights - row_mean[:, None]), 0.0)
        key_part = tl.where(is_finite(key_part), key_part, 0.0)
        grad = tl.dot(grad_scores.to(key_part.dtype), tl.trans(key_part), grad, input_precision=precision)
        grad = add_terms_not_finite(
            grad, keys, key_row, start, lower, tl.minimum(upper, limit), k_len, head_dim, block_d, block_n
        )
    tl.store(
        grad_query + flat[:, None] * head_dim + element[None, :], (grad * score_scale).to(grad_query.dtype.element_ty),
        mask=(row < row_end)[:, None] & (element < head_dim)[None, :],
    )  # fmt: skip


@triton.jit(
    do_not_specialize=["num_heads", "group", "q_len", "k_len", "entries", "threshold", "offset", "left", "right"]
)
def mend_query_kernel(
    query, key, value, slopes, grad_out, notes, grad_query, spoilt, plan, seed,
    offsets, key_range, position_of, lower_of, upper_of, row_blocks,
    query_batch, query_head, query_row, key_batch, key_head, key_row, value_batch, value_head, value_row,
    flow_batch, flow_head, flow_row, slope_batch, slope_head, num_heads, group, q_len, k_len, entries,
    offset: tl.int64, left: tl.int64, right: tl.int64, scale, score_scale, threshold, keep_scale,
    head_dim: tl.constexpr, value_dim: tl.constexpr, block_d: tl.constexpr, block_v: tl.constexpr,
    at_once: tl.constexpr, block_m: tl.constexpr, block_n: tl.constexpr, two_sided: tl.constexpr,
    precision: tl.constexpr,
):  # fmt: skip
    """`query_kernel` for blocks with a row marked in ``spoilt``; the gradient of slopes needs no mending."""
    blocks = programs_over_rows(q_len, entries, row_blocks, at_once)
    pair = tl.program_id(0) // blocks
    begin, row_end, number = rows_of_block(tl.program_id(0) % blocks, q_len, row_blocks, at_once)
    marks = spoilt + pair.to(tl.int64) * q_len
    if not any_marked(marks, begin, row_end, at_once):
        return
    entry = plan
    if plan is not None:
        entry = plan + (pair.to(tl.int64) * entries + number) * 3
    for first_row in range(begin, tl.minimum(begin + at_once, row_end), block_m):
        if any_marked(marks, first_row, row_end, block_m):
            mend_query(
                first_row, row_end, pair, query, key, value, slopes, grad_out, notes, grad_query, entry, seed,
                offsets, key_range, position_of, lower_of, upper_of,
                query_batch, query_head, query_row, key_batch, key_head, key_row, value_batch, value_head, value_row,
                flow_batch, flow_head, flow_row, slope_batch, slope_head, num_heads, group, q_len, k_len,
                offset, left, right, scale, score_scale, threshold, keep_scale,
                head_dim, value_dim, block_d, block_v, block_m, block_n, two_sided, precision,
            )  # fmt: skip
