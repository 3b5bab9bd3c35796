"""How finished runs of the laboratory predict at the trained length and beyond it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from alibi_attention.bench.versus.results import Quality, Trained
from alibi_attention.lab.errors import LabError
from alibi_attention.lab.summary import read_runs, summarise

MULTIPLES = (1, 4, 16)
"""Lengths of the table, over the trained length."""


def read_trained(roots: Sequence[Path], objective: str, flag: str) -> Trained:
    """What runs that differ in their seed alone came to, by non-overlapping windows.

    Args:
        roots: run folders.
        objective: what they were trained for.
        flag: the name that errors give the folders.

    Raises:
        LabError: for runs that are not complete, do not belong together, or are of another objective.
    """
    try:
        runs = read_runs(roots)
    except LabError as error:
        expected, _, got = error.complaint.removeprefix("expected ").partition(", got ")
        raise LabError(flag, expected=expected, got=got, remedy=error.remedy) from None
    config = runs[0].config
    if config.objective != objective:
        kinds = {"next": "next-token prediction", "masked": "masked prediction"}
        other = "encoder" if config.objective == "masked" else "decoder"
        got = f"{kinds[config.objective]} in {roots[0]}"
        raise LabError(flag, expected=f"runs of {kinds[objective]}", got=got, remedy=f"give them to --{other}")
    if "windows" not in config.protocols:
        remedy = f"alibi evaluate {roots[0]} --protocols windows --output NEW"
        raise LabError(flag, expected="runs evaluated by windows", got=",".join(config.protocols), remedy=remedy)
    lines = summarise(runs)
    found = Trained(
        objective=objective,
        train_length=config.length,
        layers=config.layers,
        heads=config.heads,
        width=config.width,
        steps=config.steps,
        tokens=config.steps * config.accumulate * config.batch_size * config.length,
        unit="byte" if config.tokenizer == "bytes" else "token",
        corpus=str(runs[0].start["corpus"].get("source", "")),
        seeds=[run.config.seed for run in runs],
        position_parameters={line.name: line.position_parameters for line in lines if ":" not in line.name},
    )
    for line in lines:
        for point in line.losses["windows"]:
            quality = Quality(line.name, line.title, point.length, point.length / config.length, point.mean)
            quality.low, quality.high = point.interval or (None, None)
            quality.note = point.note or ""
            found.quality.append(quality)
    return found
