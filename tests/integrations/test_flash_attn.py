"""flash-attn's interface against float64 attention written, entry by entry, from its documentation."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad

from alibi_attention import alibi_slopes
from alibi_attention.integrations import flash_attn as ours
from alibi_attention.integrations import flash_attn_arguments as arguments

HEADS, DIM = 4, 8
SLOPES = alibi_slopes(HEADS)


def documented(
    q: Tensor, k: Tensor, v: Tensor, slopes: Tensor | None, causal: bool, window: tuple[int, int], scale: float | None
) -> tuple[Tensor, Tensor]:
    """One sequence, (seqlen, heads, dim), in float64: out and lse (heads, seqlen)."""
    q, k, v = q.double(), k.double(), v.double()
    group = q.shape[1] // k.shape[1]
    shift = k.shape[0] - q.shape[0]
    outs, lses = [], []
    for head in range(q.shape[1]):
        scores = q[:, head] @ k[:, head // group].T * (q.shape[-1] ** -0.5 if scale is None else scale)
        for i in range(q.shape[0]):
            row = scores[i].clone()
            for j in range(k.shape[0]):
                if slopes is not None:
                    row[j] = row[j] - slopes[head].double() * abs(i + shift - j)
                hidden = causal and j > i + shift
                hidden |= window[0] >= 0 and j < i + shift - window[0]
                hidden |= window[1] >= 0 and j > i + shift + window[1]
                if hidden:
                    row[j] = -math.inf
            lse = torch.logsumexp(row, 0)
            empty = bool(lse == -math.inf)
            weights = torch.zeros_like(row) if empty else torch.exp(row - lse)
            outs.append(weights @ v[:, head // group])
            lses.append(lse)
    out = torch.stack(outs).view(q.shape[1], q.shape[0], v.shape[-1]).transpose(0, 1)
    return out, torch.stack(lses).view(q.shape[1], q.shape[0])


def tensors(q_len: int, k_len: int, *, batch: int = 2, kv_heads: int = HEADS, **options: Any) -> list[Tensor]:
    options = {"dtype": torch.float64, **options}
    shapes = (batch, q_len, HEADS, DIM), (batch, k_len, kv_heads, DIM), (batch, k_len, kv_heads, DIM)
    return [torch.randn(shape, **options) for shape in shapes]


def packed_lengths(lengths: list[int]) -> Tensor:
    return torch.tensor([sum(lengths[:n]) for n in range(len(lengths) + 1)], dtype=torch.int32)


@pytest.mark.parametrize("kv_heads", [HEADS, 1])
@pytest.mark.parametrize(("q_len", "k_len"), [(7, 7), (2, 5), (5, 2), (1, 6)])
@pytest.mark.parametrize("window", [(-1, -1), (2, -1), (1, 1), (-1, 0)])
@pytest.mark.parametrize("causal", [False, True])
def test_dense_batches(q_len: int, k_len: int, kv_heads: int, window: tuple[int, int], causal: bool) -> None:
    q, k, v = tensors(q_len, k_len, kv_heads=kv_heads)
    out, lse, probs = ours.flash_attn_func(
        q, k, v, causal=causal, window_size=window, alibi_slopes=SLOPES, return_attn_probs=True
    )
    assert (probs.shape, probs.dtype, probs.device) == ((0,), q.dtype, q.device)
    assert out.shape == (2, q_len, HEADS, DIM)
    for row in range(2):
        want_out, want_lse = documented(q[row], k[row], v[row], SLOPES, causal, window, None)
        torch.testing.assert_close(out[row], want_out, rtol=0, atol=1e-12)
        torch.testing.assert_close(lse[row], want_lse, rtol=0, atol=1e-12)


def test_the_pictures_of_the_documentation() -> None:
    pictures = {(2, 5): ["11110", "11111"], (5, 2): ["00", "00", "00", "10", "11"]}
    for (q_len, k_len), rows in pictures.items():
        q, k, v = torch.zeros(1, q_len, 1, k_len), torch.zeros(1, k_len, 1, k_len), torch.eye(k_len)[None, :, None]
        # Values are unit vectors and scores all alike, so the output is the weights: even over what is seen.
        out = ours.flash_attn_func(q, k, v, causal=True)
        seen = torch.tensor([[float(mark) for mark in row] for row in rows])
        torch.testing.assert_close(out[0, :, 0], seen / seen.sum(1, keepdim=True).clamp_min(1))


def test_defaults_are_flash_attns() -> None:
    q, k, v = tensors(3, 6)
    out = ours.flash_attn_func(q, k, v)
    weights = torch.softmax(torch.einsum("bqhd,bkhd->bhqk", q, k) / math.sqrt(DIM), -1)
    torch.testing.assert_close(out, torch.einsum("bhqk,bkhd->bqhd", weights, v))
    signatures = {name: inspect.signature(getattr(ours, name)).parameters for name in ours.__all__}
    assert list(signatures["flash_attn_func"]) == [
        *("q", "k", "v", "dropout_p", "softmax_scale", "causal", "window_size", "softcap", "alibi_slopes"),
        *("deterministic", "return_attn_probs"),
    ]
    assert list(signatures["flash_attn_varlen_func"]) == [
        *("q", "k", "v", "cu_seqlens_q", "cu_seqlens_k", "max_seqlen_q", "max_seqlen_k", "dropout_p"),
        *("softmax_scale", "causal", "window_size", "softcap", "alibi_slopes", "deterministic"),
        *("return_attn_probs", "block_table"),
    ]
    assert list(signatures["flash_attn_with_kvcache"]) == [
        *("q", "k_cache", "v_cache", "k", "v", "rotary_cos", "rotary_sin", "cache_seqlens", "cache_batch_idx"),
        *("cache_leftpad", "block_table", "softmax_scale", "causal", "window_size", "softcap"),
        *("rotary_interleaved", "alibi_slopes", "num_splits", "return_softmax_lse"),
    ]
    assert signatures["flash_attn_func"]["causal"].default is False
    assert signatures["flash_attn_func"]["window_size"].default == (-1, -1)


@pytest.mark.parametrize("causal", [False, True])
def test_slopes_and_scales_of_ones_own(causal: bool) -> None:
    q, k, v = tensors(5, 9)
    slopes = torch.stack([SLOPES, 3 * SLOPES])
    out = ours.flash_attn_func(q, k, v, softmax_scale=0.7, causal=causal, alibi_slopes=slopes)
    for row in range(2):
        want, _ = documented(q[row], k[row], v[row], slopes[row], causal, (-1, -1), 0.7)
        torch.testing.assert_close(out[row], want, rtol=0, atol=1e-12)


def test_options_may_be_numbers_of_numpys() -> None:
    q, k, v = tensors(5, 9)
    same = {
        "causal": np.bool_(True), "softmax_scale": np.float32(0.5), "window_size": (np.int64(3), np.int32(-1)),
        "dropout_p": np.float32(0.0), "softcap": np.float64(0.0), "deterministic": np.bool_(True),
    }  # fmt: skip
    want = ours.flash_attn_func(q, k, v, causal=True, softmax_scale=0.5, window_size=(3, -1))
    got, _, _ = ours.flash_attn_func(q, k, v, **same, return_attn_probs=np.bool_(True))
    assert torch.equal(got, want)
    cu, packed = packed_lengths([9, 9]), [t.flatten(0, 1) for t in (k, k, v)]
    longest = np.int64(9)
    got = ours.flash_attn_varlen_func(*packed, cu, cu, longest, longest)
    assert torch.equal(got, ours.flash_attn_varlen_func(*packed, cu, cu, 9, 9))
    read = [ours.flash_attn_with_kvcache(q, k, v, cache_seqlens=length) for length in (7, np.int64(7))]
    assert torch.equal(*read)


def test_gradients() -> None:
    inputs = [t.requires_grad_() for t in tensors(4, 6, batch=1, kv_heads=2)]
    slopes = SLOPES.double().requires_grad_()
    out, lse, _ = ours.flash_attn_func(*inputs, causal=True, alibi_slopes=slopes, return_attn_probs=True)
    cotangents = torch.randn_like(out), torch.randn_like(lse)
    got = torch.autograd.grad((out, lse), [*inputs, slopes], cotangents)
    want_out, want_lse = documented(*(t[0] for t in inputs), slopes, True, (-1, -1), None)
    want = torch.autograd.grad((want_out[None], want_lse[None]), [*inputs, slopes], cotangents)
    for ours_, theirs in zip(got, want, strict=True):
        torch.testing.assert_close(ours_, theirs, rtol=0, atol=1e-11)


def test_lse_is_not_shifted_as_flash_attns_causal_one() -> None:
    q, k, v = tensors(6, 6)
    _, lse, _ = ours.flash_attn_func(q, k, v, causal=True, alibi_slopes=SLOPES, return_attn_probs=True)
    # Shards of the keys merge by such an lse; one shifted by m * p would not be the sum's.
    scores = torch.einsum("bqhd,bkhd->bhqk", q, k) / math.sqrt(DIM) + SLOPES.double()[:, None, None] * torch.arange(6)
    shifted = torch.logsumexp(scores.masked_fill(torch.ones(6, 6).triu(1).bool(), -math.inf), -1)
    torch.testing.assert_close(lse, shifted - SLOPES.double()[:, None] * torch.arange(6))


def test_packed_arguments() -> None:
    q, k, v = tensors(6, 6)
    options: dict[str, Any] = {"causal": True, "alibi_slopes": SLOPES}
    want = ours.flash_attn_func(q, k, v, **options)
    assert torch.equal(ours.flash_attn_qkvpacked_func(torch.stack([q, k, v], 2), **options), want)
    assert torch.equal(ours.flash_attn_kvpacked_func(q, torch.stack([k, v], 2), **options), want)
    cu = packed_lengths([4, 2, 6])
    q, k, v = (t.flatten(0, 1) for t in (q, k, v))
    want = ours.flash_attn_varlen_func(q, k, v, cu, cu, 6, 6, 0.0, None, **options)
    packed = torch.stack([q, k, v], 1)
    assert torch.equal(ours.flash_attn_varlen_qkvpacked_func(packed, cu, 6, 0.0, None, **options), want)
    kv = torch.stack([k, v], 1)
    assert torch.equal(ours.flash_attn_varlen_kvpacked_func(q, kv, cu, cu, 6, 6, 0.0, None, **options), want)


@pytest.mark.parametrize("own_slopes", [False, True])
@pytest.mark.parametrize("causal", [False, True])
def test_packed_sequences(causal: bool, own_slopes: bool) -> None:
    q_lengths, k_lengths = [3, 0, 5, 2], [3, 4, 2, 0]
    cu_q, cu_k = packed_lengths(q_lengths), packed_lengths(k_lengths)
    q = torch.randn(10, HEADS, DIM, dtype=torch.float64)
    k, v = (torch.randn(9, 2, DIM, dtype=torch.float64) for _ in range(2))
    slopes = torch.stack([SLOPES * (1 + n) for n in range(4)]) if own_slopes else SLOPES
    out, lse, _ = ours.flash_attn_varlen_func(
        q, k, v, cu_q, cu_k, 5, 4, causal=causal, window_size=(2, 3), alibi_slopes=slopes, return_attn_probs=True
    )
    assert lse.shape == (HEADS, 10)
    for n in range(4):
        at_q, at_k = slice(cu_q[n], cu_q[n + 1]), slice(cu_k[n], cu_k[n + 1])
        if q_lengths[n] == 0:
            continue
        if k_lengths[n] == 0:
            assert out[at_q].abs().max() == 0
            assert (lse[:, at_q] == -math.inf).all()
            continue
        own = slopes[n] if own_slopes else SLOPES
        want_out, want_lse = documented(q[at_q], k[at_k], v[at_k], own, causal, (2, 3), None)
        torch.testing.assert_close(out[at_q], want_out, rtol=0, atol=1e-12)
        torch.testing.assert_close(lse[:, at_q], want_lse, rtol=0, atol=1e-12)


@pytest.mark.parametrize("own_slopes", [False, True])
@pytest.mark.parametrize("readable", [True, False])
@pytest.mark.parametrize(("q_tail", "k_tail"), [(3, 0), (0, 2), (4, 70)])
def test_what_lies_behind_the_last_sequence_takes_no_part(
    q_tail: int, k_tail: int, readable: bool, own_slopes: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor is it looked at: a buffer that is filled in parts holds anything there."""
    if not readable:  # as on a GPU
        monkeypatch.setattr(arguments, "values_can_be_read", lambda _: False)
    cu_q, cu_k = packed_lengths([3, 0, 5]), packed_lengths([3, 4, 2])
    whole = [torch.randn(size, HEADS, DIM, dtype=torch.float64) for size in (8, 9, 9)]
    tails = [torch.full((size, HEADS, DIM), math.nan, dtype=torch.float64) for size in (q_tail, k_tail, k_tail)]
    slopes = torch.stack([SLOPES, 2 * SLOPES, 3 * SLOPES]) if own_slopes else SLOPES
    results = []
    for parts in (whole, [torch.cat(pair) for pair in zip(whole, tails, strict=True)]):
        inputs = [t.requires_grad_() for t in parts]
        out, lse, _ = ours.flash_attn_varlen_func(
            *inputs, cu_q, cu_k, 5, 4, causal=True, alibi_slopes=slopes, return_attn_probs=True
        )
        (out.square().sum() + lse[lse.isfinite()].sum()).backward()
        results.append([out, lse.T, *(t.grad for t in inputs)])
    for want, got, tail in zip(*results, (q_tail, q_tail, q_tail, k_tail, k_tail), strict=True):
        torch.testing.assert_close(got[: len(want)], want, rtol=0, atol=1e-12)
        assert got[len(want) :].shape[0] == tail
        assert torch.isin(got[len(want) :], torch.tensor([0.0, -math.inf], dtype=torch.float64)).all()
    assert (results[1][1][8:] == -math.inf).all()
    assert (results[1][0][8:] == 0).all()


