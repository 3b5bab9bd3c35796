"""The cache that forgets: the same results as from a full one, in memory that stops growing."""

from __future__ import annotations

import math

import pytest
import torch
from streams import Stream, stream

from alibi_attention import ALiBiAttention, HorizonCache, KVCache, alibi_attention, alibi_slopes
from alibi_attention.backends import native
from alibi_attention.cache import common, store
from alibi_attention.checks import positions
from alibi_attention.lab.model import Decoder
from alibi_attention.lab.positions import DecoderShape

needs_kernels = pytest.mark.skipif(
    isinstance(native.load(), str),
    reason="only kernels that sweep tile by tile give the same bits for parts of a cache",
)
STEEP = torch.tensor([0.5, 0.3, 0.2, 0.1])


def run(caches: tuple[KVCache, HorizonCache], part: Stream, slopes: torch.Tensor, **options: object) -> None:
    """Both caches answer alike, to the last bit."""
    answers = []
    for cache in caches:
        cache.append(part.key, part.value)
        answers.append(cache.attend(part.query, slopes, return_lse=True, **options))  # type: ignore[call-overload]
    assert torch.equal(answers[0][0], answers[1][0])
    assert torch.equal(answers[0][1], answers[1][1])


@needs_kernels
@pytest.mark.parametrize(
    ("heads", "kv_heads", "dtype", "value_dim", "sizes"),
    [
        (4, 4, torch.float32, 16, (1,)),
        (4, 2, torch.float32, 16, (1, 1, 1, 5, 64)),
        (4, 1, torch.bfloat16, 16, (1, 130)),
        (4, 4, torch.float16, 32, (1, 1, 9, 300)),
        (12, 12, torch.float32, 16, (1, 1, 40)),
    ],
)
def test_bit_for_bit_what_the_full_cache_gives(
    heads: int, kv_heads: int, dtype: torch.dtype, value_dim: int, sizes: tuple[int, ...]
) -> None:
    torch.manual_seed(heads + kv_heads)
    whole = stream(2700, heads=heads, kv_heads=kv_heads, dtype=dtype, value_dim=value_dim, mean=0.5)
    # Of 12 heads the slopes are not in order, and neither are the rings.
    slopes = STEEP if heads == 4 else 12.0 * alibi_slopes(12, "interleaved")
    caches = KVCache(), HorizonCache()
    for part in whole.parts(*sizes):
        run(caches, part, slopes)
    certificate = caches[1].certificate()
    assert bool((certificate.evicted >= 512).all())
    assert certificate.violations == certificate.sink_reads == 0
    assert 0.0 < certificate.dropped_share <= certificate.tolerance == 2.0**-24
    assert caches[1].bytes_held < caches[0].bytes_held


def test_every_backend_within_the_tolerance(any_backend: str) -> None:
    whole = stream(2600, kv_heads=2, mean=0.5)
    cache = HorizonCache()
    for part in whole.parts(300, 1, 1):
        cache.append(part.key, part.value)
        out = cache.attend(part.query, STEEP, backend=any_backend)
    count = out.shape[2]
    want = alibi_attention(
        whole.query[:, :, -count:].double(), whole.key.double(), whole.value.double(), STEEP, tolerance=0.0
    )
    assert bool((cache.certificate().evicted > 0).all())
    torch.testing.assert_close(out.double(), want, rtol=1e-5, atol=1e-6)


