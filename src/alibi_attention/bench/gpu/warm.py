"""Compilation beside the checks: what the benchmarks will need is in the caches on disk when they begin."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from alibi_attention.bench.gpu.cases import GpuTrial, K
from alibi_attention.bench.gpu.process import Process, end_all
from alibi_attention.bench.gpu.trial import GpuSettings
from alibi_attention.bench.gpu.worker import WARMED, Plan

# Inputs of one size of so many keys take many gigabytes: one of them at a time, beside the checks.
_LARGE = 128 * K
# Inductor would start as many compilers as there are cores, for each of the processes.
_ENVIRONMENT = {"TORCHINDUCTOR_COMPILE_THREADS": "1"}


class Warming:
    """Processes that compile."""

    def __init__(
        self, folder: Path, trials: Sequence[GpuTrial], workers: int, device: str, settings: GpuSettings
    ) -> None:
        self._places: list[Path] = []
        self._processes: list[Process] = []
        for part, mine in enumerate(dealt(trials, workers)):
            place = folder / f"warm-{part}"
            Plan(device, mine, settings, warm=True).write(place / "plan.json")
            arguments = ["-m", "alibi_attention.bench.gpu.worker", str(place)]
            self._places.append(place)
            self._processes.append(Process(arguments, place / "worker.log", _ENVIRONMENT))

    def end(self) -> None:
        end_all(self._processes)

    def warmed(self) -> set[int]:
        """Numbers of the sizes that are ready."""
        found: set[int] = set()
        for place in self._places:
            try:
                found.update(json.loads((place / WARMED).read_text(encoding="utf-8")))
            except (OSError, ValueError):
                continue
        return found


def dealt(trials: Sequence[GpuTrial], workers: int) -> list[Mapping[int, GpuTrial]]:
    """The trials by number, in order, for each of so many processes; all large ones for the last."""
    parts: list[dict[int, GpuTrial]] = [{} for _ in range(workers)]
    small = parts[:-1] or parts
    turn = 0
    for number, trial in enumerate(trials):
        if trial.keys >= _LARGE:
            parts[-1][number] = trial
        else:
            small[turn % len(small)][number] = trial
            turn += 1
    return [part for part in parts if part]
