"""What the kernels share: what a row sees, the bias of a tile, dropout, and terms that are not finite."""

# Triton's language has no static types, and its loops no underscore for what is not wanted.
# mypy: ignore-errors

from __future__ import annotations

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)
# Where a running maximum starts: finite, so that -inf less it is -inf and not NaN.
LOWEST = tl.constexpr(-3.0e38)
INF = tl.constexpr(float("inf"))
# The note of a row without mass: a shift of +inf, a mean of 0.
NO_MASS = tl.constexpr(0x7F800000)
PLAN_QUERIES = tl.constexpr(128)
PLAN_KEYS = tl.constexpr(64)


@triton.jit
def rows_seen(
    row, batch, q_len, k_len, offset, left, right, offsets, key_range, position_of, lower_of, upper_of,
    plain: tl.constexpr = False,
):  # fmt: skip
    """Of each row: its position, the key it sees that is nearest to it, and the first and the end of what it sees.

    A row beyond the last, or one that sees nothing, has lower = upper = 0. Between any visible key j and the nearest
    one n, |p - j| = |p - n| + |n - j|, so a row may stand at n and only its lse need know of p. ``plain`` tells that a
    row sees every key up to its position, one distance from its number: then all but the position is of 32 bits.
    """
    inside = row < q_len
    if plain:
        position = row.to(tl.int64) + offset
        near = tl.minimum(row + clamp(offset, -q_len.to(tl.int64), k_len).to(tl.int32), k_len - 1)
        sees = inside & (near >= 0)
        near = tl.where(sees, near, -1)
        return position, near, tl.zeros_like(row), near + 1, sees
    if position_of is not None:
        position = tl.load(position_of + row, mask=inside, other=0)
        lower = tl.load(lower_of + row, mask=inside, other=0).to(tl.int32)
        upper = tl.load(upper_of + row, mask=inside, other=0).to(tl.int32)
    else:
        if offsets is not None:
            offset = tl.load(offsets + batch).to(tl.int64)
        position = row.to(tl.int64) + offset
        start = tl.zeros_like(position)
        end = start + k_len
        if key_range is not None:
            start += tl.load(key_range + 2 * batch)
            end = start * 0 + tl.load(key_range + 2 * batch + 1)
        lower = tl.minimum(tl.maximum(position - left, start), k_len).to(tl.int32)
        upper = tl.maximum(tl.minimum(position + right + 1, end), 0).to(tl.int32)
    sees = inside & (lower < upper)
    lower = tl.where(sees, lower, 0)
    upper = tl.where(sees, upper, 0)
    near = tl.minimum(tl.maximum(position, lower.to(tl.int64)), upper.to(tl.int64) - 1).to(tl.int32)
    return position, near, lower, upper, sees


