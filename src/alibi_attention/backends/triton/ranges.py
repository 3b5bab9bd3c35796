"""The horizon from the keys' side: which rows' plans hold a block of keys, for the gradients of keys and values."""

# Triton's language has no static types, and its loops no underscore for what is not wanted.
# mypy: ignore-errors

from __future__ import annotations

import triton
import triton.language as tl

from alibi_attention.backends.triton.common import PLAN_KEYS, PLAN_QUERIES, greater, lesser, number_below

CHUNK = tl.constexpr(128)
NEVER = tl.constexpr(2147483647)


@triton.jit(do_not_specialize=["entries"])
def envelope_kernel(plan, late, early, sink_rows, entries):
    """Of each pair's plan, what is monotone: ``late``, the least first tile of a block or any after it; ``early``, the
    greatest end of a block or any before it; ``sink_rows``, first and end of the blocks that keep a tile apart.
    """
    pair = tl.program_id(0).to(tl.int64)
    own = plan + pair * entries * 3
    index = tl.arange(0, CHUNK)
    least = tl.full([], NEVER, tl.int32)
    sink_first = tl.full([], NEVER, tl.int32)
    sink_end = tl.full([], 0, tl.int32)
    chunks = (entries + CHUNK - 1) // CHUNK
    for number in range(chunks):
        at = (chunks - 1 - number) * CHUNK + index
        first = tl.load(own + at * 3, mask=at < entries, other=0)
        end = tl.load(own + at * 3 + 1, mask=at < entries, other=0)
        apart = tl.load(own + at * 3 + 2, mask=at < entries, other=-1)
        first = tl.where(first < end, first, NEVER)
        found = tl.minimum(tl.associative_scan(first, 0, lesser, reverse=True), least)
        tl.store(late + pair * entries + at, found, mask=at < entries)
        least = tl.minimum(least, tl.min(first, 0))
        sink_first = tl.minimum(sink_first, tl.min(tl.where(apart >= 0, at, NEVER), 0))
        sink_end = tl.maximum(sink_end, tl.max(tl.where(apart >= 0, at + 1, 0), 0))
    tl.store(sink_rows + pair * 2, sink_first)
    tl.store(sink_rows + pair * 2 + 1, sink_end)
    greatest = tl.full([], 0, tl.int32)
    for number in range(chunks):
        at = number * CHUNK + index
        end = tl.load(own + at * 3 + 1, mask=at < entries, other=0)
        first = tl.load(own + at * 3, mask=at < entries, other=0)
        end = tl.where(first < end, end, 0)
        found = tl.maximum(tl.associative_scan(end, 0, greater), greatest)
        tl.store(early + pair * entries + at, found, mask=at < entries)
        greatest = tl.maximum(greatest, tl.max(end, 0))


@triton.jit(do_not_specialize=["num_heads", "q_len", "entries", "key_blocks", "steps"])
def ranges_kernel(
    late, early, sink_rows, key_range, row_blocks, ranges, num_heads, q_len, entries, key_blocks, steps,
    block_n: tl.constexpr, with_sink: tl.constexpr,
):  # fmt: skip
    """First and end of the rows in blocks whose plans hold any of a block of keys."""
    chunks = (key_blocks + CHUNK - 1) // CHUNK
    pair = tl.program_id(0) // chunks
    at = tl.program_id(0) % chunks * CHUNK + tl.arange(0, CHUNK)
    first_tile = at * block_n // PLAN_KEYS
    last_tile = (at * block_n + block_n - 1) // PLAN_KEYS
    flat = pair.to(tl.int64) * entries
    # The number of blocks with late <= last_tile, and of those with early <= first_tile.
    end_block = number_below(late + flat, last_tile, entries, steps, True)
    first_block = number_below(early + flat, first_tile, entries, steps, True)
    if with_sink:
        sink = tl.full([], 0, tl.int32)
        if key_range is not None:
            sink = tl.load(key_range + 2 * (pair // num_heads)) // PLAN_KEYS
        holds = (first_tile <= sink) & (sink <= last_tile)
        sink_first = tl.load(sink_rows + pair * 2)
        sink_end = tl.load(sink_rows + pair * 2 + 1)
        joins = holds & (sink_end > 0)
        empty = first_block >= end_block
        first_block = tl.where(joins, tl.where(empty, sink_first, tl.minimum(first_block, sink_first)), first_block)
        end_block = tl.where(joins, tl.where(empty, sink_end, tl.maximum(end_block, sink_end)), end_block)
    if row_blocks is not None:
        first = tl.load(row_blocks + 2 * first_block, mask=first_block < entries, other=0)
        end = tl.load(row_blocks + 2 * end_block - 1, mask=end_block > 0, other=0)
    else:
        first = first_block * PLAN_QUERIES
        end = tl.minimum(end_block * PLAN_QUERIES, q_len)
    entry = ranges + (pair.to(tl.int64) * key_blocks + at) * 2
    tl.store(entry, first, mask=at < key_blocks)
    tl.store(entry + 1, tl.where(first_block < end_block, end, first), mask=at < key_blocks)
