"""Taking hooks out of modules by what they run: a module that was copied since has no handle of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn


def remove_hooks(module: nn.Module, *functions: Callable[..., Any]) -> None:
    """Remove every hook before or after forward that is one of the functions."""
    for hooks in (module._forward_hooks, module._forward_pre_hooks):
        for key, hook in list(hooks.items()):
            if hook in functions:
                del hooks[key]
                module._forward_pre_hooks_with_kwargs.pop(key, None)
