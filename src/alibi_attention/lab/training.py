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
from numpy.typing import NDArray
from torch import Tensor
from torch.multiprocessing.spawn import ProcessExitedException, ProcessRaisedException

from alibi_attention.lab.batches import Batches
from alibi_attention.lab.checkpoint import load_tensors, restore_model, restore_optimizer, save_state
from alibi_attention.lab.config import ExperimentConfig
from alibi_attention.lab.curve import Curve
from alibi_attention.lab.errors import LabError
from alibi_attention.lab.interruption import Interruption
from alibi_attention.lab.masking import Masker, masked_nats
from alibi_attention.lab.model import Decoder
from alibi_attention.lab.passages import RecallMixer
from alibi_attention.lab.progress import Progress

BITS_PER_NAT = 1.0 / math.log(2.0)

BETAS = (0.9, 0.99)
MOMENTUM = 0.99
LOG_EVERY = 10

_LIGHTNING_LOGGERS = (logging.getLogger("lightning.pytorch"), logging.getLogger("lightning.fabric"))
_LIGHTNING_INSIDE = (r"`isinstance\(treespec, LeafSpec\)` is deprecated",)


def learning_rate_factor(step: int, *, steps: int, warmup: int, final: float) -> float:
    """Share of the peak rate at a step: linear up over ``warmup`` steps, then half a cosine down to ``final``."""
    if step < warmup:
        return (step + 1) / (warmup + 1)
    done = (step - warmup) / max(1, steps - warmup)
    return final + (1.0 - final) * 0.5 * (1.0 + math.cos(math.pi * min(done, 1.0)))


def build_optimizer(decoder: Decoder, config: ExperimentConfig) -> torch.optim.Optimizer:
    """Weight decay on matrices alone, and on none of the position method's numbers.

    Gradient descent moves what a number stands for with the square of the unit it counts in. Units are there for
    AdamW, whose steps know nothing of gradients, so the rate takes them out again.
    """
    position = list(decoder.position.parameters())
    ids = {id(parameter) for parameter in position}
    rest = [parameter for parameter in decoder.parameters() if id(parameter) not in ids]
    matrices, others = [p for p in rest if p.dim() >= 2], [p for p in rest if p.dim() < 2]
    rate = config.learning_rate
    if config.optimizer == "adamw":
        groups: list[dict[str, Any]] = [
            {"params": matrices, "weight_decay": config.weight_decay},
            {"params": [*others, *position], "weight_decay": 0.0},
        ]
        return torch.optim.AdamW(groups, lr=rate, betas=BETAS)
    groups = [
        {"params": matrices, "weight_decay": config.weight_decay},
        {"params": others, "weight_decay": 0.0},
        {"params": position, "weight_decay": 0.0, "lr": rate / decoder.position.unit**2},
    ]
    return torch.optim.SGD(groups, lr=rate, momentum=MOMENTUM, nesterov=True)


