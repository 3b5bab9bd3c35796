"""What only the fused CPU kernels need: every instruction set, memory around the tensors, threads, and the tiling."""

from __future__ import annotations

import ctypes
import os
import platform
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent))

from cpu_cases import Case, arguments_of, flows_of, random_case, run, run_on_threads
from peak_memory import peak_of

from alibi_attention import KVCache, alibi_attention, alibi_slopes, reference
from alibi_attention.backends import native
from alibi_attention.backends.native import BLOCK_Q, PLAN
from alibi_attention.backends.packing import groups_of
from alibi_attention.call import call_arguments, problem_of
from alibi_attention.horizon import BLOCK_K
from alibi_attention.problem import Problem

pytestmark = pytest.mark.skipif(isinstance(native.load(), str), reason="the compiled library is not installed")

ISA = getattr(native.load(), "isa", "")
# `make cases` runs 20,000.
CASES = int(os.environ.get("ALIBI_CPU_CASES", "120"))
BATCH = 40
UNIT = {torch.float32: 2.0**-23, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-10}
# Of one rounding, relative.
ROUNDING = {torch.float32: 2.0**-24, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}
NAMES = ("out", "lse", "grad_query", "grad_key", "grad_value", "grad_slopes")


@torch.no_grad()
def moves(case: Case) -> dict[str, float]:
    """How far each result moves at most where scores, weights and the means of backward are rounded, in float64.

    A score is rounded by a few units of what it is summed from, products and bias, and its weight with it; so is the
    row's sum. Backward takes the mean of a row from out as forward has rounded it.
    """
    torch.manual_seed(case.number)
    arguments = arguments_of(case, "reference", torch.float64)
    out, lse, _ = torch.ops.alibi_attention.forward(*arguments)
    problem, _ = problem_of(*arguments[:3], *arguments[4:])
    query, key, value, slopes = arguments[:4]
    dense = reference._dense_scores(problem, query, key, slopes)
    weights = reference._weights(dense, lse)
    flow, lse_flow = flows_of(case, out, lse)
    scale, group = abs(problem.scale), problem.group_size
    wide_key, wide_value = (t.repeat_interleave(group, dim=1) for t in (key, value))
    keep = 1.0 if dense.drop is None else dense.drop

    sizes = (query.abs() @ wide_key.abs().mT) * scale + slopes.abs()[..., None, None] * dense.distance
    relative = 2.0**-23 * (4.0 + sizes)
    of_weight = weights * (relative + (weights * relative).sum(-1, keepdim=True))
    from_out = (flow @ wide_value.mT).abs() * keep
    rounding = 2.0**-23 * (flow.abs() @ wide_value.abs().mT) * keep
    mean = ((flow * out).sum(-1, keepdim=True) - lse_flow.unsqueeze(-1)).abs()
    of_mean = (of_weight * from_out + weights * rounding).sum(-1, keepdim=True)
    of_mean = of_mean + ROUNDING[case.query.dtype] * (flow * out).abs().sum(-1, keepdim=True)
    of_score = of_weight * (from_out + mean) + weights * (rounding + of_mean)

    def of_group(terms: Tensor) -> Tensor:
        return terms.unflatten(1, (problem.num_kv_heads, group)).sum(2)

    of_slope = (of_score * dense.distance).sum((-1, -2))
    return {
        "out": float(((of_weight * keep) @ wide_value.abs()).max()),
        "lse": float((weights * relative).sum(-1).max()),
        "grad_query": scale * float((of_score @ wide_key.abs()).max()),
        "grad_key": scale * float(of_group(of_score.mT @ query.abs()).max()),
        "grad_value": float(of_group((of_weight * keep).mT @ flow.abs()).max()),
        "grad_slopes": float((of_slope if slopes.dim() == 2 else of_slope.sum(0)).max()),
    }


