"""benchmarks/tiles.py: lengths in turn, tiles passed over among those computed."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch

from alibi_attention.bench.ours import Tiles
from alibi_attention.dispatch import explain_backends


@pytest.fixture
def script(load_script: Callable[[str], ModuleType]) -> ModuleType:
    return load_script("tiles")


def test_tiles_and_products_are_told_apart(script: ModuleType) -> None:
    # 3 and 2 us a tile; 2 us a product in both, for of 100 tiles half are passed over and of 200 none.
    found = [
        script.Length(8192, Tiles(50, 0.5, 48, 100), lambda: None, 3, [300e-6, 1.0, 299e-6]),
        script.Length(16384, Tiles(200, 0.5, 48, 200), lambda: None, 1, [800e-6]),
    ]
    lines = script.told(64, found).splitlines()
    assert lines[2].split() == ["8K", "100", "50%", "0", "3", "2"]
    assert lines[3].split() == ["16K", "200", "0%", "1", "4", "2"]
    assert lines[4] == "spread: 33.3% by tile (5% asked: missed), 0.0% by product"
    assert lines[5] == "of each length's first decile: 33.8% by tile, 0.3%"
    assert script.decile([float(i) for i in range(11)]) == 1.0


def test_every_round_has_every_length(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if explain_backends(*[torch.ones(1, 1, 1, 16)] * 3)["cpu"] is not None:
        pytest.skip("the compiled library is not installed")
    output = tmp_path / "tiles.json"
    # A call of a millisecond, another of ten.
    monkeypatch.setattr(script, "SECONDS_A_ROUND", 0.01)
    monkeypatch.setattr(sys, "argv", ["tiles.py", "--lengths", "128,1K", "--rounds", "3", "--output", str(output)])
    script.main()
    found = json.loads(output.read_text(encoding="utf-8"))
    assert found["machine"]["torch"] == torch.__version__
    for head_dim in ("64", "128"):
        short, long = found["head_dims"][head_dim]["128"], found["head_dims"][head_dim]["1024"]
        # As many calls in every round, and of the short length more.
        assert len(short["seconds"]) % 3 == len(long["seconds"]) % 3 == 0
        assert len(short["seconds"]) > len(long["seconds"]) >= 3
        assert short["kept"] == short["scored"] < long["kept"] <= long["scored"]
    assert capsys.readouterr().out.count("% asked: ") == 2
