"""Models of Transformers with the operator and without: random weights, two layers, no head.

``python benchmarks/transformers_models.py [CASE ...] [--dtype NAME] [--output FILE.json]`` measures, prints and writes
a JSON file. In float32, or in bfloat16, as BLOOM-176B and MPT were published.

- ``bloom-prefill``: a prompt of 4096 tokens through blocks of BLOOM-560M's shape (hidden 1024, 16 heads), and the peak
  memory of that beyond the model, in processes of their own, the median of seven.
- ``bloom-decode``: one more token after 32768, with the caches generate() can be given.
- ``mpt-decode``: the same for blocks of MPT-7B's shape (hidden 4096, 32 heads).

Every form of a model is warmed up, then all are timed in turn, round after round; a ratio is the peer's time over ours
within a round, and the median over rounds counts. What torch.compile made of stock (a prompt, and steps with a static
cache; for one that grows it compiles again and again) is held against what it made of ours. Denormals are flushed to
zero for everyone: far keys have denormal weights, which stock attention is slow at. What old tokens are held is sampled
from keys and values of a real prompt.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

# Before any worker thread starts, so that all flush.
torch.set_flush_denormal(True)

from transformers import BloomConfig, BloomModel, DynamicCache, MptConfig, MptModel, PreTrainedModel, StaticCache  # noqa: E402

from alibi_attention.bench.machine import machine  # noqa: E402
from alibi_attention.integrations.transformers import enable, kv_cache  # noqa: E402

PROMPT, HELD, STEPS = 4096, 32768, 16
PROCESSES = 7
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
# Goals, set before measuring: the time of the strongest stock form over ours, and stock's memory over ours.
TARGETS = {"bloom-prefill": 10.0, "bloom-decode": 8.0, "mpt-decode": 3.0}
MEMORY_TARGET = 20.0


def bloom(dtype: torch.dtype) -> PreTrainedModel:
    torch.manual_seed(0)
    config = BloomConfig(vocab_size=1000, hidden_size=1024, n_head=16, n_layer=2, attn_implementation="eager")
    return BloomModel(config).to(dtype).eval()


def mpt(dtype: torch.dtype) -> PreTrainedModel:
    torch.manual_seed(0)
    config = MptConfig(vocab_size=1000, d_model=4096, n_heads=32, n_layers=2, max_seq_len=HELD + 1024)
    return MptModel(config).to(dtype).eval()


def prompt(length: int) -> torch.Tensor:
    return torch.randint(1000, (1, length), generator=torch.Generator().manual_seed(1))


# Prefill


def prefill(model: PreTrainedModel, length: int) -> Callable[[], Any]:
    ids = prompt(length)
    return lambda: model(ids, use_cache=True)


def peak_of(form: str, dtype: torch.dtype) -> int:
    """Bytes at the peak of one prefill beyond the model, in this process, which must be new."""
    model = bloom(dtype) if form == "stock" else enable(bloom(dtype))
    prefill(model, 64)()
    call = prefill(model, PROMPT)
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    before = _status("VmRSS")
    call()
    return _status("VmHWM") - before


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


def memory(form: str, dtype: str) -> int:
    """Median over processes: what an allocator keeps of freed memory differs by a fifth from one to the next."""
    command = [sys.executable, __file__, "--peak", form, "--dtype", dtype]
    return statistics.median_low(
        int(subprocess.run(command, capture_output=True, text=True, check=True).stdout) for _ in range(PROCESSES)
    )


# Decoding


def sampled_tokens(model: PreTrainedModel, length: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Keys and values of each layer for as many tokens, drawn from those of a prompt."""
    cache = model(prompt(1024), use_cache=True).past_key_values
    at = torch.randint(1024, (length,), generator=torch.Generator().manual_seed(2))
    return [(layer.keys[:, :, at], layer.values[:, :, at]) for layer in cache.layers]


def filled(cache: Any, held: list[tuple[torch.Tensor, torch.Tensor]]) -> Any:
    for index, (keys, values) in enumerate(held):
        cache.update(keys, values, index)
    return cache


def steps(model: PreTrainedModel, cache: Any) -> Callable[[], Any]:
    """STEPS tokens, one after the other; no padding, and so no mask."""
    ids = prompt(1)

    def call() -> None:
        for _ in range(STEPS):
            model(ids, past_key_values=cache, use_cache=True)

    return call


