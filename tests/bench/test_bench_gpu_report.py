"""What a file of the command for a GPU reads like, as a report in Markdown and in the terminal."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from gpu_fakes import SETTINGS, finished, small
from typer.testing import CliRunner

from alibi_attention.bench.gpu import __main__ as command
from alibi_attention.bench.gpu.run import GpuRun
from alibi_attention.bench.gpu.verdicts import report, verdicts
from alibi_attention.bench.report import section
from alibi_attention.bench.results import Results, read_results
from alibi_attention.bench.timing import Samples
from alibi_attention.cli.app import app


def rows(text: str, start: str) -> list[list[str]]:
    """Cells of the table rows that begin with this one."""
    return [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith(f"| {start} |")]


def test_alibi_bench_reports_a_file_of_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    trials = [small(peers=()), small("gpu-decode", peers=())]
    GpuRun(
        trials, Path("found.json"), device="cpu", settings=SETTINGS, with_suite=False, tell=lambda _: None
    ).run()  # fmt: skip
    done = CliRunner().invoke(app, ["bench", "report", "found.json"], prog_name="alibi")
    assert done.exit_code == 0, done.output
    text = Path("found-report/report.md").read_text(encoding="utf-8")
    assert "**Not measured on a GPU" in text
    assert "GPU: no GPU: the processor, for tests" in text
    assert "Not run: it was not asked for." in text
    assert rows(text, "16")[0][:2] == ["16", "128"]
    assert "batch 1" not in text
    assert "alibi-blocked" in text


def test_a_report_names_the_gpu_and_what_compiled() -> None:
    text = section("found.json", finished())
    for phrase in (
        "GPU: NVIDIA H200, 150 GiB, compute capability 9.0, 132 multiprocessors, the first of 2",
        "driver 570.124.06, clock 345 MHz, temperature in °C 30",
        "Triton 3.6.0, ptxas 12.8 (Triton's own), CUDA 12.8, cuDNN 91002",
        "at commit 0123abc; torch ",
        "took 7.3 minutes",
        "5 rounds, 3 where one takes over 1.5 s; samples of at least 0.05 s",
        "**Incomplete",
    ):
        assert phrase in text
    assert "360 MHz" not in text, "the second GPU measured nothing"


def test_a_report_has_every_target_with_its_verdict() -> None:
    text = section("found.json", finished())
    targets = text.partition("### Targets")[2].partition("###")[0]
    found = {tuple(cells[1:4]): cells[4:] for cells in rows(targets, "gpu-training-horizon")}
    assert found["64", "32K", "flex"] == ["7x", "7.50x", "met", "7.50x–7.50x over 3 rounds"]
    assert found["64", "32K", "flex-windows"][1:3] == ["1.12x", "missed"]
    assert found["128", "128K", "flex"] == ["22x", "–", "untested", "not reached in time"]
    assert len(found) == 12
    decode = rows(targets, "gpu-decode")
    assert [cells[3:] for cells in decode] == [
        ["sdpa-flash", "20x", "30.0x", "met", "30.0x–30.0x over 3 rounds"],
        # That it would run as a graph is not why it did not.
        ["fastest dense", "20x", "–", "untested", "not reached in time"],
    ]
    assert "Targets missed (of 4):" in text
    assert "Targets that could not be tested: 10, with the reasons in the table above." in text


def test_a_report_has_times_errors_shares_and_what_was_refused() -> None:
    text = section("found.json", finished())
    times = text.partition("### gpu-training-horizon")[2].partition("### ")[0]
    assert "| 64 | 32K | alibi-triton * | flex | 4.00 | 30.0 | 7.50x | 7.50x–7.50x | 7x | met |" in times
    assert "| 64 | 32K | 7.0% |" in times
    assert "| 64 | 32K | 1.0e-03 | 1.0e-03 | 1.0e-03 | – |" in times
    # Of gradients: SDPA without a bias has others, and no column.
    assert "| 128 | 32K | 2.0e-02 | 2.0e-02 | – |" in times
    assert "- D=128, 32K: failed: OutOfMemoryError: no room" in text
    # What a compiler says is text, and none of it markup.
    assert "- sdpa-cudnn: failed: RuntimeError: no &lt;plan> | none (gpu-training-horizon, D=64, 32K; " in text


def test_words_of_a_compiler_break_no_table() -> None:
    results = finished()
    trial = results.trials[0]
    peer = trial.entry("flex")
    assert peer is not None
    peer.refused, peer.plain = "failed: a | b", None
    text = section("found.json", results)
    assert "| untested | flex: failed: a \\| b |" in text


def test_a_report_says_what_the_checks_found() -> None:
    text = section("found.json", finished())
    checks = text.partition("### Checks of the kernels")[2].partition("### ")[0]
    assert "2 passed, 1 failed, 13 left out, in 140 s; processes that fell and were replaced: 1." in checks
    assert "- **horizon, causal**: AssertionError: 3 rows differ" in checks
    assert "- length 4100, D=128, bfloat16 (time was up while it ran)" in checks
    assert "- and 3 more" in checks


@pytest.mark.parametrize(
    ("suite", "phrase"),
    [
        ({}, "Not known: the run was stopped before they ended."),
        ({"fault": "OSError: no space"}, "Broken off: OSError: no space."),
        ({"reason": "it was not asked for"}, "Not run: it was not asked for."),
    ],
)
def test_a_report_says_why_there_are_no_checks(suite: dict[str, str], phrase: str) -> None:
    assert phrase in section("found.json", replace(finished(), suite=suite))


def test_a_run_stopped_before_it_asked_the_gpu_has_a_report() -> None:
    results = finished()
    results.machine["gpu"] = None
    assert "GPU: not known" in section("found.json", results)
    results.machine["gpu"] = {"name": "unknown: never began", "last words": "Traceback\nImportError: no torch\n"}
    assert "GPU: unknown: never began; last words: ImportError: no torch" in section("found.json", results)


def test_rounds_that_disagree_leave_a_verdict_unsettled() -> None:
    results = finished()
    peer = results.trials[0].entry("flex")
    assert peer is not None
    peer.plain = Samples(seconds=[0.02, 0.03, 0.03])
    found = {(each.peer, each.trial.head_dim, each.trial.keys): each for each in verdicts(results)}
    assert found["flex", 64, 32768].word == "met, unsettled"
    peer.plain = Samples(seconds=[0.02, None, None])
    (one,) = [each for each in verdicts(results) if each.trial is results.trials[0] and each.peer == "flex"]
    assert (one.word, one.why) == ("missed, one round", "–")


@pytest.mark.parametrize(
    ("suite", "gpu", "asked", "sound"),
    [
        ({"passed": 3, "failed": {}}, {"name": "NVIDIA H200"}, True, True),
        ({"passed": 3, "failed": {"padding": "AssertionError"}}, {"name": "NVIDIA H200"}, True, False),
        ({"passed": 3, "failed": {}, "fault": "OSError: no space"}, {"name": "NVIDIA H200"}, True, False),
        ({"reason": "no script"}, {"name": "NVIDIA H200"}, True, False),
        ({"reason": "it was not asked for"}, {"name": "NVIDIA H200"}, False, True),
        ({"passed": 3, "failed": {}}, {"name": "unknown", "last words": "no driver"}, True, False),
        ({"passed": 3, "failed": {}}, None, True, True),
    ],
)
def test_a_run_that_verified_nothing_is_no_success(
    suite: dict[str, Any], gpu: dict[str, str] | None, asked: bool, sound: bool
) -> None:
    results = finished()
    results.suite, results.machine["gpu"] = suite, gpu
    assert command._is_sound(results, no_suite=not asked) is sound


def test_reasons_of_several_lines_stay_in_their_place() -> None:
    results = finished()
    results.suite["failed"] = {"padding": "AssertionError: Tensor-likes are not close!\n\nMismatched elements: 3"}
    assert "Tensor-likes are not close! Mismatched elements: 3" in section("found.json", results)


def go_on(results: Results) -> list[str]:
    """The commands that the terminal's report ends with."""
    return [
        line.strip() for line in report(results).partition("To go on, from the top of the checkout\n")[2].split("\n")
    ]


