"""What the CPU kernels leave out, held against the true mass: tiles never computed, and computed tiles passed over."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from alibi_attention import KVCache, alibi_attention, alibi_slopes
from alibi_attention.backends import native
from alibi_attention.backends.native import BLOCK_Q, PLAN
from alibi_attention.call import call_arguments
from alibi_attention.horizon import BLOCK_K

pytestmark = pytest.mark.skipif(isinstance(native.load(), str), reason="the compiled library is not installed")

HEADS = 4


def forward_with_plan(
    tensors: list[Tensor], slopes: Tensor | None = None, **options: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """Output, lse, and the plan as (heads, blocks of queries, PLAN): first tile, end tile, tile apart, tiles scored."""
    call = {
        "is_causal": True, "scale": None, "query_offset": None, "key_mask": None, "cu_seqlens": None,
        "cu_seqlens_k": None, "window": None, "dropout_p": 0.0, "tolerance": None, "backend": "cpu", **options,
    }  # fmt: skip
    # The operator itself: a plain call takes a shorter way, on which nobody sees the plan.
    out, lse, plan = torch.ops.alibi_attention.forward(*call_arguments(*tensors, slopes, **call))
    return out, lse, plan.view(tensors[0].shape[1], -1, PLAN)


def kept_keys(plan: Tensor, length: int) -> Tensor:
    """(heads, queries, keys): whether the plan has forward compute the pair's tile."""
    tile = torch.arange(length) // BLOCK_K
    by_block = (plan[..., :1] <= tile) & (tile < plan[..., 1:2]) | (plan[..., 2:3] == tile)
    return by_block.repeat_interleave(BLOCK_Q, dim=1)[:, :length]


def scores(tensors: list[Tensor], slopes: Tensor, *, is_causal: bool) -> Tensor:
    query, key = (t[0].double() for t in tensors[:2])
    place = torch.arange(query.shape[1], dtype=torch.float64)
    distance = place[:, None] - place[None, :]
    bias = -slopes.double()[:, None, None] * distance.abs()
    dense = query @ key.mT / query.shape[-1] ** 0.5 + bias
    return dense.masked_fill(distance < 0, -torch.inf) if is_causal else dense


