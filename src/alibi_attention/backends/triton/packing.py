"""Packed sequences: how many blocks their rows may take, known from shapes, and the tables that kernels read.

A block of rows sweeps all keys between the first and the last that its rows see, and can leave out only what none of
them needs. So sequences have blocks of their own, but for neighbours whose keys fit in a tile each.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from alibi_attention.backends.triton import launch
from alibi_attention.backends.triton.configs import Config
from alibi_attention.horizon import BLOCK_Q, blocks_of
from alibi_attention.problem import Problem

# Blocks or sequences that a program of the short kernels takes at once, and rows.
_CHUNK, _ROWS = 128, 256


def most_blocks(problem: Problem) -> int:
    """Blocks of 128 rows that a call has at most: a sequence adds one, and some of those may turn out empty."""
    blocks = blocks_of(problem.q_len, BLOCK_Q)
    return blocks if problem.cu_seqlens is None else blocks + problem.cu_seqlens.shape[0] - 2


def programs_over_rows(problem: Problem, block: int) -> int:
    """Programs that a pair of (batch, head) needs where each takes ``block`` rows, which divides 128."""
    assert BLOCK_Q % block == 0, block
    if problem.cu_seqlens is None:
        return blocks_of(problem.q_len, block)
    return most_blocks(problem) * (BLOCK_Q // block)


def row_tables(problem: Problem, left: int, right: int) -> dict[str, Tensor]:
    """Of a packed call ``position_of``, ``lower_of``, ``upper_of`` (q_len,): a row sees the keys [lower, upper);
    ``key_range`` (1, 2), first and end of the keys of all sequences; and ``row_blocks`` (`most_blocks`, 2), first and
    end of the rows of each block.
    """
    assert problem.cu_seqlens is not None
    q_ends = problem.cu_seqlens.contiguous()
    k_ends = q_ends if problem.cu_seqlens_k is None else problem.cu_seqlens_k.contiguous()
    sequences, entries = q_ends.shape[0] - 1, most_blocks(problem)
    position_of = q_ends.new_empty(problem.q_len, dtype=torch.int64)
    lower_of, upper_of = (q_ends.new_empty(problem.q_len, dtype=torch.int32) for _ in range(2))
    key_range = q_ends.new_empty(1, 2, dtype=torch.int32)
    ends = q_ends.new_empty(sequences, dtype=torch.int64)
    remaining = q_ends.new_empty(sequences + 1, dtype=torch.int32)
    row_blocks = q_ends.new_empty(entries, 2, dtype=torch.int32)
    given: dict[str, Any] = {
        "q_ends": q_ends, "k_ends": k_ends, "sequences": sequences, "steps": sequences.bit_length(),
        "q_len": problem.q_len, "k_len": problem.k_len, "left": left, "right": right, "entries": entries,
        "position_of": position_of, "lower_of": lower_of, "upper_of": upper_of, "key_range": key_range,
        "ends": ends, "remaining": remaining, "row_blocks": row_blocks,
    }  # fmt: skip
    from alibi_attention.backends.triton import sequences as kernels

    _start(kernels.packed_rows_kernel, problem, blocks_of(problem.q_len, _ROWS), given, at_once=_ROWS)
    _start(kernels.groups_kernel, problem, 1, given)
    _start(kernels.row_blocks_kernel, problem, blocks_of(entries, _CHUNK), given)
    names = ("position_of", "lower_of", "upper_of", "key_range", "row_blocks")
    return {name: given[name] for name in names}


def rows_by_key_block(problem: Problem, seen: dict[str, Any], block: int) -> Tensor | None:
    """(key blocks, 4) for a packed call: first and end of the rows that see any key of a block, and that see all."""
    if not problem.is_packed:
        return None
    from alibi_attention.backends.triton import sequences as kernels

    blocks = blocks_of(problem.k_len, block)
    key_rows: Tensor = seen["lower_of"].new_empty(blocks, 4)
    given = {**seen, "key_rows": key_rows, "key_blocks": blocks, "steps": problem.q_len.bit_length()}
    _start(kernels.key_rows_kernel, problem, blocks_of(blocks, _CHUNK), given, block_n=block)
    return key_rows


def _start(kernel: Any, problem: Problem, programs: int, given: dict[str, Any], **constants: int) -> None:
    taken = {name: given[name] for name in kernel.arg_names if name not in constants}
    launch.run(kernel, (programs,), Config(constants, 4, 1), problem.device, taken)
