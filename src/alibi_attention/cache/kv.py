"""Keys and values kept from one step to the next, with the summary that spares a query from reading the old ones."""

from __future__ import annotations

from typing import Any, Literal, overload

import torch
from torch import Tensor

from alibi_attention.cache.common import (
    bytes_of,
    check_append,
    check_continues,
    check_index,
    check_length,
    lasting,
    mean_key,
    outside_compiler,
    rows_of,
    shape_words,
)
from alibi_attention.cache.steps import Steps, new_radii
from alibi_attention.call import autocast_is_on, call_arguments
from alibi_attention.checks.options import check_flag
from alibi_attention.checks.positions import check_key_mask
from alibi_attention.checks.tensors import check_tensor
from alibi_attention.horizon.tiles import BLOCK_K, blocks_of
from alibi_attention.ops import run_forward

_LEAST_CAPACITY = 256


class KVCache:
    """The keys and values of a growing batch of sequences.

    ::

        cache = KVCache()
        cache.append(key, value)                  # a prompt, a chunk of one, or a single token
        out = cache.attend(query, slopes)         # the queries of the last tokens appended

    Beside the tensors it keeps, for each block of 64 keys, the largest distance of a key from the head's center (the
    mean key of what was appended first): all that the certified horizon asks of a key it will not read. The summary
    belongs to the cache alone. In numbers, for each sequence, with w the keys in the horizons of a key head's queries::

        held              num_kv_heads * length * (head_dim + value_dim + 1 / 64)
        read by a step    num_kv_heads * (w * (head_dim + value_dim) + length / 64)

    A step of decoding thus costs what its horizons hold, not what the cache does. No graph of keys and values is kept,
    and those that require a gradient are refused: use it under torch.no_grad().

    Attending a prompt in chunks gives what attending it in one piece gives, up to rounding.

    Args:
        capacity: tokens to make room for at once; it grows when they are used up. By default it grows from 256.

    Raises:
        ValueError: for a capacity that is no integer of at least 1.

    Source: docs/maths.md, section 9.
    """

    # Of the class too, for caches kept by versions without it.
    _steps: Steps | None = None

    def __init__(self, capacity: int | None = None) -> None:
        if capacity is not None and (not isinstance(capacity, int) or isinstance(capacity, bool) or capacity < 1):
            raise ValueError(f"capacity: expected at least 1 token, got {capacity!r}; leave it out to let it grow")
        self._capacity = capacity
        self._length = 0
        self._key: Tensor | None = None
        self._value: Tensor | None = None
        self._mask: Tensor | None = None
        self._center: Tensor | None = None
        self._norms: Tensor | None = None
        self._steps = None

    def __getstate__(self) -> dict[str, Any]:
        # What is remembered of steps has addresses in it, which a copy's buffers do not have.
        return {**vars(self), "_steps": None}

    @property
    def length(self) -> int:
        """Tokens held, padding included."""
        return self._length

    @property
    def key(self) -> Tensor:
        """(batch, num_kv_heads, length, head_dim), a view."""
        return self._held(self._key)

    @property
    def value(self) -> Tensor:
        """(batch, num_kv_heads, length, value_dim), a view."""
        return self._held(self._value)

    @property
    def bytes_held(self) -> int:
        """Memory of keys, values and their summary, room for tokens to come included."""
        return bytes_of(self._key, self._value, self._mask, self._center, self._norms)

    def __repr__(self) -> str:
        return f"KVCache({shape_words(self._length, self._key, self._value)}, {self.bytes_held:,} bytes)"

    def _held(self, buffer: Tensor | None) -> Tensor:
        if buffer is None:
            raise ValueError("cache: expected keys and values to have been appended, got an empty cache")
        return buffer[:, :, : self._length]

    @outside_compiler
    def append(self, key: Tensor, value: Tensor, *, key_mask: Tensor | None = None) -> None:
        """Add the keys and values of the next tokens.

        Args:
            key: (batch, num_kv_heads, tokens, head_dim).
            value: (batch, num_kv_heads, tokens, value_dim).
            key_mask: (batch, tokens) bool, False for padding, which is held as zeros: sequences of unequal length are
                padded on the left.

        Raises:
            ValueError: for shapes, dtypes or devices that do not continue what is held, for tensors that require a
                gradient, or for padding that leaves a hole. Of tensors on a GPU this last is looked for with
                ALIBI_DEBUG=1 only, since looking would make every append wait for the device; without it, what is
                attended to after a hole is not defined.
        """
        if key_mask is None and self._append_shortly(key, value):
            return
        check_append(key, value, self._key, self._value)
        tokens = key.shape[2]
        if key_mask is not None:
            check_key_mask(key_mask, key.shape[0], tokens, key.device)
            check_continues(key_mask, self._begun(key_mask), waits=False)
        at = slice(self._length, self._length + tokens)
        capacity = self._capacity_for(at.stop)
        held_key, held_value = _grown(self._key, key, capacity), _grown(self._value, value, capacity)
        mask, norms = self._grown_mask(key, key_mask, capacity), self._grown_norms(key, capacity)
        if key_mask is not None:
            # Whatever padding holds, a NaN among it, stays outside.
            key, value = (t.masked_fill(~key_mask[:, None, :, None], 0.0) for t in (key, value))
        center = mean_key(key, key_mask) if self._center is None else self._center
        summary = _summary(center, key, value, key_mask, at)
        # Nothing from here on takes memory: an append that fails has changed nothing, and may be repeated.
        held_key[:, :, at] = key
        held_value[:, :, at] = value
        if mask is not None:
            mask[:, at] = True if key_mask is None else key_mask
        norms.scatter_reduce_(2, *summary, "amax")
        if held_key is not self._key or mask is not None:
            # It would keep the buffers of before; and padding goes the long way.
            self._steps = None
        self._key, self._value, self._mask, self._center, self._norms = held_key, held_value, mask, center, norms
        self._length = at.stop

    def _append_shortly(self, key: Tensor, value: Tensor) -> bool:
        """Whether the tokens could go the short way, and went it."""
        steps = self._short_way()
        if steps is None or not steps.append(key, value, self._length):
            return False
        self._length += key.shape[2]
        return True

    def _short_way(self) -> Steps | None:
        """None where there is none: nothing held yet, or padding."""
        key, center, norms = self._key, self._center, self._norms
        if key is None or center is None or norms is None or self._mask is not None:
            return None
        if self._steps is None or not self._steps.are_of(key, center, norms):
            assert self._value is not None
            self._steps = Steps(key, self._value, center, norms)
        return self._steps

    def _capacity_for(self, needed: int) -> int:
        have = 0 if self._key is None else self._key.shape[2]
        if needed <= have:
            return have
        return blocks_of(max(needed, 2 * have, self._capacity or _LEAST_CAPACITY), BLOCK_K) * BLOCK_K

    def _grown_mask(self, key: Tensor, key_mask: Tensor | None, capacity: int) -> Tensor | None:
        held = self._mask
        if (held is None and key_mask is None) or (held is not None and held.shape[1] == capacity):
            return held
        with lasting():
            mask = torch.zeros(key.shape[0], capacity, dtype=torch.bool, device=key.device)
            mask[:, : self._length] = True if held is None else held[:, : self._length]
        return mask

    def _grown_norms(self, key: Tensor, capacity: int) -> Tensor:
        held, blocks = self._norms, capacity // BLOCK_K
        if held is not None and held.shape[2] == blocks:
            return held
        with lasting():
            norms = torch.full((*key.shape[:2], blocks), -torch.inf, dtype=torch.float64, device=key.device)
            if held is not None:
                norms[..., : held.shape[2]] = held
        return norms

    def _begun(self, key_mask: Tensor) -> Tensor:
        """(batch,) bool, the rows that hold a token: a look at the last column held is enough."""
        if self._mask is not None and self._length:
            return self._mask[:, self._length - 1]
        return key_mask.new_full(key_mask.shape[:1], self._length > 0)

    @overload
    def attend(
        self, query: Tensor, slopes: Tensor | None = ..., *, scale: float | None = ...,
        window: tuple[int | None, int | None] | None = ..., tolerance: float | None = ...,
        return_lse: Literal[False] = ..., backend: str | None = ...,
    ) -> Tensor: ...  # fmt: skip
    @overload
    def attend(
        self, query: Tensor, slopes: Tensor | None = ..., *, scale: float | None = ...,
        window: tuple[int | None, int | None] | None = ..., tolerance: float | None = ...,
        return_lse: Literal[True], backend: str | None = ...,
    ) -> tuple[Tensor, Tensor]: ...  # fmt: skip
    def attend(
        self,
        query: Tensor,
        slopes: Tensor | None = None,
        *,
        scale: float | None = None,
        window: tuple[int | None, int | None] | None = None,
        tolerance: float | None = None,
        return_lse: bool = False,
        backend: str | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Causal attention of the queries of the last tokens over everything held.

        Args:
            query: (batch, num_heads, q_len, head_dim); query i belongs to the token q_len - i from the end.
            slopes, scale, window, tolerance, return_lse, backend: as in `alibi_attention`.

        Returns:
            As `alibi_attention` over ``cache.key`` and ``cache.value``.

        Raises:
            ValueError: for more queries than tokens held or another dtype, and as `alibi_attention`.
        """
        check_tensor("query", query)
        check_flag("return_lse", return_lse)
        if query.dim() == 4 and query.shape[2] > self._length:
            raise ValueError(
                f"query: expected at most one for each of the {self._length} tokens held, "
                f"got shape {tuple(query.shape)}; append their keys and values first"
            )
        if not torch.compiler.is_compiling():
            steps = self._short_way()
            if steps is not None:
                found = steps.attend(
                    query, slopes, 0, self._length, scale=scale, window=window, tolerance=tolerance,
                    return_lse=return_lse, backend=backend,
                )  # fmt: skip
                if found is not None:
                    return found
        key, value = self.key, self.value
        if autocast_is_on(query.device.type):
            # What is held decides the dtype: its summary describes it as it is, and to cast it would cost O(length).
            query = query.to(key.dtype)
        if query.dtype != key.dtype:
            raise ValueError(
                f"query: expected {key.dtype}, as the cache holds, got {query.dtype}; convert it, or append keys and "
                "values of its dtype to an empty cache"
            )
        arguments = call_arguments(
            query, key, value, slopes, is_causal=True, scale=scale, query_offset=None,
            key_mask=None if self._mask is None else self._mask[:, : self._length],
            cu_seqlens=None, cu_seqlens_k=None, window=window, dropout_p=0.0, tolerance=tolerance, backend=backend,
            key_center=self._center,
            key_norms=None if self._norms is None else self._norms[..., : blocks_of(self._length, BLOCK_K)],
            autocast=False,
        )  # fmt: skip
        out, lse = run_forward(arguments)
        return (out, lse) if return_lse else out

    def crop(self, length: int) -> None:
        """Forget the tokens from ``length`` on, as speculative decoding does with those it rejects.

        Raises:
            ValueError: for a length that is not between 0 and what is held.
        """
        check_length(length, 0, self._length, "held")
        if length == self._length:
            return
        assert self._norms is not None
        assert self._center is not None
        at = slice(length // BLOCK_K * BLOCK_K, length)
        first = at.start // BLOCK_K
        norms = torch.full_like(self._norms[..., first:], -torch.inf)
        if at.start < length:
            mask = None if self._mask is None else self._mask[:, at]
            block, radii = _summary(self._center, self.key[:, :, at], self.value[:, :, at], mask, at)
            norms.scatter_reduce_(2, block - first, radii, "amax")
        # In this order, each in one step: whatever stops it between, no key held is without its radius.
        self._length = length
        self._norms[..., first:] = norms

    def reorder(self, index: Tensor) -> None:
        """Make row b of the batch what row index[b] was, as beam search does; rows may repeat or fall away.

        Args:
            index: (new batch,) integers.

        Raises:
            ValueError: for an index that is not one-dimensional and integer, or on the CPU out of range.
        """
        # All of it or, where memory runs out on the way, nothing.
        vars(self).update(self._reordered(index))

    def _reordered(self, index: Tensor) -> dict[str, Any]:
        """What `reorder` makes of each tensor, by its name here."""
        check_index(index, self.key.shape[0])
        index, held = index.to(self.key.device), slice(0, self._length)
        moved = {name: rows_of(getattr(self, name), index, held) for name in ("_key", "_value")}
        # Of these little is room, and what the room of the summary holds counts.
        others = {name: getattr(self, name) for name in ("_mask", "_center", "_norms")}
        with lasting():
            moved |= {name: t.index_select(0, index) for name, t in others.items() if t is not None}
        # It would keep the buffers of before.
        return {**moved, "_steps": None}

    def reset(self) -> None:
        """Forget everything, and free the memory."""
        self.__init__(self._capacity)  # type: ignore[misc]


def _grown(held: Tensor | None, like: Tensor, capacity: int) -> Tensor:
    if held is not None and held.shape[2] == capacity:
        return held
    shape = (like.shape[0], like.shape[1], capacity, like.shape[3])
    with lasting():
        buffer = torch.empty(shape, dtype=like.dtype, device=like.device)
        if held is not None:
            buffer[:, :, : held.shape[2]] = held
    return buffer


def _summary(center: Tensor, key: Tensor, value: Tensor, key_mask: Tensor | None, at: slice) -> tuple[Tensor, Tensor]:
    """Blocks and radii, (batch, num_kv_heads, tokens), of tokens that lie at ``at``."""
    radii = new_radii(center, key, value)
    if key_mask is not None:
        radii = radii.masked_fill(~key_mask.unsqueeze(1), -torch.inf)
    block = torch.arange(at.start, at.stop, device=key.device) // BLOCK_K
    return block.expand_as(radii), radii