def inputs(length: int, content: str = "normal", dim: int = 32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(length)
    tensors = [torch.randn(1, HEADS, length, dim, generator=generator) for _ in range(3)]
    if content == "wide":
        tensors[0] *= 3
    elif content == "orthogonal":
        # Large norms, and no score at all: bounds by norms are worth nothing here.
        tensors[0][..., : dim // 2] = 0.0
        tensors[1][..., dim // 2 :] = 0.0
        tensors[0] *= 12
        tensors[1] *= 12
    return tensors


@pytest.mark.parametrize("tolerance", [2.0**-24, 2.0**-12, 2.0**-5])
@pytest.mark.parametrize("content", ["normal", "wide", "orthogonal"])
@pytest.mark.parametrize("is_causal", [True, False])
def test_the_true_mass_of_what_is_left_out_stays_below_the_tolerance(tolerance: float, content: str, is_causal: bool):
    tensors, slopes = inputs(900, content), alibi_slopes(HEADS)
    _, lse, plan = forward_with_plan(tensors, is_causal=is_causal, tolerance=tolerance)
    exact = scores(tensors, slopes, is_causal=is_causal)
    kept = kept_keys(plan, 900)
    assert not kept.all(), "the test is empty unless something is left out"
    dropped = exact.masked_fill(kept, -torch.inf).logsumexp(-1) - exact.logsumexp(-1)
    assert bool((dropped.exp() <= tolerance).all())
    # What forward computed is what the plan tells backward, tile for tile.
    planned = exact.masked_fill(~kept, -torch.inf).logsumexp(-1)
    assert (lse[0] - planned).abs().max() < 2e-6 * (1 + planned.abs().max())


def test_a_computed_tile_without_mass_is_passed_over():
    tensors, slopes = inputs(1500, "orthogonal"), alibi_slopes(HEADS)
    _, _, plan = forward_with_plan(tensors)
    # Every score is 0 but for its penalty: what 2^-25 allows beyond the nearest keys, a tile's worth of doubt, a block.
    keys = (25 + 6 + 3) * 0.694 / slopes + BLOCK_Q + 2 * BLOCK_K
    width = (plan[:, -1, 1] - plan[:, -1, 0]) * BLOCK_K
    assert bool((width <= keys).all()), (width, keys)
    # What is passed over was scored.
    scored, kept = plan[..., 3], plan[..., 1] - plan[..., 0]
    assert bool((scored >= kept).all())
    assert scored[0, -1] > kept[0, -1]
    _, _, dense = forward_with_plan(tensors, tolerance=0.0)
    assert torch.equal(dense[..., 3], dense[..., 1] - dense[..., 0])


@pytest.mark.parametrize("place", [700, 20], ids=["in the middle", "sink"])
def test_a_key_behind_tiles_passed_over_is_found(place: int):
    tensors, slopes = inputs(1500, "orthogonal"), torch.full((HEADS,), 0.05)
    # One old key that the last rows like, behind hundreds without any mass.
    direction = torch.zeros(32)
    direction[-1] = 1.0
    tensors[0][:, :, 1400:] = 12 * direction
    tensors[1][:, :, place] = (0.05 * (1490 - place) + 5) / 12 * 32**0.5 * direction
    out, lse, plan = forward_with_plan(tensors, slopes=slopes)
    dense, dense_lse = alibi_attention(*tensors, slopes, tolerance=0.0, return_lse=True, backend="cpu")
    exact = scores(tensors, slopes, is_causal=True)
    assert (exact.softmax(-1)[:, -1, place] > 0.5).all()
    assert kept_keys(plan, 1500)[:, -1, place].all()
    kept = plan[:, -1, 1] - plan[:, -1, 0]
    # Tiles that come back are scored again; behind a sink they stay where they are.
    assert bool((plan[:, -1, 3] > kept + 1).all())
    if place < BLOCK_K:
        assert (plan[:, -1, 2] == 0).all(), "a sink is kept apart"
        assert (plan[:, -1, 0] > 15).all()
    torch.testing.assert_close(out, dense, atol=1e-6, rtol=0)
    torch.testing.assert_close(lse, dense_lse, atol=1e-6, rtol=1e-6)
    dropped = exact.masked_fill(kept_keys(plan, 1500), -torch.inf).logsumexp(-1) - exact.logsumexp(-1)
    assert bool((dropped.exp() <= 2.0**-24).all())


def test_gradients_are_those_of_what_forward_computed():
    tensors, slopes = inputs(700), alibi_slopes(HEADS)
    _, _, plan = forward_with_plan(tensors, tolerance=2.0**-5)
    kept = kept_keys(plan, 700)
    found, truth = ([t.detach().clone().requires_grad_() for t in tensors] for _ in range(2))
    flow = torch.randn(tensors[2].shape, generator=torch.Generator().manual_seed(0))
    mine = torch.autograd.grad(alibi_attention(*found, tolerance=2.0**-5, backend="cpu"), found, flow)
    weights = scores(truth, slopes, is_causal=True).masked_fill(~kept, -torch.inf).softmax(-1)
    exact = torch.autograd.grad(weights @ truth[2][0].double(), truth, flow[0].double())
    for one, other in zip(mine, exact, strict=True):
        assert (one - other).abs().max() < 1e-5


@pytest.mark.parametrize("sides", [(60,), (1440,), (60, 1440)], ids=["left", "right", "both"])
def test_with_two_sides_a_key_behind_tiles_passed_over_is_found_on_either(sides: tuple[int, ...]):
    tensors, slopes = inputs(1500, "orthogonal"), torch.full((HEADS,), 0.05)
    direction = torch.zeros(32)
    direction[-1] = 1.0
    middle = slice(720, 768)
    tensors[0][:, :, middle] = 12 * direction
    for place in sides:
        tensors[1][:, :, place] = (0.05 * abs(744 - place) + 5) / 12 * 32**0.5 * direction
    out, lse, plan = forward_with_plan(tensors, slopes=slopes, is_causal=False)
    dense, dense_lse = alibi_attention(*tensors, slopes, is_causal=False, tolerance=0.0, return_lse=True, backend="cpu")
    exact = scores(tensors, slopes, is_causal=False)
    kept = kept_keys(plan, 1500)
    assert (exact.softmax(-1)[:, 744, list(sides)] > 0.1).all()
    assert kept[:, middle][..., list(sides)].all()
    # Blocks that do not like them pass over what they would have computed by norms alone.
    assert not kept.all()
    torch.testing.assert_close(out, dense, atol=1e-6, rtol=0)
    torch.testing.assert_close(lse, dense_lse, atol=1e-6, rtol=1e-6)
    dropped = exact.masked_fill(kept, -torch.inf).logsumexp(-1) - exact.logsumexp(-1)
    assert bool((dropped.exp() <= 2.0**-24).all())


@pytest.mark.parametrize("is_causal", [True, False])
def test_with_learned_slopes_what_is_left_out_is_weighed_by_its_distance(is_causal: bool):
    tensors, slopes, tolerance = inputs(1200, "orthogonal"), alibi_slopes(HEADS), 2.0**-8
    _, _, plan = forward_with_plan(tensors, slopes=slopes, is_causal=is_causal, tolerance=tolerance)
    learned = slopes.clone().requires_grad_()
    _, _, wider = forward_with_plan(tensors, slopes=learned, is_causal=is_causal, tolerance=tolerance)
    kept = kept_keys(wider, 1200)
    assert not kept.all()
    assert not torch.equal(plan, wider), "the budget of a slope's gradient is smaller"
    exact = scores(tensors, slopes, is_causal=is_causal)
    place = torch.arange(1200, dtype=torch.float64)
    reach = (place if is_causal else torch.maximum(place, 1199 - place)).unsqueeze(0)
    share = (exact.masked_fill(kept, -torch.inf).logsumexp(-1) - exact.logsumexp(-1)).exp()
    assert bool((share * (1 + slopes.double().unsqueeze(1) * reach) <= tolerance).all())


def test_rows_of_a_last_block_that_is_not_full_pass_over_what_a_full_one_does():
    # 1457 = 30 * 48 + 17: of the lanes of the last block most are empty, and have no say. The tile before its own is at
    # least 33 tokens away, 66 nats, of which bounds by norms know nothing.
    tensors, slopes = inputs(1457, "orthogonal"), torch.full((HEADS,), 2.0)
    _, _, plan = forward_with_plan(tensors, slopes=slopes)
    assert (plan[:, -1, 1] == 23).all()
    assert (plan[:, -1, 0] == 22).all(), plan[:, -1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("slope", [1e20, 1e28, 1e30, 1e36])
def test_what_is_not_finite_is_not_skipped_however_steep_the_slope(slope: float, dtype: torch.dtype) -> None:
    """A tile that is never to be skipped has a finite bound, from which distances are subtracted."""
    query, key, value = (t[:, :1].to(dtype) for t in inputs(1024))
    value[0, 0, 3, 5] = torch.nan
    slopes = torch.tensor([slope])
    out = alibi_attention(query, key, value, slopes, backend="cpu")
    assert out[0, 0, 3:].isnan().any(-1).all()
    cache = KVCache()
    cache.append(key, value)
    assert cache.attend(query[:, :, -1:], slopes, backend="cpu").isnan().any()
