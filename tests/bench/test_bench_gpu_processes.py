"""The process that measures on a GPU: what fells it costs its own contestant, and nobody the time of the others."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from gpu_fakes import SETTINGS, small

from alibi_attention.bench.gpu import __main__ as command
from alibi_attention.bench.gpu import compiler
from alibi_attention.bench.gpu import run as run_module
from alibi_attention.bench.gpu import trial as gpu_trial
from alibi_attention.bench.gpu.cases import GpuTrial, K, gpu_trials
from alibi_attention.bench.gpu.clock import HostClock
from alibi_attention.bench.gpu.inputs import make_gpu_inputs
from alibi_attention.bench.gpu.process import LOST
from alibi_attention.bench.gpu.run import Budget, GpuRun, spare_workers
from alibi_attention.bench.gpu.verdicts import report
from alibi_attention.bench.gpu.warm import Warming, dealt
from alibi_attention.bench.gpu.watch import Measuring, Patience
from alibi_attention.bench.gpu.worker import Plan, read_plan, work
from alibi_attention.bench.results import read_results

pytestmark = pytest.mark.usefixtures("fake_peers")


def start(folder: Path, trials: list[GpuTrial], **changes: Any) -> GpuRun:
    settings: dict[str, Any] = {
        "device": "cpu", "settings": SETTINGS, "with_suite": False, "tell": lambda line: None,  # noqa: ARG005
        "budget": Budget(suite=5.0, whole=120.0, cold=60.0),
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


@pytest.mark.parametrize("what", ["Suite", "keep_logs"])
def test_what_goes_wrong_around_the_checks_does_not_cost_the_measurements(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    def failing(*_: Any) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(run_module, what, failing)
    results = start(tmp_path, [small(peers=())], with_suite=what == "Suite", workers=(1, 1)).run()
    assert results.status == "complete"
    found = read_results(tmp_path / "found.json")
    assert found.trials[0].default.seconds is not None
    if what == "Suite":
        assert found.suite == {"fault": "OSError: no space left on device"}
        assert "Checks broken off: OSError: no space left on device" in report(found)
    else:
        assert found.machine["logs"] == "not kept: OSError: no space left on device"


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
    # Its last words are those in which the fault was named, not the end of the list of modules after them.
    assert first.entry("killed").refused.startswith("ended the process (status -11): ")
    assert "Fatal Python error: Segmentation fault" in first.entry("killed").refused
    assert first.entry("right").seconds is not None
    assert first.default.seconds is not None
    assert second.entry("right").seconds is not None


@pytest.mark.usefixtures("sabotaged")
def test_a_contestant_that_hangs_is_left_out(tmp_path: Path) -> None:
    run = start(tmp_path, [small(peers=("stuck", "right"))], budget=Budget(suite=5.0, whole=150.0, cold=12.0))
    (result,) = run.run().trials
    assert result.entry("stuck").refused == "gave no answer within 12 s"
    assert result.entry("right").seconds is not None


@pytest.mark.usefixtures("sabotaged")
def test_when_time_is_up_what_is_known_is_kept(tmp_path: Path) -> None:
    trials = [small(peers=("right",)), small(peers=("stuck",))]
    # Where much else runs, torch alone takes longer to load than the time of the first try.
    for whole in (14.0, 90.0):
        folder = tmp_path / f"{whole:.0f}"
        folder.mkdir()
        begin = time.monotonic()
        results = start(folder, trials, budget=Budget(suite=5.0, whole=whole, cold=1000.0)).run()
        assert time.monotonic() - begin < whole + 16.0
        assert results.status == "incomplete"
        found = read_results(folder / "found.json")
        if found.trials and found.trials[0].complete:
            break
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


def blamed(tmp_path: Path, trials: list[GpuTrial], at: list[tuple[int, str | None]], **rest: Any) -> Measuring:
    """Processes that fell, each at a contestant of a trial."""
    measuring = Measuring(tmp_path, Plan("cpu", dict(enumerate(trials)), SETTINGS), Patience(), **rest)
    for number, name in at:
        (tmp_path / "state.json").write_text(json.dumps({"trial": number, "contestant": name}), encoding="utf-8")
        measuring._blame("it fell")
    return measuring


def test_two_faults_in_a_case_are_enough(tmp_path: Path) -> None:
    trials = [small(keys=keys) for keys in (16, 32, 64, 128)] + [small("gpu-training-dense")]
    once = blamed(tmp_path, trials, [(0, "alibi-triton"), (1, "flex")])
    assert once._excluded == {0: {"alibi-triton": "it fell"}, 1: {"flex": "it fell"}}
    twice = blamed(tmp_path, trials, [(0, "alibi-triton"), (1, "alibi-triton")])
    reason = "left out after 2 faults in this case, the last: it fell"
    assert twice._excluded[2] == twice._excluded[3] == {"alibi-triton": reason}
    assert twice._excluded[1] == {"alibi-triton": "it fell"}
    assert 4 not in twice._excluded, "another case is another matter"


def test_what_was_compiled_beforehand_is_waited_for_less(tmp_path: Path) -> None:
    measuring = blamed(tmp_path, [small(), small()], [], warmed={1})
    waited = []
    for number in (0, 1):
        (tmp_path / "state.json").write_text(json.dumps({"trial": number, "contestant": None}), encoding="utf-8")
        waited.append(measuring._stall())
    assert waited == [75.0, 60.0]
    page = (Path(__file__).parents[2] / "benchmarks" / "README.md").read_text(encoding="utf-8")
    assert f"{waited[0]:.0f} s ({waited[1]:.0f} s where it was compiled beforehand)" in page
    assert (Budget().cold, Budget().warm) == (Patience().cold, Patience().warm) == tuple(waited)


def test_processes_that_compile_share_the_sizes_and_one_alone_has_the_large() -> None:
    trials = gpu_trials()
    parts = dealt(trials, 4)
    assert sorted(number for part in parts for number in part) == list(range(len(trials)))
    assert all(part[number] is trials[number] for part in parts for number in part)
    assert [any(trial.keys >= 128 * K for trial in part.values()) for part in parts] == [False, False, False, True]
    assert max(map(len, parts)) <= min(map(len, parts)) + 3
    assert [len(part) for part in dealt(trials, 1)] == [len(trials)]
    assert len(dealt(trials[:1], 6)) == 1


def test_what_is_compiled_beforehand_is_told_size_by_size(tmp_path: Path) -> None:
    warming = Warming(tmp_path, [small(peers=()), small(peers=(), keys=64)], 1, "cpu", SETTINGS)
    until = time.monotonic() + 120.0
    while any(process.status is None for process in warming._processes) and time.monotonic() < until:
        time.sleep(0.1)
    warming.end()
    assert warming.warmed() == {0, 1}


def test_processes_are_as_many_as_cores() -> None:
    assert spare_workers(16) == (12, 4)
    assert spare_workers(2) == (1, 1)
    assert spare_workers(1) == (1, 1)
    assert sum(spare_workers(200)) == 30


def test_the_assembler_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    monkeypatch.delenv(compiler.PTXAS, raising=False)
    found = compiler.compiler()
    assert found["ptxas_from"] == "triton"
    assert found["triton"]
    assert found["ptxas"] is None or found["ptxas"][0].isdigit()
    monkeypatch.setenv(compiler.PTXAS, "/a/ptxas/that/is/not/there")
    assert compiler.compiler()["ptxas_from"] == compiler.PTXAS
