from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lab_cases import TINY, write_texts

from alibi_attention.lab.config import ExperimentConfig, make_config
from alibi_attention.lab.experiment import start_experiment


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
