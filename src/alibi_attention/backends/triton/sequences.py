"""Packed sequences on the device: what each row sees, which rows make a block, and which rows a block of keys needs."""

# Triton's language has no static types, and its loops no underscore for what is not wanted.
# mypy: ignore-errors

from __future__ import annotations

import triton
import triton.language as tl

from alibi_attention.backends.triton.common import (
    PLAN_KEYS,
    PLAN_QUERIES,
    ceil_div,
    clamp,
    lesser,
    number_below,
)

CHUNK = tl.constexpr(128)
NEVER = tl.constexpr(9223372036854775807)


@triton.jit(do_not_specialize=["q_len", "k_len", "sequences", "steps", "left", "right"])
def packed_rows_kernel(
    q_ends, k_ends, position_of, lower_of, upper_of, key_range, q_len, k_len, sequences, steps,
    left: tl.int64, right: tl.int64, at_once: tl.constexpr,
):  # fmt: skip
    """Of each row its position, that of its sequence's last key for the last row, and the keys [lower, upper) it sees;
    ``key_range`` (2) is first and end of the keys that belong to any sequence.

    ``q_ends`` and ``k_ends`` are (sequences + 1). Nobody has looked at their values: whatever they are, no other keys
    than the call's are seen. Rows outside of all sequences, as in a buffer of one size for all batches, see none.
    """
    row = tl.program_id(0) * at_once + tl.arange(0, at_once)
    inside = row < q_len
    sequence = tl.minimum(number_below(q_ends + 1, row.to(tl.int64), sequences, steps, True), sequences - 1)
    very_first = tl.load(k_ends).to(tl.int64)
    # Outside both bounds are one, and rise as they do within.
    end = tl.where(row < tl.load(q_ends), very_first, tl.load(k_ends + sequence + 1).to(tl.int64))
    first = tl.where(row < tl.load(q_ends + sequences), tl.load(k_ends + sequence).to(tl.int64), end)
    position = row - tl.load(q_ends + sequence + 1).to(tl.int64) + end
    lower = clamp(tl.maximum(first, position - left), 0, k_len.to(tl.int64))
    upper = clamp(tl.minimum(end, position + right + 1), lower, k_len.to(tl.int64))
    if tl.program_id(0) == 0:
        tl.store(key_range, clamp(very_first, 0, k_len.to(tl.int64)).to(tl.int32))
        tl.store(key_range + 1, clamp(tl.load(k_ends + sequences).to(tl.int64), 0, k_len.to(tl.int64)).to(tl.int32))
    tl.store(position_of + row, position, mask=inside)
    tl.store(lower_of + row, lower.to(tl.int32), mask=inside)
    tl.store(upper_of + row, upper.to(tl.int32), mask=inside)


@triton.jit
def shares_a_block(q_ends, k_ends, sequence, inside):
    """Whether a sequence may share a block with a neighbour that may, too: its keys fit in a tile, and its rows are not
    so few for them that 128 of them would have more than sixteen tiles to sweep, one after the other.

    One without rows does only if it has no keys either: there would be keys in between that nobody sees.
    """
    rows = tl.load(q_ends + sequence + 1, mask=inside, other=0) - tl.load(q_ends + sequence, mask=inside, other=0)
    keys = tl.load(k_ends + sequence + 1, mask=inside, other=0) - tl.load(k_ends + sequence, mask=inside, other=0)
    return (keys <= PLAN_KEYS) & (keys <= 8 * rows)


@triton.jit
def first_of_group(q_ends, sequence, inside):
    """The first row of a group that begins with a sequence."""
    return tl.load(q_ends + sequence, mask=inside & (sequence > 0), other=0).to(tl.int64)


