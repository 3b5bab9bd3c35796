"""The gradients of keys and values: a block of keys sweeps the queries that see it, of every head that shares it."""

# Triton's language has no static types, and its loops no underscore for what is not wanted.
# mypy: ignore-errors
# ruff: noqa: RUF059

from __future__ import annotations

import triton
import triton.language as tl

from alibi_attention.backends.triton.common import (
    LOG2E,
    NO_MASS,
    ceil_div,
    clamp,
    floor_div,
    kept_weights,
    rows_not_finite,
    rows_seen,
    shift_and_mean,
    weighs_something,
)


@triton.jit
def as_row(x, q_len):
    """A row number out of a position, which may lie anywhere."""
    return clamp(x, 0, q_len.to(tl.int64)).to(tl.int32)


@triton.jit
def query_tiles(
    start, end, batch, q_len, k_len, offset, left, right, offsets, key_range, position_of, key_rows, ranges,
    block: tl.constexpr, block_n: tl.constexpr, two_sided: tl.constexpr,
):  # fmt: skip
    """Which tiles of queries the keys [start, end) sweep; both bounds rise with the row, so each set is one range.

    Returns:
        base: first row, on a tile; count: tiles from there on; [a, b): the tiles of them whose rows see every key on
        their left; [c, d): those whose rows see every key on their right; in both,
        row + offset is the row's position.
    """
    if key_rows is not None:
        # Packed: the same four bounds, found beforehand.
        first = tl.load(key_rows)
        last = tl.load(key_rows + 1)
        whole = tl.load(key_rows + 2)
        whole_end = tl.load(key_rows + 3)
        offset = tl.load(position_of + tl.minimum(whole, q_len - 1)) - tl.minimum(whole, q_len - 1)
    else:
        if offsets is not None:
            offset = tl.load(offsets + batch).to(tl.int64)
        key_first = tl.full([], 0, tl.int64)
        key_end = key_first + k_len
        if key_range is not None:
            key_end = key_first + tl.load(key_range + 2 * batch + 1)
            key_first = key_first + tl.load(key_range + 2 * batch)
        seen = (key_first < end) & (key_end > start)
        first = as_row(start - right - offset, q_len)
        last = tl.where(seen, as_row(end + left - offset, q_len), 0)
        whole = as_row(start + block_n - 1 - right - offset, q_len)
        whole_end = as_row(start + left - offset + 1, q_len)
        whole_end = tl.where((key_first <= start) & (key_end >= start + block_n), whole_end, 0)
    if ranges is not None:
        first = tl.maximum(first, tl.load(ranges))
        last = tl.minimum(last, tl.load(ranges + 1))
    base = first // block * block
    count = ceil_div(last - base, block)
    after = as_row(start + block_n - 1 - offset, q_len)
    a = tl.minimum(ceil_div(tl.maximum(whole, after) - base, block), count)
    b = clamp(floor_div(whole_end - base, block), a, count)
    c = a
    d = a
    if two_sided:
        before = as_row(start - offset + 1, q_len)
        c = tl.minimum(ceil_div(whole - base, block), a)
        d = clamp(floor_div(tl.minimum(whole_end, before) - base, block), c, a)
    return base, count, a, b, c, d, offset


