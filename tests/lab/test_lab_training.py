from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from alibi_attention.lab.checkpoint import load_tensors, save_tensors
from alibi_attention.lab.config import ExperimentConfig
from alibi_attention.lab.errors import LabError, RunInterrupted
from alibi_attention.lab.experiment import resume_experiment, start_experiment
from alibi_attention.lab.model import Decoder, build_decoder
from alibi_attention.lab.runs import RunFolder
from alibi_attention.lab.training import Batches, learning_rate_factor

MakeConfig = Callable[..., ExperimentConfig]


@contextmanager
def at_forward(number: int, action: Callable[[], None]) -> Iterator[None]:
    """Run ``action`` in the middle of the numbered forward pass, counted from 1."""
    original = Decoder.nats
    count = 0

    def nats(self: Decoder, tokens: Tensor, targets: Tensor) -> Tensor:
        nonlocal count
        count += 1
        if count == number:
            action()
        return original(self, tokens, targets)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Decoder, "nats", nats)
        yield


def interrupt() -> None:
    raise KeyboardInterrupt


def outcome(root: Path, config: ExperimentConfig) -> dict[str, Any]:
    """All of a run that must not depend on interruptions: weights byte by byte, and scores."""
    folder = RunFolder(root)
    found: dict[str, Any] = {}
    for method in config.methods:
        result = folder.read_result(method)
        assert result is not None
        found[method] = (folder.weights(method).read_bytes(), result.scores)
    return found


def test_batch_depends_on_seed_and_number_alone(tiny: MakeConfig) -> None:
    stream = np.arange(200, dtype=np.uint8)
    whole = list(Batches(stream, tiny(), 0, 5))
    tail = list(Batches(stream, tiny(), 3, 5))
    assert len(whole) == 5
    assert all(torch.equal(a, b) for a, b in zip(whole[3:], tail, strict=True))
    assert not torch.equal(whole[0], whole[1])
    assert not torch.equal(whole[0], next(iter(Batches(stream, tiny(seed=1), 0, 5))))
    # Every row is a stretch of the stream.
    assert all((row.diff() == 1).all() and len(row) == 17 for row in torch.cat(whole))


def test_batches_reach_both_ends_of_the_stream(tiny: MakeConfig) -> None:
    stream = np.arange(18, dtype=np.uint8)
    rows = torch.cat(list(Batches(stream, tiny(), 0, 20)))
    assert set(rows[:, 0].tolist()) == {0, 1}


def test_learning_rate_rises_and_falls() -> None:
    rates = [learning_rate_factor(step, steps=100, warmup=10) for step in range(101)]
    assert rates[0] == pytest.approx(1 / 11)
    assert rates[10] == 1.0
    assert rates[100] == pytest.approx(0.1)
    assert all(a < b for a, b in pairwise(rates[:11]))
    assert all(a > b for a, b in pairwise(rates[10:]))
    assert learning_rate_factor(0, steps=1, warmup=0) == 1.0


@pytest.mark.parametrize("method", ["alibi", "rope", "sinusoidal"])
def test_training_learns(tiny: MakeConfig, tmp_path: Path, method: str) -> None:
    config = tiny(methods=(method,), steps=40, learning_rate=1e-2, batch_size=8)
    result = start_experiment(config, tmp_path / "run")[0]
    assert result.scores[0].bits_per_byte < 4.5


def test_repeating_gives_the_same_bits_and_a_seed_others(tiny: MakeConfig, tmp_path: Path, whole_run: Path) -> None:
    config = tiny()
    start_experiment(config, tmp_path / "again")
    assert outcome(tmp_path / "again", config) == outcome(whole_run, config)
    other = tiny(seed=1, methods=("rope",))
    start_experiment(other, tmp_path / "other")
    assert outcome(tmp_path / "other", other)["rope"] != outcome(whole_run, config)["rope"]


