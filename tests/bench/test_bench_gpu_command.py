"""The command for a borrowed GPU: what it says, what it leaves behind, and how it is stopped."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from gpu_fakes import SETTINGS, small

from alibi_attention.bench import machine
from alibi_attention.bench.gpu import __main__ as command
from alibi_attention.bench.gpu.cases import GPU_CASES, GpuTrial
from alibi_attention.bench.gpu.run import Budget, GpuRun
from alibi_attention.bench.results import read_results


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_without_a_gpu_the_command_says_what_stays_untested(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main([]) == 2
    assert "the targets stay untested" in capsys.readouterr().err


def test_the_command_lists_its_cases(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--list"]) == 0
    told = capsys.readouterr().out
    assert all(name in told for name in GPU_CASES)


def test_the_whole_takes_less_than_eight_minutes() -> None:
    # What is begun when time is up is ended at once; five seconds are for that.
    assert Budget().whole + 5.0 + 5.0 < 8 * 60
    assert command._budget(7.5, False).whole == 445.0
    assert command._budget(1.0, False).suite < 20.0


def test_lengths_of_ones_own_take_the_place_of_those_of_the_cases(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    begun: list[list[GpuTrial]] = []

    class Begun(GpuRun):
        def run(self) -> Any:
            begun.append(list(self.trials))
            raise KeyboardInterrupt

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(command, "GpuRun", Begun)
    output = str(tmp_path / "found.json")
    arguments = ["gpu-training-horizon", "gpu-decode", "--lengths", "128K", "2048", "--output", output]
    assert command.main(arguments) == 130
    sizes = {(trial.case.name, trial.head_dim, trial.keys) for trial in begun[0]}
    named = ("gpu-training-horizon", "gpu-decode")
    assert sizes == {(name, dim, keys) for name in named for dim in (64, 128) for keys in (131072, 2048)}
    for wrong in ("0", "8M", "-1", "1.5K"):
        with pytest.raises(SystemExit):
            command.main(["--lengths", wrong])
        assert "expected a number of tokens such as 8192 or 8K" in capsys.readouterr().err


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
    script.write_text('print(\'{"planned": ["one"]}\\n{"check": "one", "failure": null}\')', encoding="utf-8")
    trial = small(peers=())
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "NVIDIA H200 141GB")  # noqa: ARG005
    monkeypatch.setattr(command, "gpu_trials", lambda names, lengths: [trial])  # noqa: ARG005
    whole = GpuRun

    def fake(trials: Any, output: Path, **rest: Any) -> GpuRun:
        assert output.name.startswith("gpu-nvidia-h200-141gb-")
        return whole(
            trials,
            tmp_path / output.name,
            device="cpu",
            settings=SETTINGS,
            script=script,
            **{**rest, "workers": (1, 1)},
        )

    monkeypatch.setattr(command, "GpuRun", fake)
    assert command.main([]) == 0
    told = capsys.readouterr().out
    assert "checks: 1 passed, 0 failed" in told
    assert "alibi-blocked" in told
    assert "(complete" in told
    (logs,) = tmp_path.glob("gpu-*-logs.tar.gz")
    with tarfile.open(logs) as archive:
        assert set(archive.getnames()) == {"measured/worker.log", "suite-part-1.log", "warm-0/worker.log"}
        suite = archive.extractfile("suite-part-1.log")
        assert suite is not None
        assert b'"check": "one"' in suite.read()


# Stopped: with a stand-in for the device, and a script in place of the checks that says where it runs.
STOPPED = """
import sys, time
from pathlib import Path
import torch
from alibi_attention.bench.gpu import __main__ as command
from alibi_attention.bench.gpu.run import GpuRun
torch.cuda.is_available = lambda: True
script, output = Path(sys.argv[1]), Path(sys.argv[2])
def run(trials, output, **rest):
    return GpuRun([], output, device="cpu", script=script, **{**rest, "workers": (1, 1)})
command.GpuRun = run
sys.exit(command.main(["--no-benchmarks", "--output", str(output)]))
"""
CHECKS = """
import os, sys, time
print('{"planned": ["one", "two"]}', '{"check": "one", "failure": null}', '{"begun": "two"}', sep="\\n", flush=True)
with open(sys.argv[0] + ".pid.partial", "w") as file: file.write(str(os.getpid()))
os.rename(sys.argv[0] + ".pid.partial", sys.argv[0] + ".pid")
time.sleep(1000)
"""


def stopped(tmp_path: Path, number: int) -> tuple[subprocess.Popen[str], int]:
    """The command, and the process of its checks, after a signal was sent to the former."""
    for name, text in (("run.py", STOPPED), ("checks.py", CHECKS)):
        (tmp_path / name).write_text(text, encoding="utf-8")
    arguments = [str(tmp_path / name) for name in ("run.py", "checks.py", "found.json")]
    source = str(Path(command.__file__).parents[3])
    running = subprocess.Popen(
        [sys.executable, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": source},
    )  # fmt: skip
    pid = tmp_path / "checks.py.pid"
    until = time.monotonic() + 120.0
    while not pid.exists() and running.poll() is None and time.monotonic() < until:
        time.sleep(0.1)
    child = int(pid.read_text(encoding="utf-8"))
    running.send_signal(number)
    return running, child


def has_ended(pid: int, within: float = 20.0) -> bool:
    until = time.monotonic() + within
    while time.monotonic() < until:
        try:
            # A zombie, in a container whose first process waits for nobody, has ended too.
            if Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] == "Z":
                return True
        except OSError:
            return True
        time.sleep(0.1)
    return False


def test_a_request_to_terminate_stops_as_ctrl_c_does(tmp_path: Path) -> None:
    running, child = stopped(tmp_path, signal.SIGTERM)
    _, told = running.communicate(timeout=60)
    assert running.returncode == 130
    assert "marked incomplete" in told
    found = read_results(tmp_path / "found.json")
    assert found.status == "incomplete"
    assert found.suite["checks"] == ["one"]
    assert found.suite["cut_short"] == ["two"]
    assert (tmp_path / "found-logs.tar.gz").exists()
    assert has_ended(child)


@pytest.mark.skipif(sys.platform != "linux", reason="Linux tells a child of its parent's death")
def test_what_a_killed_command_has_started_ends_with_it(tmp_path: Path) -> None:
    running, child = stopped(tmp_path, signal.SIGKILL)
    running.communicate(timeout=60)
    assert running.returncode == -signal.SIGKILL
    assert has_ended(child)


def test_a_copy_without_its_repository_is_told_its_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_git(*_: Any, **__: Any) -> Any:
        raise FileNotFoundError("git")

    monkeypatch.delenv("ALIBI_COMMIT", raising=False)
    monkeypatch.setattr(machine.subprocess, "run", no_git)
    assert machine.machine()["commit"] is None
    monkeypatch.setenv("ALIBI_COMMIT", "0123abc")
    assert machine.machine()["commit"] == "0123abc"
