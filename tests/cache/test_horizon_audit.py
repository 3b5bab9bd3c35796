"""The bound on what was evicted is above the truth, and whatever exceeds the tolerance is heard of."""

from __future__ import annotations

import importlib
import math
import sys
import warnings
from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from streams import Stream, stream, true_shares
from torch import Tensor

from alibi_attention import HorizonCache, HorizonViolation, HorizonWarning, KVCache, alibi_attention
from alibi_attention.cache import common
from alibi_attention.cache.audit import Mass, make_grid
from alibi_attention.cache.sizes import group_heads

STEEP = torch.tensor([0.5, 0.3, 0.2, 0.1])


def feed(cache: HorizonCache, whole: Stream, *sizes: int, slopes: Tensor = STEEP) -> Tensor:
    for part in whole.parts(*sizes):
        cache.append(part.key, part.value)
        out: Tensor = cache.attend(part.query, slopes)
    return out


def aligned(length: int, kv_heads: int) -> Stream:
    """Every key and every query on one line, of one length but for the first 200 keys: the bound is then all but met.

    Those 200 have a mean, which becomes the center, and lie about it; what comes after lies as far out as the farthest.
    """
    direction = torch.nn.functional.normalize(torch.randn(16), dim=0)
    head = torch.arange(float(kv_heads))[:, None]
    center, radius = 3.0 + head, 2.0 + 0.5 * head
    along = (center + radius).repeat(1, length)
    along[:, :200] = center + radius * torch.tensor([1.0, -1.0]).repeat(100)
    key = (along[:, :, None] * direction)[None]
    query = (4.0 * direction).repeat(1, 4, length, 1)
    return Stream(query, key, torch.randn(1, kv_heads, length, 16))


