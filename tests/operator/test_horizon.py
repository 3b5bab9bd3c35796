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
    """`pytest tests/operator/test_horizon.py -k in_order --cases 10000 --hypothesis-seed 0` tries 10,000."""
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


def _rank_one(length: int, reach: float, turn: int, norms: Tensor) -> tuple[Tensor, Tensor]:
    """The inputs for which the bound is nearly an equality: every product is as large as its norms allow.

    Keys before ``turn`` point where all queries do, keys from it on the other way, so that what is dropped is what
    counts.
    """
    direction = torch.tensor([1.0, 0.0, 0.0, 0.0])
    key = (reach * direction).expand(1, 1, length, 4).clone()
    key[:, :, turn:] *= -1
    return norms[None, None, :, None] * direction, key


def _slack(slope: float, reach: float, turn: int, norms: Tensor, **options: Any) -> Tensor:
    """ln(bound / truth) of each block that drops anything."""
    query, key = _rank_one(1024, reach, turn, norms)
    slopes = torch.tensor([slope])
    certificate = certify(query, key, slopes, tolerance=1e-3, **options)
    case = Case(query, key, key, slopes, {"tolerance": 1e-3, **options}, query, query)
    true = true_shares(case, certificate)
    assert (true <= 1e-3).all()
    dropped = true > 0
    return (certificate.dropped_share[dropped] / true[dropped]).log()


@pytest.mark.parametrize("ramp", [False, True])
def test_the_bound_holds_where_it_is_tight(ramp: bool) -> None:
    """Never below the truth, and somewhere within a nat of it: what is charged beyond the mathematics stays small."""
    norms = torch.linspace(0.4, 2.0, 1024) if ramp else torch.full((1024,), 2.0)
    slack = torch.cat(
        [
            _slack(slope, reach, turn, norms)
            for slope in (0.5, 0.1, 0.02)
            for reach in (0.0, 3.0, 6.0, 10.0, 30.0)
            for turn in (0, 500, 750, 950, 1000, 1020)
        ]
    )
    assert slack.min() > 0.0
    assert slack.min() < 1.0


def test_both_sides_share_one_tolerance() -> None:
    """Keys before and after a query may each hold half of it; on a fine grid both come near, and stay below."""
    query, key = _rank_one(8192, 0.5, 0, torch.ones(8192))
    slopes = torch.tensor([0.003])
    certificate = certify(query, key, slopes, is_causal=False, tolerance=1e-3)
    inner = certificate.dropped_share[0, 0, 24:40]
    assert (certificate.first_key[0, 0, 24:40] > 0).all()
    assert (certificate.end_key[0, 0, 24:40] < 8192).all()
    assert inner.max() <= 1e-3
    assert inner.max() > 0.6e-3


@pytest.mark.parametrize("offset", [0, 100_000, 1_000_000])
def test_learned_slopes_weigh_a_key_by_its_distance(offset: int) -> None:
    """What the gradient of a slope m loses, the sum of P times distance over dropped keys, is at most tolerance / m."""
    worst = 0.0
    for slope in (0.1, 0.02):
        for reach in (0.0, 3.0, 10.0, 30.0):
            for turn in (0, 1000, 1900):
                query, key = _rank_one(2048, reach, turn, torch.full((2048,), 2.0))
                query = query[:, :, -128:]
                slopes = torch.tensor([slope])
                options = {"tolerance": 1e-2, "query_offset": offset + 1920}
                plain = certify(query, key, slopes, **options)
                learned = certify(query, key, slopes.clone().requires_grad_(), **options)
                assert (learned.window >= plain.window).all()
                positions = torch.arange(128, dtype=torch.float64)[:, None] + options["query_offset"]
                distance = positions - torch.arange(2048)
                scores = query[0, 0].double() @ key[0, 0].double().mT / 2 - slope * distance
                weights = torch.softmax(scores.masked_fill(distance < 0, -torch.inf), -1)
                dropped = torch.arange(2048) < learned.first_key[0, 0]
                worst = max(worst, float((weights * distance * dropped).sum(-1).max()) * slope / 1e-2)
    assert worst <= 1.0


def test_learned_slopes_are_certified_as_they_run() -> None:
    query, key, _ = _inputs(8192)
    slopes = alibi_slopes(8)
    fixed = certify(query, key, slopes).kept_share.mean()
    learned = certify(query, key, slopes.clone().requires_grad_())
    assert learned.kept_share.mean() > 1.05 * fixed
    assert not learned.dropped_share.requires_grad


_FAR = torch.tensor([0.5, 0.3, 0.2, 0.1])


