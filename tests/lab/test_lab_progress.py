from __future__ import annotations

import io
import pickle

import pytest
from rich.console import Console

from alibi_attention.lab.progress import Progress


def progress_into(text: io.StringIO, *, every: float, terminal: bool = False) -> Progress:
    return Progress(Console(file=text, force_terminal=terminal, width=120), every=every)


def test_a_file_is_told_now_and_then_what_a_bar_would_show() -> None:
    text = io.StringIO()
    with progress_into(text, every=0.0) as progress:
        progress.start("RoPE: training", total=1800, done=600, tokens=2048)
        progress.advance(note="2.41 bits")
        progress.advance(note="2.40 bits")
        progress.say("RoPE: trained.")
    first, second, last = text.getvalue().splitlines()
    assert first.startswith("RoPE: training: 601 of 1,800, 2.41 bits")
    assert second.startswith("RoPE: training: 602 of 1,800, 2.40 bits, ")
    assert second.endswith(" min left")
    assert "tokens/s" in second
    assert last == "RoPE: trained."


def test_a_file_is_told_no_more_often_than_asked() -> None:
    text = io.StringIO()
    with progress_into(text, every=3600.0) as progress:
        progress.start("RoPE: training", total=1800)
        for _ in range(50):
            progress.advance()
    assert text.getvalue() == ""


def test_a_file_is_told_over_many_short_bars(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each ends before a minute is over, and a step may take longer than a bar remembers its speed."""
    now = 0.0
    monkeypatch.setattr("alibi_attention.lab.progress.time.monotonic", lambda: now)
    text = io.StringIO()
    with progress_into(text, every=60.0) as progress:
        for number in range(4):
            progress.start(f"bar {number}", total=10, done=2, tokens=100)
            now += 45.0
            progress.advance(4)
    assert text.getvalue().splitlines() == [
        f"bar {number}: 6 of 10, 9 tokens/s, 1 min left" for number in (1, 3)
    ]  # fmt: skip


def test_a_terminal_gets_bars_instead(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TTY_COMPATIBLE", raising=False)
    text = io.StringIO()
    with progress_into(text, every=0.0, terminal=True) as progress:
        progress.start("RoPE: training", total=1800)
        progress.advance()
    assert "1 of 1,800" not in text.getvalue()
    assert "1/1800" in text.getvalue()


def test_another_process_goes_on_with_it() -> None:
    progress = Progress(Console(file=io.StringIO()), every=7.0)
    progress.label = "ALiBi: training"
    copy = pickle.loads(pickle.dumps(progress))
    assert (copy.label, copy.every) == ("ALiBi: training", 7.0)
    assert not copy.quiet
    assert pickle.loads(pickle.dumps(Progress())).quiet


def test_items_pass_under_a_bar_of_what_they_are() -> None:
    text = io.StringIO()
    with progress_into(text, every=0.0) as progress:
        assert list(progress.through("abc", "Letters", total=3, unit="letters")) == ["a", "b", "c"]
        assert list(progress.through(["ab", "cde"], "Words", total=5, unit="letters", size=len)) == ["ab", "cde"]
    told = text.getvalue().splitlines()
    assert [line.partition(",")[0] for line in told] == [
        "Letters: 1 of 3", "Letters: 2 of 3", "Letters: 3 of 3", "Words: 2 of 5", "Words: 5 of 5"
    ]  # fmt: skip
    assert all(" letters/s, " in line for line in told)


def test_what_has_no_unit_has_no_rate() -> None:
    text = io.StringIO()
    with progress_into(text, every=0.0) as progress:
        progress.start("Layers", total=2, unit="")
        progress.advance()
    assert text.getvalue() == "Layers: 1 of 2, 1 min left\n"


def test_the_bar_goes_on_below_a_remark() -> None:
    text = io.StringIO()
    with progress_into(text, every=0.0) as progress:
        progress.start("RoPE: training", total=3)
        progress.remark("The curve ends.")
        progress.advance()
    first, second = text.getvalue().splitlines()
    assert first == "The curve ends."
    assert second.startswith("RoPE: training: 1 of 3")