def test_a_buffer_without_sequences_gives_nothing() -> None:
    q, cu = torch.ones(4, HEADS, DIM), packed_lengths([0, 0])
    for slopes in (None, torch.stack([SLOPES, SLOPES])):
        assert ours.flash_attn_varlen_func(q, q, q, cu, cu, 0, 0, alibi_slopes=slopes).abs().max() == 0


def test_dropout_keeps_the_expected_output_and_draws_anew() -> None:
    q, k, v = tensors(4, 4000, batch=1)
    dry = ours.flash_attn_func(q, k, v)
    wet, again = (ours.flash_attn_func(q, k, v, dropout_p=0.5) for _ in range(2))
    assert not torch.equal(wet, again)
    # 4000 weights of about 1/4000: the sample mean stands within a few of its standard deviations, 1/sqrt(4000).
    assert 0.0 < float((wet - dry).abs().max()) < 8 / math.sqrt(4000)


# Caches


@pytest.mark.parametrize("lengths", [[3, 3], [0, 5], [7, 2]])
@pytest.mark.parametrize("new", [1, 3])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("window", [(-1, -1), (4, 0)])
def test_caches_are_written_in_place_and_attended(
    lengths: list[int], new: int, causal: bool, window: tuple[int, int]
) -> None:
    q, k, v = tensors(new, new, kv_heads=2)
    _, k_cache, v_cache = tensors(1, 12, kv_heads=2)
    k_cache[:, 10:] = math.nan  # never read
    want_k, want_v = k_cache.clone(), v_cache.clone()
    for row, length in enumerate(lengths):
        want_k[row, length : length + new] = k[row]
        want_v[row, length : length + new] = v[row]
    out, lse = ours.flash_attn_with_kvcache(
        q, k_cache, v_cache, k, v, cache_seqlens=torch.tensor(lengths, dtype=torch.int32), causal=causal,
        window_size=window, alibi_slopes=SLOPES, return_softmax_lse=True,
    )  # fmt: skip
    assert torch.equal(k_cache.nan_to_num(), want_k.nan_to_num())
    assert torch.equal(v_cache, want_v)
    for row, length in enumerate(lengths):
        held = slice(0, length + new)
        want_out, want_lse = documented(q[row], want_k[row, held], want_v[row, held], SLOPES, causal, window, None)
        torch.testing.assert_close(out[row], want_out, rtol=0, atol=1e-12)
        torch.testing.assert_close(lse[row], want_lse, rtol=0, atol=1e-12)


