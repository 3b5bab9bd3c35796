"""New tokens of a cache by the compiled library: put in their place, and measured for the summary of the keys.

Of a few the work is little, and what is spared is the dozen calls of torch that it takes otherwise; those would read
and write a prompt a dozen times, which takes longer than attention to it.
"""

from __future__ import annotations

from array import array
from typing import NamedTuple

import torch
from torch import Tensor

from alibi_attention.backends import cpu, native
from alibi_attention.horizon.tiles import BLOCK_K

# Fields of `Append` in csrc/call.h.
_TOKENS, _AT, _NEW_KEY, _NEW_VALUE = 4, 7, 8, 12
_CENTER_NORM, _LONGEST, _FARTHER, _THREADS = 30, 31, 32, 34


def readable(key: Tensor, value: Tensor, center: Tensor) -> bool:
    """Whether the library is there and takes such tokens, (batch, num_kv_heads, tokens, dim), about such a center."""
    return (
        key.dtype in cpu._TYPES
        and value.dtype is key.dtype
        and key.stride(3) == 1
        and value.stride(3) == 1
        and center.dtype is torch.float32
        and center.is_contiguous()
        and _library_is_there()
    )


def _library_is_there() -> bool:
    try:
        return not isinstance(native.load(), str)
    except RuntimeError:
        # An instruction set that this machine lacks was asked for: a call that needs the kernels says so.
        return False


def _pack(
    key: Tensor, value: Tensor, kv_heads: int, heads: int, held: tuple[int, ...], center: Tensor,
    norms: tuple[int, ...], radii: int, known_stride: int,
) -> bytes:  # fmt: skip
    batch, _, tokens, head_dim = key.shape
    return native.APPEND.pack(
        native.APPEND.size, cpu._TYPES[key.dtype], batch, kv_heads, tokens, head_dim, value.shape[3], 0,
        *cpu._place(key), *cpu._place(value), heads, *held, center.data_ptr(), *norms, radii, 0, 0, 0, known_stride,
        _threads_for(tokens),
    )  # fmt: skip


def _threads_for(tokens: int) -> int:
    # A step's tokens are done before another thread has woken.
    return torch.get_num_threads() if tokens > BLOCK_K else 1


def radii_of(key: Tensor, value: Tensor, center: Tensor) -> Tensor:
    """(batch, num_kv_heads, tokens) float64, |key - center| from above, inf where key or value is not finite.

    For what is `readable`; the same bits as `PreparedAppend` puts into norms.
    """
    radii = torch.empty(key.shape[:3], dtype=torch.float64)
    library = native.load()
    assert not isinstance(library, str)
    packed = _pack(key, value, key.shape[1], 0, (0,) * 8, center, (0, 0, 0), radii.data_ptr(), 0)
    native.check(library.append(packed))
    return radii


class Known(NamedTuple):
    """What a cache that forgets knows of all keys it has seen, (batch, num_kv_heads) float64, in the order of the heads
    of new tokens.

    Attributes:
        center_norm: the length of the center.
        longest: raised to that and the distance of each new key whose distance is finite.
        farther: raised to the distance of each new key.
    """

    center_norm: Tensor
    longest: Tensor
    farther: Tensor


class PreparedAppend:
    """Tokens of one shape put behind those that a cache holds: their keys and values, and the summary of the keys.

    Args:
        key, value: as they will come, `readable`.
        held_key, held_value: the cache's, (batch, heads held, capacity, dim), and where they will stay.
        center: (batch, heads held, head_dim) float32.
        norms: (batch, heads held, blocks) float64, the last dimension contiguous.
        heads: (heads held,) int64, which of the tokens' heads are held there; None for all in their order.
    """

    __slots__ = ("_heads", "_native", "_template")

    def __init__(
        self, key: Tensor, value: Tensor, held_key: Tensor, held_value: Tensor, center: Tensor, norms: Tensor,
        heads: Tensor | None = None,
    ) -> None:  # fmt: skip
        self._native = native.load()
        # Its address is told to the library.
        self._heads = heads
        held = (*cpu._place(held_key), *cpu._place(held_value))
        self._template = array("q")
        self._template.frombytes(
            _pack(
                key, value, held_key.shape[1], 0 if heads is None else heads.data_ptr(), held, center,
                cpu._place(norms)[:3], 0, key.shape[1],
            )
        )  # fmt: skip

    def serves_still(self) -> bool:
        """Whether the library that it was made for is the one there is."""
        return native.load() is self._native

    def run(self, key: Tensor, value: Tensor, at: int, known: Known | None = None) -> None:
        """Tokens like those it was made for become those from row ``at`` on."""
        call = self._template[:]
        call[_AT] = at
        call[_THREADS] = _threads_for(call[_TOKENS])
        call[_NEW_KEY] = key.data_ptr()
        call[_NEW_VALUE] = value.data_ptr()
        if known is not None:
            call[_CENTER_NORM] = known.center_norm.data_ptr()
            call[_LONGEST] = known.longest.data_ptr()
            call[_FARTHER] = known.farther.data_ptr()
        native.check(self._native.append(call.tobytes()))  # type: ignore[union-attr]
