"""What a model whose sequence several processes share tells the others besides its attention."""

from __future__ import annotations

import math
import sys
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from alibi_attention.integrations.transformers.hooks import name_arguments, named_arguments, remove_hooks
from alibi_attention.parallel.layers import SharedContext

_SHARED, _BEGUN = "_alibi_shared", "_alibi_begun"


class _Begun(NamedTuple):
    """What there was when a call of a module began."""

    calls: int
    error: BaseException | None
    outermost: bool


def tell_others(module: nn.Module, context: SharedContext) -> None:
    """Have the others know where the tokens of a call of the module stand, and of a call that fails before its layers'
    first attention, for which they would wait in vain."""
    keep_quiet(module)
    vars(module)[_SHARED] = context
    name_arguments(module)
    # Before all others, which may refuse.
    module.register_forward_pre_hook(_begin, with_kwargs=True, prepend=True)
    module.register_forward_hook(_end, always_call=True)


def keep_quiet(module: nn.Module) -> SharedContext | None:
    """Undo `tell_others`; returns what it had been given."""
    remove_hooks(module, _begin, _end)
    context: SharedContext | None = vars(module).pop(_SHARED, None)
    vars(module).pop(_BEGUN, None)
    return context


@torch.compiler.disable  # type: ignore[untyped-decorator]
def _begin(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    context: SharedContext = vars(module)[_SHARED]
    begun: _Begun | None = vars(module).get(_BEGUN)
    if begun is not None and begun.outermost:
        # Ctrl-C ended it, of which no hook hears.
        context.busy = False
    vars(module)[_BEGUN] = _Begun(context.calls, sys.exc_info()[1], not context.busy)
    if context.busy:
        # A model inside another, which makes positions of its own accord.
        return
    context.busy = True
    named = named_arguments(module, args, kwargs)
    ids = named.get("position_ids")
    # With a mask a row is taken for one sequence, whatever its positions.
    context.positions = _ends(ids) if isinstance(ids, Tensor) and named.get("attention_mask") is None else None


def _ends(ids: Tensor) -> tuple[float, float] | None:
    """Positions of the first and the last token of every row; such as follow nothing where rows differ."""
    if ids.dim() == 0 or ids.shape[-1] == 0:
        return None
    first, last = (set(each.flatten().tolist()) for each in (ids[..., 0], ids[..., -1]))
    return (first.pop(), last.pop()) if len(first) == len(last) == 1 else (-math.inf, math.inf)


@torch.compiler.disable  # type: ignore[untyped-decorator]
def _end(module: nn.Module, args: Any, output: Any) -> None:  # noqa: ARG001
    context: SharedContext = vars(module)[_SHARED]
    begun: _Begun | None = vars(module).pop(_BEGUN, None)
    if begun is None or not begun.outermost:
        return
    context.busy, context.positions = False, None
    error = sys.exc_info()[1]
    # The caller may be at work on an error of its own.
    if error is not None and error is not begun.error and context.calls == begun.calls:
        context.refuse(next(module.parameters(), None))
