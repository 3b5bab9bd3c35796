"""A part of the table of compiled kernels; ``compile_table.py`` has the whole of it."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="compiles with Triton")

import compile_table
from compile_table import FEATURES, Line, against, lines, read_known, table
from machine_code import ARCHITECTURES


def test_a_known_fault_may_not_grow_or_change_its_kind() -> None:
    known = {
        "a kernel": ["spills 84", "the bias costs 1.25 instructions a score (12.41 for 11.16)"],
        "of numbers": ["300 accesses to local memory in the loops over tiles"],
        "without": ["no wgmma: products of 32 rows"],
    }
    spills, bias = known["a kernel"]

    def told(kernel: str, *faults: str) -> list[str]:
        return against(known, {"kernel": kernel, "faults": list(faults)})

    assert told("a kernel", spills, bias) == []
    assert told("a kernel", spills, "the bias costs 1.21 instructions a score (9.00 for 7.79)") == []
    assert told("a kernel", "spills 85", bias) == ["spills 85 (known: spills 84)"]
    # Nor may the kernel take more while the bias takes less.
    slower = "the bias costs 1.21 instructions a score (40.00 for 38.79)"
    assert told("a kernel", spills, slower) == [f"{slower} (known: {bias})"]
    assert told("a kernel", spills, bias, "no matrix instructions") == ["no matrix instructions"]
    assert told("a kernel", bias) == ["no longer, so --record its line: spills 84"]
    assert told("another", "spills 1") == ["spills 1"]
    assert told("another") == []
    # Kinds that begin with a number are kinds as well.
    assert told("of numbers", "200 accesses to local memory in the loops over tiles") == []
    for other in ("255 registers for 512 threads", "200 bytes of shared memory, there are 100"):
        assert other in told("of numbers", other)
    assert told("of numbers", "300 accesses to local memory in the loops over tiles") == []
    assert told("without", "no wgmma: products of 32 rows") == []
    assert told("without", "no wgmma: products of 16 rows")


def test_what_is_known_is_of_the_table() -> None:
    names = {line.name for line in lines(whole=True)}
    strangers = [kernel for kernel in read_known() if kernel not in names and kernel.rpartition(" ")[0] not in names]
    assert not strangers


@pytest.mark.parametrize("line", list(lines(whole=False)), ids=lambda line: line.name)
def test_the_code_keeps_within_the_machine(line: Line) -> None:
    (found,) = table([line])
    assert found
    known = read_known()
    wrong = [f"{each['kernel']}: {fault}" for each in found for fault in against(known, each)]
    assert not wrong, "\n".join(wrong)


def test_the_table_has_every_architecture_and_feature() -> None:
    every = list(lines(whole=True))
    assert {line.architecture for line in every} == set(ARCHITECTURES) == {"sm_80", "sm_90", "sm_100", "gfx942"}
    assert {line.feature for line in every} == set(FEATURES)
    assert {line.dtype for line in every} == {"bf16", "fp16", "fp32"}
    assert len({line.name for line in every}) == len(every)
    assert {line.name for line in lines(whole=False)} <= {line.name for line in every}


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["--only", "sm90 bf16"], "got 'sm90 bf16', where no line has 'sm90'; --help names them all"),
        (["--only", ""], "--only: expected some text, got ''; leave it out for everything"),
        (
            ["--only", "sm_90", "--only", "bf16"],
            "--only: expected to be given once, got 'sm_90' and 'bf16'; give words",
        ),
        (["--only", "sm_90 bf16 D=64 decode query_kernel"], "got 'sm_90 bf16 D=64 decode query_kernel'; --help names"),
        (["--jobs", "0"], "argument --jobs: expected a number of processes from 1 on, got '0'"),
    ],
)
def test_what_does_not_exist_is_no_success(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, arguments: list[str], error: str
) -> None:
    monkeypatch.setattr(compile_table, "table", lambda *_: pytest.fail("compiles"))
    with pytest.raises(SystemExit) as stopped:
        compile_table.main(arguments)
    assert stopped.value.code == 2
    assert error in capsys.readouterr().err


def test_words_and_kernels_choose_lines() -> None:
    every = list(lines(whole=True))
    found = compile_table.selected(every, ["sm_90", "bf16", "D=64", "query_kernel"])
    assert {line.name for line in found} == {f"sm_90 bf16 D=64 {feature}" for feature in FEATURES}
    assert compile_table.selected(every, ["sm_90", "D=64", "nosuch_kernel"]) == []
    apart = [["sm_90", "bf16", dim, "key_kernel(values)"] for dim in ("D=256", "D=64")]
    assert [len(compile_table.selected(every, only)) for only in apart] == [len(FEATURES), 0]
    assert len(compile_table.selected(every, [])) == 780


def test_the_exit_status_tells_of_what_is_new_alone(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    name = "sm_90 bf16 D=64 both ways"
    found = [{"kernel": f"{name} key_kernel", "faults": ["spills 84"]}, {"kernel": f"{name} rows_kernel", "faults": []}]
    other = {"sm_80 fp16 D=16 causal key_kernel": ["spills 8"]}
    monkeypatch.setattr(compile_table, "table", lambda *_: [list(map(dict, found))])
    monkeypatch.setattr(compile_table, "KNOWN_FAULTS", tmp_path / "known.json")
    (tmp_path / "known.json").write_text(json.dumps(other), encoding="utf-8")

    def run(*more: str) -> tuple[int, str]:
        status = compile_table.main(["--only", name, *more])
        return status, capsys.readouterr().out

    status, told = run()
    assert status == 1
    assert f"FAULT {name} key_kernel" in told
    assert run("--record")[0] == 0
    status, told = run()
    assert status == 0
    assert f"known {name} key_kernel" in told
    assert "2 kernels, 1 with faults, 0 with others than known_faults.json has" in told
    assert read_known() == {**other, f"{name} key_kernel": ["spills 84"]}
    found[0]["faults"] = []
    status, told = run()
    assert status == 1
    assert f"gone  {name} key_kernel: " in told
    assert "FAULT" not in told
    del found[0]
    status, told = run()
    assert status == 1
    assert f"gone  {name} key_kernel: there is no such kernel any more" in told
    assert run("--record")[0] == 0
    assert read_known() == other
    # What has no code, or code that no device takes, is never known.
    for fault in (
        "does not compile: RuntimeError: why", "no matrix instructions", "264 registers for 256 threads",
        "528 columns of tensor memory, there are 512", "240000 bytes of shared memory, there are 232448",
    ):  # fmt: skip
        found[0]["faults"] = [fault]
        assert run("--record")[0] == 1, fault
        assert read_known() == other
    # What lies behind the end of a compiler is not gone, and not to be taken out.
    behind = {f"{name} query_kernel": ["spills 8"]}
    (tmp_path / "known.json").write_text(json.dumps({**other, **behind}), encoding="utf-8")
    found[0]["faults"] = ["the compiler ended with -6: Assertion failed"]
    for more in ((), ("--record",)):
        status, told = run(*more)
        assert status == 1
        assert "any more" not in told
        assert read_known() == {**other, **behind}
    (tmp_path / "known.json").write_text(json.dumps(other), encoding="utf-8")
    found.clear()
    status, told = run("--record")
    assert status == 1
    assert f"{name}: " in told
    assert "nothing was compiled" in told
    assert read_known() == other


def test_a_compiler_that_ends_its_process_costs_its_own_line_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    group = compile_table.selected(list(lines(whole=True)), ["sm_90", "bf16", "D=64", "packed"])
    assert len(group) == 2
    asked: list[list[str]] = []

    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        names = command[command.index("--lines") + 1 :]
        asked.append(names)
        told = [json.dumps({"line": names[0]}), json.dumps({"kernel": f"{names[0]} rows_kernel", "faults": []})]
        status = -6 if len(asked) == 1 else 0
        return subprocess.CompletedProcess(command, status, "\n".join(["warning", *told]), "dump\nAssertion failed\n")

    monkeypatch.setattr(compile_table.subprocess, "run", run)
    first, second = table(group)
    assert asked == [[line.name for line in group], [group[1].name]]
    assert [each["faults"] for each in first] == [[], ["the compiler ended with -6: Assertion failed"]]
    assert second == [{"kernel": f"{group[1].name} rows_kernel", "faults": []}]


def test_help_names_what_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        compile_table.main(["--help"])
    told = " ".join(capsys.readouterr().out.split())
    assert all(word in told for word in (*ARCHITECTURES, *FEATURES, "780 lines"))


def test_a_line_tells_what_the_bias_costs_where_that_means_something() -> None:
    (line,) = compile_table.selected(list(lines(whole=False)), ["sm_90", "bf16", "D=64", "causal"])
    found = {each["kernel"].removeprefix(f"{line.name} "): each for each in next(table([line]))}
    for name, each in found.items():
        multiplies = name in compile_table.MULTIPLYING
        assert (each["bias"] is not None) == multiplies
        assert (each["per_score"] is not None) == multiplies, "what mends has few scores, if any"
        told = compile_table._text(each)
        assert (f"{each['spills']} spills, bias {each['bias']:.2f}" in told) if multiplies else "bias" not in told
    assert set(compile_table.MULTIPLYING) < set(found)
    assert any(name.startswith("mend_") for name in found)
