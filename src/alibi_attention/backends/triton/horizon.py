"""The certified horizon on the device: what to skip, known before the sweep, at a cost linear in the length.

`summary_kernel` reads keys and values once and keeps, for each block of 64 keys, the largest distance of a key from a
center. `plan_kernel` gives each block of queries its tiles: every row has a lower bound on its mass, the sum over keys
near to it; the blocks of keys skipped hold, by Cauchy-Schwarz and a geometric series each, less than the tolerance's
share of that. Blocks are added up from the farthest, in units of what the row may lose, until the sum reaches 1. What
fp32 rounds is charged to the row. docs/maths.md, section 7.
"""

# Triton's language has no static types, and its loops no underscore for what is not wanted.
# mypy: ignore-errors
# ruff: noqa: RUF059

from __future__ import annotations

import triton
import triton.language as tl

from alibi_attention.backends.triton.common import (
    INF,
    PLAN_KEYS,
    PLAN_QUERIES,
    ceil_div,
    clamp,
    is_finite,
    rows_of_block,
    rows_seen,
)

# Past the rounding of norms, past squares that underflow, and, in nats, past the rounding of everything else.
NORM_INFLATION = tl.constexpr(1.001)
NORM_FLOOR = tl.constexpr(1e-17)
ROUNDING_NATS = tl.constexpr(0.03)
# What tiles too far away to look at one by one may hold together, of what a row may lose: 2^-10.
TAIL_SHARE = tl.constexpr(0.0009765625)
TAIL_NATS = tl.constexpr(6.931471805599453)
# Past this many nats above the limit, more makes no difference, and exp is still finite.
MOST_NATS = tl.constexpr(60.0)
CHUNK = tl.constexpr(128)
REACH_CHUNK = tl.constexpr(2048)