def decode_forms(
    make: Callable[[torch.dtype], PreTrainedModel], dtype: torch.dtype, rounds: int
) -> dict[str, Callable[[], Any]]:
    torch.compiler.reset()
    stock, ours = make(dtype), enable(make(dtype))
    for mine, theirs in zip(ours.parameters(), stock.parameters(), strict=True):
        mine.data = theirs.data  # one copy of the weights
    held = sampled_tokens(stock, HELD)
    room = HELD + (rounds + 2) * STEPS

    def static() -> Any:
        return filled(StaticCache(config=stock.config, max_cache_len=room), held)

    return {
        "ours": steps(ours, filled(kv_cache(ours, capacity=room), held)),
        "ours, compiled": steps(torch.compile(ours), filled(kv_cache(ours, capacity=room), held)),
        "stock, dynamic cache": steps(stock, filled(DynamicCache(config=stock.config), held)),
        "stock, static cache": steps(stock, static()),
        "stock, static cache, compiled": steps(torch.compile(stock), static()),
    }


def prefill_forms(dtype: torch.dtype) -> dict[str, Callable[[], Any]]:
    torch.compiler.reset()
    stock, ours = bloom(dtype), enable(bloom(dtype))
    forms = {
        "ours": ours,
        "ours, compiled": torch.compile(ours),
        "stock": stock,
        "stock, compiled": torch.compile(stock),
    }
    return {name: prefill(model, PROMPT) for name, model in forms.items()}


# Measuring


def measure(forms: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Seconds of every form, round after round."""
    seconds: dict[str, list[float]] = {name: [] for name in forms}
    for call in forms.values():
        # Twice: what is compiled is compiled again once a size has changed.
        call()
        call()
    for _ in range(rounds):
        for name, call in forms.items():
            start = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def summarise(case: str, seconds: dict[str, list[float]], each: int) -> dict[str, Any]:
    print(f"{case}:")
    ratios = {}
    for name, theirs in seconds.items():
        if name.startswith("ours"):
            print(f"  {name}: {1e3 * statistics.median(theirs) / each:.2f} ms")
        else:
            ours = seconds["ours, compiled" if name.endswith("compiled") else "ours"]
            within = [their / our for their, our in zip(theirs, ours, strict=True)]
            ratios[name] = statistics.median(within)
            spread = f"{min(within):.2f} to {max(within):.2f}"
            print(
                f"  {name}: {1e3 * statistics.median(theirs) / each:.2f} ms, {ratios[name]:.2f} times ours ({spread})"
            )
    strongest = min(ratios.values())
    verdict = judged(strongest, TARGETS[case])
    print(f"  target {TARGETS[case]} against the strongest form: {verdict}, {strongest:.2f}")
    return {
        "seconds": seconds,
        "calls": each,
        "ratios": ratios,
        "target": TARGETS[case],
        "strongest": strongest,
        "verdict": verdict,
    }


def judged(ratio: float, target: float) -> str:
    return "met" if ratio >= target else "missed"


def run(case: str, dtype: str, rounds: int) -> dict[str, Any]:
    if case == "bloom-prefill":
        result = summarise(case, measure(prefill_forms(DTYPES[dtype]), rounds), 1)
        peaks = {form: memory(form, dtype) for form in ("ours", "stock")}
        less = peaks["stock"] / peaks["ours"]
        print(
            f"  memory: ours {peaks['ours'] / 2**20:.0f} MiB, stock {peaks['stock'] / 2**20:.0f} MiB, {less:.1f} times"
        )
        verdict = judged(less, MEMORY_TARGET)
        print(f"  target 1/{MEMORY_TARGET:g} of stock's memory: {verdict}, 1/{less:.2f}")
        return result | {
            "peak_bytes": peaks,
            "memory_ratio": less,
            "memory_target": MEMORY_TARGET,
            "memory_verdict": verdict,
        }
    forms = decode_forms(bloom if case == "bloom-decode" else mpt, DTYPES[dtype], rounds)
    return summarise(case, measure(forms, rounds), STEPS)


def main() -> None:
    parser = argparse.ArgumentParser(description="Models of Transformers with the operator and without.")
    parser.add_argument("cases", nargs="*", metavar="CASE", help=", ".join(TARGETS))
    parser.add_argument("--dtype", choices=tuple(DTYPES), default="float32")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--output", type=Path, help="JSON file to write")
    parser.add_argument("--peak", choices=("ours", "stock"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    unknown = sorted(set(options.cases) - set(TARGETS))
    if unknown:
        parser.error(f"CASE: expected some of {', '.join(TARGETS)}, got {', '.join(unknown)}")
    with torch.no_grad():
        if options.peak:
            print(peak_of(options.peak, DTYPES[options.dtype]))
            return
        results = {case: run(case, options.dtype, options.rounds) for case in options.cases or TARGETS}
    if options.output:
        about = {"machine": machine(), "dtype": options.dtype, "rounds": options.rounds}
        report = {"schema_version": 1, **about, "cases": results}
        options.output.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        print(f"written to {options.output}")


if __name__ == "__main__":
    main()
