"""The short way of a cache's steps: a few tokens in, their queries out, nothing described twice.

What `eager` is to plain calls: a step of decoding is mostly overhead, and in a model it comes once a layer and token.
Buffers stay where they are until they grow, so what is told to the kernels is written down once for each shape that
comes again, and from then on differs in addresses and in how much is held. The short way is open where `eager`'s is;
everywhere else steps go the long one, which checks and describes them anew.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from alibi_attention.backends.appending import PreparedAppend, radii_of, readable
from alibi_attention.backends.prepared import Held, PreparedStep
from alibi_attention.eager import are_plain, check_slopes, describe, is_ordinary, nothing_listens
from alibi_attention.horizon.summary import distances_from
from alibi_attention.horizon.tiles import BLOCK_K

# Shapes remembered: a decoder has one or two, whoever checks drafts of several tokens a few more.
_MOST = 16

# More new tokens than this go the long way, which several threads share.
_MANY = BLOCK_K


def new_radii(center: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """`distances_from` of new tokens: of a few the short way, with the bits that `Steps.append` puts into a summary.

    Caches of either kind that are given the same tokens in the same pieces thus know the same of them. The long way,
    taken for more of them or while a profiler listens, may differ in the last bits: bounds both.
    """
    if (
        key.shape[2] <= _MANY
        and is_ordinary(key)
        and is_ordinary(value)
        and is_ordinary(center)
        and readable(key, value, center)
        and nothing_listens()
    ):
        return radii_of(key, value, center)
    return distances_from(center, key, value)


_NEVER_SEEN = object()


class Steps:
    """What is remembered of the steps of one cache, as long as its buffers are where they are.

    Args:
        key, value: (batch, num_kv_heads, capacity, dim).
        center: (batch, num_kv_heads, head_dim).
        norms: (batch, num_kv_heads, blocks) float64.
    """

    __slots__ = ("_appends", "_attends", "_buffers", "_is_open", "_like", "_places")

    def __init__(self, key: Tensor, value: Tensor, center: Tensor, norms: Tensor) -> None:
        self._buffers = key, value, center, norms
        # What inference mode has made is written to in it alone, which the long way says.
        self._is_open = (
            all(map(is_ordinary, self._buffers))
            and not any(buffer.is_inference() for buffer in (key, value, norms))
            and readable(key, value, center)
        )
        # Where the first row of each lies, and how far the next is; norms have a row for each tile.
        self._places = (
            [(t.data_ptr(), t.stride(2) * t.element_size()) for t in (key, value, norms)] if self._is_open else []
        )
        self._like = key.dtype, (key.shape[0], key.shape[1]), key.shape[3], value.shape[3]
        self._appends: dict[Any, PreparedAppend] = {}
        self._attends: dict[Any, Any] = {}

    def are_of(self, key: Tensor, center: Tensor, norms: Tensor) -> bool:
        """Whether these are the buffers, still; values are made and moved with their keys."""
        return self._buffers[0] is key and self._buffers[2] is center and self._buffers[3] is norms

    def append(self, key: Tensor, value: Tensor, at: int) -> bool:
        """Put tokens in their place, from row ``at`` on; False where they go the long way, for want of room as well."""
        if not (self._is_open and is_ordinary(key) and is_ordinary(value) and nothing_listens()):
            return False
        if torch.is_grad_enabled() and (key.requires_grad or value.requires_grad):
            return False
        held_key, held_value = self._buffers[:2]
        if key._base is held_key or value._base is held_value:
            # What is held put elsewhere: the long way knows of overlaps.
            return False
        name = key.shape, value.shape, key.stride(), value.stride(), key.dtype, value.dtype
        prepared = self._appends.get(name)
        if prepared is None or not prepared.serves_still():
            if not self._fits(key, value):
                return False
            if len(self._appends) >= _MOST:
                self._appends.clear()
            prepared = self._appends[name] = PreparedAppend(key, value, *self._buffers)
        if at + key.shape[2] > held_key.shape[2]:
            return False
        prepared.run(key, value, at)
        # For a graph of queries that has saved what is held.
        increment_version(held_key)
        increment_version(held_value)
        return True

    def _fits(self, key: Tensor, value: Tensor) -> bool:
        """Whether new tokens are as those held; what is wrong with them otherwise is said on the long way."""
        dtype, rows, head_dim, value_dim = self._like
        return (
            key.dtype is dtype
            and value.dtype is dtype
            and key.dim() == 4
            and key.shape[2] > 0
            and key.shape == (*rows, key.shape[2], head_dim)
            and value.shape == (*rows, key.shape[2], value_dim)
            and key.shape[2] <= _MANY
            and key.stride(3) == 1
            and value.stride(3) == 1
        )

    def attend(
        self, query: Tensor, slopes: Tensor | None, first: int, end: int, *, scale: float | None,
        window: tuple[int | None, int | None] | None, tolerance: float | None, return_lse: bool, backend: str | None,
    ) -> Tensor | tuple[Tensor, Tensor] | None:  # fmt: skip
        """What `KVCache.attend` gives over rows ``first``, a multiple of 64, to ``end`` of the buffers; None where it
        has to go the long way.

        Raises:
            ValueError, NotImplementedError: as `KVCache.attend`.
        """
        if not (
            self._is_open
            and is_ordinary(query)
            and (slopes is None or is_ordinary(slopes))
            and nothing_listens()
            and are_plain(scale, window, tolerance, backend)
        ):
            return None
        if query.dtype is not self._like[0]:
            return None
        if torch.is_grad_enabled() and (query.requires_grad or (slopes is not None and slopes.requires_grad)):
            return None
        name = (
            query.shape, query.stride(), query.dtype, scale, window, tolerance, backend,
            None if slopes is None else (slopes.shape, slopes.stride(), slopes.dtype),
        )  # fmt: skip
        key, value, center, norms = self._buffers
        call = self._attends.get(name, _NEVER_SEEN)
        if call is _NEVER_SEEN:
            # A description pays from its second use on.
            if len(self._attends) >= _MOST:
                self._attends.clear()
            self._attends[name] = False
            return None
        if call is False or not (call is None or call.prepared.serves_still()):
            call = self._attends[name] = describe(
                PreparedStep, query, key[:, :, first:end], value[:, :, first:end], slopes, is_causal=True,
                scale=scale, query_offset=None, window=window, tolerance=tolerance, backend=backend,
                key_center=center, key_norms=norms, autocast=False,
            )  # fmt: skip
        elif slopes is not None:
            check_slopes(slopes)
        if call is None:
            return None
        given = call.preset if slopes is None else slopes
        prepared: PreparedStep = call.prepared
        (key_at, key_row), (value_at, value_row), (norms_at, norms_row) = self._places
        held = Held(
            end - first, key_at + first * key_row, value_at + first * value_row, norms_at + first // BLOCK_K * norms_row
        )
        if return_lse:
            return prepared.results_over(held, query, given)
        return prepared.output_over(held, query, given)
