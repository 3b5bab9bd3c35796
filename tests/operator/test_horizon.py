"""The certificate is sound: what is dropped <= what the certificate says <= the tolerance. And skipping does happen."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from operator_budget import problem_for, serves
from operator_cases import Case
from torch import Tensor

from alibi_attention import Certificate, alibi_attention, alibi_slopes, certify
from alibi_attention.backends import schedule as schedule_module
from alibi_attention.horizon import BLOCK_K, BLOCK_Q
from alibi_attention.visibility import distances, row_ranges, visible

ADVERSARIES = ("none", "equal keys", "one huge old key", "sink", "growing", "spikes", "aligned", "cluster")


def _afflict(kind: str, query: Tensor, key: Tensor, generator: torch.Generator) -> None:
    """Rewrites keys (and queries) in place into what a careless bound would get wrong."""
    length = key.shape[2]
    if kind == "equal keys":
        key[:] = key[:, :, :1]
    elif kind == "one huge old key":
        key[:, :, length // 5] *= 30.0
    elif kind == "sink":
        key[:, :, 0] = 4.0 * query[:, : key.shape[1]].mean(2) / query.shape[-1] ** 0.5 + 3.0 * key[:, :, 0]
    elif kind == "growing":
        key *= torch.linspace(3.0, 0.1, length).to(key.dtype)[None, None, :, None]
    elif kind == "spikes":
        where = torch.randint(length, (3,), generator=generator)
        key[:, :, where] *= 8.0
        query[:, :, torch.randint(query.shape[2], (3,), generator=generator)] *= 8.0
    elif kind == "aligned":
        # The worst case of Cauchy-Schwarz: the old keys point exactly where the queries do.
        query[:] = query[:, :, :1] * query.norm(dim=-1, keepdim=True) / query[:, :, :1].norm(dim=-1, keepdim=True)
        direction = query[:, : key.shape[1], :1] / query[:, : key.shape[1], :1].norm(dim=-1, keepdim=True)
        key[:, :, : length // 2] = direction * key[:, :, : length // 2].norm(dim=-1, keepdim=True)
    elif kind == "cluster":
        key += 20.0 * torch.randn(key.shape[0], key.shape[1], 1, key.shape[3], generator=generator).to(key.dtype)


@st.composite
def long_cases(draw: st.DrawFn, kind: str) -> Case:
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    group, kv_heads = draw(st.sampled_from([(1, 2), (2, 1), (1, 3)]))
    heads = group * kv_heads
    batch, dim = draw(st.integers(1, 2)), draw(st.sampled_from([4, 16, 64]))
    k_len = draw(st.integers(280, 640))
    q_len = draw(st.one_of(st.just(k_len), st.integers(16, 400)))
    options: dict[str, Any] = {"is_causal": draw(st.booleans())}
    shape = draw(st.sampled_from(["plain", "plain", "offset", "mask", "packed", "window"]))
    if shape == "offset":
        options["query_offset"] = torch.tensor([draw(st.integers(-50, k_len + 50)) for _ in range(batch)])
    elif shape == "mask":
        mask = torch.zeros(batch, k_len, dtype=torch.bool)
        for row in mask:
            start = draw(st.integers(0, k_len // 2))
            row[start : draw(st.integers(start, k_len))] = True
        options["key_mask"] = mask
    elif shape == "window":
        options["window"] = (draw(st.integers(0, k_len)), draw(st.integers(0, k_len)))
    elif shape == "packed":
        batch, q_len = 1, k_len
        inner = sorted(draw(st.integers(0, k_len)) for _ in range(2))
        options["cu_seqlens"] = torch.tensor([0, *inner, k_len], dtype=torch.int32)
    dtype = draw(st.sampled_from([torch.float32, torch.float32, torch.float64, torch.bfloat16]))
    width = draw(st.sampled_from([0.1, 1.0, 1.0, 2.0]))
    query = (width * torch.randn(batch, heads, q_len, dim, generator=generator)).to(dtype)
    key = (width * torch.randn(batch, kv_heads, k_len, dim, generator=generator)).to(dtype)
    _afflict(kind, query, key, generator)
    value = torch.randn(batch, kv_heads, k_len, dim, generator=generator).to(dtype)
    slopes = torch.exp2(-draw(st.sampled_from([1.0, 3.0])) * torch.rand(batch, heads, generator=generator) - 0.1)
    options["tolerance"] = draw(st.sampled_from([2.0**-24, 2.0**-24, 1e-3, 0.5, 2.0**-53]))
    empty = torch.empty(0)
    return Case(query, key, value, slopes, options, empty, empty, {"adversary": kind, "width": width})


def _share_of_cases() -> int:
    """Cases for one adversary, so that --cases counts all of them."""
    return max(1, settings.default.max_examples // len(ADVERSARIES))


def true_shares(case: Case, certificate: Certificate) -> Tensor:
    """(batch, num_heads, blocks): the largest share of mass any row of a block really has outside its window."""
    problem = problem_for(case)
    rows = row_ranges(problem)
    keys = torch.arange(problem.k_len)
    wide_key = case.key.double().repeat_interleave(problem.group_size, dim=1)
    scores = case.query.double() @ wide_key.transpose(-1, -2) * problem.scale
    scores = scores - case.slopes.double()[..., None, None] * distances(rows, keys, torch.float64).unsqueeze(1)
    scores = scores.masked_fill(~visible(rows, keys).unsqueeze(1), -torch.inf)
    weights = torch.softmax(scores, -1).nan_to_num(0.0)
    block = torch.arange(problem.q_len) // certificate.block_q
    first, end, sink = (
        t[:, :, block].unsqueeze(-1) for t in (certificate.first_key, certificate.end_key, certificate.sink_keys)
    )
    mask = case.options.get("key_mask")
    start = torch.zeros(problem.batch, 1) if mask is None else mask.to(torch.int8).argmax(1, keepdim=True)
    in_sink = (keys // certificate.block_k) == (start // certificate.block_k).to(torch.int64)
    needed = ((keys >= first) & (keys < end)) | (sink & in_sink[:, None, None])
    dropped = (weights * ~needed).sum(-1)
    blocks = certificate.first_key.shape[-1]
    least = dropped.new_zeros(*dropped.shape[:2], blocks)
    return least.scatter_reduce(2, block.expand_as(dropped), dropped, "amax")


@pytest.mark.parametrize("adversary", ADVERSARIES)
@settings(max_examples=_share_of_cases())
@given(data=st.data())
def test_dropped_mass_bound_and_tolerance_are_in_order(adversary: str, data: st.DataObject) -> None:
    """`pytest tests/operator/test_horizon.py -k in_order --cases 10000` tries 10,000 over all adversaries."""
    case = data.draw(long_cases(adversary))
    certificate = certify(case.query, case.key, case.slopes, **case.options)
    true = true_shares(case, certificate)
    # Sums of shares near 1e-16 carry the rounding of the dense softmax they are taken from.
    assert (true <= certificate.dropped_share * (1 + 1e-9) + 1e-18).all()
    assert (certificate.dropped_share <= case.options["tolerance"]).all()


@pytest.mark.parametrize("adversary", ADVERSARIES)
@settings(max_examples=_share_of_cases())
@given(data=st.data())
def test_backends_stay_within_the_tolerance(backend: str, adversary: str, data: st.DataObject) -> None:
    """The output and lse of what a backend skips obey the bounds, whatever its own way to the horizon."""
    case = data.draw(long_cases(adversary))
    if not serves(case, backend):
        return
    out, lse = alibi_attention(*case.tensors, **case.options, return_lse=True, backend=backend)
    exact = case.double()
    options = {**case.options, "tolerance": 0.0}
    true_out, true_lse = alibi_attention(*exact.tensors, **options, return_lse=True, backend="reference")
    dense, dense_lse = alibi_attention(*case.tensors, **options, return_lse=True, backend=backend)
    share = case.options["tolerance"]
    diameter = 2 * exact.value.norm(dim=-1).amax()
    rounding = (dense.double() - true_out).norm(dim=-1).amax()
    assert (out.double() - true_out).norm(dim=-1).amax() <= share * diameter + 2 * rounding + 1e-12
    seen = true_lse > -torch.inf
    assert torch.equal(seen, lse > -torch.inf)
    lse_error, lse_rounding = ((t.double() - true_lse).masked_fill(~seen, 0.0).abs().amax() for t in (lse, dense_lse))
    assert lse_error <= share / (1 - share) + 2 * lse_rounding + 1e-12


def _inputs(length: int, heads: int = 8, dim: int = 64) -> tuple[Tensor, Tensor, Tensor]:
    query, key, value = torch.randn(3, 1, heads, length, dim).unbind(0)
    return query, key, value


@pytest.mark.parametrize(("length", "most"), [(2048, 0.63), (8192, 0.35)])
def test_work_falls_with_length(length: int, most: float) -> None:
    query, key, _ = _inputs(length)
    certificate = certify(query, key)
    assert certificate.kept_share.mean() < most
    # The steeper a head, the less it needs.
    assert (certificate.kept_share.diff() >= 0).all()
    assert certificate.kept_share[0] < 0.25 * 2048 / length + 0.03


def test_zero_tolerance_keeps_every_visible_tile() -> None:
    query, key, _ = _inputs(1024)
    certificate = certify(query, key, tolerance=0.0)
    assert (certificate.kept_share == 1.0).all()
    assert (certificate.dropped_share == 0.0).all()


def test_sink_tile_is_kept_apart() -> None:
    """A first key that all queries like costs one tile, not the whole past."""
    query, key, value = _inputs(2048, heads=1)
    query += 2.0
    key[:, :, 0] = 6.0
    slopes = torch.tensor([0.05])
    plain = certify(query, torch.cat([torch.randn(1, 1, 1, 64), key[:, :, 1:]], 2), slopes)
    certificate = certify(query, key, slopes)
    assert certificate.sink_keys[0, 0, -1]
    assert certificate.window[0, 0, -1] <= plain.window[0, 0, -1] + 4 * BLOCK_K
    skipped = alibi_attention(query, key, value, slopes, backend="blocked")
    dense = alibi_attention(query, key, value, slopes, tolerance=0.0, backend="blocked")
    # Logits near 100 are rounded by 4e-6.
    assert (skipped - dense).abs().amax() < 1e-5
    without_sink = alibi_attention(query, key, value, slopes, window=(int(certificate.window[0, 0, -1]), 0))
    assert (without_sink - dense).abs().amax() > 0.1


def test_sink_tiles_may_differ_over_the_batch(backend: str) -> None:
    """Left padding moves each row's first key: the sinks of both rows must be computed."""
    query, key, value = (t.expand(2, -1, -1, -1).clone() for t in _inputs(2048, heads=1))
    query += 2.0
    mask = torch.ones(2, 2048, dtype=torch.bool)
    mask[1, :700] = False
    key[0, :, 0] = key[1, :, 700] = 4.0
    slopes = torch.tensor([0.05])
    out = alibi_attention(query, key, value, slopes, key_mask=mask, backend=backend)
    exact = (t.double() for t in (query, key, value))
    true = alibi_attention(*exact, slopes, key_mask=mask, tolerance=0.0, backend="reference")
    assert (out - true).abs().amax() < 1e-4