class _Task(L.LightningModule):
    """Next-token or masked prediction. Learning rates follow the number of steps since the very beginning."""

    def __init__(self, decoder: Decoder, config: ExperimentConfig, start: int, state: dict[str, Tensor]) -> None:
        super().__init__()
        self.decoder = decoder
        self._config = config
        self._first = start
        self._state = state

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        if self._config.dropout or self._config.attention_dropout:
            # Masks too depend on the part of the step and on nothing before it.
            part = self._first * self._config.accumulate + batch_idx
            keys = np.random.SeedSequence([self._config.seed, part, self.global_rank])
            torch.manual_seed(int(keys.generate_state(1)[0]))
        if self._config.objective == "masked":
            return masked_nats(self.decoder, *batch.unbind(1)).mean()
        return self.decoder.nats(batch[:, :-1], batch[:, 1:]).mean()

    def configure_optimizers(self) -> Any:
        config = self._config
        optimizer = build_optimizer(self.decoder, config)
        restore_optimizer(self.decoder, optimizer, self._state)
        shape = {"steps": config.steps, "warmup": config.warmup, "final": config.final_rate}

        def factor(steps_taken: int) -> float:
            return learning_rate_factor(self._first + steps_taken, **shape)  # type: ignore[arg-type]

        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class _Keeper(L.Callback):
    """After each step: report, keep a resumable state when it is due, stop when asked."""

    def __init__(
        self, config: ExperimentConfig, path: Path, start: int, seconds: float, curve: Curve, progress: Progress,
        stop: Interruption,
    ) -> None:  # fmt: skip
        self._config = config
        self._path = path
        self._curve = curve
        self.step = start
        self._seconds_before = seconds
        self._began = time.perf_counter()
        self._progress = progress
        self._stop = stop
        self._losses: list[Tensor] = []
        self._last_loss: Tensor | None = None
        self._logged = (start, self._began)

    def __setstate__(self, state: dict[str, Any]) -> None:
        # Unpickled, so in a process of its own: Lightning is as talkative there as if nobody had asked it to be quiet.
        _hush()
        self.__dict__.update(state)

    @property
    def seconds(self) -> float:
        return self._seconds_before + time.perf_counter() - self._began

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        del pl_module
        if trainer.world_size > 1:
            # A process of its own, in which neither handlers nor bars are set up yet.
            self._stop.__enter__()
            if trainer.global_rank == 0:
                self._progress.__enter__()
                begin_bar(self._progress, self._config, self.step)
            else:
                self._progress = Progress()
        if trainer.global_rank == 0:
            self._curve.open(self._progress)
        self._began = time.perf_counter()
        self._logged = (self.step, self._began)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        del trainer, pl_module, exception
        self._curve.close()

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        del pl_module
        self._curve.close()
        if trainer.world_size > 1:
            self._progress.__exit__(None, None, None)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        del batch
        self._losses.append(outputs["loss"].detach())
        if (batch_idx + 1) % self._config.accumulate:
            return
        self.step += 1
        note = self._log(trainer) if self.step % LOG_EVERY == 0 else None
        self._last_loss = self._losses[-1]
        self._losses.clear()
        self._progress.advance(note=note)
        stopping = self._stop.requested is not None
        if trainer.world_size > 1:
            # All processes leave after the same step, or those that go on would wait for the others for ever.
            stopping = bool(trainer.strategy.reduce_boolean_decision(stopping, all=False))
        due = self.step % self._config.checkpoint_every == 0 or self.step == self._config.steps
        if (due or stopping) and trainer.global_rank == 0:
            assert isinstance(pl_module, _Task)
            self._refuse_broken(pl_module.decoder)
            header = {"step": self.step, "seconds": self.seconds}
            save_state(self._path, pl_module.decoder, trainer.optimizers[0], header)
        if stopping:
            trainer.should_stop = True

    def _log(self, trainer: L.Trainer) -> str:
        bits = float(torch.stack(self._losses).mean()) * BITS_PER_NAT
        self._refuse_divergence(bits)
        config, now = self._config, time.perf_counter()
        tokens = (self.step - self._logged[0]) * config.batch_size * config.accumulate * config.length
        values = {
            "train/bits_per_token": bits,
            "train/learning_rate": trainer.optimizers[0].param_groups[0]["lr"],
            "train/tokens_per_second": tokens / max(now - self._logged[1], 1e-9),
        }
        self._logged = (self.step, now)
        self._curve.write(values, self.step)
        unit = "byte" if config.tokenizer == "bytes" else "token"
        return f"{bits:.3f} bits per {'masked ' if config.objective == 'masked' else ''}{unit}"

    def _refuse_broken(self, decoder: Decoder) -> None:
        """Before a state is kept: one that is no number would be continued from for ever."""
        if self._last_loss is not None:
            self._refuse_divergence(float(self._last_loss) * BITS_PER_NAT)
        if not all(bool(parameter.isfinite().all()) for parameter in decoder.parameters()):
            # The loss was finite, the step it led to was not.
            self._refuse_divergence(math.nan)

    def _refuse_divergence(self, bits: float) -> None:
        if not math.isfinite(bits):
            raise LabError(
                "learning_rate",
                expected="a rate at which the loss stays finite",
                got=f"a loss of {bits} at step {self.step} with {self._config.learning_rate:g}",
                remedy="start a new run with a lower --learning-rate, in another --output",
            )


