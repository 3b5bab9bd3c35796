"""What a cache that forgets can say for itself, and how it speaks up."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


class HorizonViolation(RuntimeError):  # noqa: N818
    """A query met evicted keys that may hold more of its softmax mass than the tolerance allows."""


class HorizonWarning(UserWarning):
    """Issued in place of `HorizonViolation` by a `HorizonCache` with on_violation="warn"."""


@dataclass(frozen=True)
class HorizonCertificate:
    """What a `HorizonCache` has forgotten, and the proof that it did not matter.

    The statement: in every row attended to so far, the keys that had been evicted by then would have held at most
    ``dropped_share`` of the mass its softmax has over the keys kept. It holds for one layer's attention on these
    inputs. It says nothing about the error of a model.

    Attributes:
        mode: "audited", where each row was checked when it was attended to, or "guaranteed", where norms are capped and
            the bound is known beforehand.
        tolerance: the share that is allowed.
        length: tokens seen, padding included.
        windows: (num_kv_heads,) int64, the last tokens, which are held.
        evicted: (num_kv_heads,) int64, tokens forgotten, all that the bound stands for; length less windows. The first
            64 tokens are among them, where sinks live, which are kept apart and read while they may matter.
        bytes_held: memory of keys, values and their summary now, as `HorizonCache.bytes_held`.
        dropped_share: the largest bound of any row so far; in guaranteed mode the bound on any row ever.
        by_head: (num_heads,) float64, the same by query head.
        checked: rows (queries of one head) checked against evicted keys.
        violations: of them, those over the tolerance.
        refetches: calls answered from the full cache instead.
        sink_reads: calls in which the first tile, kept apart, was read.
    """

    mode: str
    tolerance: float
    length: int
    windows: Tensor
    evicted: Tensor
    bytes_held: int
    dropped_share: float
    by_head: Tensor
    checked: int
    violations: int
    refetches: int
    sink_reads: int

    def __str__(self) -> str:
        lines = [
            f"{self.mode}, {self.length:,} tokens, {self.bytes_held:,} bytes held; share of mass dropped at most "
            f"{self.dropped_share:.3g} of {self.tolerance:.3g} allowed",
            f"rows checked {self.checked:,}, violations {self.violations:,}, refetches {self.refetches:,}, reads of "
            f"the first tile {self.sink_reads:,}",
            f"{'kv head':>7}  {'held':>9}  {'evicted':>13}  {'dropped at most':>15}",
        ]
        group = max(1, len(self.by_head) // max(1, len(self.windows)))
        for head, (held, gone) in enumerate(zip(self.windows.tolist(), self.evicted.tolist(), strict=True)):
            worst = max(self.by_head[head * group : (head + 1) * group].tolist(), default=0.0)
            lines.append(f"{head:>7}  {held:>9,}  {gone:>13,}  {worst:>15.3g}")
        return "\n".join(lines)
