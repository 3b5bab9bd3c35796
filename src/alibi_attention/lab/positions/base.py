"""What a position method may do: add to the embeddings, and decide how queries attend."""

from __future__ import annotations

from typing import ClassVar, NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn


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

    def embed(self, x: Tensor) -> Tensor:
        """Token embeddings (batch, seq_len, width) to the input of the first layer, same shape."""
        return x

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Causal attention over (batch, heads, seq_len, head_dim), same shape out."""
        return F.scaled_dot_product_attention(query, key, value, is_causal=True)
