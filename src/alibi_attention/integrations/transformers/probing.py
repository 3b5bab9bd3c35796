"""What a few tokens tell of a model, before anybody relies on it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

PROBE = 6


@contextmanager
def in_evaluation(part: nn.Module) -> Iterator[None]:
    """As after eval(), with every module's mode put back afterwards."""
    modes = [(module, module.training) for module in part.modules()]
    part.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def probe_of(part: Any) -> Tensor:
    """(1, PROBE) token ids of the model's vocabulary, on its device."""
    device = part.get_input_embeddings().weight.device
    ids: Tensor = torch.arange(PROBE, device=device).unsqueeze(0) % part.config.vocab_size
    return ids
