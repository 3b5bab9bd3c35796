"""Hooks before and after the forward of modules, and taking them out again."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from torch import nn

Arguments = tuple[tuple[Any, ...], dict[str, Any]]

# What a module whose arguments are changed calls them, in their order.
NAMES = "_alibi_names"


def hook_arguments(module: nn.Module, hook: Callable[..., Arguments]) -> None:
    """Have ``hook(module, args, kwargs)`` change the arguments of forward; it may ask for `named_arguments`."""
    name_arguments(module)
    module.register_forward_pre_hook(hook, with_kwargs=True)


def name_arguments(module: nn.Module) -> None:
    """Remember what the module's forward calls its arguments, for `named_arguments`."""
    vars(module)[NAMES] = tuple(inspect.signature(module.forward).parameters)


def named_arguments(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    return {**dict(zip(vars(module)[NAMES], args, strict=False)), **kwargs}


def remove_hooks(module: nn.Module, *functions: Callable[..., Any]) -> None:
    """Remove every hook before or after forward that is one of the functions.

    By what they run: a module that was copied since has no handle of its own.
    """
    for hooks in (module._forward_hooks, module._forward_pre_hooks):
        for key, hook in list(hooks.items()):
            if hook in functions:
                del hooks[key]
                module._forward_pre_hooks_with_kwargs.pop(key, None)
                module._forward_hooks_always_called.pop(key, None)
