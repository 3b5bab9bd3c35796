"""What is refused before anything is trained or written, and what is said of a run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer
from lab_cases import Said

from alibi_attention.cli.errors import laboratory_errors
from alibi_attention.lab.batches import Batches
from alibi_attention.lab.config import ExperimentConfig
from alibi_attention.lab.corpus import load_corpus
from alibi_attention.lab.errors import LabError
from alibi_attention.lab.experiment import reevaluate_experiment, resume_experiment, start_experiment
from alibi_attention.lab.preconditions import remarks

MakeConfig = Callable[..., ExperimentConfig]


def test_cuda_is_refused_without_a_gpu(tiny: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(LabError) as error:
        start_experiment(tiny(device="cuda"), tmp_path / "run")
    assert str(error.value) == (
        "device: expected a device of this machine, got cuda, which torch does not see here; use cpu"
    )


def test_a_run_below_its_own_text_is_refused(
    texts: Path, tiny: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it writes would be text the next time it is read: such a run could never be continued."""
    monkeypatch.chdir(texts)
    config = tiny(text=(".",))
    with pytest.raises(LabError) as error:
        start_experiment(config, Path("runs/extrapolate"))
    assert str(error.value) == (
        "output: expected a folder outside the text in ., got runs/extrapolate, where all that the run writes would "
        f"become text; name another, such as {texts}-run, or give the folders of text alone"
    )
    assert not Path("runs").exists()
    with pytest.raises(LabError, match=r"^output: expected a folder outside the text in"):
        start_experiment(tiny(text=(str(tmp_path / "other"),), held_out_text=(str(texts),)), texts / "run")
    # Hidden folders are no text; nor is what lies beside.
    start_experiment(config, Path(".runs/one"))
    resume_experiment(Path(".runs/one"))
    with pytest.raises(LabError, match=r"^output: expected a folder outside the text in"):
        reevaluate_experiment(Path(".runs/one"), Path("again"), {"eval_tokens": 64})
    start_experiment(config, tmp_path / "beside")


def test_recall_without_room_is_refused_before_training(tiny: MakeConfig, tmp_path: Path) -> None:
    with pytest.raises(LabError) as error:
        start_experiment(tiny(protocols=("recall",), length=4, eval_lengths=(4, 6)), tmp_path / "run")
    assert str(error.value) == (
        "eval_lengths: expected a length of at least 8 tokens for recall, which is told and asked, got 4,6; "
        "add one, or leave recall out"
    )
    assert not (tmp_path / "run").exists()


def test_lengths_past_every_position_are_refused_before_training(tiny: MakeConfig, tmp_path: Path) -> None:
    beyond: dict[str, Any] = {"methods": ("learned",), "eval_lengths": (64, 128), "protocols": ("windows",)}
    with pytest.raises(LabError) as error:
        start_experiment(tiny(**beyond), tmp_path / "run")
    assert str(error.value) == (
        "eval_lengths: expected a length of at most 16, where the positions of learned end, got 64,128; "
        "add 16, or a method beside it"
    )
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("changes", [{"protocols": ("targets",)}, {"methods": ("learned", "nope")}])
def test_lengths_within_some_position_are_not(tiny: MakeConfig, tmp_path: Path, changes: dict[str, Any]) -> None:
    """Windows of fixed targets are halved from the shortest length down, and no position of NoPE ends."""
    beyond: dict[str, Any] = {"methods": ("learned",), "eval_lengths": (32,), "protocols": ("windows",)}
    start_experiment(tiny(**{**beyond, **changes}), tmp_path / "run")


@pytest.mark.parametrize(
    ("changes", "refused"),
    [
        ({"cutoffs": (300,)}, "cutoffs: expected ranks below the vocabulary of 256, got 300; "),
        ({"cutoffs": (20, 40, 60), "width": 32}, "width: expected a multiple of 64, so that 3 cutoffs leave whole "),
    ],
)  # fmt: skip
def test_models_that_cannot_be_are_refused_before_anything_is_written(
    tiny: MakeConfig, tmp_path: Path, changes: dict[str, Any], refused: str
) -> None:
    with pytest.raises(LabError) as error:
        start_experiment(tiny(**changes), tmp_path / "run")
    assert str(error.value).startswith(refused)
    assert not (tmp_path / "run").exists()


def test_a_table_of_positions_without_end_takes_no_memory_to_refuse(tiny: MakeConfig, tmp_path: Path) -> None:
    with pytest.raises(LabError, match=r"^text: expected at least 1,000,000,000,001 bytes"):
        start_experiment(tiny(methods=("learned",), length=10**12, eval_lengths=(10**12,)), tmp_path / "run")


@pytest.mark.parametrize(
    ("changes", "refused"),
    [
        ({"stride": 4}, "stride: expected the default, 0, got 4 without the protocol sliding; leave it out, or add "),
        ({"recall_trials": 7}, "recall_trials: expected the default, 64, got 7 without the protocol recall; "),
    ],
)
def test_settings_of_protocols_that_are_not_evaluated_are_refused(
    tiny: MakeConfig, tmp_path: Path, changes: dict[str, Any], refused: str
) -> None:
    with pytest.raises(LabError) as error:
        start_experiment(tiny(**changes), tmp_path / "run")
    assert str(error.value).startswith(refused)
    start_experiment(tiny(methods=("nope",)), tmp_path / "run")
    with pytest.raises(LabError) as error:
        reevaluate_experiment(tmp_path / "run", tmp_path / "again", changes)
    assert str(error.value).startswith(refused)
    assert not (tmp_path / "again").exists()


