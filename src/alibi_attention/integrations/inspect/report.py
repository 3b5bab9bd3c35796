"""Windows and memory that follow from slopes, under assumptions that are said."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from alibi_attention.cache.forecast import CHUNK, bytes_after, reaches_of_caps
from alibi_attention.checks.values import is_integer, is_number
from alibi_attention.integrations.inspect.description import LONGEST, AlibiModel
from alibi_attention.problem import SUPPORTED_DTYPES, default_tolerance
from alibi_attention.slopes import slope_spans

NATS = (1.0, 5.0, 10.0)
DEFAULT_LENGTH = 2048
_DTYPES = {str(each).removeprefix("torch."): each for each in SUPPORTED_DTYPES}


@dataclass(frozen=True)
class Memory:
    """The cache of one sequence at one length, all layers.

    Attributes:
        length: in tokens.
        full: bytes of all keys and values, and nothing else.
        horizon: `HorizonCache.bytes_held` of all layers, in guaranteed mode under caps on the norms whose product times
            the scale is the logit bound, where the mean of the keys appended first is zero: buffers with their room
            and summaries, after a text appended `CHUNK` tokens at a time. Beyond `full` where windows are not full yet.
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
        element_is_assumed: where the configuration names no dtype that a cache has.
        chunk: tokens appended at a time, where memory is reckoned.
    """

    model: AlibiModel
    tolerance: float
    logit_bound: float
    spans: Tensor
    typical: Tensor
    guaranteed: Tensor
    memory: tuple[Memory, ...]
    element_bytes: int
    element_is_assumed: bool
    chunk: int


def report(
    model: AlibiModel, *, lengths: Sequence[int] | None = None, logit_bound: float | None = None
) -> Report:  # fmt: skip
    """Spans, windows and memory of a model.

    With B the ``logit_bound`` and eps the tolerance, a head of slope m needs, in tokens (docs/maths.md)::

        guaranteed   (2 B + ln 1/eps) / m               for whatever norms keep scale |q| |k| <= B
        typical      (B + ln 1/eps - 1/2) / m           where logits also have variance 1, so that a row's mass is
                                                        about e^(1/2) / (1 - e^-m)

    `HorizonCache` holds each key head a little farther back than that (`cache.sizes`): its bound is on the sum of all
    that it has let go, and must hold whatever the kernels round.

    Args:
        model: as `describe` gives it.
        lengths: for memory, in tokens; by default the model's own, and 4, 16 and 64 times that.
        logit_bound: B; by default sqrt(head_dim), the norm product of queries and keys of which the logits have unit
            variance, as with QK-norm. Trained models differ: `certify` measures.

    Raises:
        ValueError: for lengths or a bound that cannot be.
    """
    if not isinstance(model, AlibiModel):
        raise ValueError(f"model: expected what describe() gives, got {type(model).__name__}; report(describe(config))")
    bound = math.sqrt(model.head_dim) if logit_bound is None else logit_bound
    if not (is_number(bound) and 0.0 <= bound < math.inf):
        raise ValueError(f"logit_bound: expected a finite number of at least 0, got {logit_bound!r}")
    own = model.length or DEFAULT_LENGTH
    lengths = [own * factor for factor in (1, 4, 16, 64)] if lengths is None else lengths
    if not lengths or not all(is_integer(length) and 1 <= length <= 64 * LONGEST for length in lengths):
        raise ValueError(
            f"lengths: expected one or more numbers of tokens, each from 1 to 2^{math.log2(64 * LONGEST):g}, got "
            f"{list(lengths)}"
        )
    # What is no dtype of a cache is cached as bfloat16, as other dtypes of weights are.
    dtype = _DTYPES.get(model.dtype or "", torch.bfloat16)
    tolerance = default_tolerance(dtype)
    needed = -math.log(tolerance)
    falling = model.slopes.double()
    typical = torch.where(falling > 0, (bound + needed - 0.5) / falling, torch.inf).ceil()
    guaranteed = torch.where(falling > 0, (2 * bound + needed) / falling, torch.inf).ceil()
    memory: tuple[Memory, ...] = ()
    if model.causal:
        reaches = reaches_of_caps(bound, model.slopes, model.kv_heads, tolerance=tolerance)
        memory = tuple(_memory(model, length, typical, reaches, dtype) for length in lengths)
    return Report(
        model=model,
        tolerance=tolerance,
        logit_bound=bound,
        spans=slope_spans(model.slopes, NATS),
        typical=typical,
        guaranteed=guaranteed,
        memory=memory,
        element_bytes=dtype.itemsize,
        element_is_assumed=model.dtype not in _DTYPES,
        chunk=CHUNK,
    )


def _memory(model: AlibiModel, length: int, typical: Tensor, reaches: list[float], dtype: torch.dtype) -> Memory:
    return Memory(
        length=length,
        full=2 * model.layers * model.kv_heads * model.head_dim * dtype.itemsize * length,
        horizon=model.layers * bytes_after(length, reaches, model.head_dim, dtype),
        keys_read=float(typical.clamp_max(length).mean()),
    )
