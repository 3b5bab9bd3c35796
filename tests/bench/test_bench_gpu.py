"""The command for a borrowed GPU, with the processor in its place: no time on a device may be lost to a fault here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from alibi_attention.bench.errors import BenchError
from alibi_attention.bench.gpu import __main__ as command
from alibi_attention.bench.gpu import peers as gpu_peers
from alibi_attention.bench.gpu import trial as gpu_trial
from alibi_attention.bench.gpu.cases import FASTEST, GPU_CASES, GpuTrial, gpu_trials
from alibi_attention.bench.gpu.clock import HostClock, calls_in
from alibi_attention.bench.gpu.inputs import full_bias, make_gpu_inputs
from alibi_attention.bench.gpu.peers import GPU_PEERS, GpuPeer
from alibi_attention.bench.gpu.run import Budget, GpuRun, with_targets
from alibi_attention.bench.gpu.suite import Suite
from alibi_attention.bench.gpu.trial import DeviceLostError, GpuSettings, Record, blank_result, measure_gpu_trial
from alibi_attention.bench.gpu.verdicts import report, verdicts
from alibi_attention.bench.gpu.worker import LOST, Plan, read_plan, work
from alibi_attention.bench.results import Entry, Results, read_results
from alibi_attention.bench.timing import Samples
from alibi_attention.ops import alibi_attention

SETTINGS = GpuSettings(rounds=3, least=0.0, backend="blocked")


def small(name: str = "gpu-forward-dense", keys: int = 128, **changes: Any) -> GpuTrial:
    settings = {"heads": 2, "dtype": torch.float32, "peers": ("sdpa-plain",), "targets": {}} | changes
    return GpuTrial(replace(GPU_CASES[name], **settings), 16, keys)


def plain(_: GpuTrial, inputs: Any) -> Callable[[], torch.Tensor]:
    """A peer that is right, on the processor."""
    tensors = (inputs.query, inputs.key, inputs.value, inputs.slopes)
    return lambda: alibi_attention(*tensors, tolerance=0.0, backend="blocked")


def wrong(_: GpuTrial, inputs: Any) -> Callable[[], torch.Tensor]:
    return lambda: inputs.value + 1.0


def failing(*_: Any) -> Callable[[], torch.Tensor]:
    raise RuntimeError("no such kernel\nand a long story")


def failing_later() -> Callable[..., Any]:
    calls = []

    def prepare(trial: GpuTrial, inputs: Any) -> Callable[[], torch.Tensor]:
        right = plain(trial, inputs)

        def attend() -> torch.Tensor:
            calls.append(1)
            if len(calls) > 4:
                raise torch.OutOfMemoryError("out of memory")
            return right()

        return attend

    return prepare


@pytest.fixture(autouse=True)
def fakes(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {
        "sdpa-plain": plain, "wrong": wrong, "failing": failing, "failing later": failing_later(),
    }  # fmt: skip
    for name, prepare in found.items():
        monkeypatch.setitem(GPU_PEERS, name, GpuPeer(name, f"a peer that is {name}", prepare))


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
    assert {trial.case.name for trial in found[:10]} == set(GPU_CASES)
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


def test_short_calls_are_repeated_within_a_sample() -> None:
    assert calls_in(1.0, 0.05) == 1
    assert calls_in(1e-3, 0.05) == 50
    assert calls_in(1e-5, 0.05) == 100
    assert calls_in(0.0, 0.0) == 1


def test_kept_share_is_that_of_the_certificate() -> None:
    result = measured(small("gpu-forward-horizon", keys=1024, tolerance=None))
    assert 0.0 < result.kept_share < 1.0


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
    assert (verdict.word, verdict.peer, round(verdict.found or 0.0)) == ("met", "flash-alibi", 25)


def test_targets_are_met_missed_or_owed() -> None:
    trial = GpuTrial(GPU_CASES["gpu-training-horizon"], 64, 8192)
    result = blank_result(trial)
    result.entries = [
        Entry("alibi-triton", "", ours=True, default=True, plain=Samples(seconds=[1.0, 1.0])),
        Entry("flex", "", ours=False, plain=Samples(seconds=[2.0, 2.1])),
        Entry("flex-windows", "", ours=False, refused="failed: RuntimeError: triton says no"),
    ]
    results = Results({}, {}, [with_targets(result, trial)])
    found = {verdict.peer: verdict for verdict in verdicts(results)}
    assert found["flex"].word == "MISSED"
    assert found["flex-windows"].word == "owed"
    assert "triton says no" in found["flex-windows"].why
    text = report(results)
    assert "MISSED" in text
    assert "owed" in text


# Processes


def start(folder: Path, trials: list[GpuTrial], **changes: Any) -> GpuRun:
    settings: dict[str, Any] = {
        "device": "cpu", "settings": SETTINGS, "with_suite": False, "tell": lambda line: None,  # noqa: ARG005
        "budget": Budget(suite=5.0, whole=60.0, stall=30.0),
    } | changes  # fmt: skip
    return GpuRun(trials, folder / "found.json", **settings)


def test_a_plan_survives_its_file(tmp_path: Path) -> None:
    plan = Plan("cpu", {3: small(), 5: small("gpu-decode")}, SETTINGS, {3: {"flex": "why"}}, warm=True)
    plan.write(tmp_path / "plan.json")
    found = read_plan(tmp_path / "plan.json")
    assert (found.device, found.settings, found.excluded, found.warm) == ("cpu", SETTINGS, {3: {"flex": "why"}}, True)
    assert found.trials == plan.trials


def test_a_run_writes_what_alibi_bench_can_read(tmp_path: Path) -> None:
    # The peers of the test live in this process: here ours run alone.
    results = start(tmp_path, [small(peers=()), small("gpu-decode", peers=())]).run()
    assert results.status == "complete"
    found = read_results(tmp_path / "found.json")
    assert [trial.case for trial in found.trials] == ["gpu-forward-dense", "gpu-decode"]
    assert all(trial.default.seconds is not None for trial in found.trials)
    assert found.machine["gpu"]["name"].startswith("no GPU")
    assert found.machine["gpu"]["triton"] is not None
    assert found.suite["reason"] == "it was not asked for"
    assert "alibi-blocked" in report(found)


# Peers in a worker of its own: started with this in the environment, Python runs it before anything else.
SABOTAGE = """
import os, time
import alibi_attention.bench.gpu.peers as peers
from alibi_attention.ops import alibi_attention
def right(trial, inputs):
    tensors = (inputs.query, inputs.key, inputs.value, inputs.slopes)
    return lambda: alibi_attention(*tensors, tolerance=0.0, backend="blocked")