def allowed(case: Case, name: str, exact: Tensor, low: Tensor, moved: float) -> float:
    """Twice the error of the reference in the case's own dtype, the last rounding, and what others move a result by."""
    unit = 2.0**-23 if name in ("lse", "grad_slopes") else UNIT[case.query.dtype]
    size = exact[exact.isfinite()].abs().max().item() if exact.isfinite().any() else 0.0
    error = (low - exact)[exact.isfinite()].abs().max().item()
    return 2 * error + 2 * unit * size + moved


def compare(case: Case) -> None:
    """Against the reference over what the kernels kept, which the mass of the whole tells to be enough."""
    got, whole = run_on_threads(case), run(case, "reference", torch.float64)
    kept = kept_pairs(case)
    with pytest.MonkeyPatch.context() as patch:
        dense_scores = reference._dense_scores

        def kept_scores(*arguments: Any) -> Any:
            dense = dense_scores(*arguments)
            return dense._replace(scores=dense.scores.masked_fill(~kept, -torch.inf), seen=dense.seen & kept)

        patch.setattr(reference, "_dense_scores", kept_scores)
        low, exact, moved = run(case, "reference"), run(case, "reference", torch.float64), moves(case)
    tolerance = case.options["tolerance"]
    lost = -torch.expm1(exact[1] - whole[1]).masked_fill(whole[1] == -torch.inf, 0.0)
    assert bool((lost <= (2.0**-24 if tolerance is None else tolerance) + 1e-12).all()), f"mass, {case.describe()}"
    for name, mine, theirs, truth in zip(NAMES, got, low, exact, strict=False):
        assert torch.equal(mine.isfinite(), truth.isfinite()), f"{name}, {case.describe()}"
        if not truth.isfinite().any():
            continue
        error = (mine - truth)[truth.isfinite()].abs().max().item()
        limit = allowed(case, name, truth, theirs, moved[name])
        assert error <= limit, f"{name}: error {error:.3g} above {limit:.3g}, {case.describe()}"


def kept_pairs(case: Case) -> Tensor:
    """(batch, heads, queries, keys): whether the plan of the kernels has the pair's tile."""
    torch.manual_seed(case.number)
    arguments = arguments_of(case, "cpu")
    plan = torch.ops.alibi_attention.forward(*arguments)[2]
    batch, heads, k_len = *case.query.shape[:2], case.key.shape[2]
    block, blocks = blocks_of_rows(problem_of(*arguments[:3], *arguments[4:])[0])
    plan = plan[: batch * heads * blocks * PLAN].view(batch, heads, -1, PLAN)
    tile = torch.arange(k_len) // BLOCK_K
    kept = (plan[..., :1] <= tile) & (tile < plan[..., 1:2]) | (plan[..., 2:3] == tile)
    return kept[:, :, block]


def blocks_of_rows(problem: Problem) -> tuple[Tensor, int]:
    """The block of each row, and how many blocks there are."""
    row, groups = torch.arange(problem.q_len), groups_of(problem)
    if groups is None:
        block = row // BLOCK_Q
    else:
        group = torch.searchsorted(groups.rows[1:], row, right=True)
        block = groups.blocks[group] + (row - groups.rows[group]) // BLOCK_Q
    return block, int(block[-1]) + 1


@pytest.mark.parametrize("start", range(0, CASES, BATCH))
def test_random_calls_agree_with_the_reference(start: int):
    for number in range(start, min(start + BATCH, CASES)):
        compare(random_case(number))


def test_some_random_calls_leave_keys_out():
    cases = [random_case(number) for number in range(CASES)]
    long = [case for case in cases if case.key.shape[2] > 256 and case.options["tolerance"] != 0.0]
    kinds = dict.fromkeys(("summary", "dropout_p", "key_mask", "cu_seqlens", "plain"), 0)
    for case in long:
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(case.options, "tolerance", 0.0)
            seen = kept_pairs(case)
        if bool((seen & ~kept_pairs(case)).any()):
            for kind in kinds:
                kinds[kind] += case.summary is not None if kind == "summary" else kind in case.options
            kinds["plain"] += 1
    assert kinds["plain"] >= 8, kinds
    assert kinds["summary"] >= 2, kinds


