"""What each command of the laboratory says of a full disk, and of Ctrl-C: what goes on from there, and nothing else."""

from __future__ import annotations

import errno
import os
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner, Result

from alibi_attention.cli.app import app
from alibi_attention.lab.config import make_config
from alibi_attention.lab.experiment import start_experiment

SIZES = ["--length=16", "--eval-lengths=16,64", "--eval-tokens=256", "--steps=2"]
MODEL = ["--layers=1", "--heads=2", "--width=16", "--batch-size=2", "--warmup=1"]
ANEW = "Continue with the same command, which begins anew."


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A complete run of one method, in a folder with its text and a configuration of a study."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("stops")
    text = folder / "book.txt"
    text.write_text(" ".join(random.Random(0).choices(["near", "keys", "far", "fade"], k=600)), encoding="utf-8")
    sizes = {"length": 16, "eval_lengths": (16, 64), "eval_tokens": 256, "steps": 2, "warmup": 1, "batch_size": 2}
    shape = {"layers": 1, "heads": 2, "width": 16, "methods": ("alibi",), "text": (str(text),)}
    start_experiment(make_config({**sizes, **shape}), folder / "run")
    (folder / "small.yaml").write_text(
        f"text: {text}\nlayers: 1\nheads: 2\nwidth: 16\nbatch_size: 2\nprotocols: windows\nvariants: []\n"
        "recall_share: 0\nwarmup: 1\n",
        encoding="utf-8",
    )
    yield folder / "run"
    torch.set_num_threads(threads)


@pytest.fixture
def alibi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")

    def invoke(*arguments: str) -> Result:
        return CliRunner().invoke(app, arguments, prog_name="alibi")

    return invoke


def fill_at(monkeypatch: pytest.MonkeyPatch, name: str, code: int = errno.ENOSPC) -> None:
    """A disk without room for a file of this name, or another fault of it."""
    replace = Path.replace

    def fill(path: Path, target: Path) -> Path:
        if target.name == name:
            raise OSError(code, os.strerror(code))
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", fill)


@pytest.mark.parametrize(
    ("command", "full_at", "remedy"),
    [
        ("extrapolate --text TEXT --methods=nope --output out", "config.json", "Nothing had begun."),
        ("extrapolate --text TEXT --methods=nope --output out", "weights.safetensors",
         "Continue with\n  alibi extrapolate --resume --output out"),
        ("evaluate RUN --output out", "weights.safetensors", "Nothing had begun."),
        ("evaluate RUN --output out", "result.json", "Continue with\n  alibi extrapolate --resume --output out"),
        ("study --config CONFIG --methods=nope --seeds=1 --output out", "weights.safetensors",
         "Continue with the same command."),
        ("dissect RUN --lengths=32 --mass-length=16 --output out", "inside.json", ANEW),
        ("report RUN --output out", "report.md", ANEW),
    ],
)  # fmt: skip
def test_a_full_disk(
    alibi: Callable[..., Result], run: Path, monkeypatch: pytest.MonkeyPatch, command: str, full_at: str, remedy: str
) -> None:
    words = {"RUN": str(run), "TEXT": str(run.parent / "book.txt"), "CONFIG": str(run.parent / "small.yaml")}
    arguments = [words.get(word, word) for word in command.split()]
    if arguments[0] in ("extrapolate", "study"):
        arguments += SIZES + (MODEL if arguments[0] == "extrapolate" else [])
    with monkeypatch.context() as full:
        fill_at(full, full_at)
        result = alibi(*arguments)
    assert result.exit_code == 2, result.output
    first, _, rest = result.stderr.partition("\n")
    assert first.startswith("error: --output: expected room on the disk, got no room for ")
    assert first.endswith(full_at)
    assert rest == f"  make room. {remedy}\n"
    # What it says goes on.
    again = remedy.partition("  alibi ")[2].split() or arguments
    assert alibi(*again).exit_code == 0
    assert [path.name for path in Path().iterdir()] == ["out"]


@pytest.mark.parametrize(
    ("code", "complaint", "remedy"),
    [
        (errno.EFBIG, "error: --output: expected leave to write files this large, got no room for {path}",
         "raise their limit (ulimit -f) or use another file system."),
        (errno.EIO, "error: files: expected to read and write, got Input/output error ({path})",
         "mend that; what was written is kept."),
    ],
)  # fmt: skip
def test_a_file_that_cannot_be_written_is_named(
    alibi: Callable[..., Result], run: Path, monkeypatch: pytest.MonkeyPatch, code: int, complaint: str, remedy: str
) -> None:
    arguments = ["extrapolate", "--text", str(run.parent / "book.txt"), "--methods=nope", "--output=out"]
    with monkeypatch.context() as full:
        fill_at(full, "weights.safetensors", code)
        result = alibi(*arguments, *SIZES, *MODEL)
    assert result.exit_code == 2, result.output
    path = Path("out", "nope", "weights.safetensors")
    assert result.stderr == (
        f"{complaint.format(path=path)}\n  {remedy} Continue with\n  alibi extrapolate --resume --output out\n"
    )
    assert alibi("extrapolate", "--resume", "--output", "out").exit_code == 0


def test_damaged_weights_of_a_complete_run(alibi: Callable[..., Result], run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "copy")
    path = tmp_path / "copy" / "alibi" / "weights.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    result = alibi("extrapolate", "--resume", "--output", str(tmp_path / "copy"))
    assert result.exit_code == 2, result.output
    assert result.stderr.startswith(f"error: --resume: expected a whole file of this program, got {path} (")
    assert result.stdout == ""


@pytest.mark.parametrize(
    ("command", "stopped_in", "words"),
    [
        ("dissect RUN --lengths=32 --mass-length=16", "dissection.look_inside", ANEW),
        ("report RUN --output out", "report.draw_report_figures", ANEW),
        ("evaluate RUN --output out", "experiment.load_corpus", "Nothing had begun."),
        ("evaluate RUN --output out", "experiment.run_protocol",
         "Continue with\n  alibi extrapolate --resume --output out"),
    ],
)  # fmt: skip
def test_ctrl_c(
    alibi: Callable[..., Result], run: Path, monkeypatch: pytest.MonkeyPatch, command: str, stopped_in: str, words: str
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(f"alibi_attention.lab.{stopped_in}", interrupt)
    result = alibi(*(str(run) if word == "RUN" else word for word in command.split()))
    assert result.exit_code == 130
    assert result.stderr == f"Stopped at once. {words}\n"
