from __future__ import annotations

import copy
import errno
import json
import os
import shutil
import signal
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from lab_cases import Said

import alibi_attention
from alibi_attention.backends import native
from alibi_attention.lab.complete import Run, read_runs
from alibi_attention.lab.config import ExperimentConfig
from alibi_attention.lab.config_file import read_config_file
from alibi_attention.lab.corpus import load_corpus
from alibi_attention.lab.environment import environment, machine_words, sources
from alibi_attention.lab.errors import LabError, RunInterrupted
from alibi_attention.lab.experiment import reevaluate_experiment, resume_experiment, start_experiment
from alibi_attention.lab.figures import draw_figure, save_figures
from alibi_attention.lab.files import replacing
from alibi_attention.lab.interruption import Interruption
from alibi_attention.lab.lock import locked
from alibi_attention.lab.positions import position_methods
from alibi_attention.lab.preconditions import UNTAUGHT
from alibi_attention.lab.report import write_report
from alibi_attention.lab.runs import MethodResult, RunFolder, evaluations_of
from alibi_attention.lab.scores import Evaluation, LossVerdict, RecallScore, Score
from alibi_attention.lab.summary import machine_differences
from alibi_attention.lab.tables import markdown_table, recall_rows

MakeConfig = Callable[..., ExperimentConfig]
PNG = b"\x89PNG\r\n\x1a\n"


def evaluation(name: str, title: str, *bits: float | None) -> Evaluation:
    scores = tuple(
        Score(length=256 << i, bits_per_byte=b, scored_bytes=9, note="it ends" if b is None else None)
        for i, b in enumerate(bits)
    )
    return Evaluation(
        name=name, title=title, windows=scores, usable_by_perplexity=LossVerdict(protocol="windows", length=512)
    )


def result(method: str, title: str, *bits: float | None) -> MethodResult:
    return MethodResult(
        method=method, title=title, parameters=1, position_parameters=0, trained_tokens=2, train_seconds=3,
        eval_seconds=4, evaluations=(evaluation(method, title, *bits),),
    )  # fmt: skip


RESULTS = [result("alibi", "ALiBi", 2.1294, 2.1, 2.09), result("rope", "RoPE", 2.08, 3.0, 4.6)]


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


