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
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor

from alibi_attention.lab.batches import Batches
from alibi_attention.lab.checkpoint import load_tensors, save_tensors
from alibi_attention.lab.config import ExperimentConfig
from alibi_attention.lab.errors import LabError, RunInterrupted
from alibi_attention.lab.experiment import resume_experiment, start_experiment
from alibi_attention.lab.model import Decoder, build_decoder
from alibi_attention.lab.positions import position_methods
from alibi_attention.lab.runs import RunFolder
from alibi_attention.lab.training import MOMENTUM, build_optimizer, learning_rate_factor

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
        found[method] = (folder.weights(method).read_bytes(), result.evaluations)
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
    rates = [learning_rate_factor(step, steps=100, warmup=10, final=0.1) for step in range(101)]
    assert rates[0] == pytest.approx(1 / 11)
    assert rates[10] == 1.0
    assert rates[100] == pytest.approx(0.1)
    assert all(a < b for a, b in pairwise(rates[:11]))
    assert all(a > b for a, b in pairwise(rates[10:]))
    assert learning_rate_factor(0, steps=1, warmup=0, final=0.1) == 1.0


@pytest.mark.parametrize("method", list(position_methods()))
def test_training_learns(tiny: MakeConfig, tmp_path: Path, method: str) -> None:
    config = tiny(methods=(method,), steps=40, learning_rate=1e-2, batch_size=8)
    result = start_experiment(config, tmp_path / "run")[0]
    assert result.scores[0].bits_per_byte is not None
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
    with at_forward(7, lambda: os.kill(os.getpid(), signal.SIGINT)), pytest.raises(RunInterrupted):
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
        "learning_rate: expected a rate at which the loss stays finite, got a loss of nan at step 2 with 0.003; "
        "start a new run with a lower --learning-rate, in another --output"
    )
    # What would be continued from for ever was not kept.
    assert not RunFolder(tmp_path / "run").checkpoint("alibi").exists()


