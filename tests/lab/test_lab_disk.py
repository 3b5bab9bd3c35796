"""Files that could not be written, and disks that are full."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from alibi_attention.lab.config import ExperimentConfig
from alibi_attention.lab.errors import LabError
from alibi_attention.lab.experiment import reevaluate_experiment, resume_experiment, start_experiment
from alibi_attention.lab.files import NoRoomError, replacing, write_text
from alibi_attention.lab.runs import RunFolder

MakeConfig = Callable[..., ExperimentConfig]


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    path.write_text("old", encoding="utf-8")

    def fail() -> None:
        with replacing(path) as temporary:
            temporary.write_text("half", encoding="utf-8")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert path.read_text(encoding="utf-8") == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["file.txt"]


def test_full_disk_loses_nothing(tiny: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, whole = tmp_path / "run", tmp_path / "whole"
    config = tiny(methods=("rope",))
    start_experiment(config, whole)
    calls = 0
    sync = os.fsync

    def fill(descriptor: int) -> None:
        nonlocal calls
        calls += 1
        if calls == 6:
            raise OSError(errno.ENOSPC, "No space left on device")
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", fill)
    with pytest.raises(LabError) as error:
        start_experiment(config, root)
    assert str(error.value).startswith(f"output: expected room on the disk, got no room for {root}")
    assert str(error.value).endswith("; make room and go on; nothing that was written before is lost")
    resume_experiment(root)
    assert RunFolder(root).weights("rope").read_bytes() == RunFolder(whole).weights("rope").read_bytes()
    both = [RunFolder(folder).read_result("rope") for folder in (root, whole)]
    assert both[0] is not None
    assert both[1] is not None
    assert both[0].evaluations == both[1].evaluations


def test_a_full_disk_gets_back_what_was_copied(
    tiny: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start_experiment(tiny(methods=("rope", "nope")), tmp_path / "run")
    copy, copied = shutil.copyfile, []

    def fill(source: Path, target: Path) -> None:
        copy(source, target)
        copied.append(target)
        if len(copied) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(shutil, "copyfile", fill)
    with pytest.raises(
        LabError, match=r"^output: expected room on the disk, got no room for .*; make room and go on; "
    ):
        reevaluate_experiment(tmp_path / "run", tmp_path / "again", {})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run", "texts"]


def test_a_file_larger_than_the_limit_is_refused_by_its_name(tmp_path: Path) -> None:
    """As under `ulimit -f`."""
    resource = pytest.importorskip("resource")
    path = tmp_path / "weights.bin"
    path.write_text("old", encoding="utf-8")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, before[1]))
    try:
        with pytest.raises(NoRoomError) as error:
            write_text(path, "x" * (1 << 17))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert str(error.value) == (
        f"output: expected leave to write files this large, got no room for {path}; "
        "raise their limit (ulimit -f) or use another file system and go on; "
        "nothing that was written before is lost"
    )
    assert [file.name for file in tmp_path.iterdir()] == ["weights.bin"]
    assert path.read_text(encoding="utf-8") == "old"


def test_what_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By its own name, whatever the system was doing: of a descriptor it tells none, of a temporary file that one's."""

    def fail(_: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    (tmp_path / "folder.txt").mkdir()
    with pytest.raises(IsADirectoryError) as error:
        write_text(tmp_path / "folder.txt", "")
    assert error.value.filename == str(tmp_path / "folder.txt")
    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match=r"Input/output error: '.*file.txt'$") as failed:
        write_text(tmp_path / "file.txt", "")
    assert failed.value.filename == str(tmp_path / "file.txt")
    # What is read for it has a name of its own.
    with pytest.raises(FileNotFoundError) as missing, replacing(tmp_path / "copy.txt") as temporary:
        shutil.copyfile(tmp_path / "nowhere", temporary)
    assert Path(missing.value.filename) == tmp_path / "nowhere"
