"""One layer's attention where several processes share the sequence (`splitting.split_context`)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from alibi_attention.parallel.layers import SharedContext

_CONTEXT = "alibi_context"

ROUNDED = (
    "expected a Falcon with the exact line of its biases where processes share a sequence, got one that reproduces "
    "their rounding to bfloat16, which is by absolute positions; call enable(model, falcon_rounding=False)"
)


def rounds(layer: nn.Module) -> bool:
    """Whether the layer's biases are those of absolute positions."""
    return getattr(layer, "reproduces_rounding", False) is True


def context_of(layer: nn.Module) -> SharedContext | None:
    """How the layer attends if not alone."""
    found: SharedContext | None = vars(layer).get(_CONTEXT)
    return found


def give_context(layer: nn.Module, context: SharedContext) -> None:
    """Have the layer attend so from now on."""
    vars(layer)[_CONTEXT] = context


def forget_context(layer: nn.Module) -> None:
    """The layer attends alone again."""
    vars(layer).pop(_CONTEXT, None)


# Compiled code has no say here in any case: processes look at what they tell each other.
@torch.compiler.disable  # type: ignore[untyped-decorator]
def attend_shared(
    layer: nn.Module, context: SharedContext, query: Tensor, key: Tensor, value: Tensor, slopes: Tensor, *,
    key_mask: Tensor | None, packed: Tensor | None = None, refusal: ValueError | None = None, **options: Any,
) -> Tensor:  # fmt: skip
    """The layer's attention over all parts.

    Args:
        key, value: with what a cache held before them, if there was one.
        key_mask: (batch, tokens) bool, or None.
        packed: cumulative lengths of packed sequences, or None.
        refusal: the layer's own, which the others are to know of before it is raised.
        options: as `SharedContext` takes them.

    Returns:
        (batch, num_heads, tokens here, head_dim).

    Raises:
        ValueError: for what processes that share a sequence do not carry.
    """
    if packed is not None and packed.numel() == 2:
        # One sequence after all, of which compiled code could not know.
        packed = None
    refusal = refusal or _refusal(layer, query, key, key_mask, packed)
    out: Tensor = context(query, key, value, slopes, key_mask=None, refusal=refusal, **options)
    return out


def _refusal(
    layer: nn.Module, query: Tensor, key: Tensor, key_mask: Tensor | None, packed: Tensor | None
) -> ValueError | None:
    text = None
    if key.shape[2] != query.shape[2]:
        text = (
            "past_key_values: expected none, or an empty one that grows (DynamicCache), where processes share a "
            f"sequence, got {key.shape[2]} keys for {query.shape[2]} queries; generate with a model of its own, which "
            "split_context has not taken"
        )
    elif key_mask is not None:
        text = (
            "attention_mask: expected no padding where processes share a sequence, got some; cut it off before the "
            "sequence is divided"
        )
    elif packed is not None:
        text = (
            "attention_mask: expected one sequence a row where processes share it, got several packed; give each a row"
        )
    elif rounds(layer):
        text = f"model: {ROUNDED}"
    return None if text is None else ValueError(text)
