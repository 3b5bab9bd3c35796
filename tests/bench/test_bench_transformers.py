"""benchmarks/transformers_models.py: what it says of its measurements."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import pytest


@pytest.fixture
def script(load_script: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script, whose models are never made and whose measurements a test gives."""
    pytest.importorskip("transformers")
    module = load_script("transformers_models")
    for name in ("bloom", "enable", "prefill", "decode_forms"):
        monkeypatch.setattr(module, name, lambda *_: None)
    return module


@pytest.mark.parametrize(
    ("seconds", "stock_bytes", "verdict", "memory_verdict"),
    [(11.0, 30 * 2**30, "met", "met"), (9.5, 20 * 2**30, "missed", "met"), (10.0, 19 * 2**30, "met", "missed")],
)
def test_time_and_memory_are_judged_by_themselves(
    seconds: float,
    stock_bytes: int,
    verdict: str,
    memory_verdict: str,
    script: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(script, "measure", lambda *_: {"ours": [1.0, 1.0], "stock": [seconds, seconds]})
    monkeypatch.setattr(script, "memory", lambda form, _: {"ours": 2**30, "stock": stock_bytes}[form])
    result = script.run("bloom-prefill", "float32", 2)
    assert (result["verdict"], result["target"]) == (verdict, 10.0)
    assert (result["memory_verdict"], result["memory_target"]) == (memory_verdict, 20.0)
    printed = capsys.readouterr().out.splitlines()
    assert f"  target 10.0 against the strongest form: {verdict}, {seconds:.2f}" in printed
    assert f"  target 1/20 of stock's memory: {memory_verdict}, 1/{stock_bytes / 2**30:.2f}" in printed


def test_the_strongest_form_counts(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    measured = {"ours": [1.0], "stock, dynamic cache": [30.0], "stock, static cache": [7.9]}
    monkeypatch.setattr(script, "measure", lambda *_: measured)
    result = script.run("bloom-decode", "float32", 1)
    assert (result["strongest"], result["verdict"]) == (7.9, "missed")
    assert "memory_verdict" not in result