@pytest.mark.parametrize(("q_len", "k_len"), [(200, 200), (1, 900), (40, 700)])
def test_sixteen_bit_forward_is_that_of_the_same_numbers_rounded_once(q_len: int, k_len: int):
    generator = torch.Generator().manual_seed(k_len)
    for dtype in (torch.bfloat16, torch.float16):
        query = torch.randn(2, 4, q_len, 64, generator=generator).to(dtype)
        key, value = (torch.randn(2, 2, k_len, 64, generator=generator).to(dtype) for _ in range(2))
        out = alibi_attention(query, key, value, backend="cpu")
        wide = alibi_attention(query.float(), key.float(), value.float(), backend="cpu")
        # What two float32 sums in different orders are apart comes in besides.
        allowed = ROUNDING[dtype] * wide.double().abs() + 2.0**-19
        if dtype == torch.bfloat16 and ISA == "amx":
            # A matrix unit takes a weight in two parts, which leave 2^-16 of it.
            sizes = alibi_attention(query.float(), key.float(), value.float().abs(), backend="cpu")
            allowed += 2.0**-16 * sizes.double()
        assert bool(((out.double() - wide.double()).abs() <= allowed).all()), dtype


def test_sixteen_bit_gradients_are_those_of_the_same_numbers_rounded_once():
    """Of the output as it was rounded, which backward takes the means of its rows from."""
    generator = torch.Generator().manual_seed(5)
    query, key, value, flow = (torch.randn(1, 4, 200, 72, generator=generator).bfloat16() for _ in range(4))
    leaves = [each.clone().requires_grad_() for each in (query, key, value)]
    slopes = alibi_slopes(4)
    out = alibi_attention(*leaves, slopes, tolerance=0.0, backend="cpu")
    found = torch.autograd.grad(out, leaves, flow)

    scale = 72**-0.5
    q, k, v, f = (each.double() for each in (query, key, value, flow))
    rows = torch.arange(200)
    scores = q @ k.mT * scale - slopes.double()[:, None, None] * (rows[:, None] - rows)
    weights = scores.masked_fill(rows > rows[:, None], -torch.inf).softmax(-1)
    means = f * out.detach().double()
    grads = weights * (f @ v.mT - means.sum(-1, keepdim=True)) * scale
    # What float32 leaves of a difference.
    blurs = 2.0**-20 * weights * (f.abs() @ v.abs().mT + means.abs().sum(-1, keepdim=True)) * scale
    # A matrix unit takes weights and gradients of scores in two parts, which leave 2^-16 of them.
    unit = 2.0**-16 if ISA == "amx" else 0.0
    for name, mine, left, right, blur in (
        ("grad_query", found[0], grads, k, blurs),
        ("grad_key", found[1], grads.mT, q, blurs.mT),
        ("grad_value", found[2], weights.mT, f, 0 * weights),
    ):
        exact = left @ right
        allowed = 2.0**-8 * exact.abs() + ((2.0**-18 + unit) * left.abs() + blur) @ right.abs()
        assert bool(((mine.double() - exact).abs() <= allowed).all()), name


def test_an_infinite_value_stays_one_in_bfloat16():
    """In tiles that all rows see, too, where a weight in two parts would make inf - inf of it."""
    for places in ((5,), (5, 130)):
        query, key, value = (each.bfloat16() for each in inputs(200))
        value[:, :, list(places), 3] = torch.inf
        out = alibi_attention(query, key, value, alibi_slopes(4), is_causal=False, tolerance=0.0, backend="cpu")
        assert bool((out[..., 3] == torch.inf).all())
        assert bool(out[..., 4:].isfinite().all())


