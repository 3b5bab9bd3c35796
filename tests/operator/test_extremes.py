"""Values at the edges of what floating point holds."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from alibi_attention import alibi_attention, alibi_slopes


def _both(backend: str, query: Tensor, key: Tensor, value: Tensor, slopes: Tensor) -> tuple[Tensor, Tensor]:
    """Output of the backend, and of the definition in float64."""
    true = alibi_attention(query.double(), key.double(), value.double(), slopes, tolerance=0.0, backend="reference")
    return alibi_attention(query, key, value, slopes, backend=backend), true


@pytest.mark.parametrize("length", [70, 700])
def test_logits_of_ten_thousand(backend: str, length: int) -> None:
    query, key, value = torch.randn(3, 1, 4, length, 16).unbind(0)
    query = query * 1e4
    out, true = _both(backend, query, key, value, alibi_slopes(4))
    # The softmax is all but one-hot; logits of 1e4 in float32 are rounded by 1e-3.
    assert out.isfinite().all()
    bias = alibi_slopes(4)[:, None, None] * (torch.arange(length)[:, None] - torch.arange(length)).abs()
    scores = (query @ key.mT / 4 - bias).masked_fill(torch.ones(length, length, dtype=torch.bool).triu(1), -math.inf)
    plain = torch.softmax(scores, -1) @ value
    assert (out - true).abs().amax() <= 2 * (plain - true).abs().amax() + 1e-6


def test_equal_keys(backend: str) -> None:
    """All scores alike: the weights are those of the bias alone."""
    query = torch.randn(1, 4, 600, 16)
    key = torch.randn(1, 4, 1, 16).expand(-1, -1, 600, -1)
    value = torch.randn(1, 4, 600, 16)
    out, true = _both(backend, query, key, value, alibi_slopes(4))
    assert (out - true).abs().amax() < 2e-6


def test_one_huge_old_key(backend: str) -> None:
    """It may win over everything near however far away it is: no bound may overlook it."""
    query, key, value = torch.randn(3, 1, 4, 1500, 16).unbind(0)
    key[:, :, 3] = 400.0 * query[:, :, -1] / query[:, :, -1].norm(dim=-1, keepdim=True)
    out, true = _both(backend, query, key, value, alibi_slopes(4))
    torch.testing.assert_close(out[:, 2:, -1].double(), value[:, 2:, 3].double(), atol=1e-3, rtol=0)
    assert (out - true).abs().amax() < 2e-3


def test_denormals(backend: str) -> None:
    """Inputs below the least normal number count as what they are or as zero; either way they are next to nothing."""
    query, key, value = torch.randn(3, 1, 2, 300, 16).unbind(0)
    out, true = _both(backend, query * 1e-40, key, value, alibi_slopes(2))
    assert (out - true).abs().amax() < 1e-6
    out = alibi_attention(query, key, value * 1e-40, alibi_slopes(2), backend=backend)
    assert out.abs().amax() < 1e-38


def test_keys_of_minus_infinity_hold_no_mass(any_backend: str) -> None:
    """A score of -inf is a weight of 0, as padding by hand would have it."""
    query = torch.rand(1, 1, 40, 8) + 0.1
    key, value = torch.rand(1, 1, 40, 8), torch.randn(1, 1, 40, 8)
    key[:, :, :10] = -math.inf
    out, lse = alibi_attention(query, key, value, torch.tensor([0.1]), return_lse=True, backend=any_backend)
    kept = alibi_attention(query[:, :, 10:], key[:, :, 10:], value[:, :, 10:], torch.tensor([0.1]))
    torch.testing.assert_close(out[:, :, 10:], kept)
    assert (lse[:, :, :10] == -math.inf).all()
    assert (out[:, :, :10] == 0).all()


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("name", ["query", "key", "value"])
def test_one_batch_element_does_not_spoil_another(any_backend: str, name: str, bad: float) -> None:
    tensors = {n: torch.randn(3, 2, 300, 8) for n in ("query", "key", "value")}
    clean = {n: t.clone().requires_grad_() for n, t in tensors.items()}
    tensors[name][1, 0, 7, 2] = bad
    spoilt = {n: t.requires_grad_() for n, t in tensors.items()}
    slopes = alibi_slopes(2)
    results = []
    for each in (spoilt, clean):
        out = alibi_attention(**each, slopes=slopes, backend=any_backend)
        results.append((out, *torch.autograd.grad(out.square().sum(), tuple(each.values()))))
    for got, want in zip(*results, strict=True):
        for b, h in ((0, 0), (0, 1), (1, 1), (2, 0), (2, 1)):
            torch.testing.assert_close(got[b, h], want[b, h])
    assert not results[0][0][1, 0].isfinite().all()


@pytest.mark.parametrize("tolerance", [None, 0.0])
def test_bias_is_exact_a_million_tokens_on(backend: str, tolerance: float | None) -> None:
    """Only distances count: positions near 2^20, whose products with a slope fp32 rounds by 0.03, shift nothing."""
    length, near = 1 << 20, 1024
    query = torch.randn(1, 1, 64, 4)
    key, value = torch.randn(2, 1, 1, length, 4).unbind(0)
    slopes = torch.tensor([0.1])
    out, lse = alibi_attention(query, key, value, slopes, return_lse=True, tolerance=tolerance, backend=backend)
    alone = (query.double(), key[:, :, -near:].double(), value[:, :, -near:].double())
    true_out, true_lse = alibi_attention(*alone, slopes, return_lse=True, tolerance=0.0, backend="reference")
    assert (out - true_out).abs().amax() < 2e-6
    assert (lse - true_lse).abs().amax() < 2e-6


@pytest.mark.parametrize("is_causal", [True, False])
def test_the_least_tolerance_there_is(any_backend: str, is_causal: bool) -> None:
    """Half of it, each side's share, would be 0, which has no logarithm."""
    query, key, value = torch.randn(3, 1, 1, 600, 16).unbind(0)
    tightest = alibi_attention(query, key, value, is_causal=is_causal, tolerance=5e-324, backend=any_backend)
    dense = alibi_attention(query, key, value, is_causal=is_causal, tolerance=0.0, backend=any_backend)
    torch.testing.assert_close(tightest, dense)
