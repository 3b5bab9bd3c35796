"""The library's audit gives what torch gives, and what is not a number is not lost."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from alibi_attention.backends import native
from alibi_attention.backends.auditing import Verdict, audit
from alibi_attention.cache.audit import DOT_ROUNDING, ROUNDING_NATS, SCORE_ROUNDING, Rows
from alibi_attention.cache.auditor import Auditor

pytestmark = pytest.mark.skipif(isinstance(native.load(), str), reason="the compiled kernels are missing")

GONE, NEXT = 700, 900


class Setting:
    """A cache's books after 700 keys have gone, and rows that come later; ``dim`` numbers to a head."""

    def __init__(
        self, seed: int, *, batch: int = 1, heads: int = 4, group: int = 1, count: int = 1, dim: int = 24,
        dtype: torch.dtype = torch.float32, has_evicted: bool = True,
    ) -> None:  # fmt: skip
        generator = torch.Generator().manual_seed(seed)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator)

        kv_heads = heads // group
        # Heads beside each other in a token, as models bring them.
        self.query = (3.0 * normal(batch, count, heads, dim)).to(dtype).transpose(1, 2)
        self.lse, self.center = 2.0 * normal(batch, heads, count), normal(batch, kv_heads, dim)
        self.slopes = torch.linspace(0.5, 0.003, heads, dtype=torch.float64)
        radii = 2.0 + normal(batch, kv_heads, GONE).double().abs()
        self.longest, self.farther = self.center.double().norm(dim=-1) + radii.amax(2), radii.amax(2)
        self.scale, self.group, self.position = dim**-0.5, group, NEXT + 5
        self.least = self.position - 20.0 * torch.arange(heads, dtype=torch.float64)
        self.auditor = Auditor(batch, self.slopes, -16.0)
        self.auditor.largest += 4.0
        if has_evicted:
            self.auditor.begin(NEXT)
            self.auditor.take(torch.arange(heads), radii.repeat_interleave(group, 1), 0, None)
            self.auditor.close()

    def by_torch(self, auditor: Auditor) -> Tensor | None:
        spread = [each.repeat_interleave(self.group, 1) for each in (self.center, self.longest, self.farther)]
        rows = Rows(self.query, self.lse, self.scale * spread[0].unsqueeze(2), spread[1].unsqueeze(2), self.scale)
        auditor.observe(rows, spread[2].unsqueeze(2))
        return auditor.excess(rows, self.position, with_sink=True) if auditor.has_evicted else None

    def by_library(self, auditor: Auditor, *, limit: float = math.inf, learns: bool = True) -> Verdict | None:
        return audit(
            self.query, self.lse, self.center, self.longest, self.slopes, scale=self.scale,
            rounding=DOT_ROUNDING * self.query.shape[3] + SCORE_ROUNDING, slack=ROUNDING_NATS, position=self.position,
            learning=auditor.learning(self.farther) if learns else None, books=auditor.books(self.least, limit),
        )  # fmt: skip

    def copy_of_auditor(self) -> Auditor:
        copy = self.auditor.draft()
        copy.nats, copy.largest, copy.worst = (each.clone() for each in (copy.nats, copy.largest, copy.worst))
        return copy


