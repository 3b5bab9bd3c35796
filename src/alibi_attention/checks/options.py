"""Flags, numbers and the window of a call."""

from __future__ import annotations

import torch

from alibi_attention.checks.values import is_integer, plain
from alibi_attention.problem import FURTHEST, UNBOUNDED

# Times log2(e) it is still a float.
_STEEPEST = 2e38


def check_flag(name: str, given: object) -> None:
    if not isinstance(given, bool) and not isinstance(plain(given), bool):
        raise ValueError(f"{name}: expected True or False, got {given!r}")


def check_options(is_causal: object, backend: object) -> None:
    check_flag("is_causal", is_causal)
    if backend is not None and not isinstance(backend, str):
        raise ValueError(f"backend: expected None or a name, got {backend!r}")


def check_scalars(scale: float, dropout_p: float, tolerance: float) -> None:
    for name, value in (("scale", scale), ("dropout_p", dropout_p), ("tolerance", tolerance)):
        if not isinstance(value, (int, float, torch.SymFloat, torch.SymInt)):
            raise ValueError(f"{name}: expected a number, got {value!r}; leave it out for the default")
    if not -_STEEPEST < scale < _STEEPEST:
        raise ValueError(
            f"scale: expected a number between -{_STEEPEST:g} and {_STEEPEST:g}, got {scale!r}; the default is "
            "1 / sqrt(head_dim)"
        )
    if not 0.0 <= dropout_p < 1.0:
        raise ValueError(f"dropout_p: expected a probability in [0, 1), got {dropout_p!r}; 0.0 drops nothing")
    if not 0.0 <= tolerance < 1.0:
        raise ValueError(
            f"tolerance: expected a share of softmax mass in [0, 1), got {tolerance!r}; "
            "None skips at rounding level, 0 computes every tile"
        )


def check_window(window: tuple[int | None, int | None] | None) -> tuple[int, int]:
    if window is None:
        return (UNBOUNDED, UNBOUNDED)
    proper = isinstance(window, (tuple, list)) and len(window) == 2
    if not proper or not all(side is None or (is_integer(side) and side >= 0) for side in map(plain, window)):
        raise ValueError(
            f"window: expected (left, right) in tokens, each at least 0 or None for unbounded, got {window!r}; "
            "(n, 0) is the n tokens before each and itself"
        )
    # Beyond any length, and far below where sums of positions would wrap around.
    left, right = (UNBOUNDED if side is None else min(side, FURTHEST) for side in map(plain, window))
    return (left, right)
