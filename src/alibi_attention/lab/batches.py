"""Which tokens each part of each training step sees."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from alibi_attention.lab.config import ExperimentConfig
from alibi_attention.lab.masking import Masker
from alibi_attention.lab.passages import RecallMixer


class Batches:
    """Training batches of steps ``start`` to ``stop``; part k depends on the seed and on k, and on nothing before it.

    A step has ``config.accumulate`` parts. Where several processes train together each takes its share of the rows.

    Args:
        stream: (tokens,) of training text.
        config: of the experiment.
        start, stop: steps.
        mixer: writes key-value passages into windows; none by default.
        masker: hides tokens of windows; none by default.

    Yields:
        (batch_size / processes, length + 1) int64, windows drawn anywhere in the stream; with a masker what it makes of
        them, (batch_size / processes, 2, length).
    """

    def __init__(
        self, stream: NDArray[Any], config: ExperimentConfig, start: int, stop: int, mixer: RecallMixer | None = None,
        masker: Masker | None = None,
    ) -> None:  # fmt: skip
        self._stream = stream
        self._config = config
        self.first = start * config.accumulate
        self._end = stop * config.accumulate
        self._mixer = mixer
        self._masker = masker

    def __len__(self) -> int:
        return self._end - self.first

    def __iter__(self) -> Iterator[Tensor]:
        rank, processes = 0, 1
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            rank, processes = torch.distributed.get_rank(), torch.distributed.get_world_size()
        return (self.batch(k)[rank::processes] for k in range(self.first, self._end))

    def batch(self, k: int) -> Tensor:
        config = self._config
        # A counter-based generator: keyed, so that no state has to be carried from one batch to the next.
        generator = np.random.Generator(np.random.Philox(key=np.array([config.seed, k], dtype=np.uint64)))
        starts = generator.integers(0, len(self._stream) - config.length, size=config.batch_size)
        windows = self._stream[starts[:, None] + np.arange(config.length + 1)].astype(np.int64)
        if self._mixer is not None:
            windows = self._mixer.mix(windows, generator)
        tokens = torch.from_numpy(windows)
        return tokens if self._masker is None else self._masker.hide(tokens[:, :-1], generator)

    def __getstate__(self) -> dict[str, Any]:
        state = dict(self.__dict__)
        stream = self._stream
        if isinstance(stream, np.memmap):
            # For another process: where the file is, not what is in it. Where a user has deleted it the mapping still
            # holds the text, and that is passed on.
            state["_stream"] = (stream.filename, stream.dtype) if _still_there(stream) else np.array(stream)
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        if isinstance(state["_stream"], tuple):
            name, dtype = state["_stream"]
            state["_stream"] = np.memmap(name, dtype=dtype, mode="r")
        self.__dict__.update(state)


def _still_there(stream: np.memmap[Any, Any]) -> bool:
    """Whether the file of a mapping is where it was, for another process to map."""
    try:
        return os.stat(str(stream.filename)).st_size == stream.nbytes
    except OSError:
        return False