def test_decoding_step_by_step_is_one_causal_call() -> None:
    q, k, v = tensors(9, 9)
    whole = ours.flash_attn_func(q, k, v, causal=True, alibi_slopes=SLOPES)
    k_cache, v_cache = (torch.zeros(2, 9, HEADS, DIM, dtype=torch.float64) for _ in range(2))
    for t in range(9):
        at = slice(t, t + 1)
        step = ours.flash_attn_with_kvcache(
            q[:, at], k_cache, v_cache, k[:, at], v[:, at], cache_seqlens=t, causal=True, alibi_slopes=SLOPES
        )
        torch.testing.assert_close(step, whole[:, at], rtol=0, atol=1e-12)
    assert torch.equal(k_cache, k)


def test_a_cache_is_read_alone_from_chosen_rows_past_its_left_padding() -> None:
    q, _, _ = tensors(2, 2)
    _, k_cache, v_cache = tensors(1, 8, batch=3)
    rows, lengths, pad = [2, 0], [6, 8], [1, 3]
    integers = [torch.tensor(values, dtype=torch.int32) for values in (lengths, rows, pad)]
    out = ours.flash_attn_with_kvcache(
        q, k_cache, v_cache, cache_seqlens=integers[0], cache_batch_idx=integers[1], cache_leftpad=integers[2],
        causal=True, alibi_slopes=SLOPES,
    )  # fmt: skip
    for n in range(2):
        held = slice(pad[n], lengths[n])
        want, _ = documented(q[n], k_cache[rows[n], held], v_cache[rows[n], held], SLOPES, True, (-1, -1), None)
        torch.testing.assert_close(out[n], want, rtol=0, atol=1e-12)
    whole = ours.flash_attn_with_kvcache(q, k_cache[:2], v_cache[:2])
    torch.testing.assert_close(whole, ours.flash_attn_func(q, k_cache[:2], v_cache[:2]))


