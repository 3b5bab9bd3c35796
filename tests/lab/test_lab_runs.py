"""What lies in the folder of a run, and what becomes of one that is there already."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from alibi_attention.lab.config import ExperimentConfig
from alibi_attention.lab.corpus import load_corpus
from alibi_attention.lab.errors import LabError
from alibi_attention.lab.experiment import start_experiment
from alibi_attention.lab.positions import position_methods
from alibi_attention.lab.runs import MethodResult, RunFolder, evaluations_of
from alibi_attention.lab.tables import markdown_table

MakeConfig = Callable[..., ExperimentConfig]
PNG = b"\x89PNG\r\n\x1a\n"


def test_contents(tiny: MakeConfig, tmp_path: Path) -> None:
    root, config = tmp_path / "a" / "run", tiny()
    results = start_experiment(config, root)
    files = {path.relative_to(root).as_posix() for path in root.rglob("*") if "tensorboard/" not in path.as_posix()}
    methods = ["alibi", "sinusoidal", "rope"]
    inside = (
        "tensorboard",
        "weights.safetensors",
        "result.json",
        "evaluation",
        "evaluation/plain-windows.json",
        "trained.json",
    )
    assert files == {
        "config.json", "config.yaml", "documents.json", "results.json", "table.md", "figure.png", "figure.svg",
        *methods, *(f"{method}/{name}" for method in methods for name in inside),
    }  # fmt: skip
    whole = json.loads((root / "results.json").read_text(encoding="utf-8"))
    assert whole["schema_version"] == 3
    assert whole["config"]["eval_lengths"] == [16, 24, 64]
    assert whole["corpus"]["fingerprint"] == load_corpus(config).fingerprint
    assert set(whole["environment"]) == {
        "alibi_attention", "sources", "torch", "transformers", "tokenizers", "python", "platform", "processor",
        "threads", "device", "kernel", "date",
    }  # fmt: skip
    assert whole["sessions"] == [whole["environment"]]
    assert [MethodResult.model_validate(value) for value in whole["results"]] == results
    assert [r.method for r in results] == methods
    assert all([score.length for score in r.scores] == [16, 24, 64] for r in results)
    assert (root / "table.md").read_text(encoding="utf-8") == markdown_table(results)
    assert (root / "figure.png").read_bytes().startswith(PNG)
    assert "<svg" in (root / "figure.svg").read_text(encoding="utf-8")
    documents = json.loads((root / "documents.json").read_text(encoding="utf-8"))
    assert not set(documents["train"]) & set(documents["held_out"])
    assert len(documents["train"]) + len(documents["held_out"]) == 12


def test_an_existing_folder_is_refused_and_kept(tiny: MakeConfig, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "mine").write_text("mine", encoding="utf-8")
    with pytest.raises(LabError) as error:
        start_experiment(tiny(), tmp_path / "run")
    assert str(error.value) == (
        f"output: expected a new or empty folder, got {tmp_path / 'run'}, which exists; "
        f"choose another, or continue that run: alibi extrapolate --resume --output {tmp_path / 'run'}"
    )
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["mine"]


def test_bad_text_leaves_nothing_behind(tiny: MakeConfig, tmp_path: Path) -> None:
    with pytest.raises(LabError):
        start_experiment(tiny(text=(str(tmp_path / "missing"),)), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_read_results_needs_all_of_them(tiny: MakeConfig, tmp_path: Path) -> None:
    root = tmp_path / "run"
    results = start_experiment(tiny(methods=("rope", "nope")), root)
    assert RunFolder(root).read_results() == results
    (root / "nope" / "result.json").unlink()
    with pytest.raises(LabError) as error:
        RunFolder(root).read_results()
    assert str(error.value) == (
        f"run: expected a complete run, got {root}, with 1 of 2 methods; "
        f"complete it with: alibi extrapolate --resume --output {root}"
    )


def test_all_methods_variants_and_protocols(tiny: MakeConfig, tmp_path: Path) -> None:
    methods = tuple(position_methods())
    config = tiny(
        methods=methods, variants=["all"], protocols=["all"], recall_share=0.5, length=32, eval_lengths=(32, 64),
        heads=3, width=12, steps=2, recall_trials=8,
    )  # fmt: skip
    results = start_experiment(config, tmp_path / "run")
    names = [e.name for e in evaluations_of(results)]
    assert len(names) == len(set(names)) == len(methods) + 3 * 2 + 3
    for found in evaluations_of(results):
        assert [score.length for score in found.windows] == [score.length for score in found.sliding] == [32, 64]
        assert [score.length for score in found.targets] == [16, 32, 64]
        assert [(s.length, s.distance) for s in found.recall] == [(32, 29), (64, 32), (64, 61)]
        beyond = found.name == "learned"
        assert (found.windows[1].bits_per_byte is None) == (found.targets[2].bits_per_byte is None) == beyond
    own = {r.method: r.position_parameters for r in results}
    assert own == {"alibi": 0, "alibi-interleaved": 0, "alibi-learned": 3, "learned": 32 * 12, "nope": 0, "rope": 0,
                   "sinusoidal": 0, "t5": 32 * 3}  # fmt: skip
    # Three heads are no power of two, so that the two schemes differ.
    assert results[0].scores != results[1].scores