def test_what_a_run_was_given_for_other_protocols_stands_in_no_ones_way(tiny: MakeConfig, tmp_path: Path) -> None:
    start_experiment(tiny(methods=("nope",), stride=4, protocols=("sliding",)), tmp_path / "run")
    (again,) = reevaluate_experiment(tmp_path / "run", tmp_path / "again", {"protocols": ("windows",)})
    assert len(again.evaluations[0].windows) == 3


def test_models_of_a_gpu_are_evaluated_without_one(
    tiny: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (first,) = start_experiment(tiny(methods=("rope",)), tmp_path / "run")
    start = json.loads((tmp_path / "run" / "config.json").read_text(encoding="utf-8"))
    start["config"] |= {"device": "cuda", "devices": 2}
    (tmp_path / "run" / "config.json").write_text(json.dumps(start), encoding="utf-8")
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    (again,) = reevaluate_experiment(tmp_path / "run", tmp_path / "again", {"device": "cpu"})
    assert again.evaluations == first.evaluations
    # Nothing is left to compute: whoever wants to see it again needs no GPU for that.
    assert resume_experiment(tmp_path / "run") == [first]
    with pytest.raises(LabError, match=r"^device: expected a device of this machine, got cuda"):
        reevaluate_experiment(tmp_path / "run", tmp_path / "other", {})
    (tmp_path / "run" / "rope" / "result.json").unlink()
    with pytest.raises(LabError, match=r"^device: expected a device of this machine, got cuda"):
        resume_experiment(tmp_path / "run")
    # Evaluation takes one device of however many it was trained on.
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    (tmp_path / "run" / "rope" / "weights.safetensors").unlink()
    with pytest.raises(LabError, match=r"^devices: expected at most the 1 of this machine, got 2"):
        resume_experiment(tmp_path / "run")


def test_few_tokens_by_the_sliding_window_are_said(tiny: MakeConfig, tmp_path: Path) -> None:
    few = tiny(protocols=("sliding",), stride=1, eval_tokens=256)
    corpus = load_corpus(few)
    (said,) = remarks(few, corpus, trains=True)
    assert said == (
        "By the sliding window 4 tokens are scored at every length, too few to go by; --eval-tokens 16384 reads enough "
        "for more."
    )
    enough = few.model_copy(update={"eval_tokens": 16_384})
    heard = Said()
    (result,) = start_experiment(enough.model_copy(update={"methods": ("nope",)}), tmp_path / "run", heard)
    assert {score.scored_tokens for score in result.evaluations[0].sliding} == {256}
    assert not any("too few" in line for line in heard.lines)
    nothing_more = tiny(protocols=("sliding",), stride=1, eval_tokens=256, eval_lengths=(16, len(corpus.held_out) - 9))
    (said,) = remarks(nothing_more, corpus, trains=True)
    assert said.endswith("; the held-out text has no more.")


def test_a_rate_that_never_gets_to_its_peak_is_said(tiny: MakeConfig, tmp_path: Path) -> None:
    heard = Said()
    start_experiment(tiny(methods=("nope",), steps=4, warmup=7), tmp_path / "run", heard)
    said = "The learning rate rises over 7 steps and there are 4: it ends at 50% of its peak and never falls."
    assert any(line.startswith(said) for line in heard.lines)
    again = Said()
    reevaluate_experiment(tmp_path / "run", tmp_path / "again", {}, again)
    assert not any("learning rate" in line for line in again.lines)


def test_seeds_as_large_as_they_come_are_all_different(tiny: MakeConfig) -> None:
    stream = np.arange(4096, dtype=np.uint16)
    seeds = [0, 1, 2**53, 2**53 + 1, 2**63, 2**63 + 1, 2**64 - 1]
    drawn = [Batches(stream, tiny(seed=seed), 0, 1).batch(0) for seed in seeds]
    assert len({tuple(batch.flatten().tolist()) for batch in drawn}) == len(seeds)


def test_dynamic_ntk_has_nothing_to_change_in_a_single_pair(tiny: MakeConfig, tmp_path: Path) -> None:
    changes: dict[str, Any] = {"methods": ("rope",), "variants": ("rope:dynamic",), "heads": 8, "width": 16}
    (result,) = start_experiment(tiny(**changes), tmp_path / "run")
    plain, dynamic = result.evaluations
    assert plain.windows == dynamic.windows


def test_memory_that_is_refused_is_said_in_words(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit), laboratory_errors(tmp_path):
        torch.empty(10**15)
    with pytest.raises(typer.Exit), laboratory_errors(tmp_path):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of")
    with pytest.raises(typer.Exit), laboratory_errors(tmp_path):
        raise MemoryError
    refused = ["3,725,290 GiB refused", "20.00 GiB refused", "an allocation that was refused"]
    head = "error: memory: expected room for the model and what it computes, got "
    remedy = "  lower --width, --batch-size or the lengths; what was written is kept"
    assert capsys.readouterr().err.splitlines() == [line for each in refused for line in (head + each, remedy)]
    with pytest.raises(RuntimeError, match="something else"), laboratory_errors(tmp_path):
        raise RuntimeError("something else")