def test_left_padding_comes_with_a_prompt_and_may_be_all_there_is() -> None:
    q, k, v = tensors(4, 4)
    k_cache, v_cache = (torch.full((2, 6, HEADS, DIM), math.nan, dtype=torch.float64) for _ in range(2))
    pad = torch.tensor([1, 4], dtype=torch.int32)
    out = ours.flash_attn_with_kvcache(
        q, k_cache, v_cache, k, v, cache_seqlens=0, cache_leftpad=pad, causal=True, alibi_slopes=SLOPES
    )
    # Row 0: three queries after one that is padding itself. Row 1 is padding up to its end.
    want, _ = documented(q[0, 1:], k[0, 1:], v[0, 1:], SLOPES, True, (-1, -1), None)
    torch.testing.assert_close(out[0, 1:], want, rtol=0, atol=1e-12)
    assert out[0, 0].abs().max() == out[1].abs().max() == 0


@pytest.mark.parametrize("lengths", [3, [3, 3], [2, 3]])
@pytest.mark.parametrize("pad", [[6, 0], [0, -1], [99, -5]])
def test_left_padding_outside_the_row_is_refused(pad: list[int], lengths: int | list[int]) -> None:
    q, k, v = tensors(2, 2)
    _, k_cache, v_cache = tensors(1, 8)
    held = lengths if isinstance(lengths, int) else torch.tensor(lengths, dtype=torch.int32)
    with pytest.raises(ValueError, match=r"^cache_leftpad: expected the first index .* \[., 5\], got \[") as error:
        ours.flash_attn_with_kvcache(
            q, k_cache, v_cache, k, v, cache_seqlens=held, cache_leftpad=torch.tensor(pad, dtype=torch.int32)
        )
    assert str(error.value).endswith(f"got {pad}")


