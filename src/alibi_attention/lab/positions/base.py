"""What a position method may do: add to the embeddings, and decide how queries attend."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alibi_attention import HorizonCache, KVCache, alibi_attention, explain_backends
from alibi_attention.lab.errors import LabError

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
    """Attention that knows nothing of order; subclasses add it in `embed`, in `attend`, or in both.

    It is causal in a decoder and looks both ways in an encoder: ``causal`` says which.

    One instance serves all layers. Parameters registered here are trained with the decoder, without weight decay.
    Nothing may build a tensor of length x length, so that evaluation far beyond the training length stays linear in
    memory.

    A variant is another way to use the trained model at a length, without more training: `variants` names them, and
    `attend` and `embed` look at `variant` and `length`, which `used_at` sets.

    Attributes:
        shape: of the decoder.
        variant: a key of ``variants``, or None for the method as it was trained.
        length: what the model is set up for, in tokens; the trained length outside of `used_at`. Inputs may be shorter.
        attention_dropout: of attention weights, while training; set by the decoder.
        causal: whether a query sees only the keys up to its own place; set by the decoder.
    """

    name: ClassVar[str]
    """As on the command line and in files."""
    title: ClassVar[str]
    """As in tables and figures."""
    variants: ClassVar[Mapping[str, str]] = {}
    """Title of each variant by its name; ``method:variant`` is its full name."""
    unsettled: ClassVar[frozenset[str]] = frozenset()
    """Variants that treat tokens already read otherwise as more are read: no cache can serve them."""
    repeated: ClassVar[frozenset[str]] = frozenset()
    """Variants that give what another gives wherever windows are full: they are evaluated where they are named, and no
    part of ``all``."""
    can_forget: ClassVar[bool] = False
    """Whether keys lose their weight with distance, so that a `HorizonCache` may let them go."""
    scales_embeddings: ClassVar[bool] = False
    """Whether `embed` is to be given embeddings times the square root of the width, unless an experiment says."""
    unit: ClassVar[float] = 1.0
    """What one of its trained numbers stands for. AdamW moves each by about the learning rate a step, whatever its
    gradient: numbers that have to become large count in larger units."""
    bidirectional: ClassVar[bool] = True
    """Whether `attend` follows ``causal``. A class with an `attend` of its own says so itself; unsaid, it does not."""
    registry: ClassVar[dict[str, type[PositionMethod]]] = {}
    """Every subclass that has a name of its own."""

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if "attend" in cls.__dict__ and "bidirectional" not in cls.__dict__:
            cls.bidirectional = False
        if "name" in cls.__dict__:
            if cls.name in PositionMethod.registry:
                raise TypeError(f"two position methods are named {cls.name!r}; rename one")
            PositionMethod.registry[cls.name] = cls

    @classmethod
    def require(cls, variant: str | None) -> None:
        """Raise `LabError` if something this variant is computed with is not installed."""

    def __init__(self, shape: DecoderShape) -> None:
        super().__init__()
        self.shape = shape
        self.variant: str | None = None
        self.length = shape.length
        self.attention_dropout = 0.0
        self.causal = True
        self._fused: dict[tuple[object, ...], bool] = {}

    @property
    def dropout_p(self) -> float:
        """Probability with which an attention weight is dropped just now."""
        return self.attention_dropout if self.training else 0.0

    @property
    def longest(self) -> int | None:
        """The longest input, in tokens, for which there are positions; None where they never end."""
        return None

    @contextmanager
    def used_at(self, length: int, variant: str | None = None) -> Iterator[None]:
        """While entered, the method is set up for inputs of up to ``length`` tokens in the way of a variant."""
        if variant is not None and variant not in self.variants:
            known = ", ".join(self.variants) or "none"
            raise LabError("variant", expected=f"a variant of {self.name} ({known})", got=repr(variant), remedy="choose"
                           " one of these, or leave it out")  # fmt: skip
        before = self.length, self.variant
        self.length, self.variant = length, variant
        try:
            yield
        finally:
            self.length, self.variant = before

    def embed(self, x: Tensor, start: int = 0) -> Tensor:  # noqa: ARG002
        """Token embeddings (batch, seq_len, width), scaled, to the input of the first layer, same shape.

        ``start`` is the position of the first of them.
        """
        return x

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Attention over (batch, heads, seq_len, head_dim), causal if ``causal``; the shape of ``value`` out.

        ``value`` may have another last dimension than queries and keys: an attention matrix is looked at by attending
        to columns of the identity.
        """
        if query.device.type != "cpu" or not self._is_fused(query, key, value):
            return F.scaled_dot_product_attention(query, key, value, is_causal=self.causal, dropout_p=self.dropout_p)
        # The kernel that ALiBi trains on. Forward and backward of 16 x 256 tokens take 0.31 of torch's time in
        # bfloat16, 0.52 in float32.
        slopes = query.new_zeros(query.shape[1], dtype=torch.float32)
        return alibi_attention(
            query, key, value, slopes, is_causal=self.causal, dropout_p=self.dropout_p, tolerance=0.0
        )

    def _is_fused(self, query: Tensor, key: Tensor, value: Tensor) -> bool:
        """Whether this library's kernels for CPUs are there and take such tensors."""
        kind = (query.dtype, key.dtype, value.dtype, query.shape[-1], value.shape[-1])
        if kind not in self._fused:
            self._fused[kind] = explain_backends(query, key, value, is_causal=self.causal)["cpu"] is None
        return self._fused[kind]

    def continue_with(self, cache: Cache, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """`attend` for the tokens that follow those in the cache, which then holds them too.

        A method that overrides `attend` overrides this as well: what is inherited knows nothing of order. Where it does
        not, the first use of a cache is refused (`check_cache`).
        """
        self.check_cache()
        cache.append(key, value)
        # No slope, no bias.
        return cache.attend(query, query.new_zeros(query.shape[1], dtype=torch.float32))

    def check_cache(self) -> None:
        """Raise `LabError` if the method, in the variant in use, cannot read on from a cache."""
        if not self.causal:
            expected = "a model that reads from left to right"
            got = "one trained by masked prediction, whose every layer sees the tokens that are still to come"
            raise LabError("run", expected=expected, got=got, remedy="train one with --objective next")
        owner = {
            name: next(c for c in type(self).__mro__ if name in c.__dict__) for name in ("attend", "continue_with")
        }
        if not issubclass(owner["continue_with"], owner["attend"]):
            expected = "a method that can read on from a cache"
            got = f"{self.name!r}, whose class {owner['attend'].__name__} has attend() and no continue_with()"
            raise LabError("method", expected=expected, got=got, remedy="name another, or add continue_with() to it")
        if self.variant in self.unsettled:
            expected = "a variant that leaves tokens already read alone"
            got = f"{self.name}:{self.variant}, which depends on how many there are"
            raise LabError("variant", expected=expected, got=got, remedy="name another, or leave it out")
