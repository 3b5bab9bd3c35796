"""No tensor the size of length x length, by measurement."""

from __future__ import annotations

import subprocess
import sys

_PROGRAM = """
import resource, sys, torch
from alibi_attention import alibi_attention
torch.set_num_threads(1)
length, heads, dim, backward, tolerance, backend = (eval(a) for a in sys.argv[1:])
tensors = [torch.randn(1, heads, length, dim, requires_grad=backward) for _ in range(3)]
small = [t.detach()[:, :, :200].clone().requires_grad_(backward) for t in tensors]
warm = alibi_attention(*small, backend=backend)
if backward:
    warm.sum().backward()
base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
out = alibi_attention(*tensors, backend=backend, tolerance=tolerance)
if backward:
    out.backward(out.detach())
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - base) / 1024)
"""


def _extra_megabytes(backend: str, length: int, backward: bool, tolerance: float | None = None) -> float:
    arguments = [str(a) for a in (length, 8, 64, backward, tolerance)]
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM, *arguments, repr(backend)], capture_output=True, text=True, check=True
    )
    return float(done.stdout)


def test_forward_at_16k(backend: str) -> None:
    """The output is 32 MB, a full bias 8.6 GB."""
    assert _extra_megabytes(backend, 16384, backward=False) < 32 + 200


def test_forward_and_backward_at_8k(backend: str) -> None:
    """Output and gradients are 64 MB, a full bias 2.1 GB; every tile computed."""
    assert _extra_megabytes(backend, 8192, backward=True, tolerance=0.0) < 64 + 200
