"""Checks of the kernels: the horizon, which may skip what cannot matter and nothing else."""

from __future__ import annotations

from typing import Any
from unittest import mock

import torch
from kernel_calls import BACKEND, Call, blocks, make_call, planned, unwarned
from kernel_limits import compare, within
from operator_budget import NAMES
from sample_kernels import masked_tiles

from alibi_attention import alibi_attention
from alibi_attention.horizon import BLOCK_K, BLOCK_Q


def _long(device: str, **changes: Any) -> Call:
    # Beyond the least length that has a horizon, which is lower in the interpreter.
    settings = {"q_len": 700 if device == "cpu" else 2500, "heads": 2, "kv_heads": 1, "slopes": (0.5, 1.0)}
    settings |= {"head_dim": 16} | changes
    return make_call(device, **settings)


def horizon(dtype: torch.dtype, is_causal: bool, device: str) -> None:
    """Results with tiles skipped are within the budget of results with all of them."""
    compare(_long(device, dtype=dtype, is_causal=is_causal))


def horizon_in_large_tiles(device: str) -> None:
    """Tiles of keys twice as long as those of the plan, which then begins in the middle of one as often as not."""
    for settings in ({}, {"dtype": torch.bfloat16, "is_causal": False}, {"q_len": 300, "k_len": 700}):
        with blocks(device, 128, 128):
            compare(_long(device, **settings))


def one_tile_on_the_diagonal(device: str) -> None:
    """Wherever a plan begins, a block of 128 rows has its diagonal in one tile of 128 keys; no key is in two tiles."""
    # Blocks of 128 rows; the first tile of 64 keys, the end, and the tile kept apart.
    plans = ((0, 2, -1), (1, 4, 0), (3, 6, 0), (3, 8, 2), (6, 10, -1), (9, 12, 8), (10, 14, 3), (14, 16, 0))
    plan = torch.tensor(plans, dtype=torch.int32, device=device)
    starts, limits = (torch.full((len(plans), 8), -1, dtype=torch.int32, device=device) for _ in range(2))
    numbers = torch.zeros(len(plans), dtype=torch.int32, device=device)
    masked_tiles[(len(plans),)](plan, starts, limits, numbers, 1024, block_m=128, block_n=128)
    for block, (first, end, apart) in enumerate(plans):
        spans = list(zip(starts[block].tolist(), limits[block].tolist(), strict=True))[: int(numbers[block])]
        assert spans[0] == (128 * block, 64 * end), f"the diagonal of block {block} is in {spans}"
        # The tile kept apart, where it is not in the first of the others as well.
        base = first // 2 * 128
        assert spans[1:] == ([(64 * apart, 64 * apart + 64)] if 0 <= 64 * apart < base else []), f"{block}: {spans}"


def dropped_mass(is_causal: bool, device: str) -> None:
    """The softmax mass, in float64, of the keys a plan leaves out: above nothing, and within the tolerance."""
    call = _long(device, is_causal=is_causal)
    query, key, _, slopes = call.double().tensors
    rows, keys = (torch.arange(n, device=device) for n in (query.shape[2], key.shape[2]))
    distance = (rows[:, None] - keys).double()
    wide = key.repeat_interleave(query.shape[1] // key.shape[1], dim=1)
    scores = query @ wide.mT * query.shape[3] ** -0.5 - slopes[:, None, None] * distance.abs()
    weights = (scores.masked_fill(distance < 0, -torch.inf) if is_causal else scores).softmax(-1)
    for tolerance in (1e-1, 1e-3, 2.0**-24):
        plan = planned(call, tolerance=tolerance).repeat_interleave(BLOCK_Q, dim=2)[:, :, : len(rows)].unsqueeze(-2)
        tile = keys // BLOCK_K
        kept = ((tile >= plan[..., 0]) & (tile < plan[..., 1])) | (tile == plan[..., 2])
        share = (weights * ~kept).sum(-1)
        within("share of a row that was dropped", share.max(), tolerance)
        visible = (distance >= 0) if is_causal else torch.ones_like(distance, dtype=torch.bool)
        assert (visible & ~kept).any(), f"nothing is skipped at tolerance {tolerance:.3g}"
    compare(call, tolerance=0.0)


def what_underflows_is_left_out_bit_for_bit(device: str) -> None:
    # Keys 384 tokens away at slopes of 0.5 and 1 weigh exp(-190): exactly nothing, so that whatever their values are,
    # and whether they are swept or skipped, nothing changes in any bit.
    call = _long(device)
    changed = Call(*(t.clone() for t in (*call.tensors, call.grad_out, call.grad_lse)), call.options)
    changed.value[:, :, :256] *= -1.0
    ours = [alibi_attention(*each.tensors, backend=BACKEND)[:, :, 640:] for each in (call, changed)]
    assert torch.equal(*ours), "keys 384 tokens away at slope 0.5 still show"


def outliers_are_kept(device: str) -> None:
    """One old key that outweighs everything; a value that is not finite; an attention sink."""
    call = _long(device)
    call.key[:, :, 5] = 0.0
    call.key[:, :, 5, 0] = 2000.0
    call.query[..., 0] = call.query[..., 0].abs() + 1.0
    compare(call)
    for poison in (torch.nan, torch.inf):
        call = _long(device, q_len=330 if device == "cpu" else 2100, kv_heads=2)
        call.value[0, 0, 3, 2] = poison
        out = alibi_attention(*call.tensors, backend=BACKEND)
        exact = alibi_attention(*call.double().tensors, backend="reference", tolerance=0.0)
        assert torch.equal(out.isfinite(), exact.isfinite()), "what is not finite must reach every row that sees it"


def slopes_that_are_no_numbers(device: str) -> None:
    """A learned slope that diverged makes its own heads NaN, as on the other backends, and no address wrong."""
    settings = {"heads": 4, "kv_heads": 2, "slopes": (torch.nan, 0.5, 1.0, torch.nan)}
    if device == "cpu":
        # What is not finite is computed twice, and in the interpreter that takes minutes.
        settings = {"kv_heads": 2, "slopes": (torch.nan, 0.5), "q_len": 270}
    call = _long(device, **settings)
    # On a CPU such slopes are refused, on a GPU nobody looks.
    with mock.patch("alibi_attention.call.check_finite_slopes"), unwarned():
        got, want = call.run(), call.oracle()
        call.slopes.nan_to_num_(1.0)
        finite = call.run()
    for name, ours, theirs, other in zip(NAMES, got, want, finite, strict=True):
        assert torch.equal(ours.isnan(), theirs.isnan()), f"{name}: NaN in other places"
        assert torch.equal(ours[~ours.isnan()], other[~ours.isnan()]), f"{name}: a NaN slope shows in other heads"
