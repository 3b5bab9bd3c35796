"""The cache: any way of cutting a sequence up gives the same attention, and old keys are not read."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
import torch._dynamo.testing
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from alibi_attention import ALiBiAttention, HorizonCache, KVCache, alibi_attention, alibi_slopes
from alibi_attention.dispatch import explain_backends

EXACT = {"rtol": 1e-9, "atol": 1e-9}


def _tensors(length: int, batch: int = 2, kv_heads: int = 2, dtype: torch.dtype = torch.float64) -> tuple[Tensor, ...]:
    query = torch.randn(batch, 4, length, 16, dtype=dtype)
    key, value = torch.randn(2, batch, kv_heads, length, 16, dtype=dtype).unbind(0)
    return query, key, value


@given(cuts=st.lists(st.integers(1, 449), max_size=6, unique=True), seed=st.integers(0, 99), padded=st.booleans())
def test_any_chunks_give_the_whole(cuts: list[int], seed: int, padded: bool) -> None:
    torch.manual_seed(seed)
    query, key, value = _tensors(450)
    mask = torch.ones(2, 450, dtype=torch.bool)
    if padded:
        mask[1, : min([*cuts, 200])] = False
    whole = alibi_attention(query, key, value, key_mask=mask if padded else None)
    cache = KVCache(capacity=1 + seed)
    edges = [0, *sorted(cuts), 450]
    for start, stop in itertools.pairwise(edges):
        part = slice(start, stop)
        cache.append(key[:, :, part], value[:, :, part], key_mask=mask[:, part] if padded else None)
        torch.testing.assert_close(cache.attend(query[:, :, part]), whole[:, :, part], **EXACT)
    assert cache.length == 450
    assert torch.equal(cache.key, key * mask[:, None, :, None])
    assert torch.equal(cache.value, value * mask[:, None, :, None])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_token_by_token(any_backend: str, dtype: torch.dtype) -> None:
    query, key, value = _tensors(400, dtype=dtype)
    slopes = alibi_slopes(4)
    if explain_backends(query, key, value, slopes)[any_backend] is not None:
        return
    whole, whole_lse = alibi_attention(query, key, value, slopes, return_lse=True, backend=any_backend)
    cache = KVCache()
    cache.append(key[:, :, :300], value[:, :, :300])
    for at in range(300, 400):
        cache.append(key[:, :, at : at + 1], value[:, :, at : at + 1])
        out, lse = cache.attend(query[:, :, at : at + 1], slopes, return_lse=True, backend=any_backend)
        torch.testing.assert_close(out, whole[:, :, at : at + 1])
        torch.testing.assert_close(lse, whole_lse[:, :, at : at + 1], rtol=1e-5, atol=1e-5)


def test_old_keys_are_not_read(backend: str) -> None:
    """Keys beyond the horizon may be overwritten with NaN behind the cache's back: nobody looks."""
    query, key, value = _tensors(4096, batch=1, dtype=torch.float32)
    slopes = torch.tensor([0.5, 0.5, 0.25, 0.25])
    cache = KVCache()
    cache.append(key, value)
    before = cache.attend(query[:, :, -1:], slopes, backend=backend)
    cache.key[:, :, :2500] = math.nan
    cache.value[:, :, :2500] = math.nan
    after = cache.attend(query[:, :, -1:], slopes, backend=backend)
    assert torch.equal(before, after)


@given(kind=st.sampled_from(["outlier", "sink", "growing", "nan value", "inf key"]), seed=st.integers(0, 99))
def test_the_summary_is_sound(kind: str, seed: int) -> None:
    torch.manual_seed(seed)
    query, key, value = _tensors(700, batch=1)
    key[:, :, 600:] += 3.0
    if kind == "outlier":
        key[:, :, 77] *= 60.0
    elif kind == "sink":
        key[:, :, 0] = 40.0 * query[:, ::2, -1] / query[:, ::2, -1].norm(dim=-1, keepdim=True)
    elif kind == "growing":
        key *= torch.linspace(8.0, 0.2, 700)[:, None]
    elif kind == "nan value":
        value[:, 1, 30, 2] = math.nan
    elif kind == "inf key":
        key[:, 1, 30, 2] = math.inf
    cache = KVCache()
    for start in range(0, 700, 100):
        cache.append(key[:, :, start : start + 100], value[:, :, start : start + 100])
    slopes = torch.tensor([0.5, 0.3, 0.2, 0.1])
    true = alibi_attention(query[:, :, -3:], key, value, slopes, tolerance=0.0, backend="reference")
    for backend in ("blocked", None):
        got = cache.attend(query[:, :, -3:], slopes, backend=backend)
        assert torch.equal(got.isfinite(), true.isfinite())
        torch.testing.assert_close(got, true, rtol=1e-8, atol=1e-8, equal_nan=True)


