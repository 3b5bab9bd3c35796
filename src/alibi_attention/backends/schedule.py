"""From a plan of tiles to the batched products that `blocked` runs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from alibi_attention.horizon import BLOCK_K, BLOCK_Q, by_query_block
from alibi_attention.problem import Problem
from alibi_attention.visibility import Rows

# Scores formed at once, (b, h, rows, keys): about what the caches of a CPU hold, and the bound on extra memory.
CHUNK_SCORES = 1 << 20
# Heads, and batch elements, share a product while their union computes at most this much more than the least asks for.
_LIKENESS = 1.25


class Block(NamedTuple):
    """Some batch elements and heads of one block of queries."""

    batches: slice
    heads: slice
    queries: slice

    @property
    def at(self) -> tuple[slice, slice, slice]:
        return (self.batches, self.heads, self.queries)


class Work(NamedTuple):
    """A block, the runs of keys it sweeps, and the keys that every row of it sees: these need no mask."""

    block: Block
    chunks: list[slice]
    seen_by_all: slice


class _Range(NamedTuple):
    first: int
    end: int
    apart: int


def schedule(problem: Problem, plan: Tensor, rows: Rows) -> Iterator[Work]:
    """Every block of queries with the keys it needs. The one place where the plan is read on the host."""
    inner = _fully_seen(rows)
    for number, entries in enumerate(plan.permute(2, 0, 1, 3).tolist()):
        queries = slice(number * BLOCK_Q, min((number + 1) * BLOCK_Q, problem.q_len))
        height = queries.stop - queries.start
        for group, ranges in _alike([[_Range._make(head) for head in element] for element in entries]):
            for heads, tiles in _runs(ranges):
                spans = _spans(tiles, problem.k_len)
                widest = max((span.stop - span.start for span in spans), default=1)
                for batches, some_heads in _split(group, heads, max(1, CHUNK_SCORES // (height * widest))):
                    many = height * (batches.stop - batches.start) * (some_heads.stop - some_heads.start)
                    width = max(1, CHUNK_SCORES // many // BLOCK_K) * BLOCK_K
                    chunks = [piece for span in spans for piece in _pieces(span, width)]
                    yield Work(Block(batches, some_heads, queries), chunks, slice(*inner[number]))


def _alike(elements: list[list[_Range]]) -> Iterator[tuple[slice, list[_Range]]]:
    """Neighbouring batch elements whose plans are alike, and the union of those plans, head by head."""
    start = 0
    while start < len(elements):
        union, least, stop = elements[start], _total_width(elements[start]), start + 1
        while stop < len(elements):
            wider = [_union(one, other) for one, other in zip(union, elements[stop], strict=True)]
            least = min(least, _total_width(elements[stop]))
            if _total_width(wider) > _LIKENESS * least:
                break
            union, stop = wider, stop + 1
        yield slice(start, stop), union
        start = stop


def _total_width(ranges: list[_Range]) -> int:
    return sum(map(_width, ranges))


def _fully_seen(rows: Rows) -> list[list[int]]:
    """For each block of queries, the first and the end of the keys that every row of it sees."""
    lower = by_query_block(rows.lower, 0).amax(-1).amax(0)
    upper = by_query_block(rows.upper, torch.iinfo(torch.int64).max).amin(-1).amin(0)
    found: list[list[int]] = torch.stack([lower, upper], dim=-1).tolist()
    return found


def _runs(ranges: list[_Range]) -> Iterator[tuple[slice, _Range]]:
    """Neighbouring heads with horizons alike, and the union of those horizons."""
    start = 0
    while start < len(ranges):
        union, narrowest, stop = ranges[start], _width(ranges[start]), start + 1
        while stop < len(ranges):
            wider = _union(union, ranges[stop])
            least = min(narrowest, _width(ranges[stop]))
            if _width(wider) > _LIKENESS * least:
                break
            union, narrowest, stop = wider, least, stop + 1
        yield slice(start, stop), union
        start = stop


def _width(tiles: _Range) -> int:
    return max(0, tiles.end - tiles.first) + (tiles.apart >= 0)


def _union(one: _Range, other: _Range) -> _Range:
    if one.first >= one.end:
        return other
    if other.first >= other.end:
        return one
    first, end = min(one.first, other.first), max(one.end, other.end)
    if one.apart >= 0 and other.apart >= 0 and one.apart != other.apart:
        # Two tiles apart have no entry in a plan: the range grows to hold both.
        return _Range(min(one.apart, other.apart, first), end, -1)
    return _Range(first, end, max(one.apart, other.apart))


def _spans(tiles: _Range, k_len: int) -> list[slice]:
    """The runs of keys of a plan entry; a tile kept apart is a run of its own unless the horizon reaches it."""
    if tiles.first >= tiles.end:
        return []
    first = tiles.first * BLOCK_K
    spans = [slice(first, min(tiles.end * BLOCK_K, k_len))]
    if 0 <= tiles.apart < tiles.first:
        spans.append(slice(tiles.apart * BLOCK_K, (tiles.apart + 1) * BLOCK_K))
    return spans


def _split(group: slice, heads: slice, together: int) -> Iterator[tuple[slice, slice]]:
    """Batch elements and heads, at most ``together`` pairs at once."""
    head_step = min(heads.stop - heads.start, together)
    batch_step = max(1, together // head_step)
    for b in range(group.start, group.stop, batch_step):
        for h in range(heads.start, heads.stop, head_step):
            yield slice(b, min(b + batch_step, group.stop)), slice(h, min(h + head_step, heads.stop))


def _pieces(span: slice, width: int) -> Iterator[slice]:
    """A run cut into pieces on whole tiles, from its end to its start: nearest first for a causal row."""
    stop = span.stop
    while stop > span.start:
        start = max(span.start, (stop - 1) // BLOCK_K * BLOCK_K + BLOCK_K - width)
        yield slice(start, stop)
        stop = start
