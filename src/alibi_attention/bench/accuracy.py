"""That contestants compute the same thing: their outputs against float64, on a few rows."""

from __future__ import annotations

import torch
from torch import Tensor

from alibi_attention.bench.inputs import Group

_ROWS = 8


def expected_rows(group: Group) -> tuple[Tensor, Tensor]:
    """Row numbers spread over the queries, and their outputs in float64, (heads, rows, head_dim)."""
    queries, keys = group.query.shape[2], group.key.shape[2]
    rows = torch.linspace(0, queries - 1, min(_ROWS, queries)).round().long()
    distance = (rows + keys - queries)[:, None] - torch.arange(keys)
    out = []
    with torch.no_grad():
        # Head by head: all keys in float64 at once can be more than the memory there is.
        for head, slope in enumerate(group.slopes.double()):
            query, key, value = (tensor[0, head].double() for tensor in (group.query, group.key, group.value))
            scores = query[rows] @ key.T * query.shape[-1] ** -0.5 - slope * distance
            weights = scores.masked_fill(distance < 0, -torch.inf).softmax(-1)
            out.append(weights @ value)
    return rows, torch.stack(out)


def error(out: Tensor, rows: Tensor, expected: Tensor) -> float:
    """Largest absolute difference of the output (1, heads, queries, head_dim) on those rows."""
    return float((out.detach()[0][:, rows].double() - expected).abs().max())