def test_crop_reorder_and_reset() -> None:
    query, key, value = _tensors(300)
    cache = KVCache()
    cache.append(key, value)
    cache.crop(150)
    assert cache.length == 150
    cache.append(key[:, :, 150:220], value[:, :, 150:220])
    want = alibi_attention(query[:, :, 219:220], key[:, :, :220], value[:, :, :220])
    torch.testing.assert_close(cache.attend(query[:, :, 219:220]), want, **EXACT)
    cache.reorder(torch.tensor([1, 1, 0]))
    assert cache.key.shape[0] == 3
    torch.testing.assert_close(cache.attend(query[[1, 1, 0], :, 219:220]), want[[1, 1, 0]], **EXACT)
    cache.reset()
    assert cache.length == 0
    cache.append(key[:1, :1, :5].float(), value[:1, :1, :5].float())
    assert cache.key.shape == (1, 1, 5, 16)


@pytest.mark.parametrize("backend", ["blocked", None])
def test_the_summary_survives_crop_and_reorder(backend: str | None) -> None:
    """Long enough that old keys are only known by it: a huge one among them, in another row of the batch each time."""
    query, key, value = _tensors(1600, kv_heads=2, dtype=torch.float32)
    key[0, :, 500] = 150.0 * query[0, ::2, 1399] / query[0, ::2, 1399].norm(dim=-1, keepdim=True)
    slopes = torch.tensor([0.3, 0.2, 0.1, 0.1])
    cache = KVCache(capacity=64)
    for start in range(0, 1600, 320):
        cache.append(key[:, :, start : start + 320], value[:, :, start : start + 320])
    cache.crop(540)
    cache.append(key[:, :, 540:1400], value[:, :, 540:1400])
    cache.reorder(torch.tensor([1, 0, 0]))
    rows = torch.tensor([1, 0, 0])
    want = alibi_attention(
        *(t[rows].double() for t in (query[:, :, 1399:1400], key[:, :, :1400], value[:, :, :1400])),
        slopes,
        tolerance=0.0,
    )
    got = cache.attend(query[rows, :, 1399:1400], slopes, backend=backend)
    torch.testing.assert_close(got.double(), want, rtol=1e-4, atol=1e-4)
    # The huge key decides: a summary that had lost it would have skipped it.
    torch.testing.assert_close(got[1, 2], value[0, 1, 500][None], rtol=1e-3, atol=1e-3)


