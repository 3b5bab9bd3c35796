"""Where a report may be written, and what of an earlier one stays."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from lab_cases import TINY, write_texts

from alibi_attention.lab.config import make_config
from alibi_attention.lab.dissection import dissect_run
from alibi_attention.lab.errors import LabError
from alibi_attention.lab.experiment import start_experiment
from alibi_attention.lab.report import write_report


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Seeds 0 and 1 of one method, and what is inside the first."""
    folder = tmp_path_factory.mktemp("runs")
    text = str(write_texts(folder / "texts"))
    roots = [folder / f"seed-{seed}" for seed in (0, 1)]
    for seed, root in enumerate(roots):
        start_experiment(make_config({**TINY, "methods": ("alibi",), "text": (text,), "seed": seed}), root)
    dissect_run(roots[0], "alibi", (32,), mass_length=16)
    return roots


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def refusal(roots: list[Path], folder: Path) -> str:
    """What is said of a folder, which stays as it is."""
    before = contents(folder)
    with pytest.raises(LabError) as error:
        write_report(roots, folder)
    assert contents(folder) == before
    return str(error.value)


@pytest.mark.parametrize(
    ("theirs", "said"),
    [
        (["summary.json"], "summary.json comes"),
        (["figures/windows.png"], "figures comes"),
        (["run-seed-7.json"], "run-seed-7.json comes"),
        (["config-seed-0.yaml", "report.md", "summary.json"], "report.md, summary.json, config-seed-0.yaml come"),
    ],
)
def test_what_is_there_from_elsewhere_is_not_overwritten(
    runs: list[Path], tmp_path: Path, theirs: list[str], said: str
) -> None:
    for name in theirs:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text('{"evaluations": 3}', encoding="utf-8")
    assert refusal(runs, tmp_path) == (
        f"output: expected a new folder, or one with an earlier report, got {tmp_path}, whose {said} from elsewhere; "
        "name another"
    )


def test_what_is_no_report_s_is_left_alone(runs: list[Path], tmp_path: Path) -> None:
    (tmp_path / "figures").mkdir()
    for name in ("notes.md", "run-seed-x.json", "results.json"):
        (tmp_path / name).write_text("mine", encoding="utf-8")
    write_report(runs, tmp_path)
    (tmp_path / "figures" / "mine.png").write_text("mine", encoding="utf-8")
    write_report(runs, tmp_path)
    mine = [name for name, content in contents(tmp_path).items() if content == b"mine"]
    assert sorted(mine) == ["figures/mine.png", "notes.md", "results.json", "run-seed-x.json"]


def test_figures_that_are_not_drawn_again_go(runs: list[Path], tmp_path: Path) -> None:
    write_report(runs, tmp_path / "report")
    drawn = {path.name for path in (tmp_path / "report" / "figures").iterdir()}
    assert "inside-alibi-mass.svg" in drawn
    plain = [tmp_path / root.name for root in runs]
    for root, copy in zip(runs, plain, strict=True):
        shutil.copytree(root, copy, ignore=shutil.ignore_patterns("inside"))
    write_report(plain, tmp_path / "report")
    write_report(plain, tmp_path / "new")
    assert contents(tmp_path / "report") == contents(tmp_path / "new")


def test_a_report_that_was_interrupted_is_made_again(
    runs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    for part in ("save_figure", "write_run", "write_text"):
        with monkeypatch.context() as patch:
            patch.setattr(f"alibi_attention.lab.report.{part}", interrupt)
            with pytest.raises(KeyboardInterrupt):
                write_report(runs, tmp_path / "report")
    write_report(runs, tmp_path / "report")
    write_report(runs, tmp_path / "new")
    assert contents(tmp_path / "report") == contents(tmp_path / "new")


def test_runs_of_other_seeds_are_neither_lost_nor_passed_over(runs: list[Path], tmp_path: Path) -> None:
    """They may be all that is left of a seed."""
    folder = tmp_path / "report"
    write_report(runs, folder)
    assert refusal(runs[:1], folder) == (
        f"output: expected a new folder, or one whose report is of no other runs, got {folder}, which has "
        "config-seed-1.yaml, run-seed-1.json; report their runs as well, move them away, or name another folder"
    )
    assert "run-seed-1.json" in refusal([folder / "run-seed-0.json"], folder)
    # Of all seeds, whether they are read from their folders or from what lies there.
    whole = contents(folder)
    write_report([runs[0], folder / "run-seed-1.json"], folder)
    assert contents(folder)["run-seed-1.json"] == whole["run-seed-1.json"]
    assert json.loads((folder / "summary.json").read_text(encoding="utf-8"))["config"]["seed"] == [0, 1]


def test_what_is_reported_may_lie_in_the_folder_and_above_it(runs: list[Path], tmp_path: Path) -> None:
    write_report(runs, tmp_path / "first")
    files = [tmp_path / f"run-seed-{seed}.json" for seed in (0, 1)]
    for file in files:
        shutil.copyfile(tmp_path / "first" / file.name, file)
    whole = contents(tmp_path / "first")
    write_report(files, tmp_path / "below")
    write_report(files, tmp_path)
    for file in files:
        assert file.read_bytes() == whole[file.name] == (tmp_path / "below" / file.name).read_bytes()
    # By whatever name it goes.
    other = tmp_path / "other"
    other.mkdir()
    shutil.copyfile(files[1], other / "run-seed-5.json")
    write_report([other / "run-seed-5.json"], other)
    assert (other / "run-seed-5.json").read_bytes() == (other / "run-seed-1.json").read_bytes() == files[1].read_bytes()
