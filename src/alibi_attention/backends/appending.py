"""New tokens of a cache by the compiled library: put in their place, and measured for the summary of the keys.

The work is little; what is spared is the dozen calls of torch that it takes otherwise.
"""

from __future__ import annotations

from array import array

import torch
from torch import Tensor

from alibi_attention.backends import cpu, native

# Fields of `Append` in csrc/call.h.
_AT, _NEW_KEY, _NEW_VALUE = 7, 8, 12


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
    key: Tensor, value: Tensor, center: Tensor, held: tuple[int, ...], norms: tuple[int, ...], radii: int
) -> bytes:
    batch, kv_heads, tokens, head_dim = key.shape
    return native.APPEND.pack(
        native.APPEND.size, cpu._TYPES[key.dtype], batch, kv_heads, tokens, head_dim, value.shape[3], 0,
        *cpu._place(key), *cpu._place(value), *held, center.data_ptr(), *norms, radii,
    )  # fmt: skip


def radii_of(key: Tensor, value: Tensor, center: Tensor) -> Tensor:
    """(batch, num_kv_heads, tokens) float64, |key - center| from above, inf where key or value is not finite.

    For what is `readable`; the same bits as `PreparedAppend` puts into norms.
    """
    radii = torch.empty(key.shape[:3], dtype=torch.float64)
    library = native.load()
    assert not isinstance(library, str)
    native.check(library.append(_pack(key, value, center, (0,) * 8, (0, 0, 0), radii.data_ptr())))
    return radii


class PreparedAppend:
    """Tokens of one shape put behind those that a cache holds: their keys and values, and the summary of the keys.

    Args:
        key, value: as they will come, `readable`.
        held_key, held_value: the cache's, (batch, num_kv_heads, capacity, dim), and where they will stay.
        center: (batch, num_kv_heads, head_dim) float32.
        norms: (batch, num_kv_heads, blocks) float64, the last dimension contiguous.
    """

    __slots__ = ("_native", "_template")

    def __init__(
        self, key: Tensor, value: Tensor, held_key: Tensor, held_value: Tensor, center: Tensor, norms: Tensor
    ) -> None:
        self._native = native.load()
        held = (*cpu._place(held_key), *cpu._place(held_value))
        self._template = array("q")
        self._template.frombytes(_pack(key, value, center, held, cpu._place(norms)[:3], 0))

    def serves_still(self) -> bool:
        """Whether the library that it was made for is the one there is."""
        return native.load() is self._native

    def run(self, key: Tensor, value: Tensor, at: int) -> None:
        """Tokens like those it was made for become those from row ``at`` on."""
        call = self._template[:]
        call[_AT] = at
        call[_NEW_KEY] = key.data_ptr()
        call[_NEW_VALUE] = value.data_ptr()
        native.check(self._native.append(call.tobytes()))  # type: ignore[union-attr]
