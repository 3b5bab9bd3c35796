"""``attn_implementation="alibi"``: what a model that asks Transformers for its attention by name gets."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from alibi_attention.integrations.transformers.attention import slopes_of
from alibi_attention.integrations.transformers.context import attend_shared, context_of
from alibi_attention.integrations.transformers.masks import Sight, key_mask_of, sight_by_mask
from alibi_attention.ops import alibi_attention

_HEARD = "_alibi_heard"
# Of a layer that leaves its window to its mask, what `tried_forward` found there.
_WINDOW = "_alibi_window"
ASKED, PACKED = "asked", "packed"
# What attention functions of Transformers take besides, and ours has no part in.
FOREIGN = ("softcap", "s_aux", "position_bias", "head_mask", "sinks")


def alibi_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    is_causal: bool | None = None,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """The attention function, as Transformers calls it.

    Args:
        query: (batch, num_heads, q_len, head_dim).
        key, value: (batch, num_kv_heads, k_len, head_dim).
        attention_mask: as `masks.padding_mask` made it.
        sliding_window: tokens a query sees, itself included, on each side it sees; None for what its mask had in the
            trial.

    Returns:
        (batch, q_len, num_heads, head_dim), and None for the weights.

    Raises:
        ValueError: for a model `replace_positions` has not prepared, and for what the operator does not carry.
    """
    if "alibi_slopes" not in vars(module):
        raise ValueError(
            f"attn_implementation: expected a model prepared for 'alibi', got a {type(module).__name__} that has its "
            "own positions still; call alibi_attention.integrations.transformers.replace_positions(model) first"
        )
    foreign = [name for name in FOREIGN if kwargs.get(name) is not None]
    if foreign:
        raise ValueError(
            f"{foreign[0]}: expected None with attn_implementation='alibi', got one; it would change scores"
        )
    causal, window = _own_sight(module, is_causal, sliding_window)
    if window is None:
        window = vars(module).get(_WINDOW)
    packed = kwargs.get("cu_seq_lens_q")
    if attention_mask is not None and attention_mask.dim() == 1:
        packed = attention_mask
    mask = None if attention_mask is packed else key_mask_of(attention_mask)
    if packed is not None and mask is not None:
        raise ValueError(
            f"attention_mask: expected none beside cu_seq_lens_q, got padding of shape {tuple(mask.shape)}; packed "
            "sequences hold no padding: leave one of them out"
        )
    if not causal and query.shape[2] != key.shape[2]:
        raise ValueError(
            f"key: expected self-attention, as many keys as the {query.shape[2]} queries, got {key.shape[2]}; ALiBi "
            "has no distances between two sequences"
        )
    slopes, context = slopes_of(module, query.device), context_of(module)
    if context is not None:
        out = attend_shared(
            module, context, query, key, value, slopes, packed=packed, is_causal=causal, scale=scaling, key_mask=mask,
            window=window, dropout_p=dropout,
        )  # fmt: skip
    else:
        out = alibi_attention(
            query, key, value, slopes, is_causal=causal, scale=scaling, key_mask=mask,
            cu_seqlens=None if packed is None else packed.to(torch.int32), window=window, dropout_p=dropout,
        )  # fmt: skip
    return out.transpose(1, 2).contiguous(), None


def tried_forward(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, None]:
    """`alibi_forward`; the module remembers that it was asked for, whether sequences were packed, and the window that
    only its mask speaks of.

    Raises:
        ValueError: also where module and mask say different things.
    """
    by_mask = sight_by_mask(attention_mask)
    if by_mask is not None:
        forget_window(module)
        own = _own_sight(module, kwargs.get("is_causal"), kwargs.get("sliding_window"))
        if own.window is None and by_mask.window is not None:
            own = own._replace(window=by_mask.window)
            vars(module)[_WINDOW] = by_mask.window
        if own != by_mask:
            raise ValueError(
                f"model: expected a {type(module).__name__} to attend to what its mask leaves, {by_mask}, got one that "
                f"says {own}; which of them it is to be trained with cannot be told: mend its configuration"
            )
        # Nothing in a trial is padding.
        attention_mask = None
    bounds = attention_mask is not None and attention_mask.dim() == 1
    vars(module)[_HEARD] = PACKED if bounds or kwargs.get("cu_seq_lens_q") is not None else ASKED
    return alibi_forward(module, query, key, value, attention_mask, **kwargs)


def _own_sight(module: nn.Module, is_causal: bool | None, sliding_window: int | None) -> Sight:
    """What the layer says of it, by itself and as it calls its attention."""
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    causal = bool(causal) and getattr(module.config, "is_causal", True) is not False
    if sliding_window is None:
        return Sight(causal, None)
    return Sight(causal, (sliding_window - 1, None if causal else sliding_window - 1))


def forget_window(module: nn.Module) -> None:
    """Undo what `tried_forward` found of a window."""
    vars(module).pop(_WINDOW, None)


def heard(module: nn.Module) -> str | None:
    """What `tried_forward` last heard in a module, `ASKED` or `PACKED`; it is forgotten."""
    found: str | None = vars(module).pop(_HEARD, None)
    return found