def test_new_tokens_go_to_chosen_rows() -> None:
    q, k, v = tensors(2, 2)
    _, k_cache, v_cache = tensors(1, 8, batch=3)
    before = k_cache.clone()
    rows = torch.tensor([2, 0], dtype=torch.int32)
    ours.flash_attn_with_kvcache(q, k_cache, v_cache, k, v, cache_seqlens=5, cache_batch_idx=rows, causal=True)
    assert torch.equal(k_cache[2, 5:7], k[0])
    assert torch.equal(k_cache[0, 5:7], k[1])
    assert torch.equal(k_cache[1], before[1])


def test_an_empty_cache_gives_nothing() -> None:
    q, k_cache, v_cache = tensors(2, 4)
    out, lse = ours.flash_attn_with_kvcache(q, k_cache, v_cache, cache_seqlens=0, return_softmax_lse=True)
    assert out.abs().max() == 0
    assert (lse == -math.inf).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_lower_precision(dtype: torch.dtype) -> None:
    q, k, v = (t.to(dtype) for t in tensors(33, 65))
    out, lse, _ = ours.flash_attn_func(q, k, v, causal=True, alibi_slopes=SLOPES, return_attn_probs=True)
    assert out.dtype == dtype
    assert lse.dtype == torch.float32
    want, _ = documented(q[0], k[0], v[0], SLOPES, True, (-1, -1), None)
    # The weights add up to 1, so the output is off by a few roundings of values of size 4 at most.
    torch.testing.assert_close(out[0].double(), want, rtol=0, atol=16 * torch.finfo(dtype).eps)