@pytest.mark.parametrize("isa", ["amx", "avx512bf16", "avx512", "avx2", "baseline"])
def test_every_instruction_set_agrees_with_the_reference(isa: str):
    code = f"""
import sys; sys.path[:] = {sys.path!r}
from alibi_attention.backends import native
try:
    library = native.load()
except RuntimeError as error:
    print(error); sys.exit(3)
assert library.isa == {isa!r}
from test_cpu import compare, random_case
for number in range(1000, 1030):
    compare(random_case(number))
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "ALIBI_CPU_ISA": isa}, capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    if done.returncode == 3 and "does not have it" in done.stdout:
        pytest.skip(f"this machine has no {isa}")
    assert done.returncode == 0, done.stdout + done.stderr


def test_an_unknown_instruction_set_is_refused():
    code = "from alibi_attention.backends import native; native.load()"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "ALIBI_CPU_ISA": "mmx"}, capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert "ALIBI_CPU_ISA: got 'mmx', expected amx, avx512bf16, avx512, avx2 or baseline" in done.stderr


def inputs(length: int, heads: int = 4, dim: int = 32, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(length)
    return [torch.randn(1, heads, length, dim, generator=generator).to(dtype) for _ in range(3)]


def results(tensors: list[Tensor], **options: Any) -> list[Tensor]:
    leaves = [t.detach().requires_grad_() for t in tensors]
    out, lse = alibi_attention(*leaves, return_lse=True, backend="cpu", **options)
    finite = lse.masked_fill(lse == -torch.inf, 0.0)
    grads = torch.autograd.grad(out.float().square().sum() + finite.sum(), leaves)
    return [t.detach() for t in (out, lse, *grads)]


def kept_tiles(tensors: list[Tensor], tolerance: float, *, is_causal: bool = True) -> Tensor:
    """The plan of a call, one row for each block of queries of each head: first, end, apart, tiles scored."""
    arguments = call_arguments(
        *tensors, None, is_causal=is_causal, scale=None, query_offset=None, key_mask=None, cu_seqlens=None,
        cu_seqlens_k=None, window=None, dropout_p=0.0, tolerance=tolerance, backend="cpu",
    )  # fmt: skip
    plan: Tensor = torch.ops.alibi_attention.forward(*arguments)[2]
    return plan.view(-1, PLAN)


@pytest.mark.parametrize("is_causal", [True, False])
@pytest.mark.parametrize("shift", [0.0, 3.0], ids=["centred", "shared mean"])
def test_the_horizon_is_bitwise_where_what_it_drops_underflows(
    is_causal: bool, shift: float, monkeypatch: pytest.MonkeyPatch
):
    tensors = inputs(1000)
    tensors[1] = tensors[1] + shift
    # The kept tiles decide how key gradients are cut among threads, and so the order they are added in.
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    # 2^-140 of the mass is below the least weight that is not flushed to 0.
    fewer = kept_tiles(tensors, 2.0**-140, is_causal=is_causal)
    every = kept_tiles(tensors, 0.0, is_causal=is_causal)
    count = (fewer[..., 1] - fewer[..., 0]).sum(), (every[..., 1] - every[..., 0]).sum()
    assert count[0] < count[1], "the test is empty unless something is skipped"
    for skipped, dense in zip(
        results(tensors, tolerance=2.0**-140, is_causal=is_causal),
        results(tensors, tolerance=0.0, is_causal=is_causal),
        strict=True,
    ):
        assert torch.equal(skipped, dense)


@pytest.mark.parametrize("tolerance", [2.0**-12, 2.0**-6])
@pytest.mark.parametrize("content", ["normal", "wide", "outlier", "sink"])
def test_the_mass_that_is_dropped_stays_below_the_tolerance(tolerance: float, content: str):
    tensors = inputs(900)
    if content == "wide":
        tensors[0] *= 3
    elif content == "outlier":
        tensors[1][:, :, 300] *= 20
    elif content == "sink":
        tensors[1][:, :, 0] *= 8
    for is_causal in (True, False):
        lse, full = (
            alibi_attention(*tensors, is_causal=is_causal, tolerance=t, return_lse=True, backend="cpu")[1].double()
            for t in (tolerance, 0.0)
        )
        dropped = -torch.expm1(lse - full)
        # Both are rounded to float32.
        assert bool((dropped <= tolerance + 2.0**-22 * full.abs().clamp_min(1.0)).all())


def test_a_sink_is_kept_apart():
    tensors = inputs(1500)
    # A key that every query likes, far enough from most of them.
    tensors[0][..., 0] = 3.0
    tensors[1][:, :, 0, 0] = 60.0
    apart = kept_tiles(tensors, 2.0**-24)[..., 2]
    assert (apart >= 0).any()
    assert set(apart.unique().tolist()) <= {-1, 0}


@pytest.mark.parametrize("what", ["query", "key", "value"])
@pytest.mark.parametrize("poison", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("length", [100, 700])
@pytest.mark.parametrize("is_causal", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_not_finite_reaches_the_rows_that_see_it_and_no_others(
    what: str, poison: float, length: int, is_causal: bool, dtype: torch.dtype
):
    tensors = inputs(length, dtype=dtype)
    tensors[("query", "key", "value").index(what)][0, 1, length // 3, 5] = poison
    mask = torch.ones(1, length, dtype=torch.bool)
    mask[:, : length // 8] = False
    for options in ({}, {"window": (40, 40)}, {"key_mask": mask}):
        got = results(tensors, is_causal=is_causal, **options)
        leaves = [t.detach().double().requires_grad_() for t in tensors]
        out, lse = alibi_attention(
            *leaves, alibi_slopes(4).double(), is_causal=is_causal, return_lse=True, backend="reference", **options
        )
        finite = lse.masked_fill(lse == -torch.inf, 0.0)
        grads = torch.autograd.grad(out.square().sum() + finite.sum(), leaves)
        for name, mine, truth in zip(NAMES, got, (out, lse, *grads), strict=False):
            if name == "grad_value" and what != "value":
                # A row without a softmax reaches the values of the keys it sees, as it does the keys.
                assert torch.equal(mine.isfinite().all(-1), got[3].isfinite().all(-1)), f"{name}, {options}"
                continue
            assert torch.equal(mine.isfinite(), truth.isfinite()), f"{name}, {options}"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("poison", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("what", ["query", "key", "value"])
def test_dropout_hides_nothing_that_is_not_finite(what: str, poison: float, dtype: torch.dtype):
    """A pair that is dropped counts for nothing, but a softmax that is none stays none."""
    for seed in range(6):
        tensors = inputs(200, dtype=dtype)
        tensors[("query", "key", "value").index(what)][0, 1, 60, 5] = poison
        found = []
        for backend, kind in (("cpu", dtype), ("reference", torch.float64)):
            leaves = [t.detach().to(kind).requires_grad_() for t in tensors]
            torch.manual_seed(seed)
            out = alibi_attention(*leaves, alibi_slopes(4), dropout_p=0.5, tolerance=0.0, backend=backend)
            grads = torch.autograd.grad(out, leaves, torch.ones_like(out))
            found.append([t.isfinite() for t in (out, *grads)])
        for name, mine, theirs in zip(("out", *NAMES[2:5]), *found, strict=True):
            assert torch.equal(mine, theirs), f"{name}, seed {seed}"


def test_slopes_near_the_largest_float_leave_each_query_its_own_key():
    query, key, value = inputs(100)
    slopes = torch.tensor([3e38, 1e30, 2.4e38, 3.4e38])
    assert torch.equal(alibi_attention(query, key, value, slopes, backend="cpu"), value)


@pytest.fixture
def team() -> Iterator[Callable[[int], None]]:
    """Sets the number of threads, which workers of the suite have one of, for one test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_a_result_depends_on_nothing_but_the_call(threads: int, team: Callable[[int], None]):
    team(threads)
    tensors = inputs(800, dtype=torch.bfloat16)
    first = results(tensors)
    for _ in range(3):
        for one, other in zip(first, results(tensors), strict=True):
            assert torch.equal(one, other)


