"""Slopes: one for each query head, finite, held as precisely as they are computed with."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from alibi_attention.checks.values import shape_of, values_can_be_read

_FEW_SLOPES = 32


def check_slopes(slopes: Tensor, batch: int, num_heads: int, q_len: int | None = None) -> None:
    """``q_len`` is looked at for a hint alone: heads and tokens are easily exchanged."""
    # Spelled out: a compiler's symbolic sizes compare equal but are not found in a tuple.
    if slopes.shape != (num_heads,) and slopes.shape != (batch, num_heads):
        hint = "one slope for each query head"
        if slopes.dim() in (1, 2) and slopes.shape[-1] == q_len:
            hint += (
                "; where query, key and value are (batch, seq_len, num_heads, head_dim), pass tensor.transpose(1, 2)"
            )
        elif slopes.dim() == 4:
            hint += "; a value has no place here"
        raise ValueError(
            f"slopes: expected shape ({num_heads},) or ({batch}, {num_heads}), got {shape_of(slopes)}; {hint}"
        )
    if not slopes.dtype.is_floating_point:
        raise ValueError(f"slopes: expected float32 (or float64), got {slopes.dtype}; convert them with slopes.float()")
    if slopes.dtype not in (torch.float32, torch.float64):
        raise ValueError(
            f"slopes: expected float32 (or float64), got {slopes.dtype}; 16-bit slopes are rounded by up to 0.4%, "
            "whole nats at long range: keep them in float32"
        )


def check_finite_slopes(slopes: Tensor, compute: torch.dtype = torch.float32) -> None:
    """``compute`` is what they are computed with, which may hold less than their own dtype does."""
    if not values_can_be_read(slopes):
        return
    if not slopes.dtype.is_floating_point:
        # Said by who looks at dtypes.
        return
    most = torch.finfo(compute).max
    # Few numbers are looked at sooner by Python. What is not a number is not within.
    if slopes.numel() <= _FEW_SLOPES:
        if all(-most <= each <= most for each in slopes.detach().flatten().tolist()):
            return
    elif bool((slopes.detach().abs() <= most).all()):
        return
    given = slopes.detach().flatten().tolist()
    wrong = [each for each in given if not -most <= each <= most]
    shown = f"[{', '.join(map(str, given[:8]))}{', ...' if len(given) > 8 else ''}]"
    if all(map(math.isfinite, wrong)):
        name = str(compute).removeprefix("torch.")
        raise ValueError(
            f"slopes: expected numbers that {name} can hold, got {shown}; they are computed with in {name}"
        )
    raise ValueError(f"slopes: expected finite numbers, got {shown}")
