"""Buffers that hold the last tokens of some heads, at a place that slides."""

from __future__ import annotations

import torch
from torch import Tensor

from alibi_attention.cache.common import lasting
from alibi_attention.horizon.tiles import BLOCK_K

PIECE = 512
"""What is held starts at a multiple of this, eight tiles: kernels may cut their keys into pieces of them."""

_LEAST_ROOM = 256


class Ring:
    """The last keys and values of a few key heads, of equal reach, each head's in one contiguous run.

    Tokens are written at the end. Those evicted leave at the front, by moving where the run begins; when the end of the
    buffer is met the run moves back to the front of it. That happens once in as many tokens as there is room to spare,
    a quarter of the run at least, so a token costs a constant, and the operator reads a plain strided view.

    Attributes:
        heads: the key heads, ascending.
        reach: tokens before the earliest query to come that must be held; None while nothing is evicted.
        start: position of the first token held, a multiple of PIECE.
        end: position after the last.
        key, value: (batch, heads, room, dim).
        norms: (batch, heads, room / 64) float64, the summary of `horizon.summary` by tile.
        center: (batch, heads, head_dim), what the radii are taken about.
    """

    center: Tensor

    def __init__(self, heads: list[int], key: Tensor, value: Tensor, room: int) -> None:
        """``key`` and ``value`` give batch, dims, dtype and device."""
        self.heads = heads
        self.reach: int | None = None
        self.start = self.end = 0
        self._offset = 0
        self.key, self.value, self.norms = _buffers(len(heads), key, value, room)

    @property
    def held(self) -> int:
        return self.end - self.start

    @property
    def evicted(self) -> int:
        """Tokens given up: the first tile of the run is among them, though it lies there still (`first_needed`)."""
        return self.start + BLOCK_K if self.start else 0

    @property
    def room(self) -> int:
        return self.key.shape[2]

    def view(self) -> tuple[Tensor, Tensor, Tensor]:
        """Keys, values and norms of tokens start to end."""
        at, tile = slice(self._offset, self._offset + self.held), self._offset // BLOCK_K
        return self.key[:, :, at], self.value[:, :, at], self.norms[:, :, tile : -(-at.stop // BLOCK_K)]

    def span(self, first: int, end: int) -> tuple[Tensor, Tensor]:
        """Keys and values of the tokens from ``first`` to ``end``."""
        at = slice(self._offset + first - self.start, self._offset + end - self.start)
        return self.key[:, :, at], self.value[:, :, at]

    def append(self, key: Tensor, value: Tensor, radii: Tensor) -> None:
        """Write tokens behind the last; ``radii`` (batch, heads, tokens) are their distances from the center."""
        tokens = key.shape[2]
        self._make_room(tokens)
        at = self._offset + self.held
        self.key[:, :, at : at + tokens] = key
        self.value[:, :, at : at + tokens] = value
        self._note(at, radii)
        self.end += tokens

    def _note(self, at: int, radii: Tensor) -> None:
        tile, into = divmod(at, BLOCK_K)
        tokens = radii.shape[2]
        if tokens == 1:
            most = radii
        else:
            padded = torch.nn.functional.pad(radii, (into, -(at + tokens) % BLOCK_K), value=-torch.inf)
            most = padded.unflatten(2, (-1, BLOCK_K)).amax(3)
        if into:
            first = self.norms[:, :, tile]
            torch.maximum(first, most[:, :, 0], out=first)
            most, tile = most[:, :, 1:], tile + 1
        if most.shape[2]:
            self.norms[:, :, tile : tile + most.shape[2]] = most

    def first_needed(self, position: int, apart: set[int]) -> int:
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

    def evict(self, start: int, farther: Tensor) -> None:
        """Let the run begin at ``start``.

        The operator is told that the first tile holds nothing, which the audit or the caps have established, and that
        the second holds a key as far out as any there was, so that a test that looks at the farthest of all keys comes
        out as it would with all of them there.

        Args:
            start: a multiple of PIECE.
            farther: (batch, heads) the largest radius of any key seen outside the first tile of its sequence.
        """
        self._offset += start - self.start
        self.start = start
        tile = self._offset // BLOCK_K
        self.norms[:, :, tile] = -torch.inf
        second = self.norms[:, :, tile + 1]
        torch.maximum(second, farther, out=second)

    def _make_room(self, tokens: int) -> None:
        needed = self.held + tokens
        wanted = self._wanted(tokens)
        if self._offset + needed <= self.room and (self.reach is None or self.room <= 2 * wanted):
            return
        if needed + needed // 8 <= self.room <= 2 * wanted:
            self._slide()
            return
        room = max(2 * self.room, _LEAST_ROOM)
        self._move(self, max(needed, room if self.reach is None else min(wanted, room)))

    def _wanted(self, tokens: int) -> int:
        """Room for all that is ever held between two evictions, and a quarter to slide in."""
        if self.reach is None:
            return self.room
        most = max(self.reach + BLOCK_K, 2 * PIECE) + PIECE + tokens
        most += max(PIECE, most // 4)
        return -(-most // BLOCK_K) * BLOCK_K

    def _slide(self) -> None:
        """Move the run to the front, in steps that do not overlap."""
        shift, held = self._offset, self.held
        for first in range(0, held, shift):
            count = min(shift, held - first)
            for buffer in (self.key, self.value):
                buffer[:, :, first : first + count] = buffer[:, :, shift + first : shift + first + count]
        tiles = -(-held // BLOCK_K)
        self.norms[:, :, :tiles] = self.norms[:, :, shift // BLOCK_K : shift // BLOCK_K + tiles].clone()
        self._offset = 0

    def _move(self, source: Ring, room: int, heads: list[int] | slice = slice(None)) -> None:
        """Take over what ``source`` holds from this ring's start on, into new buffers."""
        key, value, norms = (part[:, heads] for part in source.view())
        skipped = max(0, self.start - source.start)
        self.key, self.value, self.norms = _buffers(key.shape[1], source.key, source.value, room)
        self.key[:, :, : source.held - skipped] = key[:, :, skipped:]
        self.value[:, :, : source.held - skipped] = value[:, :, skipped:]
        kept = norms[:, :, skipped // BLOCK_K :]
        self.norms[:, :, : kept.shape[2]] = kept
        self._offset = 0

    def split(self, groups: list[list[int]]) -> list[Ring]:
        """The heads dealt out among rings of their own, with all that is held."""
        rings = []
        for heads in groups:
            ring = Ring.__new__(Ring)
            ring.heads, ring.reach, ring.start, ring.end = heads, self.reach, self.start, self.end
            ring._move(self, self.held + PIECE, [self.heads.index(head) for head in heads])
            rings.append(ring)
        return rings

    def crop(self, length: int, radii: Tensor | None) -> None:
        """Forget the tokens from ``length`` on; ``radii`` are those of the tile it cuts, None at an edge."""
        self.end = length
        if radii is not None:
            tile = (self._offset + self.held) // BLOCK_K
            self.norms[:, :, tile] = radii.amax(2)

    def reorder(self, index: Tensor) -> None:
        with lasting():
            self.key, self.value, self.norms = (t.index_select(0, index) for t in (self.key, self.value, self.norms))


def _buffers(heads: int, key: Tensor, value: Tensor, room: int) -> tuple[Tensor, Tensor, Tensor]:
    batch, room = key.shape[0], -(-room // BLOCK_K) * BLOCK_K
    with lasting():
        return (
            torch.empty(batch, heads, room, key.shape[3], dtype=key.dtype, device=key.device),
            torch.empty(batch, heads, room, value.shape[3], dtype=value.dtype, device=key.device),
            torch.full((batch, heads, room // BLOCK_K), -torch.inf, dtype=torch.float64, device=key.device),
        )
