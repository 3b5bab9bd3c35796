"""The short way of a cache's steps: a few tokens in, their queries out, nothing described twice.

What `eager` is to plain calls: a step of decoding is mostly overhead, and in a model it comes once a layer and token.
Buffers stay where they are until they grow, so what is told to the kernels is written down once for each shape that
comes again, and from then on differs in addresses and in how much is held. The short way is open where `eager`'s is;
everywhere else steps go the long one, which checks and describes them anew.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from alibi_attention.backends.appending import Known, PreparedAppend, radii_of, readable
from alibi_attention.backends.prepared import Held, PreparedStep
from alibi_attention.eager import are_plain, check_slopes, describe, is_ordinary, nothing_listens
from alibi_attention.horizon.summary import distances_from
from alibi_attention.horizon.tiles import BLOCK_K

# Shapes remembered: a decoder has one or two, whoever checks drafts of several tokens a few more.
_MOST = 16


def new_radii(center: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """`distances_from` of new tokens by the library, with the bits that `Steps.append` puts into a summary.

    Caches of either kind that are given the same tokens in the same pieces thus know the same of them. The long way,
    taken for what the library does not read or while a profiler listens, may differ in the last bits: bounds both.
    """
    if (
        is_ordinary(key)
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
        heads: (num_kv_heads,) int64, which of the heads of new tokens these are; None for all.
        of: how many heads new tokens have, where ``heads`` is given.
    """

    __slots__ = ("_appends", "_attends", "_buffers", "_heads", "_is_open", "_like", "_places")

    def __init__(
        self, key: Tensor, value: Tensor, center: Tensor, norms: Tensor, heads: Tensor | None = None, of: int = 0
    ) -> None:
        self._buffers = key, value, center, norms
        self._heads = heads
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
        heads_in = key.shape[0], key.shape[1] if heads is None else of
        self._like = key.dtype, heads_in, key.shape[3], value.shape[3]
        self._appends: dict[Any, PreparedAppend] = {}
        self._attends: dict[Any, Any] = {}

    def are_of(self, key: Tensor, center: Tensor, norms: Tensor) -> bool:
        """Whether these are the buffers, still; values are made and moved with their keys."""
        return self._buffers[0] is key and self._buffers[2] is center and self._buffers[3] is norms

    def append(self, key: Tensor, value: Tensor, at: int) -> bool:
        """Put tokens in their place, from row ``at`` on; False where they go the long way, for want of room as well."""
        prepared = self.find_append(key, value, at) if may_be_put(key, value) else None
        if prepared is None:
            return False
        self.put(prepared, key, value, at)
        return True

    def find_append(self, key: Tensor, value: Tensor, at: int) -> PreparedAppend | None:
        """How tokens that `may_be_put` are, from row ``at`` on; None where they go the long way."""
        if not self._is_open:
            return None
        held_key, held_value = self._buffers[:2]
        if key._base is held_key or value._base is held_value:
            # What is held put elsewhere: the long way knows of overlaps.
            return None
        name = key.shape, value.shape, key.stride(), value.stride(), key.dtype, value.dtype
        prepared = self._appends.get(name)
        if prepared is None or not prepared.serves_still():
            if not self._fits(key, value):
                return None
            if len(self._appends) >= _MOST:
                self._appends.clear()
            prepared = self._appends[name] = PreparedAppend(key, value, *self._buffers, heads=self._heads)
        return None if at + key.shape[2] > held_key.shape[2] else prepared

    def put(self, prepared: PreparedAppend, key: Tensor, value: Tensor, at: int, known: Known | None = None) -> None:
        """Put tokens in their place as `find_append` has it, and enter them in what is known."""
        prepared.run(key, value, at, known)
        # For a graph of queries that has saved what is held.
        increment_version(self._buffers[0])
        increment_version(self._buffers[1])

    def _fits(self, key: Tensor, value: Tensor) -> bool:
        """Whether new tokens are as those held; what is wrong with them otherwise is said on the long way."""
        dtype, heads_in, head_dim, value_dim = self._like
        return (
            key.dtype is dtype
            and value.dtype is dtype
            and key.dim() == 4
            and key.shape[2] > 0
            and key.shape == (*heads_in, key.shape[2], head_dim)
            and value.shape == (*heads_in, key.shape[2], value_dim)
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
        if not are_open(query, slopes, scale, window, tolerance, backend):
            return None
        call = self._find(query, slopes, first, end, (scale, window, tolerance, backend))
        if call is None:
            return None
        given = call.preset if slopes is None else slopes
        prepared: PreparedStep = call.prepared
        held = self._held(first, end)
        if return_lse:
            return prepared.results_over(held, query, given)
        return prepared.output_over(held, query, given)

    def _find(
        self, query: Tensor, slopes: Tensor | None, first: int, end: int, options: tuple[Any, ...],
        heads: slice = slice(None),
    ) -> Any:  # fmt: skip
        """How queries, those of ``heads``, attend to rows ``first`` to ``end``; None where they go the long way."""
        if not self._is_open or query.dtype is not self._like[0]:
            return None
        name = (
            query.shape, query.stride(), query.dtype, options,
            None if slopes is None else (slopes.shape, slopes.stride(), slopes.dtype),
        )  # fmt: skip
        call = self._attends.get(name, _NEVER_SEEN)
        if call is _NEVER_SEEN:
            # A description pays from its second use on.
            if len(self._attends) >= _MOST:
                self._attends.clear()
            self._attends[name] = False
            return None
        if call is False or not (call is None or call.prepared.serves_still()):
            key, value, center, norms = self._buffers
            scale, window, tolerance, backend = options
            call = self._attends[name] = describe(
                PreparedStep, query[:, heads], key[:, :, first:end], value[:, :, first:end],
                None if slopes is None else slopes[heads], is_causal=True, scale=scale, query_offset=None,
                window=window, tolerance=tolerance, backend=backend, key_center=center, key_norms=norms,
                autocast=False,
            )  # fmt: skip
        elif slopes is not None:
            check_slopes(slopes)
        return call

    def _held(self, first: int, end: int) -> Held:
        (key_at, key_row), (value_at, value_row), (norms_at, norms_row) = self._places
        return Held(
            end - first, key_at + first * key_row, value_at + first * value_row, norms_at + first // BLOCK_K * norms_row
        )


def may_be_put(key: Tensor, value: Tensor) -> bool:
    """Whether the short way is open to new tokens, as far as they go."""
    return (
        is_ordinary(key)
        and is_ordinary(value)
        and nothing_listens()
        and not (torch.is_grad_enabled() and (key.requires_grad or value.requires_grad))
    )


def are_open(
    query: Tensor, slopes: Tensor | None, scale: float | None, window: tuple[int | None, int | None] | None,
    tolerance: float | None, backend: str | None,
) -> bool:  # fmt: skip
    """Whether the short way is open to queries, as far as they and the options go."""
    return (
        is_ordinary(query)
        and (slopes is None or is_ordinary(slopes))
        and nothing_listens()
        and are_plain(scale, window, tolerance, backend)
        and not (torch.is_grad_enabled() and (query.requires_grad or (slopes is not None and slopes.requires_grad)))
    )


class Part(NamedTuple):
    """The rows ``first`` to ``end`` that some steps have of the next ``heads`` query heads."""

    steps: Steps
    first: int
    end: int
    heads: int


def attend_to_parts(
    parts: list[Part], query: Tensor, slopes: Tensor, *, scale: float | None,
    window: tuple[int | None, int | None] | None, tolerance: float | None, backend: str | None,
) -> tuple[Tensor, Tensor] | None:  # fmt: skip
    """Output and lse over parts that hold all heads of one sequence in their order, each written where it belongs;
    None where they have to go the long way.

    Raises:
        ValueError, NotImplementedError: as `KVCache.attend`.
    """
    if query.shape[0] != 1 or slopes.dim() != 1 or not are_open(query, slopes, scale, window, tolerance, backend):
        return None
    options, begin, found = (scale, window, tolerance, backend), 0, []
    for part in parts:
        heads = slice(begin, begin + part.heads)
        call = part.steps._find(query, slopes, part.first, part.end, options, heads)
        if call is None:
            return None
        found.append((call.prepared, part.steps._held(part.first, part.end), begin))
        begin += part.heads
    value_dim = parts[0].steps._like[3]
    out = torch.empty(1, query.shape[1], query.shape[2], value_dim, dtype=query.dtype)
    lse = torch.empty(query.shape[:3], dtype=torch.float32)
    at, size = query.data_ptr(), query.element_size()
    slopes_at, out_at, lse_at = slopes.data_ptr(), out.data_ptr(), lse.data_ptr()
    by_query, by_slope, rows = query.stride(1) * size, slopes.stride(0) * 4, query.shape[2]
    for prepared, held, head in found:
        prepared.run_over(
            held, at + head * by_query, slopes_at + head * by_slope, out_at + head * rows * value_dim * size,
            lse_at + head * rows * 4,
        )  # fmt: skip
    return out, lse
