"""The command for a borrowed GPU, with the processor in its place: no time on a device may be lost to a fault here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from gpu_fakes import SETTINGS, small

from alibi_attention.bench.errors import BenchError
from alibi_attention.bench.gpu import gradients
from alibi_attention.bench.gpu import peers as gpu_peers
from alibi_attention.bench.gpu.cases import FASTEST, GPU_CASES, GpuTrial, gpu_trials
from alibi_attention.bench.gpu.clock import CudaClock, HostClock, calls_in
from alibi_attention.bench.gpu.inputs import full_bias, make_gpu_inputs
from alibi_attention.bench.gpu.peers import GPU_PEERS
from alibi_attention.bench.gpu.run import with_targets
from alibi_attention.bench.gpu.trial import DeviceLostError, Record, blank_result, measure_gpu_trial
from alibi_attention.bench.gpu.verdicts import report, verdicts
from alibi_attention.bench.results import Entry, Results
from alibi_attention.bench.timing import Samples
from alibi_attention.ops import alibi_attention

pytestmark = pytest.mark.usefixtures("fake_peers")


# Cases


def test_the_targets_are_those_of_the_table() -> None:
    asked = {
        (trial.case.name, trial.head_dim, trial.keys // 1024, peer): ratio
        for trial in gpu_trials()
        for peer, ratio in trial.targets.items()
    }
    expected: dict[tuple[str, int, int, str], float] = {}
    for length in (4, 8, 16):
        for dim, flex, training in ((64, 1.25, 1.2), (128, 1.15, 1.1)):
            expected["gpu-forward-dense", dim, length, "flex"] = flex
            expected["gpu-forward-dense", dim, length, "sdpa-flash"] = 1.0
            expected["gpu-training-dense", dim, length, "flex"] = training
    for dim, ratios, windows in ((64, (2.2, 7.0, 25.0), 1.2), (128, (2.0, 6.0, 22.0), 1.1)):
        for length, ratio in zip((8, 32, 128), ratios, strict=True):
            expected["gpu-training-horizon", dim, length, "flex"] = ratio
            expected["gpu-training-horizon", dim, length, "flex-windows"] = windows
        expected["gpu-decode", dim, 128, FASTEST] = 20.0
    assert asked == expected


def test_cases_are_large_enough_and_their_peers_exist() -> None:
    for case in GPU_CASES.values():
        assert case.batch * case.heads >= (128 if case.cached else 32)
        assert case.dtype == torch.bfloat16
        assert set(case.peers) <= set(GPU_PEERS)
        assert set(case.targets) - {FASTEST} <= set(case.peers)
        assert (case.tolerance == 0.0) == ("dense" in case.name)


def test_the_most_telling_sizes_come_first() -> None:
    found = gpu_trials()
    with_targets = [bool(trial.targets) for trial in found]
    assert with_targets == sorted(with_targets, reverse=True), "what nothing is asked of comes last"
    asked_of = {trial.case.name for trial in found if trial.targets}
    assert {trial.case.name for trial in found[: 2 * len(asked_of)]} == asked_of
    assert len(found) == sum(len(case.lengths) * 2 for case in GPU_CASES.values())
    assert [trial.name for trial in gpu_trials(["gpu-decode"])] == [
        "gpu-decode D=64 L=131072",
        "gpu-decode D=128 L=131072",
    ]
    with pytest.raises(BenchError, match="choose from gpu-training-horizon"):
        gpu_trials(["gpu-nothing"])


# Inputs and peers


def test_the_mask_and_the_expected_rows_are_alibi() -> None:
    trial = small(keys=40)
    inputs = make_gpu_inputs(trial, "cpu")
    exact = alibi_attention(
        *(t.double() for t in (inputs.query, inputs.key, inputs.value, inputs.slopes)), backend="reference"
    )
    rows, expected = inputs.expected
    torch.testing.assert_close(exact[0][:, rows], expected)
    masked = torch.nn.functional.scaled_dot_product_attention(
        inputs.query, inputs.key, inputs.value, attn_mask=full_bias(inputs)
    )
    torch.testing.assert_close(masked, exact.float(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("queries", [None, 23])
def test_the_expected_gradients_are_those_of_alibi(queries: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    # More chunks than one, the last of them shorter.
    monkeypatch.setattr(gradients, "_CHUNK", 16)
    inputs = make_gpu_inputs(small("gpu-training-dense", keys=40, queries=queries, heads=3), "cpu")
    leaves = [t.detach().double().requires_grad_() for t in (inputs.query, inputs.key, inputs.value)]
    out = alibi_attention(*leaves, inputs.slopes.double(), backend="reference")
    exact = torch.autograd.grad(out, leaves, inputs.grad.double())
    expected = inputs.expected_gradients
    assert len(expected.rows) == len(expected.keys) == 8
    assert expected.error(exact) < 1e-6
    # Of each of the three, and at a single place.
    for number in range(3):
        off = [grad.clone() for grad in exact]
        place = int((expected.rows if number == 0 else expected.keys)[5])
        off[number][0, 2, place, 7] += 1.0
        assert expected.error(off) > 0.1
        off[number][0, 2, place, 7] = torch.nan
        assert not expected.error(off) < 1.0
        # A flat head has small gradients, and all of them are missing; or all but those of the first key.
        for first in (0, 1):
            off = [grad.clone() for grad in exact]
            off[number][0, 0, first:] = 0.0
            assert expected.error(off) > 0.5


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize(("name", "queries"), [("flex", None), ("flex-windows", None), ("flex-decode", 1)])
def test_flex_computes_alibi(name: str, queries: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    # Uncompiled: the same score, mask and windows without a compiler.
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    trial = small("gpu-forward-horizon", keys=512, queries=queries, tolerance=None)
    assert GPU_PEERS[name].refuses(trial, 1 << 40) is None
    inputs = make_gpu_inputs(trial, "cpu")
    inputs.slopes.copy_(torch.tensor([0.5, 1.0]))
    out = GPU_PEERS[name].prepare(trial, inputs)()
    rows, expected = inputs.expected
    torch.testing.assert_close(out[0][:, rows].double(), expected, atol=1e-5, rtol=1e-5)
    if name == "flex-windows":
        assert inputs.certificate.kept_share.max() < 1.0


def test_sdpa_peers_ask_for_their_kernel_and_flash_for_its_slopes(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    def kernel(*given: Any, **named: Any) -> Any:
        asked.update(shape=tuple(given[0].shape), rest=given[3:], named=named)
        return (given[0], None)

    monkeypatch.setattr(torch.ops.aten, "_flash_attention_forward", kernel)
    trial = small("gpu-decode", keys=64)
    inputs = make_gpu_inputs(trial, "cpu")
    out = GPU_PEERS["flash-alibi"].prepare(trial, inputs)()
    assert out.shape == inputs.query.shape
    assert asked["shape"] == (4, 1, 2, 16)
    assert asked["rest"] == (None, None, 1, 64, 0.0, False, False)
    assert asked["named"]["alibi_slopes"] is inputs.slopes
    # The arguments are those of torch's schema, by place.
    schema = torch._C._jit_get_schemas_for_operator("aten::_flash_attention_forward")[0]
    names = [argument.name for argument in schema.arguments]
    assert names[3:10] == ["cum_seq_q", "cum_seq_k", "max_q", "max_k", "dropout_p", "is_causal", "return_debug_mask"]
    assert "alibi_slopes" in names

    seen: list[Any] = []
    monkeypatch.setattr(gpu_peers, "sdpa", lambda *tensors, **named: seen.append(named) or tensors[0])
    for name, backend in (("sdpa-flash", "FLASH_ATTENTION"), ("sdpa-cudnn", "CUDNN_ATTENTION")):
        chosen: list[Any] = []
        monkeypatch.setattr(torch.nn.attention, "sdpa_kernel", _recorder(chosen))
        GPU_PEERS[name].prepare(small(), make_gpu_inputs(small(), "cpu"))()
        assert [each.name for each in chosen[0]] == [backend]
        assert seen[-1] == {"is_causal": True}
    GPU_PEERS["cudnn-mask"].prepare(small(), make_gpu_inputs(small(), "cpu"))()
    assert [each.name for each in chosen[-1]] == ["CUDNN_ATTENTION"]
    assert seen[-1]["attn_mask"].shape == (1, 2, 128, 128)


def _recorder(chosen: list[Any]) -> Callable[[Any], Any]:
    import contextlib

    def sdpa_kernel(backends: Any) -> Any:
        chosen.append(backends)
        return contextlib.nullcontext()

    return sdpa_kernel


@pytest.mark.parametrize(
    ("peer", "trial", "reason"),
    [
        ("flash-alibi", small("gpu-training-dense"), "torch's flash backward takes no slopes"),
        ("cudnn-mask", small(keys=4096), "holds a mask of 0.1 GiB, over the memory budget"),
        ("flex", small(keys=100), "a multiple of 128, alone"),
        ("flex-windows", small(), "every tile is computed here"),
        ("flex-decode", small(), "one query alone"),
    ],
)
def test_refusals_have_reasons(peer: str, trial: GpuTrial, reason: str) -> None:
    assert reason in str(GPU_PEERS[peer].refuses(trial, 1 << 20))


def test_a_mask_of_more_elements_than_32_bits_count_is_not_asked_for() -> None:
    case = GPU_CASES["gpu-forward-dense"]
    reasons = {keys: GPU_PEERS["cudnn-mask"].refuses(GpuTrial(case, 64, keys), 1 << 50) for keys in case.lengths}
    assert reasons == {4096: None, **dict.fromkeys((8192, 16384), "its mask has 2^31 elements or more")}


# One size


def measured(trial: GpuTrial, clock: Any = None, **record: Any) -> Any:
    kept = Record(blank_result(trial), **record)
    measure_gpu_trial(trial, kept, clock or HostClock(), SETTINGS)
    return kept.result


@pytest.mark.parametrize("mode", ["forward", "training", "decode"])
def test_everyone_is_measured_in_turn(mode: str) -> None:
    trial = small(f"gpu-{'decode' if mode == 'decode' else mode + '-dense'}")
    result = measured(trial)
    assert result.complete
    assert [entry.name for entry in result.entries] == ["alibi-blocked", "sdpa-plain"]
    for entry in result.entries:
        assert len(entry.plain.seconds) == 3
        assert min(entry.plain.seconds) > 0.0
        assert entry.error < 1e-4
    assert result.heads == (8 if mode == "decode" else 2)


def test_a_peer_that_fails_loses_nothing_but_itself() -> None:
    result = measured(small(peers=("failing", "wrong", "failing later", "sdpa-plain")))
    entries = {entry.name: entry for entry in result.entries}
    assert entries["failing"].refused == "failed: RuntimeError: no such kernel"
    assert "from ALiBi's in float64" in str(entries["wrong"].refused)
    assert entries["failing later"].refused == "failed: OutOfMemoryError: out of memory"
    assert entries["failing later"].seconds is None
    assert len(entries["sdpa-plain"].plain.seconds) == len(entries["alibi-blocked"].plain.seconds) == 3
    assert result.complete


def test_a_peer_whose_gradients_are_others_is_not_counted() -> None:
    result = measured(small("gpu-training-dense", peers=("half a gradient", "sdpa-plain")))
    entries = {entry.name: entry for entry in result.entries}
    assert entries["half a gradient"].error < 1e-4
    assert entries["half a gradient"].grad_error == pytest.approx(0.5, abs=1e-3)
    assert entries["half a gradient"].refused == "a gradient is 50% of its length from ALiBi's in float32"
    for name in ("alibi-blocked", "sdpa-plain"):
        assert entries[name].grad_error < 1e-4
        assert entries[name].seconds is not None
    forward = measured(small(peers=("half a gradient",)))
    assert forward.entry("half a gradient").grad_error is None
    assert forward.entry("half a gradient").seconds is not None


def test_without_a_reference_nobody_is_called_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr("alibi_attention.bench.gpu.inputs.expected_gradients", fail)
    result = measured(small("gpu-training-dense", peers=("sdpa-plain",)))
    assert {entry.refused for entry in result.entries} == {
        "nothing to compare it with: failed: OutOfMemoryError: out of memory"
    }
    forward = measured(small(peers=("sdpa-plain",)))
    assert all(entry.seconds is not None for entry in forward.entries)


def test_a_lost_device_is_noticed_and_the_contestant_named() -> None:
    class Lost(HostClock):
        def check(self) -> None:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")

    steps: list[str | None] = []
    with pytest.raises(DeviceLostError, match="failing took the device with it"):
        measured(small(peers=("failing", "sdpa-plain")), Lost(), status=steps.append)
    assert steps[-1] == "failing"


def test_what_is_excluded_is_not_tried() -> None:
    result = measured(small(peers=("failing", "sdpa-plain")), excluded={"failing": "it ended the process"})
    assert result.entry("failing").refused == "it ended the process"
    assert result.entry("sdpa-plain").seconds is not None


def test_a_backend_that_cannot_run_says_why() -> None:
    kept = Record(blank_result(small()))
    measure_gpu_trial(small(), kept, HostClock(), replace(SETTINGS, backend="cuda"))
    assert kept.result.default.refused == "there is no such backend"
    assert kept.result.entry("sdpa-plain").seconds is not None


def test_sizes_that_take_long_get_fewer_rounds() -> None:
    settings = replace(SETTINGS, rounds=5, long_rounds=2, long=0.0)
    kept = Record(blank_result(small()))
    measure_gpu_trial(small(), kept, HostClock(), settings)
    assert [len(entry.plain.seconds) for entry in kept.result.entries] == [2, 2]
    kept = Record(blank_result(small()))
    measure_gpu_trial(small(), kept, HostClock(), replace(settings, long=1e9))
    assert [len(entry.plain.seconds) for entry in kept.result.entries] == [5, 5]


def test_short_calls_are_repeated_within_a_sample() -> None:
    assert calls_in(1.0, 0.05) == 1
    assert calls_in(1e-3, 0.05) == 50
    assert calls_in(1e-5, 0.05) == 100
    assert calls_in(0.0, 0.0) == 1


def test_kept_share_is_that_of_the_certificate() -> None:
    result = measured(small("gpu-forward-horizon", keys=1024, tolerance=None))
    assert 0.0 < result.kept_share < 1.0


# The clock of a device, on a stand-in for its queue


class Queue:
    """What would be done on the device, in order: a tick of time for each cycle of a sleep, and for each call."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.done: list[str] = []
        self.now = self.host = 0.0
        queue = self

        class Event:
            def __init__(self, enable_timing: bool) -> None:
                assert enable_timing

            def record(self) -> None:
                queue.done.append("event")
                self.at = queue.now

            def elapsed_time(self, other: Any) -> float:
                return float(other.at - self.at) * 1e3

        monkeypatch.setattr(torch.cuda, "Event", Event)
        monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
        monkeypatch.setattr(torch.cuda, "_sleep", self.sleep)
        # The host's clock as well: a machine that is busy with something else would lengthen what the calls take.
        monkeypatch.setattr("alibi_attention.bench.gpu.clock.time", SimpleNamespace(perf_counter=lambda: self.host))

    def sleep(self, cycles: int) -> None:
        self.done.append(f"{cycles / 2e9:.4f}")
        self.now += cycles / 2e9

    def call(self, host: float, device: float) -> None:
        self.host += host
        self.done.append("call")
        self.now += device


