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
SIZES = [(300, 64), (1000, 64), (1000, 128), (2000, 64), (400, 256)]

pytestmark = pytest.mark.skipif(isinstance(native.load(), str), reason="the compiled library is not installed")


def errors(
    length: int, head_dim: int, dtype: torch.dtype, queries: int | None = None, scale: float | None = None
) -> dict[str, list[Tensor]]:
    """By contestant, the errors of output and gradients, signed, in float64.

    "saved" is exact but for what every kernel has to round that keeps the output in 16 bits for backward, the results
    and the means of backward that are taken from it.
    """
    queries, scale = queries or length, scale or head_dim**-0.5
    generator = torch.Generator().manual_seed(length + head_dim)
    rows = (length, length, queries, queries)
    key, value, query, flow = (
        torch.randn(1, HEADS, each, head_dim, generator=generator).to(dtype) for each in rows
    )  # fmt: skip
    inputs = query, key, value
    slopes, bias = alibi_slopes(HEADS), build_alibi_bias(HEADS, length)[None, :, -queries:]
    exact_bias = build_alibi_bias(HEADS, length, dtype=torch.float64)[None, :, -queries:]

    def results(function, dtype: torch.dtype) -> list[Tensor]:
        leaves = [t.to(dtype).requires_grad_() for t in inputs]
        out = function(*leaves)
        return [t.detach().double() for t in (out, *torch.autograd.grad(out, leaves, flow.to(out.dtype)))]

    def sdpa(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(query, key, value, attn_mask=bias.to(query.dtype), scale=scale)

    def truth(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return torch.softmax(query @ key.mT * scale + exact_bias, -1) @ value

    def in_float(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        # With a mask in 16 bits the bias would be rounded, which is no fault of the arithmetic.
        if torch.equal(bias.to(query.dtype), bias):
            return sdpa(query, key, value)
        return sdpa(query.float(), key.float(), value.float()).to(query.dtype)

    def saved() -> list[Tensor]:
        leaves = [t.double() for t in inputs]
        weights = torch.softmax(leaves[0] @ leaves[1].mT * scale + exact_bias, -1)
        out, flows = (weights @ leaves[2]).to(dtype).double(), flow.double()
        scores = weights * (flows @ leaves[2].mT - (flows * out).sum(-1, keepdim=True)) * scale
        return [out, *(t.to(dtype).double() for t in (scores @ leaves[1], scores.mT @ leaves[0], weights.mT @ flows))]

    exact = results(truth, torch.float64)
    found = {
        "saved": saved(),
        "cpu": results(lambda *tensors: alibi_attention(*tensors, slopes, scale=scale, backend="cpu"), dtype),
        "SDPA": results(sdpa if dtype == torch.float32 else in_float, dtype),
    }
    return {name: [mine - truth for mine, truth in zip(each, exact, strict=True)] for name, each in found.items()}


def rms(error: Tensor) -> float:
    return error.square().mean().sqrt().item()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("length", "head_dim"), SIZES)
def test_the_error_is_at_most_twice_that_of_sdpa(length: int, head_dim: int, dtype: torch.dtype) -> None:
    found = errors(length, head_dim, dtype)
    for name, ours, theirs in zip(NAMES, found["cpu"], found["SDPA"], strict=True):
        assert rms(ours) <= 2 * rms(theirs), name
        assert ours.abs().max() <= 2 * theirs.abs().max(), name


@pytest.mark.parametrize("queries", [1, 2, 8, 12, 100])
@pytest.mark.parametrize(
    ("length", "head_dim", "scale", "dtype"),
    [
        (420, 256, 1.0, torch.float32),
        (3000, 128, 0.5, torch.float32),
        # As far as bfloat16 holds the bias itself.
        (256, 256, 1.0, torch.bfloat16),
        (256, 64, 1.0, torch.bfloat16),
    ],
)
def test_so_it_is_where_few_queries_have_large_scores(
    length: int, head_dim: int, scale: float, dtype: torch.dtype, queries: int
) -> None:
    """Forward and backward add up their products in one order, or weights would carry the difference of two sums."""
    found = errors(length, head_dim, dtype, queries, scale)
    for name, ours, theirs in zip(NAMES, found["cpu"], found["SDPA"], strict=True):
        assert rms(ours) <= 2 * rms(theirs), name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("length", "head_dim", "scale"), [(300, 64, 1.0), (300, 64, 0.5), (500, 32, 1.0), (300, 128, 0.3)]
)
def test_large_scores_in_16_bits_cost_what_the_saved_output_does(
    length: int, head_dim: int, scale: float, dtype: torch.dtype
) -> None:
    """Gradients of queries and keys are then farther off than those of attention in float32, by up to three times."""
    found = errors(length, head_dim, dtype, scale=scale)
    for name, ours, theirs in zip(NAMES, found["cpu"], found["saved"], strict=True):
        assert rms(ours) <= 1.25 * rms(theirs), name
        assert ours.abs().max() <= 2 * theirs.abs().max(), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("head_dim", range(16, 257, 8))
def test_every_head_dimension(head_dim: int, dtype: torch.dtype) -> None:
    found = errors(130, head_dim, dtype)
    for name, ours, theirs in zip(NAMES, found["cpu"], found["SDPA"], strict=True):
        assert rms(ours) <= 2 * rms(theirs), name


@pytest.mark.parametrize("queries", [1, 16])
def test_lse_of_small_sums(queries: int):
    """Two equal keys: log(1 + exp(-slope)), where a logarithm that is good for large sums alone would show."""
    slopes = torch.linspace(0.0, 8.0, 4096)
    query, key = torch.zeros(1, len(slopes), queries, 16), torch.zeros(1, len(slopes), max(queries, 2), 16)
    _, lse = alibi_attention(query, key, key, slopes, tolerance=0.0, return_lse=True, backend="cpu")
    found, expected = lse[0, :, -1 if queries == 1 else 1].double(), torch.log1p(torch.exp(-slopes.double()))
    assert (found - expected).abs().max() < 1e-7


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
