"""The kernels' error against float64 beside that of PyTorch's own attention, given the same bias as a float32 matrix.

python tests/backends/test_cpu_accuracy.py prints the table of docs/numerics.md.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from alibi_attention import alibi_attention, alibi_slopes, build_alibi_bias
from alibi_attention.backends import native

HEADS = 8
NAMES = ("out", "grad query", "grad key", "grad value")
SIZES = [(300, 64), (1000, 64), (1000, 128), (2000, 64)]

pytestmark = pytest.mark.skipif(isinstance(native.load(), str), reason="the compiled library is not installed")


def errors(length: int, head_dim: int, dtype: torch.dtype) -> dict[str, list[Tensor]]:
    """By contestant, the errors of output and gradients, signed, in float64."""
    generator = torch.Generator().manual_seed(length + head_dim)
    *inputs, flow = (torch.randn(1, HEADS, length, head_dim, generator=generator).to(dtype) for _ in range(4))
    slopes, bias = alibi_slopes(HEADS), build_alibi_bias(HEADS, length)[None]
    exact_bias = build_alibi_bias(HEADS, length, dtype=torch.float64)[None]

    def results(function, dtype: torch.dtype) -> list[Tensor]:
        leaves = [t.to(dtype).requires_grad_() for t in inputs]
        out = function(*leaves)
        return [t.detach().double() for t in (out, *torch.autograd.grad(out, leaves, flow.to(out.dtype)))]

    def sdpa(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(query, key, value, attn_mask=bias.to(query.dtype))

    def truth(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return torch.softmax(query @ key.mT * head_dim**-0.5 + exact_bias, -1) @ value

    def in_float(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        # With a mask in 16 bits the bias would be rounded, which is no fault of the arithmetic.
        return sdpa(query.float(), key.float(), value.float()).to(query.dtype)

    exact = results(truth, torch.float64)
    found = {
        "cpu": results(lambda *tensors: alibi_attention(*tensors, slopes, backend="cpu"), dtype),
        "SDPA": results(sdpa if dtype == torch.float32 else in_float, dtype),
    }
    return {name: [mine - truth for mine, truth in zip(each, exact, strict=True)] for name, each in found.items()}


def rms(error: Tensor) -> float:
    return error.square().mean().sqrt().item()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("length", "head_dim"), SIZES)
def test_the_error_is_at_most_twice_that_of_sdpa(length: int, head_dim: int, dtype: torch.dtype) -> None:
    found = errors(length, head_dim, dtype)
    for name, ours, theirs in zip(NAMES, found["cpu"], found["SDPA"], strict=True):
        assert rms(ours) <= 2 * rms(theirs), name
        assert ours.abs().max() <= 2 * theirs.abs().max(), name


def main() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        print(f"\n| {str(dtype).removeprefix('torch.')} | cpu | SDPA |\n|---|---|---|")
        for length, head_dim in SIZES:
            found = errors(length, head_dim, dtype)
            for name, ours, theirs in zip(NAMES, found["cpu"], found["SDPA"], strict=True):
                cells = (f"{error.abs().max():.1e} / {rms(error):.1e}" for error in (ours, theirs))
                print(f"| {name}, L = {length}, D = {head_dim} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
