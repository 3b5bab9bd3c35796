"""Checks of the kernels: a few queries against a cache."""

from __future__ import annotations

from typing import Any
from unittest import mock

import torch
from kernel_calls import BACKEND, make_call, poisoned_allocations
from kernel_limits import UNIT, within

from alibi_attention import KVCache, alibi_attention


def decode(dtype: torch.dtype, group: int, queries: int, device: str) -> None:
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
        most = exact_lse.abs().max().item()
        within(f"lse of {length} keys", (lse - exact_lse).abs().max(), 2.0**-21 * most + 1e-6)
        within(f"output of {length} keys", (out.double() - exact).abs().max(), 4 * UNIT[dtype] * size + 2.0**-20)


def decode_many_rows(heads: int, kv_heads: int, queries: int, device: str) -> None:
    """Of heads that share a key there are more rows than one program takes, or more queries than are always few."""
    from alibi_attention.backends.triton import calls

    slopes = tuple(torch.linspace(0.01, 0.5, heads).tolist())
    length = 600 if device == "cpu" else 5000
    call = make_call(device, heads=heads, kv_heads=kv_heads, q_len=queries, k_len=length, head_dim=16, slopes=slopes)
    started: list[str] = []
    start = calls.start

    def noting(kernel: Any, *rest: Any) -> None:
        started.append(kernel.fn.__name__)
        start(kernel, *rest)

    # The interpreter has one processor, beside which no heads are few.
    many = mock.patch.object(calls.devices, "processors", return_value=132)
    with many, mock.patch.object(calls, "start", noting), poisoned_allocations():
        out, lse = alibi_attention(*call.tensors, return_lse=True, backend=BACKEND)
    assert "split_kernel" in started, f"the keys are not split: {started}"
    exact, exact_lse = call.double().run("reference", tolerance=0.0)[:2]
    within("lse", (lse - exact_lse).abs().max(), 2.0**-21 * exact_lse.abs().max().item() + 1e-6)
    within("output", (out.double() - exact).abs().max(), 2.0**-20 * exact.abs().max().item() + 2.0**-20)


def decode_padded(device: str) -> None:
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
    within("output of a padded element", (out[1:].double() - alone).abs().max(), 1e-5)
