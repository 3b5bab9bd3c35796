"""A configuration of a model's own, in which the name of an attention is written."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from torch import nn

# Of a module with a copy: the configuration that it had.
_GIVEN = "_alibi_config"


def own_config(model: nn.Module, config: Any) -> Callable[[], None]:
    """Put a copy of a configuration in its place, in all modules of a model that have it.

    Transformers hands one object to every model that is built of it, without a copy. Were the name of our attention
    written there, the others would drop their masks as well, without an attention that can do without. Who they are
    cannot be found out for certain, so that a copy is made in any case.

    Args:
        model: or a part of one; a module around it keeps what it has.
        config: that is about to change.

    Returns:
        What undoes it.
    """
    modules = list(model.modules())
    ours = [module for module in modules if vars(module).get("config") is config]
    # A part of the model may have one already.
    copies = [vars(module)["config"] for module in modules if vars(module).get(_GIVEN) is config]
    own = copies[0] if copies else copy.copy(config)
    before = [(module, vars(module).get(_GIVEN)) for module in ours]
    for module in ours:
        vars(module)["config"] = own
        vars(module).setdefault(_GIVEN, config)

    def undo() -> None:
        for module, given in before:
            vars(module)["config"] = config
            if given is None:
                del vars(module)[_GIVEN]

    return undo


def give_back_config(model: nn.Module) -> None:
    """Undo `own_config`, except where the copy has come to say something else: it is then the model's."""
    for module in model.modules():
        given = vars(module).pop(_GIVEN, None)
        # Not ==, which looks at declared keys alone.
        if given is not None and vars(given) == vars(module.config):
            vars(module)["config"] = given
