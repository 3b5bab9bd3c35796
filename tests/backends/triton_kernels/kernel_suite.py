"""What the GPU kernels are held to: one list of checks for Triton's interpreter and for a GPU.

    TRITON_INTERPRET=1 python tests/backends/triton_kernels/kernel_suite.py            on a CPU, in the interpreter
    python tests/backends/triton_kernels/kernel_suite.py                               on a GPU

Options: --part 2/4 every fourth check from the second on, --only TEXT checks with TEXT in their names, --cases N that
many random calls, --quick fewer combinations, --seconds S to begin none after S. A line of JSON for each check; exit
status 1 where one failed. Needs the package (or PYTHONPATH=src), torch and Triton, and in the interpreter NumPy.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "operator"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parent))

import torch
from cpu_cases import random_case
from kernel_calls import BACKEND, LAYOUTS, Call, blocks, make_call, moved, poisoned_allocations, relocated
from operator_budget import check as within_budget
from torch import Tensor

from alibi_attention import KVCache, alibi_attention, alibi_slopes, explain_backends
from alibi_attention.backends.triton import TritonBackend
from alibi_attention.dropout import keep_scale
from alibi_attention.horizon import BLOCK_K, BLOCK_Q

LENGTHS = (1, 17, 64, 129, 250)
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
# Rows and keys of a tile in the interpreter: equal, unequal both ways, and smaller than any length above 1.
BLOCKS = ((64, 64), (32, 64), (64, 16), (128, 32), (16, 128))
HEAD_DIMS = (16, 24, 32, 64, 80, 96, 128, 192, 256)
UNIT = {torch.float32: 2.0**-23, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-10}


@dataclass(frozen=True)
class Check:
    """One thing that must hold; ``run`` takes "cpu" (the interpreter) or "cuda" and raises where it does not."""

    name: str
    run: Callable[[str], None]
    gpu_only: bool = False


def compare(call: Call, **changes: Any) -> None:
    """Output, lse and all gradients against the definition in float64, by the budget of the operator's own suite."""
    within_budget(call, call.run(**changes), call.oracle())


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


# Shapes, dtypes, heads, slopes


def _grid(length: int, dtype: torch.dtype, is_causal: bool, device: str) -> None:
    place = LENGTHS.index(length) + DTYPES.index(dtype) + is_causal
    call = make_call(device, seed=length, q_len=length, dtype=dtype, layout=LAYOUTS[place % 3], is_causal=is_causal)
    with blocks(device, *BLOCKS[place % len(BLOCKS)]):
        compare(call)


def _head_dims(head_dim: int, dtype: torch.dtype, device: str) -> None:
    heads = {"heads": 2, "kv_heads": 1, "slopes": (0.5, 0.01)}
    compare(make_call(device, q_len=33, head_dim=head_dim, dtype=dtype, layout="padded", **heads))
    compare(make_call(device, q_len=17, head_dim=head_dim, value_dim=40, dtype=dtype, **heads))


def _unequal_lengths(q_len: int, k_len: int, device: str) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        compare(make_call(device, seed=q_len, q_len=q_len, k_len=k_len, dtype=dtype, layout="transposed"))


def _far_positions(dtype: torch.dtype, device: str) -> None:
    # Every key a million tokens away: the bias is large, its differences are what counts.
    far = make_call(device, q_len=129, dtype=dtype, query_offset=1 << 20)
    compare(far)
    near = alibi_attention(*far.tensors, query_offset=128 + 1, backend=BACKEND)
    out = alibi_attention(*far.tensors, query_offset=1 << 20, backend=BACKEND)
    # Softmax ignores what all keys of a row have in common. With every key visible to every row both calls are one
    # function, so that far away nothing but the rounding of larger numbers may differ.
    limit = 2.0**-24 * 1.0 * (1 << 20) + 4 * UNIT[dtype]
    assert (out.double() - near.double()).abs().max() <= limit, "position 2^20 costs more than fp32 must"


def _groups(kv_heads: int, device: str) -> None:
    slopes = tuple(alibi_slopes(6).tolist())
    compare(make_call(device, batch=2, heads=6, kv_heads=kv_heads, q_len=70, slopes=slopes, layout="padded"))
    by_batch = torch.stack([alibi_slopes(6), -0.05 * alibi_slopes(6)])
    compare(make_call(device, batch=2, heads=6, kv_heads=kv_heads, q_len=70, slopes=by_batch, dtype=torch.bfloat16))


# The whole surface at random: padding, packing, windows, offsets, scales, dropout, layouts, slopes of any sign


