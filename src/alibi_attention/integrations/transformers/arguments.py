"""What every function about a model asks of it first."""

from __future__ import annotations

import reprlib

from torch import nn


def check_module(model: object) -> None:
    """Raises ValueError for what is no module: a name, above all."""
    if not isinstance(model, nn.Module):
        raise ValueError(
            f"model: expected a model of Transformers, got {type(model).__name__} {reprlib.repr(model)}; load it "
            "first, with AutoModelForCausalLM.from_pretrained"
        )
