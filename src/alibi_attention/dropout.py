"""Dropout from a counter-based generator: the mask of a score is a function of the seed and of where the score stands.

Forward, backward and every backend recompute the same mask from (seed, batch, head, row, column); nothing is stored.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Philox4x32-10: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10
_LOW = 0xFFFFFFFF


def philox(counter: tuple[Tensor, Tensor, Tensor, Tensor], seed: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Philox4x32-10: four 32-bit words for each counter of four 32-bit words, under a 64-bit seed.

    Args:
        counter: four broadcastable int64 tensors holding values below 2**32.
        seed: scalar int64 tensor; its two halves are the key.

    Returns:
        four int64 tensors of the broadcast shape, values in [0, 2**32).
    """
    c0, c1, c2, c3 = counter
    k0, k1 = seed & _LOW, (seed >> 32) & _LOW
    for _ in range(_ROUNDS):
        high0, low0 = _multiply(c0, _MULTIPLIERS[0])
        high1, low1 = _multiply(c2, _MULTIPLIERS[1])
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + _KEY_STEPS[0]) & _LOW, (k1 + _KEY_STEPS[1]) & _LOW
    return c0, c1, c2, c3


def _multiply(word: Tensor, constant: int) -> tuple[Tensor, Tensor]:
    """High and low halves of a 32 x 32 bit product; split so that nothing passes 2**63."""
    low_part = word * (constant & 0xFFFF)
    high_part = word * (constant >> 16)
    middle = (low_part >> 16) + high_part
    return middle >> 16, ((middle & 0xFFFF) << 16) | (low_part & 0xFFFF)


def keep_scale(
    seed: Tensor, p: float, num_heads: int, batches: Tensor, heads: Tensor, rows: Tensor, columns: Tensor
) -> Tensor:
    """1 / (1 - p) where a score is kept and 0 where it is dropped.

    A score is dropped where its 32-bit word is below p * 2**32. Four neighbouring columns share one counter
    (column // 4, row, batch * num_heads + head, 0).

    Args:
        seed: scalar int64 tensor.
        p: probability of dropping, in (0, 1).
        num_heads: H of the whole problem.
        batches, heads, rows, columns: (b,), (h,), (r,), (c,) int64 indices within the whole problem; ``columns`` are
            consecutive.

    Returns:
        (b, h, r, c) float32.
    """
    first = columns[0] // 4
    quads = first + torch.arange((columns.shape[0] + 6) // 4, device=columns.device)
    stream = (batches.unsqueeze(1) * num_heads + heads)[:, :, None, None]
    words = philox((quads, rows.unsqueeze(-1), stream, torch.zeros_like(quads)), seed)
    flat = torch.stack(torch.broadcast_tensors(*words), dim=-1).flatten(-2)
    chosen = flat.index_select(-1, columns - 4 * first)
    return (chosen >= round(p * 2**32)).to(torch.float32) / (1.0 - p)
