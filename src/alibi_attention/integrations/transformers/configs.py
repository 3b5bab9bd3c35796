"""Configurations of a model's own: the name of its attention is written there, and is no other model's affair."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from torch import nn


def own_config(model: nn.Module, config: Any) -> Callable[[], None]:
    """Put a copy of a configuration in its place, in every module of a model that holds it.

    Transformers hands one object to every model that is built of it, without a copy. Were the name of an attention
    written there, others would drop their masks, too, without an attention that can do without.

    Returns:
        What undoes it.
    """
    own = copy.copy(config)
    holders = [module for module in model.modules() if vars(module).get("config") is config]
    for module in holders:
        vars(module)["config"] = own

    def undo() -> None:
        for module in holders:
            vars(module)["config"] = config

    return undo
