from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from alibi_attention.lab.config import ExperimentConfig, make_config
from alibi_attention.lab.errors import LabError


def test_lengths_double_five_times_by_default() -> None:
    assert make_config({}).eval_lengths == (256, 512, 1024, 2048, 4096, 8192)
    assert make_config({"length": 100}).eval_lengths == (100, 200, 400, 800, 1600, 3200)
    assert make_config({"eval_lengths": (10, 20)}).eval_lengths == (10, 20)


def test_is_frozen_and_survives_json() -> None:
    config = make_config({"eval_lengths": (8, 9), "text": ("a", "b")})
    assert make_config(config.model_dump(mode="json")) == config
    with pytest.raises(ValidationError, match="frozen"):
        config.length = 2  # type: ignore[misc]


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"length": 0}, "length: expected at least 1, got 0; raise it to 1 or more"),
        ({"eval_lengths": (64, 32)}, "eval_lengths: expected ascending lengths of at least 1, got 64,32; "
         "list each length once, shortest first, such as 256,512,1024"),
        ({"eval_lengths": (0, 32)}, "eval_lengths: expected ascending lengths of at least 1, got 0,32; "
         "list each length once, shortest first, such as 256,512,1024"),
        ({"methods": ("alibi", "rotten")}, "methods: expected names of position methods, got 'rotten'; "
         "choose from alibi, rope, sinusoidal"),
        ({"methods": ("rope", "rope")}, "methods: expected one or more names, each once, got ['rope', 'rope']; "
         "choose from alibi, rope, sinusoidal"),
        ({"methods": ()}, "methods: expected one or more names, each once, got []; "
         "choose from alibi, rope, sinusoidal"),
        ({"width": 100, "heads": 8}, "width: expected a multiple of twice the heads, 16, so that each head has an "
         "even width, got 100; try 96"),
        ({"held_out_share": 0.9}, "held_out_share: expected a share above 0 and up to 0.5, got 0.9; "
         "keep enough for training; 0.1 is the default"),
        ({"learning_rate": -1.0}, "learning_rate: expected a number above 0, got -1.0; "
         "leave it out to take the default"),
        ({"device": "tpu"}, "device: expected 'cpu' or 'cuda', got 'tpu'; choose one of these"),
        ({"speed": 3}, "speed: expected a known setting, got this name; known are "
         + ", ".join(ExperimentConfig.model_fields)),
    ],
)  # fmt: skip
def test_refusals(values: dict[str, Any], text: str) -> None:
    with pytest.raises(LabError) as error:
        make_config(values)
    assert str(error.value) == text


@pytest.mark.parametrize("values", [{"learning_rate": float("nan")}, {"clip": float("inf")}, {"steps": 1.5}])
def test_refuses_what_is_no_proper_number(values: dict[str, Any]) -> None:
    name = next(iter(values))
    with pytest.raises(LabError, match=f"^{name}: expected "):
        make_config(values)
