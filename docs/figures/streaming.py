"""A trained model reads a million tokens in constant memory: what is measured, and the figure of docs/streaming.md.

    python docs/figures/streaming.py RUN_FOLDER read          a million tokens: memory and time along the way
    python docs/figures/streaming.py RUN_FOLDER compare       64K single steps beside a full cache, bit by bit
    python docs/figures/streaming.py draw                     the figure, from what both wrote of a named commit

RUN_FOLDER is one of `alibi extrapolate`. The text is the held-out part of the run's corpus. Results are JSON in the
folder given by --output.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from alibi_attention import HorizonCache, KVCache
from alibi_attention.bench.machine import machine
from alibi_attention.lab.corpus import load_corpus
from alibi_attention.lab.model import Decoder
from alibi_attention.lab.runs import RunFolder
from alibi_attention.lab.trained import load_trained, read_run

CHUNK = 256
SINGLE = 256  # steps of one token, timed, at each mark


class Pair:
    """A full cache and one that forgets, fed the same; `differing` counts the calls they answered differently."""

    def __init__(self) -> None:
        self.full, self.horizon = KVCache(), HorizonCache()
        self.calls = self.differing = 0
        self.query: Tensor | None = None
        self.lse: Tensor | None = None
        self.slopes: Tensor | None = None

    @property
    def length(self) -> int:
        return self.full.length

    def append(self, key: Tensor, value: Tensor) -> None:
        self.full.append(key, value)
        self.horizon.append(key, value)

    def attend(self, query: Tensor, slopes: Tensor) -> Tensor:
        out, lse = self.full.attend(query, slopes, return_lse=True)
        other, other_lse = self.horizon.attend(query, slopes, return_lse=True)
        self.calls += 1
        self.differing += not (torch.equal(out, other) and torch.equal(lse, other_lse))
        self.query, self.lse, self.slopes = query, lse, slopes
        return out

    def true_share(self) -> Tensor:
        """(heads,) what the evicted keys hold of the last row's mass, from every score, in float64."""
        assert self.query is not None
        assert self.slopes is not None
        key, query = self.full.key.double(), self.query.double()
        distance = torch.arange(self.length - 1, -1, -1, dtype=torch.float64)
        scores = (query @ key.transpose(-1, -2))[0, :, 0] * query.shape[-1] ** -0.5
        scores -= self.slopes.double()[:, None] * distance
        gone = torch.arange(self.length) < self.horizon.certificate().evicted[:, None]
        dropped = scores.masked_fill(~gone, -torch.inf).logsumexp(-1)
        return torch.exp(dropped - scores.masked_fill(gone, -torch.inf).logsumexp(-1))