def killed(trial, inputs): os.kill(os.getpid(), 11)
def stuck(trial, inputs): time.sleep(1000)
for name, prepare in (("right", right), ("killed", killed), ("stuck", stuck)):
    peers.GPU_PEERS[name] = peers.GpuPeer(name, name, prepare)
"""


@pytest.fixture
def sabotaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "site"
    place.mkdir()
    (place / "sitecustomize.py").write_text(SABOTAGE, encoding="utf-8")
    source = Path(command.__file__).parents[3]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(place), str(source)]))


@pytest.mark.usefixtures("sabotaged")
def test_a_contestant_that_takes_its_process_down_is_left_out_and_the_rest_measured(tmp_path: Path) -> None:
    trials = [small(peers=("killed", "right")), small(peers=("right",), keys=64)]
    results = start(tmp_path, trials).run()
    first, second = results.trials
    assert results.status == "complete"
    assert "ended the process (status -11)" in first.entry("killed").refused
    assert first.entry("right").seconds is not None
    assert first.default.seconds is not None
    assert second.entry("right").seconds is not None


@pytest.mark.usefixtures("sabotaged")
def test_a_contestant_that_hangs_is_left_out(tmp_path: Path) -> None:
    run = start(tmp_path, [small(peers=("stuck", "right"))], budget=Budget(suite=5.0, whole=120.0, stall=12.0))
    (result,) = run.run().trials
    assert result.entry("stuck").refused == "gave no answer within 12 s"
    assert result.entry("right").seconds is not None


@pytest.mark.usefixtures("sabotaged")
def test_when_time_is_up_what_is_known_is_kept(tmp_path: Path) -> None:
    begin = time.monotonic()
    trials = [small(peers=("right",)), small(peers=("stuck",))]
    results = start(tmp_path, trials, budget=Budget(suite=5.0, whole=14.0, stall=1000.0)).run()
    assert time.monotonic() - begin < 30.0
    assert results.status == "incomplete"
    found = read_results(tmp_path / "found.json")
    assert found.trials[0].complete
    assert found.trials[0].entry("right").seconds is not None
    assert not found.trials[1].complete


def test_a_worker_reports_a_lost_device(tmp_path: Path) -> None:
    class Lost(HostClock):
        def check(self) -> None:
            raise RuntimeError("gone")

    plan = Plan("cpu", {0: small(peers=("failing",))}, SETTINGS)
    assert work(tmp_path, plan, Lost()) == LOST
    assert json.loads((tmp_path / "state.json").read_text())["contestant"] == "failing"


def test_inputs_that_do_not_fit_cost_one_size_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = make_gpu_inputs

    def make(trial: GpuTrial, device: str) -> Any:
        if trial.keys == 128:
            raise torch.OutOfMemoryError("out of memory")
        return whole(trial, device)

    monkeypatch.setattr(gpu_trial, "make_gpu_inputs", make)
    assert work(tmp_path, Plan("cpu", {0: small(), 1: small(keys=64)}, SETTINGS), HostClock()) == 0
    first, second = (json.loads((tmp_path / f"trial-{n}.json").read_text()) for n in (0, 1))
    assert first["note"] == "failed: OutOfMemoryError: out of memory"
    assert second["complete"]
    assert second["entries"][1]["plain"]["seconds"]


# Checks


def suite(tmp_path: Path, body: str, seconds: float = 20.0, parts: int = 2) -> Any:
    script = tmp_path / "checks.py"
    script.write_text(
        "import json, os, sys, time\ndef say(**r): print(json.dumps(r), flush=True)\n" + body, encoding="utf-8"
    )
    return Suite(script, tmp_path, parts, seconds, 5)


def test_checks_are_gathered_from_all_processes(tmp_path: Path) -> None:
    body = """
