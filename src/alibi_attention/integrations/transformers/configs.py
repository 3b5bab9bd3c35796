"""Whose configuration it is, in which the name of an attention is written."""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable
from typing import Any

from torch import nn


def own_config(model: nn.Module, config: Any) -> Callable[[], None]:
    """Where models besides this one hold its configuration, put a copy in its place.

    Transformers hands one object to every model that is built of it, without a copy. Were the name of our attention
    written there, the others would drop their masks as well, without an attention that can do without.

    Args:
        model: or a part of one; modules around it are taken for its own.
        config: that is about to change.

    Returns:
        What undoes it.
    """
    inside = set(map(id, model.modules()))
    ours: list[nn.Module] = []
    others: list[nn.Module] = []
    for holder in _holders(config):
        belongs = id(holder) in inside or any(id(each) in inside for each in holder.modules())
        (ours if belongs else others).append(holder)
    if not others:
        return lambda: None
    own = copy.copy(config)

    def put(one: Any) -> None:
        for holder in ours:
            vars(holder)["config"] = one

    put(own)
    return lambda: put(config)


def _holders(config: Any) -> list[nn.Module]:
    """All modules there are whose configuration is this object."""
    referrers = gc.get_referrers(config)
    namespaces = [each for each in referrers if isinstance(each, dict) and each.get("config") is config]
    # Of some versions of Python an object refers to what its namespace holds itself.
    found = [each for each in (*referrers, *gc.get_referrers(*namespaces)) if isinstance(each, nn.Module)]
    return list({id(each): each for each in found if vars(each).get("config") is config}.values())