def test_an_old_outlier_fades() -> None:
    """One huge key long ago is kept where it counts and forgotten where its distance has outweighed it."""
    query, key, _ = _inputs(8192, heads=1, dim=16)
    slopes = torch.tensor([0.25])
    before = certify(query, key, slopes).window[0, 0]
    key[:, :, 1000] *= 20.0
    after = certify(query, key, slopes).window[0, 0]
    assert after[10] > before[10] + 2 * BLOCK_K
    assert after[-1] <= before[-1] + BLOCK_K


def test_centring_forgives_a_common_mean() -> None:
    query, key, _ = _inputs(4096, heads=2)
    slopes = torch.tensor([0.5, 0.1])
    assert certify(query, key + 50.0, slopes).window.sum() <= 1.05 * certify(query, key, slopes).window.sum()


@pytest.mark.parametrize("slope", [0.0, -0.01, 1e-12])
def test_flat_and_rising_slopes_run_dense(slope: float) -> None:
    query, key, _ = _inputs(1024, heads=1)
    assert (certify(query, key, torch.tensor([slope])).kept_share == 1.0).all()


def test_learned_slopes_see_further() -> None:
    """The gradient of a slope weighs a key by its distance, so its horizon lies further out."""
    query, key, value = _inputs(4096, heads=1, dim=16)
    slopes = torch.tensor([0.125])
    for tensor in (query, key, value):
        tensor.requires_grad_()
    grads = []
    for learned in (False, True):
        leaf = slopes.clone().requires_grad_(learned)
        out = alibi_attention(query, key, value, leaf)
        inputs = (query, leaf) if learned else (query,)
        grads.append(torch.autograd.grad(out.square().sum(), inputs))
    exact = [t.detach().double().requires_grad_() for t in (query, key, value, slopes)]
    out = alibi_attention(*exact, tolerance=0.0, backend="reference")
    true = torch.autograd.grad(out.square().sum(), exact[3])[0]
    assert abs(grads[1][1] - true) <= 1e-4 * true.abs()


