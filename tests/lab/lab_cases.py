"""The tiny experiment, and its text."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

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