@triton.jit(do_not_specialize=["q_len", "sequences"])
def groups_kernel(q_ends, k_ends, ends, remaining, q_len, sequences):
    """Neighbours that share blocks make a group: ``ends`` (sequences) is the end of its rows, where one begins with a
    sequence; ``remaining`` (sequences + 1) counts the blocks of the groups that begin with a sequence or after it,
    below zero, so that it rises.

    The first has the rows before it, too, and the last those behind it: no row is left unwritten.
    """
    chunks = (sequences + CHUNK - 1) // CHUNK
    least = q_len.to(tl.int64)
    held = tl.full([], 0, tl.int32)
    tl.store(remaining + sequences, held)
    for number in range(chunks):
        at = (chunks - 1 - number) * CHUNK + tl.arange(0, CHUNK)
        inside = at < sequences
        has_next = at + 1 < sequences
        own = shares_a_block(q_ends, k_ends, at, inside)
        begins = (at == 0) | ((own & shares_a_block(q_ends, k_ends, at - 1, inside & (at > 0))) == 0)
        next_begins = (own & shares_a_block(q_ends, k_ends, at + 1, has_next)) == 0
        following = tl.load(q_ends + at + 1, mask=inside, other=0).to(tl.int64)
        following = tl.where(has_next & next_begins, following, NEVER)
        end = tl.minimum(tl.associative_scan(following, 0, lesser, reverse=True), least)
        least = tl.minimum(least, tl.min(following, 0))
        rows = end - first_of_group(q_ends, at, inside)
        blocks = tl.where(inside & begins, ceil_div(rows, PLAN_QUERIES), 0).to(tl.int32)
        tl.store(ends + at, end, mask=inside)
        tl.store(remaining + at, held - tl.cumsum(blocks, 0, reverse=True), mask=inside)
        held -= tl.sum(blocks, 0)


@triton.jit(do_not_specialize=["q_len", "sequences", "steps", "entries"])
def row_blocks_kernel(q_ends, ends, remaining, row_blocks, q_len, sequences, steps, entries):
    """``row_blocks`` (entries, 2): first and end row of each block of up to 128; both ``q_len`` behind the last."""
    block = tl.program_id(0) * CHUNK + tl.arange(0, CHUNK)
    whole = -tl.load(remaining)
    # The group of a block is the first behind which fewer blocks remain than behind the block.
    low = number_below(remaining + 1, block - whole, sequences - 1, steps, True)
    within = block - whole - tl.load(remaining + low)
    first = first_of_group(q_ends, low, low >= 0) + within * PLAN_QUERIES
    end = tl.minimum(first + PLAN_QUERIES, tl.load(ends + low))
    found = block < whole
    # Nobody has looked at the values: kernels write to no rows but the call's.
    limit = q_len.to(tl.int64)
    first = clamp(tl.where(found, first, limit), 0, limit).to(tl.int32)
    end = clamp(tl.where(found, end, limit), 0, limit).to(tl.int32)
    tl.store(row_blocks + 2 * block, first, mask=block < entries)
    tl.store(row_blocks + 2 * block + 1, end, mask=block < entries)


@triton.jit(do_not_specialize=["q_len", "k_len", "key_blocks", "steps"])
def key_rows_kernel(lower_of, upper_of, key_rows, q_len, k_len, key_blocks, steps, block_n: tl.constexpr):
    """``key_rows`` (key_blocks, 4): first and end of the rows that see any key of a block, and of those that see all.

    Both bounds of what a row sees rise with the row.
    """
    block = tl.program_id(0) * CHUNK + tl.arange(0, CHUNK)
    start = block * block_n
    end = start + block_n
    inside = block < key_blocks
    entry = key_rows + 4 * block
    tl.store(entry, number_below(upper_of, start, q_len, steps, True), mask=inside)
    tl.store(entry + 1, number_below(lower_of, tl.minimum(end, k_len), q_len, steps, False), mask=inside)
    tl.store(entry + 2, number_below(upper_of, end, q_len, steps, False), mask=inside)
    tl.store(entry + 3, number_below(lower_of, start, q_len, steps, True), mask=inside)
