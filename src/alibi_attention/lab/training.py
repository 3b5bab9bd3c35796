"""Training one method, on Lightning's engine, in a way that a pause leaves no trace in the outcome."""

from __future__ import annotations

import logging
import math
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from numpy.typing import NDArray
from torch import Tensor

from alibi_attention.lab.checkpoint import load_tensors, restore_model, restore_optimizer, save_state
from alibi_attention.lab.config import ExperimentConfig
from alibi_attention.lab.errors import LabError
from alibi_attention.lab.interruption import Interruption
from alibi_attention.lab.model import Decoder
from alibi_attention.lab.progress import Progress

BITS_PER_NAT = 1.0 / math.log(2.0)

# The cosine ends at this share of the peak.
FINAL_RATE = 0.1
BETAS = (0.9, 0.99)
LOG_EVERY = 10

_LIGHTNING_INSIDE = (r"`isinstance\(treespec, LeafSpec\)` is deprecated",)


class Batches:
    """Training batches number ``start`` to ``stop``; batch k depends on the seed and on k, and on nothing before it.

    Yields:
        (batch_size, length + 1) int64, windows drawn anywhere in the stream.
    """

    def __init__(self, stream: NDArray[np.uint8], config: ExperimentConfig, start: int, stop: int) -> None:
        self._stream = stream
        self._config = config
        self._start = start
        self._stop = stop

    def __len__(self) -> int:
        return self._stop - self._start

    def __iter__(self) -> Iterator[Tensor]:
        return map(self.batch, range(self._start, self._stop))

    def batch(self, k: int) -> Tensor:
        config = self._config
        # A counter-based generator: keyed, so that no state has to be carried from one batch to the next.
        generator = np.random.Generator(np.random.Philox(key=[config.seed, k]))
        starts = generator.integers(0, len(self._stream) - config.length, size=config.batch_size)
        windows = self._stream[starts[:, None] + np.arange(config.length + 1)]
        return torch.from_numpy(windows.astype(np.int64))


def learning_rate_factor(step: int, *, steps: int, warmup: int) -> float:
    """Share of the peak rate at a step: linear up over ``warmup`` steps, then half a cosine down to `FINAL_RATE`."""
    if step < warmup:
        return (step + 1) / (warmup + 1)
    done = (step - warmup) / max(1, steps - warmup)
    return FINAL_RATE + (1.0 - FINAL_RATE) * 0.5 * (1.0 + math.cos(math.pi * min(done, 1.0)))


class _Task(L.LightningModule):
    """Next-byte prediction. Learning rates follow the number of steps since the very beginning."""

    def __init__(self, decoder: Decoder, config: ExperimentConfig, start: int, state: dict[str, Tensor]) -> None:
        super().__init__()
        self.decoder = decoder
        self._config = config
        self._first = start
        self._state = state

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        del batch_idx
        return self.decoder.nats(batch[:, :-1], batch[:, 1:]).mean()

    def configure_optimizers(self) -> Any:
        config = self._config
        matrices = [p for p in self.decoder.parameters() if p.dim() >= 2]
        others = [p for p in self.decoder.parameters() if p.dim() < 2]
        optimizer = torch.optim.AdamW(
            [
                {"params": matrices, "weight_decay": config.weight_decay},
                {"params": others, "weight_decay": 0.0},
            ],
            lr=config.learning_rate,
            betas=BETAS,
        )
        restore_optimizer(self.decoder, optimizer, self._state)

        def factor(steps_taken: int) -> float:
            return learning_rate_factor(self._first + steps_taken, steps=config.steps, warmup=config.warmup)

        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class _Keeper(L.Callback):
    """After each step: report, keep a resumable state when it is due, stop when asked."""

    def __init__(
        self, config: ExperimentConfig, path: Path, start: int, seconds: float, progress: Progress, stop: Interruption
    ) -> None:
        self._config = config
        self._path = path
        self.step = start
        self._seconds_before = seconds
        self._began = time.perf_counter()
        self._progress = progress
        self._stop = stop

    @property
    def seconds(self) -> float:
        return self._seconds_before + time.perf_counter() - self._began

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        del batch, batch_idx
        self.step += 1
        note = None
        if self.step % LOG_EVERY == 0:
            bits = float(outputs["loss"]) * BITS_PER_NAT
            note = f"{bits:.3f} bits per byte"
            self._refuse_divergence(bits)
            for logger in trainer.loggers:
                logger.log_metrics({"train/bits_per_byte": bits}, step=self.step)
        self._progress.advance(note=note)
        due = self.step % self._config.checkpoint_every == 0 or self.step == self._config.steps
        if due or self._stop.requested is not None:
            assert isinstance(pl_module, _Task)
            header = {"step": self.step, "seconds": self.seconds}
            save_state(self._path, pl_module.decoder, trainer.optimizers[0], header)
        if self._stop.requested is not None:
            trainer.should_stop = True

    def _refuse_divergence(self, bits: float) -> None:
        if not math.isfinite(bits):
            raise LabError(
                "learning_rate",
                expected="a rate at which the loss stays finite",
                got=f"a loss of {bits} at step {self.step} with {self._config.learning_rate:g}",
                remedy="start a new run with a lower rate",
            )


