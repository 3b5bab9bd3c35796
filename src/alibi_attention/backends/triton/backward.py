"""What backward needs of each row, and the gradient of queries and slopes: a block of queries sweeps its keys again."""

# Triton's language has no static types, and its loops no underscore for what is not wanted.
# mypy: ignore-errors

from __future__ import annotations

import triton
import triton.language as tl

from alibi_attention.backends.triton.common import (
    INF,
    LOG2E,
    NO_MASS,
    kept_weights,
    key_tiles,
    masked_count,
    masked_tile,
    note_of,
    programs_over_rows,
    rows_not_finite,
    rows_of_block,
    rows_seen,
    shift_and_mean,
    weighs_something,
)
from alibi_attention.backends.triton.forward import edge_scores, masked_scores


@triton.jit(do_not_specialize=["num_heads", "q_len", "k_len", "offset", "left", "right"])
def rows_kernel(
    out, lse, grad_out, grad_lse, slopes, notes, notes_left, notes_right,
    offsets, key_range, position_of, lower_of, upper_of,
    flow_batch, flow_head, flow_row, slope_batch, slope_head, num_heads, q_len, k_len,
    offset: tl.int64, left: tl.int64, right: tl.int64,
    value_dim: tl.constexpr, block_v: tl.constexpr, block_m: tl.constexpr, tile: tl.constexpr, plain: tl.constexpr,
):  # fmt: skip
    """Per row, as `note_of` joins them: the lse in bits of scores about the nearest key, +inf for a row without mass;
    and do . out - dlse, 0 for such a row.

    ``notes_left`` and ``notes_right`` have the lse itself in bits, with the bias of a row within its tile of ``tile``
    rows added, for keys to its left from the first row of the tile, for keys to its right from the last.
    """
    blocks = (q_len + block_m - 1) // block_m
    pair = tl.program_id(0) // blocks
    first_row = tl.program_id(0) % blocks * block_m
    batch, head = pair // num_heads, pair % num_heads
    row = first_row + tl.arange(0, block_m)
    position, near, _, _, sees = rows_seen(
        row, batch, q_len, k_len, offset, left, right, offsets, key_range, position_of, lower_of, upper_of, plain
    )
    inside = row < q_len
    flat = pair.to(tl.int64) * q_len + row
    element = tl.arange(0, block_v)
    flow = tl.load(
        grad_out + batch.to(tl.int64) * flow_batch + head.to(tl.int64) * flow_head
        + row.to(tl.int64)[:, None] * flow_row + element[None, :],
        mask=inside[:, None] & (element < value_dim)[None, :], other=0.0,
    ).to(tl.float32)  # fmt: skip
    result = tl.load(
        out + flat[:, None] * value_dim + element[None, :],
        mask=inside[:, None] & (element < value_dim)[None, :], other=0.0,
    ).to(tl.float32)  # fmt: skip
    log_mass = tl.load(lse + flat, mask=inside, other=-INF)
    has_mass = sees & (log_mass != -INF)
    mean = tl.sum(flow * result, 1) - tl.load(grad_lse + flat, mask=inside, other=0.0)
    mean = tl.where(has_mass, mean, 0.0)
    nats = tl.load(slopes + batch * slope_batch + head * slope_head)
    stray = tl.abs(position - near.to(tl.int64)).to(tl.float32)
    bits = tl.where(has_mass, (log_mass + nats * stray) * LOG2E, INF)
    tl.store(notes + flat, note_of(bits, mean), mask=inside)
    # Where a tile of rows sees keys whole, positions rise with rows by one, past the keys as well.
    slope = nats * LOG2E
    bits = tl.where(has_mass, log_mass * LOG2E, INF)
    left_bits = bits + slope * (row % tile).to(tl.float32)
    tl.store(notes_left + flat, note_of(left_bits, mean), mask=inside)
    if notes_right is not None:
        right_bits = bits + slope * (tile - 1 - row % tile).to(tl.float32)
        tl.store(notes_right + flat, note_of(right_bits, mean), mask=inside)


@triton.jit
def masked_grad(
    rows, flow, key_part, value_part, key_index, limit, near, lower, upper, shift, scale, slope,
    bias: tl.constexpr, precision: tl.constexpr,
):  # fmt: skip
    """Weights, and gradients of them, of a tile that needs a mask; keys and values are (dim, keys)."""
    scores, seen = masked_scores(rows, key_part, key_index, limit, near, lower, upper, scale, slope, bias, precision)
    weights = tl.where(seen, tl.exp2(scores - shift[:, None]), 0.0)
    return weights, tl.dot(flow, value_part, input_precision=precision), seen


