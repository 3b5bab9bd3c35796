"""``alibi bench`` from end to end, at sizes that take moments; nothing here asserts a time."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner, Result

from alibi_attention.bench import trial as trial_module
from alibi_attention.bench.cases import CASES
from alibi_attention.bench.machine import machine
from alibi_attention.bench.peers import PEERS
from alibi_attention.bench.run import Bench
from alibi_attention.cli.app import app

Invoke = Callable[..., Result]

# One thread: workers of several wait for each other where tests run side by side.
SMALL = ("--quick", "--lengths=64,96", "--threads=1", "--repeats=2")


@pytest.fixture
def alibi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Invoke:
    """The command in an empty working folder, on a wide terminal without colour, with no switch of speed set."""
    for name in machine()["switches"]:
        monkeypatch.delenv(name)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("NO_COLOR", "1")

    def invoke(*arguments: str) -> Result:
        return CliRunner().invoke(app, ("bench", *arguments), prog_name="alibi")

    return invoke


def test_only_what_changes_speed_is_a_switch(alibi: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    del alibi
    assert machine()["switches"] == {}
    monkeypatch.setenv("ALIBI_CACHE", "a path of this machine")
    monkeypatch.setenv("ALIBI_CPU_ISA", "baseline")
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert machine()["switches"] == {"ALIBI_CPU_ISA": "baseline", "OMP_NUM_THREADS": "2"}


def test_switches_hold_no_paths(alibi: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    del alibi
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "/tmp/torchinductor_somebody")
    monkeypatch.setenv("TORCH_HOME", "C:\\Users\\somebody")
    monkeypatch.setenv("LD_PRELOAD", "/home/somebody/libjemalloc.so.2:libtcmalloc.so.4")
    assert machine()["switches"] == {"LD_PRELOAD": "libjemalloc.so.2:libtcmalloc.so.4"}
    for path in (Path(__file__).parents[2] / "benchmarks" / "results").glob("*.json"):
        recorded = load(str(path)).get("machine", {}).get("switches", {})
        assert not any("/" in value for value in recorded.values()), path.name


def load(path: str) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(Path(path).read_text(encoding="utf-8"))
    return value


def test_from_measurement_to_report(alibi: Invoke) -> None:
    threads = torch.get_num_threads()
    done = alibi("forward-dense", "decode", *SMALL, "--peers=sdpa,sdpa-row,eager", "--output", "first.json")
    assert done.exit_code == 0, done.output
    for phrase in (
        "forward-dense: forward, every tile computed", "Where we are slower / targets missed",
        "Slower than a peer (of ", "Written to first.json",
    ):  # fmt: skip
        assert phrase in done.stdout
    assert torch.get_num_threads() == threads

    run = load("first.json")
    assert (run["schema_version"], run["status"]) == (1, "complete")
    assert {"processor", "threads", "cores", "memory", "torch", "commit", "date", "switches"} <= set(run["machine"])
    assert run["machine"]["threads"] == 1
    assert [(trial["case"], trial["keys"], trial["complete"]) for trial in run["trials"]] == [
        ("forward-dense", 64, True), ("forward-dense", 96, True), ("decode", 64, True), ("decode", 96, True),
    ]  # fmt: skip
    for trial in run["trials"]:
        for entry in trial["entries"]:
            if entry["refused"] is None:
                assert len(entry["plain"]["seconds"]) == 2
                assert entry["ours"] == (entry["flushed"] is None)
                assert entry["alibi"] == (entry["error"] is not None)
        assert sum(entry["default"] for entry in trial["entries"]) == 1
    assert [entry["name"] for entry in run["trials"][2]["entries"] if not entry["ours"]] == ["sdpa", "sdpa-row"]

    done = alibi("report", "first.json")
    assert done.exit_code == 0, done.output
    text = Path("first-report/report.md").read_text(encoding="utf-8")
    for phrase in (
        "## first.json", "### Where we are slower / targets missed", "### decode", "A quick look",
        "![first-speedup](first-speedup.png)",
    ):  # fmt: skip
        assert phrase in text
    assert {path.name for path in Path("first-report").iterdir()} == {
        "report.md", "first-speedup.png", "first-speedup.svg", "first-per-token.png", "first-per-token.svg",
    }  # fmt: skip
    before = {path: path.read_bytes() for path in Path("first-report").iterdir()}
    assert alibi("report", "first.json", "--output", "again").exit_code == 0
    assert all((Path("again") / path.name).read_bytes() == data for path, data in before.items())


def test_a_page_is_filled_from_several_files(alibi: Invoke) -> None:
    for name, case in (("a", "overhead-forward"), ("b", "decode")):
        done = alibi(case, *SMALL, "--lengths=16", "--head-dims=64", "--default-alone", "--output", f"{name}.json")
        assert done.exit_code == 0, done.output
    marks = [f"<!-- numbers: {name} -->\n<!-- end of numbers -->\n" for name in ("overhead", "decode", "bloom-176b")]
    Path("page.md").write_text("".join(marks), encoding="utf-8")
    done = alibi("report", "a.json", "b.json", "--page", "page.md")
    assert (done.exit_code, done.stdout, done.stderr) == (0, "Written: page.md\n", "")
    text = Path("page.md").read_text(encoding="utf-8")
    assert "| without gradients | " in text
    assert "| keys held | D = 64 |" in text
    assert text.count("Not measured yet.") == 1
    done = alibi("report", "a.json", "--page", "page.md", "--output", "folder")
    assert done.exit_code == 2
    assert "error: --page: expected it without --output, got both" in done.stderr
    Path("page.md").write_text(marks[0], encoding="utf-8")
    kept = load("a.json")
    kept["machine"]["switches"] = {"OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2"}
    Path("kept.json").write_text(json.dumps(kept), encoding="utf-8")
    done = alibi("report", "kept.json", "--page", "page.md")
    assert (done.exit_code, done.stdout) == (0, "Written: page.md\n")
    assert done.stderr == "kept.json: measured with MALLOC_ARENA_MAX set, so only tables that say so show it\n"
    assert "Not measured yet." in Path("page.md").read_text(encoding="utf-8")

    Path("page.md").write_text("none", encoding="utf-8")
    done = alibi("report", "a.json", "--page", "page.md")
    assert done.exit_code == 2
    assert done.stderr.startswith("error: --page: expected a page that marks tables, got page.md, which marks none\n")


def test_training_and_layers(alibi: Invoke) -> None:
    done = alibi(
        "training-horizon", "layer", "bf16", "overhead-training", *SMALL, "--output", "b.json", "--lengths=32",
        "--peers=sdpa-row,layer-sdpa-row,sdpa-row-fp32,alibi-fp32",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    entries = {trial["case"]: trial["entries"] for trial in load("b.json")["trials"]}
    assert [entry["name"] for entry in entries["layer"]] == ["alibi-layer", "layer-sdpa-row"]
    assert all(entry["refused"] is None for entry in entries["layer"])
    # Two files in one report, each with its own machine and figures.
    assert alibi("report", "b.json", "b.json", "--output", "both").exit_code == 0
    text = Path("both/report.md").read_text(encoding="utf-8")
    assert text.count("## b.json") == 2
    assert "1-b-speedup.png" in text
    assert "2-b-speedup.png" in text


def test_results_land_where_the_readme_says(alibi: Invoke) -> None:
    assert alibi("overhead-forward", *SMALL, "--lengths=8", "--peers=sdpa").exit_code == 0
    (found,) = Path("benchmarks/results").iterdir()
    assert found.suffix == ".json"


def test_list_measures_nothing(alibi: Invoke) -> None:
    done = alibi("--list")
    assert done.exit_code == 0
    for name in (*CASES, *PEERS):
        assert name in done.stdout
    assert not any(Path().iterdir())


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["dense"], "error: CASES: expected names of cases, got 'dense'\n  choose from " + ", ".join(CASES) + "\n"),
        (["--peers", "sdpa,me"], "error: --peers: expected names of peers, got 'me'\n  choose from "
         + ", ".join(PEERS) + "\n"),
        (["--lengths", "1K,x"], "error: --lengths: expected numbers joined by commas, got 'x'\n  such as 1K,8K\n"),
        (["--lengths", "8192K"], "error: --lengths: expected 1 to 4194304 tokens, got 8388608\n  such as 1K,8K\n"),
        (["--repeats", "0"], "error: --repeats: expected 1 to 1000, got 0\n  such as --repeats 7\n"),
        (["--patience", "0"], "error: --patience: expected seconds above 0, got 0.0\n  such as --patience 60\n"),
        (["--head-dims", "64,b"], "error: --head-dims: expected numbers joined by commas, got 'b'\n  such as 64,128\n"),
        (["trained-forward"], "error: --model: expected the folder of a trained model for these cases, got none\n"
         "  such as --model runs/first, from alibi extrapolate --output runs/first\n"),
        (["--output", "a.txt"], "error: --output: expected a name ending in .json, got a.txt\n  try a.json\n"),
        (["report", "none.json"], "error: FILES: expected files of results, got none.json (No such file or directory)\n"
         "  name files that alibi bench wrote\n"),
    ],
)  # fmt: skip
def test_bad_input(alibi: Invoke, arguments: list[str], error: str) -> None:
    done = alibi(*arguments)
    assert done.exit_code == 2
    assert done.stderr == error
    assert not any(Path().iterdir())


def test_threads_there_are_not(alibi: Invoke) -> None:
    done = alibi("--threads", "100000")
    assert done.exit_code == 2
    assert done.stderr.startswith("error: --threads: expected 1 to ")


def test_nothing_is_overwritten(alibi: Invoke) -> None:
    Path("mine.json").write_text("mine", encoding="utf-8")
    done = alibi("decode", *SMALL, "--output", "mine.json")
    assert done.exit_code == 2
    assert done.stderr == "error: --output: expected a new file, got mine.json, which exists\n  choose another name\n"
    assert Path("mine.json").read_text(encoding="utf-8") == "mine"


def test_a_file_that_cannot_be_written_is_found_out_first(alibi: Invoke) -> None:
    Path("file").write_text("", encoding="utf-8")
    done = alibi("decode", *SMALL, "--output", "file/a.json")
    assert done.exit_code == 2
    assert done.stderr == (
        "error: --output: expected a file that can be written, got file/a.json (File exists)\n  choose another\n"
    )


@pytest.mark.parametrize("again", [False, True], ids=["once", "twice"])
def test_interruption_keeps_what_was_measured(alibi: Invoke, monkeypatch: pytest.MonkeyPatch, again: bool) -> None:
    original, seen = trial_module.warm_up, []

    def interrupted(*arguments: Any) -> None:
        seen.append(arguments)
        # In the second size; the first is done.
        if len(seen) == 8:
            for _ in range(1 + again):
                os.kill(os.getpid(), signal.SIGINT)
        original(*arguments)

    monkeypatch.setattr(trial_module, "warm_up", interrupted)
    monkeypatch.setattr(trial_module, "why_not_ours", lambda *_: {"alibi-blocked": None})
    done = alibi("forward-dense", *SMALL, "--peers=sdpa,sdpa-row", "--output", "part.json")
    assert done.exit_code == 130
    assert done.stderr == "Stopped. What was measured until then is in part.json, marked incomplete.\n"
    run = load("part.json")
    assert run["status"] == "incomplete"
    assert [trial["complete"] for trial in run["trials"]] == [True, False]
    assert alibi("report", "part.json").exit_code == 0
    assert "**Incomplete:" in Path("part-report/report.md").read_text(encoding="utf-8")


def test_a_wrong_instruction_set_is_refused(alibi: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> dict[str, Any]:
        raise RuntimeError("ALIBI_CPU_ISA: got 'z80', expected avx512; unset it to let the library choose")

    monkeypatch.setattr("alibi_attention.bench.run.machine", refuse)
    done = alibi("decode", *SMALL, "--output", "a.json")
    assert done.exit_code == 2
    assert done.stderr == (
        "error: ALIBI_CPU_ISA: expected an instruction set of this machine, got 'z80', expected avx512\n"
        "  unset it to let the library choose\n"
    )


def test_plain_use_without_a_display(tmp_path: Path) -> None:
    results = Bench([], [], threads=1).run(tmp_path / "empty.json")
    assert results.status == "complete"


def test_help_is_that_of_a_measurement(alibi: Invoke) -> None:
    text = alibi("--help").stdout
    for phrase in ("--list", "--peers", "--quick", "alibi bench report [OPTIONS] FILE.json..."):
        assert phrase in text
    assert "--output" in alibi("report", "--help").stdout
