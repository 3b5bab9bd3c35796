"""The short way of a cache's steps gives what the long one gives, and is taken where it may be."""

from __future__ import annotations

import copy
import io
import math
import pickle
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.profiler import profile
from torch.utils._python_dispatch import TorchDispatchMode

from alibi_attention import HorizonCache, HorizonViolation, KVCache, alibi_attention, alibi_slopes
from alibi_attention.backends import native
from alibi_attention.backends.appending import PreparedAppend
from alibi_attention.backends.prepared import PreparedStep
from alibi_attention.cache.audited import Audit
from alibi_attention.cache.steps import Steps
from alibi_attention.cache.store import Store
from alibi_attention.horizon.tiles import BLOCK_K

pytestmark = pytest.mark.skipif(isinstance(native.load(), str), reason="the compiled kernels are missing")

TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 8e-3, torch.float16: 1e-3}


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The short ways that were gone, in order."""
    found: list[str] = []
    for kind, name, word in ((PreparedAppend, "run", "append"), (PreparedStep, "_hold", "attend")):
        whole: Callable[..., Any] = getattr(kind, name)

        def noted(self: Any, *rest: Any, whole: Callable[..., Any] = whole, word: str = word) -> Any:
            found.append(word)
            return whole(self, *rest)

        monkeypatch.setattr(kind, name, noted)
    return found


def tokens(count: int, dims: tuple[int, int] = (40, 24), *, seed: int, heads: int = 2, batch: int = 2,
           dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Keys and values as models bring them: heads beside each other in a token."""
    generator = torch.Generator().manual_seed(seed)
    key, value = (torch.randn(batch, count, heads, dim, generator=generator).to(dtype).transpose(1, 2) for dim in dims)
    return key, value


