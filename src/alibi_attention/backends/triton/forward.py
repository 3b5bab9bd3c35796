"""The forward kernel: a block of queries sweeps its tiles of keys with a running maximum and sum."""

# Triton's language has no static types, and its loops no underscore for what is not wanted.
# mypy: ignore-errors
# ruff: noqa: RUF059

from __future__ import annotations

import triton
import triton.language as tl

from alibi_attention.backends.triton.common import (
    INF,
    LN2,
    LOG2E,
    LOWEST,
    kept_weights,
    key_tiles,
    masked_count,
    masked_tile,
    programs_over_rows,
    rows_not_finite,
    rows_of_block,
    rows_seen,
)


@triton.jit
def masked_scores(query, key, key_index, limit, near, lower, upper, scale, slope, bias: tl.constexpr,
                  precision: tl.constexpr):  # fmt: skip
    """Scores in bits, -inf where not seen; ``key`` is (head_dim, keys)."""
    scores = tl.dot(query, key, input_precision=precision) * scale
    if bias:
        scores -= slope * tl.abs(near[:, None] - key_index[None, :]).to(tl.float32)
    seen = (key_index[None, :] >= lower[:, None]) & (key_index[None, :] < tl.minimum(upper, limit)[:, None])
    return tl.where(seen, scores, -INF), seen


@triton.jit
def edge_scores(
    query, key, start, limit, near, lower, upper, scale, slope, block_n: tl.constexpr, two_sided: tl.constexpr,
    plain: tl.constexpr, bias: tl.constexpr, precision: tl.constexpr,
):  # fmt: skip
    """As `masked_scores`, of the tile of keys at ``start``, with what is known when it is compiled.

    Where rows see nothing after themselves, their nearest key is the last they see: distances need no absolute value,
    and are differences of numbers of rows and of columns, which floats hold exactly; the mask is one comparison, and a
    second unless rows see from key 0 on (``plain``).
    """
    column = tl.arange(0, block_n)
    if two_sided:
        scores, seen = masked_scores(
            query, key, start + column, limit, near, lower, upper, scale, slope, bias, precision
        )
    else:
        scores = tl.dot(query, key, input_precision=precision) * scale
        if bias:
            scores -= slope * ((near - start).to(tl.float32)[:, None] - column.to(tl.float32)[None, :])
        seen = column[None, :] <= (tl.minimum(near, limit - 1) - start)[:, None]
        if not plain:
            seen &= column[None, :] >= (lower - start)[:, None]
        scores = tl.where(seen, scores, -INF)
    return scores, seen


@triton.jit
def sweep(
    side: tl.constexpr, begin, end, base, total, mass, peak, query, keys, values, key_step, value_step, near,
    scale, slope, seed, stream, first_row, threshold,
    block_m: tl.constexpr, block_n: tl.constexpr, bias: tl.constexpr, precision: tl.constexpr,
    key_inside, value_inside, head_dim: tl.constexpr, value_dim: tl.constexpr,
    block_d: tl.constexpr, block_v: tl.constexpr,
):  # fmt: skip
    """The tiles [begin, end), each seen whole by every row and wholly on one side of it; side +1 is on its left.

    The nearest tile first. The bias of a tile is a column, the same in all tiles, and one number a row: the distance
    from the row to the tile's nearest key, an exact integer up to 2^24, which goes into the running maximum.
    """
    edge: tl.constexpr = block_n - 1 if side > 0 else 0
    column = side * slope * (tl.arange(0, block_n) - edge).to(tl.float32)
    # Where the tile would be that comes before the first.
    start = base + (end if side > 0 else begin - 1) * block_n
    distance = (side * (near - (start + edge))).to(tl.float32)
    for _ in range(begin, end):
        start -= side * block_n
        distance += block_n
        if head_dim == block_d:
            key = tl.load(keys + start.to(tl.int64) * key_step)
        else:
            key = tl.load(keys + start.to(tl.int64) * key_step, mask=key_inside, other=0.0)
        product = tl.dot(query, key, input_precision=precision)
        if bias:
            scores = product * scale + column[None, :]
            risen = tl.maximum(peak, tl.max(scores, 1) - slope * distance)
            weights = tl.exp2(scores - (risen + slope * distance)[:, None])
        else:
            # Compiled to count what the bias costs, not to run: it takes scale > 0.
            risen = tl.maximum(peak, tl.max(product, 1) * scale)
            weights = tl.exp2(product * scale - risen[:, None])
        fade = tl.exp2(peak - risen)
        mass = mass * fade + tl.sum(weights, 1)
        total = total * fade[:, None]
        peak = risen
        if seed is not None:
            kept = kept_weights(tl.load(seed), stream, first_row, start, threshold, block_m, block_n)
            weights = tl.where(kept, weights, 0.0)
        if value_dim == block_v:
            value = tl.load(values + start.to(tl.int64) * value_step)
        else:
            value = tl.load(values + start.to(tl.int64) * value_step, mask=value_inside, other=0.0)
        total = tl.dot(weights.to(value.dtype), value, total, input_precision=precision)
    return total, mass, peak


