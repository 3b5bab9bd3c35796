"""What Transformers calls an attention mask, reduced to which keys are padding: nothing of size length x length."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers.masking_utils import bidirectional_mask_function, causal_mask_function

GENERAL = "alibi"
# Of a model that `enable` took; Transformers says this name where another is to be built of its configuration.
NATIVE = "alibi (enabled)"
# As GENERAL, and the layer remembers that it asked.
TRIED = "alibi_tried"
# Their attention is not chosen by name: with a name alone they would run their own, without a causal mask.
_NEED_ENABLE = ("bloom", "mpt")
# The parts that Transformers builds mask functions of, by the names of what makes them.
_CAUSAL = {"causal_mask_function", "sliding_window_overlay"}
_WINDOWED = {*_CAUSAL, "bidirectional_mask_function", "sliding_window_bidirectional_overlay"}
_PACKED = {"packed_sequence_mask_function", "remap_positions_for_packed_sequence"}


class Sight(NamedTuple):
    """What a query sees, padding apart: the tokens up to it or all, and of them so many before and after it."""

    causal: bool
    window: tuple[int, int | None] | None

    def __str__(self) -> str:
        within = "" if self.window is None else f" within {self.window[0]} of it"
        return ("the tokens up to each" if self.causal else "all tokens") + within


def padding_mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int | Tensor = 0,
    kv_offset: int = 0,
    mask_function: Callable[..., Any] = causal_mask_function,
    attention_mask: Tensor | None = None,
    *,
    config: Any = None,
    local_size: int | None = None,
    device: Any = None,
    **_: Any,
) -> Tensor | None:
    """The mask function of ``attn_implementation="alibi"``.

    Returns:
        None where nothing is hidden but by causality and windows; (batch, kv_length) bool, False for padding; or for
        sequences packed in one row their cumulative lengths, (sequences + 1,) int32.

    Raises:
        ValueError: for a model that has not been enabled, padding inside a sequence, packed sequences in more than one
            row, or a mask that is more than causality, a window and padding.
        RuntimeError: for padding inside a sequence where this is compiled; it is raised as the code runs.
    """
    family = getattr(config, "model_type", None)
    if family in _NEED_ENABLE and config._attn_implementation == GENERAL:
        raise ValueError(
            f"attn_implementation: {family} does not choose its attention by name, got {GENERAL!r}; load the model "
            "without it and call alibi_attention.integrations.transformers.enable(model)"
        )
    bounds = _packed_bounds(mask_function, local_size)
    if bounds is not None:
        return bounds
    is_static = isinstance(q_offset, Tensor) or q_offset + q_length != kv_length + kv_offset
    if is_static and config is not None and config._attn_implementation == GENERAL and family != "falcon":
        raise ValueError(
            f"past_key_values: expected a cache that grows (DynamicCache), got one of fixed length {kv_length}, in "
            "which attn_implementation='alibi' cannot tell where the queries stand"
        )
    mask = None
    # One without columns is our own, handed back by generate().
    if attention_mask is not None and attention_mask.shape[1] > 0:
        mask = _checked(attention_mask.to(torch.bool), kv_length, kv_offset, is_static)
    if mask is None and config is not None and config._attn_implementation == TRIED:
        mask = torch.ones(batch_size, kv_length, dtype=torch.bool, device=device)
        vars(mask)[_SIGHT] = _sight_by(mask_function, local_size)
    if mask is None and family == "mpt":
        # MPT converts whatever it gets; a mask without columns masks nothing.
        return torch.ones(batch_size, 0, dtype=torch.bool, device=device)
    return mask


def sight_by_mask(attention_mask: Tensor | None) -> Sight | None:
    """What a mask that was made in a trial speaks of; None for any other."""
    found: Sight | None = None if attention_mask is None else vars(attention_mask).get(_SIGHT)
    return found


def _sight_by(mask_function: Callable[..., Any], local_size: int | None) -> Sight:
    if {_maker(part) for part in _conjunction(mask_function)} & _CAUSAL:
        return Sight(True, None if local_size is None else (local_size - 1, None))
    return Sight(False, None if local_size is None else (local_size, local_size))


_SIGHT = "_alibi_sight"


def _packed_bounds(mask_function: Callable[..., Any], local_size: int | None) -> Tensor | None:
    """Cumulative lengths of packed sequences, or None for causality and a window alone; refuses everything else."""
    if mask_function is causal_mask_function or mask_function is bidirectional_mask_function:
        return None
    parts = {_maker(part): part for part in _conjunction(mask_function)}
    if local_size is not None and set(parts) <= _WINDOWED:
        return None
    if set(parts) == _PACKED:
        inner = next(cell for cell in _cells(parts["remap_positions_for_packed_sequence"]) if callable(cell))
        sequence = next(cell for cell in _cells(parts["packed_sequence_mask_function"]) if isinstance(cell, Tensor))
        if _packed_bounds(inner, local_size) is None:
            if sequence.shape[0] != 1 and torch.compiler.is_compiling():
                # Compiled code cannot look, and is told of every row that it may hold several.
                torch._assert_async((sequence == sequence[:, :1]).all(), _PACKED_ROWS)
                return None
            if sequence.shape[0] != 1:
                raise ValueError(
                    "position_ids: expected sequences packed in one row, got a batch of "
                    f"{sequence.shape[0]} such rows; give each a call of its own, or put all of them into one"
                )
            starts = torch.diff(sequence[0]).nonzero().flatten() + 1
            bounds = [starts.new_zeros(1), starts, starts.new_full((1,), sequence.shape[1])]
            return torch.cat(bounds).to(torch.int32)
    raise ValueError(
        "attention_mask: expected causality, a sliding window, padding, or sequences packed in one row, got a mask "
        f"function of {sorted(parts)}; use another attn_implementation for it"
    )


_PACKED_ROWS = "position_ids: expected sequences packed in one row, got a batch of such rows; put all of them into one"


def _cells(function: Callable[..., Any]) -> list[Any]:
    return [cell.cell_contents for cell in getattr(function, "__closure__", None) or ()]


def _maker(part: Callable[..., Any]) -> str:
    return getattr(part, "__qualname__", "").split(".")[0]


def _conjunction(mask_function: Callable[..., Any]) -> tuple[Callable[..., Any], ...]:
    """The functions that Transformers' `and_masks` has joined, or the function alone."""
    for cell in _cells(mask_function):
        if isinstance(cell, tuple) and all(map(callable, cell)):
            return cell
    return (mask_function,)


