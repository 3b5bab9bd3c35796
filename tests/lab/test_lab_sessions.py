"""Where and by what each process worked on a run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from lab_cases import Said, stopped

from alibi_attention.backends import native
from alibi_attention.lab.complete import Run
from alibi_attention.lab.config import ExperimentConfig
from alibi_attention.lab.environment import environment, machine_words, sources
from alibi_attention.lab.errors import LabError
from alibi_attention.lab.experiment import reevaluate_experiment, resume_experiment
from alibi_attention.lab.report import write_report
from alibi_attention.lab.runs import RunFolder
from alibi_attention.lab.summary import machine_differences

MakeConfig = Callable[..., ExperimentConfig]


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


def test_which_methods_each_process_worked_on_is_kept(tiny: MakeConfig, tmp_path: Path) -> None:
    root = stopped(tiny(methods=("alibi", "rope")), tmp_path / "run")
    folder = RunFolder(root)
    resume_experiment(root)
    assert [session["methods"] for session in folder.read_sessions()] == [["alibi"], ["alibi", "rope"]]
    folder.result("rope").unlink()
    resume_experiment(root)
    assert [session["methods"] for session in folder.read_sessions()][2:] == [["rope"]]
    assert json.loads(folder.results.read_text(encoding="utf-8"))["sessions"] == folder.read_sessions()
    # Evaluated once more, by a process that trained nothing.
    reevaluate_experiment(root, tmp_path / "again", {})
    again = RunFolder(tmp_path / "again").read_sessions()
    assert again[:-1] == folder.read_sessions()
    assert again[-1]["methods"] == ["alibi", "rope"]


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
    assert first == {**start["environment"], "methods": ["rope"]}
    assert {**second, "date": ""} == {**now, "date": "", "methods": ["rope"]}
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
