"""That contestants' gradients are those of ALiBi: some rows of each, against plain torch in float32."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from alibi_attention.bench.gpu.agreement import most_off

_LOOKED_AT = 8
# Rows of scores held at once, for one head: with 128K keys 512 MiB.
_CHUNK = 1024


@dataclass(frozen=True)
class ExpectedGradients:
    """Of the first batch element, (heads, places, head_dim): of the query at ``rows``, of key and value at ``keys``."""

    rows: Tensor
    keys: Tensor
    query: Tensor
    key: Tensor
    value: Tensor

    def error(self, found: Sequence[Tensor]) -> float:
        """The most that the gradient of a query, a key or a value is off, as a part of its length."""
        places, expected = (self.rows, self.keys, self.keys), (self.query, self.key, self.value)
        off = [
            most_off(grad.detach()[0][:, at], right) for grad, at, right in zip(found, places, expected, strict=True)
        ]
        # NaN, which `max` would pass over, is no agreement.
        return max(off) if not any(map(math.isnan, off)) else math.nan


def expected_gradients(query: Tensor, key: Tensor, value: Tensor, slopes: Tensor, grad: Tensor) -> ExpectedGradients:
    """Gradients where ``grad`` is that of the output, causal, the queries at the end of the keys.

    With p the weights of a row and o = p v, that of a score is p (grad . v - grad . o).
    """
    queries, number, dim, device = query.shape[2], key.shape[2], query.shape[3], query.device
    scale, before = dim**-0.5, number - queries
    rows = torch.linspace(0, queries - 1, min(_LOOKED_AT, queries)).round().long().to(device)
    keys = torch.linspace(0, number - 1, min(_LOOKED_AT, number)).round().long().to(device)
    of_query = torch.zeros(len(slopes), len(rows), dim, device=device)
    of_key, of_value = (torch.zeros(len(slopes), len(keys), t.shape[3], device=device) for t in (key, value))
    with torch.no_grad():
        for first in range(0, queries, _CHUNK):
            last = min(first + _CHUNK, queries)
            at = torch.arange(first + before, last + before, device=device)
            distance = (at[:, None] - torch.arange(last + before, device=device)).float()
            distance.masked_fill_(distance < 0, torch.inf)
            here, seen = (rows >= first) & (rows < last), keys < last + before
            for head, slope in enumerate(slopes.tolist()):
                row, flow = (t[0, head, first:last].float() for t in (query, grad))
                held, worth = (t[0, head, : last + before].float() for t in (key, value))
                weights = torch.addmm(distance, row, held.T, beta=-slope, alpha=scale).softmax(-1)
                mean = (flow * (weights @ worth)).sum(-1, keepdim=True)
                picked = weights[:, keys[seen]]
                of_value[head, seen] += picked.T @ flow
                of_key[head, seen] += (picked * (flow @ worth[keys[seen]].T - mean)).T @ row * scale
                own = rows[here] - first
                of_query[head, here] = weights[own] * (flow[own] @ worth.T - mean[own]) @ held * scale
    return ExpectedGradients(rows, keys, of_query, of_key, of_value)
