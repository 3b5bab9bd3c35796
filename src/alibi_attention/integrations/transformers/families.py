"""How each family is enabled: what becomes of its modules, and how its model is kept from forming biases."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers.models.bloom.modeling_bloom import BloomAttention, BloomGelu, BloomMLP, BloomModel
from transformers.models.falcon.modeling_falcon import FalconAttention, FalconMLP, FalconModel
from transformers.models.mpt.modeling_mpt import MptAttention, MptMLP, MptModel

from alibi_attention.integrations.transformers.hooks import remove_hooks
from alibi_attention.integrations.transformers.native import (
    ALiBiBloomAttention,
    ALiBiFalconAttention,
    ALiBiMptAttention,
    FusedBloomGelu,
    LeanBloomMLP,
)
from alibi_attention.integrations.transformers.one_token import OneTokenFalconMLP, OneTokenMptMLP

# Biases that nobody reads are not formed: (heads, keys) of them at every step.


def no_bloom_bias(attention_mask: Tensor, num_heads: int, dtype: torch.dtype) -> Tensor:  # noqa: ARG001
    """In place of BloomModel.build_alibi_tensor."""
    return torch.empty(0, dtype=dtype, device=attention_mask.device)


_BLOOM_NAMES = tuple(inspect.signature(BloomModel.forward).parameters)[1:]


def no_columns(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:  # noqa: ARG001
    """Where BloomModel is given no mask it forms its biases by itself: it is given one without columns."""
    named = {**dict(zip(_BLOOM_NAMES, args, strict=False)), **kwargs}
    tokens = named.get("input_ids") if named.get("inputs_embeds") is None else named.get("inputs_embeds")
    if named.get("attention_mask") is not None or not isinstance(tokens, Tensor):
        return None
    mask, at = tokens.new_ones(tokens.shape[0], 0, dtype=torch.bool), _BLOOM_NAMES.index("attention_mask")
    if len(args) > at:
        return (*args[:at], mask, *args[at + 1 :]), kwargs
    return args, {**kwargs, "attention_mask": mask}


def _bloom_without_bias(model: Any) -> None:
    model.build_alibi_tensor = no_bloom_bias
    if no_columns not in model._forward_pre_hooks.values():
        model.register_forward_pre_hook(no_columns, with_kwargs=True)


def _bloom_with_bias(model: Any) -> None:
    vars(model).pop("build_alibi_tensor", None)
    remove_hooks(model, no_columns)


def no_mpt_bias(num_heads: int, sequence_length: int, alibi_bias_max: float = 8, device: Any = None) -> Tensor:  # noqa: ARG001
    """In place of MptModel.build_mpt_alibi_tensor."""
    return torch.empty(0, device=device)


def _mpt_without_bias(model: Any) -> None:
    model.build_mpt_alibi_tensor = no_mpt_bias


def _mpt_with_bias(model: Any) -> None:
    vars(model).pop("build_mpt_alibi_tensor", None)


def _falcon_without_bias(model: Any) -> None:
    model.use_alibi = False


def _falcon_with_bias(model: Any) -> None:
    model.use_alibi = model.config.alibi


class Family(NamedTuple):
    """How one kind of model is enabled.

    Attributes:
        slopes: of a configuration, or a ValueError for one that cannot be enabled.
        swaps: (stock class, ours); subclasses of the stock class are swapped too.
        model: the class that forms the biases.
        without_bias: has it form none, however often called.
        with_bias: has it form them again.
        implementation: the attn_implementation of a stock model that was loaded as ours.
    """

    slopes: Callable[[Any], Tensor]
    swaps: tuple[tuple[type[nn.Module], type[nn.Module]], ...]
    model: type[nn.Module]
    without_bias: Callable[[Any], None]
    with_bias: Callable[[Any], None]
    implementation: str


FAMILIES = {
    "bloom": Family(
        ALiBiBloomAttention.slopes,
        ((BloomAttention, ALiBiBloomAttention), (BloomGelu, FusedBloomGelu), (BloomMLP, LeanBloomMLP)),
        BloomModel,
        _bloom_without_bias,
        _bloom_with_bias,
        "eager",
    ),
    "mpt": Family(
        ALiBiMptAttention.slopes,
        ((MptAttention, ALiBiMptAttention), (MptMLP, OneTokenMptMLP)),
        MptModel,
        _mpt_without_bias,
        _mpt_with_bias,
        "eager",
    ),
    "falcon": Family(
        ALiBiFalconAttention.slopes,
        ((FalconAttention, ALiBiFalconAttention), (FalconMLP, OneTokenFalconMLP)),
        FalconModel,
        _falcon_without_bias,
        _falcon_with_bias,
        "sdpa",
    ),
}
