"""What was stopped or killed, and two processes at once."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
from lab_cases import Said, Stopping, read_config_file, stopped

from alibi_attention.lab.config import ExperimentConfig
from alibi_attention.lab.errors import LabError, RunInterrupted
from alibi_attention.lab.experiment import reevaluate_experiment, resume_experiment, start_experiment
from alibi_attention.lab.lock import locked
from alibi_attention.lab.runs import RunFolder

MakeConfig = Callable[..., ExperimentConfig]


def test_two_processes_do_not_work_in_one_run(tiny: MakeConfig, tmp_path: Path) -> None:
    root = tmp_path / "run"
    start_experiment(tiny(methods=("rope",)), root)
    with locked(root):
        for call in (
            lambda: resume_experiment(root),
            lambda: start_experiment(tiny(methods=("rope",)), tmp_path / "new" / ".." / "run"),
        ):
            with pytest.raises(LabError, match=r"^output: expected a (folder no other process works in|new or empty)"):
                call()
        with pytest.raises(LabError) as error:
            resume_experiment(root)
        assert str(error.value) == (
            f"output: expected a folder no other process works in, got {root}, which one does; "
            "wait until it is done, or name another folder"
        )
    resume_experiment(root)
    # Held by another, which made it a moment ago.
    with locked(tmp_path / "made"), pytest.raises(LabError, match="which one does"):
        start_experiment(tiny(methods=("rope",)), tmp_path / "made")
    assert list((tmp_path / "made").iterdir()) == []


@pytest.mark.parametrize("killed_at", ["config.json", "config.yaml"])
def test_killed_at_the_beginning(
    tiny: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killed_at: str
) -> None:
    """Either nothing counts as begun, or the run can be continued."""
    root, config = tmp_path / "run", tiny(methods=("rope",))
    replace = Path.replace

    def kill(path: Path, target: Path) -> Path:
        if target.name == killed_at:
            # What a killed process leaves: its temporary file stays.
            shutil.copyfile(path, root / ".kept")
            raise KeyboardInterrupt
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", kill)
    with pytest.raises(KeyboardInterrupt):
        start_experiment(config, root)
    monkeypatch.undo()
    (root / ".kept").rename(root / f".config.partial{Path(killed_at).suffix}")
    if killed_at == "config.json":
        start_experiment(config, root)
    else:
        resume_experiment(root)
    assert read_config_file(root / "config.yaml") == config
    assert not [path for path in root.iterdir() if path.name.startswith(".")]


def test_killed_while_taking_weights(tiny: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, root = tmp_path / "run", tmp_path / "again"
    first = start_experiment(tiny(methods=("rope", "nope")), source)
    begin = RunFolder.begin

    def kill(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(RunFolder, "begin", kill)
    with pytest.raises(KeyboardInterrupt):
        reevaluate_experiment(source, root, {})
    assert not root.exists()
    assert not (tmp_path / ".again.partial").exists()
    # What a process leaves that has no time to tidy up is in the way of no other, even of fewer methods.
    (tmp_path / ".again.partial" / "other").mkdir(parents=True)
    monkeypatch.setattr(RunFolder, "begin", begin)
    again = reevaluate_experiment(source, root, {})
    assert [r.evaluations for r in again] == [r.evaluations for r in first]
    assert not (root / "other").exists()
    assert not (tmp_path / ".again.partial").exists()


def test_a_stop_loses_one_length_at_most(tiny: MakeConfig, tmp_path: Path) -> None:
    """However little is done between two stops, as long as it is the longest that a length takes."""
    config = tiny(methods=("rope",), protocols=["all"], recall_trials=8)
    whole = start_experiment(config, tmp_path / "whole")
    # Questions: one after training, then four segments of windows for a length, none of which suffices.
    root = stopped(config, tmp_path / "run", 4)
    folder, done = RunFolder(root), []
    for _ in range(40):
        said = Said()
        try:
            again = resume_experiment(root, said, stop=Stopping(5))
            break
        except RunInterrupted:
            kept = [folder.read_evaluation("rope", None, protocol) for protocol in config.protocols]
            done.append([len(each.lengths or ()) for each in kept])
            if len(done) == 2:
                # A bar begins behind what is done: one of three lengths.
                assert said.bars[0] == ("RoPE: windows", 3 * 256, 256)
    assert len(done) >= 3
    assert all(a < b for a, b in pairwise([sum(each) for each in [[0] * 4, *done]]))
    assert [r.evaluations for r in again] == [r.evaluations for r in whole]


def test_weights_that_are_gone_again_while_they_are_trained(tiny: MakeConfig, tmp_path: Path) -> None:
    root = tmp_path / "run"
    first = start_experiment(tiny(methods=("rope",)), root)
    (root / "rope" / "weights.safetensors").unlink()
    with pytest.raises(RunInterrupted):
        resume_experiment(root, stop=Stopping(3))
    # The old scores are gone with the old weights: it is no complete run.
    assert not (root / "results.json").exists()
    assert not (root / "rope" / "result.json").exists()
    assert [r.evaluations for r in resume_experiment(root)] == [r.evaluations for r in first]


def test_a_state_that_was_left_behind_goes(tiny: MakeConfig, tmp_path: Path) -> None:
    """By a process that was killed between the result and its removal."""
    root = tmp_path / "run"
    first = start_experiment(tiny(methods=("rope",)), root)
    path = RunFolder(root).checkpoint("rope")
    shutil.copyfile(RunFolder(root).weights("rope"), path)
    assert resume_experiment(root) == first
    assert not path.exists()
