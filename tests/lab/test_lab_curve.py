"""The curve for TensorBoard, and trainings that go on without it."""

from __future__ import annotations

import errno
import io
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.compat.tensorflow_stub.io.gfile import LocalFileSystem

from alibi_attention.lab.config import ExperimentConfig
from alibi_attention.lab.curve import Curve
from alibi_attention.lab.errors import LabError
from alibi_attention.lab.experiment import start_experiment
from alibi_attention.lab.progress import Progress
from alibi_attention.lab.runs import RunFolder

MakeConfig = Callable[..., ExperimentConfig]

NO_ROOM = "cannot be written (No space left on device). Training goes on without it."


def telling() -> tuple[io.StringIO, Progress]:
    text = io.StringIO()
    return text, Progress(Console(file=text, width=400), every=3600.0)


def fill_after(records: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk on which TensorBoard finds room for so many records."""
    write, left = LocalFileSystem._write, records

    def fill(self: LocalFileSystem, *what: object) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(self, *what)

    monkeypatch.setattr(LocalFileSystem, "_write", fill)


@pytest.mark.parametrize("records", [0, 1, 4, 6])
def test_a_run_goes_on_without_its_curve(
    tiny: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], records: int
) -> None:
    """The first record is the head of the file, and each tenth step has three."""
    config = tiny(methods=("rope",), steps=25, eval_lengths=(16,))
    start_experiment(config, tmp_path / "whole")
    fill_after(records, monkeypatch)
    text, progress = telling()
    start_experiment(config, tmp_path / "run", progress)
    folders = [RunFolder(tmp_path / name) for name in ("whole", "run")]
    weights, again = (folder.weights("rope").read_bytes() for folder in folders)
    assert weights == again
    said = [line for line in text.getvalue().splitlines() if "TensorBoard" in line]
    assert said == [f"The curve for TensorBoard ends: {folders[1].logs('rope')} {NO_ROOM}"]
    assert capfd.readouterr().err == ""


def test_a_folder_that_cannot_be_made(tiny: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RunFolder, "logs", lambda self, _: self.config)
    text, progress = telling()
    start_experiment(tiny(methods=("nope",), eval_lengths=(16,)), tmp_path / "run", progress)
    assert text.getvalue().count("The curve for TensorBoard ends: ") == 1
    assert (tmp_path / "run" / "results.json").is_file()


def test_what_ends_a_run_is_not_lost_behind_the_curve(
    tiny: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fill(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    fill_after(5, monkeypatch)
    monkeypatch.setattr("alibi_attention.lab.checkpoint.save", fill)
    with pytest.raises(LabError, match=r"^output: expected room on the disk, got no room for .*checkpoint"):
        start_experiment(tiny(methods=("rope",), steps=20, checkpoint_every=10), tmp_path / "run")


def test_others_threads_are_heard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[type[BaseException]] = []
    monkeypatch.setattr(threading, "excepthook", lambda what: heard.append(what.exc_type))
    before = threading.excepthook

    def fail(error: Exception) -> None:
        raise error

    curve = Curve(tmp_path / "curve")
    curve.open(Progress())
    for error in (OSError(), ValueError()):
        thread = threading.Thread(target=fail, args=(error,))
        thread.start()
        thread.join()
    assert heard == [ValueError]
    curve.write({"loss": 0.5}, 10)
    curve.close()
    curve.close()
    assert threading.excepthook is before
    events = EventAccumulator(str(tmp_path / "curve"))
    events.Reload()
    assert [(entry.step, entry.value) for entry in events.Scalars("loss")] == [(10, 0.5)]