def test_the_terminal_names_what_was_left_out_and_how_to_go_on() -> None:
    results = finished()
    told = report(results)
    assert "Checks: 2 passed, 1 failed, 13 left out" in told
    assert told.count("    left out: ") == 11
    assert "    left out: length 4100, D=128, bfloat16 (time was up while it ran)\n" in told
    assert "    left out: and 3 more\n" in told
    assert go_on(results) == [
        "python benchmarks/gpu.py --no-benchmarks --minutes 10",
        "python benchmarks/gpu.py gpu-decode --lengths 128K --no-suite",
        "python benchmarks/gpu.py gpu-training-horizon --lengths 8K,128K --no-suite",
        "python benchmarks/gpu.py gpu-forward-horizon --lengths 32K --no-suite",
    ]
    results.suite["left_out"] = ["padding", "length 4100, D=128, bfloat16"]
    assert go_on(results)[0] == (
        "PYTHONPATH=src python tests/backends/triton_kernels/kernel_suite.py --exactly padding "
        "--exactly 'length 4100, D=128, bfloat16' | tee checks.jsonl"
    )
    results.suite["left_out"], results.trials = [], [each for each in results.trials if each.complete]
    assert "To go on" not in report(results)
    assert "To go on" not in section("found.json", results)


def test_what_felled_its_process_is_no_size_to_go_on_with() -> None:
    results = finished()
    for trial in results.trials:
        if trial.case == "gpu-decode" and not trial.complete:
            trial.note = "gave no answer within 75 s"
    assert not any("gpu-decode" in command for command in go_on(results))
    assert re.search(r"gpu-decode +128 .*untested +gave no answer within 75 s", report(results))


def test_sizes_that_time_did_not_suffice_for_stand_in_the_file(tmp_path: Path) -> None:
    path = tmp_path / "found.json"
    trials = [small(keys=64, peers=(), targets={"flex": {(16, 64): 2.0}}), small(peers=())]
    run = GpuRun(trials, path, device="cpu", settings=SETTINGS, with_suite=False, tell=lambda _: None)
    run.budget = replace(run.budget, whole=0.0)
    assert run.run().status == "incomplete"
    found = read_results(path)
    assert [(trial.keys, trial.complete) for trial in found.trials] == [(64, False), (128, False)]
    assert [(each.word, each.why) for each in verdicts(found)] == [("untested", "not reached in time")]


def test_a_run_stopped_among_its_checks_names_its_sizes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(GpuRun, "_checks", stopped)
    path = tmp_path / "found.json"
    with pytest.raises(KeyboardInterrupt):
        GpuRun([small()], path, device="cpu", settings=SETTINGS, tell=lambda _: None).run()
    found = read_results(path)
    assert "- gpu-forward-dense, D=16, 128\n" in section("found.json", found)
    assert "python benchmarks/gpu.py gpu-forward-dense --lengths 128 --no-suite" in report(found)
