"""Checks of the kernels: packed sequences, each as in a call of its own."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from kernel_calls import Call, make_call, planned
from kernel_limits import compare
from torch import Tensor

from alibi_attention.horizon import BLOCK_K


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
