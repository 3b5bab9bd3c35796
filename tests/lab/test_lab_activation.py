"""The decoder's activations."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from alibi_attention.lab.config import ExperimentConfig, make_config
from alibi_attention.lab.errors import LabError
from alibi_attention.lab.model import build_decoder


def test_runs_written_before_there_was_a_choice_have_gelu() -> None:
    assert make_config({}).activation == "gelu"
    assert ExperimentConfig(heads=2, width=8).activation == "gelu"


def test_each_gelu_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    gelu = F.gelu
    monkeypatch.setattr(
        F, "gelu", lambda x, approximate: (seen.append(approximate), gelu(x, approximate=approximate))[1]
    )
    outs = []
    for name in ("gelu", "gelu-tanh"):
        config = make_config({"layers": 1, "heads": 2, "width": 16, "activation": name})
        with torch.no_grad():
            outs.append(build_decoder(config, "alibi")(torch.arange(9)[None]))
    assert seen == ["none", "tanh"]
    assert 0 < (outs[0] - outs[1]).abs().max() < 1e-2


def test_another_is_refused() -> None:
    with pytest.raises(LabError, match="activation: expected 'gelu', 'gelu-tanh' or 'relu', got 'swish'"):
        make_config({"activation": "swish"})
