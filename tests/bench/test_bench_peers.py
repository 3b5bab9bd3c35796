"""Cases and peers: that they name each other, refuse with reasons, and compute the same thing."""

from __future__ import annotations

import contextlib
import itertools
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from alibi_attention.bench import peers_flex, peers_layer
from alibi_attention.bench.accuracy import error, expected_rows
from alibi_attention.bench.case import Case, Target, Trial, short
from alibi_attention.bench.cases import CASES, pick_cases, pick_trials
from alibi_attention.bench.errors import BenchError
from alibi_attention.bench.inputs import make_inputs
from alibi_attention.bench.ours import computed_tiles, make_ours, our_names
from alibi_attention.bench.peers import PEERS, pick_peers
from alibi_attention.bench.results import Entry, TrialResult, read_results
from alibi_attention.bench.run import Bench, Watch
from alibi_attention.bench.timing import Samples, Settings
from alibi_attention.bench.trial import measure_trial

PLENTY = 1 << 40


def small(name: str, keys: int = 128, head_dim: int = 16) -> Trial:
    return Trial(CASES[name], head_dim, keys)


# Registries


@pytest.mark.parametrize("case", CASES.values(), ids=list(CASES))
def test_every_case_is_whole(case: Case) -> None:
    assert case.name not in ("run", "report")
    assert set(case.peers) <= set(PEERS)
    assert set(case.memory_lengths) <= set(case.lengths)
    assert case.lengths
    assert case.quick_lengths
    assert bool(case.head_dims) != case.trained
    if case.target is not None:
        assert set(case.target.peers) <= set(case.peers)
        assert set(case.target.at) <= {(dim, length) for dim in case.head_dims for length in case.lengths}
        assert all(case.target.of(dim, length) for dim in case.head_dims for length in case.lengths)


def test_names_are_picked_and_unknown_ones_refused() -> None:
    assert [case.name for case in pick_cases(["decode", "forward-dense"])] == ["forward-dense", "decode"]
    assert pick_cases([]) == list(CASES.values())
    assert pick_peers(["eager", "sdpa"]) == ["sdpa", "eager"]
    with pytest.raises(BenchError, match="choose from forward-dense, "):
        pick_cases(["dense"])
    with pytest.raises(BenchError, match="choose from sdpa, sdpa-row, "):
        pick_peers(["spda"])


def test_lengths_replace_those_of_the_cases() -> None:
    cases = pick_cases(["forward-dense"])
    assert [(trial.head_dim, trial.keys) for trial in pick_trials(cases, [64, 32], quick=False)] == [
        (64, 32), (64, 64), (128, 32), (128, 64),
    ]  # fmt: skip
    assert [(trial.head_dim, trial.keys) for trial in pick_trials(cases, [], quick=True)] == [(64, 1024)]
    with pytest.raises(BenchError, match="got 0"):
        pick_trials(cases, [0], quick=False)


def test_targets_by_size() -> None:
    target = Target("sdpa", 1.5, {(64, 1024): 2.0})
    assert target.of(64, 1024) == 2.0
    assert target.of(128, 1024) == 1.5
    assert Target("sdpa").of(1, 1) is None


@pytest.mark.parametrize(("length", "text"), [(1024, "1K"), (131072, "128K"), (1000, "1000"), (16, "16")])
def test_short(length: int, text: str) -> None:
    assert short(length) == text


# Refusals


def test_a_matrix_that_does_not_fit_is_refused() -> None:
    trial = Trial(CASES["forward-horizon"], 64, 32768)
    assert PEERS["sdpa-full"].why_not(trial, 8 << 30) == (
        "holds 2 matrices of (8, 32768, 32768), 64.0 GiB, over the memory budget of 8.0 GiB"
    )
    assert PEERS["sdpa-row"].why_not(trial, 8 << 30) is None


@pytest.mark.parametrize(
    ("peer", "case", "reason"),
    [
        ("flex", "training-dense", "FlexAttention has no backward on the CPU"),
        ("flex-horizon", "forward-dense", "every tile is computed here"),
        ("flex", "decode", "as many queries as keys alone"),
        ("sdpa-row-fp32", "training-dense", "measured without gradients alone"),
        ("alibi-fp32", "layer", "attention alone, without projections"),
        ("layer-sdpa-row", "forward-dense", "a layer, measured against layers"),
    ],
)
def test_refusals_have_reasons(peer: str, case: str, reason: str) -> None:
    assert PEERS[peer].why_not(small(case), PLENTY) == reason


def test_refusals_by_what_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers_layer, "find_spec", lambda _: None)
    reason = PEERS["transformers-mpt"].why_not(small("layer"), PLENTY)
    assert reason == "Transformers is not installed: pip install transformers"
    monkeypatch.setattr(peers_flex, "_COMPILERS", ())
    monkeypatch.delenv("CXX", raising=False)
    assert PEERS["flex"].why_not(small("forward-dense"), PLENTY) == "needs a C++ compiler, and finds none"


def test_sdpa_refuses_what_its_mask_would_get_wrong() -> None:
    trial = Trial(replace(CASES["decode"], queries=2), 16, 128)
    assert "upper left" in (PEERS["sdpa-row"].why_not(trial, PLENTY) or "")


def measured_trial(trial: Trial, before: list[TrialResult], settings: Settings) -> TrialResult:
    """Measured against the peers of the case, as `Bench` does."""
    target = trial.case.target
    result = TrialResult(
        trial.case.name, "", trial.case.mode, trial.case.heads, trial.head_dim, trial.queries, trial.keys, "", None,
        target.peer if target else None, None,
    )  # fmt: skip
    measure_trial(trial, result, before, list(PEERS), settings, lambda: None, lambda _: None)
    return result


