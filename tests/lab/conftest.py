from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from alibi_attention.lab.config import ExperimentConfig, make_config
from alibi_attention.lab.experiment import start_experiment

WORDS = ["the", "slope", "of", "each", "head", "falls", "by", "half", "so", "near", "keys", "weigh", "more"]

TINY: dict[str, Any] = {
    "length": 16,
    "eval_lengths": (16, 24, 64),
    "eval_tokens": 256,
    "layers": 1,
    "heads": 2,
    "width": 16,
    "steps": 6,
    "batch_size": 2,
    "warmup": 2,
    "checkpoint_every": 2,
}


def write_texts(folder: Path) -> Path:
    """Twelve short texts, all different, the same on every call."""
    folder.mkdir()
    for number in range(12):
        words = random.Random(number).choices(WORDS, k=120)
        (folder / f"{number}.txt").write_text(" ".join(words), encoding="utf-8")
    return folder


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Models this small gain nothing from more threads, and lose much where tests run side by side."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    return write_texts(tmp_path / "texts")


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of the tiny experiment, never interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    config = make_config({**TINY, "text": (str(write_texts(folder / "texts")),)})
    start_experiment(config, folder / "run")
    return folder / "run"


@pytest.fixture
def tiny(texts: Path) -> Callable[..., ExperimentConfig]:
    """Makes configurations of an experiment that takes a second."""

    def make(**changes: Any) -> ExperimentConfig:
        return make_config({**TINY, "text": (str(texts),), **changes})

    return make
