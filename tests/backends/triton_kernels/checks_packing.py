"""Checks of the kernels: packed sequences, each as in a call of its own."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any
from unittest import mock

import torch
from kernel_calls import Call, make_call, planned, poisoned_allocations
from kernel_limits import compare
from torch import Tensor

from alibi_attention.backends.triton import arguments
from alibi_attention.backends.triton import packing as tables
from alibi_attention.call import call_arguments, problem_of
from alibi_attention.horizon import BLOCK_K
from alibi_attention.problem import Problem
from alibi_attention.visibility import row_ranges


def bounds(lengths: Sequence[int]) -> Tensor:
    return torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32)


def packed(device: str, queries: Sequence[int], keys: Sequence[int] | None = None, **options: Any) -> Call:
    keys = queries if keys is None else keys
    ends = {"cu_seqlens": bounds(queries), "cu_seqlens_k": bounds(keys)}
    return make_call(device, q_len=sum(queries), k_len=sum(keys), **ends, **options)


def packing(device: str) -> None:
    # Neighbours that share a block, that do not, one without queries, blocks of 128 rows that end in the middle.
    queries, others = (5, 0, 65, 1, 129), (9, 31, 60, 1, 49)
    compare(packed(device, queries))
    compare(packed(device, queries, others, is_causal=False))
    compare(packed(device, queries, window=(30, 0), dtype=torch.bfloat16))


def packing_within_the_horizon(device: str) -> None:
    """No block has tiles that belong to other sequences than its own, and each is left out where it cannot matter."""
    queries, keys = ((16, 3, 40), (300, 0, 700)) if device == "cpu" else ((16, 3, 300, 1), (4000, 0, 9000, 2500))
    for is_causal in (True, False):
        few = {"heads": 2, "kv_heads": 1, "head_dim": 16, "slopes": (0.1, 1.0), "is_causal": is_causal}
        call = packed(device, queries, keys, **few)
        compare(call)
        plan = planned(call)
        # A block a sequence here or, beyond 128 rows, several.
        rows = [-(-length // 128) for length in queries]
        owners = [number for number, blocks in enumerate(rows) for _ in range(blocks)]
        starts = bounds(keys).tolist()
        for block, owner in enumerate(owners):
            first, end = (plan[0, :, block, side] for side in range(2))
            told = f"block {block} of sequence {owner}: tiles {first.tolist()} to {end.tolist()}"
            outside = (first < starts[owner] // BLOCK_K) | (end * BLOCK_K >= starts[owner + 1] + BLOCK_K)
            assert (~outside | (first == end)).all(), told
            # Slope 1 needs some 30 keys beyond its rows.
            assert (end - first)[1] <= (min(queries[owner], 128) + 2 * 200) // BLOCK_K, told
        rest = plan[:, :, len(owners) :]
        assert (rest[..., 0] == rest[..., 1]).all(), f"blocks without rows have tiles: {rest.tolist()}"


def many_packed(number: int, device: str) -> None:
    """Sequences of random lengths, short ones and empty ones among them."""
    generator = torch.Generator().manual_seed(number)

    def drawn(high: int) -> list[int]:
        most = torch.randint(0, high, (12,), generator=generator)
        return (most * torch.rand(12, generator=generator) ** 3).long().tolist()

    queries = drawn(90)
    keys = queries if number % 2 else drawn(200)
    queries, keys = [*queries, 2], [*keys, 5]
    dtype = (torch.float32, torch.bfloat16)[number // 2 % 2]
    few = {"heads": 2, "kv_heads": 1, "head_dim": 16, "slopes": (0.01, 0.4), "is_causal": number % 3 > 0}
    compare(packed(device, queries, keys, dtype=dtype, seed=number, **few))


# The tables that kernels read


def _problem(device: str, queries: Sequence[int], keys: Sequence[int], **options: Any) -> Problem:
    tensors = [torch.empty(1, 1, sum(lengths), 16, device=device) for lengths in (queries, keys, keys)]
    given = {
        **dict.fromkeys(["scale", "query_offset", "key_mask", "window", "tolerance", "backend"]),
        "is_causal": True, "dropout_p": 0.0, "cu_seqlens": bounds(queries).to(device),
        "cu_seqlens_k": bounds(keys).to(device), **options,
    }  # fmt: skip
    made = call_arguments(*tensors, torch.zeros(1, device=device), **given)
    return problem_of(*made[:3], *made[4:])[0]


def _blocks_by_hand(queries: Sequence[int], keys: Sequence[int]) -> list[list[int]]:
    groups: list[list[int]] = []
    shared = False
    for number, (rows, others) in enumerate(zip(queries, keys, strict=True)):
        shares = others <= 64 and others <= 8 * rows
        if not (shares and shared):
            groups.append([])
        groups[-1].append(number)
        shared = shares
    ends = [0, *itertools.accumulate(queries)]
    return [
        [first, min(first + 128, ends[group[-1] + 1])]
        for group in groups
        for first in range(ends[group[0]], ends[group[-1] + 1], 128)
    ]


def _drawn(number: int) -> tuple[list[int], list[int]]:
    """Lengths of queries and keys of up to 300 sequences, around what decides on blocks."""
    generator = torch.Generator().manual_seed(number)
    marks = torch.tensor([0, 0, 1, 2, 4, 8, 9, 32, 33, 63, 64, 65, 127, 128, 129, 256, 400])
    count = int(torch.randint(1, (3, 20, 300)[number % 3], (), generator=generator))
    queries, keys = (marks[torch.randint(0, len(marks), (count,), generator=generator)].tolist() for _ in range(2))
    return [*queries, 1], [*keys, 1]


def row_tables(device: str) -> None:
    """Each row in one block, with those it may share it with; what rows see, as the definition has it."""
    for number in range(36 if device == "cpu" else 60):
        queries, keys = _drawn(number)
        window = ((None, None), (40, 0), (3, 9))[number % 3]
        problem = _problem(device, queries, keys, window=window, is_causal=number % 2 == 0)
        with poisoned_allocations():
            found = arguments.visibility(problem)
            key_rows = tables.rows_by_key_block(problem, found, 64)
        table = found["row_blocks"].tolist()
        blocks = [block for block in table if block[0] < block[1]]
        assert blocks == _blocks_by_hand(queries, keys), f"sequences {number}: {table}"
        assert all(block == [sum(queries)] * 2 for block in table[len(blocks) :]), "those without rows come last"
        want = [part[0] for part in row_ranges(problem)]
        for name, exact in zip(("position_of", "lower_of", "upper_of"), want, strict=True):
            assert torch.equal(found[name].long(), exact), f"sequences {number}: {name}"
        _, lower, upper = want
        for at, bounds_ in enumerate(key_rows.tolist()):
            start, end = 64 * at, 64 * at + 64
            sees = ((upper > start) & (lower < min(end, problem.k_len))).nonzero()[:, 0].tolist()
            whole = ((lower <= start) & (upper >= end)).nonzero()[:, 0].tolist()
            assert all(bounds_[0] <= row < bounds_[1] for row in sees), f"keys {start}: {bounds_}"
            assert whole == list(range(bounds_[2], bounds_[3])), f"keys {start}: {bounds_}"


def buffers_longer_than_their_sequences(device: str) -> None:
    """On a GPU nobody looks at cu_seqlens: rows behind the last sequence see nothing, and no row sees keys there."""
    for queries, keys in (((70, 280, 50), (70, 280, 50)), ((10, 300), (400, 30)), ((3, 4, 100), (9, 20, 10))):
        options = {"is_causal": queries == keys, "slopes": (0.2, 0.01), "heads": 2, "kv_heads": 1, "head_dim": 16}
        call = packed(device, queries, keys, **options)
        shorter = {name: call.options[name][:-1] for name in ("cu_seqlens", "cu_seqlens_k")}
        rows, seen = sum(queries[:-1]), sum(keys[:-1])
        for name, length in (("query", rows), ("key", seen), ("value", seen), ("grad_out", rows), ("grad_lse", rows)):
            getattr(call, name)[:, :, length:] = torch.nan
        with mock.patch("alibi_attention.checks.positions.values_can_be_read", return_value=False):
            ours = Call(*call.tensors, call.grad_out, call.grad_lse, {**call.options, **shorter}).run()
        out, lse, grad_query, grad_key, grad_value, _ = ours
        assert (out[:, :, rows:] == 0).all(), "a row that sees no key has output 0"
        assert (lse[:, :, rows:] == -torch.inf).all(), "and lse -inf"
        assert all(
            (each == 0).all() for each in (grad_query[:, :, rows:], grad_key[:, :, seen:], grad_value[:, :, seen:])
        )
        alone = packed(device, queries[:-1], keys[:-1], **options)
        for name, length in (("query", rows), ("key", seen), ("value", seen), ("grad_out", rows), ("grad_lse", rows)):
            getattr(alone, name).copy_(getattr(call, name)[:, :, :length])
        *theirs, slopes = alone.run()
        assert all(torch.equal(mine[:, :, : their.shape[2]], their) for mine, their in zip(ours, theirs, strict=False))
        torch.testing.assert_close(ours[-1], slopes)


def values_that_are_no_bounds(device: str) -> None:
    """On a GPU nobody looks at cu_seqlens; whatever it says, no other rows are written and no other keys read."""
    problem = _problem(device, (150,), (90,))
    for first in ([20, 100], [3, 50, 140]):
        early = problem._replace(cu_seqlens=torch.tensor(first, dtype=torch.int32, device=device), cu_seqlens_k=None)
        found = arguments.visibility(early._replace(k_len=150))
        sees = found["lower_of"] < found["upper_of"]
        assert sees.nonzero()[:, 0].tolist() == list(range(first[0], first[-1])), f"rows outside of {first} see keys"
        covered = [row for block in found["row_blocks"].tolist() for row in range(*block)]
        assert covered == list(range(150)), f"rows outside of {first} are not written, or twice"
    generator = torch.Generator().manual_seed(0)
    for number in range(10):
        values = torch.randint(-500, 500, (2, 1 + number % 5 + 1), generator=generator, dtype=torch.int32).to(device)
        wrong = problem._replace(cu_seqlens=values[0], cu_seqlens_k=values[1])
        found = arguments.visibility(wrong)
        for name, most in (("row_blocks", 150), ("lower_of", 90), ("upper_of", 90)):
            assert ((found[name] >= 0) & (found[name] <= most)).all(), f"{name} of {values.tolist()}"
        key_rows = tables.rows_by_key_block(wrong, found, 64)
        assert ((key_rows >= 0) & (key_rows <= 150)).all(), f"key_rows of {values.tolist()}"
