"""The one place where kernels are started."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

import torch

from alibi_attention.backends.triton.configs import Config


def run(kernel: Any, grid: tuple[int, ...], config: Config, device: torch.device, arguments: Mapping[str, Any]) -> None:
    """Starts ``kernel`` with arguments by name, constants among them, on the current stream of ``device``."""
    on_device = torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()
    with on_device:
        kernel[grid](**arguments, **config.constants, num_warps=config.num_warps, num_stages=config.num_stages)
