"""Whether values can be looked at, and what kind of number one is."""

from __future__ import annotations

import numbers
import os
import sys
from typing import Any

import torch
from torch import Tensor

# Tracers whose tensors are shapes alone.
_WITHOUT_VALUES = (torch._C._TorchDispatchModeKey.FAKE, torch._C._TorchDispatchModeKey.PROXY)
_PLAIN = {bool, int, float, type(None)}


def values_can_be_read(where: Tensor | torch.device) -> bool:
    """Whether looking at values costs no synchronisation; ALIBI_DEBUG=1 accepts the cost on any device.

    Args:
        where: the tensor in question; or a device, for tensors that are still to be made: under a transform of
            torch.func these have no values, while one that the transform does not wrap has.
    """
    if torch.compiler.is_compiling():
        return False
    device = where.device if isinstance(where, Tensor) else where
    if isinstance(where, Tensor):
        if torch._C._functorch.is_functorch_wrapped_tensor(where):
            return False
    elif torch._C._are_functorch_transforms_active():
        return False
    if any(torch._C._get_dispatch_mode(mode) is not None for mode in _WITHOUT_VALUES):
        return False
    return device.type == "cpu" or os.environ.get("ALIBI_DEBUG") == "1"


def plain(value: Any) -> Any:
    """A number or truth value of numpy's, or of another kind, as Python's own; anything else as it is.

    Operators take Python's alone. Tensors stay tensors: to look at one would make a GPU be waited for.
    """
    if type(value) in _PLAIN:
        return value
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        return float(value)
    numpy = sys.modules.get("numpy")
    return bool(value) if numpy is not None and isinstance(value, numpy.bool_) else value


def is_integer(value: object) -> bool:
    return isinstance(value, (int, torch.SymInt)) and not isinstance(value, bool)


def is_number(value: object) -> bool:
    return isinstance(value, (int, float, torch.SymInt, torch.SymFloat)) and not isinstance(value, bool)


def shape_of(tensor: Tensor) -> str:
    return str(tuple(tensor.shape))
