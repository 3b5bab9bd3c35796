"""Absolute positions as sines and cosines, added to the embeddings."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from alibi_attention.lab.positions.base import PositionMethod


def sinusoids(seq_len: int, width: int, *, start: int = 0, device: torch.device | None = None) -> Tensor:
    """The table of waves, continued to any length, from position ``start`` on.

    ::

        p[t, 2i]     = sin(t / 10000 ** (2i / width))
        p[t, 2i + 1] = cos(t / 10000 ** (2i / width))

    Returns:
        (seq_len, width) float32. Angles are formed in float64: at t = 10^4 float32 would be off by a thousandth.

    Source: Vaswani et al., "Attention Is All You Need", 2017, section 3.5.
    """
    rates = torch.exp(torch.arange(0, width, 2, dtype=torch.float64, device=device) * (-math.log(1e4) / width))
    angles = torch.arange(start, start + seq_len, dtype=torch.float64, device=device).unsqueeze(-1) * rates
    return torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(-2).float()


class Sinusoidal(PositionMethod):
    """Waves of fixed wavelengths are added to the scaled embeddings; attention itself knows nothing of order.

    ::

        x' = sqrt(width) * x + p

    The decoder multiplies. The factor is the original's (section 3.4) and matters: without it the waves, of amplitude
    1, drown embeddings that start small, or, made as small as these, are soon drowned by what the embeddings grow to.
    Either learns far worse.
    """

    name = "sinusoidal"
    title = "sinusoidal"
    scales_embeddings = True

    def embed(self, x: Tensor, start: int = 0) -> Tensor:
        return x + sinusoids(x.shape[1], self.shape.width, start=start, device=x.device)