@triton.jit
def sweep_queries(
    side: tl.constexpr, masked: tl.constexpr, begin, end, gap_at, gap, base, q_len, k_len, grad_key, grad_value,
    keys, values, queries, flows, query_step, flow_step, notes, start, offset, scale, slope, seed, stream,
    threshold, keep_scale, query_inside, flow_inside, block_m: tl.constexpr, block_n: tl.constexpr,
    bias: tl.constexpr, precision: tl.constexpr, head_dim: tl.constexpr, value_dim: tl.constexpr,
    block_d: tl.constexpr, block_v: tl.constexpr, of: tl.constexpr,
):  # fmt: skip
    """The tiles of queries [begin, end), whose rows all see every key on one side, +1 their left, nearest first.

    The shift noted of a row has the part of the bias that is the row's within its tile; the rest is one number for each
    key.
    ``masked`` sweeps the tiles around them, in a call where a row sees every key up to its position: those from number
    ``gap_at`` on are ``gap`` tiles further. Then it is about the nearest key: weights on the diagonal are
    large, distances small, and a difference of two large numbers would cost digits that show.
    """
    edge: tl.constexpr = block_n - 1 if side > 0 else 0
    column = tl.arange(0, block_n)
    index = tl.arange(0, block_m)
    # The nearest row, of the tile swept first, is rounded once with what keys have of their own. Rows only get further
    # away, and how much further is exact; as a sum from there it would stand still where offsets are 2^30.
    first = begin if side > 0 else end - 1
    nearest = side * (base + first * block_m + offset - start - edge)
    if side < 0:
        nearest -= block_m - 1
    inner = side * slope * (column - edge).to(tl.float32) - slope * nearest.to(tl.float32)
    further = -1.0 * block_m
    first_row = base + (first - side) * block_m
    for number in range(begin, end):
        first_row += side * block_m
        further += block_m
        if masked:
            first_row = base + (number + tl.where(number >= gap_at, gap, 0)) * block_m
            here = first_row + index < q_len
            rows = tl.load(queries + first_row.to(tl.int64) * query_step, mask=here[:, None] & query_inside, other=0.0)
            note = tl.load(notes + first_row + index, mask=here, other=NO_MASS)
        else:
            if head_dim == block_d:
                rows = tl.load(queries + first_row.to(tl.int64) * query_step)
            else:
                rows = tl.load(queries + first_row.to(tl.int64) * query_step, mask=query_inside, other=0.0)
            note = tl.load(notes + first_row + index)
        row_shift, row_mean = shift_and_mean(note)
        product = tl.dot(keys, tl.trans(rows), input_precision=precision)
        if masked:
            # Of each row its nearest key, counted from the first of these: one comparison of 32 bits for each score.
            ahead = clamp(first_row + offset - start, -block_m, k_len - start).to(tl.int32)
            near = tl.minimum(index + ahead, k_len - 1 - start)
            weights = product * scale - row_shift[None, :]
            if bias:
                weights -= slope * (near.to(tl.float32)[None, :] - column.to(tl.float32)[:, None])
            weights = tl.where(column[:, None] <= near[None, :], tl.exp2(weights), 0.0)
        elif bias:
            far = inner - slope * further
            weights = tl.exp2((product * scale + far[:, None]) - row_shift[None, :])
        else:
            weights = tl.exp2(product * scale - row_shift[None, :])
        if masked:
            flow = tl.load(flows + first_row.to(tl.int64) * flow_step, mask=here[:, None] & flow_inside, other=0.0)
        else:
            if value_dim == block_v:
                flow = tl.load(flows + first_row.to(tl.int64) * flow_step)
            else:
                flow = tl.load(flows + first_row.to(tl.int64) * flow_step, mask=flow_inside, other=0.0)
        if of != "values":
            grad_weights = tl.dot(values, tl.trans(flow), input_precision=precision)
        kept_part = weights
        if seed is not None:
            kept = tl.trans(kept_weights(tl.load(seed), stream, first_row, start, threshold, block_m, block_n))
            kept_part = tl.where(kept, weights, 0.0)
            if of != "values":
                grad_weights = tl.where(kept, grad_weights * keep_scale, 0.0)
        if of != "keys":
            grad_value = tl.dot(kept_part.to(flow.dtype), flow, grad_value, input_precision=precision)
        if of != "values":
            grad_scores = weights * (grad_weights - row_mean[None, :])
            grad_key = tl.dot(grad_scores.to(rows.dtype), rows, grad_key, input_precision=precision)
    return grad_key, grad_value


