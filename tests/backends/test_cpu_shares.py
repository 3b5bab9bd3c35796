"""Backward's sums, whatever tiles a plan keeps: all are added up once, and none is written while some are to come."""

from __future__ import annotations

import random

import pytest
import torch
from torch import Tensor

from alibi_attention import alibi_slopes
from alibi_attention.backends import native
from alibi_attention.backends.native import BLOCK_Q, PLAN
from alibi_attention.call import call_arguments
from alibi_attention.horizon import BLOCK_K

pytestmark = pytest.mark.skipif(isinstance(native.load(), str), reason="the compiled library is not installed")

# Of the largest gradient: what a gradient of this type is rounded by, twice.
ROUNDING = {torch.float32: 2e-6, torch.bfloat16: 2.0**-7, torch.float16: 2.0**-10}


def random_range(rng: random.Random, style: str, share: float, tiles: int) -> tuple[int, int]:
    """First and end tile of a block that stands at a share of the sequence."""
    if style == "anywhere":
        first = rng.randint(0, tiles)
        return first, rng.randint(first, tiles)
    here = min(tiles - 1, int(share * tiles))
    return max(0, here - rng.randint(0, 2)), min(tiles, here + 1 + (rng.randint(0, 1) if style == "both ways" else 0))


def fill_plan(rng: random.Random, plan: Tensor, tiles: int) -> None:
    """Ranges that follow the blocks, as windows do, or lie anywhere; empty ones; tiles apart, one or any before."""
    style, sinks = rng.choice(["window", "both ways", "anywhere"]), rng.choice(["none", "first", "any"])
    strays = rng.choice([0.0, 0.0, 0.05])
    blocks = plan.shape[2]
    for head in plan.flatten(0, 1):
        for block, numbers in enumerate(head):
            stray = rng.random() < strays
            first, end = random_range(rng, "anywhere" if stray else style, block / blocks, tiles)
            if rng.random() < 0.1:
                end = first
            apart = -1
            if sinks != "none" and first > 0 and rng.random() < 0.7:
                apart = 0 if sinks == "first" else rng.randrange(first)
            numbers[:3] = torch.tensor([first, end, apart])


def kept_by(plan: Tensor, q_len: int, k_len: int) -> Tensor:
    """(batch, heads, q_len, k_len): whether a pair's tile is in the plan."""
    kept = torch.zeros(*plan.shape[:2], q_len, k_len, dtype=torch.bool)
    for batch, heads in enumerate(plan.tolist()):
        for head, blocks in enumerate(heads):
            for block, (first, end, apart, _) in enumerate(blocks):
                rows = kept[batch, head, block * BLOCK_Q : (block + 1) * BLOCK_Q]
                rows[:, first * BLOCK_K : end * BLOCK_K] = True
                if apart >= 0:
                    rows[:, apart * BLOCK_K : (apart + 1) * BLOCK_K] = True
    return kept


@pytest.mark.parametrize("dtype", list(ROUNDING), ids=str)
@pytest.mark.parametrize("number", range(10))
def test_gradients_over_any_plan(number: int, dtype: torch.dtype) -> None:
    """Of keys enough that a ring goes round on two threads as well."""
    rng = random.Random(number)
    batch, kv_heads, group = rng.choice([(1, 1, 1), (1, 2, 1), (2, 1, 1), (1, 1, 3)])
    heads, key_dim, value_dim = kv_heads * group, rng.choice([8, 16, 20, 32]), rng.choice([8, 16, 24])
    q_len, k_len = rng.randint(1500, 2200), rng.randint(1500, 2200)

    def tensor(*size: int) -> Tensor:
        return torch.randn(size, dtype=torch.float64).to(dtype)

    torch.manual_seed(number)
    query, key, value = (
        tensor(batch, heads, q_len, key_dim), tensor(batch, kv_heads, k_len, key_dim),
        tensor(batch, kv_heads, k_len, value_dim),
    )  # fmt: skip
    slopes = alibi_slopes(heads) / 16
    call = call_arguments(
        query, key, value, slopes, is_causal=False, scale=None, query_offset=0, key_mask=None, cu_seqlens=None,
        cu_seqlens_k=None, window=None, dropout_p=0.0, tolerance=0.0, backend="cpu",
    )  # fmt: skip
    out, lse, plan = torch.ops.alibi_attention.forward(*call)
    blocks = plan.view(batch, heads, -1, PLAN)
    fill_plan(rng, blocks, -(-k_len // BLOCK_K))
    grads_in = grad_out, grad_lse = tensor(*out.shape), torch.randn_like(lse)
    saved = (*call[:4], out, lse, plan, *call[4:])
    wide = [t.double() for t in (query, key, value, out, grad_out)]
    query, key, value, out, grad_out = wide
    key, value = (t.repeat_interleave(group, dim=1) for t in (key, value))
    distance = (torch.arange(q_len)[:, None] - torch.arange(k_len)).abs()
    scores = key_dim**-0.5 * query @ key.mT - slopes.double()[:, None, None] * distance
    weights = torch.exp(scores - lse.double().unsqueeze(-1)) * kept_by(blocks, q_len, k_len)
    mean = (grad_out * out).sum(-1) - grad_lse.double()
    grads = weights * (grad_out @ value.mT - mean.unsqueeze(-1))
    of_groups = [t.unflatten(1, (kv_heads, group)).sum(2) for t in (grads.mT @ query, weights.mT @ grad_out)]
    expected = (key_dim**-0.5 * grads @ key, key_dim**-0.5 * of_groups[0], of_groups[1])
    # Of a plan that is none of forward's, gradients of scores do not add up to those of the lse: what they do besides
    # is taken for rounding.
    stray = grads.sum(-1) - grad_lse.double()
    slope = -((grads * distance).sum(-1) - stray * (weights * distance).sum(-1)).sum((0, 2))
    before = torch.get_num_threads()
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        try:
            got = torch.ops.alibi_attention.backward(grads_in[0], grads_in[1], *saved)
        finally:
            torch.set_num_threads(before)
        for mine, truth in zip(got[:3], expected, strict=True):
            assert float((mine.double() - truth).abs().max() / truth.abs().max()) <= ROUNDING[dtype], threads
        assert float((got[3].double() - slope).abs().max() / slope.abs().max()) <= 1e-4, threads
