"""What `generate` feeds an enabled model that was given a cache."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import nn

_NAME = "prepare_inputs_for_generation"


def watch_feeding(part: nn.Module) -> None:
    """Have `_refuse_fed_again` see what `generate` feeds at each step; whoever put a method over it is left alone."""
    if hasattr(part, _NAME) and _NAME not in vars(part):
        # Bound so, it is copied and pickled with the model.
        vars(part)[_NAME] = partial(_refuse_fed_again, part)


def forget_feeding(part: nn.Module) -> None:
    """Undo `watch_feeding`."""
    if getattr(vars(part).get(_NAME), "func", None) is _refuse_fed_again:
        del vars(part)[_NAME]


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