@triton.jit
def sweep_back(
    side: tl.constexpr, begin, end, base, grad, lean, drift, reach,
    rows, flow, keys, values, key_step, value_step, near, anchor,
    shift, mean, scale, slope, seed, stream, first_row, threshold, keep_scale,
    block_m: tl.constexpr, block_n: tl.constexpr, bias: tl.constexpr, learned: tl.constexpr,
    precision: tl.constexpr, key_inside, value_inside, head_dim: tl.constexpr, value_dim: tl.constexpr,
    block_d: tl.constexpr, block_v: tl.constexpr,
):  # fmt: skip
    """The tiles [begin, end), each seen whole by every row and wholly on one side of it, the nearest first.

    ``anchor`` lies between rows and tiles: of the nearest keys of the rows it is the lowest on the left, the highest on
    the right. A row's way to it is added to the shift beforehand, and what is left of the bias is a column and one
    number a tile, the way from there to the tile's nearest key: all of one sign, so nothing cancels.
    """
    edge: tl.constexpr = block_n - 1 if side > 0 else 0
    column = (tl.arange(0, block_n) - edge).to(tl.float32)
    bias_column = side * slope * column
    place = side * (near - anchor).to(tl.float32)
    placed = shift + slope * place
    # Where the tile would be that comes before the first.
    start = base + (end if side > 0 else begin - 1) * block_n
    away = (side * (anchor - (start + edge))).to(tl.float32)
    for _ in range(begin, end):
        start -= side * block_n
        away += block_n
        if head_dim == block_d:
            key = tl.load(keys + start.to(tl.int64) * key_step)
        else:
            key = tl.load(keys + start.to(tl.int64) * key_step, mask=key_inside, other=0.0)
        if value_dim == block_v:
            value = tl.load(values + start.to(tl.int64) * value_step)
        else:
            value = tl.load(values + start.to(tl.int64) * value_step, mask=value_inside, other=0.0)
        product = tl.dot(rows, tl.trans(key), input_precision=precision)
        if bias:
            weights = tl.exp2((product * scale + bias_column[None, :]) - (placed + slope * away)[:, None])
        else:
            weights = tl.exp2(product * scale - shift[:, None])
        grad_weights = tl.dot(flow, value, input_precision=precision)
        if seed is not None:
            kept = kept_weights(tl.load(seed), stream, first_row, start, threshold, block_m, block_n)
            grad_weights = tl.where(kept, grad_weights * keep_scale, 0.0)
        grad_scores = weights * (grad_weights - mean[:, None])
        if learned:
            distance = (place + away)[:, None] - side * column[None, :]
            lean += tl.sum(grad_scores * distance, 1)
            drift += tl.sum(grad_scores, 1)
            reach += tl.sum(weights * distance, 1)
        grad = tl.dot(grad_scores.to(key.dtype), key, grad, input_precision=precision)
    return grad, lean, drift, reach


