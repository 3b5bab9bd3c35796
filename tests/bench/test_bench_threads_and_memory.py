"""State and memory of whoever is measured: denormals in every thread, and peaks in a process of their own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from alibi_attention.bench.case import Trial
from alibi_attention.bench.cases import CASES
from alibi_attention.bench.memory import measure, peak_memory
from alibi_attention.bench.threads import in_fresh_thread, is_flushed

# Denormals


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("flush", [False, True])
def test_every_thread_flushes_or_none(flush: bool) -> None:
    tiny = torch.full((1 << 18,), 1e-40)
    tiny.mul(1.0)  # starts workers of this thread, which a later change of state would not reach
    product = in_fresh_thread(lambda: tiny.mul(1.0), flush=flush)
    # As integers: whoever flushes reads a denormal as zero, too.
    assert int((product.view(torch.int32) != 0).sum()) == (0 if flush else tiny.numel())
    assert not is_flushed()


def test_the_state_of_the_caller_stays() -> None:
    assert in_fresh_thread(is_flushed, flush=True)
    assert not is_flushed()
    torch.set_flush_denormal(True)
    try:
        assert not in_fresh_thread(is_flushed, flush=False)
        assert is_flushed()
    finally:
        torch.set_flush_denormal(False)


def test_errors_come_back_from_the_thread() -> None:
    with pytest.raises(ZeroDivisionError):
        in_fresh_thread(lambda: 1 // 0)


# Memory


def test_memory_is_that_of_the_contestant() -> None:
    # Another process: this one's peak is no measure of anything. The mask alone has 32 MiB.
    found = peak_memory(Trial(CASES["forward-dense"], 16, 1024), "sdpa-full")
    assert isinstance(found, tuple)
    assert 30 << 20 < found[0] < 200 << 20
    assert found[1] == 8 * 1024 * 16 * 4


def test_memory_that_cannot_be_known_says_why() -> None:
    assert "compiler" in str(peak_memory(Trial(CASES["forward-dense"], 16, 128), "flex"))
    assert "status 1" in str(peak_memory(Trial(CASES["forward-dense"], 16, 128), "unheard-of"))


def test_memory_can_be_measured_here_too() -> None:
    try:
        peak, outputs = in_fresh_thread(lambda: measure(Trial(CASES["training-dense"], 16, 128), "sdpa-row"))
        assert peak >= 0
        # The output, and the gradients of queries, keys and values.
        assert outputs == 4 * 8 * 128 * 16 * 4
    finally:
        torch.set_flush_denormal(False)
