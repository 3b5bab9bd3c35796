"""Whether the time of a tile depends on the length: lengths in turn, round after round.

``python benchmarks/tiles.py [--lengths 8K,16K,...] [--head-dims 64 128] [--rounds N] [--output FILE.json]`` measures,
prints and writes.

`alibi bench sweep` measures one length to the end and then the next, so a machine that changes its speed within minutes
makes lengths differ. Here every round has every length, upwards and downwards by turns, a short one so many times that
it takes a second and a half: of a single call of a tenth of a second one interruption decides. A tile counts
as computed when its scores were taken. One passed over for what they show has one product of matrices, not two, so the
time of a product is given besides. Case `sweep` of ``src/alibi_attention/bench/cases.py`` says what is computed.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch

# Before any worker thread starts, so that all flush.
torch.set_flush_denormal(True)

from alibi_attention.bench.case import Trial, short  # noqa: E402
from alibi_attention.bench.cases import CASES  # noqa: E402
from alibi_attention.bench.inputs import available_memory, make_inputs  # noqa: E402
from alibi_attention.bench.machine import machine  # noqa: E402
from alibi_attention.bench.ours import Tiles, computed_tiles, make_ours  # noqa: E402
from alibi_attention.cli.lab_values import whole_numbers  # noqa: E402

HEAD_DIMS = (64, 128)
OURS = "alibi-cpu"
# What the time of a computed tile may differ by.
TARGET = 0.05
# How long a length is looked at in every round, in calls one after the other.
SECONDS_A_ROUND = 1.5


class Length(NamedTuple):
    tokens: int
    tiles: Tiles
    call: Callable[[], Any]
    calls: int  # a round
    seconds: list[float]

    @property
    def per_tile(self) -> list[float]:
        assert self.tiles.scored is not None
        return [seconds / self.tiles.scored for seconds in self.seconds]

    @property
    def per_product(self) -> list[float]:
        assert self.tiles.scored is not None
        return [seconds / (self.tiles.scored + self.tiles.kept) for seconds in self.seconds]


def measure(head_dim: int, lengths: list[int], rounds: int) -> list[Length]:
    found = []
    for length in lengths:
        trial = Trial(CASES["sweep"], head_dim, length)
        inputs = make_inputs(trial, available_memory())
        call = make_ours(OURS, trial, inputs)
        taken(call)
        calls = max(1, round(SECONDS_A_ROUND / taken(call)))
        found.append(Length(length, computed_tiles(trial, inputs, OURS), call, calls, []))
    for index in range(rounds):
        for each in found if index % 2 == 0 else reversed(found):
            each.seconds.extend(taken(each.call) for _ in range(each.calls))
    return found


def taken(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def spread(found: list[list[float]], of: Callable[[list[float]], float] = statistics.median) -> float:
    """How far the medians, or what else of each length, lie apart, as a share of the smallest."""
    values = [of(values) for values in found]
    return max(values) / min(values) - 1.0


def decile(values: list[float]) -> float:
    """The first: of lengths with many calls and with few alike, where a minimum would favour the many."""
    return sorted(values)[round(0.1 * (len(values) - 1))]


def told(head_dim: int, found: list[Length]) -> str:
    lines = [f"D = {head_dim}", "tokens      tiles  passed over       ms  us a tile  us a product"]
    for each in found:
        assert each.tiles.scored is not None
        passed = 1.0 - each.tiles.kept / each.tiles.scored
        lines.append(
            f"{short(each.tokens):>6}{each.tiles.scored:>11,}{passed:>13.0%}"
            f"{statistics.median(each.seconds) * 1e3:>9,.0f}{statistics.median(each.per_tile) * 1e6:>11.3g}"
            f"{statistics.median(each.per_product) * 1e6:>14.3g}"
        )
    tiles, products = [each.per_tile for each in found], [each.per_product for each in found]
    by_tile = spread(tiles)
    verdict = "met" if by_tile <= TARGET else "missed"
    return "\n".join(
        [
            *lines,
            f"spread: {by_tile:.1%} by tile ({TARGET:.0%} asked: {verdict}), {spread(products):.1%} by product",
            # What others do with the machine meanwhile only ever adds.
            f"of each length's first decile: {spread(tiles, decile):.1%} by tile, {spread(products, decile):.1%}\n",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--lengths", default="8K,16K,32K,64K,128K,256K")
    parser.add_argument("--head-dims", type=int, nargs="+", default=HEAD_DIMS)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    results: dict[str, Any] = {"machine": machine(), "rounds": arguments.rounds, "head_dims": {}}
    for head_dim in arguments.head_dims:
        found = measure(head_dim, whole_numbers("--lengths", arguments.lengths), arguments.rounds)
        print(told(head_dim, found), flush=True)
        results["head_dims"][head_dim] = {
            each.tokens: {**each.tiles._asdict(), "seconds": each.seconds} for each in found
        }
        if arguments.output is not None:
            arguments.output.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
