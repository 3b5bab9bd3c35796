"""A model with linear biases, described by what its configuration says."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from alibi_attention.slopes import SlopeScheme


class NotAlibi(ValueError):  # noqa: N818 (an answer, not an accident)
    """The configuration is of a model without linear biases, or of one nobody here knows."""


@dataclass(frozen=True)
class Trap:
    """Something that goes wrong, or differs, without a word.

    Attributes:
        code: a short name, for programs.
        text: what happens, and what to do.
    """

    code: str
    text: str


@dataclass(frozen=True)
class AlibiModel:
    """A model with linear biases.

    Attributes:
        family: its name.
        layers, heads, kv_heads, head_dim: of attention; kv_heads is smaller with grouped or shared keys.
        slopes: (heads,) float32 as they reach the softmax, in nats per token.
        scheme: how they were made; None where that is not known.
        bias_max: the exponent they were made with; None where that is not known.
        slope_note: what else was done to them; empty for nothing.
        causal: False for encoders, which look both ways.
        scale: factor on dot products.
        length: what the configuration calls the longest sequence, in tokens; None where it says nothing.
        length_key: where it says so.
        dtype: of the weights; None where it says nothing.
        traps: in the order of their weight.
    """

    family: str
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    slopes: Tensor
    scheme: SlopeScheme | None
    bias_max: float | None
    slope_note: str
    causal: bool
    scale: float
    length: int | None
    length_key: str
    dtype: str | None
    traps: tuple[Trap, ...]


MOST_HEADS = 1024
LONGEST = WIDEST = 2**40
"""What no model has is a slip, and would take for ever to reckon with."""
_DEEPEST = 32


def check_depth(config: Mapping[str, Any]) -> None:
    """Refuse what lies deeper than any configuration goes, before anything follows or prints it by recursion.

    Raises:
        ValueError: for such a one, or one that holds itself.
    """
    level: list[Any] = [config]
    for _ in range(_DEEPEST):
        parts = [value for each in level for value in (each.values() if isinstance(each, Mapping) else each)]
        # Each object once, so that one that holds itself twice does not double at every level.
        level = list({id(value): value for value in parts if isinstance(value, (Mapping, list, tuple))}.values())
        if not level:
            return
    raise ValueError(
        f"config: expected objects within one another at most {_DEEPEST} deep, got deeper ones; mend the configuration"
    )


def number(config: Mapping[str, Any], *keys: str, default: int | None = None, most: int | None = None) -> int:
    """The first of the keys that is there, as an integer of at least 1.

    Raises:
        ValueError: if none is there and there is no default, or it is no such integer, or above ``most``.
    """
    for key in keys:
        value = config.get(key)
        if value is None:
            continue
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise _wrong(key, "an integer of at least 1", value)
        if most is not None and value > most:
            raise _wrong(key, f"an integer of at most {most:,}", value)
        return value
    if default is None:
        raise ValueError(f"{keys[0]}: expected in the configuration, got none; mend the configuration")
    return default


def positive(config: Mapping[str, Any], key: str, default: float, *, most: float = math.inf, inside: str = "") -> float:
    """A number above 0.

    Raises:
        ValueError: for anything else; ``inside`` is the part of the configuration that the key is in.
    """
    value = config.get(key)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value <= most or value == math.inf:
        limit = f" and at most {most:g}" if most < math.inf else ""
        raise _wrong(f"{inside}{key}", f"a number above 0{limit}", value)
    return value


def flag(config: Mapping[str, Any], key: str, default: bool, *, inside: str = "") -> bool:
    """True or false.

    Raises:
        ValueError: for anything else.
    """
    value = config.get(key)
    if value is None:
        return default
    if not isinstance(value, bool):
        raise _wrong(f"{inside}{key}", "true or false", value)
    return value


def window(config: Mapping[str, Any], key: str, *, inside: str = "") -> int | None:
    """How many tokens before itself a query sees; None for all, which is -1 or left out.

    Raises:
        ValueError: for anything else.
    """
    value = config.get(key)
    if value is None or (value == -1 and not isinstance(value, bool)):
        return None
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= LONGEST:
        raise _wrong(f"{inside}{key}", f"-1 or an integer from 0 to {LONGEST:,}", value)
    return value


def part(config: Mapping[str, Any], key: str) -> Mapping[str, Any] | None:
    """An object within the configuration; None where there is none.

    Raises:
        ValueError: for anything else.
    """
    value = config.get(key)
    if value is not None and not isinstance(value, Mapping):
        raise _wrong(key, "an object", value)
    return value


def dtype_of(config: Mapping[str, Any]) -> str | None:
    """What the configuration calls dtype, or torch_dtype before version 5 of Transformers.

    Raises:
        ValueError: for what is no name.
    """
    for key in ("dtype", "torch_dtype"):
        value = config.get(key)
        if value is None:
            continue
        if not isinstance(value, str):
            raise _wrong(key, "the name of a dtype, such as 'bfloat16'", value)
        return value.removeprefix("torch.")
    return None


def _wrong(key: str, expected: str, got: Any) -> ValueError:
    return ValueError(f"{key}: expected {expected}, got {reprlib.repr(got)}; mend the configuration")


def rounding_of_positions(slopes: Tensor, length: int, dtype: torch.dtype) -> float:
    """The largest error, in nats, of m * j formed in a dtype for any position j below ``length``."""
    return max(_rounding_of_positions(slope, length, dtype) for slope in slopes.tolist())


_TRIED_ONE_BY_ONE = 2**15


def _rounding_of_positions(slope: float, length: int, dtype: torch.dtype) -> float:
    positions = torch.arange(min(length, _TRIED_ONE_BY_ONE), dtype=torch.float64)
    if length > _TRIED_ONE_BY_ONE:
        positions = _beside_midpoints(slope, length - 1, dtype)
    exact = slope * positions
    return float((exact.to(dtype).double() - exact).abs().max())


def _beside_midpoints(slope: float, last: int, dtype: torch.dtype) -> Tensor:
    """The positions up to the last whose products lie next to the middle between two numbers of the dtype.

    An error is largest there. Two binades are enough: in a lower one no error is more than half of what is reached in
    the second, where products lie far closer together than numbers.
    """
    kind = torch.finfo(dtype)
    middle = torch.arange(round(1 / kind.eps), dtype=torch.float64) + 0.5
    top = 2.0 ** (math.frexp(slope * last)[1] - 1)
    below = torch.cat([(start + start * kind.eps * middle) / slope for start in (top, top / 2)]).floor()
    return torch.cat([below, below + 1, torch.tensor([last], dtype=torch.float64)]).clamp_max(last)
