"""The definition itself: against loops over single scores; its gradients against autograd and finite differences."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from operator_budget import problem_for
from operator_cases import Case, cases

from alibi_attention import alibi_attention
from alibi_attention.reference import reference_attention, weighted_sum


def _by_hand(case: Case) -> tuple[torch.Tensor, torch.Tensor]:
    """One score at a time, written from the documentation of the arguments, not from the code of the reference."""
    query, key, value, slopes = (t.double() for t in case.tensors)
    batch, heads, q_len, dim = query.shape
    k_len, group = key.shape[2], heads // key.shape[1]
    o = case.options
    left, right = o.get("window") or (None, None)
    scale = o.get("scale", 1 / math.sqrt(dim))
    slopes = slopes.expand(batch, heads)
    out = torch.zeros(batch, heads, q_len, value.shape[3], dtype=torch.float64)
    lse = torch.full((batch, heads, q_len), -math.inf, dtype=torch.float64)
    for b in range(batch):
        for i in range(q_len):
            shown = list(range(k_len))
            if "cu_seqlens" in o:
                queries = o["cu_seqlens"].tolist()
                keys = o.get("cu_seqlens_k", o["cu_seqlens"]).tolist()
                n = next(n for n in range(len(queries) - 1) if queries[n] <= i < queries[n + 1])
                shown = list(range(keys[n], keys[n + 1]))
                position = keys[n + 1] - (queries[n + 1] - i)
            else:
                offset = o.get("query_offset")
                offset = k_len - q_len if offset is None else offset
                position = i + int(offset[b] if isinstance(offset, torch.Tensor) else offset)
            if "key_mask" in o:
                shown = [j for j in shown if o["key_mask"][b, j]]
            if o["is_causal"]:
                shown = [j for j in shown if j <= position]
            if left is not None:
                shown = [j for j in shown if j >= position - left]
            if right is not None:
                shown = [j for j in shown if j <= position + right]
            for h in range(heads):
                if not shown:
                    continue
                scores = [
                    scale * float(query[b, h, i] @ key[b, h // group, j]) - float(slopes[b, h]) * abs(position - j)
                    for j in shown
                ]
                peak = max(scores)
                lse[b, h, i] = peak + math.log(sum(math.exp(s - peak) for s in scores))
                for j, score in zip(shown, scores, strict=True):
                    out[b, h, i] += math.exp(score - float(lse[b, h, i])) * value[b, h // group, j]
    return out, lse


@settings(max_examples=25)
@given(case=cases(dtypes=(torch.float64,), max_len=17, dropout=False))
def test_definition_by_hand(case: Case) -> None:
    out, lse = alibi_attention(*case.tensors, **case.options, return_lse=True, backend="reference")
    want_out, want_lse = _by_hand(case)
    torch.testing.assert_close(out, want_out, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(lse, want_lse, rtol=1e-11, atol=1e-11)


@given(case=cases(dtypes=(torch.float64,), max_len=65))
def test_gradients_are_those_of_autograd(case: Case) -> None:
    leaves = [t.detach().requires_grad_() for t in case.tensors]
    out, lse = reference_attention(problem_for(case), *leaves)
    want = torch.autograd.grad((out, lse), leaves, (case.grad_out, case.grad_lse.masked_fill(lse == -math.inf, 0.0)))
    for got, expected in zip(case.run("reference")[2:], want, strict=True):
        torch.testing.assert_close(got.double(), expected.double(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("is_causal", [True, False])
@pytest.mark.parametrize(("q_len", "k_len"), [(5, 5), (3, 7), (6, 2)])
def test_gradcheck(any_backend: str, is_causal: bool, q_len: int, k_len: int) -> None:
    from alibi_attention.dispatch import explain_backends

    shapes = [(2, 4, q_len, 3), (2, 2, k_len, 3), (2, 2, k_len, 5)]
    tensors = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    slopes = (torch.rand(4, dtype=torch.float64) * 0.5).requires_grad_()
    if explain_backends(*tensors, slopes)[any_backend] is not None:
        return

    def attend(*leaves: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        out, lse = alibi_attention(*leaves, is_causal=is_causal, return_lse=True, backend=any_backend)
        return out, lse.masked_fill(lse == -math.inf, 0.0)

    assert torch.autograd.gradcheck(attend, (*tensors, slopes))


def test_worked_example() -> None:
    """Zero queries leave the bias alone: weights 1, e^-1/2, e^-1, ... normalised."""
    value = torch.eye(4)[None, None]
    zeros = torch.zeros(1, 1, 4, 2)
    out = alibi_attention(zeros, zeros, value, torch.tensor([0.5]), backend="reference")
    for i in range(4):
        weights = torch.tensor([math.exp(-0.5 * (i - j)) if j <= i else 0.0 for j in range(4)])
        torch.testing.assert_close(out[0, 0, i], weights / weights.sum())


def test_weighted_sum_keeps_what_is_not_finite_to_those_who_see_it() -> None:
    terms = torch.tensor([[1.0, 2.0], [math.nan, math.inf], [3.0, -math.inf]])
    weights = torch.tensor([[0.5, 0.0, 0.0], [0.2, 0.3, 0.0], [0.1, 0.2, 0.3]])
    seen = torch.tensor([[True, False, False], [True, True, False], [True, True, True]])
    got = weighted_sum(weights, terms, seen)
    assert torch.equal(got[0], torch.tensor([0.5, 1.0]))
    assert got[1, 0].isnan()
    assert got[1, 1] == math.inf
    assert got[2].isnan().all()


@pytest.mark.parametrize("grad_lse", [0.0, 1.0, math.nan, math.inf])
def test_rows_without_keys(any_backend: str, grad_lse: float) -> None:
    """Output 0, lse -inf, and nothing flows back, whatever cotangent comes in."""
    query, key, value = (torch.randn(1, 2, n, 8, requires_grad=True) for n in (5, 2, 2))
    slopes = torch.tensor([0.5, 0.1], requires_grad=True)
    out, lse = alibi_attention(query, key, value, slopes, return_lse=True, backend=any_backend)
    assert torch.equal(out[:, :, :3], torch.zeros(1, 2, 3, 8))
    assert (lse[:, :, :3] == -math.inf).all()
    assert lse[:, :, 3:].isfinite().all()
    cotangent = torch.zeros_like(lse)
    cotangent[:, :, :3] = grad_lse
    grads = torch.autograd.grad((out, lse), (query, key, value, slopes), (torch.ones_like(out), cotangent))
    want = torch.autograd.grad(
        alibi_attention(query, key, value, slopes, backend=any_backend),
        (query, key, value, slopes),
        torch.ones_like(out),
    )
    for got, expected in zip(grads, want, strict=True):
        assert torch.equal(got, expected)
    assert torch.equal(grads[0][:, :, :3], torch.zeros(1, 2, 3, 8))
