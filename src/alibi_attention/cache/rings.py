"""Buffers that hold the last tokens of some heads, at a place that slides."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from alibi_attention.cache.common import Drafted, lasting, rows_of
from alibi_attention.cache.run import Run
from alibi_attention.cache.steps import Steps
from alibi_attention.horizon.tiles import BLOCK_K


class Ring(Drafted, Run):
    """The last keys and values of a few key heads, of equal reach, each head's in one contiguous run.

    The operator reads a plain strided view of what `Run` places. `evict`, `append` and `crop` are for drafts.

    Attributes:
        heads: the key heads, ascending.
        key, value: (batch, heads, room, dim).
        norms: (batch, heads, room / 64) float64, the summary of `horizon.summary` by tile.
        center: (batch, heads, head_dim), what the radii are taken about.
        index: (heads,) int64, `heads`, of ``of`` there are.
    """

    center: Tensor
    index: Tensor
    of: int
    # What `evict` and `_slide` leave to the next `append`.
    _farther: Tensor | None = None
    _shift = 0
    _steps: Steps | None = None

    def __getstate__(self) -> dict[str, Any]:
        # As a `KVCache`: addresses are of this ring's buffers.
        return {**vars(self), "_steps": None}

    def __init__(self, heads: list[int], key: Tensor, value: Tensor, room: int) -> None:
        """``key`` and ``value`` give batch, dims, dtype and device."""
        super().__init__(room=room)
        self.heads = heads
        self.key, self.value, self.norms = _buffers(len(heads), key, value, self.room)

    def view(self) -> tuple[Tensor, Tensor, Tensor]:
        """Keys, values and norms of tokens start to end."""
        at, tile = slice(self.offset, self.offset + self.held), self.offset // BLOCK_K
        return self.key[:, :, at], self.value[:, :, at], self.norms[:, :, tile : -(-at.stop // BLOCK_K)]

    def steps(self) -> Steps:
        """The short way of attending to what is held, from row ``offset`` to ``offset + held`` of the buffers."""
        if self._steps is None or not self._steps.are_of(self.key, self.center, self.norms):
            self._steps = Steps(self.key, self.value, self.center, self.norms, self.index, self.of)
        return self._steps

    def span(self, first: int, end: int) -> tuple[Tensor, Tensor]:
        """Keys and values of the tokens from ``first`` to ``end``."""
        at = slice(self.offset + first - self.start, self.offset + end - self.start)
        return self.key[:, :, at], self.value[:, :, at]

    def append(self, key: Tensor, value: Tensor, radii: Tensor) -> Callable[[], None]:
        """Make room behind the last token; what is returned writes there, once, and takes no memory.

        ``radii`` (batch, heads, tokens) are the distances of the tokens from the center.
        """
        tokens, held = key.shape[2], self.held
        at = self.extend(tokens)
        most = _by_tile(radii, at)
        shift, self._shift = self._shift, 0
        farther, self._farther = self._farther, None

        def write() -> None:
            if shift:
                self._move(shift, held)
            if farther is not None:
                self._mark(farther)
            self.key[:, :, at : at + tokens] = key
            self.value[:, :, at : at + tokens] = value
            self._note(at, most)

        return write

    def _note(self, at: int, most: Tensor) -> None:
        tile, into = divmod(at, BLOCK_K)
        if into:
            first = self.norms[:, :, tile]
            torch.maximum(first, most[:, :, 0], out=first)
            most, tile = most[:, :, 1:], tile + 1
        if most.shape[2]:
            self.norms[:, :, tile : tile + most.shape[2]] = most

    def evict(self, start: int, farther: Tensor) -> None:
        """Let the run begin at ``start``, from the next `append` on.

        Args:
            start: a multiple of PIECE.
            farther: (batch, heads) the largest radius of any key seen outside the first tile of its sequence.
        """
        self.begin_at(start)
        self._farther = farther

    def _mark(self, farther: Tensor) -> None:
        """Tell the operator of an eviction.

        The first tile holds nothing, which the audit or the caps have established, and the second a key as far out as
        any there was, so that a test that looks at the farthest of all keys comes out as it would with all of them
        there.
        """
        tile = self.offset // BLOCK_K
        self.norms[:, :, tile] = -torch.inf
        second = self.norms[:, :, tile + 1]
        torch.maximum(second, farther, out=second)

    def _slide(self) -> None:
        self._shift = self.offset

    def _move(self, shift: int, held: int) -> None:
        # In steps that do not overlap.
        for first in range(0, held, shift):
            end = min(first + shift, held)
            for buffer, unit in ((self.key, 1), (self.value, 1), (self.norms, BLOCK_K)):
                low, high, by = first // unit, -(-end // unit), shift // unit
                buffer[:, :, low:high] = buffer[:, :, low + by : high + by]

    def _grow(self, room: int) -> None:
        self._take_over(self, room)
        super()._grow(room)

    def _take_over(self, source: Ring, room: int, heads: list[int] | slice = slice(None)) -> None:
        """Hold what ``source`` holds, at the front of new buffers."""
        parts = [part[:, heads] for part in source.view()]
        buffers = _buffers(parts[0].shape[1], source.key, source.value, room)
        for buffer, part in zip(buffers, parts, strict=True):
            buffer[:, :, : part.shape[2]] = part
        self.key, self.value, self.norms = buffers
        # It would keep the buffers of before.
        self._steps = None

    def split(self, groups: list[list[int]]) -> list[Ring]:
        """The heads dealt out among rings of their own, with all that is held."""
        rings = []
        for heads in groups:
            ring = Ring.__new__(Ring)
            Run.__init__(ring, self.reach, self.room_of_part())
            ring.heads, ring.start, ring.end = heads, self.start, self.end
            ring._take_over(self, ring.room, [self.heads.index(head) for head in heads])
            rings.append(ring)
        return rings

    def crop(self, length: int, radii: Tensor | None) -> Callable[[], None]:
        """Forget the tokens from ``length`` on; ``radii`` are those of the tile it cuts, None at an edge.

        What is returned writes, once, and takes no memory.
        """
        self.end = length
        tile = (self.offset + self.held) // BLOCK_K
        most = None if radii is None else radii.amax(2)

        def write() -> None:
            if most is not None:
                self.norms[:, :, tile] = most

        return write

    def reorder(self, index: Tensor) -> None:
        at = slice(self.offset, self.offset + self.held)
        self.key, self.value = (rows_of(t, index, at) for t in (self.key, self.value))
        with lasting():
            self.norms = self.norms.index_select(0, index)
        self._steps = None


def _by_tile(radii: Tensor, at: int) -> Tensor:
    """(batch, heads, tiles) the largest radii of tokens that lie from ``at`` on."""
    tokens = radii.shape[2]
    if tokens == 1:
        return radii
    padded = torch.nn.functional.pad(radii, (at % BLOCK_K, -(at + tokens) % BLOCK_K), value=-torch.inf)
    most: Tensor = padded.unflatten(2, (-1, BLOCK_K)).amax(3)
    return most


def _buffers(heads: int, key: Tensor, value: Tensor, room: int) -> tuple[Tensor, Tensor, Tensor]:
    batch = key.shape[0]
    with lasting():
        return (
            torch.empty(batch, heads, room, key.shape[3], dtype=key.dtype, device=key.device),
            torch.empty(batch, heads, room, value.shape[3], dtype=value.dtype, device=key.device),
            torch.full((batch, heads, room // BLOCK_K), -torch.inf, dtype=torch.float64, device=key.device),
        )
