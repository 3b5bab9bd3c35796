"""The scripts of docs/figures: what they refuse to draw."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
MACHINE = {"commit": "0123abc", "processor": "A processor"}
READ = {
    "bytes_per_token": 4096, "windows": [[1792, 5888]],
    "marks": [
        {"tokens": 4096, "bytes_held": 2**24},
        {"tokens": 8192, "bytes_held": 2**24, "median_ms": 2.0, "fastest_ms": 1.5},
    ],
}  # fmt: skip
COMPARE = {"samples": [[0, 0, 2048, 1e-20, 1e-24], [0, 1, 2048, 1e-10, 1e-16]]}


def draw(folder: Path, monkeypatch: pytest.MonkeyPatch, **results: dict[str, Any]) -> Path:
    """The figure that streaming.py draws of the files of its parts."""
    for part, result in results.items():
        (folder / f"streaming-{part}.json").write_text(json.dumps(result))
    figure = folder / "figure.png"
    command = ["streaming.py", "draw", "--output", str(folder), "--figure", str(figure)]
    monkeypatch.setattr(sys, "argv", command)
    runpy.run_path(str(ROOT / "docs" / "figures" / "streaming.py"), run_name="__main__")
    return figure


@pytest.mark.parametrize(
    ("machine", "missing"),
    [
        ({}, "no commit and no processor"),
        # What files of older versions say.
        ({"machine": "x86_64"}, "no commit and no processor"),
        ({"machine": {**MACHINE, "commit": None}}, "no commit"),
        ({"machine": {"commit": "0123abc"}}, "no processor"),
    ],
)
@pytest.mark.parametrize("part", ["read", "compare"])
def test_results_of_no_named_version_are_not_drawn(
    part: str, machine: dict[str, Any], missing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = {"read": {"machine": MACHINE, **READ}, "compare": {"machine": MACHINE, **COMPARE}}
    del results[part]["machine"]
    results[part] |= machine
    with pytest.raises(SystemExit) as refused:
        draw(tmp_path, monkeypatch, **results)
    assert refused.value.code == (
        f"{tmp_path}/streaming-{part}.json: expected the commit and the processor it was measured with, got {missing}: "
        "an older version wrote it, or a package that is no checkout; measure again: "
        f"python docs/figures/streaming.py RUN_FOLDER {part} --output {tmp_path}"
    )
    assert not (tmp_path / "figure.png").exists()


def test_results_that_are_not_there_are_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SystemExit, match=r"streaming-compare.json: expected what compare writes, got no such file"):
        draw(tmp_path, monkeypatch, read={"machine": MACHINE, **READ})


# Matplotlib's own dependencies, in some of their versions.
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_results_of_a_named_version_are_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    figure = draw(tmp_path, monkeypatch, read={"machine": MACHINE, **READ}, compare={"machine": MACHINE, **COMPARE})
    assert figure.read_bytes().startswith(b"\x89PNG")