QUICK = Settings(repeats=1, least=1e-6, memory_budget=PLENTY, measure_memory=False)


def test_patience_ends_by_prediction_and_never_with_a_target() -> None:
    case = replace(CASES["forward-dense"], peers=("sdpa", "sdpa-row"))
    before = TrialResult(
        case.name, "", "forward", 8, 16, 64, 64, "", 0.0, "sdpa-row", None,
        entries=[
            Entry(name, "", ours=False, plain=Samples(seconds=[30.0])) for name in ("sdpa", "sdpa-row")
        ],
    )  # fmt: skip
    result = measured_trial(Trial(case, 16, 128), [before], QUICK)
    refused = {entry.name: entry.refused for entry in result.entries}
    assert refused["sdpa"] == "would take about 120 s a call, from its time at 64, over the patience of 60 s"
    assert refused["sdpa-row"] is None


def test_a_contestant_that_fails_is_recorded_and_the_others_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("no such kernel\nand much more")

    monkeypatch.setitem(PEERS, "sdpa", replace(PEERS["sdpa"], prepare=fail))
    case = replace(CASES["forward-dense"], peers=("sdpa", "sdpa-row"))
    result = measured_trial(Trial(case, 16, 64), [], QUICK)
    sdpa, row = result.entries[-2:]
    assert (sdpa.refused, sdpa.seconds) == ("failed: RuntimeError: no such kernel", None)
    assert row.seconds is not None


def test_after_a_long_flushed_call_there_is_no_other() -> None:
    case = replace(CASES["forward-dense"], peers=("sdpa-row",))
    result = measured_trial(Trial(case, 16, 64), [], replace(QUICK, long_call=0.0))
    row = result.entries[-1]
    assert row.plain is None
    assert row.flushed is not None
    assert row.note == "one flushed call alone, over 0 s"


# What they compute


@pytest.mark.parametrize(
    ("name", "case"),
    [
        *itertools.product(["sdpa-row", "sdpa-full", "eager"], ["forward-dense", "decode", "decode-steps"]),
        *itertools.product(["sdpa-full", "eager"], ["few-queries"]),
    ],
)
def test_peers_compute_alibi(name: str, case: str) -> None:
    trial = small(case)
    inputs = make_inputs(trial, PLENTY)
    out = PEERS[name].make(trial, inputs)()
    assert error(out, *expected_rows(inputs.groups[0])) < 1e-4


@pytest.mark.parametrize("case", ["forward-dense", "forward-horizon", "decode", "decode-steps", "few-queries"])
def test_ours_compute_alibi(case: str) -> None:
    trial = small(case)
    inputs = make_inputs(trial, PLENTY)
    for name in our_names(trial):
        with contextlib.suppress(NotImplementedError):  # the compiled library is not everywhere
            assert error(make_ours(name, trial, inputs)(), *expected_rows(inputs.groups[0])) < 1e-4


def test_no_positions_are_not_alibi() -> None:
    trial = small("forward-dense")
    inputs = make_inputs(trial, PLENTY)
    assert error(PEERS["sdpa"].make(trial, inputs)(), *expected_rows(inputs.groups[0])) > 1e-2
    assert not PEERS["sdpa"].alibi


def test_training_gives_the_gradients_of_all_three() -> None:
    trial = small("training-dense")
    inputs = make_inputs(trial, PLENTY)
    ours = make_ours("alibi-blocked", trial, inputs)()
    for name in ("sdpa-row", "eager"):
        for gradient, expected in zip(PEERS[name].make(trial, inputs)(), ours, strict=True):
            torch.testing.assert_close(gradient, expected, atol=1e-4, rtol=1e-4)


def test_groups_of_heads_stand_in_for_a_layer_that_does_not_fit() -> None:
    trial = Trial(replace(CASES["bloom-176b"], heads=20), 16, 32)
    whole, inputs = make_inputs(trial, PLENTY), make_inputs(trial, 0)
    assert [len(group.slopes) for group in inputs.groups] == [8, 8, 4]
    assert torch.equal(torch.cat([group.slopes for group in inputs.groups]), whole.groups[0].slopes)
    assert inputs.note == "in 3 groups of heads over the same tensors, to fit into memory"
    assert whole.note == ""
    assert make_ours("alibi-blocked", trial, inputs)().shape == (1, 8, 32, 16)


def test_tiles_are_counted() -> None:
    trial = small("forward-dense", keys=256)
    found = computed_tiles(trial, make_inputs(trial, PLENTY), "alibi-blocked")
    # Two blocks of 128 queries see 2 and 4 tiles of 64 keys, in each of 8 heads.
    assert found == (8 * 6, 1.0, 128, None)


@pytest.mark.parametrize("first", [0, 1])
def test_the_block_mask_of_flex(first: int) -> None:
    trial = small("forward-horizon", keys=512)
    start = torch.tensor([0, 0, first, 2])[None, None]
    mask = peers_flex.block_mask(trial.queries, trial.keys, start)
    rows, columns = torch.arange(4)[:, None], torch.arange(4)
    expected = (columns <= rows) & (columns >= start[0, 0, :, None])
    assert torch.equal(mask.to_dense()[0, 0].bool(), expected)


# What is on disk while a run goes on


def test_every_size_is_written_when_it_is_done(tmp_path: Path) -> None:
    output, written = tmp_path / "results.json", []
    trials = [small("sweep", keys=keys) for keys in (32, 64)]

    def started(trial: Trial) -> None:  # noqa: ARG001
        # As much as is left where something takes the process down from here on.
        written.append([each.keys for each in read_results(output).trials if each.complete])

    Bench(trials, [], 1, Settings(repeats=1, least=0.001)).run(output, Watch(started=started))
    assert written == [[], [32]]
    assert [each.keys for each in read_results(output).trials] == [32, 64]
