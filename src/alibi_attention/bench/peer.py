"""What a peer is: another way to the same attention, or a bound on it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from alibi_attention.bench.case import Mode, Trial
from alibi_attention.bench.inputs import Group, Inputs

Attend = Callable[[], Tensor]


@dataclass(frozen=True)
class Peer:
    """One contestant beside the library's own backends.

    Attributes:
        name: on the command line and in files.
        title: what it is, in words.
        prepare: (trial, group) to a function that computes the output, (1, heads, queries, head_dim) or whatever the
            layer gives; what it needs beforehand (a bias, a compiled kernel) is made here, outside the timing.
        exact: whether its scores stay exact at long range.
        alibi: whether it computes ALiBi at all.
        matrices: by mode, how many float32 matrices of all scores it holds at once.
        refuses: the reason it cannot run a trial, or None; memory is looked after here.
        convert: what the group is made into before the clock starts.
    """

    name: str
    title: str
    prepare: Callable[[Trial, Group], Attend]
    exact: bool = True
    alibi: bool = True
    matrices: dict[Mode, int] = field(default_factory=dict)
    refuses: Callable[[Trial], str | None] = lambda trial: None  # noqa: ARG005
    convert: Callable[[Group], Group] = lambda group: group

    def why_not(self, trial: Trial, memory_budget: int) -> str | None:
        """The reason this peer cannot run the trial within ``memory_budget`` (bytes), or None."""
        need = self.matrices.get(trial.case.mode, 0) * trial.score_bytes
        if need > memory_budget:
            shape = f"({trial.case.heads}, {trial.queries}, {trial.keys})"
            return (
                f"holds {self.matrices[trial.case.mode]} matrices of {shape}, {need / 2**30:.1f} GiB, "
                f"over the memory budget of {memory_budget / 2**30:.1f} GiB"
            )
        return self.refuses(trial)

    def make(self, trial: Trial, inputs: Inputs) -> Callable[[], Any]:
        """The call that is timed: outputs of all groups, or their gradients in training."""
        groups = tuple(self.convert(group) for group in inputs.groups)
        return timed_call(trial, replace(inputs, groups=groups), partial(self.prepare, trial))


def timed_call(trial: Trial, inputs: Inputs, prepare: Callable[[Group], Attend]) -> Callable[[], Any]:
    """One call over every group of the inputs: outputs, or gradients of (query, key, value) in training."""
    prepared = [(prepare(group), group) for group in inputs.groups]
    if trial.case.mode == "training":
        calls: list[Callable[[], Any]] = [partial(_gradients, attend, group) for attend, group in prepared]
    else:
        calls = [attend for attend, _ in prepared]
    if len(calls) == 1:
        return calls[0]

    def all_groups() -> Any:
        first, *rest = calls
        result = first()
        for call in rest:
            call()
        return result

    return all_groups


def _gradients(attend: Attend, group: Group) -> tuple[Tensor, ...]:
    return torch.autograd.grad(attend(), (group.query, group.key, group.value), group.grad)
