"""Threads that the cpu kernels take are torch's own, and stay."""

from __future__ import annotations

import subprocess
import sys

import pytest

from alibi_attention.backends import native

pytestmark = [
    pytest.mark.skipif(isinstance(native.load(), str), reason="no compiled library"),
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="threads are counted in /proc"),
]

WATCH = f"""
import sys; sys.path[:] = {sys.path!r}
import os
import torch
from alibi_attention import KVCache, alibi_attention, alibi_slopes

# Teams of more threads than some of the parts of a call have work for.
torch.set_num_threads(8)
x = torch.randn(1 << 20)


def threads():
    return set(os.listdir("/proc/self/task"))


def cache(heads, tokens):
    made = KVCache()
    made.append(torch.randn(1, heads, tokens, 64), torch.randn(1, heads, tokens, 64))
    return made


one, four = cache(1, 8192), cache(4, 8192)
query = torch.randn(1, 32, 1, 64)
leaf = torch.randn(1, 1, 100, 64, requires_grad=True)
key = torch.randn(1, 1, 400, 64)
calls = {{
    "torch": lambda: x + 1,
    "a step, one key head": lambda: one.attend(query[:, :8], alibi_slopes(8)),
    "a step, four key heads": lambda: four.attend(query, alibi_slopes(32)),
    "gradients": lambda: alibi_attention(leaf, key, key, torch.tensor([0.01])).sum().backward(),
    "a prompt of a few tiles": lambda: cache(1, 1100),
}}
for name, call in calls.items():
    call(), call(), x + 1
    before, born = threads(), 0
    for _ in range(10):
        call(), x + 1
        after = threads()
        born += len(after - before)
        before = after
    print(name, born, sep=": ")
"""


def test_no_call_ends_threads_that_the_next_must_make_again():
    """GNU's OpenMP does, where a team is smaller than the one before it."""
    done = subprocess.run([sys.executable, "-c", WATCH], capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert len(lines) == 5, done.stdout
    assert all(line.endswith(": 0") for line in lines), done.stdout