@triton.jit
def rows_of_block(number, q_len, row_blocks, block: tl.constexpr):
    """The number-th block of ``block`` rows: its first row, the end of the rows it may have, and its entry in a plan.

    ``row_blocks`` (entries, 2) are first and end of each entry's rows where sequences are packed; elsewhere an entry
    is 128 rows of the call.
    """
    first = number * block
    end = q_len
    entry = first // PLAN_QUERIES
    if row_blocks is not None:
        entry = number // (PLAN_QUERIES // block)
        first = tl.load(row_blocks + 2 * entry) + number % (PLAN_QUERIES // block) * block
        end = tl.load(row_blocks + 2 * entry + 1)
    return first, end, entry


@triton.jit
def programs_over_rows(q_len, entries, row_blocks, block: tl.constexpr):
    """Blocks of ``block`` rows of a pair of (batch, head)."""
    if row_blocks is not None:
        return entries * (PLAN_QUERIES // block)
    return (q_len + block - 1) // block


@triton.jit
def kept_weights(seed, stream, first_row, start, threshold, rows: tl.constexpr, columns: tl.constexpr):
    """(rows, columns) bool, the words of dropout.py: four neighbouring columns share one counter."""
    quad = (start // 4 + tl.arange(0, columns // 4)).to(tl.uint32)[None, :]
    row = (first_row + tl.arange(0, rows)).to(tl.uint32)[:, None]
    zeros = tl.zeros([rows, columns // 4], tl.uint32)
    word0, word1, word2, word3 = tl.philox(seed, zeros + quad, zeros + row, zeros + stream.to(tl.uint32), zeros)
    words = tl.join(tl.join(word0, word2), tl.join(word1, word3))
    return tl.reshape(words, [rows, columns]) > threshold.to(tl.uint32, bitcast=True)


@triton.jit
def is_finite(x):
    return tl.abs(x.to(tl.float32)) < INF


@triton.jit
def rows_not_finite(x):
    """1 for each row of ``x`` with an element that is not finite, 0 for others."""
    return tl.max(tl.where(is_finite(x), 0, 1), 1)


@triton.jit
def note_of(shift, mean):
    """What backward needs of a row in one number of 64 bits, so that a loop fetches one and not two: each thread of a
    tile's layout needs many rows, and Triton 3.6 has each of them copy all of its own.
    """
    high = mean.to(tl.int32, bitcast=True).to(tl.int64) << 32
    return high | (shift.to(tl.int32, bitcast=True).to(tl.int64) & 0xFFFFFFFF)


@triton.jit
def shift_and_mean(note):
    shift = note.to(tl.int32).to(tl.float32, bitcast=True)
    return shift, (note >> 32).to(tl.int32).to(tl.float32, bitcast=True)


@triton.jit
def weighs_something(shift, mean):
    """Whether a row has mass, from what `rows_kernel` notes of it: +inf and 0 of one without.

    One whose lse is +inf has the same shift, and a mean that is no number.
    """
    return (shift != INF) | (mean != 0.0)


@triton.jit
def clamp(x, low, high):
    return tl.minimum(tl.maximum(x, low), high)


@triton.jit
def number_below(values, bound, number, steps, or_equal: tl.constexpr):
    """For each bound how many of the first ``number`` values, which rise, are below it; found by halving."""
    low = tl.zeros_like(bound).to(tl.int32)
    high = low + number
    for _ in range(steps):
        middle = (low + high) // 2
        open_ = low < high
        value = tl.load(values + middle, mask=open_, other=0)
        below = (value <= bound) if or_equal else (value < bound)
        low = tl.where(open_ & below, middle + 1, low)
        high = tl.where(open_ & (below == 0), middle, high)
    return low


@triton.jit
def lesser(one, other):
    return tl.minimum(one, other)


@triton.jit
def greater(one, other):
    return tl.maximum(one, other)


@triton.jit
def ceil_div(x, y):
    """Rounded up also for x below 0, where // of a kernel rounds towards 0."""
    return tl.where(x > 0, (x + y - 1) // y, 0)


@triton.jit
def floor_div(x, y):
    """x // y, or 0 for x below 0."""
    return tl.where(x > 0, x // y, 0)


@triton.jit
def key_tiles(
    lower, upper, near, sees, entry, k_len, block: tl.constexpr, two_sided: tl.constexpr, planned: tl.constexpr
):  # fmt: skip
    """Which tiles of keys a block of rows sweeps.

    Returns:
        base: first key, a multiple of ``block``: begun in between, two tiles would share the diagonal of a block of
        rows of the same length; end: of the keys, behind which may lie anything; count: tiles from base on; [a, b): the
        tiles of them that every row sees to its left; [c, d): those that every row sees to its right; apart: the first
        key of the tile kept apart, or -1.
    """
    base = tl.min(tl.where(sees, lower, k_len), 0)
    end = tl.max(upper, 0)
    apart = tl.full([], -1, tl.int32)
    if planned:
        base = tl.load(entry) * PLAN_KEYS
        end = tl.minimum(end, tl.load(entry + 1) * PLAN_KEYS)
        apart = tl.load(entry + 2) * PLAN_KEYS
    base = base // block * block
    if planned:
        # In the first tile as it is, or nowhere.
        apart = tl.where(apart < base, apart, -1)
    count = ceil_div(end - base, block)
    common_lower = tl.max(lower, 0)
    common_upper = tl.min(tl.where(sees, upper, k_len), 0)
    lowest = tl.min(tl.where(sees, near, k_len), 0)
    a = tl.minimum(ceil_div(common_lower - base, block), count)
    b = clamp(floor_div(tl.minimum(common_upper, lowest + 1) - base, block), a, count)
    c = count
    d = count
    if two_sided:
        highest = tl.max(tl.where(sees, near, 0), 0)
        c = clamp(ceil_div(tl.maximum(common_lower, highest) - base, block), b, count)
        d = clamp(floor_div(common_upper - base, block), c, count)
    return base, end, count, a, b, c, d, apart


@triton.jit
def masked_tile(index, base, end, count, a, b, c, d, apart, block: tl.constexpr):
    """The first key of the index-th tile that needs a mask, and the end of the keys it may use.

    Those are the tiles of [0, count) outside [a, b) and [c, d), and after them the tile kept apart.
    """
    masked = count - (b - a) - (d - c)
    at = index + tl.where(index >= a, b - a, 0)
    at += tl.where(at >= c, d - c, 0)
    is_apart = index >= masked
    start = tl.where(is_apart, apart + (index - masked) * block, base + at * block)
    limit = tl.where(is_apart, tl.minimum(apart + PLAN_KEYS, base), end)
    return start, limit


@triton.jit
def masked_count(count, a, b, c, d, apart, block: tl.constexpr):
    """Tiles that need a mask, the tile kept apart among them."""
    return count - (b - a) - (d - c) + tl.where(apart >= 0, (PLAN_KEYS + block - 1) // block, 0)