@triton.jit(do_not_specialize=["kv_heads", "k_len", "tiles"])
def summary_kernel(
    key, value, center, radius, key_range, key_batch, key_head, key_row, value_batch, value_head, value_row,
    kv_heads, k_len, tiles,
    head_dim: tl.constexpr, value_dim: tl.constexpr, block_d: tl.constexpr, block_v: tl.constexpr,
    tiles_at_once: tl.constexpr, samples: tl.constexpr,
):  # fmt: skip
    """``center`` (batch, kv_heads, head_dim), the mean of a sample of the finite keys; ``radius`` (batch, kv_heads,
    tiles), the largest |k - center| of a tile from above, inf where a key or value is not finite, -inf without a key.
    """
    chunks = (tiles + tiles_at_once - 1) // tiles_at_once
    shared = tl.program_id(0) // chunks
    chunk = tl.program_id(0) % chunks
    batch, kv_head = shared // kv_heads, shared % kv_heads
    start = tl.full([], 0, tl.int32)
    end = start + k_len
    if key_range is not None:
        start = tl.load(key_range + 2 * batch)
        end = tl.load(key_range + 2 * batch + 1)
    element, value_element = tl.arange(0, block_d), tl.arange(0, block_v)
    keys = key + batch.to(tl.int64) * key_batch + kv_head.to(tl.int64) * key_head
    values = value + batch.to(tl.int64) * value_batch + kv_head.to(tl.int64) * value_head

    # Every program takes the same sample in the same order, and so arrives at the same center.
    at = start + (tl.arange(0, samples).to(tl.int64) * tl.maximum(end - start, 0) // samples).to(tl.int32)
    inside = (at < end)[:, None] & (element < head_dim)[None, :]
    sample = tl.load(keys + at.to(tl.int64)[:, None] * key_row + element[None, :], mask=inside, other=0.0)
    sample = sample.to(tl.float32)
    whole = (tl.min(is_finite(sample).to(tl.int32), 1) > 0) & (at < end)
    number = tl.sum(whole.to(tl.int32), 0)
    mean = tl.sum(tl.where(whole[:, None], sample, 0.0), 0) / tl.maximum(number, 1).to(tl.float32)
    if chunk == 0:
        tl.store(center + shared.to(tl.int64) * head_dim + element, mean, mask=element < head_dim)

    for index in range(tiles_at_once):
        tile = chunk * tiles_at_once + index
        at = tile * PLAN_KEYS + tl.arange(0, PLAN_KEYS)
        seen = (at >= start) & (at < end)
        part = tl.load(
            keys + at.to(tl.int64)[:, None] * key_row + element[None, :],
            mask=seen[:, None] & (element < head_dim)[None, :], other=0.0,
        ).to(tl.float32)  # fmt: skip
        away = tl.where(seen[:, None] & (element < head_dim)[None, :], part - mean[None, :], 0.0)
        norm = tl.sqrt(tl.sum(away * away, 1)) * NORM_INFLATION + NORM_FLOOR
        terms = tl.load(
            values + at.to(tl.int64)[:, None] * value_row + value_element[None, :],
            mask=seen[:, None] & (value_element < value_dim)[None, :], other=0.0,
        )  # fmt: skip
        whole = (tl.min(is_finite(terms).to(tl.int32), 1) > 0) & is_finite(norm)
        norm = tl.where(seen, tl.where(whole, norm, INF), -INF)
        tl.store(radius + shared.to(tl.int64) * tiles + tile, tl.max(norm, 0), mask=tile < tiles)


@triton.jit
def skippable(
    side: tl.constexpr, stand, room, slope, series, size, radii, radius_step, reach, tiles, sink
):  # fmt: skip
    """How many of the farthest tiles on one side may go, with all of them counted, and with the sink left out.

    Tile number n from the far end is tile n on the left of the rows (side +1), tile ``tiles`` - 1 - n on their right.
    ``stand`` is the nearest key of the row nearest to the far end, and the others' greater distance is in ``room``:
    tiles that hold together at most exp(room), at their distance from ``stand``, may be skipped. ``size`` is
    |scale| times the largest norm of a query, ``reach`` the largest radius.
    """
    if side > 0:
        candidates = tl.minimum((stand + 1) // PLAN_KEYS, tiles)
        sink_distance = stand - (sink * PLAN_KEYS + PLAN_KEYS - 1)
    else:
        candidates = tl.maximum(tiles - (stand + PLAN_KEYS - 1) // PLAN_KEYS, 0)
        sink_distance = sink * PLAN_KEYS - stand
    sink_radius = tl.load(radii + tl.maximum(sink, 0) * radius_step, mask=sink >= 0, other=-INF).to(tl.float32)
    sink_mass = tl.exp(tl.minimum(size * sink_radius + series - slope * sink_distance.to(tl.float32) - room, MOST_NATS))
    sink_mass = tl.where((sink >= 0) & (sink_radius != -INF), sink_mass, 0.0)
    # Everything beyond this distance is nothing, whatever it is: 1 / (1 - e^-m) is at most 1 + 1/m.
    far = (size * reach + tl.log(1.0 + 1.0 / slope) - room + TAIL_NATS) / slope
    far = tl.where(far > 0.0, far, 0.0)
    beyond = clamp(candidates - (tl.minimum(far, 1e9) / PLAN_KEYS).to(tl.int32) - 2, 0, candidates)
    beyond = beyond // CHUNK * CHUNK
    held = tl.where(beyond > 0, TAIL_SHARE, 0.0)
    all_gone = beyond
    rest_gone = beyond
    for first in range(beyond, candidates, CHUNK):
        number = first + tl.arange(0, CHUNK)
        here = number < candidates
        if side > 0:
            tile = number
            distance = stand - (tile * PLAN_KEYS + PLAN_KEYS - 1)
        else:
            tile = tiles - 1 - number
            distance = tile * PLAN_KEYS - stand
        radius = tl.load(radii + tl.where(here, tile, 0).to(tl.int64) * radius_step).to(tl.float32)
        nats = size * radius + series - slope * distance.to(tl.float32) - room
        mass = tl.where(radius == -INF, 0.0, tl.exp(tl.minimum(nats, MOST_NATS)))
        mass = tl.where(here & (tile != sink), mass, 0.0)
        total = held + tl.cumsum(mass, 0)
        with_sink = total + tl.where((tile >= sink) if side > 0 else (tile <= sink), sink_mass, 0.0)
        all_gone += tl.sum((here & (with_sink <= 1.0)).to(tl.int32), 0)
        rest_gone += tl.sum((here & (total <= 1.0)).to(tl.int32), 0)
        held += tl.sum(mass, 0)
    return all_gone, rest_gone


@triton.jit(
    do_not_specialize=["num_heads", "group", "q_len", "k_len", "entries", "tiles", "pairs", "radius_batch",
                       "radius_head", "offset", "left", "right"]
)  # fmt: skip
def plan_kernel(
    query, key, center, radius, largest, slopes, plan, order, key_order,
    offsets, key_range, position_of, lower_of, upper_of, row_blocks,
    query_batch, query_head, query_row, key_batch, key_head, key_row, radius_batch, radius_head, radius_step,
    slope_batch, slope_head, num_heads, group, q_len, k_len, entries, tiles, pairs,
    offset: tl.int64, left: tl.int64, right: tl.int64, scale, budget,
    head_dim: tl.constexpr, block_d: tl.constexpr, block_m: tl.constexpr, nearest: tl.constexpr,
    two_sided: tl.constexpr, learned: tl.constexpr, with_sink: tl.constexpr, precision: tl.constexpr,
):  # fmt: skip
    """For each block of queries the first and the end of its tiles of keys, and the tile kept apart or -1.

    ``radius`` is float32 or a cache's float64; ``largest`` (batch, kv_heads) its maximum, or None to look for it here.
    ``budget`` is the log of the share of mass a side may lose, ``scale`` in nats. ``order`` and ``key_order`` become
    the pairs of (batch, head) and of (batch, key head) by slope, flattest first.
    """
    pair = tl.program_id(0) // entries
    block = tl.program_id(0) % entries
    batch, head = pair // num_heads, pair % num_heads
    kv_heads = num_heads // group
    kv_head = head // group
    first_row, row_end, _ = rows_of_block(block, q_len, row_blocks, PLAN_QUERIES)
    row = first_row + tl.arange(0, block_m)
    position, near, lower, upper, sees = rows_seen(
        row, batch, row_end, k_len, offset, left, right, offsets, key_range, position_of, lower_of, upper_of
    )
    slope = tl.load(slopes + batch * slope_batch + head * slope_head)
    if block == 0:
        place_in_order(order, pair, slope, slopes, slope_batch, slope_head, num_heads, 1, pairs)
        if head % group == 0:
            flattest = slope
            for member in range(1, group):
                flattest = tl.minimum(flattest, tl.load(slopes + batch * slope_batch + (head + member) * slope_head))
            place_in_order(
                key_order, batch * kv_heads + kv_head, flattest, slopes, slope_batch, slope_head, num_heads, group,
                pairs // group,
            )  # fmt: skip
    seen_first = tl.min(tl.where(sees, lower, k_len), 0) // PLAN_KEYS
    seen_end = ceil_div(tl.max(upper, 0), PLAN_KEYS)
    seen_first = tl.minimum(seen_first, seen_end)
    start = tl.full([], 0, tl.int32)
    if key_range is not None:
        start = tl.load(key_range + 2 * batch)

    element = tl.arange(0, block_d)
    inside = (element < head_dim)[None, :]
    rows = tl.load(
        query + batch.to(tl.int64) * query_batch + head.to(tl.int64) * query_head
        + row.to(tl.int64)[:, None] * query_row + element[None, :], mask=sees[:, None] & inside, other=0.0,
    )  # fmt: skip
    middle = tl.load(
        center + (batch * kv_heads + kv_head).to(tl.int64) * head_dim + element, mask=element < head_dim, other=0.0
    )
    wide = rows.to(tl.float32)
    norm = tl.sqrt(tl.sum(wide * wide, 1)) * NORM_INFLATION + NORM_FLOOR
    about_center = scale * tl.sum(wide * middle[None, :], 1)
    keys = key + batch.to(tl.int64) * key_batch + kv_head.to(tl.int64) * key_head

    # What a row holds at least: its nearest key, or the keys around the block's first row, whichever is more
    # (without the latter where a tile of them has no room).
    own = keys + near.to(tl.int64)[:, None] * key_row + element[None, :]
    own = tl.load(own, mask=sees[:, None] & inside, other=0.0)
    floor = scale * tl.sum(wide * own.to(tl.float32), 1)
    lowest = tl.min(tl.where(sees, near, k_len), 0)
    highest = tl.max(tl.where(sees, near, 0), 0)
    if nearest > 0:
        at = tl.maximum(lowest - nearest // 2 + 1, 0) + tl.arange(0, nearest)
        around = tl.load(
            keys + at.to(tl.int64)[None, :] * key_row + element[:, None],
            mask=(at < k_len)[None, :] & (element < head_dim)[:, None], other=0.0,
        )  # fmt: skip
        scores = tl.dot(rows, around, input_precision=precision) * scale
        scores -= slope * tl.abs(near[:, None] - at[None, :]).to(tl.float32)
        visible = (at[None, :] >= lower[:, None]) & (at[None, :] < upper[:, None])
        scores = tl.where(visible, scores, -INF)
        peak = tl.maximum(tl.max(scores, 1), floor)
        mass = tl.sum(tl.exp(scores - peak[:, None]), 1)
        floor = tl.maximum(floor, peak + tl.log(mass))

    radii = radius + batch.to(tl.int64) * radius_batch + kv_head.to(tl.int64) * radius_head
    if largest is not None:
        reach = tl.load(largest + batch * kv_heads + kv_head).to(tl.float32)
    else:
        # Each step waits for memory, and one program looks for the maximum of a whole cache: up to 128K keys in one.
        reach = tl.full([], -INF, tl.float32)
        for first in range(0, tiles, REACH_CHUNK):
            tile = first + tl.arange(0, REACH_CHUNK)
            part = tl.load(radii + tile.to(tl.int64) * radius_step, mask=tile < tiles, other=-INF).to(tl.float32)
            reach = tl.maximum(reach, tl.max(part, 0))
    # A float64 radius may have been rounded down.
    reach = tl.maximum(reach, 0.0) * 1.000001
    span = reach + tl.sqrt(tl.sum(middle * middle, 0)) * NORM_INFLATION
    size = tl.abs(scale) * norm
    room = floor - about_center + budget - ROUNDING_NATS - (head_dim * 1.2e-7 + 2e-6) * size * span
    if learned:
        # The gradient of a slope weighs a key by its distance.
        distance = tl.maximum(position - lower, upper - 1 - position).to(tl.float32)
        room -= tl.log(1.0 + tl.maximum(slope, 0.0) * tl.maximum(distance, 0.0))
    sound = is_finite(room) & is_finite(norm) & (tl.abs(room) < 1e30)
    # Behind a NaN or an infinity nothing is skipped: a row that met one has no mass to hold a bound against.
    allowed = (tl.max(tl.where(sees & (sound == 0), 1, 0), 0) == 0) & (slope > 0.0) & is_finite(span)
    widest = tl.max(tl.where(sees, size, 0.0), 0) * 1.000001
    safe_slope = tl.where(slope > 0.0, slope, 1.0)
    # ln of (1 - e^-64m) / (1 - e^-m), from above; its own series where m is small and the differences cancel.
    decay = safe_slope * PLAN_KEYS
    small = PLAN_KEYS * (1.0 - decay / 2 + decay * decay / 6) * (1.0 + safe_slope / 2 + safe_slope * safe_slope / 12)
    large = (1.0 - tl.exp(-decay)) / (1.0 - tl.exp(-tl.maximum(safe_slope, 1.0 / PLAN_KEYS)))
    series = tl.log(tl.where(decay < 1.0, small, large) * 1.0001)

    # A sequence that begins here has its attention sink in its first tile.
    sink = tl.where(with_sink, start // PLAN_KEYS, -1)
    gone, gone_but_sink = skippable(
        1, lowest, tl.min(tl.where(sees, room + slope * (near - lowest).to(tl.float32), 1e30), 0), safe_slope, series,
        widest, radii, radius_step, reach, tiles, sink,
    )  # fmt: skip
    gone = tl.where(allowed, gone, 0)
    gone_but_sink = tl.where(allowed, gone_but_sink, 0)
    gains = (sink >= 0) & (gone_but_sink > tl.maximum(gone, sink + 1))
    end = seen_end
    if two_sided:
        gone_right, rest = skippable(
            -1, highest, tl.min(tl.where(sees, room + slope * (highest - near).to(tl.float32), 1e30), 0), safe_slope,
            series, widest, radii, radius_step, reach, tiles, tl.full([], -1, tl.int32),
        )  # fmt: skip
        end = tl.minimum(end, tiles - tl.where(allowed, gone_right, 0))
    first = tl.where(gains, gone_but_sink, gone)
    # The bounds never let everything go; nor shall rounding.
    first = tl.maximum(seen_first, tl.minimum(first, end - 1))
    end = tl.maximum(end, first)
    apart = tl.where(gains & (seen_first <= sink) & (sink < first) & (seen_first < seen_end), sink, -1)
    entry = plan + tl.program_id(0).to(tl.int64) * 3
    tl.store(entry, first)
    tl.store(entry + 1, end)
    tl.store(entry + 2, apart)


@triton.jit
def place_in_order(order, own, slope, slopes, slope_batch, slope_head, num_heads, group, count):
    """Writes ``own`` where it belongs among ``count`` groups of heads, by the least slope of each, ties by number.

    NaN comes last. Compared as it is, it would be neither before nor after any other: places would be taken twice and
    others never written, and whoever reads an order takes what is there for an address.
    """
    heads = num_heads // group
    slope = tl.where(slope == slope, slope, INF)
    rank = tl.full([], 0, tl.int32)
    for first in range(0, count, CHUNK):
        other = first + tl.arange(0, CHUNK)
        batch, head = other // heads, other % heads * group
        least = tl.load(slopes + batch * slope_batch + head * slope_head, mask=other < count, other=INF)
        for member in range(1, group):
            one = tl.load(slopes + batch * slope_batch + (head + member) * slope_head, mask=other < count, other=INF)
            least = tl.minimum(least, one)
        least = tl.where(least == least, least, INF)
        before = (least < slope) | ((least == slope) & (other < own))
        rank += tl.sum((before & (other < count)).to(tl.int32), 0)
    tl.store(order + rank, own)
