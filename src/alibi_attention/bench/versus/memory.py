"""Peak memory of one contestant beyond its inputs, in a process of its own, and what its cache holds.

``python -m alibi_attention.bench.versus.memory PHASE LENGTH HEADS HEAD_DIM NAME`` prints two numbers, as
`bench.memory` does.
"""

from __future__ import annotations

import sys

import torch

from alibi_attention.bench.inputs import Inputs, make_inputs
from alibi_attention.bench.memory import TINY, in_fresh_process, peak_beyond
from alibi_attention.bench.versus.contestants import TIMED, Contestant, contestants, make_call, make_trial
from alibi_attention.bench.versus.results import Memory, Phase
from alibi_attention.cache import HorizonCache, KVCache

IN_FRESH_PROCESS: tuple[Phase, ...] = ("training", "prefill")

# Tokens that come at a time to a cache that forgets.
_CHUNK = 1024


def peak_of(contestant: Contestant, phase: Phase, length: int, heads: int, head_dim: int) -> Memory:
    """Measure one contestant in a process of its own."""
    found = in_fresh_process(__name__, phase, length, heads, head_dim, contestant.name)
    memory = Memory(phase, length, contestant.name, contestant.title, contestant.method)
    if isinstance(found, str):
        memory.note = found
    else:
        memory.peak, memory.outputs = found
    return memory


def caches(length: int, heads: int, head_dim: int) -> list[Memory]:
    """What one layer's cache holds after so many tokens: all keys, or for ALiBi those the horizon lets be needed."""
    inputs = make_inputs(make_trial("decode", length, heads, head_dim), sys.maxsize)
    group = inputs.groups[0]
    query, key, value, slopes = group.query, group.key, group.value, group.slopes
    full = KVCache(length)
    full.append(key, value)
    bare = Memory("cache", length, "keys", "keys and values, nothing else", "", 2 * key.numel() * key.element_size())
    kept = Memory("cache", length, "alibi-dense", "KVCache, with the keys' summary", "alibi", full.bytes_held)
    forgetting = HorizonCache()
    for start in range(0, length, _CHUNK):
        forgetting.append(key[..., start : start + _CHUNK, :], value[..., start : start + _CHUNK, :])
        forgetting.attend(query, slopes)
    held = Memory("cache", length, "alibi", "HorizonCache", "alibi", forgetting.bytes_held)
    return [bare, kept, held]


def measure(phase: Phase, length: int, heads: int, head_dim: int, name: str) -> tuple[int, int]:
    """Peak and outputs in bytes, in this process, which must be new."""
    torch.set_flush_denormal(True)
    contestant = next(each for each in contestants(TIMED, bare=False) if each.name == name)

    def call(size: int, inputs: Inputs) -> object:
        return make_call(contestant, make_trial(phase, size, heads, head_dim), inputs, None)()

    def inputs_of(size: int) -> Inputs:
        return make_inputs(make_trial(phase, size, heads, head_dim), sys.maxsize)

    with torch.set_grad_enabled(phase == "training"):
        call(TINY, inputs_of(TINY))
        return peak_beyond(inputs_of(length), lambda inputs: call(length, inputs))


if __name__ == "__main__":
    asked, tokens, head_count, dim, who = sys.argv[1:]
    print(*measure(asked, int(tokens), int(head_count), int(dim), who))  # type: ignore[arg-type]
