"""The list of checks and how it is gone through, apart from the checks themselves."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("triton", reason="the kernels are Triton's")

import kernel_suite
from check_list import Check, checks, shared

from alibi_attention.bench.gpu.process import LOST


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_names_tell_checks_apart(device: str) -> None:
    # A process that takes over goes on behind a name.
    names = [check.name for check in checks(20, device)]
    assert len(names) == len(set(names))


def test_real_sizes_come_before_the_sweep_of_widths() -> None:
    names = [check.name for check in checks(20, "cuda")]
    assert names.index("length 4100, D=128, float32") < names.index("head_dim 16, bfloat16")
    assert names.index("CUDA graph, forward and backward") < names.index("head_dim 16, bfloat16")
    assert names.index("head_dim 256, bfloat16") < names.index("random call 0")


@pytest.mark.parametrize("parts", [1, 5, 12, 24])
def test_processes_of_a_gpu_share_whole_families(parts: int) -> None:
    every = list(checks(20, "cuda"))
    dealt = [shared(every, part, parts, "cuda") for part in range(1, parts + 1)]
    assert sorted(check.name for part in dealt for check in part) == sorted(check.name for check in every)
    for part in dealt:
        assert part == [check for check in every if check in part], "in the order of the whole"
        others = {check.family for other in dealt if other is not part for check in other}
        assert not ({check.family for check in part} - {""}) & others
    assert all(dealt)
    # What a process compiles is much the same for all of them.
    costs = [sum({check.family or check.name: check.cost for check in part}.values()) for part in dealt]
    assert max(costs) <= 2 * sum(costs) / parts + 44


def test_processes_of_the_interpreter_take_turns() -> None:
    every = list(checks(3, "cpu"))
    assert [shared(every, part, 3, "cpu") for part in (1, 2, 3)] == [every[0::3], every[1::3], every[2::3]]


def test_what_is_asked_for_is_chosen(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")

    def listed(*arguments: str) -> list[str]:
        assert kernel_suite.main(["--list", "--cases", "0", *arguments]) == 0
        return capsys.readouterr().out.splitlines()

    assert listed("--exactly", "padding", "--exactly", "dropout, float16") == ["dropout, float16", "padding"]
    # What stands behind the last check is nothing, and that is no mistake: a process takes over so.
    assert listed("--only", "padding", "--after", listed("--only", "padding")[-1]) == []
    assert listed("--exactly", "padding", "--part", "2/2") == []
    behind = listed("--part", "2/3", "--after", listed("--part", "2/3")[4])
    assert behind == listed("--part", "2/3")[5:]


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["--only", "nosuchthing"], "--only: expected text in the names of checks in the interpreter (some run on a "
         "GPU alone), got 'nosuchthing'; --list names them"),
        (["--exactly", "padding", "--exactly", "paking"], "--exactly: expected the name of a check in the interpreter "
         "(some run on a GPU alone), got 'paking'; --list names them"),
        (["--exactly", "chosen by default"], "got 'chosen by default'"),
        (["--exactly", "padding", "--only", "packing"], "--exactly: expected names that have 'packing' of --only, got "
         "'padding'; give one"),
        (["--only", "horizon", "--after", "padding"], "--after: expected the name of a check among those chosen, got "
         "'padding'; --list names them"),
        (["--part", "5/4"], "argument --part: expected one part of several, from 1/4 to 4/4, got '5/4'"),
        (["--part", "0/4"], "from 1/4 to 4/4, got '0/4'"),
        (["--part", "3"], "from 1/4 to 4/4, got '3'"),
        (["--cases", "-1"], "argument --cases: expected a number from 0 on, got '-1'"),
    ],
)  # fmt: skip
def test_what_does_not_exist_is_no_success(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, arguments: list[str], error: str
) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with pytest.raises(SystemExit) as stopped:
        kernel_suite.main(arguments)
    assert stopped.value.code == 2
    assert error in capsys.readouterr().err


def test_what_a_gpu_would_run_is_listed_without_one(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert kernel_suite.main(["--list", "--cases", "2"]) == 0
    assert capsys.readouterr().out.splitlines() == [check.name for check in checks(2, "cuda")]
    with pytest.raises(SystemExit):
        kernel_suite.main(["--only", "padding"])
    told = capsys.readouterr().err
    assert f"expected a GPU that torch can use, got none (torch {torch.__version__} " in told
    assert "; TRITON_INTERPRET=1 runs the checks on a CPU" in told


def test_every_option_is_explained(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        kernel_suite.main(["--help"])
    told = capsys.readouterr().out
    options = [line.split(maxsplit=3) for line in told.splitlines() if line.startswith("  --")]
    assert {words[0] for words in options} == {
        "--only", "--exactly", "--after", "--part", "--cases", "--quick", "--until", "--list",
    }  # fmt: skip
    # An option without a text has nothing behind its name, here or in the next line.
    assert all(len(words) > 2 for words in options)


def test_the_checks_that_the_page_names_exist() -> None:
    page = (Path(__file__).parents[3] / "benchmarks" / "README.md").read_text(encoding="utf-8")
    named = re.findall(r'--exactly "([^"]+)"', page)
    assert len(named) == 5
    assert set(named) <= {check.name for check in checks(0, "cuda")}


class Device:
    """A stand-in: checks that fail as they would there, and a device that answers or does not."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.lost = False
        monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
        monkeypatch.setattr(kernel_suite, "_device_answers", lambda: not self.lost)

    def check(self, name: str, error: Exception | None = None, lost: bool = False) -> Check:
        def run(device: str) -> None:
            assert device == "cuda"
            self.lost = lost
            if error is not None:
                raise error

        return Check(name, run)


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Device:
    return Device(monkeypatch)


