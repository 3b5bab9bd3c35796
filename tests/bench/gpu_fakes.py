"""Small sizes and contestants of known behaviour, for the tests of what measures on a GPU."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from alibi_attention.bench.gpu.cases import GPU_CASES, GpuTrial
from alibi_attention.bench.gpu.trial import GpuSettings
from alibi_attention.ops import alibi_attention

SETTINGS = GpuSettings(rounds=3, least=0.0, backend="blocked")


def small(name: str = "gpu-forward-dense", keys: int = 128, **changes: Any) -> GpuTrial:
    settings = {"heads": 2, "dtype": torch.float32, "peers": ("sdpa-plain",), "targets": {}} | changes
    return GpuTrial(replace(GPU_CASES[name], **settings), 16, keys)


def plain(_: GpuTrial, inputs: Any) -> Callable[[], torch.Tensor]:
    """A peer that is right, on the processor."""
    tensors = (inputs.query, inputs.key, inputs.value, inputs.slopes)
    return lambda: alibi_attention(*tensors, tolerance=0.0, backend="blocked")


def wrong(_: GpuTrial, inputs: Any) -> Callable[[], torch.Tensor]:
    return lambda: inputs.value + 1.0


def failing(*_: Any) -> Callable[[], torch.Tensor]:
    raise RuntimeError("no such kernel\nand a long story")


def failing_later() -> Callable[..., Any]:
    calls = []

    def prepare(trial: GpuTrial, inputs: Any) -> Callable[[], torch.Tensor]:
        right = plain(trial, inputs)

        def attend() -> torch.Tensor:
            calls.append(1)
            if len(calls) > 4:
                raise torch.OutOfMemoryError("out of memory")
            return right()

        return attend

    return prepare


def fake_peers() -> dict[str, Callable[..., Any]]:
    """How each is prepared, by name."""
    return {"sdpa-plain": plain, "wrong": wrong, "failing": failing, "failing later": failing_later()}
