"""Buffers that hold the last tokens of some heads, at a place that slides."""

from __future__ import annotations

import torch
from torch import Tensor

from alibi_attention.cache.common import lasting
from alibi_attention.cache.run import Run
from alibi_attention.horizon.tiles import BLOCK_K


class Ring(Run):
    """The last keys and values of a few key heads, of equal reach, each head's in one contiguous run.

    The operator reads a plain strided view of what `Run` places.

    Attributes:
        heads: the key heads, ascending.
        key, value: (batch, heads, room, dim).
        norms: (batch, heads, room / 64) float64, the summary of `horizon.summary` by tile.
        center: (batch, heads, head_dim), what the radii are taken about.
    """

    center: Tensor

    def __init__(self, heads: list[int], key: Tensor, value: Tensor, room: int) -> None:
        """``key`` and ``value`` give batch, dims, dtype and device."""
        super().__init__(room=room)
        self.heads = heads
        self.key, self.value, self.norms = _buffers(len(heads), key, value, self.room)

    def view(self) -> tuple[Tensor, Tensor, Tensor]:
        """Keys, values and norms of tokens start to end."""
        at, tile = slice(self.offset, self.offset + self.held), self.offset // BLOCK_K
        return self.key[:, :, at], self.value[:, :, at], self.norms[:, :, tile : -(-at.stop // BLOCK_K)]

    def span(self, first: int, end: int) -> tuple[Tensor, Tensor]:
        """Keys and values of the tokens from ``first`` to ``end``."""
        at = slice(self.offset + first - self.start, self.offset + end - self.start)
        return self.key[:, :, at], self.value[:, :, at]

    def append(self, key: Tensor, value: Tensor, radii: Tensor) -> None:
        """Write tokens behind the last; ``radii`` (batch, heads, tokens) are their distances from the center."""
        tokens = key.shape[2]
        at = self.extend(tokens)
        self.key[:, :, at : at + tokens] = key
        self.value[:, :, at : at + tokens] = value
        self._note(at, radii)

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

    def evict(self, start: int, farther: Tensor) -> None:
        """Let the run begin at ``start``.

        The operator is told that the first tile holds nothing, which the audit or the caps have established, and that
        the second holds a key as far out as any there was, so that a test that looks at the farthest of all keys comes
        out as it would with all of them there.

        Args:
            start: a multiple of PIECE.
            farther: (batch, heads) the largest radius of any key seen outside the first tile of its sequence.
        """
        self.begin_at(start)
        tile = self.offset // BLOCK_K
        self.norms[:, :, tile] = -torch.inf
        second = self.norms[:, :, tile + 1]
        torch.maximum(second, farther, out=second)

    def _slide(self) -> None:
        # In steps that do not overlap.
        shift, held = self.offset, self.held
        for first in range(0, held, shift):
            count = min(shift, held - first)
            for buffer in (self.key, self.value):
                buffer[:, :, first : first + count] = buffer[:, :, shift + first : shift + first + count]
        tiles = -(-held // BLOCK_K)
        self.norms[:, :, :tiles] = self.norms[:, :, shift // BLOCK_K : shift // BLOCK_K + tiles].clone()

    def _grow(self, room: int) -> None:
        super()._grow(room)
        self._take_over(self)

    def _take_over(self, source: Ring, heads: list[int] | slice = slice(None)) -> None:
        """Hold what ``source`` holds, at the front of new buffers."""
        key, value, norms = (part[:, heads] for part in source.view())
        self.key, self.value, self.norms = _buffers(key.shape[1], source.key, source.value, self.room)
        self.key[:, :, : source.held] = key
        self.value[:, :, : source.held] = value
        self.norms[:, :, : norms.shape[2]] = norms

    def split(self, groups: list[list[int]]) -> list[Ring]:
        """The heads dealt out among rings of their own, with all that is held."""
        rings = []
        for heads in groups:
            ring = Ring.__new__(Ring)
            Run.__init__(ring, self.reach, self.room_of_part())
            ring.heads, ring.start, ring.end = heads, self.start, self.end
            ring._take_over(self, [self.heads.index(head) for head in heads])
            rings.append(ring)
        return rings

    def crop(self, length: int, radii: Tensor | None) -> None:
        """Forget the tokens from ``length`` on; ``radii`` are those of the tile it cuts, None at an edge."""
        self.end = length
        if radii is not None:
            tile = (self.offset + self.held) // BLOCK_K
            self.norms[:, :, tile] = radii.amax(2)

    def reorder(self, index: Tensor) -> None:
        with lasting():
            self.key, self.value, self.norms = (t.index_select(0, index) for t in (self.key, self.value, self.norms))


def _buffers(heads: int, key: Tensor, value: Tensor, room: int) -> tuple[Tensor, Tensor, Tensor]:
    batch = key.shape[0]
    with lasting():
        return (
            torch.empty(batch, heads, room, key.shape[3], dtype=key.dtype, device=key.device),
            torch.empty(batch, heads, room, value.shape[3], dtype=value.dtype, device=key.device),
            torch.full((batch, heads, room // BLOCK_K), -torch.inf, dtype=torch.float64, device=key.device),
        )
