"""The tiny experiment, its text, and somebody who listens to it."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from alibi_attention.lab.progress import Progress

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
