"""Where the windows end that only their last tokens are scored in: a sliding window, and fixed targets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from alibi_attention.lab.held_out import HeldOut, segment_starts

LEAST_BLOCKS = 8
"""Blocks of fixed targets, at least, however long the windows are."""


class Ends(NamedTuple):
    """Windows that share where they end: ``scored`` predictions each, the last of them at ``ends``."""

    ends: list[int]
    scored: int


def sliding_ends(held_out: HeldOut, lengths: Sequence[int], budget: int, stride: int, length: int) -> Ends:
    """Windows of ``length`` that move by a stride over regions all lengths share, to the same tokens.

    A region is a stride of the longest length, and there are as many, evenly spread, as windows of that length make up
    the budget: what is counted is what is read, which is the length over the stride as much as is scored. For a stride
    of 0 it is a quarter of the length, or, so that all lengths meet at the ends of regions, the power of two below;
    where a given stride is longer than a length, the longest divisor of it that is not. Where the text ends before a
    region does, the region is shorter.
    """
    longest = lengths[-1]
    room = len(held_out.tokens) - longest
    region = min(stride, longest) or _power_of_two(max(1, longest // 4))
    if room < region:
        region = _power_of_two(room)
    step = _divisor(region, max(1, min(stride, length) or length // 4))
    ends = []
    for start in segment_starts(room + 1, region, max(1, budget // longest) * region):
        ends += [longest - 1 + start + step * i for i in range(1, region // step + 1)]
    return Ends(ends, step)


def sliding_tokens(
    held_out: HeldOut, lengths: Sequence[int], budget: int, stride: int, enough: int
) -> tuple[int, int | None]:
    """How many tokens `sliding_ends` scores at every length, and the budget that would score ``enough`` of them; None
    where the text has not got so many."""
    longest = lengths[-1]
    found = sliding_ends(held_out, lengths, budget, stride, longest)
    # A window of the longest length ends with each region.
    wanted = -(-enough // found.scored)
    most = sliding_ends(held_out, lengths, wanted * longest, stride, longest)
    return len(found.ends) * found.scored, wanted * longest if len(most.ends) >= wanted else None


def _power_of_two(most: int) -> int:
    return 1 << (most.bit_length() - 1)


def _divisor(number: int, most: int) -> int:
    return next(divisor for divisor in range(min(number, most), 0, -1) if number % divisor == 0)


def target_ends(held_out: HeldOut, lengths: Sequence[int], budget: int, scored: int) -> Ends:
    """Blocks of ``scored`` tokens with as much text before them as the longest window takes.

    As many as can be read at every length for ``budget`` tokens a length on average; at least 8. They are spread evenly
    over the places where the longest window lies within one document. Where there are too few such places for blocks
    that do not overlap, further blocks are spread over all the text.
    """
    longest = lengths[-1]
    room = len(held_out.tokens) - 1 - longest
    wanted = max(LEAST_BLOCKS, budget * len(lengths) // sum(lengths))
    inside = _spread(_within_documents(held_out, longest), wanted, scored)
    if len(inside) == wanted:
        return Ends(inside, scored)
    count = max(1, min(wanted, room // scored + 1))
    anywhere = [longest + room * i // max(1, count - 1) for i in range(count)]
    more = [end for end in anywhere if all(abs(end - other) >= scored for other in inside)]
    left = min(len(more), wanted - len(inside))
    return Ends(sorted([*inside, *(more[i * len(more) // left] for i in range(left))]), scored)


def _within_documents(held_out: HeldOut, length: int) -> list[tuple[int, int]]:
    """First and last place at which a window of ``length`` may end so that it and what it predicts are one document."""
    starts = held_out.document_starts
    # Each document but the last is followed by a separator.
    lasts = np.append(starts[1:] - 2, len(held_out.tokens) - 1)
    return [(first + length, last) for first, last in zip(starts.tolist(), lasts.tolist(), strict=True)
            if first + length <= last]  # fmt: skip


def _spread(ranges: Sequence[tuple[int, int]], count: int, apart: int) -> list[int]:
    """Up to ``count`` places in ranges, at least ``apart`` of each other, evenly over the room there is."""
    slots = [(last - first) // apart + 1 for first, last in ranges]
    total = sum(slots)
    if total == 0:
        return []
    bounds = np.cumsum([0, *slots])
    count = min(count, total)
    # Midpoints of equal shares: no document is favoured for being first or last.
    numbers = (np.arange(count) * 2 + 1) * total // (2 * count)
    owners = np.searchsorted(bounds, numbers, side="right") - 1
    places: NDArray[np.int64] = np.array([first for first, _ in ranges])[owners] + (numbers - bounds[owners]) * apart
    return [int(place) for place in places]
