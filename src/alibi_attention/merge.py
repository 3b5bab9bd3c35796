"""Attention over parts of the keys, put together."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def merge_attention(outputs: Sequence[Tensor], lses: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Combine partial results over disjoint sets of keys into the result over all of them.

    ::

        lse = ln sum_n exp(lse_n)          out = sum_n exp(lse_n - lse) out_n

    Differentiable in outputs and lses. A row that no part has keys for (every lse -inf) gets output 0, lse -inf and
    zero gradients.

    Args:
        outputs: (batch, num_heads, q_len, value_dim) each.
        lses: (batch, num_heads, q_len) each, natural logarithms, as `alibi_attention(..., return_lse=True)` gives them.

    Returns:
        out in the dtype of the outputs, and lse in that of the lses.

    Raises:
        ValueError: for no parts, unequal counts, or shapes that differ.
    """
    if len(outputs) == 0 or len(outputs) != len(lses):
        raise ValueError(
            f"outputs: expected as many as lses and at least one, got {len(outputs)} outputs and {len(lses)} lses"
        )
    for name, parts, shape in (("outputs", outputs, outputs[0].shape), ("lses", lses, outputs[0].shape[:-1])):
        for number, part in enumerate(parts):
            if part.shape != shape:
                raise ValueError(f"{name}[{number}]: expected shape {tuple(shape)}, got {tuple(part.shape)}")
    stacked = torch.stack(tuple(lses))
    # The maximum only keeps exp in range: no gradient needs to pass through it, and none may at -inf.
    peak = stacked.detach().amax(0)
    peak = torch.where(peak == -torch.inf, 0.0, peak)
    masses = torch.exp(stacked - peak)
    mass = masses.sum(0)
    empty = mass == 0.0
    safe = mass.masked_fill(empty, 1.0)
    shares = masses / safe
    # In the wider of the two dtypes.
    out = (shares.unsqueeze(-1) * torch.stack(tuple(outputs))).sum(0)
    lse = torch.where(empty, -torch.inf, peak + torch.log(safe))
    return out.to(outputs[0].dtype), lse