def test_a_failure_tells_where_it_was(device: Device) -> None:
    record = kernel_suite.run(device.check("one", ValueError("of all things")), "cuda")
    assert record["failure"].startswith("ValueError: of all things (test_suite.py:")
    assert "raise error" in record["traceback"]
    assert 'File "tests/backends/triton_kernels/test_suite.py"' in record["traceback"]
    assert (record["memory"], record["lost"]) == (False, False)
    assert kernel_suite.run(device.check("two"), "cuda")["failure"] is None


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB"),
        RuntimeError("Triton Error [CUDA]: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"),
    ],
)
def test_what_does_not_fit_is_told_from_what_is_wrong(device: Device, error: Exception) -> None:
    assert kernel_suite.run(device.check("one", error), "cuda")["memory"]


def told(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_nothing_is_begun_on_a_device_that_is_lost(device: Device, capsys: pytest.CaptureFixture[str]) -> None:
    found = [device.check("one"), device.check("two", RuntimeError("illegal access"), lost=True), device.check("three")]
    assert kernel_suite._run_all(found, "cuda", time.time() + 60.0) == LOST
    lines = told(capsys)
    assert lines[0] == {"planned": ["one", "two", "three"]}
    assert [line["begun"] for line in lines if "begun" in line] == ["one", "two"]
    assert [line["lost"] for line in lines if "check" in line] == [False, True]


def test_nothing_is_begun_when_time_is_up(device: Device, capsys: pytest.CaptureFixture[str]) -> None:
    assert kernel_suite._run_all([device.check("one")], "cuda", time.time() - 1.0) == 0
    assert told(capsys) == [{"planned": ["one"]}]
    assert kernel_suite._run_all([device.check("one", ValueError("no"))], "cuda", time.time() + 60.0) == 1


def test_the_compilation_of_a_kernel_is_told_from_a_stall(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from triton.runtime.jit import JITFunction

    from alibi_attention.backends.triton.forward import forward_kernel

    assert "_do_compile" in vars(JITFunction), "compilation is told of by another way in this version of Triton"

    def compiled(kernel: Any, *given: Any, fails: bool = False) -> Any:
        if fails:
            raise ValueError("no such thing")
        return (kernel, *given)

    monkeypatch.setattr(JITFunction, "_do_compile", compiled)
    with kernel_suite.telling_of_compilation():
        assert forward_kernel._do_compile(1, 2) == (forward_kernel, 1, 2)
        with pytest.raises(ValueError, match="no such thing"):
            forward_kernel._do_compile(fails=True)
    assert told(capsys) == [{"compiling": "forward_kernel"}, {"compiling": None}] * 2
    assert JITFunction._do_compile is compiled
