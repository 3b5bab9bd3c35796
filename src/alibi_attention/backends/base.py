"""What a backend is."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from alibi_attention.problem import Problem, Saved


class Gradients(NamedTuple):
    """Gradients in the shapes and dtypes of the inputs; that of slopes is (batch, num_heads) for the op to reduce."""

    query: Tensor
    key: Tensor
    value: Tensor
    slopes: Tensor


class Backend(Protocol):
    """One implementation. Anything `why_not` lets through runs; nothing is approximated past the tolerance."""

    name: str

    def why_not(self, problem: Problem) -> str | None:
        """The reason this backend cannot run the problem, or None."""

    def plan_shape(self, problem: Problem) -> tuple[int, ...]:
        """Shape of the int32 plan that forward hands to backward."""

    def forward(
        self, problem: Problem, query: Tensor, key: Tensor, value: Tensor, slopes: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Output, lse and plan."""

    def backward(self, problem: Problem, saved: Saved, grad_out: Tensor, grad_lse: Tensor) -> Gradients:
        """Gradients of sum(grad_out * out) + sum(grad_lse * lse)."""


def empty_plan(device: torch.device) -> Tensor:
    return torch.empty(0, dtype=torch.int32, device=device)