@triton.jit
def masked_grad_transposed(
    keys, values, rows, flow, key_index, near, lower, upper, row_shift, row_mean, scale, slope,
    seed, stream, first_row, start, threshold, keep_scale,
    block_m: tl.constexpr, block_n: tl.constexpr, bias: tl.constexpr, precision: tl.constexpr,
):  # fmt: skip
    """Weights with dropout, and gradients of scores, (keys, rows), of a tile that needs a mask."""
    scores = tl.dot(keys, tl.trans(rows), input_precision=precision) * scale
    if bias:
        scores -= slope * tl.abs(near[None, :] - key_index[:, None]).to(tl.float32)
    seen = (key_index[:, None] >= lower[None, :]) & (key_index[:, None] < upper[None, :])
    weights = tl.where(seen, tl.exp2(scores - row_shift[None, :]), 0.0)
    grad_weights = tl.dot(values, tl.trans(flow), input_precision=precision)
    kept_part = weights
    if seed is not None:
        kept = tl.trans(kept_weights(tl.load(seed), stream, first_row, start, threshold, block_m, block_n))
        grad_weights = tl.where(kept, grad_weights * keep_scale, 0.0)
        # A factor of 0: a weight that is no number stays one.
        kept_part = weights * tl.where(kept, 1.0, 0.0)
    return kept_part, tl.where(seen, weights * (grad_weights - row_mean[None, :]), 0.0)


