"""Whether the time of a tile depends on the length: lengths in turn, round after round.

``python benchmarks/tiles.py [--lengths 8K,16K,...] [--rounds N] [--output FILE.json]`` measures, prints and writes.

`alibi bench sweep` measures one length to the end and then the next, so a machine that changes its speed within minutes
makes lengths differ. Here every round has every length once, upwards and downwards by turns. A tile counts as computed
when its scores were taken. One passed over for what they show has one product of matrices, not two, so the time of a
product is given besides. Case `sweep` of ``src/alibi_attention/bench/cases.py`` says what is computed.
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


class Length(NamedTuple):
    tokens: int
    tiles: Tiles
    call: Callable[[], Any]
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
        made = Length(length, computed_tiles(trial, inputs, OURS), make_ours(OURS, trial, inputs), [])
        made.call()
        found.append(made)
    for index in range(rounds):
        for each in found if index % 2 == 0 else reversed(found):
            start = time.perf_counter()
            each.call()
            each.seconds.append(time.perf_counter() - start)
    return found


def spread(found: list[list[float]]) -> float:
    """How far the medians lie apart, as a share of the smallest."""
    medians = [statistics.median(values) for values in found]
    return max(medians) / min(medians) - 1.0


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
    by_tile, by_product = spread([each.per_tile for each in found]), spread([each.per_product for each in found])
    verdict = "met" if by_tile <= TARGET else "missed"
    return "\n".join(
        [*lines, f"spread: {by_tile:.1%} by tile ({TARGET:.0%} asked: {verdict}), {by_product:.1%} by product\n"]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--lengths", default="8K,16K,32K,64K,128K,256K")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    results: dict[str, Any] = {"machine": machine(), "rounds": arguments.rounds, "head_dims": {}}
    for head_dim in HEAD_DIMS:
        found = measure(head_dim, whole_numbers("--lengths", arguments.lengths), arguments.rounds)
        print(told(head_dim, found), flush=True)
        results["head_dims"][head_dim] = {
            each.tokens: {**each.tiles._asdict(), "seconds": each.seconds} for each in found
        }
        if arguments.output is not None:
            arguments.output.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