class Handed(TorchDispatchMode):
    """The most numbers of a tensor that anything was handed; making tensors, and views, look at none."""

    def __init__(self) -> None:
        super().__init__()
        self.most = 0

    def __torch_dispatch__(
        self, func: Any, types: object, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> object:
        given = [*args, *(kwargs or {}).values()]
        if not func.is_view:
            self.most = max([self.most, *(each.numel() for each in given if isinstance(each, Tensor))])
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("kind", [KVCache, HorizonCache])
def test_a_reorder_costs_what_is_held_whatever_room_there_is(kind: type[KVCache | HorizonCache]) -> None:
    """Nor does anything come out of the room that it holds what was forgotten."""
    query, key, value = _tensors(4096)
    slopes, rows, cache = torch.tensor([0.5, 0.5, 0.25, 0.25]), torch.tensor([1, 1, 0]), kind()
    cache.append(key, torch.full_like(value, math.nan))
    cache.crop(0)
    cache.append(key[:, :, :100], value[:, :, :100])
    with Handed() as handed:
        cache.reorder(rows)
    assert handed.most == 3 * 2 * 100 * 16
    for at in range(100, 400):
        cache.append(key[rows, :, at : at + 1], value[rows, :, at : at + 1])
    want = alibi_attention(query[:, :, 399:400], key[:, :, :400], value[:, :, :400], slopes)
    torch.testing.assert_close(cache.attend(query[rows, :, 399:400], slopes), want[rows], **EXACT)
    cache.crop(0)
    cache.reorder(torch.tensor([0]))
    cache.append(key[:1, :, :400], value[:1, :, :400])
    torch.testing.assert_close(cache.attend(query[:1, :, 399:400], slopes), want[:1], **EXACT)


def test_autocast_leaves_what_is_held_alone() -> None:
    query, key, value = _tensors(700, batch=1, dtype=torch.float32)
    cache = KVCache()
    cache.append(key + 3000.0, value)
    want = cache.attend(query[:, :, -1:])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(cache.attend(query[:, :, -1:]), want)


def test_padding_that_is_not_finite_stays_outside(any_backend: str) -> None:
    query, key, value = _tensors(400, dtype=torch.float32)
    mask = torch.ones(2, 400, dtype=torch.bool)
    mask[1, :150] = False
    cache = KVCache()
    want_mask = mask[:, None, :, None]
    cache.append(key.masked_fill(~want_mask, math.nan), value.masked_fill(~want_mask, math.inf), key_mask=mask)
    got = cache.attend(query[:, :, -3:], backend=any_backend)
    torch.testing.assert_close(got, alibi_attention(query, key, value, key_mask=mask)[:, :, -3:])


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("reordered", [False, True])
def test_inference_mode_and_after(padded: bool, reordered: bool) -> None:
    query, key, value = _tensors(10, dtype=torch.float32)
    mask = torch.ones(2, 10, dtype=torch.bool)
    mask[1, :3] = not padded
    rows = torch.tensor([1, 0] if reordered else [0, 1])
    cache = KVCache()
    with torch.inference_mode():
        cache.append(key[:, :, :9], value[:, :, :9], key_mask=mask[:, :9] if padded else None)
        if reordered:
            cache.reorder(rows)
    with torch.no_grad():
        cache.append(key[rows, :, 9:], value[rows, :, 9:])
        want = alibi_attention(query, key, value, key_mask=mask)[rows, :, 9:]
        torch.testing.assert_close(cache.attend(query[rows, :, 9:]), want)


def test_what_is_kept_has_no_graph() -> None:
    """Under no_grad a key may require a gradient; what is held of it must not."""
    key = torch.randn(1, 2, 5, 8, requires_grad=True)
    for cache in (KVCache(), HorizonCache()):
        with torch.no_grad():
            cache.append(key, key)
        cache.append(key.detach(), key.detach())
        assert not cache.attend(torch.randn(1, 2, 1, 8)).requires_grad


def test_a_compiled_module_leaves_the_cache_to_python() -> None:
    module = ALiBiAttention(32, 4).eval()
    compiled = torch.compile(module, backend="aot_eager")
    x = torch.randn(1, 12, 32)
    caches = KVCache(), KVCache()
    with torch.no_grad():
        for part in (slice(0, 10), slice(10, 11), slice(11, 12)):
            got, want = compiled(x[:, part], cache=caches[0]), module(x[:, part], cache=caches[1])
            torch.testing.assert_close(got, want)
    # And what is compiled after it is still compiled whole.
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    torch.compile(ALiBiAttention(32, 4), fullgraph=True, backend=counter)(x)
    assert counter.frame_count == 1


def test_crop_forgets_what_was_not_finite() -> None:
    query, key, value = _tensors(1100, batch=1)
    spoilt = value.clone()
    spoilt[:, :, 1060] = math.nan
    cache = KVCache()
    cache.append(key, spoilt)
    assert not cache.attend(query[:, :, -1:]).isfinite().all()
    cache.crop(1050)
    torch.testing.assert_close(
        cache.attend(query[:, :, 1049:1050]), alibi_attention(query, key, value)[:, :, 1049:1050], **EXACT
    )


def test_module_with_a_cache() -> None:
    module = ALiBiAttention(64, 4, num_kv_heads=2).double().eval()
    x = torch.randn(2, 90, 64, dtype=torch.float64)
    mask = torch.ones(2, 90, dtype=torch.bool)
    mask[1, :20] = False
    with torch.no_grad():
        whole = module(x, key_mask=mask)
        cache = KVCache()
        parts = [
            module(x[:, a:b], key_mask=mask[:, a:b], cache=cache) for a, b in ((0, 60), (60, 61), (61, 62), (62, 90))
        ]
    torch.testing.assert_close(torch.cat(parts, 1), whole, **EXACT)


def test_a_layer_whose_attention_failed_leaves_the_cache_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    module, x, cache = ALiBiAttention(32, 4).eval(), torch.randn(2, 90, 32), KVCache()
    with torch.no_grad():
        expected = module(x)[:, 70:]
        module(x[:, :70], cache=cache)
        with monkeypatch.context() as patched:
            patched.setattr(KVCache, "attend", interrupted)
            with pytest.raises(KeyboardInterrupt):
                module(x[:, 70:], cache=cache)
        assert cache.length == 70
        torch.testing.assert_close(module(x[:, 70:], cache=cache), expected)
        # Of a cache that was empty nothing is left, not even the size of its batch.
        empty = KVCache()
        with monkeypatch.context() as patched:
            patched.setattr(KVCache, "attend", interrupted)
            with pytest.raises(KeyboardInterrupt):
                module(100 * x, key_mask=torch.ones(2, 90, dtype=torch.bool), cache=empty)
        torch.testing.assert_close(module(x[:1, :70], cache=empty), module(x[:1, :70]))
        assert empty.length == 70


def test_what_is_held_prints_and_is_counted() -> None:
    _, key, value = _tensors(300)
    cache = KVCache()
    assert repr(cache) == "KVCache(empty, 0 bytes)"
    cache.append(key, value[..., :8])
    # Room for 320 tokens of 16 + 8 numbers and 5 norms in 2 x 2 heads, and 2 x 2 centers of 16; float64 throughout.
    assert cache.bytes_held == 8 * 4 * (320 * 24 + 5 + 16)
    assert repr(cache) == (
        "KVCache(length=300, batch=2, num_kv_heads=2, head_dim=16 and 8, float64 on cpu, 246,432 bytes)"
    )
    cache.reset()
    assert cache.bytes_held == 0


def test_refusals() -> None:
    query, key, value = _tensors(10)
    cache = KVCache()
    with pytest.raises(ValueError, match="cache: expected keys and values to have been appended, got an empty cache"):
        _ = cache.key
    with pytest.raises(ValueError, match="query: expected at most one for each of the 0 tokens held"):
        cache.attend(query)
    with pytest.raises(ValueError, match="capacity: expected at least 1 token, got 0"):
        KVCache(0)
    for wrong in ("a", 2.5, True):
        with pytest.raises(ValueError, match=rf"^capacity: expected at least 1 token, got {wrong!r}; leave it out"):
            KVCache(capacity=wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="key: expected a tensor without a gradient"):
        cache.append(key.clone().requires_grad_(), value)
    with pytest.raises(ValueError, match="value: expected the batch, heads and tokens of key"):
        cache.append(key, value[:, :, :9])
    with pytest.raises(ValueError, match="key: expected 4 dimensions"):
        cache.append(key[0], value)
    cache.append(key, value)
    with pytest.raises(ValueError, match=r"key: expected torch.float64 of shape \(2, 2, tokens, 16\) on cpu, as the"):
        cache.append(key.float(), value.float())
    mask = torch.tensor([[False, True], [True, True]])
    with pytest.raises(
        ValueError, match="key_mask: expected padding on the left only, got padding after tokens in batch rows"
    ):
        cache.append(key[:, :, :2], value[:, :, :2], key_mask=mask)
    with pytest.raises(ValueError, match="length: expected an integer from 0 to 10, the tokens held, got 11"):
        cache.crop(11)
    with pytest.raises(ValueError, match=r"index: expected values from 0 to 1, got \[2\]"):
        cache.reorder(torch.tensor([2]))
    module = ALiBiAttention(64, 4, is_causal=False)
    with torch.no_grad(), pytest.raises(ValueError, match="cache: expected with causal attention only"):
        module(torch.randn(1, 3, 64), cache=KVCache())
    with torch.no_grad(), pytest.raises(ValueError, match=r"cache: expected without dropout, got dropout=0\.1"):
        ALiBiAttention(64, 4, dropout=0.1)(torch.randn(1, 3, 64), cache=KVCache())


def test_a_refused_append_changes_nothing() -> None:
    query, key, value = _tensors(10)
    cache = KVCache()
    cache.append(key, value)
    before = cache.attend(query)
    with pytest.raises(
        ValueError, match="key_mask: expected padding on the left only, got padding after tokens in batch rows"
    ):
        cache.append(key[:, :, :2], value[:, :, :2], key_mask=torch.tensor([[False, True], [True, True]]))
    assert cache.length == 10
    assert torch.equal(cache.attend(query), before)
    # Nor is an empty cache filled by halves: it takes another batch.
    cache = KVCache()
    with pytest.raises(ValueError, match=r"key_mask: expected padding on the left only, got .* in batch rows \[0\]; "):
        cache.append(key, value, key_mask=torch.tensor([[True] * 9 + [False], [True] * 10]))
    assert cache.bytes_held == 0
    cache.append(key[:1], value[:1])
    torch.testing.assert_close(cache.attend(query[:1]), before[:1], **EXACT)


def test_padding_may_go_on_in_the_next_chunk() -> None:
    query, key, value = _tensors(12)
    mask = torch.ones(2, 12, dtype=torch.bool)
    mask[1, :7] = False
    cache = KVCache()
    for at in range(0, 12, 3):
        cache.append(*(t[:, :, at : at + 3] for t in (key, value)), key_mask=mask[:, at : at + 3])
    torch.testing.assert_close(
        cache.attend(query[:, :, -1:]), alibi_attention(query, key, value, key_mask=mask)[:, :, -1:], **EXACT
    )
    cache.crop(5)
    with pytest.raises(ValueError, match=r"got padding after tokens in batch rows \[0\]; what is appended next"):
        cache.append(key[:, :, :3], value[:, :, :3], key_mask=torch.tensor([[False, True, True]] * 2))
    cache.append(key[:, :, 5:], value[:, :, 5:], key_mask=mask[:, 5:])
    torch.testing.assert_close(
        cache.attend(query[:, :, -1:]), alibi_attention(query, key, value, key_mask=mask)[:, :, -1:], **EXACT
    )
