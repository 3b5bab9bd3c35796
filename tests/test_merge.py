"""Parts of the keys, put together, are the whole."""

from __future__ import annotations

import itertools
import math

import torch
from hypothesis import given
from hypothesis import strategies as st

from alibi_attention import alibi_attention, alibi_slopes, merge_attention


@given(cuts=st.lists(st.integers(1, 79), max_size=3, unique=True), is_causal=st.booleans(), seed=st.integers(0, 1000))
def test_shards_of_keys_merge_to_the_whole(cuts: list[int], is_causal: bool, seed: int) -> None:
    torch.manual_seed(seed)
    leaves = [torch.randn(2, 4, 80, 8, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    query, key, value = leaves
    slopes = alibi_slopes(4).requires_grad_()
    edges = [0, *sorted(cuts), 80]
    parts = [
        alibi_attention(
            query, key[:, :, a:b], value[:, :, a:b], slopes, is_causal=is_causal, query_offset=-a, return_lse=True
        )
        for a, b in itertools.pairwise(edges)
    ]
    merged = merge_attention(*zip(*parts, strict=True))
    whole = alibi_attention(query, key, value, slopes, is_causal=is_causal, return_lse=True)
    cotangents = [torch.randn_like(t) for t in whole]
    got = torch.autograd.grad(merged, (*leaves, slopes), cotangents)
    want = torch.autograd.grad(whole, (*leaves, slopes), cotangents)
    for g, w in zip((*merged, *got), (*whole, *want), strict=True):
        torch.testing.assert_close(g, w, rtol=1e-5, atol=1e-9)


def test_rows_without_keys_stay_empty_and_pass_nothing_back() -> None:
    outputs = [torch.zeros(1, 1, 2, 3, requires_grad=True) for _ in range(2)]
    lses = [torch.tensor([[[-math.inf, value]]], requires_grad=True) for value in (-math.inf, 0.5)]
    out, lse = merge_attention(outputs, lses)
    assert torch.equal(out[0, 0, 0], torch.zeros(3))
    assert lse[0, 0, 0] == -math.inf
    assert lse[0, 0, 1] == 0.5
    grads = torch.autograd.grad((out, lse), (*outputs, *lses), (torch.ones_like(out), torch.ones_like(lse)))
    for grad in grads:
        assert grad.isfinite().all()
    for grad in grads[:2]:
        assert torch.equal(grad[0, 0, 0], torch.zeros(3))
    for grad in grads[2:]:
        assert grad[0, 0, 0] == 0.0


def test_one_part_is_itself() -> None:
    out, lse = torch.randn(1, 2, 3, 4, dtype=torch.bfloat16), torch.randn(1, 2, 3)
    merged, merged_lse = merge_attention([out], [lse])
    assert torch.equal(merged, out)
    assert torch.equal(merged_lse, lse)
    assert merged.dtype == torch.bfloat16


def test_gradcheck() -> None:
    outputs = [torch.randn(1, 2, 3, 2, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    lses = [torch.randn(1, 2, 3, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    assert torch.autograd.gradcheck(lambda *parts: merge_attention(parts[:3], parts[3:]), (*outputs, *lses))