def _skipping_calls() -> dict[str, tuple[tuple[Tensor, Tensor, Tensor, Tensor], dict[str, Any]]]:
    """Calls over the surface in each of which tiles are skipped."""
    torch.manual_seed(3)
    length = 1500
    query = torch.randn(2, 4, length, 16)
    key, value = torch.randn(2, 2, length, 16), torch.randn(2, 2, length, 24)
    mask = torch.ones(2, length, dtype=torch.bool)
    mask[0, :400] = False
    mask[1, 1300:] = False
    sink, sinks = key.clone(), key.clone()
    sink[:, :, 0] *= 12
    sinks[0, :, 400] *= 12
    sinks[1, :, 0] *= 12
    few, packed = query[:, :, :300], torch.tensor([0, 700, 701, 1500], dtype=torch.int32)
    plain = (query, key, value, _FAR)
    return {
        "causal": (plain, {}),
        "both ways": (plain, {"is_causal": False}),
        "mask": (plain, {"key_mask": mask}),
        "mask both ways": (plain, {"key_mask": mask, "is_causal": False}),
        "sink": ((query, sink, value, _FAR), {}),
        "sink both ways": ((query, sink, value, _FAR), {"is_causal": False}),
        "a sink each": ((query, sinks, value, _FAR), {"key_mask": mask}),
        "offsets": ((few, key, value, _FAR), {"query_offset": torch.tensor([-100, 900])}),
        "window": (plain, {"window": (700, 30), "is_causal": False}),
        "packed": ((query[:1], key[:1], value[:1], _FAR), {"cu_seqlens": packed}),
        "negative scale": (plain, {"scale": -0.3}),
        "slopes by batch": ((query, key, value, torch.stack([_FAR, _FAR.flip(0)])), {}),
        "far to the right": ((few, key, value, _FAR), {"query_offset": 5000}),
        "far to the left": ((few, key, value, _FAR), {"query_offset": -3000, "is_causal": False}),
    }


@pytest.mark.parametrize("name", list(_skipping_calls()))
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_gradients_of_calls_that_skip(backend: str, name: str, dtype: torch.dtype) -> None:
    """Against the dense definition: every gradient, and the bound on that of the queries."""
    tensors, options = _skipping_calls()[name]
    share = 1e-6
    case = Case(*(t.to(dtype) for t in tensors[:3]), tensors[3], options, torch.empty(0), torch.empty(0))
    if not serves(case, backend):
        return
    certificate = certify(*case.tensors[:2], case.slopes, tolerance=share, **options)
    assert certificate.kept_share.min() < 0.7

    def run(to: torch.dtype, **how: Any) -> tuple[Tensor, ...]:
        leaves = [t.detach().to(to).requires_grad_() for t in case.tensors[:3]]
        slopes = case.slopes.to(to).requires_grad_()
        out, lse = alibi_attention(*leaves, slopes, **options, return_lse=True, **how)
        torch.manual_seed(5)
        flow = torch.randn(out.shape, dtype=torch.float64), torch.randn(lse.shape, dtype=torch.float64)
        flow = flow[0].to(out.dtype), flow[1].to(lse.dtype).masked_fill(lse == -torch.inf, 0.0)
        return out.detach(), *torch.autograd.grad((out, lse), (*leaves, slopes), flow)

    got = run(dtype, tolerance=share, backend=backend)
    want = run(torch.float64, tolerance=0.0, backend="reference")
    # Far from every key the bias itself is a number in the thousands, which float32 rounds by 1e-4.
    rounding = 0.0 if dtype == torch.float64 else 2e-3 if "far" in name else 2e-5
    for one, other in zip(got, want, strict=True):
        size = other.double().abs().amax()
        assert (one.double() - other.double()).abs().amax() <= (20 * share + rounding) * size


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
    # A mean in common, which the bounds leave out and an lse does not.
    key += 3.0
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


def test_nothing_is_skipped_behind_a_nan(backend: str) -> None:
    """A row that met a NaN has no mass to hold a bound against: its gradients reach all that it sees."""
    query, key, value = (t.requires_grad_() for t in _inputs(3000, heads=1, dim=16))
    with torch.no_grad():
        key[0, 0, 2000, 3] = math.nan
    slopes = torch.tensor([0.5])
    results = []
    for name in (backend, "reference"):
        out = alibi_attention(query, key, value, slopes, backend=name)
        grads = torch.autograd.grad(out.sum(), (query, key, value))
        results.append([t.isfinite().all(-1) for t in (out, *grads)])
    for got, want in zip(*results, strict=True):
        assert torch.equal(got, want)