part = sys.argv[sys.argv.index("--part") + 1]
print("a library prints something")
say(check="good " + part, seconds=0.1, failure=None)
say(check="left " + part, seconds=0.0, failure=None, left_out=True)
if part == "1/2":
    say(check="bad", seconds=0.1, failure="AssertionError: no")
    sys.exit(1)
os.kill(os.getpid(), 11)
"""
    found = suite(tmp_path, body).wait()
    assert sorted(found.passed) == ["good 1/2", "good 2/2"]
    assert found.failed["bad"] == "AssertionError: no"
    assert "status -11" in found.failed["part 2, after left 2/2"]
    assert len(found.left_out) == 2
    assert "2 passed, 2 failed, 2 left out" in found.line()


def test_a_script_that_does_not_start_is_a_failure(tmp_path: Path) -> None:
    found = suite(tmp_path, "raise ImportError('no triton here')", parts=1).wait()
    assert found.failed == {"part 1, after its start": "ImportError: no triton here"}


def test_checks_that_hang_are_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from alibi_attention.bench.gpu import suite as module

    monkeypatch.setattr(module, "_GRACE", 0.5)
    begin = time.monotonic()
    found = suite(
        tmp_path, "say(check='one', seconds=0.1, failure=None)\ntime.sleep(1000)", seconds=2.0, parts=1
    ).wait()
    assert time.monotonic() - begin < 20.0
    assert found.passed == ["one"]
    assert any("status -15" in reason for reason in found.failed.values())


def test_the_checks_of_the_repository_are_where_the_command_looks() -> None:
    from alibi_attention.bench.gpu.run import SCRIPT

    if not (SCRIPT.parents[3] / "pyproject.toml").exists():
        pytest.skip("the package is installed apart from its repository")
    assert SCRIPT.is_file()


def test_without_a_checkout_the_checks_say_so(tmp_path: Path) -> None:
    assert "needs a checkout" in str(Suite(tmp_path / "none.py", tmp_path, 2, 5.0, 5).wait().reason)


# The command


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_without_a_gpu_the_command_says_what_stays_owed(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main([]) == 2
    assert "the targets stay owed" in capsys.readouterr().err


def test_the_command_lists_its_cases(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--list"]) == 0
    told = capsys.readouterr().out
    assert all(name in told for name in GPU_CASES)


def test_the_whole_takes_less_than_eight_minutes() -> None:
    # What is begun when time is up is ended at once; five seconds are for that.
    assert Budget().whole + 5.0 + 5.0 < 8 * 60
    assert command._budget(7.5, False).whole == 445.0
    assert command._budget(1.0, False).suite < 20.0


def test_the_command_needs_torch_alone() -> None:
    """Without what only extras bring; Triton is asked for by the kernels themselves."""
    absent = [
        "hypothesis",
        "lightning",
        "matplotlib",
        "numpy",
        "pydantic",
        "pytest",
        "rich",
        "typer",
        "safetensors",
        "transformers",
    ]
    root = Path(command.__file__).parents[4]
    code = (
        f"import sys; sys.path.insert(0, {str(root / 'src')!r}); import torch; "
        f"sys.modules.update(dict.fromkeys({absent!r})); "
        "from alibi_attention.bench.gpu import worker, run; from alibi_attention.bench.gpu.__main__ import main; "
        "sys.exit(main(['--list']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr


def test_all_of_it_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script = tmp_path / "checks.py"
    script.write_text('print(\'{"check": "one", "seconds": 0.1, "failure": null}\')', encoding="utf-8")
    trial = small(peers=())
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "NVIDIA H200 141GB")  # noqa: ARG005
    monkeypatch.setattr(command, "gpu_trials", lambda names: [trial])  # noqa: ARG005
    whole = GpuRun

    def fake(trials: Any, output: Path, **rest: Any) -> GpuRun:
        assert output.name.startswith("gpu-nvidia-h200-141gb-")
        return whole(
            trials, tmp_path / output.name, device="cpu", settings=SETTINGS, script=script, **{**rest, "workers": 1}
        )

    monkeypatch.setattr(command, "GpuRun", fake)
    assert command.main([]) == 0
    told = capsys.readouterr().out
    assert "checks: 1 passed, 0 failed" in told
    assert "alibi-blocked" in told
    assert "(complete" in told