def _values_where_not_finite(kind: float, at: int) -> tuple[Tensor, Tensor, Tensor]:
    query, key, value = _inputs(1500, heads=2, dim=16)
    value[0, 1, at, 3] = kind
    return query, key, value


@pytest.mark.parametrize("kind", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("at", [0, 40, 700, 1499])
def test_values_that_are_not_finite_are_never_hidden(any_backend: str, kind: float, at: int) -> None:
    """However far away, and even where its weight is far below rounding; and no row that cannot see it is touched."""
    query, key, value = _values_where_not_finite(kind, at)
    out = alibi_attention(query, key, value, torch.tensor([0.5, 0.5]), backend=any_backend)
    bad = ~out.isfinite()
    assert bad[0, 1, at:, 3].all()
    bad[0, 1, at:, 3] = False
    assert not bad.any()


@pytest.mark.parametrize("at", [0, 40, 700, 1499])
def test_keys_that_are_not_finite_are_never_hidden(any_backend: str, at: int) -> None:
    query, key, value = _inputs(1500, heads=2, dim=16)
    key[0, 1, at, 3] = math.nan
    out, lse = alibi_attention(query, key, value, torch.tensor([0.5, 0.5]), return_lse=True, backend=any_backend)
    for bad in (~out.isfinite().all(-1), ~lse.isfinite()):
        assert bad[0, 1, at:].all()
        assert not bad[0, 0].any()
        assert not bad[0, 1, :at].any()


def test_blocked_in_bitwise_mode_equals_the_unskipped_sweep(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where every dropped weight would round to exactly 0, skipping changes no bit.

    On one tile at a time, so that the sweep is the same; e^-110 is below half the least denormal float32.
    """
    monkeypatch.setattr(schedule_module, "CHUNK_SCORES", BLOCK_Q * BLOCK_K)
    query, key, value = _inputs(1536, heads=4, dim=32)
    slopes = alibi_slopes(4) * 2
    kept = certify(query, key, slopes, tolerance=math.exp(-110))
    assert kept.kept_share[0] < 0.7
    skipped = alibi_attention(query, key, value, slopes, tolerance=math.exp(-110), return_lse=True, backend="blocked")
    full = alibi_attention(query, key, value, slopes, tolerance=0.0, return_lse=True, backend="blocked")
    assert torch.equal(skipped[0], full[0])
    assert torch.equal(skipped[1], full[1])


def test_certificate_prints_a_table() -> None:
    query, key, _ = _inputs(1024, heads=2)
    text = str(certify(query, key))
    assert text.splitlines()[0].startswith("tolerance 5.96e-08, share of mass dropped at most ")
    assert text.splitlines()[1].split() == ["head", "mean", "window", "kept"]
    assert len(text.splitlines()) == 5


def test_another_parts_lse_shortens_the_horizon() -> None:
    """Where most of the mass lies in another shard, less of this one is needed; the share is of the whole."""
    query, key, value = _inputs(2048, heads=2, dim=16)
    slopes = torch.tensor([0.02, 0.01])
    own = alibi_attention(query, key, value, slopes, return_lse=True)[1]
    alone = certify(query, key, slopes)
    beside = certify(query, key, slopes, lse_floor=own + 12.0)
    assert beside.kept_share.mean() < 0.9 * alone.kept_share.mean()
    case = Case(query, key, value, slopes, {}, query, own)
    # Of the whole mass, exp(12) times this shard's own, the dropped keys hold at most the tolerance.
    of_the_whole = true_shares(case, beside) * math.exp(-12.0)
    assert (of_the_whole <= beside.dropped_share * (1 + 1e-6) + 1e-18).all()
    assert (beside.dropped_share <= 2.0**-24).all()
    # A floor below what the shard itself holds changes nothing.
    assert torch.equal(certify(query, key, slopes, lse_floor=own - 50.0).first_key, alone.first_key)
    with pytest.raises(ValueError, match="lse_floor: expected shape"):
        certify(query, key, slopes, lse_floor=own[:, :1])