def test_a_call_is_queued_before_the_device_begins_it(monkeypatch: pytest.MonkeyPatch) -> None:
    queue, clock = Queue(monkeypatch), CudaClock()
    clock._flush = torch.empty(1)
    assert clock.seconds(lambda: queue.call(0.003, 0.5), 3) == pytest.approx(0.5)
    # After the calibration, each call is behind a sleep that is longer than the host takes to queue it.
    calibration, calls = queue.done[:4], [queue.done[at : at + 4] for at in range(4, 16, 4)]
    assert calibration[1::2] == ["event", "event"]
    assert all(rest == ["event", "call", "event"] for _, *rest in calls)
    assert [float(sleep) for sleep, *_ in calls] == [0.004, 0.006, 0.006]
    # At least and at most so long, whatever a call takes; by the median, for a full queue keeps one of them waiting.
    for takes, holds in (([0.0] * 2, [0.004, 0.0001]), ([1.0] * 2, [0.004, 0.01])):
        assert held(queue, clock, takes) == holds
    assert held(queue, clock, [0.001, 0.001, 1.0, 0.001]) == [0.004, 0.002, 0.002, 0.002]


def held(queue: Queue, clock: CudaClock, takes: list[float]) -> list[float]:
    """For how long the device is held before each of some calls, by what the host takes to queue them."""
    queue.done.clear()
    rest = iter(takes)
    clock.seconds(lambda: queue.call(next(rest), 0.5), len(takes))
    return [float(seconds) for seconds in queue.done[::4]]