def test_autocast_changes_nothing() -> None:
    q, k, v = tensors(16, 16, dtype=torch.float32)
    cu = packed_lengths([20, 12])
    packed = [t.flatten(0, 1) for t in (q, k, v)]
    caches = [torch.cat([t, t], 1) for t in (k, v)]

    def results() -> list[Tensor]:
        out, lse, _ = ours.flash_attn_func(q, k, v, causal=True, alibi_slopes=SLOPES, return_attn_probs=True)
        each = torch.stack([SLOPES, 2 * SLOPES])
        both = [ours.flash_attn_varlen_func(*packed, cu, cu, 20, 20, alibi_slopes=own) for own in (SLOPES, each)]
        return [out, lse, *both, ours.flash_attn_with_kvcache(q, *caches, k, v, cache_seqlens=16, causal=True)]

    want = results()
    with torch.autocast("cpu", torch.bfloat16):
        got = results()
    for one, other in zip(got, want, strict=True):
        assert one.dtype == torch.float32
        torch.testing.assert_close(one, other)


def test_compiles_without_a_break() -> None:
    q, k, v = tensors(16, 16, dtype=torch.float32)
    compiled = torch.compile(ours.flash_attn_func, fullgraph=True, backend="eager")
    want = ours.flash_attn_func(q, k, v, causal=True)
    torch.testing.assert_close(compiled(q, k, v, causal=True), want)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(compiled(q, k, v, causal=True), want)


def test_a_refused_call_leaves_the_cache_as_it_was() -> None:
    q, k, v = tensors(1, 1)
    _, k_cache, v_cache = tensors(1, 4)
    before = k_cache.clone(), v_cache.clone()
    for options in (
        {"window_size": 3}, {"softcap": 1.0}, {"alibi_slopes": SLOPES[:1]}, {"cache_seqlens": 4},
        {"softmax_scale": math.inf}, {"softmax_scale": math.nan}, {"alibi_slopes": SLOPES * math.nan},
        {"alibi_slopes": SLOPES.clone().requires_grad_()},
        # What only the operator itself refuses.
        {"softmax_scale": 1e300}, {"alibi_slopes": SLOPES.double() + 1e308}, {"alibi_slopes": SLOPES.to_sparse()},
        {"cache_leftpad": torch.tensor([0, 2], dtype=torch.int32)},
    ):  # fmt: skip
        with pytest.raises((ValueError, NotImplementedError), match=rf"^{next(iter(options))}: expected"):
            ours.flash_attn_with_kvcache(q, k_cache, v_cache, k, v, **{"cache_seqlens": 0, **options})
    with pytest.raises(ValueError, match=r"^q: expected a dense tensor"):
        ours.flash_attn_with_kvcache(q.to_sparse(), k_cache, v_cache, k, v, cache_seqlens=0)
    # What only writing would find, of the cache that is written second.
    expanded = v_cache[:, :1].expand_as(v_cache)
    with torch.inference_mode():
        inferred = v_cache.clone()
    for spoilt, why in (
        (expanded, "memory of its own for each element"),
        (inferred, "a tensor that can be written to"),
    ):
        for lengths in (0, torch.tensor([0, 1], dtype=torch.int32)):
            with pytest.raises(ValueError, match=rf"^v_cache: expected {why}, got "):
                ours.flash_attn_with_kvcache(q, k_cache, spoilt, k, v, cache_seqlens=lengths)
            with pytest.raises(ValueError, match=rf"^k_cache: expected {why}, got "):
                ours.flash_attn_with_kvcache(q, spoilt, v_cache, k, v, cache_seqlens=lengths)
    assert torch.equal(k_cache, before[0])
    assert torch.equal(v_cache, before[1])


def test_caches_that_cannot_be_written_are_read() -> None:
    q, k, v = tensors(1, 4)
    k_cache, v_cache = (t[:, :1].expand_as(t) for t in (k, v))
    want = ours.flash_attn_func(q, k_cache, v_cache)
    torch.testing.assert_close(ours.flash_attn_with_kvcache(q, k_cache, v_cache), want)
    with torch.inference_mode():
        inferred = k_cache.clone(), v_cache.clone()
        ours.flash_attn_with_kvcache(q, *inferred, k[:, :1], v[:, :1], cache_seqlens=0)
    torch.testing.assert_close(ours.flash_attn_with_kvcache(q, *inferred), want)