# Three methods of 6 steps, then evaluations of several forwards: in training of the first, in its evaluation, later.
@pytest.mark.parametrize("forward", [1, 4, 8, 40])
def test_interrupt_inside_a_step_changes_nothing(
    tiny: MakeConfig, tmp_path: Path, whole_run: Path, forward: int
) -> None:
    config = tiny()
    handler = signal.getsignal(signal.SIGINT)
    with at_forward(forward, interrupt), pytest.raises(KeyboardInterrupt):
        start_experiment(config, tmp_path / "broken")
    assert signal.getsignal(signal.SIGINT) is handler
    assert not (tmp_path / "broken" / "results.json").exists()
    resume_experiment(tmp_path / "broken")
    assert outcome(tmp_path / "broken", config) == outcome(whole_run, config)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_keeps_the_step_it_arrives_in(
    tiny: MakeConfig, tmp_path: Path, whole_run: Path, number: signal.Signals
) -> None:
    config = tiny()
    with at_forward(3, lambda: os.kill(os.getpid(), number)), pytest.raises(RunInterrupted) as stopped:
        start_experiment(config, tmp_path / "broken")
    assert stopped.value.signal_number == number
    _, header = load_tensors(RunFolder(tmp_path / "broken").checkpoint("alibi"))
    assert header["step"] == 3
    resume_experiment(tmp_path / "broken")
    assert outcome(tmp_path / "broken", config) == outcome(whole_run, config)


def test_signal_during_evaluation(tiny: MakeConfig, tmp_path: Path) -> None:
    config = tiny(methods=("rope",))
    with at_forward(9, lambda: os.kill(os.getpid(), signal.SIGINT)), pytest.raises(RunInterrupted):
        start_experiment(config, tmp_path / "run")
    folder = RunFolder(tmp_path / "run")
    assert folder.read_result("rope") is None
    trained = folder.weights("rope").read_bytes()
    resume_experiment(tmp_path / "run")
    assert folder.weights("rope").read_bytes() == trained


def test_second_ctrl_c_stops_at_once(tiny: MakeConfig, tmp_path: Path) -> None:
    def twice() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    with at_forward(2, twice), pytest.raises(KeyboardInterrupt):
        start_experiment(tiny(), tmp_path / "run")


def test_divergence_is_refused(tiny: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = Decoder.nats
    monkeypatch.setattr(Decoder, "nats", lambda *arguments: original(*arguments) * torch.nan)
    with pytest.raises(LabError) as error:
        start_experiment(tiny(steps=10), tmp_path / "run")
    assert str(error.value) == (
        "learning_rate: expected a rate at which the loss stays finite, got a loss of nan at step 10 with 0.003; "
        "start a new run with a lower rate"
    )


def test_weights_are_safetensors_of_the_decoder(tiny: MakeConfig, tmp_path: Path) -> None:
    config = tiny(methods=("rope",))
    start_experiment(config, tmp_path / "run")
    decoder = build_decoder(config, "rope")
    before = decoder.embedding.weight.clone()
    decoder.load_state_dict(load_file(RunFolder(tmp_path / "run").weights("rope")))
    assert not torch.equal(decoder.embedding.weight, before)


def test_damaged_state_is_refused(tiny: MakeConfig, tmp_path: Path) -> None:
    config = tiny(methods=("rope",))
    with at_forward(4, interrupt), pytest.raises(KeyboardInterrupt):
        start_experiment(config, tmp_path / "run")
    path = RunFolder(tmp_path / "run").checkpoint("rope")
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(
        LabError, match=r"^resume: expected a whole file of this program, got .*/checkpoint\.safetensors "
    ):
        resume_experiment(tmp_path / "run")
    path.unlink()
    resume_experiment(tmp_path / "run")


def test_saving_is_all_or_nothing(tmp_path: Path) -> None:
    path = tmp_path / "state.safetensors"
    save_tensors(path, {"a": torch.ones(2)}, {"step": 1})
    with pytest.raises(TypeError):
        save_tensors(path, {"a": torch.zeros(2)}, {"step": object()})
    tensors, header = load_tensors(path)
    assert header == {"step": 1}
    assert tensors["a"].tolist() == [1.0, 1.0]
    assert [file.name for file in tmp_path.iterdir()] == ["state.safetensors"]