@pytest.mark.parametrize("reads_sink", [True, False])
@pytest.mark.parametrize(
    "kind", ["normal", "growing", "outliers", "common mean", "wide queries", "last keys small", "aligned"]
)
@settings(max_examples=4)
@given(
    kv_heads=st.sampled_from([1, 2, 4]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    seed=st.integers(0, 999),
)
def test_the_bound_is_above_what_was_dropped(
    kind: str, reads_sink: bool, kv_heads: int, dtype: torch.dtype, seed: int
) -> None:
    """Windows far too small on purpose; with slopes so flat that the first tile is always asked for, and with others.

    Keys go twice, so that what went first fades before more is entered.
    """
    torch.manual_seed(seed)
    length = 2300
    whole = stream(length, kv_heads=kv_heads, mean=3.0 if kind == "common mean" else 0.0)
    if kind == "aligned":
        whole = aligned(length, kv_heads)
    query, key, value = (t.to(dtype) for t in whole)
    if kind == "growing":
        key *= torch.linspace(4.0, 0.1, length)[:, None]
    elif kind == "outliers":
        key[:, :, ::97] *= 12.0
    elif kind == "wide queries":
        query *= 1.0 + 5.0 * torch.rand(length, 1)
    elif kind == "last keys small":
        key[:, :, 1600:] *= 0.01
    if reads_sink:
        slopes, options = torch.tensor([0.02, 0.005, 0.01, 0.03]), {}
    else:
        slopes, options = torch.tensor([0.04, 0.02, 0.03, 0.05]), {"tolerance": 0.01}
    cache = HorizonCache(window=100, on_violation="warn", **options)
    judged, merged_rows, evictions = 0, 0, set()
    largest = 0.0
    for part in Stream(query, key, value).parts(200, 1, 1):
        cache.append(part.key, part.value)
        before = cache.certificate().sink_reads
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", HorizonWarning)
            cache.attend(part.query, slopes)
        certificate = cache.certificate()
        gone = certificate.evicted
        if not bool((gone > 0).any()):
            continue
        evictions.add(tuple(gone.tolist()))
        end, count = cache.length, part.query.shape[2]
        # The first tile is kept apart. Where this call has read it, what it holds was not dropped.
        merged = 64 if certificate.sink_reads > before else 0
        true = true_shares(part.query, key[:, :, :end], slopes, gone, end - count, merged=merged)
        bound = cache.dropped_shares()[0]
        assert bound.shape == true.shape
        assert bool((bound >= true).all())
        judged += count
        merged_rows += count if merged else 0
        largest = max(largest, float(bound.amax()))
        margin = float((bound / true).log().amax())
        if kind == "normal":
            # Not to be met by a bound that says nothing: Cauchy-Schwarz costs norm times norm, some ten nats here.
            assert margin < 40.0
        elif kind == "aligned":
            # Here it costs what the first 200 keys do, which lie to both sides.
            assert margin < 1.0
    assert judged > 600
    assert len(evictions) == 2
    if reads_sink:
        assert merged_rows == judged
        assert certificate.violations > 0
    elif kind in ("normal", "aligned"):
        assert merged_rows == 0
    assert certificate.dropped_share == pytest.approx(largest, rel=1e-12)


def _shrinking(length: int = 3000) -> Stream:
    """Old keys that a late, long query finds in the end: it lies along one of them."""
    whole = stream(length)
    query = whole.query.clone()
    query[:, :, -1] = 400.0 * whole.key[:, :, 1500] / whole.key[:, :, 1500].norm(dim=-1, keepdim=True)
    return Stream(query, whole.key, whole.value)


def test_a_violation_raises() -> None:
    whole = _shrinking()
    cache = HorizonCache()
    before, last = (Stream(*(t[:, :, part] for t in whole)) for part in (slice(0, 2999), slice(2999, 3000)))
    feed(cache, before, 300, 1)
    assert cache.certificate().violations == 0
    cache.append(last.key, last.value)
    with pytest.raises(
        HorizonViolation,
        match=r"evicted keys may hold up to any share of the softmax mass, tolerance 5.96e-08, for the token at 2,999 "
        r"\(batch row 0, head \d; \d rows of this call\); keep more with window= or headroom=, loosen tolerance=, or",
    ):
        cache.attend(last.query, STEEP)
    certificate = cache.certificate()
    assert certificate.violations > 0
    assert certificate.dropped_share > certificate.tolerance
    # Nothing is lost by it: the next row is judged by itself.
    cache.append(last.key, last.value)
    cache.attend(before.query[:, :, -1:], STEEP)


def test_a_violation_warns_every_time() -> None:
    whole = _shrinking()
    cache = HorizonCache(on_violation="warn")
    feed(cache, Stream(*(t[:, :, :-1] for t in whole)), 300)
    for count in (1, 2):
        cache.append(whole.key[:, :, -1:], whole.value[:, :, -1:])
        with pytest.warns(HorizonWarning, match="HorizonCache: evicted keys may hold up to"):
            cache.attend(whole.query[:, :, -1:], STEEP)
        assert cache.certificate().violations >= count


@pytest.mark.parametrize("with_compiler", [False, True])
def test_a_warning_points_at_the_line_that_attends(with_compiler: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many frames are between: a compiler that is loaded adds some of torch's."""
    loaded = {"torch._dynamo": importlib.import_module("torch._dynamo")} if with_compiler else {}
    monkeypatch.setattr(common, "sys", SimpleNamespace(modules=loaded, _getframe=sys._getframe))
    whole = _shrinking()
    cache = HorizonCache(on_violation="warn")
    feed(cache, Stream(*(t[:, :, :-1] for t in whole)), 300)
    cache.append(whole.key[:, :, -1:], whole.value[:, :, -1:])
    line = sys._getframe().f_lineno + 2
    with pytest.warns(HorizonWarning) as caught:
        cache.attend(whole.query[:, :, -1:], STEEP)
    assert [(each.filename, each.lineno) for each in caught] == [(__file__, line)]


@pytest.mark.parametrize("own", [False, True])
def test_a_violation_is_answered_from_the_full_cache(own: bool) -> None:
    whole = _shrinking()
    cache = HorizonCache(on_violation="refetch", backing=KVCache() if own else "cpu")
    out = feed(cache, whole, 299, 1)
    assert cache.certificate().refetches == 1
    want = alibi_attention(*(t.double() for t in whole), STEEP, tolerance=0.0)[:, :, -out.shape[2] :]
    torch.testing.assert_close(out.double(), want, rtol=1e-4, atol=1e-5)
    cache.reorder(torch.tensor([0, 0]))
    cache.append(*(t[:, :, -1:].repeat(2, 1, 1, 1) for t in whole[1:]))
    again = cache.attend(whole.query[:, :, -1:].repeat(2, 1, 1, 1), STEEP)
    assert cache.certificate().refetches == 2
    torch.testing.assert_close(again[0], again[1])
    cache.reset()
    assert cache.length == 0
    cache.append(whole.key[:, :, :3], whole.value[:, :, :3])


class Recording(KVCache):
    """A full cache that keeps what it was asked, and where asked says that it is elsewhere."""

    def __init__(self, device: str) -> None:
        super().__init__()
        self.home, self.asked = device, {}  # type: ignore[var-annotated]

    @property
    def key(self) -> Tensor:
        return super().key.to(self.home)

    def attend(self, query: Tensor, *_: object, **call: object) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        self.asked = {"device": query.device.type, **call}
        return torch.zeros(query.shape), torch.zeros(query.shape[:3])


@pytest.mark.parametrize(("device", "backend"), [("cpu", "blocked"), ("meta", None)])
def test_the_full_cache_is_asked_what_the_call_asked(device: str, backend: str | None) -> None:
    """Elsewhere another backend may be needed than the one named, here it may not."""
    whole = _shrinking()
    backing = Recording(device)
    cache = HorizonCache(on_violation="refetch", backing=backing)
    feed(cache, Stream(*(t[:, :, :-1] for t in whole)), 300)
    cache.append(whole.key[:, :, -1:], whole.value[:, :, -1:])
    call = {"scale": 0.25, "window": (2500, 0), "tolerance": 0.0}
    cache.attend(whole.query[:, :, -1:], STEEP, backend="blocked", **call)  # type: ignore[call-overload]
    assert backing.asked == {"device": device, "backend": backend, "return_lse": True, **call}


@pytest.mark.parametrize("change", [lambda full: full.crop(90), lambda full: full.reset()])
def test_a_full_cache_that_others_changed_is_refused(change: Callable[[KVCache], None]) -> None:
    """It would answer for other tokens; and the cache is left as it was."""
    whole = stream(100)
    backing = KVCache()
    cache = HorizonCache(on_violation="refetch", backing=backing)
    feed(cache, whole, 100)
    change(backing)
    length = backing.length
    for call in (
        lambda: cache.append(whole.key, whole.value),
        lambda: cache.attend(whole.query, STEEP),
        lambda: cache.crop(50),
        lambda: cache.reorder(torch.tensor([0, 0])),
    ):
        with pytest.raises(ValueError, match=rf"^backing: expected 100 tokens, as this cache has seen, got {length}; "):
            call()
    assert cache.length == 100
    assert backing.length == length
    if length:
        backing.append(whole.key[:, :, 90:], whole.value[:, :, 90:])
        cache.attend(whole.query, STEEP)
    cache.reset()
    feed(cache, whole, 100)


FLAT = torch.tensor([0.004, 0.005, 0.006, 0.008])


@pytest.mark.parametrize(("kv_heads", "padding"), [(4, 0), (2, 0), (2, 700)])
def test_what_the_window_of_a_call_does_not_see_is_no_loss(kv_heads: int, padding: int) -> None:
    """Slopes so flat that whatever is evicted matters; the second half of the heads holds much more."""
    whole = stream(4000, batch=2, kv_heads=kv_heads)
    mask = torch.ones(2, 4000, dtype=torch.bool)
    mask[1, :padding] = False
    half = kv_heads // 2
    cache = HorizonCache(window=[100.0] * half + [2200.0] * half)
    at = 0
    for part in whole.parts(150, 1):
        end = at + part.key.shape[2]
        cache.append(part.key, part.value, key_mask=mask[:, at:end] if padding else None)
        out = cache.attend(part.query, FLAT, window=(90, 0))
        at = end
    count = part.query.shape[2]
    want = alibi_attention(whole.query, whole.key, whole.value, FLAT, window=(90, 0), key_mask=mask, is_causal=True)
    torch.testing.assert_close(out, want[:, :, -count:])
    certificate = cache.certificate()
    assert bool((certificate.evicted > 0).all())
    assert certificate.checked > 0
    assert certificate.violations == certificate.sink_reads == certificate.dropped_share == 0
    assert bool((cache.dropped_shares() == 0).all())
    # Each row of a call by its own place, each head by what it has evicted: a window to the last key that is left of
    # the flatter half sees for all rows but the last what is gone, and nothing that is gone of the other half.
    newest = cache.length - 1
    left = newest - int(certificate.evicted[0])
    assert count > 1
    with pytest.raises(HorizonViolation):
        cache.attend(part.query, FLAT, window=(left, None))
    shares = cache.dropped_shares()
    assert bool((shares[:, :2, :-1] > 1e-6).all())
    assert bool((shares[:, :2, -1] == 0).all())
    assert bool((shares[:, 2:] == 0).all())
    assert cache.certificate().violations == 2 * 2 * (count - 1)
    # One row further back, and with no window at all, there is more to lose.
    with pytest.raises(HorizonViolation):
        cache.attend(part.query[:, :, -1:], FLAT, window=(left + 1, None))
    assert cache.certificate().violations == 2 * 2 * count
    with pytest.raises(HorizonViolation):
        cache.attend(part.query, FLAT)
    assert bool((cache.dropped_shares() > 0).all())


@pytest.mark.parametrize("where", ["value", "key"])
def test_what_is_not_finite_is_never_forgotten_in_silence(where: str) -> None:
    whole = stream(2600)
    getattr(whole, where)[0, 2, 900, 3] = math.inf
    cache = HorizonCache()
    with pytest.raises(HorizonViolation, match=r"may hold up to any share of the softmax mass, .* head 2;"):
        feed(cache, whole, 100)
    # A row that is no number itself loses nothing.
    whole = stream(2600)
    whole.query[0, 1, 2500] = math.nan
    out = feed(HorizonCache(), whole, 100)
    assert bool(out[0, 1, 0].isnan().all())
    assert bool(out[0, 1, 1:].isfinite().all())


def test_a_sink_is_read_as_long_as_it_matters() -> None:
    """The first key is long, and all queries lean towards it; the others of its tile are as any other."""
    torch.manual_seed(1)
    whole = stream(8000)
    query, key, value = whole
    direction = torch.nn.functional.normalize(torch.randn(1, 4, 1, 16), dim=-1)
    query += 4.0 * direction
    key[:, :, :1] = 130.0 * direction
    key[:, :, 1:] -= 0.5 * direction
    # Looked at from 2000 tokens on, the sink of the third head has about as much mass as all near keys.
    slopes = torch.tensor([0.3, 0.2, 0.06, 0.09])
    full, cache = KVCache(), HorizonCache()
    reads = []
    for part in Stream(query, key, value).parts(250, 1):
        for each in (full, cache):
            each.append(part.key, part.value)
        want, want_lse = full.attend(part.query, slopes, return_lse=True)
        out, lse = cache.attend(part.query, slopes, return_lse=True)
        torch.testing.assert_close(out, want, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(lse, want_lse, rtol=1e-5, atol=1e-5)
        reads.append(cache.certificate().sink_reads)
    certificate = cache.certificate()
    assert certificate.violations == 0
    assert bool((certificate.evicted > 64).all())
    # Needed for a while, and then no more.
    assert reads[-1] == reads[-6] > 3


def test_windows_widen_before_they_are_too_small() -> None:
    torch.manual_seed(2)
    slopes = torch.tensor([0.5, 0.3, 0.2, 0.03])
    whole = stream(9000)
    # From 4000 on, when every window is full.
    whole.query.mul_(torch.linspace(-3.1, 5.0, 9000).clamp_min(0.5)[:, None])
    early, late = (Stream(*(t[:, :, part] for t in whole)) for part in (slice(0, 4000), slice(4000, 9000)))
    cache = HorizonCache()
    feed(cache, early, 50, slopes=slopes)
    window = int(cache.certificate().windows[3])
    assert int(cache.certificate().evicted[3]) > 0
    out = feed(cache, late, 50, slopes=slopes)
    assert cache.certificate().violations == 0
    assert int(cache.certificate().windows[3]) > window + 512
    want = alibi_attention(*(t.double() for t in whole), slopes)[:, :, -50:]
    torch.testing.assert_close(out.double(), want, rtol=1e-4, atol=1e-5)
    # The window of the beginning would not have done.
    with pytest.raises(HorizonViolation):
        feed(HorizonCache(window=[100, 100, 100, window - 1024]), whole, 50, slopes=slopes)


def test_windows_that_are_given_are_audited_as_tightly_as_those_found() -> None:
    """The bound depends on scores alone: not on whether queries are long and keys short, or the reverse."""
    shares, slopes = [], torch.tensor([0.005, 0.01, 0.02, 0.03])
    for factor in (1.0, 64.0):
        torch.manual_seed(5)
        cache = HorizonCache(window=1500, on_violation="warn")
        for part in stream(4000, spread=3.0).parts(400):
            cache.append(part.key / factor, part.value)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", HorizonWarning)
                cache.attend(part.query * factor, slopes)
        shares.append(cache.certificate().by_head)
    assert (shares[0] > 0).all()
    torch.testing.assert_close(shares[0], shares[1], rtol=1e-6, atol=0.0)


@pytest.mark.parametrize("size", [100, 128, 300])
def test_windows_not_full_yet_follow_what_is_seen_whatever_the_chunks(size: int) -> None:
    """Norms that grow while the flattest head's window fills: a window of the first rows would be too small."""
    torch.manual_seed(0)
    slopes = torch.tensor([0.5, 1 / 64])
    whole = stream(8000, heads=2, kv_heads=2)
    whole.query.mul_(torch.linspace(0.2, 27.0, 8000).clamp_max(10.0)[:, None])
    cache = HorizonCache()
    out = feed(cache, whole, size, slopes=slopes)
    assert cache.certificate().violations == 0
    assert int(cache.certificate().evicted[1]) > 0
    want = alibi_attention(*(t.double() for t in whole), slopes)[:, :, -out.shape[2] :]
    torch.testing.assert_close(out.double(), want, rtol=1e-4, atol=1e-5)


@settings(max_examples=20)
@given(seed=st.integers(0, 999), kv_heads=st.sampled_from([1, 2]))
def test_caps_guarantee_it_against_the_worst(seed: int, kv_heads: int) -> None:
    """Old keys at their cap along the query, near keys at their cap against it."""
    torch.manual_seed(seed)
    length, cap_q, cap_k = 2500, 5.0, 3.0
    slopes = torch.tensor([0.4, 0.3])
    direction = torch.nn.functional.normalize(torch.randn(1, kv_heads, 1, 16, dtype=torch.float64), dim=-1)
    cache = HorizonCache("guaranteed", query_norm=cap_q, key_norm=[cap_k] * kv_heads)
    key = (cap_k * direction).expand(1, kv_heads, length, 16).clone()
    value = torch.randn(1, kv_heads, length, 16, dtype=torch.float64)
    query = (cap_q * direction).repeat_interleave(2 // kv_heads, 1)
    for start in range(0, length - 100, 100):
        at = slice(start, start + 100)
        cache.append(key[:, :, at], value[:, :, at])
        cache.attend(query.expand(-1, -1, 100, -1), slopes)
    evicted = cache.certificate().evicted
    assert bool((evicted > 0).all())
    # Everything the cache still holds turns against the query.
    for head in range(kv_heads):
        key[:, head, int(evicted[head]) :] *= -1.0
    at = length - 101
    true = true_shares(query, key[:, :, : at + 1], slopes, evicted, at)[:, 0]
    bound = cache.dropped_shares()
    assert bool((true <= bound).all())
    assert float(bound.amax()) <= 2.0**-53
    certificate = cache.certificate()
    assert certificate.mode == "guaranteed"
    assert certificate.dropped_share == float(bound.amax())
    assert certificate.checked == certificate.violations == 0


def test_norms_above_their_caps_are_refused() -> None:
    whole = stream(10)
    cache = HorizonCache("guaranteed", query_norm=20.0, key_norm=[20.0, 20.0, 1.0, 20.0])
    with pytest.raises(
        ValueError, match=r"key: expected norms up to the cap key_norm, 1, got \d.* batch row 0, head 2"
    ):
        cache.append(whole.key, whole.value)
    assert cache.length == 0
    cache = HorizonCache("guaranteed", query_norm=20.0, key_norm=20.0)
    cache.append(whole.key, whole.value)
    with pytest.raises(
        ValueError, match=r"query: expected norms up to the cap query_norm, 20, got \d{3}.* or use mode='a"
    ):
        cache.attend(100 * whole.query, STEEP)
    spoilt = whole.value.clone()
    spoilt[0, 1, 3] = math.nan
    with pytest.raises(
        ValueError, match="value: expected finite numbers in mode='guaranteed', got others in batch row 0"
    ):
        cache.append(whole.key, spoilt)
    with pytest.raises(ValueError, match="key_norm: expected one number or 4, one for each head, got 2"):
        HorizonCache("guaranteed", query_norm=1.0, key_norm=[1.0, 2.0]).append(whole.key, whole.value)


@pytest.mark.parametrize("noise", [math.nan, 1e4])
def test_rows_of_padding_are_held_against_no_cap(noise: float) -> None:
    whole = stream(20, batch=2)
    mask = torch.ones(2, 20, dtype=torch.bool)
    mask[1, :7] = False
    query = whole.query.masked_fill(~mask[:, None, :, None], noise)
    cache = HorizonCache("guaranteed", query_norm=20.0, key_norm=20.0)
    cache.append(whole.key[:, :, :10], whole.value[:, :, :10], key_mask=mask[:, :10])
    cache.attend(query[:, :, :10], STEEP)
    cache.append(whole.key[:, :, 10:], whole.value[:, :, 10:])
    out = cache.attend(query[:, :, 5:], STEEP)
    want = alibi_attention(*whole, STEEP, key_mask=mask, is_causal=True)[:, :, 5:]
    torch.testing.assert_close(out[0], want[0])
    torch.testing.assert_close(out[1, :, 2:], want[1, :, 2:])
    for row, token in ((1, 7), (0, 6)):
        spoilt = query.clone()
        spoilt[row, 2, token] = noise
        with pytest.raises(ValueError, match=rf"^query: expected norms up to the cap .* in batch row {row}, head 2"):
            cache.attend(spoilt[:, :, 5:], STEEP)


@given(seed=st.integers(0, 999))
def test_lines_bound_the_mass_at_any_norm(seed: int) -> None:
    torch.manual_seed(seed)
    slopes = torch.tensor([0.1, 0.02], dtype=torch.float64)
    mass = Mass(1, make_grid(torch.tensor([2.0, 5.0], dtype=torch.float64)))
    radii = 4.0 * torch.rand(1, 2, 300, dtype=torch.float64)
    place = 0
    for first in range(0, 300, 100):
        mass = mass.faded(slopes, first + 150 - place)
        place = first + 150
        ages = place - torch.arange(first, first + 100, dtype=torch.float64)
        mass.add(torch.tensor([0, 1]), radii[:, :, first : first + 100], slopes, ages)
    at, rise = mass.lines()
    for rho in (0.0, 0.3, 1.9, 5.0, 11.0, 60.0):
        distance = place - torch.arange(300, dtype=torch.float64)
        true = (rho * radii[0] - slopes[:, None] * distance).logsumexp(-1)
        bound = (at + rho * rise).amax(-1)[0, :, 0]
        assert bool((bound >= true - 1e-9).all())
        # The chord of a convex function over a quarter of the usual norm loses little.
        assert rho > 5.0 or float((bound - true).amax()) < 1.0


def test_heads_are_grouped_by_how_far_they_reach() -> None:
    geometric = [40.0 * 2**head for head in range(1, 9)]
    assert group_heads(geometric) == [[0, 1, 2, 3, 4], [5, 6], [7]]
    assert group_heads([100.0] * 6) == [[0, 1, 2, 3, 4, 5]]
    assert group_heads([9000.0, 100.0, 9000.0, 200.0]) == [[1, 3], [0, 2]]
    assert group_heads([math.inf, 100.0]) == [[1], [0]]
    assert group_heads([math.inf, math.inf]) == [[0, 1]]
