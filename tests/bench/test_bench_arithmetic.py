"""Medians, ratios, and what is said about them, on samples made by hand."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from alibi_attention.bench.compare import against_us, comparisons
from alibi_attention.bench.errors import BenchError
from alibi_attention.bench.report import section
from alibi_attention.bench.results import Entry, Results, TrialResult, read_results
from alibi_attention.bench.summary import median, ratio, spread, times
from alibi_attention.bench.tables import milliseconds
from alibi_attention.bench.timing import Contestant, Samples, Settings, play_rounds, warm_up

MACHINE = {
    "processor": "Made up 9000", "virtual": False, "threads": 2, "cores": 2, "memory": 2**34,
    "memory_available": 2**33, "system": "Nowhere", "alibi_attention": "0", "commit": None,
    "instruction_set": {"torch": "a", "alibi_attention": None}, "torch": "0", "python": "3", "switches": {},
    "date": "2000-01-01T00:00:00", "load": 0.0,
}  # fmt: skip


def results(ours: list[float | None], flushed: list[float | None], target: float = 2.0) -> Results:
    """One trial: ours, and a peer that takes 9 s with denormals as they come."""
    entries = [
        Entry("alibi-cpu", "ours", ours=True, default=True, plain=Samples(seconds=ours)),
        Entry("alibi-blocked", "ours too", ours=True, plain=Samples(seconds=[100.0])),
        Entry("sdpa-row", "peer", ours=False, plain=Samples(seconds=[9.0, 9.0, 9.0]), flushed=Samples(seconds=flushed)),
        Entry("flex", "refuser", ours=False, refused="no backward"),
    ]
    trial = TrialResult(
        "training-dense", "title", "training", 8, 64, 1024, 1024, "float32", 0.0, "sdpa-row", target, complete=True,
        entries=entries,
    )  # fmt: skip
    settings = {"repeats": 3, "least": 0.2, "peers": ["sdpa-row", "flex"]}
    return Results(MACHINE, settings, [trial], status="complete", seconds=60.0)


def test_the_ratio_is_the_median_of_the_rounds_ratios() -> None:
    # The ratio of the medians would be 2.
    found = ratio([1.0, 2.0, 4.0], [4.0, 4.0, 4.0])
    assert found is not None
    assert (found.median, found.low, found.high, found.rounds) == (2.0, 1.0, 4.0, 3)
    found = ratio([1.0, 3.0, 2.0], [3.0, 1.0, 2.0])
    assert found is not None
    assert found.median == 1.0


def test_only_rounds_with_both_count() -> None:
    found = ratio([1.0, None, 3.0, 1.0], [2.0, 8.0, None])
    assert found is not None
    assert (found.median, found.rounds) == (2.0, 1)
    assert ratio([None, 1.0], [1.0]) is None


def test_median_and_spread() -> None:
    assert median([3.0, None, 1.0, 2.0]) == 2.0
    assert spread([1.0, 2.0, 3.0, 4.0, 5.0]) == pytest.approx(2.0 / 3.0)
    assert spread([7.0]) == 0.0


@pytest.mark.parametrize(
    ("seconds", "text"), [(1.5, "1,500"), (0.0123, "12.3"), (0.00123, "1.23"), (0.000123, "0.123"), (1.23e-5, "0.0123")]
)
def test_milliseconds(seconds: float, text: str) -> None:
    assert milliseconds(seconds) == text


@pytest.mark.parametrize(
    ("value", "text"), [(1.3, "1.30x"), (68.83, "68.8x"), (110.4, "110x"), (0.0312, "0.0312x"), (2345.0, "2,345x")]
)
def test_times(value: float, text: str) -> None:
    assert times(value) == text


def test_the_faster_of_plain_and_flushed_counts() -> None:
    (found, _) = comparisons(results([1.0, 1.0, 1.0], [3.0, 4.0, 5.0]).trials[0])
    assert (found.ratio.median, found.ratio.low, found.ratio.high) == (4.0, 3.0, 5.0)
    (found, _) = comparisons(results([1.0, 1.0, 1.0], [10.0, 10.0, 10.0]).trials[0])
    assert found.ratio.median == 9.0


@pytest.mark.parametrize(
    ("flushed", "verdict"),
    [([3.0, 3.0, 3.0], "met"), ([1.9, 3.0, 3.0], "met, unsettled"), ([1.0, 1.0, 1.0], "missed"),
     ([1.0, 1.0, 3.0], "missed, unsettled"), ([3.0, None, None], "met, one round"),
     ([1.0, None, None], "missed, one round")],
)  # fmt: skip
def test_verdicts(flushed: list[float | None], verdict: str) -> None:
    found = next(comparisons(results([1.0, 1.0, 1.0], flushed).trials[0]))
    assert found.verdict == verdict


def test_losses_and_missed_targets_are_named() -> None:
    told = dict(against_us(results([4.0, 4.0, 4.0], [2.0, 2.0, 1.0])))
    assert told["Slower than a peer (of 1 comparisons)"] == [
        "training-dense, D=64, 1K: alibi-cpu is 0.500x as fast as sdpa-row (0.250x to 0.500x in 3 rounds)"
    ]
    assert told["Targets missed (of 1)"] == [
        "training-dense, D=64, 1K: alibi-cpu is 0.500x as fast as sdpa-row (0.250x to 0.500x in 3 rounds), target 2x"
    ]
    assert len(told["Backends on request, slower than the target's peer (of 1)"]) == 1


def test_what_failed_or_could_not_be_tested_is_named() -> None:
    run = results([1.0], [2.0])
    ours, _, peer, _ = run.trials[0].entries
    ours.plain, ours.refused = None, "failed: out of memory"
    told = dict(against_us(run))
    assert told["Our own contestants that did not run"] == ["training-dense, D=64, 1K: alibi-cpu failed: out of memory"]
    assert told["Targets that could not be tested"] == ["training-dense, D=64, 1K: no ratio against sdpa-row, asked 2x"]
    assert peer.counted is not None


def test_a_report_of_wins_says_that_there_is_nothing_else() -> None:
    text = section("file.json", results([1.0, 1.0, 1.0], [3.0, 3.0, 3.0]))
    assert "### Where we are slower / targets missed\n\nSlower than a peer (of 1 comparisons): none.\n" in text
    assert "- flex: no backward (training-dense, D=64, 1K)\n" in text
    assert "| 64 | 1K | alibi-cpu * | sdpa-row | 1,000 | 3,000 | 3.00x | 3.00x–3.00x | 2x | met |" in text
    assert "**" not in text


def test_a_report_says_what_was_wrong_with_the_run() -> None:
    run = results([1.0], [1.0])
    run.status = "incomplete"
    run.settings["quick"] = True
    run.machine = {**MACHINE, "load": 1.5}
    text = section("file.json", run)
    for phrase in ("**Incomplete:", "**A quick look:", "**The machine was busy"):
        assert phrase in text


def test_results_survive_their_file(tmp_path: Path) -> None:
    run = results([1.0, None], [2.0])
    run.write(tmp_path / "a.json")
    assert asdict(read_results(tmp_path / "a.json")) == asdict(run)


@pytest.mark.parametrize(
    ("text", "got"),
    [("{", "which is none"), ("[]", "which has no version"), ('{"schema_version": 99}', "of version 99"),
     ('{"schema_version": 1}', "('trials')"), ('{"schema_version": 1, "trials": [{"entries": []}]}', "missing")],
)  # fmt: skip
def test_other_files_are_refused(tmp_path: Path, text: str, got: str) -> None:
    path = tmp_path / "b.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(BenchError) as refusal:
        read_results(path)
    assert got in refusal.value.complaint
    assert json.dumps(refusal.value.remedy) == '"name files that alibi bench wrote"'


# Rounds


def contestant(name: str, log: list[str]) -> Contestant:
    return Contestant(name, lambda: log.append(name), flush=False, gradients=False)


def test_contestants_take_turns() -> None:
    log: list[str] = []
    settings = Settings(repeats=3, least=1e-9)
    three = [contestant(name, log) for name in "ABC"]
    for each in three:
        warm_up(each, settings)
        assert (each.samples.inner, each.rounds) == (1, 3)
    order = [each.name for each in play_rounds(three, lambda: None)]
    assert order == list("ABCABCABC")
    assert all(len(each.samples.seconds) == 3 for each in three)


def test_a_long_first_call_is_the_only_sample() -> None:
    log: list[str] = []
    long, short = contestant("long", log), contestant("short", log)
    warm_up(long, Settings(long_call=0.0))
    warm_up(short, Settings(repeats=2, least=1e-9))
    for _ in play_rounds([long, short], lambda: None):
        pass
    assert log.count("long") == 1
    assert long.samples.seconds == [long.samples.first, None]
    assert None not in short.samples.seconds


def test_short_calls_are_repeated_inside_a_sample() -> None:
    log: list[str] = []
    each = contestant("A", log)
    warm_up(each, Settings(least=0.01))
    assert each.samples.inner > 1