@pytest.mark.filterwarnings("ignore:`torch.jit.script`:DeprecationWarning")  # torch's own, from what make_dual imports
def test_forward_mode_leaves_the_cache_as_it_was() -> None:
    q, k, v = tensors(1, 1)
    _, k_cache, v_cache = tensors(1, 4)
    before = k_cache.clone()
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(q, q)
        with pytest.raises(NotImplementedError, match=r"^q: expected a tensor without a tangent"):
            ours.flash_attn_with_kvcache(dual, k_cache, v_cache, k, v, cache_seqlens=0)
    assert torch.equal(k_cache, before)


# Refusals

Q, K, V = torch.zeros(2, 3, 4, 8), torch.zeros(2, 5, 4, 8), torch.zeros(2, 5, 4, 8)
CU = torch.tensor([0, 3, 6], dtype=torch.int32)
FLAT = torch.zeros(6, 4, 8)

REFUSED: list[tuple[Callable[[], Any], type[Exception], str]] = [
    (lambda: ours.flash_attn_func(Q, K, V, softcap=30.0), NotImplementedError, "softcap: expected 0.0, got 30.0"),
    (
        lambda: ours.flash_attn_func(Q, K, V, 0.0, None, True, (-1, -1), SLOPES),
        ValueError,
        "softcap: expected 0.0, got a tensor of shape (4,); pass alibi_slopes by name",
    ),
    (
        lambda: ours.flash_attn_func(Q, K, V, 0.1, return_attn_probs=True),
        NotImplementedError,
        "return_attn_probs: expected with dropout_p 0",
    ),
    (
        lambda: ours.flash_attn_func(Q.to("meta"), K.to("meta"), V.to("meta"), deterministic=True),
        NotImplementedError,
        "deterministic: expected False on meta; call torch.use_deterministic_algorithms",
    ),
    (lambda: ours.flash_attn_func(Q, K, V, causal=1), ValueError, "causal: expected True or False, got 1"),
    (lambda: ours.flash_attn_func(Q, K, V, 1.0), ValueError, "dropout_p: expected a probability in [0, 1), got 1.0"),
    (lambda: ours.flash_attn_func(Q, K, V, window_size=4), ValueError, "window_size: expected (left, right)"),
    (lambda: ours.flash_attn_func(Q, K, V, window_size=(None, 0)), ValueError, "window_size: expected two integers"),
    (
        lambda: ours.flash_attn_func(Q, K, V, window_size=(np.bool_(True), 0)),
        ValueError,
        "window_size: expected two integers",
    ),
    (lambda: ours.flash_attn_func(Q, K, V, causal=np.int64(1)), ValueError, "causal: expected True or False, got "),
    (
        lambda: ours.flash_attn_func(Q, K, V, softmax_scale=torch.tensor(0.1)),
        ValueError,
        "softmax_scale: expected a number, got tensor(0.1000)",
    ),
    (lambda: ours.flash_attn_func(Q, K, V, softmax_scale="1"), ValueError, "softmax_scale: expected a number"),
    (lambda: ours.flash_attn_func(Q, K, V, softmax_scale=1e39), ValueError, "softmax_scale: expected a number between"),
    (lambda: ours.flash_attn_func(Q, K.to_sparse(), V), ValueError, "k: expected a dense tensor"),
    (lambda: ours.flash_attn_func(Q[0], K, V), ValueError, "q: expected (batch, seqlen, nheads, headdim)"),
    (lambda: ours.flash_attn_func(Q, K, None), ValueError, "v: expected a torch.Tensor, got NoneType"),
    (lambda: ours.flash_attn_func(Q, K, V[:, :4]), ValueError, "v: expected the shape of k, (2, 5, 4, 8)"),
    (lambda: ours.flash_attn_func(Q, K.half(), V), ValueError, "k: expected torch.float32 on cpu, as q"),
    (lambda: ours.flash_attn_func(Q, K[..., :4], V), ValueError, "k: expected the headdim of q, 8"),
    (lambda: ours.flash_attn_func(Q, K[:, :, :3], V[:, :, :3]), ValueError, "k: expected a number of heads that"),
    (lambda: ours.flash_attn_func(Q, K[:1], V[:1]), ValueError, "k: expected the batch of q, 2"),
    (lambda: ours.flash_attn_func(Q, K, V, alibi_slopes=SLOPES[:3]), ValueError, "alibi_slopes: expected shape (4,)"),
    (lambda: ours.flash_attn_func(Q, K, V, alibi_slopes=SLOPES.half()), ValueError, "alibi_slopes: expected float32"),
    (lambda: ours.flash_attn_func(Q, K, V, alibi_slopes=0.5), ValueError, "alibi_slopes: expected a float32 tensor"),
    (
        lambda: ours.flash_attn_qkvpacked_func(torch.zeros(2, 3, 2, 4, 8)),
        ValueError,
        "qkv: expected a tensor (batch, seqlen, 3, nheads, headdim), got (2, 3, 2, 4, 8)",
    ),
    (
        lambda: ours.flash_attn_varlen_func(FLAT, FLAT, FLAT, CU, CU, 3, 3, block_table=CU),
        NotImplementedError,
        "block_table: expected None, a paged cache is not carried",
    ),
    (
        lambda: ours.flash_attn_varlen_func(FLAT, FLAT, FLAT, CU.long(), CU, 3, 3),
        ValueError,
        "cu_seqlens_q: expected int32 of shape (sequences + 1,)",
    ),
    (
        lambda: ours.flash_attn_varlen_func(FLAT, FLAT, FLAT, CU, CU - 1, 3, 3),
        ValueError,
        "cu_seqlens_k: expected values that rise from 0 to at most k's total 6",
    ),
    (
        lambda: ours.flash_attn_varlen_func(FLAT[:5], FLAT, FLAT, CU, CU, 3, 3),
        ValueError,
        "cu_seqlens_q: expected values that rise from 0 to at most q's total 5, got [0, 3, 6]",
    ),
    (
        lambda: ours.flash_attn_varlen_func(FLAT, FLAT, FLAT, CU, CU, 3, 2),
        ValueError,
        "max_seqlen_k: expected at least the longest sequence, 3, got 2",
    ),
    (
        lambda: ours.flash_attn_varlen_func(FLAT, FLAT, FLAT, CU, CU[[0, 2]], 3, 6),
        ValueError,
        "cu_seqlens_k: expected as many sequences as cu_seqlens_q, 2, got 1",
    ),
    (
        lambda: ours.flash_attn_with_kvcache(Q, K, V, rotary_cos=Q),
        NotImplementedError,
        "rotary_cos: expected None, rotary embedding is not carried",
    ),
    (
        lambda: ours.flash_attn_with_kvcache(Q, K, V, block_table=CU),
        NotImplementedError,
        "block_table: expected None, a paged cache is not carried",
    ),
    (lambda: ours.flash_attn_with_kvcache(Q, K, V, Q), ValueError, "k: expected together with v"),
    (lambda: ours.flash_attn_with_kvcache(Q, K, V, Q, Q), ValueError, "cache_seqlens: expected with k and v"),
    (
        lambda: ours.flash_attn_with_kvcache(Q, K, V, Q, Q, cache_seqlens=3),
        ValueError,
        "cache_seqlens: expected at least 0 and, with 3 new tokens, at most 2 in a cache of 5, got [3]",
    ),
    (
        lambda: ours.flash_attn_with_kvcache(Q, K, V, cache_seqlens=torch.tensor([1.0, 2.0])),
        ValueError,
        "cache_seqlens: expected int32 of shape (2,), got torch.float32",
    ),
    (
        lambda: ours.flash_attn_with_kvcache(Q, K, V, cache_batch_idx=torch.tensor([0, 2], dtype=torch.int32)),
        ValueError,
        "cache_batch_idx: expected rows of the cache, 0 to 1, got [0, 2]",
    ),
    (
        lambda: ours.flash_attn_with_kvcache(Q, K[:1], V[:1]),
        ValueError,
        "k_cache: expected one row for each of the 2 of q, got 1",
    ),
    (
        lambda: ours.flash_attn_with_kvcache(Q.clone().requires_grad_(), K, V),
        ValueError,
        "q: expected a tensor without a gradient",
    ),
]


@pytest.mark.parametrize(("call", "kind", "text"), REFUSED, ids=[text.split(":")[0] for _, _, text in REFUSED])
def test_refusals_name_the_argument(call: Callable[[], Any], kind: type[Exception], text: str) -> None:
    with pytest.raises(kind) as error:
        call()
    assert str(error.value).startswith(text)