def _checked(mask: Tensor, kv_length: int, kv_offset: int, is_static: bool) -> Tensor | None:
    length = mask.shape[1]
    if is_static and length > kv_length + kv_offset:
        raise ValueError(
            f"past_key_values: expected room for the {length} tokens that attention_mask speaks of, got a cache of "
            f"fixed length {kv_length + kv_offset}, which is full; make a longer one, or take a DynamicCache"
        )
    if length > kv_length + kv_offset or (length < kv_length + kv_offset and not is_static):
        raise ValueError(
            f"attention_mask: expected one column for each of the {kv_length + kv_offset} tokens, those in the cache "
            f"included, got shape {tuple(mask.shape)}; pass the mask of the whole text, and for another text a new "
            "cache, or this one after reset()"
        )
    if torch.compiler.is_compiling():
        # Nothing of a value can be branched on here; what is asserted stops the run that meets it.
        torch._assert_async(~_has_hole(mask).any(), f"{_HOLE}; {_WHY_NOT}")
    elif bool(mask.all()):
        return None
    else:
        refuse_holes(mask)
    padded = torch.nn.functional.pad(mask, (0, kv_length + kv_offset - length))
    return padded[:, kv_offset:]


def refuse_holes(mask: Tensor) -> None:
    """Raises ValueError where padding stands between the tokens of a row."""
    holed = _has_hole(mask).nonzero().flatten().tolist()
    if holed:
        raise ValueError(f"{_HOLE} in rows {holed[:8]}; {_WHY_NOT}, tokenizer.padding_side = 'left'")


# Inside compiled code, where rows cannot be named: no quotes either, which do not survive its string literals.
_HOLE = "attention_mask: expected padding on the left or on the right of each row, got padding between tokens"
_WHY_NOT = (
    "distances across the hole are ambiguous (BLOOM and Falcon count only real tokens, MPT counts all). Padding on the "
    "right becomes a hole when tokens are generated after it: pad on the left"
)


def _has_hole(mask: Tensor) -> Tensor:
    """(batch,) bool: whether a row's tokens stand in more than one run."""
    before = torch.nn.functional.pad(mask, (1, 0))[:, :-1]
    return (mask & ~before).sum(1) > 1


def key_mask_of(attention_mask: Tensor | None) -> Tensor | None:
    """What reaches an attention layer, as the operator takes it.

    Raises:
        ValueError: for a mask that was prepared by hand.
    """
    if attention_mask is None or (attention_mask.dim() == 2 and attention_mask.shape[1] == 0):
        return None
    if attention_mask.dim() != 2:
        raise ValueError(
            "attention_mask: expected (batch, length), 1 for tokens and 0 for padding, got shape "
            f"{tuple(attention_mask.shape)}; causality and distance are ALiBi attention's own affair. Where "
            "nobody gave one, the model's configuration has come to name another attention: call enable(model) again, "
            "or replace_positions(model)"
        )
    return attention_mask
