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


def what_follows(part: Any) -> tuple[torch.Size, bool]:
    """Shape of a model's first result for PROBE tokens, and whether that of one of them follows the others.

    By its gradient, which is exactly 0 at tokens that it does not follow, in any dtype and however deep the model is,
    where values differ by rounding: experts round the same tokens otherwise in other company. What is not seen is a
    choice that has no gradient, what is multiplied by 0 as yet, and what looks only beyond these tokens.
    """
    ids = probe_of(part)
    vectors: list[Tensor] = []

    def watch(_: nn.Module, __: Any, output: Tensor) -> Tensor:
        vectors.append(output.detach().requires_grad_())
        return vectors[-1]

    handle = part.get_input_embeddings().register_forward_hook(watch)
    try:
        with in_evaluation(part), torch.inference_mode(False), torch.enable_grad():
            result = part(input_ids=ids, attention_mask=torch.ones_like(ids), return_dict=True)[0]
            if result.shape[:2] != ids.shape:
                return result.shape, False
            one = PROBE // 2
            numbers = result[0, one].float().flatten()
            # No sum alone, which behind a normalization is the same whatever it follows.
            weights = torch.linspace(0.5, 1.5, numbers.numel(), device=numbers.device)
            gradients = torch.autograd.grad((numbers * weights).sum(), vectors, allow_unused=True)
    finally:
        handle.remove()
    others = torch.arange(PROBE, device=ids.device) != one
    return result.shape, any(bool((each[:, others] != 0).any()) for each in gradients if each is not None)
