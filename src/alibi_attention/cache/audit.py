"""What was evicted, kept as a bound on the softmax mass it would still hold.

For a query q at position p and the evicted keys j, with r_j = |k_j - center|, rho = a |q| and a the scale, about the
center (docs/maths.md)::

    log of the evicted mass  <=  A(rho) - m (p - P)         A(rho) = ln sum_j exp(rho r_j - m (P - j))

A is convex in rho, so between the points of a grid its chord bounds it from above, and beyond the last point a line
with the slope of the largest radius does. The bound is the maximum of those lines: one product, one maximum a step.
"""

from __future__ import annotations

import torch
from torch import Tensor

from alibi_attention.cache.common import Drafted, lasting
from alibi_attention.horizon.summary import _NORM_FLOOR, _NORM_INFLATION

# Norms at which the mass is accumulated, in multiples of the largest seen when the first key was evicted.
GRID = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 3.0)
# What the sums of the test itself may round by, in nats, and what products of float32 may, by element.
ROUNDING_NATS = 0.02
DOT_ROUNDING = 1.2e-7
# What scores may round by for their size: their bias, their sum, the logarithm of the mass.
SCORE_ROUNDING = 1e-6
# Keys whose terms exist at once.
_CHUNK = 512


class Mass(Drafted):
    """Logarithms of the mass that keys no longer held would have, at each norm of the grid.

    Attributes:
        held: (batch, num_heads, grid) float64, about the center, for a query at position `place`.
        radius: (batch, num_heads) float64, the largest radius among them; -inf where there is none.
    """

    def __init__(self, batch: int, grid: Tensor) -> None:
        self.grid = grid
        with lasting():
            self.held = grid.new_full((batch, *grid.shape), -torch.inf)
            self.radius = grid.new_full((batch, grid.shape[0]), -torch.inf)

    def faded(self, slopes: Tensor, steps: int) -> Mass:
        """The same masses for a query ``steps`` tokens further on."""
        other = self.draft()
        with lasting():
            other.held, other.radius = self.held - (slopes * steps).unsqueeze(-1), self.radius.clone()
        return other

    def add(self, heads: Tensor, radii: Tensor, slopes: Tensor, ages: Tensor) -> None:
        """Take in keys.

        Args:
            heads: (h,) query heads.
            radii: (batch, h, keys) float64; -inf for keys that do not count, inf for those that are not finite.
            slopes: (h,) float64.
            ages: (keys,) float64, how far before the query they are.
        """
        for first in range(0, radii.shape[2], _CHUNK):
            part = radii[:, :, None, first : first + _CHUNK]
            terms = self.grid[heads].unsqueeze(-1) * part.clamp(-1e300, 1e300)
            terms -= slopes[:, None, None] * ages[first : first + _CHUNK]
            # At norm 0 too a key that does not count has no mass, and one that is not finite any.
            terms = torch.where(part.isinf(), part, terms)
            self.held[:, heads] = torch.logaddexp(self.held[:, heads], torch.logsumexp(terms, dim=-1))
        self.radius[:, heads] = torch.maximum(self.radius[:, heads], radii.amax(-1))

    def lines(self) -> tuple[Tensor, Tensor]:
        """Intercepts and slopes, (batch, num_heads, 1, grid), of lines in rho whose maximum bounds the mass."""
        low, high = self.held[..., :-1], self.held[..., 1:]
        rise = (high - low) / (self.grid[..., 1:] - self.grid[..., :-1])
        rise = torch.cat([rise, self.radius.unsqueeze(-1)], -1)
        at = self.held - rise * self.grid
        empty = self.held.isinf() | rise.isinf()
        at = torch.where(empty, self.held, at)
        return at.unsqueeze(2), torch.where(empty, 0.0, rise).unsqueeze(2)

    def reordered(self, index: Tensor) -> Mass:
        other = self.draft()
        with lasting():
            other.held, other.radius = self.held.index_select(0, index), self.radius.index_select(0, index)
        return other


def make_grid(norms: Tensor) -> Tensor:
    """(num_heads, grid) float64 from the largest norm of each head."""
    unit = torch.where((norms > 0) & norms.isfinite(), norms, 1.0)
    return unit.unsqueeze(-1) * torch.tensor(GRID, dtype=torch.float64, device=norms.device)


class Rows:
    """Queries as the audit sees them, all (batch, num_heads, q_len) float64.

    Attributes:
        rho: |scale| times the norm, never below the true one.
        floor: the mass kept, from below: lse less scale * q . center, less rounding.
    """

    def __init__(self, query: Tensor, lse: Tensor, center: Tensor, reach: Tensor, scale: float) -> None:
        """
        Args:
            query: (batch, num_heads, q_len, head_dim).
            lse: (batch, num_heads, q_len) over what is held.
            center: (batch, num_heads, 1, head_dim), the center of each query head's key head, times the scale.
            reach: (batch, num_heads, 1) float64, no key is longer, center included.
            scale: factor on the dot products.
        """
        norm = torch.linalg.vector_norm(query, dim=-1, dtype=center.dtype)
        self.rho = torch.mul(norm, abs(scale) * _NORM_INFLATION, out=torch.empty_like(norm, dtype=torch.float64))
        self.rho += _NORM_FLOOR
        shift = torch.linalg.vecdot(query.to(center.dtype), center)
        rounding = DOT_ROUNDING * query.shape[-1] + SCORE_ROUNDING
        self.floor = torch.addcmul(lse.double() - shift, self.rho, reach, value=-rounding) - ROUNDING_NATS

    def excess(self, lines: tuple[Tensor, Tensor], faded: Tensor) -> Tensor:
        """Log of (bound on the mass of what the lines stand for) / (mass kept); NaN where either is not a number.

        ``faded`` is slope times how far each row is past the place of the masses.
        """
        at, rise = lines
        return torch.addcmul(at, self.rho.unsqueeze(-1), rise).amax(-1) - faded - self.floor
