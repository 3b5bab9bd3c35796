"""A part of the table of compiled kernels; ``compile_table.py`` has the whole of it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="compiles with Triton")

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