# Targets


def test_the_fastest_peer_takes_the_target() -> None:
    trial = replace(small("gpu-decode"), case=replace(GPU_CASES["gpu-decode"]), keys=128 * 1024, head_dim=64)
    result = blank_result(trial)
    assert with_targets(result, trial).targets == {FASTEST: 20.0}
    for name, seconds in (("sdpa-flash", 3.0), ("flash-alibi", 1.0), ("sdpa-cudnn", 2.0)):
        result.entries.append(Entry(name, "", ours=False, plain=Samples(seconds=[seconds])))
    ours = Entry("alibi-triton", "", ours=True, default=True, plain=Samples(seconds=[0.04]))
    result.entries.append(ours)
    found = with_targets(result, trial)
    assert found.targets == {"flash-alibi": 20.0}
    (verdict,) = verdicts(Results({}, {}, [found]))
    assert (verdict.word, verdict.peer, verdict.ratio and round(verdict.ratio.median)) == (
        "met, one round",
        "flash-alibi",
        25,
    )


def test_targets_are_met_missed_or_untested() -> None:
    trial = GpuTrial(GPU_CASES["gpu-training-horizon"], 64, 8192)
    result = blank_result(trial)
    result.entries = [
        Entry("alibi-triton", "", ours=True, default=True, plain=Samples(seconds=[1.0, 1.0])),
        Entry("flex", "", ours=False, plain=Samples(seconds=[2.0, 2.1])),
        Entry("flex-windows", "", ours=False, refused="failed: RuntimeError: triton says no"),
    ]
    results = Results({}, {}, [with_targets(result, trial)])
    found = {verdict.peer: verdict for verdict in verdicts(results)}
    assert found["flex"].word.startswith("missed")
    assert found["flex-windows"].word == "untested"
    assert "triton says no" in found["flex-windows"].why
    text = report(results)
    assert "missed" in text
    assert "untested" in text