def test_float64_holds_a_finer_tolerance() -> None:
    whole = stream(3000, dtype=torch.float64)
    cache = HorizonCache()
    for part in whole.parts(250):
        cache.append(part.key, part.value)
        out = cache.attend(part.query, STEEP)
    assert cache.certificate().tolerance == 2.0**-53
    assert bool((cache.certificate().evicted > 0).any())
    want = alibi_attention(whole.query[:, :, -250:], whole.key, whole.value, STEEP, tolerance=0.0)
    torch.testing.assert_close(out, want, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("mode", ["audited", "guaranteed"])
def test_memory_stops_growing(mode: str) -> None:
    whole = stream(12_000)
    caps = {"query_norm": 12.0, "key_norm": 12.0} if mode == "guaranteed" else {}
    cache = HorizonCache(mode, **caps)  # type: ignore[arg-type]
    sizes = []
    for number, part in enumerate(whole.parts(100)):
        cache.append(part.key, part.value)
        cache.attend(part.query, STEEP)
        if number >= 59:
            sizes.append(cache.bytes_held)
    certificate = cache.certificate()
    assert bool((certificate.evicted > 0).all())
    assert set(sizes) == {sizes[0]}
    # All buffers together, and little more than the windows need: 2 x 16 float32 a token and head.
    assert sizes[0] == certificate.bytes_held < 2.2 * certificate.windows.sum() * 2 * 16 * 4
    assert cache.length == certificate.length == 12_000
    assert certificate.dropped_share <= certificate.tolerance


def test_what_is_certified_as_evicted_is_not_read() -> None:
    """Keys that lie in a ring and are in the books as evicted may be anything at all."""
    whole = stream(2500, kv_heads=2)
    cache = HorizonCache()
    for part in whole.parts(100):
        cache.append(part.key, part.value)
        want = cache.attend(part.query, STEEP)
    certificate = cache.certificate()
    assert torch.equal(certificate.windows + certificate.evicted, torch.tensor([2500, 2500]))
    store = cache._store
    assert store is not None
    for ring in store.rings:
        evicted = int(certificate.evicted[ring.heads[0]])
        assert evicted == ring.start + 64 < ring.end
        for t in ring.span(ring.start, evicted):
            t.fill_(math.nan)
    assert torch.equal(cache.attend(part.query, STEEP), want)


def test_a_long_prompt_leaves_no_large_buffers_behind() -> None:
    whole = stream(9000)
    cache = HorizonCache()
    for part in whole.parts(1500, 7000, 1, 1, 498):
        cache.append(part.key, part.value)
        out = cache.attend(part.query, STEEP)
    assert cache.bytes_held < 4 * 2 * 16 * 4 * 4000
    want = alibi_attention(whole.query[:, :, -498:].double(), whole.key.double(), whole.value.double(), STEEP)
    torch.testing.assert_close(out.double(), want, rtol=1e-5, atol=1e-6)


def test_positions_stay_exact_past_a_million_tokens() -> None:
    slopes = torch.tensor([0.5, 0.25])
    period = stream(4096, heads=2, kv_heads=1)
    cache = HorizonCache()
    while cache.length < 2**20 + 4096:
        cache.append(period.key, period.value)
        out = cache.attend(period.query[:, :, -100:], slopes)
    # What went before repeats itself, and one period is more than the horizon.
    want = alibi_attention(
        period.query[:, :, -100:].double(), period.key.double(), period.value.double(), slopes, tolerance=0.0
    )
    assert cache.length == 2**20 + 4096
    torch.testing.assert_close(out.double(), want, rtol=1e-5, atol=1e-6)
    run_on = stream(1, heads=2, kv_heads=1)
    cache.append(run_on.key, run_on.value)
    out = cache.attend(run_on.query, slopes)
    keys, values = (torch.cat([a, b], 2).double() for a, b in ((period.key, run_on.key), (period.value, run_on.value)))
    want = alibi_attention(run_on.query.double(), keys, values, slopes, tolerance=0.0)
    torch.testing.assert_close(out.double(), want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("padding", [5, 64, 700, 1024, 1500])
def test_left_padding(padding: int) -> None:
    whole = stream(5000, batch=2, kv_heads=2)
    mask = torch.ones(2, 5000, dtype=torch.bool)
    mask[1, :padding] = False
    full, cache = KVCache(), HorizonCache()
    at = 0
    for part in whole.parts(256, 1, 300):
        shown = mask[:, at : at + part.key.shape[2]]
        at += part.key.shape[2]
        # Whatever padding holds stays outside.
        key = part.key.masked_fill(~shown[:, None, :, None], math.nan)
        for each in (full, cache):
            each.append(key, part.value, key_mask=shown)
        want, want_lse = full.attend(part.query, STEEP, return_lse=True)
        out, lse = cache.attend(part.query, STEEP, return_lse=True)
        torch.testing.assert_close(out, want)
        torch.testing.assert_close(lse, want_lse)
    certificate = cache.certificate()
    assert bool((certificate.evicted > 1500).all())
    assert certificate.violations == 0


def test_beams_are_reordered_with_all_that_is_known_of_them() -> None:
    torch.manual_seed(3)
    whole = stream(5000, batch=3, kv_heads=2)
    key = whole.key.clone()
    key[1] *= 1.5
    whole = Stream(whole.query, key, whole.value)
    full, cache = KVCache(), HorizonCache()
    for number, part in enumerate(whole.parts(200)):
        for each in (full, cache):
            each.append(part.key, part.value)
        out, want = (each.attend(part.query, STEEP) for each in (cache, full))
        torch.testing.assert_close(out, want)
        if number in (2, 9, 15):
            index = torch.tensor([2, 0, 0] if number == 9 else [0, 1, 1])
            shares = cache.dropped_shares()
            for each in (full, cache):
                each.reorder(index)
            assert torch.equal(cache.dropped_shares(), shares[index])
    assert bool((cache.certificate().evicted > 0).all())
    assert cache.certificate().violations == 0
    shares = cache.dropped_shares()
    assert bool((shares[1:] != shares[:-1]).all())
    for each in (full, cache):
        each.reorder(torch.tensor([2]))
    assert torch.equal(cache.dropped_shares(), shares[2:])
    for each in (full, cache):
        each.append(key[:1, :, :1], whole.value[:1, :, :1])
    torch.testing.assert_close(cache.attend(whole.query[:1, :, :1], STEEP), full.attend(whole.query[:1, :, :1], STEEP))


@pytest.mark.parametrize("switch", [300, 2000])
def test_inference_mode_and_after(switch: int) -> None:
    """What was made in inference mode is written to outside of it: before anything was evicted, and after."""
    whole = stream(4000, batch=2)
    mask = torch.ones(2, 4000, dtype=torch.bool)
    mask[1, :70] = False
    full, cache = KVCache(), HorizonCache()
    at = 0
    for part in whole.parts(100):
        with torch.inference_mode(at < switch or at >= 3000):
            index = torch.tensor([1, 0])
            for each in (full, cache):
                each.append(part.key, part.value, key_mask=mask[:, at : at + 100])
            want, out = (each.attend(part.query, STEEP).clone() for each in (full, cache))
            if at in (switch - 100, switch, 3000):
                mask = mask[index]
                for each in (full, cache):
                    each.reorder(index)
        torch.testing.assert_close(out, want)
        at += 100
    assert bool((cache.certificate().evicted > 2000).all())
    assert cache.certificate().violations == 0


@pytest.mark.parametrize("change", ["append", "crop", "reorder"])
def test_a_change_interrupted_half_way_lets_nobody_go_on(change: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tokens may have been moved, and their new places not been noted."""
    cache, whole = HorizonCache(on_violation="refetch", backing="cpu"), stream(60, heads=2, kv_heads=2)

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    def again() -> None:
        if change == "append":
            cache.append(whole.key, whole.value)
        elif change == "crop":
            cache.crop(50)
        else:
            cache.reorder(torch.tensor([0]))

    cache.append(whole.key, whole.value)
    expected = cache.attend(whole.query)
    with monkeypatch.context() as patch:
        patch.setattr(store.Store, "adopt", interrupt)
        with pytest.raises(KeyboardInterrupt):
            again()
    for attempt in (again, lambda: cache.attend(whole.query)):
        with pytest.raises(ValueError, match=r"got one that was interrupted while tokens were moved; call reset\(\)"):
            attempt()
    cache.reset()
    cache.append(whole.key, whole.value)
    assert torch.equal(cache.attend(whole.query), expected)


def test_crop_takes_back_what_was_appended_last() -> None:
    whole = stream(4000)
    draft = stream(40)
    full, cache = KVCache(), HorizonCache()
    for part in whole.parts(130, 1):
        accepted = cache.length
        for each in (full, cache):
            each.append(draft.key, draft.value)
            each.attend(draft.query, STEEP)
            each.crop(accepted + 7)
            each.crop(accepted)
            each.append(part.key, part.value)
        torch.testing.assert_close(cache.attend(part.query, STEEP), full.attend(part.query, STEEP))
    assert bool((cache.certificate().evicted > 0).all())
    with pytest.raises(
        ValueError,
        match=r"length: expected an integer from 3,\d+ to 4,\d+, the tokens seen, got 500; what queries before",
    ):
        cache.crop(500)
    with pytest.raises(ValueError, match="length: expected an integer from 0 to 0, the tokens seen, got 1"):
        HorizonCache().crop(1)


@pytest.mark.parametrize("in_place", ["parameter", "tensor"])
def test_slopes_that_change_in_place_are_noticed(in_place: str) -> None:
    """What was evicted was judged by the slopes of the calls before, and so is what is kept."""
    module = ALiBiAttention(64, 4, slopes=STEEP, learned_slopes=True)
    slopes = module.head_slopes() if in_place == "parameter" else STEEP.clone()
    whole, cache = stream(20), HorizonCache()
    with torch.no_grad():
        cache.append(whole.key, whole.value)
        cache.attend(whole.query, slopes)
        slopes.mul_(0.5)
        with pytest.raises(ValueError, match="slopes, scale: expected those of the calls before, got others"):
            cache.attend(whole.query, slopes)
        cache.reset()
        cache.append(whole.key, whole.value)
        torch.testing.assert_close(cache.attend(whole.query, slopes), alibi_attention(*whole, 0.5 * STEEP))


@pytest.mark.parametrize(
    ("options", "wrong"),
    [
        ({}, {"window": (-3, None)}),
        ({}, {"backend": "no such"}),
        ({"mode": "guaranteed", "query_norm": 20.0, "key_norm": 20.0}, {"query": torch.full((1, 4, 20, 16), 1e3)}),
        ({"window": [10.0, 20.0, 30.0, 40.0]}, {"slopes": 2 * STEEP, "tolerance": -1.0}),
    ],
)
def test_a_first_call_that_fails_decides_nothing(options: dict[str, object], wrong: dict[str, object]) -> None:
    """Neither slopes nor scale: those of the first that succeeds are kept."""
    whole, cache = stream(20), HorizonCache(**options)  # type: ignore[arg-type]
    cache.append(whole.key, whole.value)
    call = {"query": whole.query, "slopes": 0.7 * STEEP, "scale": 2.0, **wrong}
    with pytest.raises(ValueError, match=r"^(window|backend|query|tolerance): "):
        cache.attend(**call)  # type: ignore[call-overload]
    torch.testing.assert_close(cache.attend(whole.query, STEEP), alibi_attention(*whole, STEEP, is_causal=True))
    with pytest.raises(ValueError, match="slopes, scale: expected those of the calls before, got others"):
        cache.attend(whole.query, 2 * STEEP)


def test_heads_that_do_not_fall_forget_nothing() -> None:
    slopes = torch.tensor([0.5, 0.0, 0.25, -0.001])
    whole = stream(3500)
    full, cache = KVCache(), HorizonCache()
    for part in whole.parts(100):
        for each in (full, cache):
            each.append(part.key, part.value)
        torch.testing.assert_close(cache.attend(part.query, slopes), full.attend(part.query, slopes))
    evicted = cache.certificate().evicted.tolist()
    assert evicted[1] == evicted[3] == 0 < min(evicted[0], evicted[2])


def test_a_window_of_the_call_narrows_what_is_held() -> None:
    whole = stream(4000)
    cache = HorizonCache()
    for part in whole.parts(100):
        cache.append(part.key, part.value)
        out = cache.attend(part.query, STEEP, window=(30, 0))
    want = alibi_attention(*whole, STEEP, window=(30, 0))[:, :, -100:]
    torch.testing.assert_close(out, want)
    assert bool((cache.certificate().evicted > 0).all())


def test_a_layer_whose_attention_failed_leaves_the_cache_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys are gone by then; what the step before could read is still there."""

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    module = ALiBiAttention(64, 4, num_kv_heads=2, slopes=STEEP).eval()
    x, cache = torch.randn(1, 5200, 64), HorizonCache()
    with torch.no_grad():
        whole = module(x)
        for part in x[:, :5000].split(500, dim=1):
            module(part, cache=cache)
        assert int(cache.certificate().evicted.min()) > 0
        with monkeypatch.context() as patched:
            patched.setattr(HorizonCache, "attend", interrupted)
            with pytest.raises(KeyboardInterrupt):
                module(x[:, 5000:], cache=cache)
        assert cache.length == 5000
        torch.testing.assert_close(module(x[:, 5000:], cache=cache), whole[:, 5000:], rtol=1e-4, atol=1e-5)


def test_module_and_autocast() -> None:
    module = ALiBiAttention(64, 4, num_kv_heads=2, slopes=STEEP).eval()
    x = torch.randn(1, 3000, 64)
    with torch.no_grad():
        cache = HorizonCache()
        parts = [module(part, cache=cache) for part in x.split(150, 1)]
        torch.testing.assert_close(torch.cat(parts, 1), module(x), rtol=1e-4, atol=1e-5)
        assert bool((cache.certificate().evicted > 0).all())
        held = cache.certificate()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            query = torch.randn(1, 4, 1, 16)
            assert cache.attend(query, STEEP).dtype == torch.float32
        assert cache.certificate().length == held.length


def test_reset_and_what_it_prints() -> None:
    whole = stream(2500)
    cache = HorizonCache()
    assert repr(cache) == "HorizonCache(audited, empty)"
    assert cache.length == cache.bytes_held == 0
    for part in whole.parts(100):
        cache.append(part.key, part.value)
        cache.attend(part.query, STEEP)
    text = repr(cache)
    assert text.startswith("HorizonCache(audited, length=2,500, batch=1, num_kv_heads=4, head_dim=16, float32 on cpu, ")
    # A ring holds one tile more than its heads look at.
    held = sorted({window + 64 for window in cache.certificate().windows.tolist()})
    assert text.endswith(f" bytes, rings of {', '.join(f'{n:,}' for n in held)} tokens)")
    table = str(cache.certificate()).splitlines()
    assert table[0].startswith("audited, 2,500 tokens, ")
    assert "violations 0, refetches 0, reads of the first tile 0" in table[1]
    assert len(table) == 3 + 4
    cache.reset()
    assert repr(cache) == "HorizonCache(audited, empty)"
    other = stream(5, batch=2, heads=2, kv_heads=1)
    cache.append(other.key, other.value)
    torch.testing.assert_close(cache.attend(other.query), alibi_attention(*other))


@needs_kernels
def test_a_decoder_reads_on_in_constant_memory() -> None:
    """What docs/figures/streaming.py measures over a million tokens, in small."""
    decoder = Decoder(DecoderShape(64, 2, 4, 32), "alibi", seed=0).eval()
    decoder.position.slopes.copy_(STEEP)
    text = torch.randint(256, (1, 5000))
    full, horizon = [KVCache() for _ in decoder.blocks], [HorizonCache() for _ in decoder.blocks]
    sizes = []
    with torch.inference_mode():
        for at in range(0, 4000, 200):
            part = text[:, at : at + 200]
            assert torch.equal(decoder(part, full), decoder(part, horizon))
        for at in range(4000, 5000):
            part = text[:, at : at + 1]
            assert torch.equal(decoder(part, full), decoder(part, horizon))
            sizes.append(sum(cache.bytes_held for cache in horizon))
    assert len(set(sizes[600:])) == 1
    assert all(bool((cache.certificate().evicted > 2000).all()) for cache in horizon)
    assert sum(cache.certificate().violations for cache in horizon) == 0


def test_refusals() -> None:
    whole = stream(20)
    cache = HorizonCache()
    with pytest.raises(ValueError, match="cache: expected keys and values to have been appended, got an empty cache"):
        cache.attend(whole.query)
    with pytest.raises(ValueError, match="cache: expected keys and values to have been appended, got an empty cache"):
        cache.reorder(torch.tensor([0]))
    cache.append(whole.key, whole.value)
    with pytest.raises(ValueError, match="query: expected at most one for each of the 20 tokens seen, got shape"):
        cache.attend(torch.randn(1, 4, 21, 16))
    cache.attend(whole.query, STEEP)
    with pytest.raises(
        ValueError, match=r"slopes, scale: expected those of the calls before, got others \(scale 0.25\)"
    ):
        cache.attend(whole.query, 2 * STEEP)
    with pytest.raises(ValueError, match=r"slopes, scale: expected those of the calls before, got others \(scale 1\)"):
        cache.attend(whole.query, STEEP, scale=1.0)
    with pytest.raises(
        ValueError, match="query, slopes: expected tensors without a gradient, got one that requires it"
    ):
        cache.attend(whole.query.clone().requires_grad_(), STEEP)
    with pytest.raises(ValueError, match=r"key: expected torch.float32 of shape \(1, 4, tokens, 16\) on cpu, as the"):
        cache.append(whole.key.double(), whole.value.double())
    with pytest.raises(ValueError, match="key_mask: expected padding on the left only, got padding after tokens in"):
        cache.append(whole.key, whole.value, key_mask=torch.zeros(1, 20, dtype=torch.bool))
    for wrong in (torch.ones(1, 19, dtype=torch.bool), torch.ones(1, 20)):
        for each in (cache, HorizonCache()):
            with pytest.raises(ValueError, match=r"key_mask: expected bool of shape \(1, 20\), True where a key takes"):
                each.append(whole.key, whole.value, key_mask=wrong)
    assert cache.length == 20
    other = HorizonCache()
    other.append(whole.key, whole.value)
    with pytest.raises(ValueError, match=r"slopes: expected shape \(4,\), one set for the batch, got \(1, 4\)"):
        other.attend(whole.query, STEEP[None])
    for part in stream(3000).parts(100):
        cache.append(part.key, part.value)
        cache.attend(part.query, STEEP)
    with pytest.raises(
        ValueError, match=r"query: expected at most one for each of the \d+ tokens appended last, got sh"
    ):
        cache.attend(torch.randn(1, 4, 2000, 16), STEEP)


def test_padding_after_tokens_is_refused_on_every_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU, whose values are read for how much padding there is and for nothing else."""
    for module in (positions, store, common):
        monkeypatch.setattr(module, "values_can_be_read", lambda _: False)
    whole = stream(20, batch=3)
    mask = torch.ones(3, 20, dtype=torch.bool)
    mask[0, :15] = mask[2] = False
    holed, ended = mask.clone(), mask.clone()
    holed[0, 17] = ended[1, 19] = False
    cache = HorizonCache()
    for wrong, row in ((holed, 0), (ended, 1)):
        with pytest.raises(ValueError, match=rf"got padding after tokens in batch rows \[{row}\]; what is"):
            cache.append(whole.key, whole.value, key_mask=wrong)
        assert cache.length == 0
    cache.append(whole.key, whole.value, key_mask=mask)
    # Rows of nothing but padding may go on so, others may not.
    with pytest.raises(ValueError, match=r"got padding after tokens in batch rows \[0\]; what is appended next"):
        cache.append(whole.key, whole.value, key_mask=mask)
    assert cache.length == 20
    mask[0] = True
    cache.append(whole.key, whole.value, key_mask=mask)
    assert cache._store is not None
    assert cache._store.padding is not None
    assert cache._store.padding.tolist() == [15, 0, 40]
    # A full cache does not wait for a GPU, as its documentation says.
    KVCache().append(whole.key, whole.value, key_mask=holed)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "exact"}, "mode: expected 'audited' or 'guaranteed', got 'exact'"),
        ({"on_violation": "ignore"}, "on_violation: expected 'raise', 'warn' or 'refetch', got 'ignore'"),
        ({"on_violation": "refetch"}, "backing: expected with on_violation='refetch', got None"),
        ({"backing": "disk"}, "backing: expected a KVCache, 'cpu' or None, got 'disk'"),
        ({"mode": "guaranteed"}, "query_norm, key_norm: expected both with mode='guaranteed'"),
        ({"query_norm": 1.0}, "query_norm, key_norm: expected with mode='guaranteed' only"),
        (
            {"mode": "guaranteed", "query_norm": 1.0, "key_norm": 1.0, "window": 9},
            "window, on_violation, backing: expected with mode='audited' only",
        ),
        ({"tolerance": 0.0}, "tolerance: expected a share of softmax mass between 0 and 1, got 0.0"),
        ({"headroom": -1.0}, "headroom: expected nats, a finite number of at least 0, got -1.0"),
        (
            {"headroom": 8.0, "mode": "guaranteed", "query_norm": 1.0, "key_norm": 1.0},
            "headroom: expected for windows found by themselves in mode='audited', got it with mode='guaranteed'",
        ),
        (
            {"headroom": 0.0, "window": 100},
            "headroom: expected for windows found by themselves in mode='audited', got it with window; nothing would",
        ),
        ({"window": [5, -1]}, r"window: expected a positive number, or one for each head, got \[5, -1\]"),
    ],
)
def test_options_that_do_not_go_together(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        HorizonCache(**options)  # type: ignore[arg-type]


def test_options_for_as_many_heads_as_there_are() -> None:
    whole = stream(5)
    cache = HorizonCache(window=[10, 20, 30])
    cache.append(whole.key, whole.value)
    with pytest.raises(ValueError, match="window: expected one number or 4, one for each head, got 3"):
        cache.attend(whole.query)
    backing = KVCache()
    backing.append(whole.key, whole.value)
    with pytest.raises(
        ValueError, match="backing: expected an empty KVCache, got one of 5 tokens; this cache fills it"
    ):
        HorizonCache(backing=backing)