@triton.jit(do_not_specialize=["num_heads", "group", "q_len", "k_len", "threshold", "offset", "left", "right"])
def key_kernel(
    query, key, value, slopes, grad_out, notes, notes_left, notes_right, grad_key, grad_value, spoilt, ranges,
    order, seed, offsets, key_range, position_of, lower_of, upper_of, key_rows,
    query_batch, query_head, query_row, key_batch, key_head, key_row, value_batch, value_head, value_row,
    flow_batch, flow_head, flow_row, slope_batch, slope_head, num_heads, group, q_len, k_len,
    offset: tl.int64, left: tl.int64, right: tl.int64, scale, score_scale, threshold, keep_scale,
    head_dim: tl.constexpr, value_dim: tl.constexpr, block_d: tl.constexpr, block_v: tl.constexpr,
    block_m: tl.constexpr, block_n: tl.constexpr, two_sided: tl.constexpr, plain: tl.constexpr, bias: tl.constexpr,
    precision: tl.constexpr, of: tl.constexpr,
):  # fmt: skip
    """Gradients of one block of keys and values, summed over the query heads that share it, in a fixed order.

    ``of`` is "both", "values", or "keys" after a launch for values. Marks in ``spoilt`` are those of either.
    """
    blocks = (k_len + block_n - 1) // block_n
    shared = tl.program_id(0) // blocks
    if order is not None:
        shared = tl.load(order + shared)
    block = tl.program_id(0) % blocks
    kv_heads = num_heads // group
    batch, kv_head = shared // kv_heads, shared % kv_heads
    start = block * block_n
    key_index = start + tl.arange(0, block_n)
    key_here = key_index < k_len
    element, value_element = tl.arange(0, block_d), tl.arange(0, block_v)
    key_inside = key_here[:, None] & (element < head_dim)[None, :]
    value_inside = key_here[:, None] & (value_element < value_dim)[None, :]
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
    index = tl.arange(0, block_m)
    if key_rows is not None:
        key_rows += block * 4
    end = tl.minimum(start + block_n, k_len)

    for member in range(group):
        head = kv_head * group + member
        pair = batch * num_heads + head
        slope = tl.load(slopes + batch * slope_batch + head * slope_head) * LOG2E
        flat = pair.to(tl.int64) * q_len
        queries = query + batch.to(tl.int64) * query_batch + head.to(tl.int64) * query_head
        flows = grad_out + batch.to(tl.int64) * flow_batch + head.to(tl.int64) * flow_head
        query_tile = queries + index.to(tl.int64)[:, None] * query_row + element[None, :]
        flow_tile = flows + index.to(tl.int64)[:, None] * flow_row + value_element[None, :]
        query_inside = (element < head_dim)[None, :]
        flow_inside = (value_element < value_dim)[None, :]
        entry = ranges
        if ranges is not None:
            entry = ranges + (pair.to(tl.int64) * blocks + block) * 2
        base, count, a, b, c, d, shifted = query_tiles(
            start, end, batch, q_len, k_len, offset, left, right, offsets, key_range, position_of, key_rows, entry,
            block_m, block_n, two_sided,
        )  # fmt: skip
        edges = count - (b - a) - (d - c)
        if plain:
            grad_keys, grad_values = sweep_queries(
                1, True, 0, edges, a, b - a, base, q_len, k_len, grad_keys, grad_values, keys, values, query_tile,
                flow_tile, query_row, flow_row, notes + flat, start, shifted, scale, slope, seed, pair,
                threshold, keep_scale, query_inside, flow_inside, block_m, block_n, bias, precision, head_dim,
                value_dim, block_d, block_v, of,
            )  # fmt: skip
        else:
            for number in tl.range(0, edges, num_stages=1):
                at = number + tl.where(number >= c, d - c, 0)
                at += tl.where(at >= a, b - a, 0)
                first_row = base + at * block_m
                row = first_row + index
                position, near, lower, upper, sees = rows_seen(
                    row, batch, q_len, k_len, offset, left, right, offsets, key_range, position_of, lower_of, upper_of
                )
                row_shift, row_mean = shift_and_mean(tl.load(notes + flat + row, mask=sees, other=NO_MASS))
                rows = tl.load(
                    query_tile + first_row.to(tl.int64) * query_row, mask=sees[:, None] & query_inside, other=0.0
                )
                flow = tl.load(
                    flow_tile + first_row.to(tl.int64) * flow_row,
                    mask=(sees & weighs_something(row_shift, row_mean))[:, None] & flow_inside, other=0.0,
                )  # fmt: skip
                weights, grad_scores = masked_grad_transposed(
                    keys, values, rows, flow, key_index, near, lower, upper, row_shift, row_mean, scale, slope,
                    seed, pair, first_row, start, threshold, keep_scale, block_m, block_n, bias, precision,
                )  # fmt: skip
                if of != "keys":
                    grad_values = tl.dot(weights.to(flow.dtype), flow, grad_values, input_precision=precision)
                if of != "values":
                    grad_keys = tl.dot(grad_scores.to(rows.dtype), rows, grad_keys, input_precision=precision)
        grad_keys, grad_values = sweep_queries(
            1, False, a, b, 0, 0, base, q_len, k_len, grad_keys, grad_values, keys, values, query_tile, flow_tile,
            query_row, flow_row, notes_left + flat, start, shifted, scale, slope, seed, pair,
            threshold, keep_scale, query_inside, flow_inside, block_m, block_n, bias, precision, head_dim, value_dim,
            block_d, block_v, of,
        )  # fmt: skip
        if two_sided:
            grad_keys, grad_values = sweep_queries(
                -1, False, c, d, 0, 0, base, q_len, k_len, grad_keys, grad_values, keys, values, query_tile, flow_tile,
                query_row, flow_row, notes_right + flat, start, shifted, scale, slope, seed, pair,
                threshold, keep_scale, query_inside, flow_inside, block_m, block_n, bias, precision, head_dim,
                value_dim, block_d, block_v, of,
            )  # fmt: skip

    flat_key = shared.to(tl.int64) * k_len + key_index
    # As in forward: a query or a gradient that is not finite may have reached keys its row does not see.
    if of == "both":
        tl.store(spoilt + flat_key, tl.maximum(rows_not_finite(grad_keys), rows_not_finite(grad_values)), mask=key_here)
    elif of == "values":
        tl.store(spoilt + flat_key, rows_not_finite(grad_values), mask=key_here)
    else:
        before = tl.load(spoilt + flat_key, mask=key_here, other=0)
        tl.store(spoilt + flat_key, tl.maximum(before, rows_not_finite(grad_keys)), mask=key_here)
    if of != "values":
        tl.store(
            grad_key + flat_key[:, None] * head_dim + element[None, :],
            (grad_keys * score_scale).to(grad_key.dtype.element_ty), mask=key_inside,
        )  # fmt: skip
    if of != "keys":
        tl.store(
            grad_value + flat_key[:, None] * value_dim + value_element[None, :],
            (grad_values * keep_scale).to(grad_value.dtype.element_ty), mask=value_inside,
        )  # fmt: skip
