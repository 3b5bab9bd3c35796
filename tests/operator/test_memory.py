"""No tensor the size of length x length, by measurement: the peak beyond inputs, in a process of its own."""

from __future__ import annotations

import pytest
import torch
from peak_memory import peak_of

from alibi_attention.backends import native


def _extra_megabytes(
    backend: str,
    length: int,
    backward: bool,
    tolerance: float | None = None,
    dim: int = 64,
    dtype: torch.dtype = torch.float32,
    threads: int = 1,
) -> float:
    before = f"""
import torch
from alibi_attention import alibi_attention
torch.set_num_threads({threads})
tensors = [torch.randn(1, 8, {length}, {dim}, dtype={dtype}, requires_grad={backward}) for _ in range(3)]
small = [t.detach()[:, :, :200].clone().requires_grad_({backward}) for t in tensors]
warm = alibi_attention(*small, backend={backend!r})
if {backward}:
    warm.sum().backward()
"""
    measured = f"""
out = alibi_attention(*tensors, backend={backend!r}, tolerance={tolerance})
if {backward}:
    out.backward(out.detach())
"""
    return peak_of(before, measured)


def _allowed(backend: str) -> int:
    """Megabytes for what each holds while it works: a block of scores where it is plain PyTorch."""
    return 64 if backend == "cpu" else 200


def test_forward_at_16k(backend: str) -> None:
    """The output is 32 MB, a full bias 8.6 GB."""
    assert 30 < _extra_megabytes(backend, 16384, backward=False) < 32 + _allowed(backend)


def test_forward_and_backward_of_every_tile(backend: str) -> None:
    """Output and gradients are 32 MB at 4K, a full bias 537; twice that and four times that at 8K."""
    length = 8192 if backend == "cpu" else 4096
    results = 4 * 8 * length * 64 * 4 / 2**20
    assert results - 4 < _extra_megabytes(backend, length, backward=True, tolerance=0.0) < results + _allowed(backend)


@pytest.mark.skipif(isinstance(native.load(), str), reason="the compiled library is not installed")
@pytest.mark.parametrize(("dtype", "dim", "threads"), [(torch.bfloat16, 64, 2), (torch.float32, 70, 1)])
def test_sums_that_gradients_cannot_hold_follow_the_horizon(dtype: torch.dtype, dim: int, threads: int) -> None:
    """16 bits, or rows that are no whole vectors: sums of all keys would take 128 MB, or 160."""
    results = 4 * 8 * 32768 * dim * dtype.itemsize / 2**20
    peak = _extra_megabytes("cpu", 32768, backward=True, dim=dim, dtype=dtype, threads=threads)
    assert results - 8 < peak < results + 64
