"""The tiny experiment, its text, somebody who listens to it or stops it; inputs and results made by hand."""

from __future__ import annotations

import random
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from alibi_attention.lab.config import ExperimentConfig, make_config
from alibi_attention.lab.config_file import read_settings
from alibi_attention.lab.errors import RunInterrupted
from alibi_attention.lab.experiment import start_experiment
from alibi_attention.lab.held_out import HeldOut
from alibi_attention.lab.interruption import Interruption
from alibi_attention.lab.progress import Progress
from alibi_attention.lab.runs import MethodResult
from alibi_attention.lab.scores import Evaluation, LossVerdict, Score

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


def read_config_file(path: Path, flags: Mapping[str, Any] | None = None) -> ExperimentConfig:
    """The configuration of a YAML file with flags laid over it, as the commands read it."""
    return make_config({**read_settings(path), **(flags or {})})


def of_bytes(tokens: NDArray[Any]) -> HeldOut:
    """A single document of bytes."""
    return HeldOut(tokens, np.zeros(1, dtype=np.int64), np.ones(256, dtype=np.int64))


class Said(Progress):
    """Keeps what was said, and which bars were begun: description, total, done."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []
        self.bars: list[tuple[str, int, int]] = []

    def start(
        self, description: str, *, total: int, done: int = 0, tokens: int = 1, unit: str = "tokens"
    ) -> None:  # fmt: skip
        super().start(description, total=total, done=done, tokens=tokens, unit=unit)
        self.bars.append((description, total, done))

    def say(self, text: str) -> None:
        self.lines.append(text)


class Stopping(Interruption):
    """Asks to stop at a certain question."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self._left = at

    def check(self) -> None:
        self._left -= 1
        if self._left <= 0:
            raise RunInterrupted(signal.SIGTERM)


def stopped(config: ExperimentConfig, root: Path, at: int = 2) -> Path:
    """A run that was stopped in its evaluation: the first question is asked after training."""
    with pytest.raises(RunInterrupted):
        start_experiment(config, root, stop=Stopping(at))
    return root


def evaluation(name: str, title: str, *bits: float | None) -> Evaluation:
    scores = tuple(
        Score(length=256 << i, bits_per_byte=b, scored_bytes=9, note="it ends" if b is None else None)
        for i, b in enumerate(bits)
    )
    return Evaluation(
        name=name, title=title, windows=scores, usable_by_perplexity=LossVerdict(protocol="windows", length=512)
    )


def result(method: str, title: str, *bits: float | None) -> MethodResult:
    return MethodResult(
        method=method, title=title, parameters=1, position_parameters=0, trained_tokens=2, train_seconds=3,
        eval_seconds=4, evaluations=(evaluation(method, title, *bits),),
    )  # fmt: skip


RESULTS = [result("alibi", "ALiBi", 2.1294, 2.1, 2.09), result("rope", "RoPE", 2.08, 3.0, 4.6)]