def _random(number: int, longest: int, device: str) -> None:
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
    except Exception as error:
        raise AssertionError(f"{case.describe()}: {error}") from error


# Dropout


def _dropout_masks(device: str) -> None:
    """The very scores the common generator drops are dropped, in every tile."""
    length, p = 64, 0.4
    call = make_call(device, batch=2, q_len=length, head_dim=16, value_dim=length, kv_heads=4, dropout_p=p)
    value = torch.eye(length, device=device).expand(2, 4, length, length).contiguous()
    torch.manual_seed(3)
    out = alibi_attention(
        call.query, call.key, value, 0 * call.slopes, is_causal=False, dropout_p=p, tolerance=0.0, backend=BACKEND
    )
    torch.manual_seed(3)
    seed = torch.randint(-(2**63), 2**63 - 1, (), dtype=torch.int64, device=device)
    index = [torch.arange(n, device=device) for n in (2, 4, length, length)]
    assert torch.equal(out != 0, keep_scale(seed, p, 4, *index) != 0)


def _dropout(dtype: torch.dtype, device: str) -> None:
    compare(make_call(device, batch=2, q_len=129, dtype=dtype, dropout_p=0.3))
    compare(make_call(device, q_len=65, k_len=90, dtype=dtype, dropout_p=0.8, is_causal=False))


# Masks


def _masks(device: str) -> None:
    mask = torch.ones(3, 80, dtype=torch.bool)
    mask[0, :37], mask[1, 60:], mask[2] = False, False, False
    for is_causal in (True, False):
        few = {"heads": 2, "kv_heads": 1, "slopes": (0.3, 0.01)}
        call = make_call(device, batch=3, q_len=80, key_mask=mask, is_causal=is_causal, dtype=torch.bfloat16, **few)
        # What padding holds must not matter.
        hidden = ~mask.to(device)[:, None, :, None]
        call.key.masked_fill_(hidden, torch.nan)
        call.value.masked_fill_(hidden, torch.nan)
        got = call.run()
        assert all(not each.isnan().any() for each in got)
        call.key.masked_fill_(hidden, 0.0)
        call.value.masked_fill_(hidden, 0.0)
        within_budget(call, got, call.oracle())
        assert (got[0][2] == 0).all(), "a row that sees no key has output 0"
        assert (got[1][2] == -torch.inf).all(), "and lse -inf"


def _windows(device: str) -> None:
    for window in ((0, 0), (16, None), (None, 5), (70, 3)):
        for is_causal in (True, False):
            compare(
                make_call(device, q_len=150, window=window, is_causal=is_causal, heads=2, kv_heads=1, slopes=(0.3, 0.0))
            )


def _packing(device: str) -> None:
    bounds = torch.tensor([0, 5, 5, 70, 71, 200], dtype=torch.int32)
    other = torch.tensor([0, 9, 40, 100, 101, 150], dtype=torch.int32)
    compare(make_call(device, q_len=200, cu_seqlens=bounds))
    compare(make_call(device, q_len=200, k_len=150, cu_seqlens=bounds, cu_seqlens_k=other, is_causal=False))
    compare(make_call(device, q_len=200, cu_seqlens=bounds, window=(30, 0), dtype=torch.bfloat16))


def _offsets(device: str) -> None:
    compare(make_call(device, batch=2, q_len=40, k_len=100, query_offset=torch.tensor([60, 3])))
    compare(make_call(device, q_len=40, k_len=100, query_offset=-30))
    compare(make_call(device, q_len=40, k_len=60, query_offset=500, is_causal=False, dtype=torch.bfloat16))


# The horizon


def _long(device: str, **changes: Any) -> Call:
    # Beyond the least length that has a horizon, which is lower in the interpreter.
    settings = {"q_len": 700 if device == "cpu" else 2500, "heads": 2, "kv_heads": 1, "slopes": (0.5, 1.0)}
    settings |= {"head_dim": 16} | changes
    return make_call(device, **settings)


def _horizon(dtype: torch.dtype, is_causal: bool, device: str) -> None:
    """Results with tiles skipped are within the budget of results with all of them."""
    compare(_long(device, dtype=dtype, is_causal=is_causal))


