"""Files of a run that are damaged or gone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from lab_cases import Said, stopped

from alibi_attention.lab.config import ExperimentConfig
from alibi_attention.lab.errors import LabError
from alibi_attention.lab.experiment import reevaluate_experiment, resume_experiment, start_experiment
from alibi_attention.lab.runs import RunFolder

MakeConfig = Callable[..., ExperimentConfig]


@pytest.mark.parametrize(("name", "content"), [("result.json", "{"), ("result.json", '{"schema_version": 1}'),
                                               ("result.json", '{"schema_version": 3, "result": {}}')])  # fmt: skip
def test_damaged_results_are_refused_and_made_again(tiny: MakeConfig, tmp_path: Path, name: str, content: str) -> None:
    root = tmp_path / "run"
    first = start_experiment(tiny(methods=("rope",)), root)
    (root / "rope" / name).write_text(content, encoding="utf-8")
    with pytest.raises(LabError, match=r"^run: .*; delete this file and --resume: only what it held is done again$"):
        resume_experiment(root)
    (root / "rope" / name).unlink()
    # Weights and evaluations are read; even their seconds are those of the first time.
    assert resume_experiment(root) == first


@pytest.mark.parametrize("content", ["{", '{"schema_version": 3}', '{"schema_version": 3, "seconds": "long"}'])
def test_a_damaged_time_of_training_is_no_dead_end(tiny: MakeConfig, tmp_path: Path, content: str) -> None:
    root = stopped(tiny(methods=("rope",)), tmp_path / "run")
    path = root / "rope" / "trained.json"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(LabError) as error:
        resume_experiment(root)
    assert str(error.value) == (
        f"run: expected a file as this version writes it, got {path}; "
        "delete this file and --resume: how long training took is then not known, and nothing else is lost"
    )
    path.unlink()
    trained = (root / "rope" / "weights.safetensors").stat().st_mtime_ns
    assert resume_experiment(root)[0].train_seconds == 0.0
    assert (root / "rope" / "weights.safetensors").stat().st_mtime_ns == trained
    assert reevaluate_experiment(root, tmp_path / "again", {})[0].train_seconds == 0.0


@pytest.mark.parametrize(
    "content", ["{}", '{"schema_version": 3}', '{"schema_version": 3, "seconds": 1.0, "scores": [{"length": 16}]}',
                '{"schema_version": 3, "seconds": 1.0, "scores": 3}'],
)  # fmt: skip
def test_a_damaged_evaluation_is_made_again(tiny: MakeConfig, tmp_path: Path, content: str) -> None:
    root = tmp_path / "run"
    first = start_experiment(tiny(methods=("rope",)), root)
    (root / "rope" / "result.json").unlink()
    path = root / "rope" / "evaluation" / "plain-windows.json"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(LabError) as error:
        resume_experiment(root)
    assert str(error.value) == (
        f"run: expected a file as this version writes it, got {path}; "
        "delete this file and --resume: only what it held is done again"
    )
    path.unlink()
    assert [r.evaluations for r in resume_experiment(root)] == [r.evaluations for r in first]


def test_weights_that_are_gone_are_trained_again(tiny: MakeConfig, tmp_path: Path) -> None:
    root = tmp_path / "run"
    first = start_experiment(tiny(methods=("rope", "nope")), root)
    path = root / "rope" / "weights.safetensors"
    trained = path.read_bytes()
    path.unlink()
    with pytest.raises(LabError) as error:
        reevaluate_experiment(root, tmp_path / "again", {})
    assert error.value.remedy == f"complete it with: alibi extrapolate --resume --output {root}"
    # Scores of weights that are no more are not those of others.
    evaluation = root / "rope" / "evaluation" / "plain-windows.json"
    evaluation.write_text("another", encoding="utf-8")
    other = (root / "nope" / "weights.safetensors").stat().st_mtime_ns
    said = Said()
    again = resume_experiment(root, said)
    assert "RoPE: its weights are missing; it is trained and evaluated again." in said.lines
    assert path.read_bytes() == trained
    assert [r.evaluations for r in again] == [r.evaluations for r in first]
    assert (root / "nope" / "weights.safetensors").stat().st_mtime_ns == other
    assert len(RunFolder(root).read_sessions()) == 2
    reevaluate_experiment(root, tmp_path / "again", {})


@pytest.mark.parametrize("whole", [True, False])
def test_damaged_weights_beside_whole_scores_are_refused(
    tiny: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: bool
) -> None:
    """Before anything else is done, in a run that is complete and in one that is not."""
    root = tmp_path / "run"
    first = start_experiment(tiny(methods=("nope", "rope")), root)
    path = root / "rope" / "weights.safetensors"
    written = path.read_bytes()
    path.write_bytes(written[:-1] + bytes([written[-1] ^ 1]))
    if not whole:
        (root / "nope" / "weights.safetensors").unlink()
    with monkeypatch.context() as patched:
        patched.setattr("alibi_attention.lab.experiment.load_corpus", None)
        with pytest.raises(LabError) as error:
            resume_experiment(root)
    assert str(error.value) == (
        f"resume: expected a whole file of this program, got {path} "
        "(its checksum is another: something in it changed after it was written); delete this file and run "
        "alibi extrapolate --resume on its run: its method is then trained from the start"
    )
    # What it says goes on.
    path.unlink()
    assert [r.evaluations for r in resume_experiment(root)] == [r.evaluations for r in first]
    assert path.read_bytes() == written
