"""Trained models evaluated once more, in a folder of their own."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from alibi_attention.lab.config import ExperimentConfig
from alibi_attention.lab.errors import LabError
from alibi_attention.lab.experiment import reevaluate_experiment, start_experiment
from alibi_attention.lab.lock import locked
from alibi_attention.lab.runs import RunFolder, evaluations_of

MakeConfig = Callable[..., ExperimentConfig]


def test_evaluated_once_more_without_training(tiny: MakeConfig, tmp_path: Path) -> None:
    source, root = tmp_path / "run", tmp_path / "again"
    first = start_experiment(tiny(methods=("rope", "learned")), source)
    again = reevaluate_experiment(source, root, {"eval_lengths": (16, 24, 64, 128), "variants": ("rope:pi",)})
    for before, after in zip(first, again, strict=True):
        assert after.train_seconds == before.train_seconds
        assert (
            RunFolder(root).weights(after.method).read_bytes() == RunFolder(source).weights(after.method).read_bytes()
        )
    assert [e.name for e in evaluations_of(again)] == ["rope", "rope:pi", "learned"]
    assert [score.length for score in again[0].scores] == [16, 24, 64, 128]
    same = reevaluate_experiment(source, tmp_path / "same", {})
    assert [r.evaluations for r in same] == [r.evaluations for r in first]
    with pytest.raises(LabError, match=r"^steps: expected a setting of evaluation, got this one; change variants, "):
        reevaluate_experiment(source, tmp_path / "other", {"steps": 3})
    (source / "rope" / "weights.safetensors").unlink()
    with pytest.raises(LabError, match=r"^run: expected a run with rope trained, got "):
        reevaluate_experiment(source, tmp_path / "other", {})


def test_what_another_process_copies_is_left_to_it(tiny: MakeConfig, tmp_path: Path) -> None:
    start_experiment(tiny(methods=("rope",)), tmp_path / "run")
    theirs = tmp_path / ".again.partial"
    with locked(theirs):
        (theirs / "rope").mkdir()
        with pytest.raises(LabError, match="expected a folder no other process works in"):
            reevaluate_experiment(tmp_path / "run", tmp_path / "again", {})
    assert (theirs / "rope").is_dir()


def test_who_trained_is_kept_with_what_is_evaluated_once_more(tiny: MakeConfig, tmp_path: Path) -> None:
    start_experiment(tiny(methods=("rope",)), tmp_path / "run")
    torch.set_num_threads(2)
    try:
        reevaluate_experiment(tmp_path / "run", tmp_path / "again", {})
    finally:
        torch.set_num_threads(1)
    folder = RunFolder(tmp_path / "again")
    assert [session["threads"] for session in folder.read_sessions()] == [1, 2]
    assert [session["methods"] for session in folder.read_sessions()] == [["rope"], ["rope"]]
    assert folder.read_start()["environment"]["threads"] == 2


@pytest.mark.parametrize("name", [".", ".."])
def test_a_folder_without_a_name_is_refused(
    tiny: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    start_experiment(tiny(methods=("rope",)), tmp_path / "run")
    (tmp_path / "empty" / "inside").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "empty" / ("inside" if name == ".." else ""))
    before = sorted(path.name for path in tmp_path.rglob("*"))
    with pytest.raises(LabError) as error:
        reevaluate_experiment(tmp_path / "run", Path(name), {})
    assert str(error.value) == (
        f"output: expected a new folder by its name, got {name}, which is no name of one; name one, such as runs/again"
    )
    assert sorted(path.name for path in tmp_path.rglob("*")) == before


@pytest.mark.parametrize("left", [(), (".config.partial.json",)])
def test_a_link_to_an_empty_folder_stays_one(tiny: MakeConfig, tmp_path: Path, left: tuple[str, ...]) -> None:
    """Empty but for what a killed process left in it."""
    start_experiment(tiny(methods=("rope",)), tmp_path / "run")
    target, link = tmp_path / "elsewhere" / "target", tmp_path / "link"
    target.mkdir(parents=True)
    for name in left:
        (target / name).write_text("half", encoding="utf-8")
    link.symlink_to(target)
    results = reevaluate_experiment(tmp_path / "run", link, {})
    assert link.readlink() == target
    assert RunFolder(target).read_results() == results
    assert [path.name for path in target.parent.iterdir()] == ["target"]
    assert not [path for path in target.iterdir() if path.name.startswith(".")]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["elsewhere", "link", "run", "texts"]


def test_a_link_to_nothing_leads_to_the_new_run(tiny: MakeConfig, tmp_path: Path) -> None:
    target, link, other = tmp_path / "elsewhere" / "target", tmp_path / "link", tmp_path / "other"
    link.symlink_to(target)
    other.symlink_to(tmp_path / "run")
    start_experiment(tiny(methods=("rope",)), other)
    results = reevaluate_experiment(other, link, {})
    assert link.readlink() == target
    assert RunFolder(target).read_results() == results
    assert sorted(path.name for path in tmp_path.iterdir()) == ["elsewhere", "link", "other", "run", "texts"]


def test_a_run_begun_in_the_meantime_is_kept(tiny: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "again"
    start_experiment(tiny(methods=("rope",)), tmp_path / "run")
    # Begun, but without a file yet.
    with locked(root), pytest.raises(LabError, match=r"^output: expected a folder no other process works in, got "):
        reevaluate_experiment(tmp_path / "run", root, {})
    assert root.is_dir()
    begin = RunFolder.begin

    def begin_both(folder: RunFolder, *arguments: Any) -> None:
        begin(folder, *arguments)
        (root / "config.json").write_text("theirs", encoding="utf-8")

    with monkeypatch.context() as patched:
        patched.setattr(RunFolder, "begin", begin_both)
        with pytest.raises(LabError) as error:
            reevaluate_experiment(tmp_path / "run", root, {})
    assert str(error.value).startswith(f"output: expected a new or empty folder, got {root}, which exists; choose an")
    assert (root / "config.json").read_text(encoding="utf-8") == "theirs"
    assert not (tmp_path / ".again.partial").exists()


def test_a_folder_that_cannot_be_replaced(tiny: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "again"
    start_experiment(tiny(methods=("rope",)), tmp_path / "run")
    remove, replace = Path.rmdir, Path.replace

    def remove_late(path: Path) -> None:
        if path == root:
            (root / "theirs").write_text("kept", encoding="utf-8")
        remove(path)

    def refuse(path: Path, target: Path) -> Path:
        if target == root:
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))
        return replace(path, target)

    for name, patch, code in (("rmdir", remove_late, errno.ENOTEMPTY), ("replace", refuse, errno.EBUSY)):
        with monkeypatch.context() as patched:
            patched.setattr(Path, name, patch)
            with pytest.raises(LabError) as error:
                reevaluate_experiment(tmp_path / "run", root, {})
        assert str(error.value) == (
            f"output: expected an empty folder that can be replaced, got {root} ({os.strerror(code)}); "
            "name another; nothing in it was changed"
        )
        assert not (tmp_path / ".again.partial").exists()
        if name == "rmdir":
            assert (root / "theirs").read_text(encoding="utf-8") == "kept"
            (root / "theirs").unlink()
    reevaluate_experiment(tmp_path / "run", root, {})
