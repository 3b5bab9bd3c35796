"""Windows and memory that follow from slopes, under assumptions that are said."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from alibi_attention.horizon import BLOCK_K
from alibi_attention.integrations.inspect.description import AlibiModel
from alibi_attention.problem import default_tolerance
from alibi_attention.slopes import slope_spans

NATS = (1.0, 5.0, 10.0)
DEFAULT_LENGTH = 2048
_BYTES = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True)
class Memory:
    """The cache of one sequence at one length, all layers.

    Attributes:
        length: in tokens.
        full: bytes of all keys and values.
        horizon: bytes of those within the guaranteed windows, in whole tiles.
        keys_read: mean number of keys a head reads for one decoded token, typically.
    """

    length: int
    full: int
    horizon: int
    keys_read: float


@dataclass(frozen=True)
class Report:
    """What follows from a model's slopes.

    Attributes:
        model: what it is about.
        tolerance: the largest share of a row's softmax mass that may be skipped.
        logit_bound: the largest scale * |q| * |k| assumed.
        spans: (heads, 3) float64, tokens until the bias has taken 1, 5 and 10 nats.
        typical: (heads,) float64, keys within the horizon where logits have unit variance.
        guaranteed: (heads,) float64, keys within the horizon of any queries and keys that keep to the bound.
        memory: by length; empty for an encoder, which keeps no cache.
        element_bytes: of a cached number.
    """

    model: AlibiModel
    tolerance: float
    logit_bound: float
    spans: Tensor
    typical: Tensor
    guaranteed: Tensor
    memory: tuple[Memory, ...]
    element_bytes: int


def report(
    model: AlibiModel, *, lengths: Sequence[int] | None = None, logit_bound: float | None = None
) -> Report:  # fmt: skip
    """Spans, windows and memory of a model.

    With B the ``logit_bound`` and eps the tolerance, a head of slope m needs, in tokens (docs/maths.md)::

        guaranteed   (2 B + ln 1/eps) / m               for whatever norms keep scale |q| |k| <= B
        typical      (B + ln 1/eps - 1/2) / m           where logits also have variance 1, so that a row's mass is
                                                        about e^(1/2) / (1 - e^-m)

    Args:
        model: as `describe` gives it.
        lengths: for memory, in tokens; by default the model's own, and 4, 16 and 64 times that.
        logit_bound: B; by default sqrt(head_dim), the norm product of queries and keys of which the logits have unit
            variance, as with QK-norm. Trained models differ: `certify` measures.

    Raises:
        ValueError: for lengths or a bound that cannot be.
    """
    bound = math.sqrt(model.head_dim) if logit_bound is None else logit_bound
    if not 0.0 <= bound < math.inf:
        raise ValueError(f"logit_bound: expected a number of at least 0, got {logit_bound!r}")
    own = model.length or DEFAULT_LENGTH
    lengths = [own * factor for factor in (1, 4, 16, 64)] if lengths is None else lengths
    if not lengths or min(lengths) < 1:
        raise ValueError(f"lengths: expected one or more numbers of tokens, each at least 1, got {list(lengths)}")
    tolerance = default_tolerance(torch.float32)
    needed = -math.log(tolerance)
    falling = model.slopes.double()
    typical = torch.where(falling > 0, (bound + needed - 0.5) / falling, torch.inf).ceil()
    guaranteed = torch.where(falling > 0, (2 * bound + needed) / falling, torch.inf).ceil()
    element = _BYTES.get(model.dtype or "", 2)
    memory = tuple(_memory(model, length, typical, guaranteed, element) for length in lengths) if model.causal else ()
    return Report(
        model=model,
        tolerance=tolerance,
        logit_bound=bound,
        spans=slope_spans(model.slopes, NATS),
        typical=typical,
        guaranteed=guaranteed,
        memory=memory,
        element_bytes=element,
    )


def _memory(model: AlibiModel, length: int, typical: Tensor, guaranteed: Tensor, element: int) -> Memory:
    token = 2 * model.layers * model.head_dim * element
    # A key head keeps what the flattest of its query heads needs, in whole tiles, and the tile being filled.
    widest = guaranteed.view(model.kv_heads, -1).amax(1)
    tiles = (widest / BLOCK_K).ceil() + 1
    kept = (tiles * BLOCK_K).clamp_max(length)
    return Memory(
        length=length,
        full=token * model.kv_heads * length,
        horizon=int(token * float(kept.sum())),
        keys_read=float(typical.clamp_max(length).mean()),
    )
