"""All methods under several seeds, one run after the other, within a budget of time, resumed where it stopped."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from alibi_attention.lab.config import ExperimentConfig, make_config
from alibi_attention.lab.errors import LabError
from alibi_attention.lab.experiment import read_as_started, resume_experiment, start_experiment
from alibi_attention.lab.interruption import Interruption
from alibi_attention.lab.lock import locked
from alibi_attention.lab.positions import position_methods
from alibi_attention.lab.progress import Progress
from alibi_attention.lab.report import write_report
from alibi_attention.lab.runs import RunFolder

STUDY: Mapping[str, Any] = {
    "variants": ("all",),
    "protocols": ("all",),
    "length": 256,
    "width": 256,
    "steps": 1800,
    "batch_size": 16,
    "learning_rate": 2e-3,
    "recall_share": 0.5,
    "precision": "bf16",
    "eval_tokens": 131072,
    "eval_precision": "bf16",
}
"""About 3 M parameters, 7.4 M tokens, on the default corpus; with every method that differs from the others.

Why so many tokens: with half of them, in 900 steps, ALiBi learns recall within its length and RoPE does not (17% of the
values at 32 bytes at best); with these it does, 64 of 64 at every distance (docs/study).

Products in bfloat16 take a step from 1.1 to 0.6 s on one core with AVX512-BF16 (T5's bias from 1.5 to 1.0), and an
evaluation from 104 to 48 us a byte at 256 bytes, 151 to 86 at 4,096. Predicted of the scores: no difference to be seen.
Seen, on 65,536 bytes at 256, 1,024 and 4,096, for every method, ALiBi's NTK scaling and YaRN: at most 0.0003 bits where
a model stays below 2.3 bits; far beyond their length 0.0006 for sinusoidal positions and RoPE, 0.002 for NoPE and YaRN.
"""


def study_config(changes: Mapping[str, Any] | None = None) -> ExperimentConfig:
    """The configuration of a study, with ``changes`` of the caller's.

    Raises:
        LabError: for changes that cannot be used.
    """
    settings = {**STUDY, **(changes or {})}
    heads = settings.get("heads", ExperimentConfig.model_fields["heads"].default)
    every = list(position_methods())
    if isinstance(heads, int) and heads & (heads - 1) == 0:
        # The same slopes as ALiBi's for such a number of heads: the same model twice.
        every.remove("alibi-interleaved")
    if settings.get("objective", "next") != "next":
        remedy = "run alibi extrapolate --objective masked for each seed, and alibi versus on the folders"
        raise LabError("objective", expected="next, whose protocols a study reports", got=f"{settings['objective']}",
                       remedy=remedy)  # fmt: skip
    return make_config({"methods": every, **settings})


def run_study(
    root: Path, changes: Mapping[str, Any] | None = None, *, seeds: int = 3, only_seed: int | None = None,
    minutes: float | None = None, progress: Progress | None = None,
) -> Path | None:  # fmt: skip
    """Run what is still missing of a study, and report it.

    Each seed is a run of its own in ``seed-N``; one that was begun is resumed, one that is complete is read.

    Args:
        root: folder of the study.
        changes: settings other than those of `STUDY`. A study that was begun goes on with its own, and these must agree
            with them.
        seeds: how many, from 0.
        only_seed: the one to run, so that several processes can share a study; all of them by default. Whichever ends
            last reports.
        minutes: after which it stops at the next step, to be continued by the same call; no limit by default.
        progress: told of what goes on; silent by default.

    Returns:
        The report, an HTML page; None while other seeds are missing.

    Raises:
        LabError: for settings that cannot be used, or not as the study was begun.
        RunInterrupted: when the time is up, or on Ctrl-C or SIGTERM.
    """
    if seeds < 1:
        raise LabError("seeds", expected="at least 1", got=f"{seeds}", remedy="3 is the default")
    if only_seed is not None and not 0 <= only_seed < seeds:
        expected = f"one of the study's seeds, 0 to {seeds - 1}"
        raise LabError("only_seed", expected=expected, got=f"{only_seed}", remedy="raise --seeds, their number")
    if minutes is not None and not minutes > 0:
        raise LabError("minutes", expected="a number above 0", got=f"{minutes}", remedy="leave it out for no limit")
    if changes and "seed" in changes:
        raise LabError("seed", expected="no single seed", got=f"{changes['seed']}", remedy="give --seeds, their number")
    progress = progress or Progress()
    stop = Interruption(minutes=minutes)
    folders = [RunFolder(root / f"seed-{seed}") for seed in range(seeds)]
    # One that was begun by a version with other defaults keeps those.
    begun = next((folder for folder in folders if folder.config.is_file()), None)
    study = study_config(changes) if begun is None else read_as_started(begun, changes or {})
    for seed in range(seeds) if only_seed is None else [only_seed]:
        config = study.model_copy(update={"seed": seed})
        heading = f"Seed {seed}, {seed + 1} of {seeds}"
        if folders[seed].config.exists():
            expected_settings = config.model_dump()
            resume_experiment(folders[seed].root, progress, expected=expected_settings, stop=stop, heading=heading)
        else:
            start_experiment(config, folders[seed].root, progress, stop=stop, heading=heading)
    # Held, and looked at once it is: of two processes that end together one sees all that there is.
    with locked(root, wait=True):
        missing = [str(seed) for seed, folder in enumerate(folders) if not folder.results.is_file()]
        if missing:
            progress.say(f"No report yet: of the seeds, {', '.join(missing)} are missing.")
            return None
        return write_report([folder.root for folder in folders], root)
