"""The process that touches the device: it measures what a plan lists, and leaves every step in files.

``python -m alibi_attention.bench.gpu.worker FOLDER`` reads FOLDER/plan.json; `watch` starts it, and starts another
where it falls. Files: machine.json, state.json (what is under way), trial-N.json (a size as far as it is known).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from alibi_attention.bench.gpu.cases import GpuCase, GpuTrial
from alibi_attention.bench.gpu.clock import Clock, clock_for
from alibi_attention.bench.gpu.compiler import compiler
from alibi_attention.bench.gpu.process import LOST
from alibi_attention.bench.gpu.trial import (
    DeviceLostError,
    GpuSettings,
    Record,
    blank_result,
    measure_gpu_trial,
)
from alibi_attention.bench.results import TrialResult
from alibi_attention.lab.files import write_json

WARMED = "warmed.json"
"""Where a process that compiles lists the sizes it is done with."""


@dataclass
class Plan:
    """What a worker does.

    Attributes:
        trials: by number, which names their files.
        excluded: by number of the trial, contestants that are not to be tried, and why.
        warm: only compile what the trials need, measuring nothing.
    """

    device: str
    trials: Mapping[int, GpuTrial]
    settings: GpuSettings = field(default_factory=GpuSettings)
    excluded: Mapping[int, Mapping[str, str]] = field(default_factory=dict)
    warm: bool = False

    def write(self, path: Path) -> None:
        trials = {
            str(number): {
                **{name: value for name, value in asdict(trial.case).items() if name != "targets"},
                "dtype": str(trial.case.dtype).removeprefix("torch."),
                "at": [trial.head_dim, trial.keys],
            }
            for number, trial in self.trials.items()
        }
        write_json(path, {
            "device": self.device, "trials": trials, "settings": asdict(self.settings),
            "excluded": {str(number): dict(names) for number, names in self.excluded.items()}, "warm": self.warm,
        })  # fmt: skip


def read_plan(path: Path) -> Plan:
    """What `Plan.write` wrote. Targets stay with who asks for them."""
    value = json.loads(path.read_text(encoding="utf-8"))
    return Plan(
        value["device"],
        {int(number): _trial(trial) for number, trial in value["trials"].items()},
        GpuSettings(**value["settings"]),
        {int(number): names for number, names in value["excluded"].items()},
        value["warm"],
    )


def _trial(value: dict[str, Any]) -> GpuTrial:
    head_dim, keys = value.pop("at")
    lists = {name: tuple(value[name]) for name in ("lengths", "peers", "head_dims")}
    case = GpuCase(**{**value, **lists, "dtype": getattr(torch, value["dtype"])})
    return GpuTrial(case, head_dim, keys)


def work(folder: Path, plan: Plan, clock: Clock) -> int:
    """Measure every trial of the plan; the exit status."""
    write_json(folder / "machine.json", {**clock.machine(), **compiler()})
    for number, trial in plan.trials.items():
        record = _record(folder, number, trial, plan.excluded.get(number, {}))
        try:
            measure_gpu_trial(trial, record, clock, plan.settings)
        except DeviceLostError as error:
            print(error, file=sys.stderr, flush=True)
            return LOST
        except Exception as error:
            # Before or between contestants: inputs that do not fit, for one. The next size may.
            record.result.note = f"failed: {type(error).__name__}: {str(error).strip()[:300]}"
            record.result.complete = True
            record.save(record.result)
            clock.tidy()
            try:
                clock.check()
            except Exception as lost:
                print(f"the device is lost: {lost}", file=sys.stderr, flush=True)
                return LOST
    return 0


def _record(folder: Path, number: int, trial: GpuTrial, excluded: Mapping[str, str]) -> Record:
    def status(name: str | None) -> None:
        write_json(folder / "state.json", {"trial": number, "contestant": name})

    def save(result: TrialResult) -> None:
        write_json(folder / f"trial-{number}.json", asdict(result))

    return Record(blank_result(trial), status, save, excluded)


def warm(folder: Path, plan: Plan, clock: Clock) -> int:
    """Run everything compiled once, so that its code is on disk when it is measured. Failures are left to that."""
    once = replace(plan.settings, rounds=0)
    done: list[int] = []
    for number, trial in plan.trials.items():
        compiled = tuple(name for name in trial.case.peers if name.startswith("flex"))
        quick = GpuTrial(replace(trial.case, peers=compiled), trial.head_dim, trial.keys)
        try:
            measure_gpu_trial(quick, Record(blank_result(quick)), clock, once)
        except Exception as error:
            print(f"{trial.name}: {error}", file=sys.stderr, flush=True)
            clock.tidy()
            continue
        done.append(number)
        write_json(folder / WARMED, done)
    return 0


def main(arguments: Sequence[str]) -> int:
    folder = Path(arguments[0])
    plan = read_plan(folder / "plan.json")
    clock = clock_for(plan.device)
    return warm(folder, plan, clock) if plan.warm else work(folder, plan, clock)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
