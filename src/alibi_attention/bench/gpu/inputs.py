"""What is attended over, made on the device."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from alibi_attention.bench.gpu.cases import GpuTrial
from alibi_attention.bench.gpu.gradients import ExpectedGradients, expected_gradients
from alibi_attention.bench.inputs import SEED
from alibi_attention.certificate import Certificate, certify
from alibi_attention.slopes import alibi_slopes

_ROWS = 8


@dataclass(frozen=True)
class GpuInputs:
    """(batch, heads, tokens, head_dim); in training they require gradients, and ``grad`` is that of the output."""

    query: Tensor
    key: Tensor
    value: Tensor
    slopes: Tensor
    grad: Tensor | None

    @cached_property
    def certificate(self) -> Certificate:
        """Our windows over these inputs, at the default tolerance."""
        query, key, value = (tensor.detach() for tensor in (self.query, self.key, self.value))
        return certify(query, key, self.slopes, value=value)

    @cached_property
    def expected(self) -> tuple[Tensor, Tensor]:
        """Rows to look at, and what is right there."""
        return expected_rows(self)

    @cached_property
    def expected_gradients(self) -> ExpectedGradients:
        """Places to look at in gradients, and what is right there."""
        assert self.grad is not None, "of a size in training"
        return expected_gradients(self.query, self.key, self.value, self.slopes, self.grad)


def make_gpu_inputs(trial: GpuTrial, device: str) -> GpuInputs:
    """Standard normal tensors from a fixed seed."""
    generator = torch.Generator(device).manual_seed(SEED)
    training = trial.case.mode == "training"

    def normal(tokens: int) -> Tensor:
        shape = (trial.case.batch, trial.case.heads, tokens, trial.head_dim)
        return torch.randn(shape, generator=generator, device=device, dtype=trial.case.dtype)

    query, key, value = normal(trial.queries), normal(trial.keys), normal(trial.keys)
    grad = normal(trial.queries) if training else None
    for tensor in (query, key, value):
        tensor.requires_grad_(training)
    return GpuInputs(query, key, value, alibi_slopes(trial.case.heads).to(device), grad)


def full_bias(inputs: GpuInputs) -> Tensor:
    """-m * (i - j), -inf above the diagonal, (1, heads, queries, keys) in the dtype of the query."""
    queries, keys, device = inputs.query.shape[2], inputs.key.shape[2], inputs.query.device
    bias = torch.empty(1, len(inputs.slopes), queries, keys, dtype=inputs.query.dtype, device=device)
    rows = torch.arange(keys - queries, keys, device=device)
    distance = (rows[:, None] - torch.arange(keys, device=device)).to(torch.float32)
    for head, slope in enumerate(inputs.slopes):
        # One head at a time: the distances of all of them would double the memory.
        bias[0, head] = (-slope * distance).masked_fill_(distance < 0, -torch.inf)
    return bias


def expected_rows(inputs: GpuInputs) -> tuple[Tensor, Tensor]:
    """Row numbers spread over the queries, and their outputs of the first batch element in float64."""
    queries, keys, device = inputs.query.shape[2], inputs.key.shape[2], inputs.query.device
    rows = torch.linspace(0, queries - 1, min(_ROWS, queries)).round().long().to(device)
    distance = (rows + keys - queries)[:, None] - torch.arange(keys, device=device)
    out = []
    with torch.no_grad():
        for head, slope in enumerate(inputs.slopes.double()):
            query, key, value = (tensor[0, head].double() for tensor in (inputs.query, inputs.key, inputs.value))
            scores = query[rows] @ key.T * query.shape[-1] ** -0.5 - slope * distance
            out.append(scores.masked_fill(distance < 0, -torch.inf).softmax(-1) @ value)
    return rows, torch.stack(out)