def test_weights_that_are_no_numbers_are_not_kept(
    tiny: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = torch.optim.AdamW.step

    def spoil(optimizer: torch.optim.AdamW, *arguments: Any, **more: Any) -> Any:
        found = step(optimizer, *arguments, **more)
        with torch.no_grad():
            optimizer.param_groups[0]["params"][0][0, 0] = torch.inf
        return found

    monkeypatch.setattr(torch.optim.AdamW, "step", spoil)
    with pytest.raises(LabError, match=r"^learning_rate: .*, got a loss of nan at step 1 with 0.003; "):
        start_experiment(tiny(steps=1, methods=("alibi",)), tmp_path / "run")
    assert not RunFolder(tmp_path / "run").checkpoint("alibi").exists()


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
    # Whole, but of another model.
    save_tensors(path, {"model.x": torch.ones(1)}, {"step": 1, "seconds": 0.0})
    with pytest.raises(
        LabError, match=r"^resume: expected a state of this configuration, got .*; delete this file and"
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


# Ways of training


def weights(root: Path, method: str) -> dict[str, Tensor]:
    return load_file(RunFolder(root).weights(method))


def test_positions_are_trained_and_not_decayed(tiny: MakeConfig, tmp_path: Path) -> None:
    config = tiny(methods=("t5", "alibi-learned", "learned"), steps=4, weight_decay=1e6, learning_rate=1e-6, clip=1e9)
    start_experiment(config, tmp_path / "run")
    for method, name in (("t5", "units"), ("alibi-learned", "log_slopes"), ("learned", "table")):
        before = build_decoder(config, method).position.get_parameter(name)
        after = weights(tmp_path / "run", method)[f"position.{name}"]
        assert not torch.equal(after, before)
        # Decay at this strength would have taken every weight to nothing.
        assert (after - before).abs().max() < 1e-4


def test_accumulated_parts_are_one_larger_batch(
    tiny: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Batches.batch

    def batch(self: Batches, k: int) -> Tensor:
        # Part k of the one is rows 2k and 2k + 1 of the other.
        size = 2 if self._config.accumulate == 3 else 6
        return torch.cat([original(self, 1000 * size * k + 1000 * i)[:1] for i in range(size)])

    monkeypatch.setattr(Batches, "batch", batch)
    start_experiment(tiny(methods=("rope",), batch_size=2, accumulate=3), tmp_path / "parts")
    start_experiment(tiny(methods=("rope",), batch_size=6), tmp_path / "whole")
    parts, whole = weights(tmp_path / "parts", "rope"), weights(tmp_path / "whole", "rope")
    for name in whole:
        torch.testing.assert_close(parts[name], whole[name], rtol=1e-4, atol=1e-5)
    assert not torch.equal(whole["embedding.weight"], build_decoder(tiny(), "rope").embedding.weight)


HARD = {"accumulate": 2, "dropout": 0.2, "attention_dropout": 0.2, "precision": "bf16", "recall_share": 0.5,
        "length": 24, "optimizer": "nag", "protocols": ["all"], "variants": ["all"], "recall_trials": 8,
        "tokenizer": "bpe", "vocabulary": 280, "cutoffs": (64,)}  # fmt: skip


def test_everything_at_once_resumes_to_the_same_bits(tiny: MakeConfig, tmp_path: Path) -> None:
    config = tiny(**HARD, methods=("alibi", "t5"), eval_lengths=(24, 80), learning_rate=0.1)
    start_experiment(config, tmp_path / "whole")
    # In the middle of a step of two parts, at its end, in every protocol of an evaluation, in the second method.
    for number in (3, 14, 21, 40):
        with at_forward(number, interrupt), pytest.raises(KeyboardInterrupt):
            start_experiment(config, tmp_path / f"broken-{number}")
        resume_experiment(tmp_path / f"broken-{number}")
        assert outcome(tmp_path / f"broken-{number}", config) == outcome(tmp_path / "whole", config), number


def test_each_way_of_training_changes_the_outcome(tiny: MakeConfig, tmp_path: Path) -> None:
    """A setting that changes nothing would be one that is ignored."""
    found = {}
    changes = {
        "seed": 0, "dropout": 0.3, "attention_dropout": 0.3, "precision": "bf16", "optimizer": "nag",
        "recall_share": 0.9, "accumulate": 2, "final_rate": 0.9, "cutoffs": (128,),
    }  # fmt: skip
    for name, value in changes.items():
        config = tiny(methods=("alibi",), **{"length": 24, name: value})
        start_experiment(config, tmp_path / name)
        found[name] = sum(float(t.double().sum()) for t in weights(tmp_path / name, "alibi").values())
    assert len(set(found.values())) == len(found), found


def test_two_processes_come_to_what_one_does(tiny: MakeConfig, tmp_path: Path) -> None:
    sizes = {"methods": ("rope",), "steps": 3, "eval_lengths": (16,), "eval_tokens": 32}
    start_experiment(tiny(**sizes), tmp_path / "one")
    start_experiment(tiny(**sizes, devices=2), tmp_path / "two")
    one, two = weights(tmp_path / "one", "rope"), weights(tmp_path / "two", "rope")
    for name in one:
        torch.testing.assert_close(two[name], one[name], rtol=1e-4, atol=1e-5)


def test_tensorboard(tiny: MakeConfig, tmp_path: Path) -> None:
    start_experiment(tiny(methods=("rope",), steps=20), tmp_path / "run")
    events = EventAccumulator(str(RunFolder(tmp_path / "run").logs("rope")))
    events.Reload()
    assert events.Tags()["scalars"] == ["train/bits_per_token", "train/learning_rate", "train/tokens_per_second"]
    steps = [entry.step for entry in events.Scalars("train/learning_rate")]
    assert steps == [10, 20]
    assert all(0 < entry.value < 9 for entry in events.Scalars("train/bits_per_token"))


def test_units_of_trained_numbers_are_no_matter_of_gradient_descent(tiny: MakeConfig):
    config = tiny(methods=["t5"], optimizer="nag", learning_rate=0.25)
    decoder = build_decoder(config, "t5", vocabulary=256)
    table = decoder.position.table.detach().clone()
    tokens = torch.arange(2 * config.length).reshape(2, -1)
    decoder.nats(tokens[:, :-1], tokens[:, 1:]).mean().backward()
    by_nats = decoder.position.units.grad / decoder.position.unit
    assert by_nats.abs().max() > 0
    build_optimizer(decoder, config).step()
    # Nesterov's first step, of a table in nats.
    expected = table - 0.25 * (1.0 + MOMENTUM) * by_nats
    torch.testing.assert_close(decoder.position.table, expected)
