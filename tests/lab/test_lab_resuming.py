"""What is continued, and what is refused: other settings, other text, another configuration."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from alibi_attention.lab.config import ExperimentConfig
from alibi_attention.lab.errors import LabError
from alibi_attention.lab.experiment import resume_experiment, start_experiment

MakeConfig = Callable[..., ExperimentConfig]


def test_resume_needs_a_run(tmp_path: Path) -> None:
    with pytest.raises(LabError) as error:
        resume_experiment(tmp_path)
    assert str(error.value) == (
        f"output: expected the folder of a run, got {tmp_path}, which has no config.json; "
        "name the folder of an interrupted run with --output, or start one without --resume"
    )


def test_resume_refuses_other_settings_and_other_text(tiny: MakeConfig, tmp_path: Path, texts: Path) -> None:
    root = tmp_path / "run"
    start_experiment(tiny(methods=("rope",)), root)
    with pytest.raises(LabError) as error:
        resume_experiment(root, expected={"length": 16, "steps": 7})
    assert str(error.value) == (
        f"steps: expected 6, as the run in {root} was started with, got 7; "
        "leave it out to continue that run, or start a new one in another folder"
    )
    (texts / "0.txt").write_text("another text " * 50, encoding="utf-8")
    with pytest.raises(LabError, match=r"^text: expected the corpus the run was started with \(sha256 \w{12}…\), got "):
        resume_experiment(root)


def test_resume_refuses_a_spoilt_configuration(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{", encoding="utf-8")
    with pytest.raises(LabError) as error:
        resume_experiment(tmp_path)
    assert str(error.value).startswith("run: expected a config.json as it was written, got ")
    # Without scores there is no report to be had instead.
    assert str(error.value).endswith("; restore it from a copy: nothing else of the run is lost")


def test_resuming_a_complete_run_only_reads(tiny: MakeConfig, tmp_path: Path) -> None:
    root = tmp_path / "run"
    first = start_experiment(tiny(), root)
    before = (root / "rope" / "weights.safetensors").stat().st_mtime_ns
    assert resume_experiment(root) == first
    assert (root / "rope" / "weights.safetensors").stat().st_mtime_ns == before


def test_weights_of_another_configuration_are_refused(tiny: MakeConfig, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    start_experiment(tiny(methods=("rope",)), first)
    start_experiment(tiny(methods=("rope",), width=32), second)
    (first / "rope" / "result.json").unlink()
    (second / "rope" / "weights.safetensors").replace(first / "rope" / "weights.safetensors")
    with pytest.raises(LabError, match=r"^run: expected weights of this configuration, got .*weights.safetensors \("):
        resume_experiment(first)