@triton.jit(
    do_not_specialize=["num_heads", "group", "q_len", "k_len", "entries", "threshold", "offset", "left", "right"]
)
def forward_kernel(
    query, key, value, slopes, out, lse, spoilt, plan, order, seed,
    offsets, key_range, position_of, lower_of, upper_of, row_blocks,
    query_batch, query_head, query_row, key_batch, key_head, key_row, value_batch, value_head, value_row,
    slope_batch, slope_head, num_heads, group, q_len, k_len, entries,
    offset: tl.int64, left: tl.int64, right: tl.int64, scale, threshold, keep_scale,
    head_dim: tl.constexpr, value_dim: tl.constexpr, block_d: tl.constexpr, block_v: tl.constexpr,
    block_m: tl.constexpr, block_n: tl.constexpr, two_sided: tl.constexpr, plain: tl.constexpr, bias: tl.constexpr,
    precision: tl.constexpr,
):  # fmt: skip
    """Output and lse of one block of queries; programs run over (batch, head), flattest first, and blocks, last first.

    Shapes as in `alibi_attention`; ``out`` and ``lse`` are contiguous; ``scale`` is in bits.
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

    element, value_element = tl.arange(0, block_d), tl.arange(0, block_v)
    query_inside = sees[:, None] & (element < head_dim)[None, :]
    queries = query + batch.to(tl.int64) * query_batch + head.to(tl.int64) * query_head
    rows = tl.load(queries + row.to(tl.int64)[:, None] * query_row + element[None, :], mask=query_inside, other=0.0)
    keys = key + batch.to(tl.int64) * key_batch + key_head_index.to(tl.int64) * key_head
    values = value + batch.to(tl.int64) * value_batch + key_head_index.to(tl.int64) * value_head
    column = tl.arange(0, block_n)
    key_tile = keys + column.to(tl.int64)[None, :] * key_row + element[:, None]
    value_tile = values + column.to(tl.int64)[:, None] * value_row + value_element[None, :]
    key_inside = (element < head_dim)[:, None]
    value_inside = (value_element < value_dim)[None, :]

    total = tl.zeros([block_m, block_v], tl.float32)
    mass = tl.zeros([block_m], tl.float32)
    peak = tl.full([block_m], LOWEST, tl.float32)
    stream = pair
    # The tiles at the edges first: the keys nearest to the rows are among them, so the maximum hardly moves afterwards.
    edges = masked_count(count, a, b, c, d, apart, block_n)
    for index in range(edges):
        start, limit = masked_tile(index, base, end, count, a, b, c, d, apart, block_n)
        inside = start + column < tl.minimum(limit, k_len)
        key_part = tl.load(key_tile + start.to(tl.int64) * key_row, mask=key_inside & inside[None, :], other=0.0)
        scores, seen = edge_scores(
            rows, key_part, start, limit, near, lower, upper, scale, slope, block_n, two_sided, plain, bias, precision
        )
        risen = tl.maximum(peak, tl.max(scores, 1))
        weights = tl.exp2(scores - risen[:, None])
        fade = tl.exp2(peak - risen)
        mass = mass * fade + tl.sum(weights, 1)
        total = total * fade[:, None]
        peak = risen
        if seed is not None:
            kept = kept_weights(tl.load(seed), stream, first_row, start, threshold, block_m, block_n)
            weights = tl.where(kept, weights, 0.0)
        value_part = tl.load(
            value_tile + start.to(tl.int64) * value_row, mask=value_inside & inside[:, None], other=0.0
        )
        total = tl.dot(weights.to(value_part.dtype), value_part, total, input_precision=precision)

    total, mass, peak = sweep(
        1, a, b, base, total, mass, peak, rows, key_tile, value_tile, key_row, value_row, near,
        scale, slope, seed, stream, first_row, threshold, block_m, block_n, bias, precision,
        key_inside, value_inside, head_dim, value_dim, block_d, block_v,
    )  # fmt: skip
    if two_sided:
        total, mass, peak = sweep(
            -1, c, d, base, total, mass, peak, rows, key_tile, value_tile, key_row, value_row, near,
            scale, slope, seed, stream, first_row, threshold, block_m, block_n, bias, precision,
            key_inside, value_inside, head_dim, value_dim, block_d, block_v,
        )  # fmt: skip

    has_mass = sees & (mass != 0.0)
    share = keep_scale / tl.where(has_mass, mass, 1.0)
    total = tl.where(has_mass[:, None], total * share[:, None], 0.0)
    stray = tl.abs(position - near.to(tl.int64)).to(tl.float32)
    log_mass = peak * LN2 + tl.log2(tl.where(has_mass, mass, 1.0)) * LN2 - nats * stray
    # A score of +inf is a mass of +inf, though its weight, inf less inf, is no number.
    log_mass = tl.where(has_mass, tl.where(peak == INF, INF, log_mass), -INF)
    flat = pair.to(tl.int64) * q_len + row
    inside = row < row_end
    # 0 * NaN: where a result is not finite, a value may have reached rows that do not see it; `mend` looks again.
    tl.store(spoilt + flat, rows_not_finite(total), mask=inside)
    tl.store(lse + flat, log_mass, mask=inside)
    tl.store(
        out + flat[:, None] * value_dim + value_element[None, :],
        total.to(out.dtype.element_ty),
        mask=inside[:, None] & value_inside,
    )