@given(
    seed=st.integers(0, 9999),
    batch=st.sampled_from([1, 2]),
    heads=st.sampled_from([(1, 1), (4, 1), (6, 3), (12, 2), (5, 5)]),
    count=st.sampled_from([1, 2, 17, 70]),
    dim=st.sampled_from([1, 8, 16, 24, 64, 72, 128]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    has_evicted=st.booleans(),
)
def test_the_library_gives_what_torch_gives(
    seed: int, batch: int, heads: tuple[int, int], count: int, dim: int, dtype: torch.dtype, has_evicted: bool
) -> None:
    setting = Setting(
        seed, batch=batch, heads=heads[0], group=heads[1], count=count, dim=dim, dtype=dtype, has_evicted=has_evicted
    )
    one, other = setting.copy_of_auditor(), setting.copy_of_auditor()
    want, found = setting.by_torch(one), setting.by_library(other)
    torch.testing.assert_close(other.nats, one.nats, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(other.largest, one.largest, rtol=1e-6, atol=0.0)
    if want is None:
        assert found is None
        return
    assert found is not None
    torch.testing.assert_close(found.excess, want, rtol=1e-5, atol=1e-4)
    by_head = found.excess.amax((0, 2))
    assert found.worst == float(by_head.amax())
    coming = by_head + setting.slopes * (setting.position - setting.least)
    assert found.coming == pytest.approx(float(coming.amax()), rel=1e-12)
    assert torch.equal(other.worst, by_head)


def test_the_worst_is_entered_within_the_limit_alone_and_only_raised() -> None:
    setting = Setting(3, heads=4, count=9)
    auditor = setting.copy_of_auditor()
    found = setting.by_library(auditor)
    assert found is not None
    first = auditor.worst.clone()
    setting.lse += 1.0
    setting.by_library(auditor)
    assert torch.equal(auditor.worst, first)
    setting.lse -= 2.0
    above = setting.by_library(auditor, limit=found.worst)
    assert above is not None
    assert above.worst > found.worst
    assert torch.equal(auditor.worst, first)
    setting.by_library(auditor, limit=above.worst)
    torch.testing.assert_close(auditor.worst, first + 1.0)


def test_nothing_is_learned_unasked() -> None:
    setting = Setting(4)
    auditor = setting.copy_of_auditor()
    before = auditor.nats.clone(), auditor.largest.clone()
    assert setting.by_library(auditor, learns=False) is not None
    assert torch.equal(auditor.nats, before[0])
    assert torch.equal(auditor.largest, before[1])


@pytest.mark.parametrize("what", ["nan query", "infinite query", "huge query", "nan lse", "nothing seen", "inf gone"])
def test_what_is_not_a_number_is_not_passed_over(what: str) -> None:
    """The verdict is one that no limit allows, which is what has the long way look; and nothing of it is learned."""
    setting = Setting(5, heads=4, count=9, batch=2)
    auditor = setting.copy_of_auditor()
    expected = math.nan
    if what.endswith("query"):
        setting.query[1, 2, 4, 7] = {"nan": math.nan, "infinite": math.inf, "huge": 1e30}[what.split()[0]]
    elif what == "nan lse":
        setting.lse[1, 2, 4] = math.nan
    elif what == "nothing seen":
        setting.lse[1, 2, 4] = -math.inf
        expected = math.inf
    else:
        radii = torch.full((2, 4, 1), math.inf, dtype=torch.float64)
        auditor.take(torch.arange(4), radii, 800, None)
        auditor.close()
        expected = math.inf
    want = setting.by_torch(setting.copy_of_auditor() if what != "inf gone" else auditor.draft())
    found = setting.by_library(auditor)
    assert found is not None
    assert want is not None
    assert not found.worst < math.inf
    assert not found.coming < math.inf
    if not math.isnan(expected):
        assert found.worst == expected
    # The same rows are told apart, and the others keep their numbers.
    fine = want < math.inf
    assert torch.equal(fine, found.excess < math.inf)
    torch.testing.assert_close(found.excess[fine], want[fine], rtol=1e-5, atol=1e-4)
    assert bool(auditor.nats.isfinite().all())
    assert bool(auditor.largest.isfinite().all())


def test_a_head_that_has_lost_nothing_stands_at_minus_infinity() -> None:
    setting = Setting(6, has_evicted=False)
    auditor = setting.copy_of_auditor()
    auditor.begin(NEXT)
    auditor.take(torch.tensor([0, 2]), torch.ones(1, 2, 64, dtype=torch.float64), 0, None)
    auditor.close()
    found = setting.by_library(auditor)
    assert found is not None
    assert found.excess.flatten()[[1, 3]].tolist() == [-math.inf] * 2
    assert bool(found.excess.flatten()[[0, 2]].isfinite().all())
    assert math.isfinite(found.worst)