@triton.jit(
    do_not_specialize=["num_heads", "group", "q_len", "k_len", "entries", "threshold", "offset", "left", "right"]
)
def query_kernel(
    query, key, value, slopes, grad_out, grad_lse, notes, grad_query, grad_slopes, spoilt, plan, order, seed,
    offsets, key_range, position_of, lower_of, upper_of, row_blocks,
    query_batch, query_head, query_row, key_batch, key_head, key_row, value_batch, value_head, value_row,
    flow_batch, flow_head, flow_row, slope_batch, slope_head, num_heads, group, q_len, k_len, entries,
    offset: tl.int64, left: tl.int64, right: tl.int64, scale, score_scale, threshold, keep_scale,
    head_dim: tl.constexpr, value_dim: tl.constexpr, block_d: tl.constexpr, block_v: tl.constexpr,
    block_m: tl.constexpr, block_n: tl.constexpr, two_sided: tl.constexpr, plain: tl.constexpr, bias: tl.constexpr,
    learned: tl.constexpr, precision: tl.constexpr,
):  # fmt: skip
    """Gradient of one block of queries, and its share of the gradient of the slope: ``grad_slopes`` (pairs, blocks).

    ``scale`` is in bits, ``score_scale`` in nats; ``grad_query`` is contiguous.
    """
    blocks = programs_over_rows(q_len, entries, row_blocks, block_m)
    pair = tl.program_id(0) // blocks
    if order is not None:
        pair = tl.load(order + pair)
    block = blocks - 1 - tl.program_id(0) % blocks
    batch, head = pair // num_heads, pair % num_heads
    key_head_index = head // group
    first_row, row_end, number = rows_of_block(block, q_len, row_blocks, block_m)
    row = first_row + tl.arange(0, block_m)
    position, near, lower, upper, sees = rows_seen(
        row, batch, row_end, k_len, offset, left, right, offsets, key_range, position_of, lower_of, upper_of, plain
    )
    entry = plan
    if plan is not None:
        entry = plan + (pair.to(tl.int64) * entries + number) * 3
    base, end, count, a, b, c, d, apart = key_tiles(
        lower, upper, near, sees, entry, k_len, block_n, two_sided, plan is not None
    )
    nats = tl.load(slopes + batch * slope_batch + head * slope_head)
    slope = nats * LOG2E
    flat = pair.to(tl.int64) * q_len + row
    inside = row < row_end
    row_shift, row_mean = shift_and_mean(tl.load(notes + flat, mask=sees, other=NO_MASS))

    element, value_element = tl.arange(0, block_d), tl.arange(0, block_v)
    queries = query + batch.to(tl.int64) * query_batch + head.to(tl.int64) * query_head
    rows = tl.load(
        queries + row.to(tl.int64)[:, None] * query_row + element[None, :],
        mask=sees[:, None] & (element < head_dim)[None, :], other=0.0,
    )  # fmt: skip
    flows = grad_out + batch.to(tl.int64) * flow_batch + head.to(tl.int64) * flow_head
    flow = tl.load(
        flows + row.to(tl.int64)[:, None] * flow_row + value_element[None, :],
        mask=(sees & weighs_something(row_shift, row_mean))[:, None] & (value_element < value_dim)[None, :], other=0.0,
    )  # fmt: skip
    keys = key + batch.to(tl.int64) * key_batch + key_head_index.to(tl.int64) * key_head
    values = value + batch.to(tl.int64) * value_batch + key_head_index.to(tl.int64) * value_head
    column = tl.arange(0, block_n)
    key_tile = keys + column.to(tl.int64)[:, None] * key_row + element[None, :]
    value_tile = values + column.to(tl.int64)[None, :] * value_row + value_element[:, None]
    key_inside = (element < head_dim)[None, :]
    value_inside = (value_element < value_dim)[:, None]

    grad = tl.zeros([block_m, block_d], tl.float32)
    # Of each row, over its keys: the gradients of scores times distances; those gradients; weights times distances.
    lean = tl.zeros([block_m], tl.float32)
    drift = tl.zeros([block_m], tl.float32)
    reach = tl.zeros([block_m], tl.float32)
    stream = pair
    edges = masked_count(count, a, b, c, d, apart, block_n)
    for index in range(edges):
        start, limit = masked_tile(index, base, end, count, a, b, c, d, apart, block_n)
        used = start + column < tl.minimum(limit, k_len)
        key_part = tl.load(key_tile + start.to(tl.int64) * key_row, mask=key_inside & used[:, None], other=0.0)
        value_part = tl.load(value_tile + start.to(tl.int64) * value_row, mask=value_inside & used[None, :], other=0.0)
        scores, seen = edge_scores(
            rows, tl.trans(key_part), start, limit, near, lower, upper, scale, slope, block_n, two_sided, plain, bias,
            precision,
        )  # fmt: skip
        weights = tl.exp2(scores - row_shift[:, None])
        grad_weights = tl.dot(flow, value_part, input_precision=precision)
        if seed is not None:
            kept = kept_weights(tl.load(seed), stream, first_row, start, threshold, block_m, block_n)
            grad_weights = tl.where(kept, grad_weights * keep_scale, 0.0)
        grad_scores = tl.where(seen, weights * (grad_weights - row_mean[:, None]), 0.0)
        if learned:
            away = tl.abs(near[:, None] - (start + column)[None, :]).to(tl.float32)
            lean += tl.sum(grad_scores * away, 1)
            drift += tl.sum(grad_scores, 1)
            reach += tl.sum(weights * away, 1)
        grad = tl.dot(grad_scores.to(key_part.dtype), key_part, grad, input_precision=precision)

    lowest = tl.min(tl.where(sees, near, k_len), 0)
    grad, lean, drift, reach = sweep_back(
        1, a, b, base, grad, lean, drift, reach,
        rows, flow, key_tile, value_tile, key_row, value_row, near, lowest,
        row_shift, row_mean, scale, slope, seed, stream, first_row, threshold, keep_scale, block_m, block_n, bias,
        learned, precision, key_inside, value_inside, head_dim, value_dim, block_d, block_v,
    )  # fmt: skip
    if two_sided:
        highest = tl.max(tl.where(sees, near, 0), 0)
        grad, lean, drift, reach = sweep_back(
            -1, c, d, base, grad, lean, drift, reach,
            rows, flow, key_tile, value_tile, key_row, value_row, near, highest,
            row_shift, row_mean, scale, slope, seed, stream, first_row, threshold, keep_scale, block_m, block_n, bias,
            learned, precision, key_inside, value_inside, head_dim, value_dim, block_d, block_v,
        )  # fmt: skip

    # As in forward.
    tl.store(spoilt + flat, rows_not_finite(grad), mask=inside)
    tl.store(
        grad_query + flat[:, None] * head_dim + element[None, :],
        (grad * score_scale).to(grad_query.dtype.element_ty),
        mask=inside[:, None] & (element < head_dim)[None, :],
    )
    if learned:
        # The gradients of a row's scores add up to that of its lse: the way to its nearest key is common to them.
        has_mass = sees & weighs_something(row_shift, row_mean)
        stray = tl.abs(position - near.to(tl.int64)).to(tl.float32)
        row_grad_lse = tl.load(grad_lse + flat, mask=has_mass, other=0.0)
        # What they add up to besides is the output's rounding, which the mean has in it, in each by its weight: times
        # the mean distance, it would be most of the gradient in 16 bits where all keys are far.
        lean -= (drift - row_grad_lse) * reach
        total = tl.sum(tl.where(has_mass, lean + row_grad_lse * stray, 0.0), 0)
        tl.store(grad_slopes + pair.to(tl.int64) * blocks + block, -total)