def train(
    decoder: Decoder,
    stream: NDArray[np.uint8],
    config: ExperimentConfig,
    *,
    checkpoint: Path,
    log_folder: Path,
    progress: Progress,
    stop: Interruption,
    label: str,
) -> float:
    """Train a decoder in place, from the state in ``checkpoint`` if there is one.

    Args:
        decoder: freshly built.
        stream: (bytes,) of training text.
        config: of the experiment.
        checkpoint: where the resumable state is read and kept.
        log_folder: of the loss curve, for TensorBoard.
        progress, stop: told of each step; asked whether to go on.
        label: what the progress bar is called.

    Returns:
        Seconds of training, those before a pause included.

    Raises:
        RunInterrupted: when ``stop`` was requested; the state is then in ``checkpoint``.
        LabError: when the loss is no longer finite.
    """
    state, start, seconds = _load(checkpoint, decoder)
    if start == config.steps:
        return seconds
    progress.start(label, total=config.steps, done=start, tokens=config.batch_size * config.length)
    keeper = _Keeper(config, checkpoint, start, seconds, progress, stop)
    with _quiet():
        trainer = L.Trainer(
            accelerator="gpu" if config.device == "cuda" else "cpu",
            devices=1,
            max_steps=config.steps - start,
            gradient_clip_val=config.clip,
            callbacks=[keeper],
            # Nothing goes through Lightning's own logging, and a larger number makes it warn of short runs.
            log_every_n_steps=1,
            logger=TensorBoardLogger(log_folder.parent, name="", version=log_folder.name),
            enable_checkpointing=False,
            enable_model_summary=False,
            enable_progress_bar=False,
        )
        task = _Task(decoder, config, start, state)
        try:
            trainer.fit(task, Batches(stream, config, start, config.steps))
        except SystemExit as end:
            # How Lightning passes on an interrupt in the middle of a step, and SIGTERM, which was noted here too.
            if isinstance(end.__context__, KeyboardInterrupt):
                raise KeyboardInterrupt from None
            stop.check()
            raise
    stop.check()
    return keeper.seconds


def _load(checkpoint: Path, decoder: Decoder) -> tuple[dict[str, Tensor], int, float]:
    if not checkpoint.exists():
        return {}, 0, 0.0
    tensors, header = load_tensors(checkpoint)
    restore_model(decoder, tensors)
    return tensors, int(header["step"]), float(header["seconds"])


@contextmanager
def _quiet() -> Iterator[None]:
    """Without Lightning's announcements, and without warnings about its own inside that nobody here can act on."""
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            for message in _LIGHTNING_INSIDE:
                warnings.filterwarnings("ignore", message=message)
            yield
    finally:
        logger.setLevel(level)
