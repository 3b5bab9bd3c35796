"""Sequences packed in one row, told apart by their position ids whoever looks at these."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from alibi_attention.integrations.transformers.attention import refuse_weights
from alibi_attention.integrations.transformers.general import PACKED, heard
from alibi_attention.integrations.transformers.hooks import NAMES, Arguments, hook_arguments, named_arguments
from alibi_attention.integrations.transformers.masks import GENERAL, TRIED

# Who tells the layers of a model where packed sequences begin: Transformers by its masks, the hook by their bounds, or
# nobody, because such arguments do not get through to them.
_TELLER = "_alibi_teller"
_MASKS, _BOUNDS, _NOBODY = "masks", "bounds", "nobody"


def watch_packing(part: nn.Module) -> None:
    """Have `keep_packed_apart` look at every call of a model and of the models in it: OPT's goes past one of them."""
    for module in part.modules():
        if isinstance(module, PreTrainedModel) and "position_ids" in inspect.signature(module.forward).parameters:
            hook_arguments(module, keep_packed_apart)
            vars(module)[_TELLER] = _MASKS


def forget_packing(module: nn.Module) -> None:
    vars(module).pop(_TELLER, None)


@torch.no_grad()
def try_packing(part: nn.Module, layers: Sequence[nn.Module], ids: Tensor) -> None:
    """Find out who tells the layers of packed sequences.

    Args:
        part: watched, under the attention that remembers what it heard.
        layers: of attention.
        ids: (1, an even number of tokens).
    """
    places = torch.arange(ids.shape[1] // 2, device=ids.device).repeat(2).unsqueeze(0)
    watched = [module for module in part.modules() if _TELLER in vars(module)]
    for teller in (_MASKS, _BOUNDS, _NOBODY):
        for module in watched:
            vars(module)[_TELLER] = teller
        if teller == _NOBODY:
            return
        part(input_ids=ids, position_ids=places, return_dict=True)
        if {heard(layer) for layer in layers} == {PACKED}:
            return


def keep_packed_apart(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Arguments:
    """Position ids that do not go on by one begin a sequence, where neither a cache nor a mask says otherwise.

    That is how Transformers takes them, for models that ask it to look, and without a cache only. One is made where
    nobody says otherwise, in training as well, and nothing else here reads positions: such sequences would see each
    other.
    """
    config: Any = module.config
    name = config._attn_implementation
    if name not in (GENERAL, TRIED):
        # Positions are off, and what stands for them would be as well.
        raise ValueError(
            f"attn_implementation: expected {GENERAL!r} in a model whose positions were replaced, got {name!r}, which "
            "would leave it without any; call disable(model) first"
        )
    named = named_arguments(module, args, kwargs)
    # Not every layer is told, and a model would answer with none.
    weights = named.get("output_attentions")
    refuse_weights(config.output_attentions if weights is None else weights)
    ids, cache = named.get("position_ids"), named.get("past_key_values")
    is_first = cache is None or (not isinstance(cache, tuple) and _is_empty(cache))
    if ids is None or named.get("attention_mask") is not None or not is_first:
        return args, kwargs
    starts = ids.diff(dim=-1) != 1
    caches = "use_cache" in vars(module)[NAMES]
    if torch.compiler.is_compiling():
        # Compiled code cannot look. Training has no use for a cache in any case.
        if vars(module)[_TELLER] != _MASKS and named.get("cu_seq_lens_q") is None:
            torch._assert_async(~starts.any(), _NOT_COMPILED)
        if caches and module.training and not named.get("use_cache"):
            return (), {**named, "use_cache": False}
        return args, kwargs
    if not bool(starts.any()):
        return args, kwargs
    if named.get("use_cache") or cache is not None:
        raise ValueError(
            "use_cache: expected False for sequences packed in one row by their position_ids, got a cache; it would "
            "hold them as one text"
        )
    if vars(module)[_TELLER] == _NOBODY:
        raise ValueError(
            f"position_ids: expected one sequence a row, got several; the layers of a {type(module).__name__} hear "
            "nothing of packed sequences: give each a row and an attention_mask"
        )
    if caches:
        named["use_cache"] = False
    if vars(module)[_TELLER] == _BOUNDS and named.get("cu_seq_lens_q") is None:
        named |= _bounds(starts, named)
    return (), named


_NOT_COMPILED = (
    "position_ids: expected one sequence a row in compiled code, which cannot look at them, got several; give "
    "cu_seq_lens_q for sequences packed in one row"
)


def _bounds(starts: Tensor, named: dict[str, Any]) -> dict[str, Any]:
    given = next(named[name] for name in ("input_ids", "inputs_embeds") if named.get(name) is not None)
    if given.shape[0] != 1 or starts.shape[0] != 1:
        raise ValueError(
            f"position_ids: expected sequences packed in one row, got {given.shape[0]} rows; put them all in one, or "
            "give each a row and an attention_mask"
        )
    inner = starts[0].nonzero().flatten() + 1
    bounds = torch.cat([inner.new_zeros(1), inner, inner.new_full((1,), given.shape[1])]).to(torch.int32)
    return {"cu_seq_lens_q": bounds, "cu_seq_lens_k": bounds}


def _is_empty(cache: Any) -> bool:
    length = cache.get_seq_length()
    return not isinstance(length, Tensor) and length == 0
