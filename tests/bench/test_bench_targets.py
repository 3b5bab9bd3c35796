"""Targets that are not a ratio at one size: geometric means, limits of our own, and the page that shows them."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from alibi_attention.bench.case import Trial
from alibi_attention.bench.cases import CASES, pick_trials
from alibi_attention.bench.compare import against_us, comparisons, means
from alibi_attention.bench.errors import BenchError
from alibi_attention.bench.inputs import make_inputs
from alibi_attention.bench.limits import judgements
from alibi_attention.bench.ours import computed_tiles, make_ours
from alibi_attention.bench.page import TABLES, fill, latest, target_table
from alibi_attention.bench.report import targets_text
from alibi_attention.bench.results import Entry, Results, TrialResult
from alibi_attention.bench.run import Bench
from alibi_attention.bench.tables import ratio_table
from alibi_attention.bench.timing import Samples, Settings
from alibi_attention.bench.trial import _is_beaten
from alibi_attention.dispatch import explain_backends

MACHINE = {
    "processor": "Made up 9000", "virtual": False, "threads": 2, "cores": 2, "memory": 2**34,
    "memory_available": 2**33, "system": "Nowhere", "alibi_attention": "0", "commit": None,
    "instruction_set": {"torch": "a", "alibi_attention": None}, "torch": "0", "python": "3", "switches": {},
    "date": "2000-01-01T00:00:00", "load": 0.0,
}  # fmt: skip
LENGTHS = [1024, 2048, 4096, 8192]


def trial(keys: int, ours: list[float | None], peers: dict[str, list[float | None]], **more: Any) -> TrialResult:
    entries = [Entry("alibi-cpu", "ours", ours=True, default=True, plain=Samples(seconds=ours))]
    entries += [Entry(name, name, ours=False, flushed=Samples(seconds=each)) for name, each in peers.items()]
    made = TrialResult(
        "training-dense", "title", "training", 8, 64, keys, keys, "float32", 0.0, "sdpa-row", 1.3, complete=True,
        target_also=["sdpa"], target_mean=LENGTHS, entries=entries,
    )  # fmt: skip
    return replace(made, **more)


def run(trials: list[TrialResult], date: str = "2000-01-01T00:00:00") -> Results:
    settings = {"repeats": 3, "least": 0.2, "peers": ["sdpa", "sdpa-row"]}
    return Results({**MACHINE, "date": date}, settings, trials, status="complete")


# The table a run ends with


def test_ratios_to_several_peers_name_them() -> None:
    both = trial(1024, [1.0], {"sdpa-row": [2.0], "sdpa": [3.0]})
    table = ratio_table([both], every_peer=False)
    assert table.title.startswith("Ratio: time of peer / our time")
    peer, ratio = table.header.index("peer"), table.header.index("ratio")
    assert [(row[peer], row[ratio]) for row in table.rows] == [("sdpa-row", "2.00x"), ("sdpa", "3.00x")]
    alone = ratio_table([replace(both, target_also=[])], every_peer=False)
    assert alone.title.startswith("Ratio: time of sdpa-row / our time")
    assert "peer" not in alone.header
    assert [row[ratio - 1] for row in alone.rows] == ["2.00x"]


# Geometric means


def test_a_mean_is_asked_of_all_lengths_together_and_of_every_peer_of_the_target() -> None:
    # Ratios to the row bias 1, 2, 1 and 2: not every length reaches 1.3, the mean does.
    trials = [
        trial(keys, [1.0, 1.0], {"sdpa-row": [ratio, ratio * 1.21], "sdpa": [1.1, 1.1]})
        for keys, ratio in zip(LENGTHS, (1.0, 2.0, 1.0, 2.0), strict=True)
    ]
    row, plain = means(trials)
    assert (row.peer, plain.peer) == ("sdpa-row", "sdpa")
    assert row.ratio.low == pytest.approx(math.sqrt(2.0))
    assert row.ratio.high == pytest.approx(math.sqrt(2.0) * 1.21)
    assert row.ratio.median == pytest.approx(math.sqrt(2.0) * 1.105)
    assert (row.verdict, plain.verdict) == ("met", "missed")
    assert all(each.target is None for each in comparisons(trials[0]))
    told = dict(against_us(run(trials)))
    assert told["Targets missed (of 2)"] == [
        "training-dense, D=64, geometric mean over 1K, 2K, 4K, 8K: 1.10x as fast as sdpa (1.10x to 1.10x in 2 rounds), "
        "target 1.3x"
    ]
    assert told["Targets that could not be tested"] == []


def test_a_mean_of_some_lengths_is_no_verdict() -> None:
    trials = [trial(keys, [1.0], {"sdpa-row": [9.0]}) for keys in LENGTHS[:2]]
    (mean,) = means(trials)
    assert (mean.verdict, mean.missing) == ("untested", (4096, 8192))
    told = dict(against_us(run(trials)))
    assert told["Targets that could not be tested"] == [
        "training-dense, D=64, geometric mean over 1K, 2K: 9.00x as fast as sdpa-row (one round), target 1.3x; "
        "4K, 8K not measured"
    ]
    assert told["Targets missed (of 0)"] == []


# Limits


def limited(keys: int, seconds: float, tiles: int, limits: dict[str, Any], **entry: Any) -> TrialResult:
    made = trial(keys, [seconds], {}, case="sweep", target_peer=None, target_ratio=None, target_also=[])
    made.target_mean, made.limits, made.tiles = [], limits, tiles
    for name, value in entry.items():
        setattr(made.entries[0], name, value)
    return made


@pytest.mark.parametrize(("seconds", "verdict"), [(24.9e-6, "met"), (25e-6, "missed")])
def test_the_time_of_a_call_is_held_to_its_limit(seconds: float, verdict: str) -> None:
    (found,) = judgements([limited(16, seconds, 1, {"seconds": 25e-6})])
    assert (found.verdict, found.asked) == (verdict, "below 25 µs")


def test_where_rounds_do_not_agree_with_the_median_that_is_said() -> None:
    made = limited(16, 1.0, 1, {"seconds": 25e-6}, plain=Samples(seconds=[24e-6, 30e-6, 24.5e-6]))
    (found,) = judgements([made])
    assert (found.verdict, found.found) == ("met, unsettled", "24.5 µs a call (24.0–30.0)")
    # By medians the longer tiles take 10% longer; in the fastest rounds as long.
    rounds = {2048: [1.0, 1.0, 1.0], 8192: [4.0, 4.4, 4.5]}
    trials = [limited(keys, 1.0, keys, LINEAR, plain=Samples(seconds=list(each))) for keys, each in rounds.items()]
    growth, spread = judgements(trials)
    assert (growth.verdict, growth.found) == ("met", "1.10 (fastest rounds 1.00)")
    assert (spread.verdict, spread.found) == ("missed, unsettled", "10.0% (fastest rounds 0.0%)")
    told = dict(against_us(run(trials)))
    assert len(told["Targets missed (of 2)"]) == 1


@pytest.mark.parametrize(
    ("memory", "outputs", "verdict"),
    [(164_000_000, 100_000_000, "met"), (164_000_001, 100_000_000, "missed"), (None, None, "untested")],
)
def test_memory_is_held_to_its_limit_without_the_outputs(memory: int | None, outputs: int | None, verdict: str) -> None:
    (found,) = judgements([limited(1024, 1.0, 1, {"memory": 64_000_000}, memory=memory, outputs=outputs)])
    assert found.verdict == verdict


LINEAR = {"token_growth": [2048, 8192, 1.2], "tile_spread": [2048, 0.05]}


@pytest.mark.parametrize(
    ("factor", "tiles", "verdicts"),
    [(1.1, 4 * 105, ["met", "met"]), (1.3, 4 * 130, ["missed", "met"]), (1.1, 4 * 100, ["met", "missed"])],
)
def test_growth_is_held_to_its_limits(factor: float, tiles: int, verdicts: list[str]) -> None:
    # The shortest length is outside of both: its tiles take as long as they like.
    trials = [limited(1024, 9.0, 1, LINEAR), limited(2048, 1.0, 100, LINEAR), limited(8192, 4 * factor, tiles, LINEAR)]
    assert [each.verdict for each in judgements(trials)] == verdicts


def test_growth_that_was_not_measured_is_no_verdict() -> None:
    found = judgements([limited(2048, 1.0, 100, LINEAR)])
    assert [each.verdict for each in found] == ["untested", "untested"]
    told = dict(against_us(run([limited(2048, 1.0, 100, LINEAR)])))
    assert len(told["Targets that could not be tested"]) == 2


def test_nothing_is_asked_at_lengths_that_are_not_the_cases_own(tmp_path: Path) -> None:
    case = CASES["overhead-forward"]
    settings = Settings(repeats=1, least=1e-4, measure_memory=False, default_alone=True)
    bench = Bench([Trial(case, 64, 16), Trial(case, 64, 24)], [], threads=1, settings=settings)
    own, other = bench.run(tmp_path / "a.json").trials
    assert own.limits == {"seconds": 25e-6}
    assert other.limits == {}
    assert [entry.default for entry in own.entries] == [True], "of ours the default alone"


# What is measured


def test_tiles_are_those_the_kernel_computed() -> None:
    trial_ = Trial(CASES["forward-dense"], 16, 256)
    inputs = make_inputs(trial_, 1 << 30)
    group = inputs.groups[0]
    if explain_backends(group.query, group.key, group.value)["cpu"] is not None:
        pytest.skip("the compiled library is not installed")
    # Blocks of 48 queries end at 48, 96, 144, 192, 240 and 256, and see 1, 2, 3, 3, 4 and 4 tiles of 64 keys.
    assert computed_tiles(trial_, inputs, "alibi-cpu") == (8 * 17, 1.0, 48, 8 * 17)
    skipping = Trial(CASES["forward-horizon"], 16, 2048)
    found = computed_tiles(skipping, make_inputs(skipping, 1 << 30), "alibi-cpu")
    assert 0.1 < found.share < 0.95
    # Some tiles have scores that show them to be without mass.
    assert found.scored is not None
    assert 0 < found.kept < found.scored


@pytest.mark.parametrize(
    ("plain", "flushed", "beaten"), [(0.4, 0.1, False), (1.0, 0.9, False), (1.0, 0.5, True), (30.0, 5.0, True)]
)
def test_long_calls_with_slow_denormals_are_made_once(plain: float, flushed: float, beaten: bool) -> None:
    assert _is_beaten(Samples(first=plain), Samples(first=flushed)) == beaten


def test_trained_cases_want_a_model() -> None:
    with pytest.raises(BenchError, match="model: expected the folder of a trained model"):
        pick_trials([CASES["trained-forward"]], [], quick=False)
    with pytest.raises(BenchError, match="model: expected a run folder"):
        pick_trials([CASES["trained-forward"]], [], quick=False, model=Path("nowhere"))
    # Among others they are left out.
    assert {each.case.name for each in pick_trials([CASES["decode"], CASES["trained-forward"]], [], quick=True)} == {
        "decode"
    }


def test_head_dimensions_are_picked() -> None:
    assert {each.head_dim for each in pick_trials([CASES["decode"]], [], quick=False, head_dims=[128])} == {128}
    with pytest.raises(BenchError, match="head-dims: expected head dimensions of these cases, got 7; such as 64, 128"):
        pick_trials([CASES["decode"]], [], quick=False, head_dims=[7])


def test_the_model_gives_its_own_queries_and_keys(tmp_path: Path) -> None:
    from alibi_attention import alibi_attention
    from alibi_attention.lab.checkpoint import save_tensors
    from alibi_attention.lab.config import make_config
    from alibi_attention.lab.corpus import load_corpus
    from alibi_attention.lab.model import build_decoder
    from alibi_attention.lab.runs import RunFolder

    words = [f"{number} squared is {number * number}.\n" * 20 for number in range(40)]
    for number, text in enumerate(words):
        (tmp_path / f"{number}.txt").write_text(text, encoding="utf-8")
    options = {"text": [str(tmp_path)], "length": 32, "eval_lengths": [64], "layers": 2, "heads": 4, "width": 64}
    config = make_config(options)
    folder = RunFolder(tmp_path / "run")
    folder.begin(config, load_corpus(config))
    with pytest.raises(BenchError, match="expected a run in which ALiBi is trained"):
        pick_trials([CASES["trained-training"]], [], quick=False, model=tmp_path / "run")
    decoder = build_decoder(config, "alibi")
    save_tensors(folder.weights("alibi"), decoder.state_dict(), {})
    (picked,) = pick_trials([CASES["trained-training"]], [96], quick=False, model=tmp_path / "run")
    assert (picked.case.heads, picked.head_dim, picked.keys) == (4, 16, 96)
    inputs = make_inputs(picked, 1 << 30)
    assert len(inputs.groups) == 2
    assert "2 layers of 4 heads of 16" in inputs.note
    # The first layer by hand.
    text = torch.from_numpy(load_corpus(config).held_out[:96].astype("int64"))[None]
    block = decoder.blocks[0]
    with torch.no_grad():
        qkv = block.attention.qkv(block.attention_norm(decoder.embedding(text))).view(1, 96, 3, 4, 16)
    for number, tensor in enumerate((inputs.groups[0].query, inputs.groups[0].key, inputs.groups[0].value)):
        torch.testing.assert_close(tensor.detach(), qkv[:, :, number].transpose(1, 2))
    group = inputs.groups[0]
    expected = torch.autograd.grad(
        alibi_attention(group.query, group.key, group.value, group.slopes, backend="reference"),
        (group.query, group.key, group.value), group.grad,
    )  # fmt: skip
    for got, want in zip(make_ours("alibi-blocked", picked, inputs)(), expected, strict=True):
        torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)
    with pytest.raises(BenchError, match="lengths: expected 1,000,000 bytes of held-out text"):
        make_inputs(replace(picked, keys=1_000_000), 1 << 30)


# The page


def test_a_page_gets_its_tables(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "before\n<!-- numbers: training -->\nold\n<!-- end of numbers -->\nbetween\n"
        "<!-- numbers: decode -->\n<!-- end of numbers -->\nafter\n", encoding="utf-8",
    )  # fmt: skip
    trials = [trial(keys, [1.0, 1.0], {"sdpa-row": [2.0, 3.0], "sdpa": [2.0, 2.0]}) for keys in LENGTHS]
    assert fill(page, [run(trials)]) == ["training", "decode"]
    text = page.read_text(encoding="utf-8")
    assert text == (
        "before\n<!-- numbers: training -->\n"
        "| tokens | D = 64, horizon | D = 64, every tile | D = 64, every tile, against no bias |\n"
        "| --- | ---: | ---: | ---: |\n"
        + "".join(f"| {size} | – | 2.50x (2.00–3.00) | 2.00x (2.00–2.00) |\n" for size in ("1K", "2K", "4K", "8K"))
        + "| geometric mean |  | 2.50x (2.00–3.00) | 2.00x (2.00–2.00) |\n"
        "<!-- end of numbers -->\nbetween\n"
        "<!-- numbers: decode -->\nNot measured yet.\n<!-- end of numbers -->\nafter\n"
    )
    fill(page, [run(trials)])
    assert page.read_text(encoding="utf-8") == text, "filling twice changes nothing"


def test_a_page_says_where_a_peer_is_faster_and_where_its_numbers_are_from(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    marks = "".join(f"<!-- numbers: {name} -->\n<!-- end of numbers -->\n" for name in ("slower", "files"))
    page.write_text(marks, encoding="utf-8")
    lost, won = trial(1024, [2.0], {"sdpa": [1.0]}), trial(2048, [1.0], {"sdpa": [2.0]})
    fill(page, [run([won], "2001-02-03T04:05:06+00:00"), run([lost], "2001-02-03T05:05:06+00:00")])
    lines = page.read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if "0.500x" in line] == [
        f"| {lost.title}, D = 64, 1K tokens | {lost.entries[-1].title} | 0.500x |"
    ]
    assert not any("2K" in line for line in lines)
    assert sum(lost.case in line for line in lines) == 2
    assert any("| 2001-02-03 04:05 |" in line for line in lines)
    fill(page, [run([won], "2001-02-03T04:05:06+00:00")])
    assert "nowhere in these files" in page.read_text(encoding="utf-8")


def test_what_a_switch_has_changed_stays_out_of_the_other_tables(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("<!-- numbers: linear -->\n<!-- end of numbers -->\n", encoding="utf-8")
    plain, switched = ([trial(keys, [seconds], {}, case="sweep") for keys in (1024, 2048)] for seconds in (4e-3, 3e-3))
    for each in [*plain, *switched]:
        each.tiles, each.tiles_scored, each.kept_share = 600, 1000, 0.5
    kept = run(switched, "2002")
    kept.machine["switches"] = {"MALLOC_MMAP_THRESHOLD_": "1"}
    fill(page, [run(plain, "2001"), kept])
    lines = page.read_text(encoding="utf-8").splitlines()
    found = [[cell.strip() for cell in line.split("|")] for line in lines if line.startswith("| 64 |")]
    # 4 ms over 1,000 tiles, and over the 600 + 1,000 products of them; 40% were passed over.
    assert [row[3:6] + row[-3:-1] for row in found] == [["50.0%", "1,000", "40%", "4", "2.5"]] * 2


@pytest.mark.parametrize(
    ("text", "got"), [("no marks", "'none'|none"), ("<!-- numbers: odd -->\n<!-- end of numbers -->", "'odd'")]
)
def test_pages_without_tables_are_refused(tmp_path: Path, text: str, got: str) -> None:
    page = tmp_path / "page.md"
    page.write_text(text, encoding="utf-8")
    with pytest.raises(BenchError, match=got):
        fill(page, [])
    assert page.read_text(encoding="utf-8") == text


def test_of_sizes_measured_twice_the_newest_counts() -> None:
    old, new = trial(1024, [1.0], {"sdpa-row": [2.0]}), trial(1024, [1.0], {"sdpa-row": [5.0]})
    stopped = replace(old, complete=False)
    files = [run([new], "2001"), run([old], "2000"), run([stopped], "2002")]
    assert latest(files) == [new]


def test_a_peer_of_an_older_file_is_not_lost(tmp_path: Path) -> None:
    """A size measured again against fewer peers: those left out keep the ratio of their own file."""
    both = trial(2048, [1.0], {"sdpa-row": [2.0], "flex-horizon": [0.5]}, case="forward-horizon")
    again = trial(2048, [1.0], {"sdpa-row": [5.0]}, case="forward-horizon")
    page = tmp_path / "page.md"
    page.write_text(
        "".join(f"<!-- numbers: {name} -->\n<!-- end of numbers -->\n" for name in ("peers-horizon", "slower")),
        encoding="utf-8",
    )
    fill(page, [run([again], "2001"), run([both], "2000")])
    text = page.read_text(encoding="utf-8")
    for peer, ratio in (("sdpa-row", "5.00x"), ("flex-horizon", "0.500x")):
        assert f"{peer} | {ratio} |" in text
    slower = text.split("slower -->")[1]
    assert "flex-horizon" in slower
    assert "sdpa-row" not in slower


def test_a_newer_file_without_the_peer_of_a_target_does_not_hide_it(tmp_path: Path) -> None:
    asked = trial(2048, [1.0], {"sdpa-row": [1.0]}, target_mean=[], target_also=[])
    again = trial(2048, [1.0], {"sdpa": [9.0]}, target_mean=[], target_also=[])
    files = [run([again], "2001"), run([asked], "2000")]
    page = tmp_path / "page.md"
    page.write_text("<!-- numbers: targets -->\n<!-- end of numbers -->\n", encoding="utf-8")
    fill(page, files)
    line = "| training-dense, D=64, 2K, against sdpa-row | 1.3x | 1.00x | missed, one round |\n"
    assert line in page.read_text(encoding="utf-8")
    assert line in targets_text([(page, each) for each in files])


def test_a_newer_file_without_what_a_limit_asks_for_does_not_hide_it() -> None:
    measured = trial(1024, [1.0], {}, case="memory", limits={"memory": 64e6}, target_mean=[])
    measured.entries[0].memory, measured.entries[0].outputs = 3_000_000, 1_000_000
    timed = replace(measured, entries=[replace(measured.entries[0], memory=None)])
    for trials in ([measured, timed], [timed, measured]):
        (row,) = target_table(trials).rows
        assert row[-2:] == ["2.0 MB at the peak beyond inputs and outputs", "met"]
    ((*_, verdict),) = target_table([timed]).rows
    assert verdict == "untested"


def test_every_table_can_be_made_of_every_case() -> None:
    trials = []
    for case in CASES.values():
        for dim in case.head_dims or (16,):
            for length in case.lengths:
                made = trial(length, [1.0], {name: [2.0] for name in case.peers}, case=case.name, head_dim=dim)
                made.target_mean, made.tiles, made.kept_share = [], 10, 0.5
                made.target_peer = case.target.peer if case.target else None
                made.entries[0].memory, made.entries[0].outputs = 1000, 400
                trials.append(made)
    for name, table in TABLES.items():
        made_table = table(trials)
        assert made_table.rows, name
        assert all(len(row) == len(made_table.header) for row in made_table.rows), name
    assert target_table([]).rows == []
