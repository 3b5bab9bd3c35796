"""Few queries against many keys: every count, dimension and group, with and without a summary of the keys."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peak_memory import peak_of
from torch import Tensor

from alibi_attention import KVCache, alibi_attention, alibi_slopes
from alibi_attention.backends import native
from alibi_attention.backends.cpu import CpuBackend
from alibi_attention.backends.native import BLOCK_Q, PLAN
from alibi_attention.call import call_arguments
from alibi_attention.horizon import BLOCK_K

pytestmark = pytest.mark.skipif(isinstance(native.load(), str), reason="the compiled library is not installed")

UNIT = {torch.float32: 2.0**-23, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-10}


def tensors(
    queries: int, group: int, dim: int, length: int, *, dtype: torch.dtype = torch.float32, kv_heads: int = 2
) -> list[Tensor]:
    generator = torch.Generator().manual_seed(queries * dim + group)
    query = torch.randn(1, kv_heads * group, queries, dim, generator=generator)
    key, value = (torch.randn(1, kv_heads, length, dim, generator=generator) for _ in range(2))
    return [t.to(dtype) for t in (query, key, value)]


def cached(key: Tensor, value: Tensor) -> KVCache:
    cache = KVCache()
    cache.append(key, value)
    return cache


@pytest.mark.parametrize(
    ("queries", "group", "dim"),
    [
        (1, 1, 16), (1, 1, 24), (1, 2, 40), (1, 5, 72), (2, 4, 80), (1, 1, 250), (1, 1, 5), (1, 3, 32), (2, 2, 64),
        (6, 1, 64),
        (1, 32, 64), (1, 71, 64), (3, 16, 24), (9, 1, 40), (17, 3, 72), (64, 1, 256), (64, 4, 24),
        (128, 2, 16), (130, 1, 8),
    ],
)  # fmt: skip
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_few_queries_agree_with_the_reference(queries: int, group: int, dim: int, dtype: torch.dtype):
    query, key, value = tensors(queries, group, dim, 2100, dtype=dtype)
    slopes = alibi_slopes(query.shape[1])
    wide = [t.double() for t in (query, key, value)]
    exact, exact_lse = alibi_attention(*wide, slopes.double(), return_lse=True, backend="reference")
    results = [cached(key, value).attend(query, slopes, return_lse=True, backend="cpu")]
    if queries < 16:
        results.append(alibi_attention(query, key, value, slopes, return_lse=True, backend="cpu"))
    for out, lse in results:
        assert (lse - exact_lse).abs().max() < 1e-5
        assert (out.double() - exact).abs().max().item() < 4 * UNIT[dtype] + 2.0**-19


@pytest.mark.parametrize(("queries", "group", "dim"), [(1, 1, 64), (1, 4, 24), (1, 24, 64), (5, 4, 40), (64, 1, 64)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_keys_beyond_the_horizon_are_not_read(queries: int, group: int, dim: int, dtype: torch.dtype):
    query, key, value = tensors(queries, group, dim, 4000, dtype=dtype)
    cache = cached(key, value)
    slopes = torch.full((query.shape[1],), 0.25)
    before = cache.attend(query, slopes, backend="cpu")
    # Behind the summary's back: had anything read them, it would show.
    cache.key[:, :, :3500] = torch.nan
    cache.value[:, :, :3500] = torch.nan
    assert torch.equal(cache.attend(query, slopes, backend="cpu"), before)


@pytest.mark.parametrize(("queries", "group"), [(1, 2), (1, 24), (50, 1)])
@pytest.mark.parametrize("content", ["normal", "sink", "outlier"])
@pytest.mark.parametrize("window", [None, (1500, 0)])
def test_forward_computes_what_its_plan_says(
    queries: int, group: int, content: str, window: tuple[int, int] | None, monkeypatch: pytest.MonkeyPatch
):
    length, tolerance = 3000, 2.0**-5
    query, key, value = tensors(queries, group, 32, length)
    if content == "sink":
        query[..., 0] = 3.0
        key[:, :, 0, 0] = 60.0
    elif content == "outlier":
        key[:, :, 1700] *= 5
    slopes = alibi_slopes(query.shape[1])
    plans: list[Tensor] = []
    whole = CpuBackend.forward

    def forward(self: CpuBackend, *call: Any) -> tuple[Tensor, Tensor, Tensor]:
        found = whole(self, *call)
        plans.append(found[2].view(query.shape[1], -1, PLAN))
        return found

    monkeypatch.setattr(CpuBackend, "forward", forward)
    _, lse = cached(key, value).attend(
        query, slopes, window=window, tolerance=tolerance, return_lse=True, backend="cpu"
    )
    tile = torch.arange(length) // BLOCK_K
    plan = plans[0]
    kept = (plan[..., :1] <= tile) & (tile < plan[..., 1:2]) | (plan[..., 2:3] == tile)
    kept = kept.repeat_interleave(BLOCK_Q, dim=1)[:, :queries]
    place = torch.arange(length - queries, length)
    distance = (place[:, None] - torch.arange(length)[None]).double()
    grouped = key[0].repeat_interleave(group, dim=0).double()
    exact = query[0].double() @ grouped.mT / 32**0.5 - slopes.double()[:, None, None] * distance
    seen = (distance >= 0) & (distance <= (length if window is None else window[0]))
    exact = exact.masked_fill(~seen, -torch.inf)
    planned = exact.masked_fill(~kept, -torch.inf).logsumexp(-1)
    assert (lse[0] - planned).abs().max() < 2e-6 * (1 + planned.abs().max())
    assert bool((-torch.expm1(planned - exact.logsumexp(-1)) <= tolerance).all())
    assert not (kept | ~seen).all(), "the test is empty unless something is left out"


@pytest.mark.parametrize(("queries", "group"), [(1, 1), (1, 24), (64, 2)])
def test_a_step_is_the_same_on_any_number_of_threads(queries: int, group: int):
    query, key, value = tensors(queries, group, 64, 3000)
    cache, slopes = cached(key, value), alibi_slopes(query.shape[1])
    before = torch.get_num_threads()
    try:
        found = []
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            found.append(cache.attend(query, slopes, return_lse=True, backend="cpu"))
    finally:
        torch.set_num_threads(before)
    for out, lse in found[1:]:
        assert torch.equal(out, found[0][0])
        assert torch.equal(lse, found[0][1])


@pytest.mark.parametrize("queries", [1, 20])
def test_slopes_of_any_sign_read_everything_they_must(queries: int):
    query, key, value = tensors(queries, 2, 32, 2000)
    slopes = torch.tensor([0.0, 0.5, -0.001, 0.01])
    wide = [t.double() for t in (query, key, value)]
    exact = alibi_attention(*wide, slopes.double(), backend="reference")
    out = cached(key, value).attend(query, slopes, backend="cpu")
    assert (out - exact).abs().max() < 1e-5


def test_a_key_head_gives_the_same_bits_alone_as_among_others():
    # Enough rows of each head for several units, and enough heads that their sums do not all fit at a time.
    query, key, value = tensors(100, 8, 64, 3000, kv_heads=8)
    slopes = alibi_slopes(64)
    for tolerance in (0.0, 2.0**-8):
        out, lse = cached(key, value).attend(query, slopes, tolerance=tolerance, return_lse=True, backend="cpu")
        for head in range(8):
            rows = slice(8 * head, 8 * head + 8)
            alone = cached(key[:, head : head + 1], value[:, head : head + 1])
            one, one_lse = alone.attend(
                query[:, rows], slopes[rows], tolerance=tolerance, return_lse=True, backend="cpu"
            )
            assert torch.equal(one, out[:, rows])
            assert torch.equal(one_lse, lse[:, rows])


@pytest.mark.parametrize(("batch", "queries", "group"), [(1, 100, 8), (8, 1, 12)])
def test_sums_of_pieces_take_little_memory(batch: int, queries: int, group: int):
    before = f"""
