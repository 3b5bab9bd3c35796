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
from gpu_fakes import SETTINGS, finished, small

from alibi_attention.bench import machine
from alibi_attention.bench.gpu import __main__ as command
from alibi_attention.bench.gpu import preconditions
from alibi_attention.bench.gpu.cases import GPU_CASES, GpuTrial
from alibi_attention.bench.gpu.run import Budget, GpuRun
from alibi_attention.bench.results import Results, read_results

# The package under test may be installed elsewhere; what only the checkout has is found from here.
CHECKOUT = Path(__file__).parents[2]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_without_a_gpu_the_command_says_what_stays_untested(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main([]) == 2
    assert "the targets stay untested" in capsys.readouterr().err


def test_the_command_lists_its_cases(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--list"]) == 0
    told = capsys.readouterr().out
    assert all(name in told for name in GPU_CASES)
    assert "keys 32K, 8K, 128K; against flex, flex-windows, sdpa-flash" in told
    assert "asked against flex: D=64 32K 7x, 8K 2.2x, 128K 25x; D=128 32K 6x, 8K 2x, 128K 22x" in told
    assert "asked against fastest dense: D=64 128K 20x; D=128 128K 20x" in told


def test_the_whole_takes_less_than_eight_minutes() -> None:
    # What is begun when time is up is ended at once; five seconds are for that.
    assert Budget().whole + 5.0 + 5.0 < 8 * 60
    assert command._budget(7.5, False).whole == 445.0
    assert command._budget(7.5, False).suite == 140.0
    assert command._budget(1.0, False).suite < 20.0
    # With more time a third of it is the checks', and all of it where they are alone.
    assert command._budget(25.0, False).suite == (25 * 60 - 5) / 3
    assert command._budget(25.0, True).suite == 25 * 60 - 45


def test_lengths_of_ones_own_take_the_place_of_those_of_the_cases(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    begun: list[list[GpuTrial]] = []

    class Begun(GpuRun):
        def run(self) -> Any:
            begun.append(list(self.trials))
            raise KeyboardInterrupt

    monkeypatch.setattr(command, "why_no_gpu", lambda: None)
    monkeypatch.setattr(command, "what_triton_lacks", lambda: None)
    monkeypatch.setattr(command, "GpuRun", Begun)
    output = ["--output", str(tmp_path / "found.json")]
    for arguments in (
        ["gpu-training-horizon", "gpu-decode", "--lengths", "128K,2048", *output],
        ["gpu-training-horizon", "gpu-decode", "--lengths", "128K", "2048", *output],
        ["--lengths", "128K,2048", "gpu-decode", *output, "gpu-training-horizon"],
        ["--lengths", "2K", "gpu-training-horizon", "131072", "2048", "gpu-decode", *output],
    ):
        assert command.main(arguments) == 130
        sizes = {(trial.case.name, trial.head_dim, trial.keys) for trial in begun[-1]}
        named = ("gpu-training-horizon", "gpu-decode")
        assert sizes == {(name, dim, keys) for name in named for dim in (64, 128) for keys in (131072, 2048)}
    assert command.main(["gpu-decode", *output]) == 130
    assert {trial.keys for trial in begun[-1]} == {131072}
    for wrong in ("0", "8M", "-1", "1.5K", "8K,", ""):
        with pytest.raises(SystemExit):
            command.main([f"--lengths={wrong}"])
        assert "expected numbers of tokens joined by commas, such as 8K,8192" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["4K", "gpu-decode"], "CASES: expected names of cases, got '4K'; choose from gpu-training-horizon"),
        (["--minutes", "0"], "--minutes: expected 1 or more, for everything together, got 0; such as --minutes 7.5"),
        (["--minutes", "0.5"], "got 0.5; "),
        (["--minutes", "nan"], "got nan; "),
        (["--minutes", "inf"], "got inf; "),
        (["--output", "a.txt"], "--output: expected a name ending in .json, got a.txt; try a.json"),
        (["--output", "there.json"], "--output: expected a new file, got there.json, which exists; choose another"),
        (["--output", "there.json/a.json"], "--output: expected a folder that can be written, got there.json (Not a "
         "directory); name a file in another"),
        (["--no-benchmarks", "--no-suite"], "--no-benchmarks: expected checks to run and no more, got --no-suite; "
         "leave out one of them"),
        (["--no-benchmarks", "gpu-decode"], "got CASE; leave out one of them"),
        (["--no-benchmarks", "--lengths", "4K"], "got --lengths; leave out one of them"),
        (["--show", "none.json"], "--show: expected a file of results, got none.json (No such file or directory); "
         "name a file that benchmarks/gpu.py wrote"),
        (["--show", "none.json", "--output", "new.json"], "--show: expected to stand alone, got --output; leave out"),
        (["gpu-decode", "--list"], "--list: expected to stand alone, got CASE; leave out one of them"),
        (["--list", "--lengths", "8K"], "--list: expected to stand alone, got --lengths; leave out one of them"),
    ],
)  # fmt: skip
def test_what_could_come_to_nothing_is_refused_before_the_look_for_a_gpu(
    arguments: list[str],
    error: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there.json").write_text("", encoding="utf-8")
    monkeypatch.setattr(command, "why_no_gpu", lambda: pytest.fail("looks for a GPU"))
    with pytest.raises(SystemExit) as stopped:
        command.main(arguments)
    assert stopped.value.code == 2
    assert error in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["there.json"]


def gpu(monkeypatch: pytest.MonkeyPatch, architecture: str = "sm_90", lacks: str | None = None) -> None:
    """A GPU of an architecture, as torch would tell of it, and what is missing of Triton."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "T4")
    monkeypatch.setattr(preconditions.devices, "target", lambda _: architecture)
    monkeypatch.setattr(preconditions.devices, "missing", lambda: lacks)


def test_a_gpu_or_a_triton_that_is_too_old_is_told_at_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(command, "GpuRun", lambda *_, **__: pytest.fail("begins a run"))
    why = "needs Triton 3.6 or later, found 3.2.0"
    for settings, error in (
        (
            {"architecture": "sm_75"},
            "expected a GPU of compute capability 8.0 or later, got T4 (sm_75); use another",
        ),
        ({"lacks": why}, why),
    ):
        gpu(monkeypatch, **settings)
        assert command.main([]) == 2
        assert f"benchmarks/gpu.py: error: {error}\n" in capsys.readouterr().err
    gpu(monkeypatch)
    assert preconditions.why_no_gpu() is None
    gpu(monkeypatch, "gfx942")
    assert preconditions.why_no_gpu() is None
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert "got TRITON_INTERPRET=1" in str(preconditions.why_no_gpu())


def test_what_triton_builds_with_is_looked_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(preconditions.sysconfig, "get_paths", lambda scheme: {"include": str(tmp_path)})  # noqa: ARG005
    monkeypatch.setattr(preconditions.shutil, "which", lambda _: None)
    monkeypatch.delenv("CC", raising=False)
    assert str(preconditions.what_triton_lacks()).startswith(
        "a C compiler (gcc or clang on the PATH, or CC) and Python's"
    )
    monkeypatch.setenv("CC", "cc")
    assert str(preconditions.what_triton_lacks()).startswith("Python's headers")
    (tmp_path / "Python.h").write_text("", encoding="utf-8")
    assert preconditions.what_triton_lacks() is None


def test_an_interpreter_without_torch_is_told_in_one_line(tmp_path: Path) -> None:
    script = CHECKOUT / "benchmarks" / "gpu.py"
    # Isolated and without site-packages: an interpreter as it comes.
    done = subprocess.run(
        [sys.executable, "-I", "-S", str(script)], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("PYTHON: expected an interpreter that has torch, got ")
    assert line.endswith("make gpu PYTHON=path/to/python")


def test_a_file_is_shown_without_a_gpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    finished().write(tmp_path / "found.json")
    assert command.main(["--show", str(tmp_path / "found.json")]) == 0
    told = capsys.readouterr().out
    assert "GPU: NVIDIA H200" in told
    assert "left out: and 3 more" in told
    other = Results(machine.machine(), {"repeats": 7})
    other.write(tmp_path / "other.json")
    with pytest.raises(SystemExit):
        command.main(["--show", str(tmp_path / "other.json")])
    assert "--show: expected a file of benchmarks/gpu.py, got " in capsys.readouterr().err


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
    source = str(Path(command.__file__).parents[3])
    code = (
        f"import sys; sys.path.insert(0, {source!r}); import torch; "
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
    monkeypatch.setattr(command, "why_no_gpu", lambda: None)
    # Triton goes without where its cache has what it needs: no reason to stop.
    monkeypatch.setattr(command, "what_triton_lacks", lambda: "a C compiler")
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
    captured = capsys.readouterr()
    told = captured.out
    assert "without a C compiler Triton starts only what its cache holds" in captured.err
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
from alibi_attention.bench.gpu import __main__ as command
from alibi_attention.bench.gpu.run import GpuRun
command.why_no_gpu = lambda: None
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
