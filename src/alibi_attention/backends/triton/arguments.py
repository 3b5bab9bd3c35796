"""From a problem to the arguments of kernels."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from alibi_attention.backends.triton import packing
from alibi_attention.problem import FURTHEST, UNBOUNDED, Problem
from alibi_attention.visibility import mask_range

_LOG2E = math.log2(math.e)
# Past any position, and far below where sums of positions would wrap around.
_OPEN = 4 * FURTHEST


def contiguous_rows(tensor: Tensor) -> Tensor:
    """The tensor, copied only where its last dimension is not contiguous."""
    return tensor if tensor.stride(3) == 1 or tensor.shape[3] == 1 else tensor.contiguous()


def is_two_sided(problem: Problem) -> bool:
    """Whether a row may see keys after itself."""
    return not problem.is_causal and problem.window[1] != 0


def is_plain(problem: Problem) -> bool:
    """Whether a row sees every key up to its own position, which is its number and one distance for all rows."""
    bounded = problem.window[0] != UNBOUNDED or problem.key_mask is not None or isinstance(problem.query_offset, Tensor)
    return not (bounded or problem.is_packed or is_two_sided(problem))


def visibility(problem: Problem) -> dict[str, Any]:
    """What the kernels need to know which keys a row sees: numbers, or tensors left on the device."""
    left, right = (_OPEN if side == UNBOUNDED else side for side in problem.window)
    found: dict[str, Any] = dict.fromkeys(
        ("offsets", "key_range", "position_of", "lower_of", "upper_of", "row_blocks"),
    )
    found |= {
        "q_len": problem.q_len, "k_len": problem.k_len, "offset": 0, "left": left,
        "right": 0 if problem.is_causal else right, "plain": is_plain(problem), "entries": packing.most_blocks(problem),
    }  # fmt: skip
    if problem.is_packed:
        return found | packing.row_tables(problem, found["left"], found["right"])
    if isinstance(problem.query_offset, Tensor):
        found["offsets"] = problem.query_offset.contiguous()
    else:
        found["offset"] = problem.query_offset
    if problem.key_mask is not None:
        found["key_range"] = torch.stack(mask_range(problem.key_mask), dim=1).to(torch.int32)
    return found


def strides(**tensors: Tensor) -> dict[str, int]:
    """Those of batch, head and row, by the names the kernels give them."""
    return {
        f"{name}_{axis}": tensor.stride(at)
        for name, tensor in tensors.items()
        for at, axis in enumerate(("batch", "head", "row"))
    }


def slope_arguments(slopes: Tensor) -> dict[str, Any]:
    slopes = slopes.detach()
    by_batch = slopes.dim() == 2
    return {
        "slopes": slopes,
        "slope_batch": slopes.stride(0) if by_batch else 0,
        "slope_head": slopes.stride(-1),
    }


def scales(problem: Problem) -> dict[str, Any]:
    """Scale of scores in bits, and what dropout needs; a probability that drops no word at all is none."""
    least_kept = round(problem.dropout_p * 2**32)
    drops = problem.dropout_p > 0.0 and least_kept > 0
    last_dropped = max(least_kept - 1, 0)
    return {
        "scale": problem.scale * _LOG2E,
        "seed": problem.seed if drops else None,
        # The pattern of an unsigned word.
        "threshold": last_dropped - (1 << 32 if last_dropped >= 1 << 31 else 0),
        "keep_scale": 1.0 / (1.0 - problem.dropout_p),
    }
