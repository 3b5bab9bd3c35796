"""How far back each head must be held, and which heads share a ring."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from alibi_attention.horizon.summary import _NORM_INFLATION

# A call of the operator is overhead: a few rings hold all heads, and one more must save a seventh of all memory.
_MOST_RINGS = 4
_WORTHWHILE = 0.85
# What a kernel's own test may be stricter by than the bound it tests, in nats: a bit, roundings, far positions.
SLACK_NATS = 4.0


def log_series(slopes: Tensor) -> Tensor:
    """-ln(1 - e^-m): the keys of a whole tail against its nearest; inf for slopes that do not fall."""
    return torch.where(slopes > 0, -torch.log(-torch.expm1(-slopes.clamp_min(1e-300))), torch.inf)


def nats_for_caps(query_norm: Tensor, key_norm: Tensor, center: Tensor, slopes: Tensor, scale: float) -> Tensor:
    """(num_heads,) what slope times distance must exceed before a key may go, but for the tolerance.

    With |k - center| <= R and rho = a |q|, evicted keys hold at most e^(rho R + C - m D) about the center, and a row
    has its own key, e^(-rho R) at least.

    Args:
        query_norm: (num_heads,) caps.
        key_norm: (num_heads,) caps of each query head's key head.
        center: (num_heads,) norms of the centers.
        slopes: (num_heads,).
        scale: factor on the dot products.
    """
    rho = abs(scale) * query_norm * _NORM_INFLATION
    reach = (key_norm + center) * _NORM_INFLATION
    return 2.0 * rho * reach * (1.0 + 1e-4) + log_series(slopes) + SLACK_NATS


def reach_of(nats: Tensor, slopes: Tensor, group: int) -> list[float]:
    """Tokens that each key head must be held for: those of the query head of its group that looks farthest."""
    tokens = torch.where(slopes > 0, nats.clamp_min(0.0) / slopes.clamp_min(1e-300), torch.inf)
    tokens = torch.where(tokens.isnan(), torch.inf, tokens)
    farthest: list[float] = tokens.unflatten(0, (-1, group)).amax(1).tolist()
    return [math.inf if tokens == math.inf else float(math.ceil(tokens)) for tokens in farthest]


def group_heads(reaches: list[float]) -> list[list[int]]:
    """Heads that share a ring, which reaches as far as its farthest: the fewest groups that do not waste much.

    Returns:
        Groups of head numbers, each ascending.
    """
    order = sorted(range(len(reaches)), key=lambda head: reaches[head])
    endless = [head for head in order if reaches[head] == math.inf]
    order = order[: len(order) - len(endless)]
    # A ring holds some twenty tiles whatever its reach.
    sizes = [max(reaches[head], 1024.0) + 512.0 for head in order]
    best, cuts = _partition(sizes, 1)
    for count in range(2, min(_MOST_RINGS, len(sizes)) + 1):
        total, finer = _partition(sizes, count)
        if total <= _WORTHWHILE * best:
            best, cuts = total, finer
    groups = [sorted(order[first:end]) for first, end in zip([0, *cuts], [*cuts, len(order)], strict=True)]
    return [group for group in [*groups, sorted(endless)] if group]


def _partition(sizes: list[float], count: int) -> tuple[float, list[int]]:
    """Least total of (largest size) x (number) over cuts of an ascending list into ``count`` runs, and the cuts."""
    if not sizes:
        return 0.0, []
    best: dict[tuple[int, int], tuple[float, list[int]]] = {
        (1, end): (end * sizes[end - 1], []) for end in range(1, len(sizes) + 1)
    }
    for runs in range(2, count + 1):
        for end in range(runs, len(sizes) + 1):
            options = (
                (best[runs - 1, cut][0] + (end - cut) * sizes[end - 1], [*best[runs - 1, cut][1], cut])
                for cut in range(runs - 1, end)
            )
            best[runs, end] = min(options, key=lambda option: option[0])
    return best[min(count, len(sizes)), len(sizes)]
