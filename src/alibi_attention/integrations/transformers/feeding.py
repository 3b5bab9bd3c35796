"""What an enabled model is given, refused where its layers would pass over it."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache

from alibi_attention.integrations.transformers.attention import refuse_weights
from alibi_attention.integrations.transformers.general import FOREIGN
from alibi_attention.integrations.transformers.hooks import NAMES, name_arguments, named_arguments, remove_hooks

_NAME = "prepare_inputs_for_generation"
# Transformers' own BLOOM, MPT and Falcon take these among others, and do nothing with them.
_IGNORED = ("cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k", "seq_idx", "sliding_window", *FOREIGN)


def watch_feeding(part: nn.Module) -> None:
    """Have a model's arguments looked at, and what `generate` feeds at each step."""
    if refuse_ignored not in part._forward_pre_hooks.values():
        name_arguments(part)
        part.register_forward_pre_hook(refuse_ignored, with_kwargs=True)
    # Whoever put a method over it is left alone.
    if hasattr(part, _NAME) and _NAME not in vars(part):
        # Bound so, it is copied and pickled with the model.
        vars(part)[_NAME] = partial(_refuse_fed_again, part)


def forget_feeding(part: nn.Module) -> None:
    """Undo `watch_feeding`."""
    remove_hooks(part, refuse_ignored)
    vars(part).pop(NAMES, None)
    if getattr(vars(part).get(_NAME), "func", None) is _refuse_fed_again:
        del vars(part)[_NAME]


def refuse_ignored(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Raises ValueError for weights that are never formed, and for what would make a row more than one text."""
    named = named_arguments(module, args, kwargs)
    config: Any = module.config
    weights = named.get("output_attentions")
    refuse_weights(config.output_attentions if weights is None else weights)
    for name in _IGNORED:
        if named.get(name) is not None:
            raise ValueError(
                f"{name}: expected none, got one, which an enabled {type(module).__name__} would pass over as stock "
                "does: it takes a row for one text, and attends to all of it; give each text a row and an "
                "attention_mask"
            )
    ids, mask, cache = (named.get(name) for name in ("position_ids", "attention_mask", "past_key_values"))
    # A mask without columns is our own, and a step of one token begins nothing.
    if not isinstance(ids, Tensor) or ids.shape[-1] < 2 or (mask is not None and mask.shape[-1] > 0):
        return
    begins = (ids.diff(dim=-1) != 1).any()
    if torch.compiler.is_compiling():
        torch._assert_async(~begins, _ONE_TEXT)
        return
    held = cache.get_seq_length() if isinstance(cache, Cache) else 0
    if bool(begins) or (isinstance(held, int) and held > 0 and bool((ids[..., 0] != held).any())):
        raise ValueError(_ONE_TEXT)


_ONE_TEXT = (
    "position_ids: expected one text a row, in numbers that go on by one from the end of the cache, got others; an "
    "enabled model does not carry packed texts: give each a row and an attention_mask"
)


# generate() takes what forward does besides where it finds ``kwargs``, by that name.
def _refuse_fed_again(part: Any, input_ids: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
    """The inputs of a step; refuses the second one of a `generate` that was given a cache and no ``use_cache``.

    It feeds the whole text at every step, and the models append it to what they were given all the same: a text that
    repeats its beginning ever more often, and a cache that grows with the square.

    Raises:
        ValueError: for that.
    """
    cache = kwargs.get("past_key_values")
    if cache is not None and kwargs.get("use_cache") is False and not kwargs.get("is_first_iteration"):
        raise ValueError(
            "use_cache: expected True where past_key_values are given to generate(), got False: the cache holds "
            f"{int(cache.get_seq_length())} tokens and gets {input_ids.shape[1]}, the whole text, which it would hold "
            "again with every step; pass use_cache=True (an MPT's configuration says False), or no past_key_values"
        )
    inputs: dict[str, Any] = type(part).prepare_inputs_for_generation(part, input_ids, *args, **kwargs)
    return inputs
