"""Small kernels with known properties, on which the tools of these tests are tested themselves."""

from __future__ import annotations

import triton
import triton.language as tl

from alibi_attention.backends.triton.common import key_tiles, masked_count, masked_tile


@triton.jit
def attend_full_tiles(
    q, k, v, o, slopes, bounds, scale,
    head_dim: tl.constexpr, block_m: tl.constexpr, block_n: tl.constexpr, bias: tl.constexpr,
):  # fmt: skip
    """One block of queries over whole tiles of keys, without a diagonal; three forms of the bias."""
    block = tl.program_id(0)
    rows = block * block_m + tl.arange(0, block_m)
    columns = tl.arange(0, block_n)
    dims = tl.arange(0, head_dim)
    slope = tl.load(slopes)
    query = tl.load(q + rows[:, None] * head_dim + dims[None, :])
    total = tl.zeros((block_m, head_dim), tl.float32)
    top = tl.full((block_m,), -1e30, tl.float32)
    mass = tl.zeros((block_m,), tl.float32)
    in_tile = slope * columns
    for tile in tl.range(tl.load(bounds + block), tl.load(bounds + block + 1)):
        keys = tile * block_n + columns
        key = tl.load(k + keys[None, :] * head_dim + dims[:, None])
        score = tl.dot(query, key) * scale
        shift = 0.0
        if bias == "in tile":
            # A column that does not change, and one scalar a tile.
            score += in_tile[None, :]
            shift = slope * (tile * block_n - block * block_m).to(tl.float32)
        elif bias == "by element":
            score += slope * (keys[None, :] - rows[:, None]).to(tl.float32)
        new = tl.maximum(top, tl.max(score, 1) + shift)
        weight = tl.exp2(score - (new - shift)[:, None])
        fade = tl.exp2(top - new)
        mass = mass * fade + tl.sum(weight, 1)
        value = tl.load(v + keys[:, None] * head_dim + dims[None, :])
        total = tl.dot(weight.to(value.dtype), value, total * fade[:, None])
        top = new
    tl.store(o + rows[:, None] * head_dim + dims[None, :], (total / mass[:, None]).to(o.dtype.element_ty))


@triton.jit
def multiply(a, b, out, block_n: tl.constexpr):
    """out = (a * a + a) @ b, rounded after every operation in the type of a."""
    at = tl.arange(0, block_n)[:, None] * block_n + tl.arange(0, block_n)[None, :]
    left, right = tl.load(a + at), tl.load(b + at)
    tl.store(out + at, tl.dot(left * left + left, right).to(out.dtype.element_ty))


@triton.jit
def shift_left(source, target, length, block_size: tl.constexpr, masked: tl.constexpr, writes_twice: tl.constexpr):
    """target[i] = source[i + 1]; past the end unless masked; the first element by every program on request."""
    at = tl.program_id(0) * block_size + tl.arange(0, block_size)
    ahead = at + 1
    mask = ahead < length if masked else at < length
    tl.store(target + at, tl.load(source + ahead, mask=mask, other=0.0), mask=at < length)
    if writes_twice:
        tl.store(target, 0.0)


@triton.jit
def masked_tiles(plan, starts, limits, numbers, k_len, block_m: tl.constexpr, block_n: tl.constexpr):
    """The tiles with a mask that a causal block of rows sweeps under its plan: where each starts and ends, how many."""
    block = tl.program_id(0)
    row = block * block_m + tl.arange(0, block_m)
    lower = tl.zeros_like(row)
    base, end, count, a, b, c, d, apart = key_tiles(
        lower, row + 1, row, row < k_len, plan + block * 3, k_len, block_n, False, True
    )
    number = masked_count(count, a, b, c, d, apart, block_n)
    tl.store(numbers + block, number)
    for index in range(number):
        start, limit = masked_tile(index, base, end, count, a, b, c, d, apart, block_n)
        tl.store(starts + block * 8 + index, start)
        tl.store(limits + block * 8 + index, limit)
