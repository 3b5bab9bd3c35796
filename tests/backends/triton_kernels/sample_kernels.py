"""Small kernels with known properties, on which the tools of these tests are tested themselves."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def attend_full_tiles(
    q, k, v, o, slopes, bounds, scale,
    D: tl.constexpr, M: tl.constexpr, N: tl.constexpr, BIAS: tl.constexpr,
):  # fmt: skip
    """One block of queries over whole tiles of keys, without a diagonal; three forms of the bias."""
    block = tl.program_id(0)
    rows = block * M + tl.arange(0, M)
    columns = tl.arange(0, N)
    dims = tl.arange(0, D)
    slope = tl.load(slopes)
    query = tl.load(q + rows[:, None] * D + dims[None, :])
    total = tl.zeros((M, D), tl.float32)
    top = tl.full((M,), -1e30, tl.float32)
    mass = tl.zeros((M,), tl.float32)
    in_tile = slope * columns
    for tile in tl.range(tl.load(bounds + block), tl.load(bounds + block + 1)):
        keys = tile * N + columns
        key = tl.load(k + keys[None, :] * D + dims[:, None])
        score = tl.dot(query, key) * scale
        shift = 0.0
        if BIAS == "in tile":
            # A column that does not change, and one scalar a tile.
            score += in_tile[None, :]
            shift = slope * (tile * N - block * M).to(tl.float32)
        elif BIAS == "by element":
            score += slope * (keys[None, :] - rows[:, None]).to(tl.float32)
        new = tl.maximum(top, tl.max(score, 1) + shift)
        weight = tl.exp2(score - (new - shift)[:, None])
        fade = tl.exp2(top - new)
        mass = mass * fade + tl.sum(weight, 1)
        value = tl.load(v + keys[:, None] * D + dims[None, :])
        total = tl.dot(weight.to(value.dtype), value, total * fade[:, None])
        top = new
    tl.store(o + rows[:, None] * D + dims[None, :], (total / mass[:, None]).to(o.dtype.element_ty))


@triton.jit
def multiply(a, b, out, N: tl.constexpr):
    """out = (a * a + a) @ b, rounded after every operation in the type of a."""
    at = tl.arange(0, N)[:, None] * N + tl.arange(0, N)[None, :]
    left, right = tl.load(a + at), tl.load(b + at)
    tl.store(out + at, tl.dot(left * left + left, right).to(out.dtype.element_ty))


@triton.jit
def shift_left(source, target, length, BLOCK: tl.constexpr, MASKED: tl.constexpr, WRITES_TWICE: tl.constexpr):
    """target[i] = source[i + 1]; past the end unless masked; the first element by every program on request."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    ahead = at + 1
    mask = ahead < length if MASKED else at < length
    tl.store(target + at, tl.load(source + ahead, mask=mask, other=0.0), mask=at < length)
    if WRITES_TWICE:
        tl.store(target, 0.0)
