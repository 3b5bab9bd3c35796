"""The curve of a training for TensorBoard, which the training can do without."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from alibi_attention.lab.progress import Progress


class Curve:
    """Numbers by step. Where they cannot be written, on a full disk say, that is said once, and no more are.

    Args:
        folder: gets the files of TensorBoard.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._progress = Progress()
        self._writer: Any = None
        self._heard: Callable[[threading.ExceptHookArgs], object] | None = None

    def open(self, progress: Progress) -> None:
        """Begin; ``progress`` is told where that, or writing from then on, fails."""
        from torch.utils.tensorboard import SummaryWriter

        self._progress = progress
        # What fails in the writer's own thread is raised here as well, and its stack says nothing to anybody.
        self._heard, threading.excepthook = threading.excepthook, self._hear
        with self._doing_without():
            self._writer = SummaryWriter(str(self._folder))

    def write(self, values: Mapping[str, float], step: int) -> None:
        with self._doing_without():
            if self._writer is not None:
                for name, value in values.items():
                    self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Write what is left, if it can be written; nothing where it is not open."""
        with self._doing_without():
            if self._writer is not None:
                self._writer.flush()
                self._writer.close()
        self._writer = None
        if self._heard is not None:
            threading.excepthook, self._heard = self._heard, None

    @contextmanager
    def _doing_without(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self._writer = None
            self._progress.remark(
                f"The curve for TensorBoard ends: {self._folder} cannot be written ({error.strerror or error}). "
                "Training goes on without it."
            )

    def _hear(self, what: threading.ExceptHookArgs) -> None:
        if not issubclass(what.exc_type, OSError) and self._heard is not None:
            self._heard(what)
