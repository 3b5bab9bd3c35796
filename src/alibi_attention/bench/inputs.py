"""What is attended over."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from alibi_attention.bench.case import Trial
from alibi_attention.slopes import alibi_slopes

SEED = 0
# Heads in a group where a whole layer does not fit.
_GROUP = 8


@dataclass(frozen=True)
class Group:
    """Some heads of a problem: tensors (1, heads, tokens, head_dim) and slopes (heads,).

    In training the tensors require gradients, and ``grad`` is the gradient of the output.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    slopes: Tensor
    grad: Tensor | None

    @cached_property
    def row_bias(self) -> Tensor:
        """m * j, (1, heads, 1, keys) float32: causal ALiBi up to a constant for each row, which softmax ignores."""
        positions = torch.arange(self.key.shape[2], dtype=torch.float32)
        return (self.slopes[:, None] * positions)[None, :, None]

    @cached_property
    def full_bias(self) -> Tensor:
        """-m * (i - j), -inf above the diagonal, (1, heads, queries, keys) in the dtype of the query."""
        queries, keys = self.query.shape[2], self.key.shape[2]
        bias = torch.empty(1, len(self.slopes), queries, keys, dtype=self.query.dtype)
        # One head at a time: the distances of all of them would double the memory.
        distance = torch.arange(keys - queries, keys)[:, None] - torch.arange(keys)
        hidden = distance < 0
        distance = distance.to(torch.float32)
        for head, slope in enumerate(self.slopes):
            bias[0, head] = (-slope * distance).masked_fill_(hidden, -torch.inf)
        return bias


@dataclass(frozen=True)
class Inputs:
    """All heads of a problem, in one group or several.

    Attributes:
        groups: in several, every group has its own slopes over one and the same tensors; or the layers of a model.
        note: how the inputs differ from the plain description, or "".
    """

    groups: tuple[Group, ...]
    note: str


def make_inputs(trial: Trial, memory_budget: int) -> Inputs:
    """Standard normal tensors from a fixed seed, whole where ``memory_budget`` (bytes) allows it; or a model's."""
    if trial.model is not None:
        return _trained(trial, trial.model)
    slopes = alibi_slopes(trial.case.heads)
    size = trial.case.dtype.itemsize * trial.head_dim * trial.case.heads * (2 * trial.queries + 2 * trial.keys)
    if size <= memory_budget or trial.case.heads <= _GROUP:
        return Inputs((_group(trial, slopes),), "")
    first = _group(trial, slopes[:_GROUP])
    groups = [
        first if start == 0 else Group(first.query, first.key, first.value, slopes[start : start + _GROUP], first.grad)
        for start in range(0, trial.case.heads - trial.case.heads % _GROUP, _GROUP)
    ]
    if trial.case.heads % _GROUP:
        groups.append(_group(trial, slopes[len(groups) * _GROUP :]))
    return Inputs(tuple(groups), f"in {len(groups)} groups of heads over the same tensors, to fit into memory")


def _group(trial: Trial, slopes: Tensor) -> Group:
    generator = torch.Generator().manual_seed(SEED)
    training = trial.case.mode == "training"

    def normal(tokens: int) -> Tensor:
        tensor = torch.randn(1, len(slopes), tokens, trial.head_dim, generator=generator)
        return tensor.to(trial.case.dtype)

    query, key, value = normal(trial.queries), normal(trial.keys), normal(trial.keys)
    grad = normal(trial.queries) if training else None
    for tensor in (query, key, value):
        tensor.requires_grad_(training)
    return Group(query, key, value, slopes, grad)


def _trained(trial: Trial, model: Path) -> Inputs:
    """A group for every layer of the model."""
    from alibi_attention.bench.trained import layers_of

    layers, slopes, note = layers_of(model, trial.keys)
    generator = torch.Generator().manual_seed(SEED)
    training = trial.case.mode == "training"
    groups = []
    for layer in layers:
        query, key, value = (tensor.requires_grad_(training) for tensor in layer)
        grad = torch.randn(query.shape, generator=generator) if training else None
        groups.append(Group(query, key, value, slopes, grad))
    return Inputs(tuple(groups), note)


def available_memory() -> int:
    """Memory that can be had without swapping, in bytes; all of it where the system does not say."""
    try:
        with open("/proc/meminfo", encoding="ascii") as lines:
            for line in lines:
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    return total_memory()


def total_memory() -> int:
    """Physical memory in bytes."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
