"""The table of blocks that packed sequences are swept in, held against its rules one sequence after the other."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from alibi_attention.backends.triton import packing
from alibi_attention.call import call_arguments, problem_of
from alibi_attention.problem import Problem

LENGTHS = st.one_of(st.integers(0, 3), st.integers(0, 70), st.sampled_from([63, 64, 65, 127, 128, 129, 256, 400]))


def packed(queries: Sequence[int], keys: Sequence[int]) -> Problem:
    starts, key_starts = (torch.tensor([0, *itertools.accumulate(each)], dtype=torch.int32) for each in (queries, keys))
    query, key = torch.empty(1, 1, sum(queries), 16), torch.empty(1, 1, sum(keys), 16)
    options = {
        "is_causal": True, "scale": None, "query_offset": None, "key_mask": None, "window": None, "dropout_p": 0.0,
        "tolerance": None, "backend": None, "cu_seqlens": starts, "cu_seqlens_k": key_starts,
    }  # fmt: skip
    tensors = call_arguments(query, key, key, torch.zeros(1), **options)
    return problem_of(*tensors[:3], *tensors[4:])[0]


def blocks_by_hand(queries: Sequence[int], keys: Sequence[int]) -> list[tuple[int, int]]:
    groups: list[list[int]] = []
    shared = False
    for number, (some, others) in enumerate(zip(queries, keys, strict=True)):
        shares = others <= 64 and others <= 2 * some
        if not (shares and shared):
            groups.append([])
        groups[-1].append(number)
        shared = shares
    ends = [0, *itertools.accumulate(queries)]
    return [
        (first, min(first + 128, ends[group[-1] + 1]))
        for group in groups
        for first in range(ends[group[0]], ends[group[-1] + 1], 128)
    ]


@settings(max_examples=400)
@given(st.lists(st.tuples(LENGTHS, LENGTHS), min_size=1, max_size=12))
def test_each_row_is_in_one_block_with_those_it_may_share_it_with(lengths: list[tuple[int, int]]) -> None:
    lengths = [*lengths, (1, 1)]
    queries, keys = ([each[side] for each in lengths] for side in range(2))
    problem = packed(queries, keys)
    table = packing.row_blocks(problem)
    assert table is not None
    assert (table.shape, table.dtype) == ((packing.most_blocks(problem), 2), torch.int32)
    blocks = [(first, end) for first, end in table.tolist() if first < end]
    assert blocks == blocks_by_hand(queries, keys)
    assert [row for first, end in blocks for row in range(first, end)] == list(range(sum(queries)))
    empty = table[len(blocks) :]
    assert (empty == sum(queries)).all(), "those without rows come last"


@given(st.lists(st.integers(-500, 500), min_size=2, max_size=6), st.integers(1, 300))
def test_values_that_are_no_bounds_lead_to_no_other_rows(values: list[int], q_len: int) -> None:
    # On a GPU nobody has looked at them.
    bounds = torch.tensor(values, dtype=torch.int32)
    problem = packed((q_len,), (q_len,))._replace(cu_seqlens=bounds, cu_seqlens_k=bounds)
    table = packing.row_blocks(problem)
    assert table.shape == (packing.most_blocks(problem), 2)
    assert ((table >= 0) & (table <= q_len)).all()


def test_sequences_of_their_own_have_blocks_of_their_own() -> None:
    problem = packed((3, 200, 1), (500, 200, 65))
    assert packing.row_blocks(problem).tolist() == [[0, 3], [3, 131], [131, 203], [203, 204]]
    assert packing.programs_over_rows(problem, 64) == 2 * packing.most_blocks(problem)


def test_other_calls_have_no_table() -> None:
    problem = packed((300,), (300,))._replace(cu_seqlens=None, cu_seqlens_k=None)
    assert packing.row_blocks(problem) is None
    assert packing.most_blocks(problem) == 3
    assert packing.programs_over_rows(problem, 64) == 5
