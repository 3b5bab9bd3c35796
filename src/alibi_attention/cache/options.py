"""What a `HorizonCache` is asked for, checked."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from alibi_attention.checks.values import is_number

Many = float | Sequence[float] | Tensor
MODES = ("audited", "guaranteed")
REACTIONS = ("raise", "warn", "refetch")
DEFAULT_HEADROOM = 8.0


class Options(NamedTuple):
    """As `HorizonCache` documents; numbers that may differ by head as lists of one or of all heads."""

    mode: str
    query_norm: tuple[float, ...]
    key_norm: tuple[float, ...]
    window: tuple[float, ...]
    headroom: float
    tolerance: float | None
    on_violation: str


def make_options(
    mode: str,
    query_norm: Many | None,
    key_norm: Many | None,
    window: Many | None,
    headroom: float | None,
    tolerance: float | None,
    on_violation: str,
    has_backing: bool,
) -> Options:
    if mode not in MODES:
        raise ValueError(f"mode: expected 'audited' or 'guaranteed', got {mode!r}")
    if on_violation not in REACTIONS:
        raise ValueError(f"on_violation: expected 'raise', 'warn' or 'refetch', got {on_violation!r}")
    if on_violation == "refetch" and not has_backing:
        raise ValueError(
            "backing: expected with on_violation='refetch', got None; what was evicted can only be read again from a "
            "full cache: give a KVCache, or 'cpu' for one in host memory"
        )
    caps = (query_norm, key_norm)
    if mode == "guaranteed" and None in [None if cap is None else 0 for cap in caps]:
        raise ValueError(
            "query_norm, key_norm: expected both with mode='guaranteed', the largest norms that queries and keys can "
            "have, such as sqrt(head_dim) times the gain of a QK norm; mode='audited' needs none"
        )
    if mode == "audited" and any(cap is not None for cap in caps):
        raise ValueError("query_norm, key_norm: expected with mode='guaranteed' only, got them with mode='audited'")
    if mode == "guaranteed" and (window is not None or on_violation != "raise" or has_backing):
        raise ValueError(
            "window, on_violation, backing: expected with mode='audited' only; the caps give the windows, and a norm "
            "above its cap is refused"
        )
    if headroom is not None and (mode == "guaranteed" or window is not None):
        given = "mode='guaranteed'" if mode == "guaranteed" else "window"
        raise ValueError(
            f"headroom: expected for windows found by themselves in mode='audited', got it with {given}; nothing would "
            "be widened by it: leave it out"
        )
    if tolerance is not None and not (is_number(tolerance) and 0.0 < tolerance < 1.0):
        raise ValueError(
            f"tolerance: expected a share of softmax mass between 0 and 1, got {tolerance!r}; with none allowed "
            "nothing can be forgotten: use KVCache"
        )
    headroom = DEFAULT_HEADROOM if headroom is None else headroom
    if not (is_number(headroom) and 0.0 <= headroom < math.inf):
        raise ValueError(f"headroom: expected nats, a finite number of at least 0, got {headroom!r}")
    return Options(
        mode, _numbers("query_norm", query_norm), _numbers("key_norm", key_norm), _numbers("window", window),
        float(headroom), tolerance, on_violation,
    )  # fmt: skip


def _numbers(name: str, given: Many | None) -> tuple[float, ...]:
    if given is None:
        return ()
    try:
        values = torch.as_tensor(given, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError):
        values = torch.empty(0)
    if values.dim() > 1 or values.numel() == 0 or not bool(((values > 0) & values.isfinite()).all()):
        raise ValueError(f"{name}: expected a positive number, or one for each head, got {given!r}")
    return tuple(values.reshape(-1).tolist())


def per_head(name: str, numbers: tuple[float, ...], heads: int, device: torch.device) -> Tensor:
    """(heads,) float64.

    Raises:
        ValueError: for as many numbers as there are no heads.
    """
    if len(numbers) not in (1, heads):
        raise ValueError(f"{name}: expected one number or {heads}, one for each head, got {len(numbers)}")
    return torch.tensor(numbers, dtype=torch.float64, device=device).expand(heads)
