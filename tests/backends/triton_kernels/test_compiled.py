"""A part of the table of compiled kernels; ``compile_table.py`` has the whole of it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="compiles with Triton")

import compile_table
from compile_table import FEATURES, Line, lines, table
from machine_code import ARCHITECTURES

# What is known to fall short, by kernel of a line. It may become less, and what has become less must be taken out.
KNOWN: dict[str, list[str]] = json.loads((Path(__file__).parent / "known_faults.json").read_text(encoding="utf-8"))


def kind_and_amount(fault: str) -> tuple[str, float]:
    """ "spills 84" is ("spills ", 84.0); what has no number has the amount 0."""
    found = re.match(r"([^\d]*)([\d.]*)", fault)
    assert found is not None
    return found.group(1), float(found.group(2) or 0.0)


def is_known(kernel: str, fault: str) -> bool:
    kind, amount = kind_and_amount(fault)
    return any(kind == known and amount <= most for known, most in map(kind_and_amount, KNOWN.get(kernel, [])))


def test_a_known_fault_may_not_grow_or_change_its_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(KNOWN, "a kernel", ["spills 84", "the bias costs 1.25 instructions a score (12.41 for 11.16)"])
    assert is_known("a kernel", "spills 84")
    assert is_known("a kernel", "the bias costs 1.21 instructions a score (9.00 for 7.79)")
    assert not is_known("a kernel", "spills 85")
    assert not is_known("a kernel", "no matrix instructions")
    assert not is_known("another", "spills 1")


@pytest.mark.parametrize("line", list(lines(whole=False)), ids=lambda line: line.name)
def test_the_code_keeps_within_the_machine(line: Line) -> None:
    (found,) = table([line])
    assert found
    told = {each["kernel"]: each["faults"] for each in found if each["faults"]}
    new = [f"{kernel}: {fault}" for kernel, faults in told.items() for fault in faults if not is_known(kernel, fault)]
    assert not new, "\n".join(new)
    mended = [kernel for kernel in KNOWN if kernel.startswith(f"{line.name} ") and kernel not in told]
    assert not mended, f"no longer faulty, take out of known_faults.json: {mended}"


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
        (["--only", "sm90 bf16"], "got 'sm90 bf16'; --help names them all"),
        (["--only", "sm_90 bf16 D=64 decode query_kernel"], "got 'sm_90 bf16 D=64 decode query_kernel'; --help names"),
        (["--jobs", "0"], "argument --jobs: expected a number of processes from 1 on, got '0'"),
        (["--record"], "--record: expected --quick alone beside it, got all of the table"),
        (["--record", "--quick", "--only", "sm_90"], "--record: expected --quick alone beside it, got --only"),
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
    assert len(compile_table.selected(every, [])) == 780


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
