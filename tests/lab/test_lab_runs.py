from __future__ import annotations

import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest

from alibi_attention.lab.config import ExperimentConfig
from alibi_attention.lab.corpus import load_corpus
from alibi_attention.lab.errors import LabError
from alibi_attention.lab.evaluation import Score
from alibi_attention.lab.experiment import resume_experiment, start_experiment
from alibi_attention.lab.figures import draw_figure, save_figures
from alibi_attention.lab.files import replacing
from alibi_attention.lab.runs import MethodResult
from alibi_attention.lab.tables import markdown_table

MakeConfig = Callable[..., ExperimentConfig]
PNG = b"\x89PNG\r\n\x1a\n"


def result(method: str, title: str, *bits: float) -> MethodResult:
    scores = tuple(Score(length=256 << i, bits_per_byte=b, scored_bytes=9) for i, b in enumerate(bits))
    return MethodResult(
        method=method, title=title, parameters=1, trained_bytes=2, scores=scores, train_seconds=3, eval_seconds=4
    )


RESULTS = [result("alibi", "ALiBi", 2.1294, 2.1, 2.09), result("rope", "RoPE", 2.08, 3.0, 4.6)]


def test_contents(tiny: MakeConfig, tmp_path: Path) -> None:
    root, config = tmp_path / "a" / "run", tiny()
    results = start_experiment(config, root)
    files = {path.relative_to(root).as_posix() for path in root.rglob("*") if "tensorboard/" not in path.as_posix()}
    methods = ["alibi", "sinusoidal", "rope"]
    inside = ("tensorboard", "weights.safetensors", "result.json")
    assert files == {
        "config.json", "documents.json", "results.json", "table.md", "figure.png", "figure.svg",
        *methods, *(f"{method}/{name}" for method in methods for name in inside),
    }  # fmt: skip
    whole = json.loads((root / "results.json").read_text(encoding="utf-8"))
    assert whole["schema_version"] == 1
    assert whole["config"]["eval_lengths"] == [16, 24, 64]
    assert whole["corpus"]["fingerprint"] == load_corpus(config).fingerprint
    assert set(whole["environment"]) == {
        "alibi_attention", "torch", "python", "platform", "processor", "threads", "device", "date",
    }  # fmt: skip
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
        "choose another, or continue that run with --resume"
    )
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["mine"]


def test_bad_text_leaves_nothing_behind(tiny: MakeConfig, tmp_path: Path) -> None:
    with pytest.raises(LabError):
        start_experiment(tiny(text=(str(tmp_path / "missing"),)), tmp_path / "run")
    assert not (tmp_path / "run").exists()


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


def test_resume_refuses_another_schema(tiny: MakeConfig, tmp_path: Path) -> None:
    root = tmp_path / "run"
    start_experiment(tiny(methods=("rope",)), root)
    start = json.loads((root / "config.json").read_text(encoding="utf-8"))
    (root / "config.json").write_text(json.dumps({**start, "schema_version": 99}), encoding="utf-8")
    with pytest.raises(LabError, match=r"^output: expected a run folder of schema version 1, got version 99 in "):
        resume_experiment(root)


def test_resume_refuses_a_spoilt_configuration(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{", encoding="utf-8")
    with pytest.raises(LabError, match=r"^output: expected a config.json as it was written, got .*; start a new run$"):
        resume_experiment(tmp_path)


def test_resuming_a_complete_run_only_reads(tiny: MakeConfig, tmp_path: Path) -> None:
    root = tmp_path / "run"
    first = start_experiment(tiny(), root)
    before = (root / "rope" / "weights.safetensors").stat().st_mtime_ns
    assert resume_experiment(root) == first
    assert (root / "rope" / "weights.safetensors").stat().st_mtime_ns == before


def test_cuda_is_refused_without_a_gpu(tiny: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(LabError) as error:
        start_experiment(tiny(device="cuda"), tmp_path / "run")
    assert str(error.value) == (
        "device: expected a device of this machine, got cuda, which torch does not see here; use cpu"
    )


def test_table() -> None:
    assert markdown_table(RESULTS) == (
        "| bits per byte at | 256 | 512 | 1024 | 256 → 1024 |\n"
        "| --- | ---: | ---: | ---: | ---: |\n"
        "| ALiBi | 2.129 | 2.100 | 2.090 | -0.039 |\n"
        "| RoPE | 2.080 | 3.000 | 4.600 | +2.520 |\n"
    )


def test_figure_has_a_labelled_line_for_each_method(tiny: MakeConfig) -> None:
    axes = draw_figure(RESULTS, tiny(length=256)).axes[0]
    lines = {str(line.get_label()): line for line in axes.get_lines()}
    for outcome in RESULTS:
        assert list(lines[outcome.title].get_xdata()) == [256, 512, 1024]
        assert list(lines[outcome.title].get_ydata()) == [score.bits_per_byte for score in outcome.scores]
    colours = {title: lines[title].get_color() for title in ("ALiBi", "RoPE")}
    assert len(set(colours.values())) == 2
    texts = {text.get_text(): text for text in axes.texts}
    finding = "Change in bits per byte from 256 to 1024: ALiBi −0.04, RoPE +2.52"
    assert set(texts) == {"ALiBi", "RoPE", "training length", finding}
    assert axes.get_title(loc="left") == "Trained at 256 bytes, evaluated at longer lengths"
    assert all(texts[title].get_color() == colour for title, colour in colours.items())


def test_labels_of_lines_that_end_together_stand_apart(tiny: MakeConfig) -> None:
    close = [result("a", "A", 2.0, 3.0), result("b", "B", 1.0, 3.001), result("c", "C", 4.0, 3.002)]
    axes = draw_figure(close, tiny(length=256)).axes[0]
    heights = sorted(text.xy[1] for text in axes.texts if text.get_text() in "ABC")
    low, high = axes.get_ylim()
    assert all(b - a > 0.04 * (high - low) for a, b in pairwise(heights))


def test_figures_are_the_same_every_time(tiny: MakeConfig, tmp_path: Path) -> None:
    for name in ("first", "second"):
        save_figures(RESULTS, tiny(length=256), [tmp_path / f"{name}.svg"])
    assert (tmp_path / "first.svg").read_bytes() == (tmp_path / "second.svg").read_bytes()


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
