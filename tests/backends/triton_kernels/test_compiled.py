"""A part of the table of compiled kernels; ``compile_table.py`` has the whole of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="compiles with Triton")

from compile_table import FEATURES, Line, lines, table
from machine_code import ARCHITECTURES

# What is known to fall short, by kernel of a line. It may become less, and what has become less must be taken out.
KNOWN: dict[str, list[str]] = json.loads((Path(__file__).parent / "known_faults.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("line", lines(whole=False), ids=lambda line: line.name)
def test_the_code_keeps_within_the_machine(line: Line) -> None:
    (found,) = table([line])
    assert found
    told = {each["kernel"]: each["faults"] for each in found if each["faults"]}
    new = {kernel: faults for kernel, faults in told.items() if kernel not in KNOWN}
    assert not new, "\n".join(f"{kernel}: {'; '.join(faults)}" for kernel, faults in new.items())
    mended = [kernel for kernel in KNOWN if kernel.startswith(f"{line.name} ") and kernel not in told]
    assert not mended, f"no longer faulty, take out of known_faults.json: {mended}"


def test_the_table_has_every_architecture_and_feature() -> None:
    every = list(lines(whole=True))
    assert {line.architecture for line in every} == set(ARCHITECTURES) == {"sm_80", "sm_90", "sm_100", "gfx942"}
    assert {line.feature for line in every} == set(FEATURES)
    assert {line.dtype for line in every} == {"bf16", "fp16", "fp32"}
    assert len({line.name for line in every}) == len(every)
    assert {line.name for line in lines(whole=False)} <= {line.name for line in every}