def test_resume_refuses_a_spoilt_configuration(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{", encoding="utf-8")
    with pytest.raises(LabError, match=r"^run: expected a config.json as it was written, got .*; start a new run$"):
        resume_experiment(tmp_path)


def test_resuming_a_complete_run_only_reads(tiny: MakeConfig, tmp_path: Path) -> None:
    root = tmp_path / "run"
    first = start_experiment(tiny(), root)
    before = (root / "rope" / "weights.safetensors").stat().st_mtime_ns
    assert resume_experiment(root) == first
    assert (root / "rope" / "weights.safetensors").stat().st_mtime_ns == before


def test_table() -> None:
    assert markdown_table(RESULTS) == (
        "| bits per byte at | 256 | 512 | 1024 | 256 → 1024 |\n"
        "| --- | ---: | ---: | ---: | ---: |\n"
        "| ALiBi | 2.129 | 2.100 | 2.090 | −0.039 |\n"
        "| RoPE | 2.080 | 3.000 | 4.600 | +2.520 |\n"
        "\n"
        "| usable length by | perplexity, windows | recall |\n"
        "| --- | ---: | ---: |\n"
        "| ALiBi | 512 | — |\n"
        "| RoPE | 512 | — |\n"
    )


def test_table_says_why_numbers_are_missing() -> None:
    text = markdown_table([*RESULTS, result("learned", "learned", 2.5, None, None)])
    assert "| learned | 2.500 | — | — | — |\n" in text
    assert text.endswith("\nlearned: it ends; no result at 512, 1024.\n")


def test_table_of_recall() -> None:
    cells = ((256, 32, 8), (256, 128, 7), (512, 32, 8), (512, 256, 1))
    recall = tuple(RecallScore(length=n, distance=d, asked=8, recalled=r) for n, d, r in cells)
    ends = RecallScore(length=512, distance=256, asked=0, recalled=0, note="ends")
    rows = recall_rows([
        evaluation("a", "A", 1.0).model_copy(update={"recall": recall}),
        evaluation("b", "B", 1.0).model_copy(update={"recall": (*recall[:2], ends)}),
    ])  # fmt: skip
    assert rows == (["recalled at", "128 of 256", "256 of 512"], [["A", "88%", "12%"], ["B", "88%", "—"]])


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


def test_the_finding_fits_above_the_axes(tiny: MakeConfig) -> None:
    names = ("ALiBi", "RoPE", "sinusoidal", "T5 bias")
    for unit in ("next", "masked"):
        results = [result(name, name, 2.0 + 0.1 * i, 2.0 + 0.2 * i) for i, name in enumerate(names)]
        many = [
            r.model_copy(update={"evaluations": tuple(e.model_copy(update={"objective": unit}) for e in r.evaluations)})
            for r in results
        ]
        figure = draw_figure(many, tiny(length=256))
        figure.draw_without_rendering()
        (text,) = [text for text in figure.axes[0].texts if text.get_text().startswith("Change in ")]
        assert text.get_window_extent().x1 <= figure.bbox.width


def test_many_lines_are_named_in_a_legend(tiny: MakeConfig) -> None:
    variants = [evaluation(f"rope:{i}", f"RoPE {i}", 2.0, 2.0 + i) for i in range(7)]
    many = [RESULTS[0].model_copy(update={"evaluations": tuple(variants)}), result("learned", "learned", 2.5, None)]
    figure = draw_figure(many, tiny(length=256))
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == [*(f"RoPE {i}" for i in range(7)), "learned"]
    figure.draw_without_rendering()
    box = legend.get_window_extent()
    assert box.y0 >= 0
    assert box.y1 <= figure.bbox.height
    lines = [line for line in figure.axes[0].get_lines() if str(line.get_label()).startswith("RoPE")]
    # One colour for a method, dashes for its variants.
    assert len({line.get_color() for line in lines}) == 1
    assert [line.get_linestyle() for line in lines[:4]] == ["-", "--", ":", "-."]


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


def test_recall_alone_is_shown(tiny: MakeConfig, tmp_path: Path) -> None:
    config = tiny(
        methods=("rope", "learned"), protocols=("recall",), recall_share=0.5, length=32, eval_lengths=(32, 64),
        recall_trials=8,
    )  # fmt: skip
    results = start_experiment(config, tmp_path / "run")
    text = markdown_table(results)
    assert text.startswith("| recalled at | 29 of 32 | 61 of 64 |\n")
    assert "| usable length by | perplexity | recall |\n| --- | ---: | ---: |\n| RoPE | — | not learned: " in text
    assert text.endswith("\nlearned: its positions end at 32; no result at 64.\n")
    axes = draw_figure(results, config).axes[0]
    assert axes.get_title(loc="left") == "Values recalled by distance, in windows of 64 bytes"
    lines = {str(line.get_label()): line for line in axes.get_lines()}
    assert list(lines["RoPE"].get_xdata()) == [32, 61]
    assert (tmp_path / "run" / "figure.png").read_bytes().startswith(PNG)
    write_report([tmp_path / "run"], tmp_path / "page")
    # And of a run that was evaluated by other protocols.
    start_experiment(tiny(methods=("rope",)), tmp_path / "other")
    said = Said()
    again = reevaluate_experiment(tmp_path / "other", tmp_path / "again", {"protocols": ("recall",)}, said)
    assert [score.distance for score in again[0].evaluations[0].recall] == [13, 21, 32, 61]
    assert UNTAUGHT in said.lines
    assert "not taught: " in (tmp_path / "again" / "table.md").read_text(encoding="utf-8")


# What was interrupted, damaged, or begun elsewhere


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


class Stopping(Interruption):
    """Asks to stop at a certain question."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self._left = at

    def check(self) -> None:
        self._left -= 1
        if self._left <= 0:
            raise RunInterrupted(signal.SIGTERM)


def stopped(config: ExperimentConfig, root: Path, at: int = 2) -> Path:
    """A run that was stopped in its evaluation: the first question is asked after training."""
    with pytest.raises(RunInterrupted):
        start_experiment(config, root, stop=Stopping(at))
    return root


def told_of_change(said: Said) -> list[str]:
    return [line for line in said.lines if line.startswith("Last worked on")]


def test_where_each_process_worked_is_kept_and_told(tiny: MakeConfig, tmp_path: Path) -> None:
    root = stopped(tiny(methods=("rope",)), tmp_path / "run")
    folder, said = RunFolder(root), Said()
    assert not folder.sessions.exists()
    torch.set_num_threads(2)
    try:
        resume_experiment(root, said, stop=None)
    finally:
        torch.set_num_threads(1)
    assert told_of_change(said) == [
        "Last worked on with other means: threads 1 → 2. It goes on, but the last bits may come out otherwise."
    ]
    assert [session["threads"] for session in folder.read_sessions()] == [1, 2]
    whole = json.loads(folder.results.read_text(encoding="utf-8"))
    assert whole["sessions"] == folder.read_sessions()
    page = write_report([root], tmp_path / "report").read_text(encoding="utf-8")
    assert ", 1 thread, then 2, cpu, torch " in page
    # Of a complete run nothing is computed: nobody worked on it.
    resume_experiment(root, said)
    assert len(told_of_change(said)) == 1
    assert len(folder.read_sessions()) == 2
    # What it is compared with is the last of them.
    folder.result("rope").unlink()
    resume_experiment(root, said)
    assert "threads 2 → 1" in told_of_change(said)[1]
    assert [session["threads"] for session in folder.read_sessions()] == [1, 2, 1]
    assert ", 1 thread, then 2, then 1, cpu" in machine_words(folder.read_sessions())
    # And of two runs, all of it.
    first, other = (Run(root, tiny(), [], {}, sessions, {}) for sessions in (folder.read_sessions(), whole["sessions"]))
    assert machine_differences([first, other]) == ["seed 0: threads 1, then 2, then 1 → 1, then 2"]
    assert machine_differences([first, first]) == []


def test_a_run_of_before_sessions_and_sources_were_kept(tiny: MakeConfig, tmp_path: Path) -> None:
    root = stopped(tiny(methods=("rope",)), tmp_path / "run")
    start = json.loads((root / "config.json").read_text(encoding="utf-8"))
    for name in ("sources", "transformers", "tokenizers", "kernel"):
        del start["environment"][name]
    start["environment"] |= {"torch": "1.0"}
    (root / "config.json").write_text(json.dumps(start), encoding="utf-8")
    said = Said()
    resume_experiment(root, said)
    now = environment("cpu")
    assert told_of_change(said) == [
        f"Last worked on with other means: sources not written down → {now['sources']}, "
        f"torch 1.0 → {torch.__version__}. It goes on, but the last bits may come out otherwise."
    ]
    first, second = RunFolder(root).read_sessions()
    assert first == start["environment"]
    assert {**second, "date": ""} == {**now, "date": ""}
    assert f"torch 1.0, then {torch.__version__}, " in machine_words([first, second])


def test_other_sources_are_told(tiny: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = stopped(tiny(methods=("rope",)), tmp_path / "run")
    before = environment("cpu")["sources"]
    monkeypatch.setattr("alibi_attention.lab.environment.sources", lambda: "0123456789ab")
    said = Said()
    resume_experiment(root, said)
    assert f"other means: sources {before} → 0123456789ab. " in told_of_change(said)[0]


def test_sources_are_all_that_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package, kernels = tmp_path / "package", tmp_path / "elsewhere"
    for folder in (package / "lab", kernels):
        folder.mkdir(parents=True)
    files = (package / "__init__.py", package / "lab" / "a.py", kernels / "_alibi_cpu.so")
    monkeypatch.setattr("alibi_attention.__file__", str(files[0]))
    monkeypatch.setattr("alibi_attention.backends.__path__", [str(kernels)])
    seen = set()
    for file in (*files, *files):
        file.write_bytes(file.read_bytes() + b"more" if file.exists() else b"")
        sources.cache_clear()
        seen.add(sources())
    files[1].rename(package / "a.py")
    assert sources() in seen, "taken once in a process"
    sources.cache_clear()
    seen.add(sources())
    sources.cache_clear()
    assert len(seen) == 7
    assert {len(each) for each in seen} == {12}


def test_the_kernel_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    library = native.load()
    assert environment("cpu")["kernel"] == ("blocked" if isinstance(library, str) else f"cpu {library.isa}")
    monkeypatch.setattr(native, "load", lambda: "none here")
    assert environment("cpu")["kernel"] == "blocked"

    def refuse() -> str:
        raise RuntimeError

    monkeypatch.setattr(native, "load", refuse)
    assert environment("cpu")["kernel"] == "none"


def test_damaged_sessions_are_refused_and_need_not_be_kept(tiny: MakeConfig, tmp_path: Path) -> None:
    root = stopped(tiny(methods=("rope",)), tmp_path / "run")
    for content in ("{", '{"schema_version": 3}', '{"schema_version": 3, "sessions": []}'):
        (root / "sessions.json").write_text(content, encoding="utf-8")
        with pytest.raises(LabError) as error:
            resume_experiment(root)
        assert str(error.value) == (
            f"run: expected a file as this version writes it, got {root / 'sessions.json'}; "
            "delete this file: where it was continued is then not known"
        )
    (root / "sessions.json").unlink()
    resume_experiment(root)
    assert len(RunFolder(root).read_sessions()) == 2


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


# Everything at once, and evaluation once more


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


def test_weights_of_another_configuration_are_refused(tiny: MakeConfig, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    start_experiment(tiny(methods=("rope",)), first)
    start_experiment(tiny(methods=("rope",), width=32), second)
    (first / "rope" / "result.json").unlink()
    (second / "rope" / "weights.safetensors").replace(first / "rope" / "weights.safetensors")
    with pytest.raises(LabError, match=r"^run: expected weights of this configuration, got .*weights.safetensors \("):
        resume_experiment(first)
