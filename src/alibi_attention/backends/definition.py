"""The reference as a backend: every score is built, on any device. O(length^2) memory."""

from __future__ import annotations

from torch import Tensor

from alibi_attention.backends.base import Gradients, empty_plan
from alibi_attention.problem import Problem, Saved
from alibi_attention.reference import reference_attention, reference_gradients


class ReferenceBackend:
    name = "reference"

    def why_not(self, problem: Problem) -> str | None:  # noqa: ARG002
        return None

    def plan_shape(self, problem: Problem) -> tuple[int, ...]:  # noqa: ARG002
        return (0,)

    def forward(
        self, problem: Problem, query: Tensor, key: Tensor, value: Tensor, slopes: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        out, lse = reference_attention(problem, query, key, value, slopes)
        return out, lse, empty_plan(problem.device)

    def backward(self, problem: Problem, saved: Saved, grad_out: Tensor, grad_lse: Tensor) -> Gradients:
        return Gradients(*reference_gradients(problem, saved, grad_out, grad_lse))
