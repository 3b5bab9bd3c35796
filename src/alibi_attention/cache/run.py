"""Where the tokens that a ring holds lie in its buffer: arithmetic alone.

`Ring` does with tensors what is decided here, and `forecast` follows the decisions without any.
"""

from __future__ import annotations

import math
from collections.abc import Collection

from alibi_attention.horizon.tiles import BLOCK_K

PIECE = 512
"""What is held starts at a multiple of this, eight tiles: kernels may cut their keys into pieces of them."""

_LEAST_ROOM = 256


class Run:
    """A run of tokens in a buffer that it moves through.

    Tokens are written at the end. Those evicted leave at the front, by moving where the run begins; when the end of the
    buffer is met the run moves back to the front of it. That happens once in as many tokens as there is room to spare,
    an eighth of the run at least, so a token costs a constant. A buffer that is too small becomes larger by a quarter.

    Attributes:
        reach: tokens before the earliest query to come that must be held; None while nothing is evicted.
        start: position of the first token held, a multiple of PIECE.
        end: position after the last.
        offset: where in the buffer the first lies.
        room: tokens that the buffer has room for, whole tiles.
    """

    def __init__(self, reach: int | None = None, room: int = 0) -> None:
        self.reach = reach
        self.start = self.end = self.offset = 0
        self.room = whole_tiles(room)

    @property
    def held(self) -> int:
        return self.end - self.start

    @property
    def evicted(self) -> int:
        """Tokens given up: the first tile of the run is among them, though it lies there still (`first_needed`)."""
        return self.start + BLOCK_K if self.start else 0

    def first_needed(self, position: int, apart: Collection[int] = ()) -> int:
        """Where the run may begin for queries from ``position`` on; never before it begins now, nor in ``apart``."""
        if self.reach is None:
            return self.start
        # The tile it begins with is evicted already, but still there: the kernels keep a first tile apart, as the one
        # where attention sinks live, and what they decide about it must not matter. And decoding reads the last 16
        # tiles before it decides anything.
        horizon = (position - self.reach - BLOCK_K) // PIECE * PIECE
        start = min(horizon, (position // PIECE - 2) * PIECE)
        while start in apart:
            start -= PIECE
        return max(self.start, start)

    @property
    def evicts_from(self) -> float:
        """The first position at which ``first_needed``, with nothing apart, is past ``start``."""
        return math.inf if self.reach is None else self.start + PIECE + max(self.reach + BLOCK_K, 2 * PIECE)

    def begin_at(self, start: int) -> None:
        """Give up what comes before ``start``."""
        self.offset += start - self.start
        self.start = start

    def extend(self, tokens: int) -> int:
        """Take in tokens behind the last, and say where in the buffer they go."""
        self._make_room(tokens)
        at = self.offset + self.held
        self.end += tokens
        return at

    def has_room(self, tokens: int) -> bool:
        """Whether tokens find room where the buffer is, and it is not far too large for what will be held."""
        if self.offset + self.held + tokens > self.room:
            return False
        return self.reach is None or self.room <= 2 * self._wanted(tokens)

    def _make_room(self, tokens: int) -> None:
        if self.has_room(tokens):
            return
        needed = self.held + tokens
        wanted = self._wanted(tokens)
        if needed + needed // 8 <= self.room <= 2 * wanted:
            self._slide()
        else:
            # By a quarter: doubling leaves up to half of a long text's memory unused, for a copy of each token saved.
            room = self.room + max(self.room // 4, _LEAST_ROOM)
            self._grow(whole_tiles(max(needed, room if self.reach is None else min(wanted, room))))
        self.offset = 0

    def _wanted(self, tokens: int) -> int:
        """Room for all that is ever held between two evictions, and a quarter to slide in."""
        if self.reach is None:
            return self.room
        most = self.most(tokens)
        return whole_tiles(most + max(PIECE, most // 4))

    def most(self, tokens: int) -> int:
        """What is held at most once something was evicted, after an append of ``tokens``."""
        assert self.reach is not None
        return max(self.reach + BLOCK_K, 2 * PIECE) + PIECE + tokens

    def _slide(self) -> None:
        """Move what is held to the front of the buffer."""

    def _grow(self, room: int) -> None:
        """Move what is held to the front of another buffer."""
        self.room = room

    def room_of_part(self) -> int:
        """Room for some of the heads, with all that is held, when each group of heads gets a run of its own."""
        return whole_tiles(self.held + PIECE)


def dealt_from(reaches: Collection[float]) -> float:
    """The position from which on heads of these reaches get rings of their own: one of them then evicts something."""
    return max(2 * PIECE, min(reaches) + BLOCK_K + PIECE)


def whole_tiles(tokens: int) -> int:
    """Tokens in the fewest whole tiles that have room for so many."""
    return -(-tokens // BLOCK_K) * BLOCK_K
