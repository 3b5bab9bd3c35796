"""How finished runs of the laboratory predict and recall at the trained length and beyond it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from alibi_attention.bench.versus.results import Quality, Trained, Usable
from alibi_attention.lab.complete import read_runs
from alibi_attention.lab.errors import LabError
from alibi_attention.lab.summary import Line, Point, reference_name, summarise
from alibi_attention.lab.verdicts import LOSS_PROTOCOLS

MULTIPLES = (1, 4, 16)
"""Lengths of the table, over the trained length."""

KINDS = {"next": "decoder", "masked": "encoder"}
"""What a model of an objective is called."""


def read_trained(roots: Sequence[Path], objective: str, flag: str) -> Trained:
    """What runs of one experiment came to.

    Bits are by the protocol that a verdict by loss prefers among those of the runs: a sliding window, else fixed
    targets, else windows that do not overlap.

    Args:
        roots: run folders, or files of runs.
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
    lines = summarise(runs)
    protocol = next((each for each in LOSS_PROTOCOLS if each in lines[0].losses), None)
    if protocol is None:
        remedy = f"alibi evaluate {roots[0]} --protocols all --output NEW"
        expected = f"runs evaluated by {', '.join(LOSS_PROTOCOLS[:-1])} or {LOSS_PROTOCOLS[-1]}"
        raise LabError(flag, expected=expected, got=",".join(config.protocols), remedy=remedy)
    reference = reference_name(lines)
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
        protocol=protocol,
        reference=next(line.title for line in lines if line.name == reference),
        position_parameters={line.name: line.position_parameters for line in lines if ":" not in line.name},
    )
    for line in lines:
        found.quality += [_quality(line, point, config.length) for point in line.losses[protocol]]
        verdicts = (line.usable_by_perplexity, line.usable_by_recall)
        found.usable.append(Usable(line.name, line.title, *("" if each is None else each.words for each in verdicts)))
    return found


def _quality(line: Line, point: Point, train_length: int) -> Quality:
    found = Quality(line.name, line.title, point.length, point.length / train_length, point.mean)
    found.low, found.high = point.interval or (None, None)
    if point.against is not None:
        found.difference = point.against.mean
        found.difference_low, found.difference_high = point.against.interval or (None, None)
    found.documents, found.note = point.documents, point.note or ""
    return found
