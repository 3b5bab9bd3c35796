"""Rotary position embedding, and the rules that stretch it."""

from __future__ import annotations

import math
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from alibi_attention.extras import installing
from alibi_attention.lab.errors import LabError
from alibi_attention.lab.positions.base import Cache, DecoderShape, PositionMethod

BASE = 1e4

# What Transformers calls them.
_RULES = {"pi": "linear", "dynamic": "dynamic", "yarn": "yarn"}


def plain_rates(head_dim: int) -> Tensor:
    """BASE ** (-2i / head_dim), (head_dim / 2,) float64."""
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float64)
    return torch.exp(exponents * (-math.log(BASE) / head_dim))


def scaled_rates(variant: str, head_dim: int, *, train_length: int, length: int) -> tuple[Tensor, float]:
    """Rates of a scaling rule as Transformers computes them, and the factor on cosine and sine.

    With a = max(length / train_length, 1): ``pi`` divides positions by a. ``dynamic`` multiplies the base by
    a ** (head_dim / (head_dim - 2)), which is Transformers' rule with its own factor at 1. ``yarn`` interpolates slow
    pairs by a, leaves fast ones alone, and multiplies cosine and sine by 0.1 ln a + 1.

    Returns:
        (head_dim / 2,) float64, and the factor.
    """
    if variant == "dynamic" and head_dim == 2:
        # A single pair, whose rate is 1 for any base: the rule has nothing to change, and divides by head_dim - 2.
        return plain_rates(head_dim), 1.0
    from transformers import PreTrainedConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    ratio = max(length / train_length, 1.0)
    rule = _RULES[variant]
    parameters: dict[str, Any] = {"rope_type": rule, "rope_theta": BASE}
    parameters["factor"] = 1.0 if rule == "dynamic" else ratio
    if rule == "yarn":
        parameters["original_max_position_embeddings"] = train_length
    values: dict[str, Any] = {"hidden_size": head_dim, "num_attention_heads": 1, "head_dim": head_dim}
    values |= {"max_position_embeddings": train_length, "rope_parameters": parameters}
    config = PreTrainedConfig(**values)
    rates, factor = ROPE_INIT_FUNCTIONS[rule](config, device=torch.device("cpu"), seq_len=length)
    return rates.double(), float(factor)


def rotation(rates: Tensor, seq_len: int, factor: float = 1.0, *, start: int = 0) -> tuple[Tensor, Tensor]:
    """factor * cos and factor * sin of t * rate from position ``start`` on, each (seq_len, rates) float32.

    Angles are formed in float64.
    """
    positions = torch.arange(start, start + seq_len, dtype=torch.float64, device=rates.device)
    angles = positions.unsqueeze(-1) * rates
    return (factor * angles.cos()).float(), (factor * angles.sin()).float()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the pairs (x[i], x[i + head_dim / 2]) of (..., seq_len, head_dim) by their angles, in float32."""
    first, second = x.float().chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x.dtype)


class Rope(PositionMethod):
    """Queries and keys are turned by angles proportional to their positions, so scores depend on i - j.

    Plain, the positions are simply continued beyond the training length. Variants: position interpolation and YaRN for
    the length the model is set up for, dynamic NTK for the number of tokens at hand.

    Sources: Su et al., "RoFormer", 2021; Chen et al., "Extending Context Window of Large Language Models via Positional
    Interpolation", 2023; Peng et al., "YaRN", 2023. The rules are those of Transformers' rope utilities.
    """

    name = "rope"
    title = "RoPE"
    variants = {"pi": "position interpolation", "dynamic": "dynamic NTK", "yarn": "YaRN"}  # noqa: RUF012
    unsettled = frozenset({"dynamic"})
    bidirectional = True

    @classmethod
    def require(cls, variant: str | None) -> None:
        if variant is not None and find_spec("transformers") is None:
            remedy = f"{installing('transformers')}, or leave this variant out"
            expected = "the package transformers, whose rules RoPE is scaled by"
            raise LabError("variants", expected=expected, got=f"rope:{variant} without it", remedy=remedy)

    def __init__(self, shape: DecoderShape) -> None:
        super().__init__(shape)
        self._tables: tuple[object, Tensor, Tensor] | None = None

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        cos, sin = self._rotation(query.shape[-2], query.device)
        return super().attend(rotate(query, cos, sin), rotate(key, cos, sin), value)

    def continue_with(self, cache: Cache, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        cos, sin = self._rotation(query.shape[-2], query.device, start=cache.length)
        return super().continue_with(cache, rotate(query, cos, sin), rotate(key, cos, sin), value)

    def _rotation(self, seq_len: int, device: torch.device, start: int = 0) -> tuple[Tensor, Tensor]:
        # All layers of a forward pass, and all steps at one length, share a table.
        made_for = (seq_len, device, start, self.variant, self.length)
        if self._tables is None or self._tables[0] != made_for:
            rates, factor = self._rates(seq_len)
            self._tables = (made_for, *rotation(rates.to(device), seq_len, factor, start=start))
        return self._tables[1:]

    def _rates(self, seq_len: int) -> tuple[Tensor, float]:
        if self.variant is None:
            return plain_rates(self.shape.head_dim), 1.0
        length = seq_len if self.variant == "dynamic" else self.length
        return scaled_rates(self.variant, self.shape.head_dim, train_length=self.shape.length, length=length)
