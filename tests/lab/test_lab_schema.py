"""Files of other versions."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path

import pytest

import alibi_attention
from alibi_attention.lab.complete import read_runs
from alibi_attention.lab.config import ExperimentConfig
from alibi_attention.lab.errors import LabError
from alibi_attention.lab.experiment import resume_experiment, start_experiment

MakeConfig = Callable[..., ExperimentConfig]


def test_resume_refuses_another_schema(tiny: MakeConfig, tmp_path: Path) -> None:
    root = tmp_path / "run"
    start_experiment(tiny(methods=("rope",)), root)
    start = json.loads((root / "config.json").read_text(encoding="utf-8"))
    (root / "config.json").write_text(json.dumps({**start, "schema_version": 99}), encoding="utf-8")
    with pytest.raises(LabError, match=r"^run: expected a run folder of schema version 3, got version 99 in "):
        resume_experiment(root)


@pytest.mark.parametrize("name", ["config.json", "rope/result.json", "rope/evaluation/plain-windows.json"])
def test_what_a_later_version_added_is_its_own_and_not_spoilt(tiny: MakeConfig, tmp_path: Path, name: str) -> None:
    root = tmp_path / "run"
    start_experiment(tiny(methods=("rope",)), root)
    path = root / name
    value = json.loads(path.read_text(encoding="utf-8"))
    of_it = value["config"] if name == "config.json" else value["result"] if "result" in value else value["scores"][0]
    of_it["invented_later"] = 1
    path.write_text(json.dumps(value), encoding="utf-8")
    (root / "results.json").unlink()
    if "evaluation" in name:
        (root / "rope" / "result.json").unlink()
    # By these very sources it was not written so: it is not as it was.
    with pytest.raises(
        LabError, match=r"^(run: expected a file as this version writes it|invented_later: expected a kn)"
    ):
        resume_experiment(root)
    start = json.loads((root / "config.json").read_text(encoding="utf-8"))
    wrote = start["environment"]
    wrote |= {"alibi_attention": "9.0", "sources": "of later"}
    (root / "config.json").write_text(json.dumps(start), encoding="utf-8")
    (root / "sessions.json").unlink(missing_ok=True)
    with pytest.raises(LabError) as error:
        resume_experiment(root)
    assert str(error.value) == (
        f"run: expected what this version of alibi-attention, {alibi_attention.__version__}, knows, got invented_later "
        f"in {path}, which another worked on (9.0, sources of later); "
        "read and continue it with that version, or take out what was added by hand"
    )
    # Nor is a file that is spoilt besides one of a later version.
    if name != "config.json":
        of_it[next(iter(of_it))] = None
        path.write_text(json.dumps(value), encoding="utf-8")
        with pytest.raises(LabError, match=r"^run: expected a file as this version writes it"):
            resume_experiment(root)


def test_a_report_s_file_of_a_later_version_is_told_of_likewise(tiny: MakeConfig, tmp_path: Path) -> None:
    root = tmp_path / "run"
    start_experiment(tiny(methods=("rope",)), root)
    whole = json.loads((root / "results.json").read_text(encoding="utf-8"))
    for each in (whole["environment"], *whole["sessions"]):
        each["sources"] = "of later"
    for sessions in ([], {"a": 1}, ["a"], None):
        (root / "results.json").write_text(json.dumps({**whole, "sessions": sessions}), encoding="utf-8")
        with pytest.raises(LabError, match=r"^run: expected a run folder, or a file of a run"):
            read_runs([root / "results.json"])
    for add in (lambda value: value["config"], lambda value: value["results"][0]):
        value = copy.deepcopy(whole)
        add(value)["invented_later"] = 1
        (root / "results.json").write_text(json.dumps(value), encoding="utf-8")
        with pytest.raises(LabError, match=r"^run: expected what this version .* got invented_later in .*results.json"):
            read_runs([root / "results.json"])


def test_evaluations_of_before_lengths_were_kept_are_whole(
    tiny: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "run"
    first = start_experiment(tiny(methods=("rope",), protocols=["windows", "recall"], recall_trials=8), root)
    for path in (root / "rope" / "evaluation").iterdir():
        value = json.loads(path.read_text(encoding="utf-8"))
        assert value.pop("lengths") == [16, 24, 64]
        assert set(value) == {"schema_version", "scores", "seconds"}
        path.write_text(json.dumps(value), encoding="utf-8")
    (root / "rope" / "result.json").unlink()
    monkeypatch.setattr("alibi_attention.lab.experiment.run_protocol", None)
    assert resume_experiment(root) == first