def test_results_and_the_gradient_of_queries_are_the_same_on_any_number_of_threads(team: Callable[[int], None]):
    tensors = inputs(800)
    found = []
    for threads in (1, 2, 3):
        team(threads)
        found.append(results(tensors))
    for other in found[1:]:
        for one, two in zip(found[0][:3], other[:3], strict=True):
            assert torch.equal(one, two)
        for one, two in zip(found[0][3:], other[3:], strict=True):
            torch.testing.assert_close(one, two)


@pytest.mark.parametrize("threads", [1, 2])
def test_python_threads_do_not_meet(threads: int, team: Callable[[int], None]):
    team(threads)
    cases = [random_case(number) for number in range(2000, 2024)]
    cases = [case for case in cases if "dropout_p" not in case.options]
    alone = [run(case, "cpu") for case in cases]
    failures: list[str] = []

    def work() -> None:
        team(threads)
        for case, expected in zip(cases, alone, strict=True):
            # The global generator is shared, and only a guard against dropout here.
            for one, other in zip(run(case, "cpu"), expected, strict=True):
                if not torch.equal(one.nan_to_num(), other.nan_to_num()):
                    failures.append(case.describe())

    workers = [threading.Thread(target=work) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not failures


@pytest.mark.parametrize("flush", [False, True])
def test_the_floating_point_mode_is_left_as_it_was(flush: bool, team: Callable[[int], None]):
    team(2)
    # A thread of its own: those that work for it are started here, and take its mode.
    found: list[Tensor] = []

    def work() -> None:
        if not torch.set_flush_denormal(flush):
            return
        team(2)
        # Long enough for both threads.
        small = torch.full((1 << 20,), 1e-40)
        before = small * 1.0
        results(inputs(300))
        found.extend((before, small * 1.0))

    worker = threading.Thread(target=work)
    worker.start()
    worker.join()
    if not found:
        pytest.skip("this machine cannot flush denormals")
    assert bool((found[0] == 0.0).all()) is bool((found[0] == 0.0).any()) is flush
    assert torch.equal(found[0], found[1])


FIRST = """
import torch
from alibi_attention import alibi_attention
torch.set_num_threads(2)
# Nothing before it is long enough for a second thread.
generator = torch.Generator().manual_seed(0)
query = torch.randn(1, 8, 400, 64, generator=generator)
alibi_attention(query, query, query, tolerance=0.0, backend="cpu")
small = torch.full((1 << 22,), 1e-40)
print(bool((small * 1.0 == 0.0).any()))
"""


def test_threads_that_are_made_for_the_kernels_flush_nothing_else():
    done = subprocess.run([sys.executable, "-c", FIRST], capture_output=True, text=True, check=False)
    assert done.stdout == "False\n", done.stderr


def everything(tensors: list[Tensor], slopes: Tensor) -> list[Tensor]:
    """What the kernels give of each kind of call: blocks and gradients, a step with a cache, its append and summary."""
    call = {"scale": 0.125, "backend": "cpu"}
    leaves = [t.clone().requires_grad_() for t in (*tensors, slopes)]
    out, lse = alibi_attention(*leaves, **call, return_lse=True)
    results = [out, lse, *torch.autograd.grad((out, lse), leaves, (torch.ones_like(out), torch.ones_like(lse)))]
    query, key, value = (t[:, :, :1] for t in tensors)
    results.append(alibi_attention(query, *tensors[1:], slopes, query_offset=299, **call))
    cache = KVCache()
    cache.append(*tensors[1:])
    for _ in range(3):
        cache.append(key, value)
        results.append(cache.attend(query, slopes, **call))
    assert cache._norms is not None
    return [*results, cache._norms]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the C library's name, and its numbers of modes")
@pytest.mark.parametrize("backend_threads", [1, 2])
def test_the_rounding_of_the_caller_does_not_reach_the_kernels(backend_threads: int, team: Callable[[int], None]):
    team(backend_threads)
    upward = {"x86_64": 0x800, "aarch64": 0x400000}[platform.machine()]
    library = ctypes.CDLL("libm.so.6")
    tensors, slopes = [t.detach() for t in inputs(300)], alibi_slopes(4)
    expected = everything(tensors, slopes)
    assert library.fesetround(upward) == 0
    try:
        # No constant, or it would be added when this is compiled.
        is_upward = slopes.new_tensor(1.0) + 1e-12 > 1.0
        found = everything(tensors, slopes)
        mode = library.fegetround()
    finally:
        library.fesetround(0)
    assert bool(is_upward)
    assert mode == upward
    for number, (one, other) in enumerate(zip(found, expected, strict=True)):
        if number == len(expected) - 1:
            # The center, the mean of the first keys, is torch's: it has rounded upward.
            torch.testing.assert_close(one, other, rtol=1e-6, atol=0.0)
        else:
            assert torch.equal(one, other), number


TRAPS = """
import ctypes, math, torch
from alibi_attention import HorizonCache, KVCache, alibi_attention
torch.set_num_threads(1)
library = ctypes.CDLL("libm.so.6")
shape = (1, 4, 1, 16)
cache, slopes = KVCache(), torch.tensor([3e38, 1.0, 0.5, 0.0])
keys = torch.ones(1, 4, 300, 16)
cache.append(keys, keys)
key, tiny = torch.full(shape, 1e30), torch.full(shape, 1e-38)
for _ in range(3):
    alibi_attention(tiny, keys, keys, slopes, scale=0.25, query_offset=299, backend="cpu")
    cache.append(key, key)
    cache.attend(tiny, slopes, scale=0.25)
forgetful = HorizonCache()
forgetful.append(keys, keys)
forgetful.attend(tiny, slopes, scale=0.25)
assert library.feenableexcept(0x1d) != -1  # invalid, by zero, overflow, underflow
alibi_attention(tiny, keys, keys, slopes, scale=0.25, query_offset=299, backend="cpu")
cache.append(key, key)
cache.attend(tiny, slopes, scale=0.25)
forgetful.append(key, key)
forgetful.attend(tiny, slopes, scale=0.25)
library.fedisableexcept(0x1d)
print("alive")
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="feenableexcept is the GNU C library's")
@pytest.mark.skipif(platform.machine() != "x86_64", reason="processors other than x86-64 need not trap")
def test_exceptions_that_the_caller_traps_do_not_end_the_process():
    done = subprocess.run([sys.executable, "-c", TRAPS], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "alive\n"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_plan_of_another_call_is_survived(dtype: torch.dtype):
    """It is in range, so that backward takes it: tiles past what a causal block sees have no keys, and add nothing."""
    tensors, slopes = inputs(400, dtype=dtype), alibi_slopes(4)
    plain = {"scale": None, "query_offset": None, "key_mask": None, "cu_seqlens": None, "cu_seqlens_k": None,
             "window": None, "dropout_p": 0.1, "backend": "cpu"}  # fmt: skip
    found = []
    for is_causal in (True, False):
        torch.manual_seed(0)
        call = call_arguments(*tensors, slopes, is_causal=is_causal, tolerance=0.0, **plain)
        found.append((call, *torch.ops.alibi_attention.forward(*call)))
    (call, out, lse, plan), (*_, wide) = found
    assert not torch.equal(plan, wide)
    ones = torch.ones_like(out), torch.zeros_like(lse)
    grads = [torch.ops.alibi_attention.backward(*ones, *call[:4], out, lse, tiles, *call[4:]) for tiles in (plan, wide)]
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other)


def test_far_positions_lose_no_precision():
    # The kernel counts distances from each block's own position.
    tensors = [t[:, :, :64] for t in inputs(64)]
    # Powers of two times a distance are exact in a matrix of biases, which others are not.
    slopes = 0.83 * alibi_slopes(4)
    here, lse = alibi_attention(*tensors, slopes, return_lse=True, backend="cpu")
    far, far_lse = alibi_attention(*tensors, slopes, query_offset=1 << 20, return_lse=True, backend="cpu")
    assert here.isfinite().all()
    assert far.isfinite().all()
    expected = alibi_attention(
        *[t.double() for t in tensors], slopes.double(), query_offset=1 << 20, backend="reference"
    )
    # Where every key is far the bias itself is rounded to float32: no more is lost than by a matrix of it.
    distance = (1 << 20) + torch.arange(64)[:, None] - torch.arange(64)
    bias = -slopes[:, None, None] * distance
    full = torch.nn.functional.scaled_dot_product_attention(*tensors, attn_mask=bias[None])
    assert (far - expected).abs().max() <= 2 * (full - expected).abs().max()
    assert (far_lse < lse).all()


@pytest.mark.parametrize(
    ("tensors", "reason"),
    [
        (inputs(4, dtype=torch.float64), "computes in float32, the tensors are torch.float64"),
        (inputs(4, dim=257), "head dimensions up to 256, got 257 and 257"),
    ],
    ids=["float64", "head_dim"],
)
def test_what_it_cannot_run_is_refused_with_the_reason(tensors: list[Tensor], reason: str):
    with pytest.raises(NotImplementedError, match=reason):
        alibi_attention(*tensors, backend="cpu")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("group", [1, 4])
@pytest.mark.parametrize("queries", [1, 2])
@pytest.mark.parametrize("content", ["normal", "sink", "not finite"])
def test_decoding_from_a_cache_agrees_with_the_reference(dtype: torch.dtype, group: int, queries: int, content: str):
    # Long enough for several pieces, with the horizon of the steep heads inside the nearest.
    generator = torch.Generator().manual_seed(queries)
    query = torch.randn(2, 4, queries, 64, generator=generator)
    key, value = (torch.randn(2, 4 // group, 3000, 64, generator=generator) for _ in range(2))
    if content == "sink":
        query[..., 0] = 3.0
        key[:, :, 0, 0] = 60.0
    elif content == "not finite":
        value[0, 0, 5, 3] = torch.inf
    query, key, value = (t.to(dtype) for t in (query, key, value))
    slopes = alibi_slopes(4)
    cache = KVCache()
    cache.append(key, value)
    out, lse = cache.attend(query, slopes, return_lse=True, backend="cpu")
    exact, exact_lse = alibi_attention(
        query.double(), key.double(), value.double(), slopes.double(), return_lse=True, backend="reference"
    )
    assert torch.equal(out.isfinite(), exact.isfinite())
    assert (lse - exact_lse).abs().max() < 1e-5
    error = (out.double() - exact)[exact.isfinite()].abs().max().item()
    assert error < 4 * UNIT[dtype] + 2.0**-19


def test_a_decoding_step_has_the_gradients_of_the_reference():
    generator = torch.Generator().manual_seed(0)
    query, flow = (torch.randn(1, 4, 1, 64, generator=generator) for _ in range(2))
    key, value = (torch.randn(1, 4, 3000, 64, generator=generator) for _ in range(2))
    found = []
    for backend, dtype in (("cpu", torch.float32), ("reference", torch.float64)):
        leaves = [t.to(dtype).requires_grad_() for t in (query, key, value)]
        out = alibi_attention(*leaves, alibi_slopes(4).to(dtype), backend=backend)
        found.append(torch.autograd.grad(out, leaves, flow.to(dtype)))
    for mine, truth in zip(*found, strict=True):
        assert (mine - truth).abs().max() < 1e-5


@pytest.mark.parametrize(
    ("dtype", "options"),
    [("float32", "is_causal=False"), ("bfloat16", "is_causal=False"), ("bfloat16", "window=(8000, 0)")],
)
def test_the_sums_of_backward_are_bounded_however_many_threads_there_are(dtype: str, options: str):
    # 32 runs for each of 8 heads would take 650 MB of sums; windows at the seams have rings for 64 threads beside them.
    before = f"""
import torch
from alibi_attention import alibi_attention
torch.get_num_threads = lambda: 64
query = torch.randn(1, 8, 20000 if "window" in {options!r} else 1600, 16, dtype=torch.{dtype}, requires_grad=True)
key = torch.randn(1, 8, 20000, 16, dtype=torch.{dtype}, requires_grad=True)
out = alibi_attention(query, key, key, {options}, tolerance=0.0, backend="cpu")
"""
    peak = peak_of(before, "torch.autograd.grad(out.sum(), (query, key))")
    # The gradients themselves, and the workspaces of threads, are another 50 MB.
    assert peak < 256 + 80