def begin_bar(progress: Progress, config: ExperimentConfig, done: int) -> None:
    """A bar over the steps of training."""
    tokens = config.batch_size * config.accumulate * config.length
    progress.start(progress.label, total=config.steps, done=done, tokens=tokens)


def train(
    decoder: Decoder,
    stream: NDArray[Any],
    config: ExperimentConfig,
    *,
    mixer: RecallMixer | None = None,
    checkpoint: Path,
    log_folder: Path,
    progress: Progress,
    stop: Interruption,
    label: str,
) -> float:
    """Train a decoder in place, from the state in ``checkpoint`` if there is one.

    Args:
        decoder: freshly built.
        stream: (tokens,) of training text.
        config: of the experiment.
        mixer: of key-value passages; none by default.
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
    progress.label = label
    several = config.devices > 1
    if not several:
        begin_bar(progress, config, start)
    masker = Masker(config.mask_share, decoder.mask_token) if config.objective == "masked" else None
    keeper = _Keeper(config, checkpoint, start, seconds, Curve(log_folder), progress, stop)
    with _quiet():
        trainer = L.Trainer(
            accelerator="gpu" if config.device == "cuda" else "cpu",
            devices=config.devices,
            # Spawned, not forked: a fork after OpenMP or CUDA has begun would hang.
            strategy="ddp_spawn" if several else "auto",
            precision="bf16-mixed" if config.precision == "bf16" else "32-true",
            accumulate_grad_batches=config.accumulate,
            max_steps=config.steps - start,
            gradient_clip_val=config.clip,
            callbacks=[keeper],
            # Lightning's own would end a run whose curve cannot be written.
            logger=False,
            enable_checkpointing=False,
            enable_model_summary=False,
            enable_progress_bar=False,
        )
        task = _Task(decoder, config, start, state)
        try:
            trainer.fit(task, Batches(stream, config, start, config.steps, mixer, masker))
        except SystemExit as end:
            # How Lightning passes on an interrupt in the middle of a step, and SIGTERM, which was noted here too.
            if isinstance(end.__context__, KeyboardInterrupt):
                raise KeyboardInterrupt from None
            stop.check()
            raise
        except (ProcessExitedException, ProcessRaisedException) as error:
            # A process that a signal met before it could take notice; what it had kept before is all that was done.
            stop.check()
            last = [line for line in str(error).splitlines() if line.strip()][-1].strip()
            remedy = "mend what it says, and continue with --resume"
            raise LabError("devices", expected="processes that train to the end", got=last, remedy=remedy) from error
    stop.check()
    if several:
        # The weights were trained in other processes; the last state they kept is the result.
        _, _, seconds = _load(checkpoint, decoder)
        return seconds
    return keeper.seconds


def _load(checkpoint: Path, decoder: Decoder) -> tuple[dict[str, Tensor], int, float]:
    if not checkpoint.exists():
        return {}, 0, 0.0
    tensors, header = load_tensors(checkpoint)
    try:
        restore_model(decoder, tensors)
        return tensors, int(header["step"]), float(header["seconds"])
    except (KeyError, RuntimeError) as error:
        remedy = "delete this file and --resume again: its method is then trained from the start"
        got = f"{checkpoint} ({' '.join(str(error).split())[:200]})"
        raise LabError("resume", expected="a state of this configuration", got=got, remedy=remedy) from None


def _hush() -> None:
    """No announcements of Lightning's, and no warnings about its own inside that nobody here can act on."""
    for logger in _LIGHTNING_LOGGERS:
        logger.setLevel(logging.ERROR)
    for message in _LIGHTNING_INSIDE:
        warnings.filterwarnings("ignore", message=message)


@contextmanager
def _quiet() -> Iterator[None]:
    """Hushed, and afterwards as before."""
    levels = [logger.level for logger in _LIGHTNING_LOGGERS]
    try:
        with warnings.catch_warnings():
            _hush()
            yield
    finally:
        for logger, level in zip(_LIGHTNING_LOGGERS, levels, strict=True):
            logger.setLevel(level)
