"""Audited mode: every row is held against what was evicted, and what was seen decides what is kept."""

from __future__ import annotations

import math
import warnings
from typing import Any

import torch
from torch import Tensor

from alibi_attention.backends.appending import readable
from alibi_attention.backends.auditing import Verdict, audit
from alibi_attention.cache.audit import DOT_ROUNDING, ROUNDING_NATS, SCORE_ROUNDING, Rows
from alibi_attention.cache.auditor import Auditor
from alibi_attention.cache.common import Drafted, level_of_caller
from alibi_attention.cache.kv import KVCache
from alibi_attention.cache.options import Options, per_head
from alibi_attention.cache.proof import HorizonViolation, HorizonWarning
from alibi_attention.cache.sizes import reach_of
from alibi_attention.cache.store import Store
from alibi_attention.checks.options import check_window
from alibi_attention.eager import is_ordinary, nothing_listens
from alibi_attention.horizon.tiles import BLOCK_K
from alibi_attention.merge import merge_attention
from alibi_attention.problem import UNBOUNDED


class Audit(Drafted):
    """Judges each call of attention.

    Args:
        options: of the cache.
        store: what is held.
        slopes: (num_heads,) float64.
        scale: factor on the dot products.
        log_tolerance: of the share of mass that evicted keys may hold.
        backing: the full cache to refetch from.
    """

    def __init__(
        self, options: Options, store: Store, slopes: Tensor, scale: float, log_tolerance: float,
        backing: KVCache | None,
    ) -> None:  # fmt: skip
        self.auditor = Auditor(store.center.shape[0], slopes, log_tolerance)
        self.excess: Tensor | None = None  # of the last call
        self.violations = self.refetches = self.sink_reads = 0
        self._options, self._store, self._backing = options, store, backing
        self._slopes, self._scale, self._limit = slopes, scale, log_tolerance
        self._group = slopes.shape[0] // store.center.shape[1]
        self._center = self._query_center(store)
        self._held: tuple[tuple[int, int | None], ...] = ()
        # By query head, as `_follow_rings` finds them.
        self._least = self._evicted = torch.zeros_like(slopes)
        per_head("window", options.window or (1.0,), store.center.shape[1], slopes.device)

    def _query_center(self, store: Store) -> Tensor:
        """(batch, num_heads, 1, head_dim): the center each query head's keys are taken about, times the scale."""
        return (store.center * self._scale).repeat_interleave(self._group, 1).unsqueeze(2)

    def _by_query_head(self, per_key_head: Tensor) -> Tensor:
        spread = per_key_head if self._group == 1 else per_key_head.repeat_interleave(self._group, 1)
        return spread.unsqueeze(2)

    def reaches(self, store: Store) -> list[float]:
        """Tokens before a query that each key head shall hold."""
        if self._options.window:
            heads = store.center.shape[1]
            tokens = per_head("window", self._options.window, heads, self._slopes.device)
            steep = self._slopes.unflatten(0, (heads, self._group)).amin(1) > 0
            return [math.ceil(each) if falls else math.inf for each, falls in zip(tokens.tolist(), steep, strict=True)]
        return reach_of(self.auditor.needed(self._options.headroom), self._slopes, self._group)

    def judge(
        self, query: Tensor, slopes: Tensor, out: Tensor, lse: Tensor, tolerance: float | None, **call: Any
    ) -> tuple[Tensor, Tensor]:
        """Output and lse to answer with, from those over what the rings hold.

        ``tolerance`` is of attention, for an answer from the full cache.

        Raises:
            HorizonViolation: where evicted keys may matter and the cache was asked to raise.
        """
        store = self._store
        position = store.length - query.shape[2]
        self.excess = None
        # Where windows were given too: the audit's grid of norms is made from the largest seen.
        learns = any(ring.start == 0 for ring in store.rings)
        shortly = check_window(call["window"])[0] == UNBOUNDED and self._is_readable(query, lse)
        if shortly:
            verdict = self._verdict_shortly(query, lse, position, learns)
        else:
            verdict = self._verdict(query, lse, position, learns, call["window"])
        if verdict is None:
            return out, lse
        self.excess = verdict.excess
        if not verdict.worst <= self._limit:
            return self._look_closer(query, slopes, out, lse, tolerance, **call)
        self.auditor.checked += verdict.excess.numel()
        if verdict.coming > self._limit - self._options.headroom / 2:
            self._widen(self._at_worst(verdict.excess.amax((0, 2)), position))
        return out, lse

    def _verdict(
        self, query: Tensor, lse: Tensor, position: int, learns: bool, window: tuple[int | None, int | None] | None
    ) -> Verdict | None:
        """On the rows of a call, whose `worst` by head is entered if all is well; None before anything was evicted."""
        rows, auditor = self._rows(query, lse), self.auditor
        if learns:
            auditor.observe(rows, self._by_query_head(self._store.farther))
        if not auditor.has_evicted:
            return None
        excess = self._excess(rows, position, window, with_sink=True)
        by_head = excess.amax((0, 2))
        worst, coming = torch.stack([by_head.amax(), self._at_worst(by_head, position).amax()]).tolist()
        if worst <= self._limit:
            torch.maximum(auditor.worst, by_head, out=auditor.worst)
        return Verdict(worst, coming, excess)

    def _is_readable(self, query: Tensor, lse: Tensor) -> bool:
        """Whether the compiled library can give the verdict."""
        return (
            is_ordinary(query)
            and is_ordinary(lse)
            and lse.is_contiguous()
            and nothing_listens()
            and readable(query, query, self._store.center)
        )

    def _verdict_shortly(self, query: Tensor, lse: Tensor, position: int, learns: bool) -> Verdict | None:
        """The same in one call, without a window: of the last bits alone it may be of another opinion."""
        store, auditor = self._store, self.auditor
        self._follow_rings()
        return audit(
            query, lse, store.center, store.longest, self._slopes, scale=self._scale,
            rounding=DOT_ROUNDING * query.shape[3] + SCORE_ROUNDING, slack=ROUNDING_NATS, position=position,
            learning=auditor.learning(store.farther) if learns else None,
            books=auditor.books(self._least, self._limit),
        )  # fmt: skip

    def _rows(self, query: Tensor, lse: Tensor) -> Rows:
        return Rows(query, lse, self._center, self._by_query_head(self._store.longest), self._scale)

    def _excess(
        self, rows: Rows, position: int, window: tuple[int | None, int | None] | None, *, with_sink: bool
    ) -> Tensor:
        """As the auditor finds it; -inf for rows that see nothing of what is gone through the window of the call."""
        excess = self.auditor.excess(rows, position, with_sink=with_sink)
        self._follow_rings()
        left = check_window(window)[0]
        if left == UNBOUNDED:
            return excess
        first_seen = torch.arange(position - left, self._store.length - left, device=excess.device)
        return excess.masked_fill(first_seen >= self._evicted.unsqueeze(1), -torch.inf)

    def _look_closer(
        self, query: Tensor, slopes: Tensor, out: Tensor, lse: Tensor, tolerance: float | None, **call: Any
    ) -> tuple[Tensor, Tensor]:
        """The first tile is read where it may matter; what is then left over the tolerance is a violation."""
        position = self._store.length - query.shape[2]
        first = self._store.attend_sinks(query, slopes, position, **call)
        if first is not None:
            out, lse = merge_attention((out, first[0]), (lse, first[1]))
            self.sink_reads += 1
        rows = self._rows(query, lse)
        excess = self._excess(rows, position, call["window"], with_sink=first is None)
        # Where the result is no number, neither is the dense one; and padding sees nothing.
        exempt = lse.isnan()
        padding = self._store.is_padding(position, self._store.length)
        if padding is not None:
            exempt = exempt | padding.unsqueeze(1)
        excess = excess.masked_fill(exempt, -torch.inf)
        excess = excess.masked_fill(excess.isnan(), torch.inf)
        self.excess = excess
        by_head = excess.amax((0, 2))
        self.auditor.record(by_head, excess.numel())
        self._widen(self._at_worst(by_head, position))
        over = excess > self._limit
        if not bool(over.any()):
            return out, lse
        self.violations += int(over.sum())
        return self._react(excess, query, slopes, out, lse, tolerance, **call)

    def _react(
        self,
        excess: Tensor,
        query: Tensor,
        slopes: Tensor,
        out: Tensor,
        lse: Tensor,
        tolerance: float | None,
        **call: Any,
    ) -> tuple[Tensor, Tensor]:
        if self._options.on_violation == "refetch":
            assert self._backing is not None
            self.refetches += 1
            home = self._backing.key.device
            if home != out.device:
                # The backend named was meant for another device, and may not run on this.
                call["backend"] = None
            full, full_lse = self._backing.attend(
                query.to(home), slopes.to(home), return_lse=True, tolerance=tolerance, **call
            )
            return full.to(out.device), full_lse.to(lse.device)
        worst = int(excess.argmax())
        row, head, token = (int(i) for i in torch.unravel_index(torch.tensor(worst), excess.shape))
        nats = float(excess.flatten()[worst])
        share = f"{math.exp(nats):.3g} times the softmax mass kept" if nats < 100 else "any share of the softmax mass"
        complaint = (
            f"evicted keys may hold up to {share}, tolerance "
            f"{math.exp(self._limit):.3g}, for the token at {self._store.length - query.shape[2] + token:,} "
            f"(batch row {row}, head {head}; {int((excess > self._limit).sum())} rows of this call)"
        )
        if self._options.on_violation == "warn":
            warnings.warn(f"HorizonCache: {complaint}", HorizonWarning, stacklevel=level_of_caller())
            return out, lse
        raise HorizonViolation(
            f"HorizonCache: {complaint}; keep more with window= or headroom=, loosen tolerance=, or keep a full cache "
            "beside this one with on_violation='refetch', backing='cpu'"
        )

    def _at_worst(self, by_head: Tensor, position: int) -> Tensor:
        """What the excess would be just after an eviction: rings hold up to 512 tokens more than they must."""
        # A head that has lost nothing stands at -inf whatever is added.
        return by_head + self._slopes * (position - self._least)

    def _follow_rings(self) -> None:
        """What each head has evicted, and the first position at which it would have to hold no more than it does."""
        held = tuple((ring.start, ring.reach) for ring in self._store.rings)
        if held == self._held:
            return
        least = torch.zeros(len(self._slopes) // self._group, dtype=torch.float64, device=self._slopes.device)
        evicted = torch.zeros_like(least)
        for ring in self._store.rings:
            evicted[ring.heads] = float(ring.evicted)
            if ring.start > 0 and ring.reach is not None:
                least[ring.heads] = float(ring.start + BLOCK_K + ring.reach)
        self._least, self._evicted = (each.repeat_interleave(self._group) for each in (least, evicted))
        self._held = held

    def _widen(self, by_head: Tensor) -> None:
        """Where half of the headroom is used up, keep as much more, from now on, as restores it."""
        if self._options.window or not self._options.headroom:
            return
        missing = by_head - (self._limit - self._options.headroom)
        tokens = torch.where(missing > self._options.headroom / 2, missing / self._slopes, 0.0)
        for ring in self._store.rings:
            heads = [head * self._group + member for head in ring.heads for member in range(self._group)]
            most = float(tokens[heads].amax())
            if ring.start > 0 and ring.reach is not None and 0.0 < most < math.inf:
                ring.reach += math.ceil(most)

    def reorder(self, index: Tensor, store: Store) -> None:
        """Make row b of the batch what row index[b] was; for drafts. ``store`` is one that has done so."""
        self.auditor = self.auditor.draft()
        self.auditor.reorder(index)
        if self.excess is not None:
            self.excess = self.excess.index_select(0, index)
        self._center = self._query_center(store)
