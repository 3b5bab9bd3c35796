"""Guaranteed mode: norms are capped, so windows and the bound on what is dropped are known beforehand."""

from __future__ import annotations

import torch
from torch import Tensor

from alibi_attention.cache.options import Options, per_head
from alibi_attention.cache.sizes import nats_for_caps, reach_of
from alibi_attention.cache.store import Store

# Past the rounding of a norm: a vector scaled to its cap may come out above it.
_ROUNDING = 1e-3


class Caps:
    """Holds queries and keys to their caps.

    Args:
        options: of the cache.
        slopes: (num_heads,) float64.
        scale: factor on the dot products.
        log_tolerance: of the share of mass that may be dropped.
    """

    def __init__(self, options: Options, slopes: Tensor, scale: float, log_tolerance: float) -> None:
        self._options, self._slopes, self._scale, self._limit = options, slopes, scale, log_tolerance
        self._query_caps = per_head("query_norm", options.query_norm, slopes.shape[0], slopes.device)

    def check_queries(self, query: Tensor, padding: Tensor | None) -> None:
        """
        Args:
            query: (batch, num_heads, q_len, head_dim).
            padding: (batch, q_len) bool, rows that nobody looks at; None where there are none.

        Raises:
            ValueError: for a norm above its cap.
        """
        norms = torch.linalg.vector_norm(query, dim=-1, dtype=torch.float64)
        fits = norms <= (self._query_caps * (1.0 + _ROUNDING))[:, None]
        if padding is not None:
            fits = fits | padding.unsqueeze(1)
        if bool(fits.all()):
            return
        row, head, token = (~fits).nonzero()[0].tolist()
        raise ValueError(
            f"query: expected norms up to the cap query_norm, {float(self._query_caps[head]):.6g}, got "
            f"{float(norms[row, head, token]):.6g} in batch row {row}, head {head}; the windows of mode='guaranteed' "
            "follow from the caps: give true ones, or use mode='audited'"
        )

    def nats(self, store: Store) -> Tensor:
        """(num_heads,) slope times distance before a key may go, but for the tolerance."""
        heads = store.center.shape[1]
        group = self._slopes.shape[0] // heads
        keys = per_head("key_norm", self._options.key_norm, heads, self._slopes.device).repeat_interleave(group)
        center = store.center_norm.amax(0).repeat_interleave(group)
        return nats_for_caps(self._query_caps, keys, center, self._slopes, self._scale)

    def reaches(self, store: Store) -> list[float]:
        """Tokens before a query that each key head must hold."""
        group = self._slopes.shape[0] // store.center.shape[1]
        return reach_of(self.nats(store) - self._limit, self._slopes, group)

    def log_shares(self, store: Store) -> Tensor:
        """(num_heads,) bound on the log of the share that any row loses to keys evicted; -inf where none are."""
        group = self._slopes.shape[0] // store.center.shape[1]
        reach = self._slopes.new_full((store.center.shape[1],), torch.inf)
        for ring in store.rings:
            if ring.start > 0 and ring.reach is not None:
                reach[ring.heads] = float(ring.reach)
        distance = reach.repeat_interleave(group)
        bound = self.nats(store) - self._slopes * distance
        return torch.where(distance == torch.inf, -torch.inf, bound)


def check_keys(options: Options, key: Tensor, value: Tensor, key_mask: Tensor | None) -> None:
    """
    Raises:
        ValueError: for a key norm above its cap, or a value that is not finite.
    """
    caps = per_head("key_norm", options.key_norm, key.shape[1], key.device)
    norms = torch.linalg.vector_norm(key, dim=-1, dtype=torch.float64)
    is_finite = value.isfinite().all(-1)
    fits = (norms <= caps[:, None] * (1.0 + _ROUNDING)) & is_finite
    if key_mask is not None:
        fits = fits | ~key_mask.unsqueeze(1)
    if bool(fits.all()):
        return
    row, head, token = (~fits).nonzero()[0].tolist()
    if not bool(is_finite[row, head, token]):
        raise ValueError(
            f"value: expected finite numbers in mode='guaranteed', got others in batch row {row}, head {head}; "
            "a value that is not finite matters at any distance and could never be evicted"
        )
    raise ValueError(
        f"key: expected norms up to the cap key_norm, {float(caps[head]):.6g}, got "
        f"{float(norms[row, head, token]):.6g} in batch row {row}, head {head}; the windows of mode='guaranteed' "
        "follow from the caps: give true ones, or use mode='audited'"
    )
