"""The grid of tiles that plans are made on."""

from __future__ import annotations

import torch
from torch import Tensor

from alibi_attention.problem import Problem
from alibi_attention.visibility import Rows

BLOCK_Q = 128
BLOCK_K = 64


def blocks_of(length: int, size: int) -> int:
    return -(-length // size)


def by_query_block(per_row: Tensor, fill: int) -> Tensor:
    """(..., q_len) to (..., query blocks, BLOCK_Q)."""
    length = per_row.shape[-1]
    padded = torch.nn.functional.pad(per_row, (0, blocks_of(length, BLOCK_Q) * BLOCK_Q - length), value=fill)
    return padded.reshape(*padded.shape[:-1], -1, BLOCK_Q)


def visible_tiles(problem: Problem, rows: Rows, block: int = BLOCK_K) -> Tensor:
    """The plan, in tiles of ``block`` keys, that skips only what no row of a block sees."""
    sees = rows.upper > rows.lower
    first = by_query_block(torch.where(sees, rows.lower, problem.k_len), problem.k_len).amin(-1) // block
    end = -(-by_query_block(torch.where(sees, rows.upper, 0), 0).amax(-1) // block)
    first = torch.minimum(first, end)
    tiles = torch.stack([first, end, torch.full_like(first, -1)], dim=-1).to(torch.int32)
    return tiles.unsqueeze(1).expand(problem.batch, problem.num_heads, -1, -1).contiguous()
