"""One call of the operator, described once."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

UNBOUNDED = -1
FURTHEST = 1 << 40
SUPPORTED_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


class Problem(NamedTuple):
    """What is to be computed, apart from the values of query, key, value and slopes.

    Lengths are in tokens. ``window`` holds UNBOUNDED where a side is open; ``query_offset`` is an int or a (batch,)
    tensor; ``seed`` is a scalar int64 tensor wherever ``dropout_p`` is above zero; ``key_center`` and ``key_norms`` are
    the summary of the keys (`horizon.summary`) where a cache has kept one. (A tuple, because a frozen dataclass
    takes four microseconds to make.)
    """

    batch: int
    num_heads: int
    num_kv_heads: int
    q_len: int
    k_len: int
    head_dim: int
    value_dim: int
    dtype: torch.dtype
    device: torch.device
    is_causal: bool
    scale: float
    query_offset: int | Tensor
    key_mask: Tensor | None
    cu_seqlens: Tensor | None
    cu_seqlens_k: Tensor | None
    window: tuple[int, int]
    dropout_p: float
    seed: Tensor | None
    tolerance: float
    learned_slopes: bool
    key_center: Tensor | None = None
    key_norms: Tensor | None = None

    @property
    def group_size(self) -> int:
        """Query heads that share one key and value head."""
        return self.num_heads // self.num_kv_heads

    @property
    def compute_dtype(self) -> torch.dtype:
        """The dtype scores, sums and lse are held in."""
        return compute_dtype(self.dtype)

    @property
    def is_packed(self) -> bool:
        return self.cu_seqlens is not None


class Saved(NamedTuple):
    """What backward needs of the call: its inputs, its results and the plan of tiles forward ran."""

    query: Tensor
    key: Tensor
    value: Tensor
    slopes: Tensor
    out: Tensor
    lse: Tensor
    plan: Tensor


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def default_tolerance(dtype: torch.dtype) -> float:
    """Rounding level: the largest share of softmax mass that may be skipped without showing in the result."""
    return 2.0**-53 if dtype == torch.float64 else 2.0**-24
