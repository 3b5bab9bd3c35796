"""Checks of the kernels that a device alone can fail: races, graphs, waiting, memory, and calls of real size."""

from __future__ import annotations

from typing import Any

import torch
from kernel_calls import BACKEND, make_call
from kernel_limits import compare, within
from operator_budget import NAMES
from torch import Tensor

from alibi_attention import KVCache, alibi_attention, alibi_slopes, explain_backends

# Beyond the least length that has a horizon: with its plan, a call starts four kernels more.
PLANNED = 2500


def chosen_by_default(device: str) -> None:
    call = make_call(device, q_len=64)
    reasons = explain_backends(*call.tensors)
    first = next(name for name, reason in reasons.items() if reason is None)
    assert first == BACKEND, f"the default on {device} is {first}: {reasons}"


def repeated(head_dim: int, device: str) -> None:
    """One call again and again: a race between warps, or a fault of the assembler, shows in some of the runs."""
    if device == "cpu":
        settings, runs = {"heads": 4, "kv_heads": 2, "q_len": 200}, 2
    else:
        slopes = tuple(alibi_slopes(8).tolist())
        settings, runs = {"heads": 8, "kv_heads": 4, "slopes": slopes, "q_len": 4096}, 30
    call = make_call(device, batch=2, head_dim=head_dim, dtype=torch.bfloat16, **settings)
    first = call.run()
    for number in range(2, runs + 1):
        for name, once, again in zip(NAMES, first, call.run(), strict=True):
            differ = (once != again).sum().item()
            away = (once.double() - again.double()).abs().max().item()
            assert differ == 0, f"{name}: run {number} of one call differs in {differ} elements, by up to {away:.3g}"


def long_calls(length: int, head_dim: int, dtype: torch.dtype, device: str) -> None:
    # The definition holds several matrices of all scores in float64: more heads would be gigabytes.
    few = {"heads": 2, "kv_heads": 1, "slopes": (0.5, 2.0**-8)}
    compare(make_call(device, q_len=length, head_dim=head_dim, dtype=dtype, **few))


def _padding() -> Tensor:
    mask = torch.ones(2, PLANNED, dtype=torch.bool)
    mask[0, :300] = False
    return mask


KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "without a plan": {"q_len": 300},
    "padded": {"batch": 2, "key_mask": _padding()},
    "packed": {"cu_seqlens": torch.tensor([0, 5, 900, PLANNED], dtype=torch.int32)},
    "dropout": {"dropout_p": 0.1},
}


def no_synchronisation(kind: str, device: str) -> None:
    call = make_call(device, **{"q_len": PLANNED, "dtype": torch.bfloat16, **KINDS[kind]})
    call.run()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        call.run()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def cuda_graph(device: str) -> None:
    """Forward and backward captured once and replayed over other numbers; the plan is made anew in every replay."""
    call, other = (make_call(device, seed=seed, q_len=PLANNED, dtype=torch.bfloat16) for seed in (0, 1))
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
        for name, replayed, eager in zip(NAMES, captured, step(), strict=True):
            within(f"{name}: replayed less eager", (replayed.double() - eager.double()).abs().max(), 0.0)


def decode_in_a_graph(device: str) -> None:
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
    eager = cache.attend(query, call.slopes, backend=BACKEND)
    within("replayed less eager", (captured.double() - eager.double()).abs().max(), 0.0)


def linear_memory(device: str) -> None:
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
    within(f"MiB at 32K, with {short / 2**20:.0f} at 8K", long / 2**20, 4.5 * short / 2**20)
