"""Fused kernels for GPUs, in Triton, which is loaded when the first of them is started."""

from __future__ import annotations

import torch
from torch import Tensor

from alibi_attention.backends.base import Gradients
from alibi_attention.backends.triton import device as devices
from alibi_attention.problem import Problem, Saved

MAX_HEAD_DIM = 256
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


class TritonBackend:
    name = "triton"

    def why_not(self, problem: Problem) -> str | None:
        architecture = devices.target(problem.device)
        if architecture is None:
            return f"runs on CUDA and ROCm devices, the tensors are on {problem.device}"
        if devices.too_old(architecture):
            return f"needs compute capability 8.0 or later, {problem.device} is {architecture}"
        if architecture == "interpreter" and problem.dtype == torch.bfloat16 and not devices.interprets_bfloat16:
            return "Triton's interpreter computes bfloat16 wrongly, float32 and float16 are right there"
        if problem.dtype not in _DTYPES:
            return f"computes in float32, the tensors are {problem.dtype}"
        if max(problem.head_dim, problem.value_dim) > MAX_HEAD_DIM:
            return f"head dimensions up to {MAX_HEAD_DIM}, got {problem.head_dim} and {problem.value_dim}"
        return devices.missing()

    def plan_shape(self, problem: Problem) -> tuple[int, ...]:
        from alibi_attention.backends.triton import calls

        return calls.plan_shape(problem)

    def forward(
        self, problem: Problem, query: Tensor, key: Tensor, value: Tensor, slopes: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        from alibi_attention.backends.triton import calls

        return calls.forward(problem, query, key, value, slopes)

    def backward(self, problem: Problem, saved: Saved, grad_out: Tensor, grad_lse: Tensor) -> Gradients:
        from alibi_attention.backends.triton import calls

        return calls.backward(problem, saved, grad_out, grad_lse)