def queries(count: int, *, seed: int, heads: int = 4, batch: int = 2, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(batch, heads, count, 40, generator=torch.Generator().manual_seed(seed)).to(dtype)


def without_short_way() -> KVCache:
    cache = KVCache()
    cache._short_way = lambda: None  # type: ignore[method-assign]
    return cache


def filled(count: int = 100) -> KVCache:
    cache = KVCache()
    cache.append(*tokens(count, seed=0))
    return cache


def expect_whole(cache: KVCache, query: Tensor) -> None:
    """The cache answers as the operator over what it holds, and its summary covers every key."""
    slopes = alibi_slopes(4)
    want = alibi_attention(query, cache.key.clone(), cache.value.clone(), slopes, tolerance=0.0)
    for tolerance in (None, 0.0):
        for _ in range(3):
            out = cache.attend(query, slopes, tolerance=tolerance)
            torch.testing.assert_close(out, want, atol=TOLERANCE[out.dtype], rtol=0.0)
    assert cache._norms is not None
    assert cache._center is not None
    far = (cache.key.double() - cache._center.double().unsqueeze(2)).norm(dim=-1)
    far = torch.where(cache.value.isfinite().all(-1) & far.isfinite(), far, torch.inf)
    short = -cache.length % BLOCK_K
    most = torch.nn.functional.pad(far, (0, short), value=-torch.inf).unflatten(2, (-1, BLOCK_K)).amax(3)
    kept = cache._norms[..., : most.shape[2]]
    assert (kept >= most).all()
    assert (kept <= most * 1.002 + 1e-9).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_steps_go_the_short_way_and_come_out_the_same(dtype: torch.dtype, taken: list[str]) -> None:
    short, long = KVCache(), without_short_way()
    slopes = alibi_slopes(4)
    for cache in (short, long):
        cache.append(*tokens(250, seed=1, dtype=dtype))
    for step in range(20):
        new, query = tokens(1, seed=2 + step, dtype=dtype), queries(1, seed=100 + step, dtype=dtype)
        for cache in (short, long):
            cache.append(*new)
        # Past 256 the buffers grow, which is no step of the short way.
        out, lse = short.attend(query, slopes, return_lse=True)
        want, want_lse = long.attend(query, slopes, return_lse=True)
        torch.testing.assert_close(out, want, atol=TOLERANCE[dtype], rtol=0.0)
        torch.testing.assert_close(lse, want_lse, atol=1e-5, rtol=0.0)
        torch.testing.assert_close(short.attend(query, slopes), want, atol=TOLERANCE[dtype], rtol=0.0)
    assert torch.equal(short.key, long.key)
    assert torch.equal(short.value, long.value)
    # Caches that hold the same know the same, to the last bit.
    assert short._norms is not None
    assert long._norms is not None
    assert torch.equal(short._norms, long._norms)
    assert taken.count("append") == 19
    # Twice the shape was met for the first time: at the beginning and after the buffers grew.
    assert taken.count("attend") == 2 * 20 - 2
    expect_whole(short, query)


def test_drafts_of_several_tokens_and_any_layout(taken: list[str]) -> None:
    cache = filled(70)
    for count in (1, 3, 5, 3, 5, 1, 64, 3):
        key, value = tokens(count, seed=count)
        cache.append(key.contiguous() if count % 2 else key, value)
        expect_whole(cache, queries(count, seed=7))
    assert taken.count("append") == 8
    # A last dimension that is not contiguous goes the long way.
    key, value = tokens(2, (40, 40), seed=9)
    before = len(taken)
    other = KVCache()
    other.append(*tokens(9, (40, 40), seed=8))
    other.append(key.transpose(2, 3).contiguous().transpose(2, 3), value)
    assert torch.equal(other.key[:, :, 9:], key)
    assert len(taken) == before


@pytest.mark.parametrize("spoilt", ["key", "value"])
@pytest.mark.parametrize("what", [math.nan, math.inf, -math.inf])
def test_a_key_that_is_not_finite_is_never_passed_over(spoilt: str, what: float, taken: list[str]) -> None:
    cache = filled()
    new = dict(zip(("key", "value"), tokens(1, seed=3), strict=True))
    new[spoilt] = new[spoilt].clone()
    new[spoilt][0, 1, 0, 7] = what
    cache.append(**new)
    assert taken == ["append"]
    assert cache._norms is not None
    assert cache._norms[0, 1, 1] == math.inf
    assert cache._norms[0, 0, 1] < math.inf
    assert cache._norms[1, 1, 1] < math.inf


def test_crops_reorders_growth_and_resets(taken: list[str]) -> None:
    cache = filled()
    for number in range(3):
        cache.append(*tokens(1, seed=number))
        expect_whole(cache, queries(1, seed=number))
    cache.crop(60)
    cache.append(*tokens(1, seed=11))
    expect_whole(cache, queries(1, seed=5))
    cache.reorder(torch.tensor([1, 0, 1]))
    for number in range(2):
        cache.append(*tokens(1, seed=20 + number, batch=3))
        expect_whole(cache, queries(1, seed=6, batch=3))
    for number in range(400):
        cache.append(*tokens(1, seed=number, batch=3))
    assert cache.length == 463
    expect_whole(cache, queries(1, seed=6, batch=3))
    cache.reset()
    cache.append(*tokens(5, seed=1))
    cache.append(*tokens(1, seed=2))
    expect_whole(cache, queries(1, seed=7))
    assert "append" in taken


@pytest.mark.parametrize("way", ["deepcopy", "pickle", "save"])
def test_a_copy_has_steps_of_its_own(way: str) -> None:
    cache = filled()
    cache.append(*tokens(1, seed=1))
    expect_whole(cache, queries(1, seed=1))
    if way == "deepcopy":
        other = copy.deepcopy(cache)
    elif way == "pickle":
        other = pickle.loads(pickle.dumps(cache))
    else:
        buffer = io.BytesIO()
        torch.save(cache, buffer)
        buffer.seek(0)
        other = torch.load(buffer, weights_only=False)
    before = cache.key.clone(), cache.value.clone()
    other.append(*tokens(1, seed=2))
    expect_whole(other, queries(1, seed=2))
    assert torch.equal(cache.key, before[0])
    assert torch.equal(cache.value, before[1])
    assert cache.length + 1 == other.length
    cache.append(*tokens(1, seed=3))
    expect_whole(cache, queries(1, seed=2))
    assert not torch.equal(cache.key[:, :, -1], other.key[:, :, -1])


def test_padding_goes_the_long_way(taken: list[str]) -> None:
    cache = KVCache()
    mask = torch.ones(2, 9, dtype=torch.bool)
    mask[0, :4] = False
    cache.append(*tokens(9, seed=0), key_mask=mask)
    for _ in range(3):
        cache.append(*tokens(1, seed=1))
        cache.attend(queries(1, seed=1))
    assert taken == []


def test_what_is_wrong_is_said_as_ever(taken: list[str]) -> None:
    cache, slopes = filled(), alibi_slopes(4)
    for _ in range(3):
        cache.append(*tokens(1, seed=1))
        cache.attend(queries(1, seed=1), slopes)
    assert taken
    key, value = tokens(1, seed=1)
    with pytest.raises(ValueError, match=r"^key: expected torch.float32 of shape"):
        cache.append(key.double(), value.double())
    with pytest.raises(ValueError, match=r"^value: expected"):
        cache.append(key, value[:, :, :, :-1])
    with pytest.raises(ValueError, match=r"^key: expected torch.float32 of shape"):
        cache.append(key[:1], value[:1])
    with pytest.raises(ValueError, match=r"^key: expected at least one token"):
        cache.append(key[:, :, :0], value[:, :, :0])
    with pytest.raises(ValueError, match=r"^key: expected a tensor without a gradient"):
        cache.append(key.clone().requires_grad_(), value)
    with pytest.raises(ValueError, match=r"^key: expected 4 dimensions"):
        cache.append(key[0], value[0])
    with pytest.raises(ValueError, match=r"^query: expected at most one for each of the 103 tokens held"):
        cache.attend(queries(104, seed=1), slopes)
    with pytest.raises(ValueError, match="slopes"):
        cache.attend(queries(1, seed=1), torch.tensor([1.0, math.nan, 0.5, 0.25]))
    with pytest.raises(ValueError, match="window"):
        cache.attend(queries(1, seed=1), slopes, window=(True, None))
    for _ in range(3):
        with pytest.raises(ValueError, match=r"^query: expected torch.float32, as the cache holds, got torch.bfloat16"):
            cache.attend(queries(1, seed=1).bfloat16(), slopes)
    nested = torch.nested.nested_tensor([torch.randn(1, 2, 40), torch.randn(3, 2, 40)], layout=torch.jagged)
    with pytest.raises(ValueError, match=r"^key: expected a dense tensor, got a nested one"):
        cache.append(nested.transpose(1, 2), value)
    assert cache.length == 103
    expect_whole(cache, queries(1, seed=4))


def test_options_are_told_apart() -> None:
    cache, query, slopes = filled(300), queries(1, seed=2), alibi_slopes(4)
    kept: dict[str, Any] = {"scale": 0.3, "window": (20, None), "tolerance": 0.1}
    for _ in range(3):
        for name, value in kept.items():
            found = cache.attend(query, slopes, **{name: value})
            want = alibi_attention(query, cache.key, cache.value, slopes, backend="blocked", **{name: value})
            if name != "tolerance":
                torch.testing.assert_close(found, want, atol=2e-6, rtol=0.0)
        steep = cache.attend(query, 4 * slopes)
        want = alibi_attention(query, cache.key, cache.value, 4 * slopes)
        torch.testing.assert_close(steep, want, atol=2e-6, rtol=0.0)


class Seen(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


def test_whoever_listens_hears_the_operator(taken: list[str]) -> None:
    cache, query, slopes = filled(), queries(1, seed=1), alibi_slopes(4)
    for _ in range(3):
        cache.attend(query, slopes)
    before = len(taken)
    with Seen() as seen:
        cache.append(*tokens(1, seed=1))
        cache.attend(query, slopes)
    assert any("alibi_attention.forward" in name for name in seen.names)
    with profile() as told:
        cache.attend(query, slopes)
    assert any(event.key == "alibi_attention::forward" for event in told.key_averages())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert cache.attend(query, slopes).dtype == torch.float32
    assert len(taken) == before


def test_gradients_of_queries_go_the_long_way_and_see_no_later_change() -> None:
    cache, slopes = filled(), alibi_slopes(4)
    for _ in range(3):
        cache.append(*tokens(1, seed=1))
        cache.attend(queries(1, seed=1), slopes)
    query = queries(1, seed=2).requires_grad_()
    out = cache.attend(query, slopes)
    out.sum().backward()
    assert query.grad is not None
    out = cache.attend(query, slopes)
    cache.crop(cache.length - 1)
    cache.append(*tokens(1, seed=9))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


def test_in_inference_mode(taken: list[str]) -> None:
    cache = KVCache()
    with torch.inference_mode():
        cache.append(*tokens(10, seed=0))
        for step in range(3):
            cache.append(*tokens(1, seed=step))
            cache.attend(queries(1, seed=step), alibi_slopes(4))
    expect_whole(cache, queries(1, seed=1))
    assert taken[:5] == ["append", "append", "attend", "append", "attend"]


def test_another_build_of_the_kernels_is_told_anew() -> None:
    cache, query, slopes = filled(), queries(1, seed=1), alibi_slopes(4)
    own = native.load()
    assert not isinstance(own, str)
    called = []

    def forward(call: bytes) -> int:
        called.append("forward")
        return own.forward(call)

    for _ in range(3):
        cache.append(*tokens(1, seed=1))
        want = cache.attend(query, slopes)
    native.use(own._replace(forward=forward))
    try:
        found = cache.attend(query, slopes)
        cache.append(*tokens(1, seed=1))
    finally:
        native.use(None)
    assert called == ["forward"]
    assert torch.equal(found, want)


def test_shapes_without_end_are_not_all_remembered() -> None:
    cache = filled(200)
    for count in range(1, 60):
        cache.attend(queries(count, seed=1))
        cache.attend(queries(count, seed=1))
    assert cache._steps is not None
    assert len(cache._steps._attends) <= 16


def test_nothing_of_before_is_kept() -> None:
    """Buffers that a reorder or growth has replaced are free at once: a model has a cache in every layer."""
    cache = filled()
    for _ in range(3):
        cache.append(*tokens(1, seed=1))
        cache.attend(queries(1, seed=1))
    for change in (
        lambda: cache.reorder(torch.tensor([1, 0])),
        lambda: [cache.append(*tokens(1, seed=n)) for n in range(200)],
        lambda: cache.append(*tokens(1, seed=2), key_mask=torch.ones(2, 1, dtype=torch.bool)),
        lambda: cache.reorder(torch.tensor([1, 0])),
    ):
        assert cache._key is not None
        before = weakref.ref(cache._key)
        kept = cache._key.data_ptr()
        change()
        assert cache._key is not None
        assert (before() is None) == (cache._key.data_ptr() != kept)
        cache.attend(queries(1, seed=1))


def test_a_cache_that_forgets_takes_the_short_way_too(taken: list[str]) -> None:
    """With evictions, several rings, buffers that slide, and reorders; and what it leaves behind is free."""
    short, long = (HorizonCache(window=(1024, 2048)) for _ in range(2))
    full = KVCache()
    slopes = torch.tensor([0.5, 0.4, 0.05, 0.04])
    for step in range(130):
        count = 64 if step < 110 else 1
        key, value = tokens(count, seed=step, batch=1)
        query = queries(count, seed=step, batch=1)
        for cache in (short, long, full):
            cache.append(key, value)
        before = len(taken)
        found = short.attend(query, slopes)
        went = len(taken) - before
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Steps, "attend", lambda *_, **__: None)
            want = long.attend(query, slopes)
        torch.testing.assert_close(found, want, atol=0.0, rtol=0.0)
        torch.testing.assert_close(found, full.attend(query, slopes), atol=2e-6, rtol=0.0)
    assert short.certificate().evicted.min() > 0
    assert went == 2
    assert short._store is not None
    ring = short._store.rings[0]
    old = weakref.ref(ring.key)
    del ring
    short.reorder(torch.tensor([0, 0]))
    assert old() is None
    torch.testing.assert_close(short.attend(query.repeat(2, 1, 1, 1), slopes)[1:], want, atol=2e-6, rtol=0.0)


def test_what_is_held_may_be_appended_again(taken: list[str]) -> None:
    cache = filled()
    before = cache.key[:, :, 5:9].clone()
    cache.append(cache.key[:, :, 5:9], cache.value[:, :, 5:9])
    assert torch.equal(cache.key[:, :, 100:], before)
    assert taken == []
    expect_whole(cache, queries(1, seed=1))


def test_a_length_is_that_of_the_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """One thread's call is not another's, whose tokens come while it is under way."""
    cache, query, slopes = filled(), queries(1, seed=1), alibi_slopes(4)
    for _ in range(3):
        want = cache.attend(query, slopes)
    whole = PreparedStep.output

    def slowly(self: PreparedStep, *rest: Any) -> Tensor:
        monkeypatch.setattr(PreparedStep, "output", whole)
        cache.append(*tokens(1, seed=5))
        cache.attend(query, slopes)
        return whole(self, *rest)

    monkeypatch.setattr(PreparedStep, "output", slowly)
    assert torch.equal(cache.attend(query, slopes), want)
    assert not torch.equal(cache.attend(query, slopes), want)


def test_an_instruction_set_there_is_none_of_is_said_where_kernels_are_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refused() -> Any:
        raise RuntimeError("ALIBI_CPU_ISA: got 'nonsense'")

    monkeypatch.setattr(native, "load", refused)
    cache = KVCache()
    for number in range(3):
        cache.append(*tokens(1, seed=number))
    assert cache.length == 3
    with pytest.raises(RuntimeError, match="ALIBI_CPU_ISA"):
        cache.attend(queries(1, seed=1), backend="cpu")
    monkeypatch.undo()
    expect_whole(cache, queries(1, seed=1))


@pytest.fixture
def judged(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The ways in which rows were held against what was evicted, in order."""
    found: list[str] = []
    for name, word in (("_verdict", "long"), ("_verdict_shortly", "short")):
        whole = getattr(Audit, name)

        def noted(self: Any, *rest: Any, whole: Callable[..., Any] = whole, word: str = word) -> Any:
            found.append(word)
            return whole(self, *rest)

        monkeypatch.setattr(Audit, name, noted)
    return found


def long_ways(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Store, "step", lambda *_: None)
    patch.setattr(Steps, "_find", lambda *_: None)
    patch.setattr(Audit, "_is_readable", lambda *_: False)


def expect_same_books(one: HorizonCache, other: HorizonCache) -> None:
    assert one._store is not None
    assert other._store is not None
    for name in ("length", "safe_from", "longest", "farther", "center"):
        found, want = getattr(one._store, name), getattr(other._store, name)
        assert torch.equal(torch.as_tensor(found), torch.as_tensor(want)), name
    for ring, like in zip(one._store.rings, other._store.rings, strict=True):
        assert (ring.heads, ring.start, ring.end, ring.offset, ring.room) == (
            like.heads, like.start, like.end, like.offset, like.room
        )  # fmt: skip
        for mine, theirs in zip(ring.view(), like.view(), strict=True):
            assert torch.equal(mine, theirs)
    mine, theirs = one.certificate(), other.certificate()
    assert torch.equal(mine.evicted, theirs.evicted)
    assert (mine.checked, mine.violations, mine.sink_reads) == (theirs.checked, theirs.violations, theirs.sink_reads)
    torch.testing.assert_close(mine.by_head, theirs.by_head, rtol=1e-4, atol=0.0)
    if isinstance(one._judge, Audit) and isinstance(other._judge, Audit):
        for name in ("nats", "largest", "worst"):
            found, want = (getattr(each._judge.auditor, name) for each in (one, other))
            torch.testing.assert_close(found, want, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(
    ("mode", "slopes", "dtype"),
    [
        ("found", (0.5, 0.3, 0.02, 0.015), torch.float32),
        ("found", (0.5, 0.3, 0.02, 0.015), torch.bfloat16),
        ("found", (0.02, 0.015, 0.5, 0.3), torch.float16),
        ("found", (0.5, 0.4, 0.45, 0.35), torch.float32),
        ("given", (0.5, 0.3, 0.02, 0.015), torch.float32),
        ("given", (0.02, 0.015, 0.5, 0.3), torch.float32),
        ("guaranteed", (0.5, 0.3, 0.05, 0.04), torch.float32),
    ],
)
def test_steps_of_a_cache_that_forgets_go_the_short_way_and_come_out_the_same(
    mode: str, slopes: tuple[float, ...], dtype: torch.dtype, taken: list[str], judged: list[str]
) -> None:
    """Heads in the order of their reach or not, of one ring or several; what evicts, or slides, goes the long way."""
    options: dict[str, Any] = {
        "found": {}, "given": {"window": (1024, 3000) if slopes[0] > slopes[3] else (3000, 1024)},
        "guaranteed": {"mode": "guaranteed", "query_norm": 12.0, "key_norm": 12.0},
    }[mode]  # fmt: skip
    short, long = (HorizonCache(**options) for _ in range(2))
    falling, steps, attended = torch.tensor(slopes), 0, 0
    for number in range(40 + 700):
        count = 100 if number < 40 else 1 + number % 3
        key, value = tokens(count, seed=number, batch=1, dtype=dtype)
        query = queries(count, seed=number, batch=1, dtype=dtype)
        before = len(taken)
        short.append(key, value)
        put = len(taken) - before
        found = short.attend(query, falling, return_lse=True)
        went = len(taken) - before - put
        with pytest.MonkeyPatch.context() as patch:
            long_ways(patch)
            long.append(key, value)
            want = long.attend(query, falling, return_lse=True)
        assert torch.equal(found[0], want[0])
        assert torch.equal(found[1], want[1])
        rings = len(short._store.rings) if short._store is not None else 0
        if number > 50:
            assert put in (0, rings)
            assert went <= rings
            attended += went == rings
        steps += put == rings and number > 50
    expect_same_books(short, long)
    assert short.certificate().evicted.min() > 0
    # All but those that evict, and move what is held: 512 tokens apart, each ring in its time.
    assert steps > 650
    assert attended > 650
    assert short._store is not None
    assert len(short._store.rings) == (1 if slopes[3] == 0.35 else 2)
    if mode != "guaranteed":
        assert judged[-2:] == ["short", "long"]


def test_a_step_that_is_refused_changes_nothing() -> None:
    cache = HorizonCache(mode="guaranteed", query_norm=30.0, key_norm=20.0)
    slopes = alibi_slopes(4)
    for number in range(30):
        cache.append(*tokens(64, seed=number, batch=1))
        cache.attend(queries(64, seed=number, batch=1), slopes)
    key, value = tokens(1, seed=1, batch=1)
    for wrong, words in (
        ((100.0 * key, value), r"^key: expected norms up to the cap"),
        ((key, value.masked_fill(value > 0, math.nan)), r"^value: expected finite numbers"),
        ((key.double(), value.double()), r"^key: expected torch.float32 of shape"),
        ((key, value[..., :-1]), r"^value: expected"),
        ((key.repeat(2, 1, 1, 1), value.repeat(2, 1, 1, 1)), r"^key: expected torch.float32 of shape"),
        ((key.clone().requires_grad_(), value), r"^key: expected a tensor without a gradient"),
    ):
        length, held = cache.length, cache.bytes_held
        with pytest.raises(ValueError, match=words):
            cache.append(*wrong)
        assert (cache.length, cache.bytes_held) == (length, held)
        with torch.no_grad():
            cache.append(key, value)
            cache.attend(queries(1, seed=1, batch=1), slopes)


@pytest.mark.parametrize("batch", [1, 3])
def test_a_short_verdict_raises_as_a_long_one(batch: int, judged: list[str]) -> None:
    """A late query along one of the first keys, longer than any before it."""
    cache, slopes = HorizonCache(), torch.tensor([0.5, 0.4, 0.3, 0.2])
    first, _ = tokens(64, seed=0, batch=batch)
    for number in range(40):
        cache.append(*tokens(64, seed=number, batch=batch))
        cache.attend(queries(64, seed=number, batch=batch), slopes)
    cache.append(*tokens(1, seed=99, batch=batch))
    query = queries(1, seed=99, batch=batch)
    cache.attend(query, slopes)
    assert judged[-1] == "short"
    query[-1, 1] = 4000.0 * first[-1, 0, 7]
    with pytest.raises(HorizonViolation, match=rf"batch row {batch - 1}, head 1"):
        cache.attend(query, slopes)
    assert judged[-1] == "short"
    assert cache.certificate().violations == 1
    query[-1, 1] = math.nan
    out = cache.attend(query, slopes)
    assert bool(out[-1, 1].isnan().all())
    assert cache.certificate().violations == 1


def test_whoever_listens_to_a_cache_that_forgets_hears_all_of_it(taken: list[str], judged: list[str]) -> None:
    cache, slopes = HorizonCache(), torch.tensor([0.5, 0.4, 0.02, 0.015])
    for number in range(40):
        cache.append(*tokens(64, seed=number, batch=1))
        cache.attend(queries(64, seed=number, batch=1), slopes)
    for _ in range(3):
        cache.append(*tokens(1, seed=1, batch=1))
        cache.attend(queries(1, seed=1, batch=1), slopes)
    before = len(taken)
    with Seen() as seen:
        cache.append(*tokens(1, seed=1, batch=1))
        cache.attend(queries(1, seed=1, batch=1), slopes)
    assert any("alibi_attention.forward" in name for name in seen.names)
    assert any("vector_norm" in name for name in seen.names)
    assert len(taken) == before
    assert judged[-2:] == ["short", "long"]


def test_a_cache_that_forgets_is_copied_cropped_and_reordered_between_short_steps() -> None:
    slopes = torch.tensor([0.5, 0.4, 0.02, 0.015])
    one, other = HorizonCache(), HorizonCache()

    def step(count: int, seed: int, batch: int = 1) -> None:
        new, query = tokens(count, seed=seed, batch=batch), queries(count, seed=seed, batch=batch)
        one.append(*new)
        found = one.attend(query, slopes)
        with pytest.MonkeyPatch.context() as patch:
            long_ways(patch)
            other.append(*new)
            assert torch.equal(found, other.attend(query, slopes))

    for number in range(40):
        step(64, number)
    for number in range(5):
        step(1, number)
    step(9, 50)
    for cache in (one, other):
        cache.crop(cache.length - 6)
    for number in range(4):
        step(1, number)
    expect_same_books(one, other)
    one = copy.deepcopy(one)
    for number in range(4):
        step(1, number)
    for cache in (one, other):
        cache.reorder(torch.tensor([0, 0]))
    for number in range(4):
        step(1, number, batch=2)
    expect_same_books(one, other)


def test_after_an_interrupt_between_rings_the_cache_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    cache, slopes = HorizonCache(), torch.tensor([0.5, 0.4, 0.02, 0.015])
    for number in range(40):
        cache.append(*tokens(64, seed=number, batch=1))
        cache.attend(queries(64, seed=number, batch=1), slopes)
    cache.append(*tokens(1, seed=1, batch=1))
    whole, calls = PreparedAppend.run, []

    def interrupted(self: PreparedAppend, *rest: Any) -> None:
        calls.append(self)
        if len(calls) == 2:
            raise KeyboardInterrupt
        whole(self, *rest)

    monkeypatch.setattr(PreparedAppend, "run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        cache.append(*tokens(1, seed=1, batch=1))
    monkeypatch.undo()
    with pytest.raises(ValueError, match=r"^cache: expected one whose last change came to its end"):
        cache.append(*tokens(1, seed=1, batch=1))


def test_steps_go_the_short_way_where_no_window_is_full_yet(taken: list[str]) -> None:
    """Slopes so flat that heads are not dealt out among rings for thousands of tokens."""
    cache, slopes = HorizonCache(), torch.full((4,), 0.004)
    for number in range(30):
        cache.append(*tokens(64, seed=number, batch=1))
        cache.attend(queries(64, seed=number, batch=1), slopes)
    assert cache.length > 1024
    for number in range(100):
        before = len(taken)
        cache.append(*tokens(1, seed=number, batch=1))
        cache.attend(queries(1, seed=number, batch=1), slopes)
        # The first of a shape is described.
        assert number < 3 or taken[before:] == ["append", "attend"]
    assert cache.certificate().evicted.max() == 0


@pytest.mark.parametrize("way", ["strided", "padded", "window", "pickled"])
def test_a_cache_that_forgets_comes_out_the_same_in_other_ways(way: str) -> None:
    short, long = HorizonCache(), HorizonCache()
    slopes = torch.tensor([0.5, 0.4, 0.02, 0.015])
    falling = torch.stack([slopes, slopes], 1)[:, 0] if way == "strided" else slopes
    batch, options = (2 if way == "padded" else 1), ({"window": (700, 0)} if way == "window" else {})
    for number in range(60 + 60):
        count = 64 if number < 60 else 1
        key, value = tokens(count, seed=number, batch=batch)
        query = queries(count, seed=number, batch=batch)
        if way == "strided":
            query = query.transpose(2, 3).contiguous().transpose(2, 3) if number % 2 else query[:, :, :, ::1]
        mask = None
        if way == "padded" and number == 0:
            mask = torch.ones(2, 64, dtype=torch.bool)
            mask[0, :30] = False
        if way == "pickled" and number % 40 == 39:
            short = pickle.loads(pickle.dumps(short))
        short.append(key, value, key_mask=mask)
        found = short.attend(query, falling, **options)
        with pytest.MonkeyPatch.context() as patch:
            long_ways(patch)
            long.append(key, value, key_mask=mask)
            want = long.attend(query, falling, **options)
        assert torch.equal(found.nan_to_num(7.0), want.nan_to_num(7.0))
    expect_same_books(short, long)
    assert short.certificate().evicted.max() > 0
