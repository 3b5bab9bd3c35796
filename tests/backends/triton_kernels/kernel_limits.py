"""How far a result of the kernels may be off, and what a check says that finds it further."""

from __future__ import annotations

from typing import Any

import torch
from kernel_calls import Call
from operator_budget import check as within_budget
from torch import Tensor

UNIT = {torch.float32: 2.0**-23, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-10}


def compare(call: Call, **changes: Any) -> None:
    """Output, lse and all gradients against the definition in float64, by the budget of the operator's own suite."""
    within_budget(call, call.run(**changes), call.oracle())


def within(what: str, measured: Tensor | float, limit: float) -> None:
    """Both numbers are in the failure: a limit that is too tight must be told from a result that is wrong."""
    found = float(measured)
    assert found <= limit, f"{what}: {found:.3g}, allowed {limit:.3g} (x{found / limit if limit else float('inf'):.3g})"
