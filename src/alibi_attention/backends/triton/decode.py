"""A few queries against many keys: the keys are split among programs, and a second kernel merges what they found."""

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
    PLAN_KEYS,
    ceil_div,
    rows_not_finite,
    rows_seen,
)


@triton.jit(do_not_specialize=["num_heads", "group", "q_len", "k_len", "parts", "splits", "offset", "left", "right"])
def split_kernel(
    query, key, value, slopes, plan, order, peaks, masses, totals, offsets, key_range, position_of, lower_of, upper_of,
    query_batch, query_head, query_row, key_batch, key_head, key_row, value_batch, value_head, value_row,
    slope_batch, slope_head, num_heads, group, q_len, k_len, parts, splits,
    offset: tl.int64, left: tl.int64, right: tl.int64, scale,
    head_dim: tl.constexpr, value_dim: tl.constexpr, block_d: tl.constexpr, block_v: tl.constexpr,
    rows_of_group: tl.constexpr, block_n: tl.constexpr, plain: tl.constexpr, bias: tl.constexpr,
    precision: tl.constexpr,
):  # fmt: skip
    """Maximum, sum and weighted values of one part of the keys, for the queries of all heads that share them.

    ``peaks`` and ``masses`` are (batch, num_heads, q_len, splits), ``totals`` has value_dim after that. Rows are
    r = (head within the group) * q_len + query; a program has ``rows_of_group`` of them with the padding, and all are
    ``parts`` times as many. The heads that need most keys come first, and those that need fewer tiles than there are
    programs for them leave some with nothing.
    """
    shared = tl.program_id(0) // splits // parts
    if order is not None:
        shared = tl.load(order + shared)
    split = tl.program_id(0) % splits
    kv_heads = num_heads // group
    batch, kv_head = shared // kv_heads, shared % kv_heads
    index = tl.program_id(0) // splits % parts * rows_of_group + tl.arange(0, rows_of_group)
    used = index < group * q_len
    head = kv_head * group + tl.minimum(index // q_len, group - 1)
    row = tl.where(used, index % q_len, q_len)
    position, near, lower, upper, sees = rows_seen(
        row, batch, q_len, k_len, offset, left, right, offsets, key_range, position_of, lower_of, upper_of, plain
    )
    slope = tl.load(slopes + batch * slope_batch + head * slope_head) * LOG2E
    pair = batch * num_heads + head
    seen_first = tl.min(tl.where(sees, lower, k_len), 0)
    seen_end = tl.max(upper, 0)
    base = seen_first // PLAN_KEYS * PLAN_KEYS
    end = seen_end
    apart = tl.full([], -1, tl.int32)
    if plan is not None:
        # The tiles of the head that needs most; more than a head needs is exact as well.
        base = tl.min(tl.where(sees, tl.load(plan + pair * 3), k_len), 0) * PLAN_KEYS
        end = tl.minimum(end, tl.max(tl.where(sees, tl.load(plan + pair * 3 + 1), 0), 0) * PLAN_KEYS)
        apart = tl.max(tl.where(sees, tl.load(plan + pair * 3 + 2), -1), 0) * PLAN_KEYS
    tiles = ceil_div(end - base, block_n)
    each = (tiles + splits - 1) // splits
    first = split * each
    last = tl.minimum(first + each, tiles)
    # The first part has the tile kept apart as well, unless it is among the others.
    is_first = (split == 0) & (apart >= 0) & (apart < base)
    extra = tl.where(is_first, (PLAN_KEYS + block_n - 1) // block_n, 0)

    element, value_element = tl.arange(0, block_d), tl.arange(0, block_v)
    total = tl.zeros([rows_of_group, block_v], tl.float32)
    mass = tl.zeros([rows_of_group], tl.float32)
    peak = tl.full([rows_of_group], LOWEST, tl.float32)
    if first - extra < last:
        rows = tl.load(
            query + batch.to(tl.int64) * query_batch + head.to(tl.int64)[:, None] * query_head
            + row.to(tl.int64)[:, None] * query_row + element[None, :],
            mask=sees[:, None] & (element < head_dim)[None, :], other=0.0,
        )  # fmt: skip
        keys = key + batch.to(tl.int64) * key_batch + kv_head.to(tl.int64) * key_head
        values = value + batch.to(tl.int64) * value_batch + kv_head.to(tl.int64) * value_head
        column = tl.arange(0, block_n)
        key_tile = keys + column.to(tl.int64)[None, :] * key_row + element[:, None]
        value_tile = values + column.to(tl.int64)[:, None] * value_row + value_element[None, :]
        for tile in range(first - extra, last):
            start = tl.where(tile < first, apart + (tile - first + extra) * block_n, base + tile * block_n)
            limit = tl.where(tile < first, tl.minimum(apart + PLAN_KEYS, base), end)
            at = start + column
            # What no row sees is not read: it may hold anything.
            inside = (at >= seen_first) & (at < tl.minimum(limit, seen_end))
            key_part = tl.load(
                key_tile + start.to(tl.int64) * key_row, mask=inside[None, :] & (element < head_dim)[:, None], other=0.0
            )
            scores = tl.dot(rows, key_part, input_precision=precision) * scale
            if bias:
                scores -= slope[:, None] * tl.abs(near[:, None] - at[None, :]).to(tl.float32)
            seen = (at[None, :] >= lower[:, None]) & (at[None, :] < tl.minimum(upper, limit)[:, None])
            scores = tl.where(seen, scores, -INF)
            risen = tl.maximum(peak, tl.max(scores, 1))
            weights = tl.exp2(scores - risen[:, None])
            fade = tl.exp2(peak - risen)
            mass = mass * fade + tl.sum(weights, 1)
            peak = risen
            value_part = tl.load(
                value_tile + start.to(tl.int64) * value_row,
                mask=inside[:, None] & (value_element < value_dim)[None, :], other=0.0,
            )  # fmt: skip
            total = tl.dot(weights.to(value_part.dtype), value_part, total * fade[:, None], input_precision=precision)
    flat = (pair.to(tl.int64) * q_len + row) * splits + split
    tl.store(peaks + flat, peak, mask=used)
    tl.store(masses + flat, mass, mask=used)
    tl.store(
        totals + flat[:, None] * value_dim + value_element[None, :], total,
        mask=used[:, None] & (value_element < value_dim)[None, :],
    )  # fmt: skip


@triton.jit(do_not_specialize=["num_heads", "q_len", "k_len", "splits", "offset", "left", "right"])
def merge_kernel(
    peaks, masses, totals, slopes, out, lse, spoilt, offsets, key_range, position_of, lower_of, upper_of,
    slope_batch, slope_head, num_heads, q_len, k_len, splits, offset: tl.int64, left: tl.int64, right: tl.int64,
    value_dim: tl.constexpr, block_v: tl.constexpr, block_s: tl.constexpr, plain: tl.constexpr,
):  # fmt: skip
    """Output and lse of one row out of its parts; ``spoilt`` (rows) where the output is not finite."""
    number = tl.program_id(0)
    pair = number // q_len
    batch, head = pair // num_heads, pair % num_heads
    row = number % q_len + tl.arange(0, 1)
    position, near, lower, upper, sees = rows_seen(
        row, batch, q_len, k_len, offset, left, right, offsets, key_range, position_of, lower_of, upper_of, plain
    )
    part = tl.arange(0, block_s)
    element = tl.arange(0, block_v)
    flat = number.to(tl.int64) * splits + part
    peak = tl.load(peaks + flat, mask=part < splits, other=LOWEST)
    mass = tl.load(masses + flat, mask=part < splits, other=0.0)
    total = tl.load(
        totals + flat[:, None] * value_dim + element[None, :],
        mask=(part < splits)[:, None] & (element < value_dim)[None, :], other=0.0,
    )  # fmt: skip
    highest = tl.max(peak, 0)
    fade = tl.exp2(peak - highest)
    whole = tl.sum(mass * fade, 0) + tl.zeros([1], tl.float32)
    has_mass = sees & (whole != 0.0)
    result = tl.sum(total * fade[:, None], 0)[None, :] / tl.where(has_mass, whole, 1.0)[:, None]
    result = tl.where(has_mass[:, None], result, 0.0)
    nats = tl.load(slopes + batch * slope_batch + head * slope_head)
    stray = tl.abs(position - near.to(tl.int64)).to(tl.float32)
    log_mass = highest * LN2 + tl.log2(tl.where(has_mass, whole, 1.0)) * LN2 - nats * stray
    here = number.to(tl.int64) + tl.arange(0, 1)
    log_mass = tl.where(highest == INF, INF, log_mass)
    tl.store(lse + here, tl.where(has_mass, log_mass, -INF))
    tl.store(
        out + here[:, None] * value_dim + element[None, :], result.to(out.dtype.element_ty),
        mask=(element < value_dim)[None, :],
    )  # fmt: skip
    tl.store(spoilt + here, rows_not_finite(result))
