"""What checks that several processes run together have in common."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

PROCESSES = 4
CHECKS: dict[str, Callable[[int], None]] = {}

# Of the largest entry: a few roundings of the dtype.
CLOSE = {torch.float64: 1e-13, torch.float32: 4e-6, torch.bfloat16: 2e-2}


def check(function: Callable[[int], None]) -> Callable[[int], None]:
    CHECKS[function.__name__] = function
    return function


# The same of sums over all rows, whose terms cancel; slopes are float32 in any case.
SUMS = {torch.float64: 1e-6, torch.float32: 2e-5, torch.bfloat16: 2e-2}


def close(got: Tensor, want: Tensor, dtype: torch.dtype | float, what: str) -> None:
    size = max(want.abs().max().item(), 1e-3) if want.numel() else 1.0
    off = (got.double() - want.double()).abs().max().item() / size if want.numel() else 0.0
    assert got.shape == want.shape, (what, got.shape, want.shape)
    most = dtype if isinstance(dtype, float) else CLOSE[dtype]
    assert off <= most, f"{what}: off by {off:.2g} of its largest, allowed {most:.2g}"


def refuses(error: type[Exception], text: str, call: Callable[[], Any]) -> None:
    found = None
    try:
        call()
    except error as raised:
        found = str(raised)
    assert found is not None, f"expected {error.__name__} with {text!r}"
    assert text in found, found


def parts(length: int, generator: torch.Generator, processes: int = PROCESSES) -> list[slice]:
    """A length cut anywhere, into parts of one token at least."""
    cuts = (torch.randperm(length - 1, generator=generator)[: processes - 1] + 1).sort().values.tolist()
    bounds = [0, *cuts, length]
    return [slice(a, b) for a, b in itertools.pairwise(bounds)]
