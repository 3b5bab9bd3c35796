"""The books of a cache in audited mode: what was seen, what was evicted, and how each row stands against it."""

from __future__ import annotations

import torch
from torch import Tensor

from alibi_attention.backends.auditing import Books, Learning
from alibi_attention.cache.audit import Mass, Rows, make_grid
from alibi_attention.cache.common import Drafted, lasting
from alibi_attention.cache.sizes import SLACK_NATS, log_series


class Auditor(Drafted):
    """Judges rows of attention against everything evicted so far.

    Args:
        batch: sequences.
        slopes: (num_heads,) float64.
        log_tolerance: of the share of mass that may be dropped.
    """

    def __init__(self, batch: int, slopes: Tensor, log_tolerance: float) -> None:
        self.batch, self.slopes, self.limit = batch, slopes, log_tolerance
        heads = slopes.shape[0]
        # What rows so far have asked for: the largest norm, and slope times distance before a key could go.
        with lasting():
            self.largest = slopes.new_zeros(heads)
            self.nats = slopes.new_full((heads,), -torch.inf)
            self.worst = slopes.new_full((heads,), -torch.inf)
        self.checked = 0
        self.place = 0
        self._series = log_series(slopes)[:, None]
        self._steep = slopes[:, None]
        self._rest: Mass | None = None
        self._sink: Mass | None = None
        self._rest_lines: tuple[Tensor, Tensor] | None = None
        self._all_lines: tuple[Tensor, Tensor] | None = None

    @property
    def has_evicted(self) -> bool:
        return self._rest is not None

    def observe(self, rows: Rows, farther: Tensor) -> None:
        """Learn from rows what windows to keep; ``farther`` (batch, num_heads, 1) is the largest radius so far."""
        nats = rows.rho * farther + self._series - rows.floor
        for held, new in ((self.nats, nats), (self.largest, rows.rho)):
            most = new.masked_fill(~new.isfinite(), -torch.inf).amax((0, 2))
            torch.maximum(held, most, out=held)

    def needed(self, headroom: float) -> Tensor:
        """(num_heads,) slope times distance at which rows like those seen lose nothing that counts."""
        return self.nats - self.limit + SLACK_NATS + headroom

    def begin(self, position: int) -> None:
        """Keys are about to go that queries from ``position`` on shall not miss."""
        if self._rest is None or self._sink is None:
            grid = make_grid(self.largest)
            self._rest, self._sink = Mass(self.batch, grid), Mass(self.batch, grid)
        else:
            lag = position - self.place
            self._rest, self._sink = self._rest.faded(self.slopes, lag), self._sink.faded(self.slopes, lag)
        self.place = position

    def take(self, heads: Tensor, radii: Tensor, first: int, in_sink: Tensor | None) -> None:
        """Enter evicted keys.

        Args:
            heads: (h,) query heads.
            radii: (batch, h, keys) float64.
            first: position of the first of the keys.
            in_sink: (batch, keys) bool, those of the tiles kept apart; None where none of them are.
        """
        assert self._rest is not None
        assert self._sink is not None
        keys = radii.shape[2]
        ages = self.place - torch.arange(first, first + keys, device=radii.device, dtype=torch.float64)
        slopes = self.slopes[heads]
        rest = radii
        if in_sink is not None:
            apart = in_sink.unsqueeze(1)
            self._sink.add(heads, radii.masked_fill(~apart, -torch.inf), slopes, ages)
            rest = radii.masked_fill(apart, -torch.inf)
        self._rest.add(heads, rest, slopes, ages)

    def close(self) -> None:
        """All keys of this eviction are entered."""
        assert self._rest is not None
        assert self._sink is not None
        self._rest_lines = self._rest.lines()
        both = Mass(self.batch, self._rest.grid)
        both.held = torch.logaddexp(self._rest.held, self._sink.held)
        both.radius = torch.maximum(self._rest.radius, self._sink.radius)
        self._all_lines = both.lines()

    def excess(self, rows: Rows, position: int, *, with_sink: bool) -> Tensor:
        """(batch, num_heads, q_len): log of the share that rows from ``position`` on may have lost."""
        lines = self._all_lines if with_sink else self._rest_lines
        assert lines is not None
        lag = position - self.place
        count = rows.rho.shape[2]
        faded = (
            self._steep * lag
            if count == 1
            else self._steep * torch.arange(lag, lag + count, device=self._steep.device, dtype=torch.float64)
        )
        return rows.excess(lines, faded)

    def learning(self, farther: Tensor) -> Learning:
        """What `observe` learns into."""
        return Learning(farther, self._series, self.nats, self.largest)

    def books(self, least: Tensor, limit: float) -> Books | None:
        """What `excess` with the sink goes by; None before anything was evicted."""
        if self._all_lines is None:
            return None
        return Books(*self._all_lines, self.place, least, limit, self.worst)

    def record(self, by_head: Tensor, rows: int) -> None:
        """Enter the outcome of a call, (num_heads,) logs of shares."""
        self.checked += rows
        torch.maximum(self.worst, by_head, out=self.worst)

    def reorder(self, index: Tensor) -> None:
        """Make row b of the batch what row index[b] was; for drafts."""
        self.batch = index.shape[0]
        if self._rest is not None and self._sink is not None:
            self._rest, self._sink = self._rest.reordered(index), self._sink.reordered(index)
            self.close()
