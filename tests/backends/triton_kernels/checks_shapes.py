"""Checks of the kernels: shapes, dtypes, heads and slopes, and the whole surface at random."""

from __future__ import annotations

import torch
from cpu_cases import random_case
from kernel_calls import BACKEND, LAYOUTS, Call, blocks, make_call, moved, relocated
from kernel_limits import UNIT, compare, within

from alibi_attention import alibi_attention, alibi_slopes

LENGTHS = (1, 17, 64, 129, 250)
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
# Rows and keys of a tile in the interpreter: equal, unequal both ways, and smaller than any length above 1.
BLOCKS = ((64, 64), (32, 64), (64, 16), (128, 32), (16, 128))


def grid(length: int, dtype: torch.dtype, is_causal: bool, device: str) -> None:
    place = LENGTHS.index(length) + DTYPES.index(dtype) + is_causal
    call = make_call(device, seed=length, q_len=length, dtype=dtype, layout=LAYOUTS[place % 3], is_causal=is_causal)
    with blocks(device, *BLOCKS[place % len(BLOCKS)]):
        compare(call)


def head_dims(head_dim: int, dtype: torch.dtype, device: str) -> None:
    heads = {"heads": 2, "kv_heads": 1, "slopes": (0.5, 0.01)}
    compare(make_call(device, q_len=33, head_dim=head_dim, dtype=dtype, layout="padded", **heads))
    if device == "cpu" or dtype == torch.bfloat16:
        # On a GPU each is seven kernels more to compile, and other dtypes have no other code for it.
        compare(make_call(device, q_len=17, head_dim=head_dim, value_dim=40, dtype=dtype, **heads))


def unequal_lengths(q_len: int, k_len: int, device: str) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        compare(make_call(device, seed=q_len, q_len=q_len, k_len=k_len, dtype=dtype, layout="transposed"))


# Queries, keys and the position of the first query: a diagonal that begins before the first key or behind it, that ends
# before the last key or behind it, and rows that stand behind all keys, in part of a tile and in the whole of one.
DIAGONALS = ((129, 100, 30), (100, 250, 3), (250, 129, -70), (70, 90, 89), (33, 200, 100))


def diagonals(q_len: int, k_len: int, offset: int, device: str) -> None:
    """Causal calls with nothing else to them, for which kernels know more when they are compiled."""
    for at, dtype in enumerate((torch.float32, torch.bfloat16)):
        call = make_call(device, seed=k_len, q_len=q_len, k_len=k_len, dtype=dtype, query_offset=offset)
        with blocks(device, *BLOCKS[(q_len + 2 * at) % len(BLOCKS)]):
            compare(call)


def far_positions(dtype: torch.dtype, device: str) -> None:
    # Every key a million tokens away: the bias is large, its differences are what counts.
    far = make_call(device, q_len=129, dtype=dtype, query_offset=1 << 20)
    compare(far)
    near = alibi_attention(*far.tensors, query_offset=128 + 1, backend=BACKEND)
    out = alibi_attention(*far.tensors, query_offset=1 << 20, backend=BACKEND)
    # Softmax ignores what all keys of a row have in common. With every key visible to every row both calls are one
    # function, so that far away nothing but the rounding of larger numbers may differ.
    limit = 2.0**-24 * 1.0 * (1 << 20) + 4 * UNIT[dtype]
    within("position 2^20 costs more than fp32 must", (out.double() - near.double()).abs().max(), limit)


def gradients_of_slopes(dtype: torch.dtype, device: str) -> None:
    """They have nothing of the output's rounding in them, which distances would make the most of where keys are far."""
    for settings in ({"q_len": 300}, {"q_len": 64, "k_len": 300}, {"q_len": 64, "k_len": 300, "query_offset": 5000}):
        for is_causal in (True, False):
            call = make_call(device, dtype=dtype, is_causal=is_causal, slopes=(0.0, 0.001, 0.01, 0.1), **settings)
            call.grad_lse.zero_()
            ours, exact = call.run()[5].double(), call.oracle()[5]
            within(f"part of a slope's gradient, {settings}", ((ours - exact) / exact).abs().max(), 2e-3)


def steep_both_ways(device: str) -> None:
    """Rows on the first key of a tile to their right, keys far behind the first row that sees them: what rows, tiles
    and keys have of the distance must not cancel.
    """
    settings = {"is_causal": False, "head_dim": 16, "heads": 4, "kv_heads": 4, "slopes": (0.5, 1.0, 4.0, 12.0)}
    for block_m, block_n in ((64, 64), (128, 32)):
        with blocks(device, block_m, block_n):
            compare(make_call(device, q_len=256, k_len=300, query_offset=1, **settings))
    compare(make_call(device, q_len=2047, **{**settings, "heads": 1, "kv_heads": 1, "slopes": (1.0,)}), tolerance=0.0)


def positions_beyond_2_to_the_30(device: str) -> None:
    """Gradients of keys and values have the rounding of an lse of 10^5 in them and nothing besides: a sum of distances
    as float32 would stand still there, where a tile's rows are less than its last digit.
    """
    call = make_call(
        device, q_len=2048, k_len=128, head_dim=16, heads=1, kv_heads=1, slopes=(1e-4,), query_offset=1 << 30
    )
    call.grad_lse.zero_()
    with blocks(device, 16, 64):
        ours = call.run()
    exact = call.oracle()
    limit = 4.0 * 2.0**-23 * float(exact[1].abs().max())
    for name, at in (("key", 3), ("value", 4)):
        off = (ours[at].double() - exact[at]).abs().max() / exact[at].abs().max()
        within(f"part of the largest gradient of a {name}", off, limit)


def rows_far_apart(device: str) -> None:
    """A pool of tokens with room for many layers each: within a tile of 64 rows lie more than 2^31 elements."""
    step, few = 34_200_000, {"heads": 1, "kv_heads": 1, "head_dim": 16, "slopes": (0.1,), "dtype": torch.float16}
    pool = torch.empty(64 * step, dtype=torch.float16, device=device)
    for q_len in (64, 1):
        call = make_call(device, q_len=q_len, k_len=64, **few)
        for slot, name in enumerate(("query", "key", "value", "grad_out")):
            tensor = getattr(call, name)
            there = pool.as_strided(tensor.shape, (step, step, step, 1), slot * 16)
            setattr(call, name, there.copy_(tensor))
        compare(call)


def groups(kv_heads: int, device: str) -> None:
    slopes = tuple(alibi_slopes(6).tolist())
    compare(make_call(device, batch=2, heads=6, kv_heads=kv_heads, q_len=70, slopes=slopes, layout="padded"))
    by_batch = torch.stack([alibi_slopes(6), -0.05 * alibi_slopes(6)])
    compare(make_call(device, batch=2, heads=6, kv_heads=kv_heads, q_len=70, slopes=by_batch, dtype=torch.bfloat16))


def random(number: int, longest: int, device: str) -> None:
    case = random_case(number, longest=longest)
    generator = torch.Generator().manual_seed(number)
    rows = case.query.shape[:3]
    grad_out = torch.randn(*rows, case.value.shape[3], generator=generator).to(case.query.dtype)
    grad_lse = torch.randn(rows, generator=generator)
    tensors = [relocated(t, device) for t in (case.query, case.key, case.value)]
    options = moved(case.options, device)
    cotangents = (grad_out.to(device), grad_lse.to(device))
    call = Call(*tensors, case.slopes.to(device), *cotangents, options)
    try:
        compare(call)
    except AssertionError as error:
        raise AssertionError(f"{case.describe()}: {error}") from error