def resident() -> int:
    """Bytes of memory of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def timed_steps(decoder: Decoder, text: Tensor, at: int, caches: list[Any]) -> list[float]:
    seconds = []
    for token in range(at, at + SINGLE):
        began = time.perf_counter()
        decoder(text[None, token : token + 1], caches)
        seconds.append(time.perf_counter() - began)
    return seconds


def read(decoder: Decoder, text: Tensor, tokens: int) -> dict[str, Any]:
    """Chunks of 256 tokens; at each of 64 marks, 256 steps of one token, timed."""
    caches = [HorizonCache() for _ in decoder.blocks]
    marks, every = [], max(CHUNK, tokens // 64 // CHUNK * CHUNK)
    began, at, single = time.perf_counter(), 0, 0
    while at < tokens:
        if at and at % every == 0:
            seconds = sorted(timed_steps(decoder, text, at, caches))
            single += SINGLE
        else:
            decoder(text[None, at : at + CHUNK], caches)
            seconds = []
        at += CHUNK
        if at % (16 * CHUNK) and not seconds:
            continue
        certificates = [cache.certificate() for cache in caches]
        marks.append(
            {
                "tokens": at,
                "bytes_held": sum(each.bytes_held for each in certificates),
                "resident": resident(),
                "dropped_share": max(each.dropped_share for each in certificates),
                "is_full": all(bool((each.evicted > 0).all()) for each in certificates),
                **({"median_ms": 1e3 * seconds[SINGLE // 2], "fastest_ms": 1e3 * seconds[0]} if seconds else {}),
            }
        )
    certificates = [cache.certificate() for cache in caches]
    print(*certificates, sep="\n")
    return {
        "tokens": caches[0].length,
        "single_steps": single,
        "chunk": CHUNK,
        "seconds": time.perf_counter() - began,
        "violations": sum(each.violations for each in certificates),
        "refetches": sum(each.refetches for each in certificates),
        "sink_reads": sum(each.sink_reads for each in certificates),
        "checked": sum(each.checked for each in certificates),
        "dropped_share": max(each.dropped_share for each in certificates),
        "windows": [each.windows.tolist() for each in certificates],
        "marks": marks,
    }


def compare(decoder: Decoder, text: Tensor, tokens: int) -> dict[str, Any]:
    """Single steps throughout, every layer's output and lse held against the full cache's to the last bit."""
    pairs = [Pair() for _ in decoder.blocks]
    samples, began = [], time.perf_counter()
    for at in range(tokens):
        decoder(text[None, at : at + 1], pairs)  # type: ignore[arg-type]
        if at % 512 == 511 and at > 1024:
            for layer, pair in enumerate(pairs):
                bound = pair.horizon.dropped_shares()[0, :, -1]
                true = pair.true_share()
                samples += [
                    [layer, head, at + 1, float(f"{bound[head]:.4g}"), float(f"{share:.4g}")]
                    for head, share in enumerate(true)
                    if bound[head] > 0
                ]
        if at % 4096 == 4095:
            print(at + 1, [pair.differing for pair in pairs], round(time.perf_counter() - began), flush=True)
    return {
        "tokens": tokens,
        "calls": sum(pair.calls for pair in pairs),
        "differing": sum(pair.differing for pair in pairs),
        "violations": sum(pair.horizon.certificate().violations for pair in pairs),
        "bytes_full": sum(pair.full.bytes_held for pair in pairs),
        "bytes_horizon": sum(pair.horizon.bytes_held for pair in pairs),
        "samples": samples,
        "sampled": ["layer", "head", "tokens", "bound", "true"],
        "bound_below_true": sum(bound < true for *_, bound, true in samples),
    }


def measured(folder: Path, part: str) -> dict[str, Any]:
    """What a part wrote; refused where it does not say what was measured, and on what.

    Raises:
        SystemExit: with the reason in words.
    """
    path = folder / f"streaming-{part}.json"
    remedy = f"measure again: python docs/figures/streaming.py RUN_FOLDER {part} --output {folder}"
    if not path.is_file():
        raise SystemExit(f"{path}: expected what {part} writes, got no such file; {remedy}")
    result: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    where = result.get("machine")
    missing = [name for name in ("commit", "processor") if not (isinstance(where, dict) and where.get(name))]
    if missing:
        raise SystemExit(
            f"{path}: expected the commit and the processor it was measured with, got no {' and no '.join(missing)}: "
            f"an older version wrote it, or a package that is no checkout; {remedy}"
        )
    return result


def draw(folder: Path, figure: Path) -> None:
    reading, comparing = measured(folder, "read"), measured(folder, "compare")
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    marks = reading["marks"]
    mpl.rcParams.update({"font.size": 12, "axes.spines.top": False, "axes.spines.right": False})
    fig, (memory, pace, shares) = plt.subplots(1, 3, figsize=(14, 4.2), layout="constrained", width_ratios=(1, 1, 0.95))
    tokens = [mark["tokens"] / 1e6 for mark in marks]
    layers, heads = len(reading["windows"]), len(reading["windows"][0])
    full_bytes = reading["bytes_per_token"]
    every_token = [full_bytes * mark["tokens"] / 2**20 for mark in marks]
    held = [mark["bytes_held"] / 2**20 for mark in marks]
    memory.plot(tokens, every_token, color="#999999", ls="--")
    memory.plot(tokens, held, color="#0072b2", lw=2)
    memory.annotate("every token kept", (0.5, every_token[len(marks) // 2]), (0, -22), textcoords="offset points")
    memory.annotate(
        f"HorizonCache, {held[-1]:.0f} MiB", (0.5, held[-1]), (0, 8), textcoords="offset points", color="#0072b2"
    )
    memory.set(
        yscale="log", xlabel="million tokens read", ylabel="MiB", title=f"Memory of {layers} layers, {heads} heads"
    )
    timed = [mark for mark in marks if "median_ms" in mark]
    at = [mark["tokens"] / 1e6 for mark in timed]
    pace.plot(at, [mark["median_ms"] for mark in timed], ".", color="#999999", label="median of 256")
    pace.plot(at, [mark["fastest_ms"] for mark in timed], color="#0072b2", lw=2, label="fastest of 256")
    pace.set(xlabel="million tokens read", ylabel="ms", ylim=(0, None), title="One token through the model")
    pace.legend(frameon=False, loc="lower left")
    seen = [(true, bound) for *_, bound, true in comparing["samples"] if true > 1e-60]
    shares.loglog(*zip(*seen, strict=True), ".", color="#d55e00", ms=3)
    low, high = 1e-60, 1.0
    decades = [10.0**power for power in range(-60, 1, 12)]
    shares.plot([low, high], [low, high], color="#999999", lw=1)
    shares.axhline(2.0**-24, color="#009e73", lw=1, ls="--")
    shares.text(low * 10, 2.0**-24 * 30, "tolerance", color="#009e73", va="bottom")
    shares.text(1e-22, 1e-27, "bound = true share", color="#777777", rotation=45, rotation_mode="anchor", va="top")
    shares.set(xlim=(low, high), ylim=(low, high), xticks=decades, yticks=decades, aspect="equal")
    shares.set(xlabel="true share dropped", ylabel="bound on it", title="Mass of what was evicted")
    fig.savefig(figure, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", nargs="?", type=Path, default=Path("runs/extrapolate"))
    parser.add_argument("part", choices=("read", "compare", "draw"))
    parser.add_argument("--tokens", type=int)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--figure", type=Path, default=Path("docs/figures/streaming.png"))
    given = parser.parse_args()
    if given.part == "draw":
        draw(given.output, given.figure)
        return
    folder = RunFolder(given.run)
    decoder, _ = load_trained(given.run, "alibi")
    text = torch.from_numpy(load_corpus(read_run(folder)).held_out.astype("int64"))
    with torch.inference_mode():
        if given.part == "read":
            result = read(decoder, text, given.tokens or 1_000_192)
            layer = decoder.blocks[0].attention.qkv  # type: ignore[union-attr]
            result["bytes_per_token"] = len(decoder.blocks) * 2 * 4 * layer.in_features  # type: ignore[operator, union-attr]
        else:
            result = compare(decoder, text, given.tokens or 65_536)
    given.output.mkdir(parents=True, exist_ok=True)
    path = given.output / f"streaming-{given.part}.json"
    path.write_text(json.dumps({"machine": machine(), **result}) + "\n")
    print({name: value for name, value in result.items() if name not in ("marks", "samples", "windows")})


if __name__ == "__main__":
    main()
