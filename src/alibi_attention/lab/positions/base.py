"""What a position method may do: add to the embeddings, and decide how queries attend."""

from __future__ import annotations

from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alibi_attention import HorizonCache, KVCache

Cache = KVCache | HorizonCache
"""One layer's keys and values from one call to the next."""


class DecoderShape(NamedTuple):
    """What a position method may need to know of the decoder it serves."""

    length: int
    """Length the decoder is trained at, in tokens."""
    layers: int
    heads: int
    width: int

    @property
    def head_dim(self) -> int:
        return self.width // self.heads


class PositionMethod(nn.Module):
    """Causal attention that knows nothing of order; subclasses add it in `embed`, in `attend`, or in both.

    One instance serves all layers. Parameters registered here are trained with the decoder. Nothing may build a tensor
    of length x length, so that evaluation far beyond the training length stays linear in memory.
    """

    name: ClassVar[str]
    """As on the command line and in files."""
    title: ClassVar[str]
    """As in tables and figures."""
    registry: ClassVar[dict[str, type[PositionMethod]]] = {}
    """Every subclass that has a name of its own."""

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if "name" in cls.__dict__:
            if cls.name in PositionMethod.registry:
                raise TypeError(f"two position methods are named {cls.name!r}; rename one")
            PositionMethod.registry[cls.name] = cls

    def __init__(self, shape: DecoderShape) -> None:
        super().__init__()
        self.shape = shape

    can_forget: ClassVar[bool] = False
    """Whether keys lose their weight with distance, so that a `HorizonCache` may let them go."""

    def embed(self, x: Tensor, start: int = 0) -> Tensor:  # noqa: ARG002
        """Token embeddings (batch, seq_len, width) to the input of the first layer, same shape.

        ``start`` is the position of the first of them.
        """
        return x

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Causal attention over (batch, heads, seq_len, head_dim), same shape out."""
        return F.scaled_dot_product_attention(query, key, value, is_causal=True)

    def continue_with(self, cache: Cache, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """The same for the tokens that follow those in the cache, which then holds them too."""
        cache.append(key, value)
        # No slope, no bias: attention that knows nothing of order.
        return cache.attend(query, query.new_zeros(query.shape[1], dtype=torch.float32))
