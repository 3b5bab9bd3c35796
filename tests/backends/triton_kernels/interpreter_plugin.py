"""For pytest -p in a process with TRITON_INTERPRET=1: any test of the operator, over the interpreted kernels."""

from __future__ import annotations

import contextlib

import interpreter_repairs
import pytest
import torch
from kernel_calls import blocks

_HELD = contextlib.ExitStack()


def pytest_configure(config: pytest.Config) -> None:  # noqa: ARG001
    torch.set_num_threads(1)
    interpreter_repairs.repair_bfloat16()
    interpreter_repairs.quicken()
    _HELD.enter_context(interpreter_repairs.watching_memory())
    _HELD.enter_context(blocks("cpu", 64, 64))


def pytest_unconfigure(config: pytest.Config) -> None:  # noqa: ARG001
    _HELD.close()
