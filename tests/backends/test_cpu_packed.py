"""Packed sequences on the cpu kernels: each as exact, and each with as little to compute, as in a call of its own."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from alibi_attention import alibi_attention, alibi_slopes
from alibi_attention.backends import native
from alibi_attention.backends.native import BLOCK_Q, PLAN
from alibi_attention.backends.packing import groups_of, most_blocks
from alibi_attention.call import call_arguments, problem_of
from alibi_attention.horizon import BLOCK_K

pytestmark = pytest.mark.skipif(isinstance(native.load(), str), reason="no compiled library")


def bounds(lengths: list[int]) -> Tensor:
    return torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32)


def inputs(queries: list[int], keys: list[int], dtype: torch.dtype = torch.float32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(sum(keys))
    shapes = ((1, 4, sum(queries), 32), (1, 2, sum(keys), 32), (1, 2, sum(keys), 32))
    return [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]


def arguments(tensors: list[Tensor], **options: Any) -> tuple[Any, ...]:
    call = {
        "is_causal": True, "scale": None, "query_offset": None, "key_mask": None, "cu_seqlens": None,
        "cu_seqlens_k": None, "window": None, "dropout_p": 0.0, "tolerance": None, "backend": "cpu", **options,
    }  # fmt: skip
    return call_arguments(*tensors, alibi_slopes(tensors[0].shape[1]), **call)


def scored(tensors: list[Tensor], **options: Any) -> int:
    """Tiles whose scores a call took."""
    plan = torch.ops.alibi_attention.forward(*arguments(tensors, **options))[2]
    return int(plan.view(-1, PLAN)[:, 3].sum())


def apart(tensors: list[Tensor], queries: list[int], keys: list[int]) -> list[list[Tensor]]:
    """The tensors of each sequence."""
    query, key, value = (t.split(lengths, 2) for t, lengths in zip(tensors, (queries, keys, keys), strict=True))
    return [list(each) for each in zip(query, key, value, strict=True)]


@pytest.mark.parametrize("is_causal", [True, False])
@pytest.mark.parametrize("rows", [1, 3, 40])
@pytest.mark.parametrize("before", [2, 40])
def test_a_sequence_behind_millions_of_keys_is_exact(rows: int, before: int, is_causal: bool):
    # In float32 positions beyond 2^24 are even. One key repeated without memory of its own, so that the sum is known.
    far = (1 << 24) + 3
    key = torch.zeros(1, 1, 1, 8).expand(1, 1, before + far + rows, 8)
    query = torch.zeros(1, 1, before + 1 + rows, 8)
    _, lse = alibi_attention(
        query, key, key, torch.tensor([0.5]), is_causal=is_causal, return_lse=True, backend="cpu",
        cu_seqlens=bounds([*[1] * before, 1, rows]), cu_seqlens_k=bounds([*[1] * before, far, rows]),
    )  # fmt: skip
    one_side = -math.log1p(-math.exp(-0.5))
    assert lse[0, 0, before].item() == pytest.approx(one_side, abs=1e-6)
    # The last sequence, whose keys all lie beyond.
    series = [sum(math.exp(-0.5 * abs(i - j)) for j in range(i + 1 if is_causal else rows)) for i in range(rows)]
    expected = torch.tensor([math.log(each) for each in series])
    torch.testing.assert_close(lse[0, 0, before + 1 :], expected, atol=1e-6, rtol=0.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("is_causal", [True, False])
def test_sequences_on_whole_tiles_come_out_as_in_calls_of_their_own(is_causal: bool, dtype: torch.dtype):
    queries, keys = [100, 17, 48, 130], [256, 128, 64 * 9, 192]
    tensors = inputs(queries, keys, dtype)
    options = {"is_causal": is_causal, "tolerance": 0.0, "backend": "cpu"}
    packed = alibi_attention(*tensors, cu_seqlens=bounds(queries), cu_seqlens_k=bounds(keys), **options)
    each = [alibi_attention(*part, **options) for part in apart(tensors, queries, keys)]
    assert torch.equal(packed, torch.cat(each, 2))


@pytest.mark.parametrize("rows", [1, 3, 16, 100])
def test_packed_sequences_compute_no_more_tiles_than_apart(rows: int):
    """A block across sequences would have to sweep all keys of every one but the last."""
    queries, keys = [rows] * 5, [4096] * 5
    tensors = inputs(queries, keys)
    packed = scored(tensors, cu_seqlens=bounds(queries), cu_seqlens_k=bounds(keys))
    assert packed <= 1.05 * sum(scored(part) for part in apart(tensors, queries, keys))


def test_short_sequences_share_blocks():
    lengths = [7, 12, 3] * 100
    problem, _ = problem_of(*_tensors_and_rest(lengths, lengths))
    groups = groups_of(problem)
    assert groups is not None
    assert groups.rows.tolist() == [0, sum(lengths)]


LENGTHS = st.lists(
    st.tuples(st.sampled_from([0, 1, 2, 30, 48, 49, 200]), st.sampled_from([0, 1, 9, 64, 65, 500])), min_size=1,
    max_size=12,
)  # fmt: skip


@given(LENGTHS)
@settings(max_examples=60, deadline=None)
def test_no_block_holds_rows_whose_keys_lie_far_apart(lengths: list[tuple[int, int]]):
    queries, keys = [[each[side] for each in lengths] for side in (0, 1)]
    if not sum(queries) or not sum(keys):
        return
    problem, _ = problem_of(*_tensors_and_rest(queries, keys))
    groups = groups_of(problem)
    assert groups is not None
    rows, blocks = groups.rows.tolist(), groups.blocks.tolist()
    assert rows[0] == 0
    assert rows[-1] == sum(queries)
    counts = [-(-(b - a) // BLOCK_Q) for a, b in itertools.pairwise(rows)]
    assert min(counts) > 0
    assert blocks == [sum(counts[:at]) for at in range(len(counts))]
    assert sum(counts) <= most_blocks(problem)
    sequence = [number for number, count in enumerate(queries) for _ in range(count)]
    end = list(itertools.accumulate(keys))
    for a, b in itertools.pairwise(rows):
        for first in range(a, b, BLOCK_Q):
            of = sequence[first : min(first + BLOCK_Q, b)]
            if of[0] != of[-1]:
                assert end[of[-1]] - (end[of[0]] - keys[of[0]]) <= BLOCK_Q * BLOCK_K


def _tensors_and_rest(queries: list[int], keys: list[int]) -> tuple[Any, ...]:
    call = arguments(inputs(queries, keys), cu_seqlens=bounds(queries), cu_seqlens_k=bounds(keys))
    return (*call[:3], *call[4:])


@given(LENGTHS, st.booleans(), st.sampled_from([torch.float32, torch.bfloat16]))
@settings(max_examples=40, deadline=None)
def test_gradients_of_packed_sequences_are_those_of_each(
    lengths: list[tuple[int, int]], is_causal: bool, dtype: torch.dtype
):
    queries, keys = [[each[side] for each in lengths] for side in (0, 1)]
    if not sum(queries) or not sum(keys):
        return
    tensors = [t.requires_grad_() for t in inputs(queries, keys, dtype)]
    out, lse = alibi_attention(
        *tensors, is_causal=is_causal, cu_seqlens=bounds(queries), cu_seqlens_k=bounds(keys), return_lse=True,
        backend="cpu",
    )  # fmt: skip
    wide = [t.detach().double().requires_grad_() for t in tensors]
    parts = [
        alibi_attention(*part, is_causal=is_causal, return_lse=True, backend="reference")
        for part, count, of in zip(apart(wide, queries, keys), queries, keys, strict=True)
        if count and of
    ]
    seen = torch.cat([torch.full((count,), bool(of)) for count, of in zip(queries, keys, strict=True)])
    if not parts:
        return
    exact, exact_lse = (torch.cat(each, 2) for each in zip(*parts, strict=True))
    unit = 2e-6 if dtype is torch.float32 else 2e-2
    torch.testing.assert_close(out[:, :, seen].double(), exact, atol=unit, rtol=unit)
    torch.testing.assert_close(lse[:, :, seen].double(), exact_lse, atol=5e-6, rtol=1e-6)
    flow = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    got = torch.autograd.grad(out, tensors, flow)
    expected = torch.autograd.grad(exact, wide, flow[:, :, seen].double())
    for mine, theirs in zip(got, expected, strict=True):
        size = float(theirs.abs().max().clamp_min(1.0))
        torch.testing.assert_close(mine.double(), theirs, atol=5 * unit * size, rtol=5 * unit)