import torch
from alibi_attention import KVCache, alibi_slopes
torch.set_num_threads(1)
query = torch.randn({batch}, {8 * group}, {queries}, 64, dtype=torch.bfloat16)
key = torch.randn({batch}, 8, 16384, 64, dtype=torch.bfloat16)
cache, slopes = KVCache(), alibi_slopes({8 * group})
cache.append(key, key)
cache.attend(query[:, :, :1], slopes)
"""
    # Large blocks come from the system and go back to it: what an allocator keeps for later is not what a call takes.
    allocator = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1"}
    assert peak_of(before, "cache.attend(query, slopes, tolerance=0.0)", allocator) < 12


def steps(query: Tensor, key: Tensor, value: Tensor, center: Tensor, norms: Tensor, tolerance: float) -> Tensor:
    """The first tile that each block of queries reads."""
    arguments = call_arguments(
        query, key, value, torch.full((query.shape[1],), 0.03), is_causal=True, scale=0.3, query_offset=None,
        key_mask=None, cu_seqlens=None, cu_seqlens_k=None, window=None, dropout_p=0.0, tolerance=tolerance,
        backend="cpu", key_center=center, key_norms=norms,
    )  # fmt: skip
    plan: Tensor = torch.ops.alibi_attention.forward(*arguments)[2]
    return plan.view(query.shape[1], PLAN)[:, 0]


def test_where_a_sweep_stops_does_not_depend_on_a_sink_that_has_left():
    # 64 heads, so that some row is near the edge of every decision; and the edge moves with the tolerance.
    query, key, value = tensors(1, 1, 128, 4096, kv_heads=64)
    key[:, :, 0] *= 300.0 / 128**0.5
    center = key[:, :, 64:].mean(2)
    radii = (key - center.unsqueeze(2)).double().norm(dim=-1)
    norms = radii.unflatten(2, (-1, BLOCK_K)).amax(3)
    # As a ring has it (cache/rings.py): the first tile empty, the second as wide as the widest but for the sink's.
    start = 1024
    ring = norms[:, :, start // BLOCK_K :].clone()
    ring[:, :, 0] = -torch.inf
    ring[:, :, 1] = norms[:, :, 1:].amax(2)
    moved = set()
    for step in range(40):
        tolerance = 2.0 ** (-10 - step / 15)
        whole = steps(query, key, value, center, norms, tolerance)
        held = steps(query, key[:, :, start:], value[:, :, start:], center, ring, tolerance)
        assert bool((whole > start // BLOCK_K + 1).all())
        assert torch.equal(whole, held + start // BLOCK_K), tolerance
        moved.add(tuple(whole.tolist()))
    assert len(moved) > 20, "the test is empty unless decisions are near their edge"