def _plan(call: Call, **changes: Any) -> Tensor:
    """(batch, heads, blocks of 128 queries, 3): first tile of 64 keys, end tile, and one kept apart or -1."""
    plans = []
    whole = TritonBackend.forward

    def forward(self: TritonBackend, *given: Any) -> tuple[Tensor, Tensor, Tensor]:
        result = whole(self, *given)
        plans.append(result[2])
        return result

    with mock.patch.object(TritonBackend, "forward", forward):
        alibi_attention(*call.tensors, **{**call.options, **changes}, backend=BACKEND)
    batch, heads, rows = call.query.shape[:3]
    blocks_of_queries = -(-rows // BLOCK_Q)
    return plans[0][: batch * heads * blocks_of_queries * 3].view(batch, heads, blocks_of_queries, 3)


def _dropped_mass(is_causal: bool, device: str) -> None:
    """The softmax mass, in float64, of the keys a plan leaves out: above nothing, and within the tolerance."""
    call = _long(device, is_causal=is_causal)
    query, key, _, slopes = call.double().tensors
    rows, keys = (torch.arange(n, device=device) for n in (query.shape[2], key.shape[2]))
    distance = (rows[:, None] - keys).double()
    wide = key.repeat_interleave(query.shape[1] // key.shape[1], dim=1)
    scores = query @ wide.mT * query.shape[3] ** -0.5 - slopes[:, None, None] * distance.abs()
    weights = (scores.masked_fill(distance < 0, -torch.inf) if is_causal else scores).softmax(-1)
    for tolerance in (1e-1, 1e-3, 2.0**-24):
        plan = _plan(call, tolerance=tolerance).repeat_interleave(BLOCK_Q, dim=2)[:, :, : len(rows)].unsqueeze(-2)
        tile = keys // BLOCK_K
        kept = ((tile >= plan[..., 0]) & (tile < plan[..., 1])) | (tile == plan[..., 2])
        share = (weights * ~kept).sum(-1)
        assert share.max() <= tolerance, f"dropped {share.max():.3g} of a row at tolerance {tolerance:.3g}"
        visible = (distance >= 0) if is_causal else torch.ones_like(distance, dtype=torch.bool)
        assert (visible & ~kept).any(), f"nothing is skipped at tolerance {tolerance:.3g}"
    compare(call, tolerance=0.0)


def _what_underflows_is_left_out_bit_for_bit(device: str) -> None:
    # Keys 384 tokens away at slopes of 0.5 and 1 weigh exp(-190): exactly nothing, so that whatever their values are,
    # and whether they are swept or skipped, nothing changes in any bit.
    call = _long(device)
    changed = Call(*(t.clone() for t in (*call.tensors, call.grad_out, call.grad_lse)), call.options)
    changed.value[:, :, :256] *= -1.0
    ours = [alibi_attention(*each.tensors, backend=BACKEND)[:, :, 640:] for each in (call, changed)]
    assert torch.equal(*ours), "keys 384 tokens away at slope 0.5 still show"


def _outliers_are_kept(device: str) -> None:
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


# Decoding


def _decode(dtype: torch.dtype, group: int, queries: int, device: str) -> None:
    for length in (queries, 64, 250, 700 if device == "cpu" else 5000):
        call = make_call(
            device, seed=length, batch=2, heads=4, kv_heads=4 // group, q_len=queries, k_len=length, dtype=dtype,
            layout="transposed",
        )  # fmt: skip
        cache = KVCache()
        prompt = max(0, length - 3)
        with poisoned_allocations():
            for at in ([slice(0, prompt)] if prompt else []) + [slice(n, n + 1) for n in range(prompt, length)]:
                cache.append(call.key[:, :, at], call.value[:, :, at])
            out, lse = cache.attend(call.query, call.slopes, return_lse=True, backend=BACKEND)
        exact, exact_lse = call.double().run("reference", tolerance=0.0)[:2]
        size = exact.abs().max().item()
        assert (lse - exact_lse).abs().max() <= 2.0**-21 * exact_lse.abs().max() + 1e-6
        assert (out.double() - exact).abs().max() <= 4 * UNIT[dtype] * size + 2.0**-20


def _decode_padded(device: str) -> None:
    call = make_call(device, batch=2, q_len=1, k_len=300)
    mask = torch.ones(2, 300, dtype=torch.bool, device=device)
    mask[1, :120] = False
    cache = KVCache()
    cache.append(call.key, call.value, key_mask=mask)
    out = cache.attend(call.query, call.slopes, backend=BACKEND)
    alone = alibi_attention(
        call.query[1:].double(), call.key[1:, :, 120:].double(), call.value[1:, :, 120:].double(),
        call.slopes.double(), backend="reference",
    )  # fmt: skip
    assert (out[1:].double() - alone).abs().max() < 1e-5


# Repeatability


def _deterministic(device: str) -> None:
    call = make_call(device, batch=2, q_len=200, dtype=torch.bfloat16)
    one, two = call.run(), call.run()
    for first, second in zip(one, two, strict=True):
        assert torch.equal(first, second), "two runs of one call differ"


# GPU alone


def _no_synchronisation(device: str) -> None:
    call = make_call(device, q_len=300, dtype=torch.bfloat16)
    call.run()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        call.run()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def _cuda_graph(device: str) -> None:
    """Forward and backward captured once and replayed over other numbers; the plan is made anew in every replay."""
    call, other = (make_call(device, seed=seed, q_len=600, dtype=torch.bfloat16) for seed in (0, 1))
    leaves = [t.detach().clone().requires_grad_() for t in call.tensors]

    def step() -> tuple[Tensor, ...]:
        out, lse = alibi_attention(*leaves, return_lse=True, backend=BACKEND)
        return out, lse, *torch.autograd.grad((out, lse), leaves, (call.grad_out, call.grad_lse))

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    for numbers in (other, call):
        with torch.no_grad():
            for leaf, new in zip(leaves, numbers.tensors, strict=True):
                leaf.copy_(new)
        graph.replay()
        torch.cuda.synchronize()
        for replayed, eager in zip(captured, step(), strict=True):
            assert torch.equal(replayed, eager)


def _decode_in_a_graph(device: str) -> None:
    call = make_call(device, batch=2, q_len=1, k_len=3000, head_dim=64, dtype=torch.bfloat16)
    cache = KVCache(4096)
    cache.append(call.key, call.value)
    query = call.query.clone()
    for _ in range(3):
        cache.attend(query, call.slopes, backend=BACKEND)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = cache.attend(query, call.slopes, backend=BACKEND)
    query.copy_(torch.randn_like(query))
    graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(captured, cache.attend(query, call.slopes, backend=BACKEND))


def _linear_memory(device: str) -> None:
    def peak(length: int) -> int:
        call = make_call(device, heads=8, kv_heads=8, q_len=length, head_dim=64, dtype=torch.bfloat16,
                         slopes=tuple(alibi_slopes(8).tolist()))  # fmt: skip
        leaves = [t.detach().requires_grad_() for t in call.tensors]
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        out = alibi_attention(*leaves, backend=BACKEND)
        torch.autograd.grad(out, leaves, call.grad_out)
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before

    short, long = peak(8192), peak(32768)
    assert long <= 4.5 * short, f"memory {short / 2**20:.0f} MiB at 8K, {long / 2**20:.0f} MiB at 32K"


def _long_calls(length: int, dtype: torch.dtype, device: str) -> None:
    slopes = tuple(alibi_slopes(8).tolist())
    for head_dim in (64, 128):
        compare(make_call(device, heads=8, kv_heads=4, q_len=length, head_dim=head_dim, dtype=dtype, slopes=slopes))


def _chosen_by_default(device: str) -> None:
    call = make_call(device, q_len=64)
    reasons = explain_backends(*call.tensors)
    first = next(name for name, reason in reasons.items() if reason is None)
    assert first == BACKEND, f"the default on {device} is {first}: {reasons}"


def checks(cases: int, device: str, *, quick: bool = False) -> Iterator[Check]:
    """All checks in order of worth: what runs out of time is at the end. ``quick`` thins out combinations alone."""
    gpu = device != "cpu"
    yield Check("chosen by default", _chosen_by_default, gpu_only=True)
    for length in LENGTHS:
        for dtype in DTYPES:
            for is_causal in (True, False):
                if quick and not is_causal and (length, dtype) not in _BOTH_WAYS:
                    continue
                name = f"length {length}, {_name(dtype)}, {'causal' if is_causal else 'both ways'}"
                yield Check(name, partial(_grid, length, dtype, is_causal))
    for dtype in DTYPES:
        yield Check(f"positions near 2^20, {_name(dtype)}", partial(_far_positions, dtype))
    for dtype in DTYPES[::2] if quick else DTYPES:
        yield Check(f"dropout, {_name(dtype)}", partial(_dropout, dtype))
    yield Check("dropout masks are those of the common generator", _dropout_masks)
    for name, run in (("padding", _masks), ("windows", _windows), ("packing", _packing), ("offsets", _offsets)):
        yield Check(name, run)
    for is_causal in (True, False):
        how = "causal" if is_causal else "both ways"
        yield Check(f"horizon, {how}", partial(_horizon, torch.float32, is_causal))
        yield Check(f"dropped mass, {how}", partial(_dropped_mass, is_causal))
    yield Check("horizon, bfloat16", partial(_horizon, torch.bfloat16, True))
    yield Check("what underflows is left out bit for bit", _what_underflows_is_left_out_bit_for_bit)
    yield Check("outliers beyond the horizon are kept", _outliers_are_kept)
    for at, dtype in enumerate(DTYPES):
        for group, queries in ((1, 1), (4, 1), (2, 3))[at :: 3 if quick else 1]:
            name = f"decoding, {_name(dtype)}, group {group}, {queries} queries"
            yield Check(name, partial(_decode, dtype, group, queries))
    yield Check("decoding, padded", _decode_padded)
    yield Check("deterministic", _deterministic)
    for name, run in (
        ("no synchronisation", _no_synchronisation), ("CUDA graph, forward and backward", _cuda_graph),
        ("CUDA graph, decoding", _decode_in_a_graph), ("memory is linear", _linear_memory),
    ):  # fmt: skip
        yield Check(name, run, gpu_only=True)
    for kv_heads in (1, 3) if quick else (1, 2, 3, 6):
        yield Check(f"grouped queries, 6 on {kv_heads}", partial(_groups, kv_heads))
    for q_len, k_len in ((1, 250), (17, 129), (129, 17), (64, 250)):
        yield Check(f"{q_len} queries, {k_len} keys", partial(_unequal_lengths, q_len, k_len))
    for head_dim in HEAD_DIMS:
        for dtype in DTYPES if gpu else (DTYPES[HEAD_DIMS.index(head_dim) % 3],):
            yield Check(f"head_dim {head_dim}, {_name(dtype)}", partial(_head_dims, head_dim, dtype))
    for length in (1000, 2048, 4100):
        for dtype in (torch.bfloat16, torch.float32):
            yield Check(f"length {length}, {_name(dtype)}", partial(_long_calls, length, dtype), gpu_only=True)
    for number in range(cases):
        yield Check(f"random call {number}", partial(_random, number, 600 if gpu else 130))


# Where a thin run looks at calls that are not causal.
_BOTH_WAYS = ((1, torch.float32), (17, torch.bfloat16), (129, torch.float32), (250, torch.bfloat16))


def chosen(options: argparse.Namespace, device: str) -> list[Check]:
    every = checks(options.cases, device, quick=options.quick)
    found = [each for each in every if device != "cpu" or not each.gpu_only]
    found = [each for each in found if options.only in each.name]
    part, parts = (int(n) for n in options.part.split("/"))
    return found[part - 1 :: parts]


def run(check: Check, device: str) -> dict[str, Any]:
    """The check's record: its name, seconds, and what went wrong or None."""
    begin = time.perf_counter()
    failure = None
    try:
        with blocks(device, 64, 64):
            check.run(device)
        if device != "cpu":
            # A kernel's fault shows at the next synchronisation: let it be this check's.
            torch.cuda.synchronize()
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        failure = f"{type(error).__name__}: {error} ({Path(where.filename).name}:{where.lineno})"
    return {"check": check.name, "seconds": round(time.perf_counter() - begin, 3), "failure": failure}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Checks of the Triton kernels.")
    parser.add_argument("--part", default="1/1")
    parser.add_argument("--only", default="")
    parser.add_argument("--cases", type=int, default=24)
    parser.add_argument("--seconds", type=float, default=1e9)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--list", action="store_true")
    options = parser.parse_args(arguments)
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    if not interpreted and not torch.cuda.is_available():
        parser.error("no GPU here, and TRITON_INTERPRET=1 is not set")
    device = "cpu" if interpreted else "cuda"
    begin, failed = time.perf_counter(), 0
    with _prepared(interpreted):
        for check in chosen(options, device):
            if options.list:
                print(check.name)
                continue
            if time.perf_counter() - begin > options.seconds:
                print(json.dumps({"check": check.name, "seconds": 0.0, "failure": None, "left_out": True}), flush=True)
                continue
            record = run(check, device)
            failed += record["failure"] is not None
            print(json.dumps(record), flush=True)
    return 1 if failed else 0


def _prepared(interpreted: bool) -> Any:
    """In the interpreter bfloat16 is repaired, and every access to memory watched."""
    import contextlib

    if not interpreted:
        return contextlib.nullcontext()
    import interpreter_repairs

    torch.set_num_threads(1)
    interpreter_repairs.repair_bfloat16()
    interpreter_repairs.quicken()
    return interpreter_repairs.watching_memory()


if __name__ == "__main__":
    sys.exit(main())
