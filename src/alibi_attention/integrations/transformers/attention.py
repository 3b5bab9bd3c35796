"""One layer's attention for a Transformers model, with whatever cache it was given."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from alibi_attention.integrations.transformers.cache import check_step, cut_short, own_layer
from alibi_attention.integrations.transformers.context import attend_shared, context_of
from alibi_attention.integrations.transformers.masks import key_mask_of
from alibi_attention.ops import alibi_attention


def attend(
    module: nn.Module,
    heads: list[Tensor],
    *,
    cache: Any,
    attention_mask: Tensor | None,
    scale: float,
    dropout_p: float,
) -> Tensor:
    """Causal attention of new tokens over themselves and what the cache holds, to which they are added.

    Args:
        module: has ``layer_idx`` and, from `give_slopes`, ``alibi_slopes``.
        heads: query (batch, num_heads, tokens, head_dim), key and value (batch, num_kv_heads, tokens, head_dim). Taken
            out of the list: what a fused projection holds goes as soon as nothing here needs it.
        cache: a transformers.Cache or None.
        attention_mask: as `masks.padding_mask` made it.

    Returns:
        (batch, tokens, num_heads * head_dim).

    Raises:
        HorizonViolation: as `HorizonCache.attend`. After this, and whatever else ends a step here once its tokens are
            in the layer, the cache takes no further step until it is reset.
    """
    query, key, value = heads
    heads.clear()
    mask, slopes = key_mask_of(attention_mask), slopes_of(module, query.device)
    context = context_of(module)
    if context is not None:
        refusal = None
        if cache is not None:
            try:
                key, value = cache.update(key, value, cast(int, module.layer_idx))
            except ValueError as error:
                # One of ours that cannot serve here; the other processes wait to hear of it.
                refusal = error
        out = attend_shared(
            module, context, query, key, value, slopes, is_causal=True, scale=scale, key_mask=mask,
            dropout_p=dropout_p, refusal=refusal,
        )  # fmt: skip
        return joined(out)
    if cache is None:
        out = alibi_attention(query, key, value, slopes, scale=scale, key_mask=mask, dropout_p=dropout_p)
        return joined(out)
    index = cast(int, module.layer_idx)
    wants_graph = dropout_p > 0.0 or (
        torch.is_grad_enabled() and (query.requires_grad or key.requires_grad or value.requires_grad)
    )
    layer = own_layer(cache, index, key, mask, wants_graph)
    if layer is not None:
        check_step(cache, index, query.shape[2])
        layer.append(key, value, mask)
        # The cache has its own copy. Queries of a prompt, a third of the projection, must not keep the rest of it.
        del key, value
        if query.shape[2] > 1:
            query = query.contiguous()
        try:
            return joined(layer.attend(query, slopes, scale))
        except BaseException:
            # The last layer too: every layer then holds tokens that nobody got an answer for, and the step, taken
            # again, would append them twice.
            cut_short(cache)
            raise
    past = cache.get_seq_length(index)
    if isinstance(past, Tensor):
        # A static layer hands out its live counter, which update() moves.
        past = past.clone()
    key, value = cache.update(key, value, index)
    offset = past.to(query.device).expand(query.shape[0]) if isinstance(past, Tensor) else past
    out = alibi_attention(
        query, key, value, slopes, scale=scale, key_mask=mask, query_offset=offset, dropout_p=dropout_p
    )
    return joined(out)


def joined(out: Tensor) -> Tensor:
    """(batch, tokens, num_heads * head_dim) from (batch, num_heads, tokens, head_dim)."""
    return out.transpose(1, 2).flatten(-2)


def give_slopes(module: nn.Module, slopes: Tensor) -> None:
    """A plain attribute: no entry of the state dict, and out of reach of module.to(torch.bfloat16)."""
    module.alibi_slopes = slopes


def slopes_of(module: nn.Module, device: torch.device) -> Tensor:
    """The module's slopes, on the device its tensors have come to."""
    slopes: Tensor = module.alibi_slopes  # type: ignore[assignment]
    if slopes.device != device:
        # Inference tensors could not be saved for a backward pass later on.
        with torch.inference_mode(False):
            slopes = slopes.to(device)
        give_slopes(module, slopes)
    return slopes


def refuse_weights(output_attentions: bool | None) -> None:
    """Raises ValueError where attention weights are asked for."""
    if output_attentions:
        raise ValueError(
            "output_attentions: expected False, got True; the weights are never formed. disable(model) brings the "
            "stock attention back, alibi_attention.reference has them for study"
        )
