"""Several runs of one experiment, differing in their seed, as one set of numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

from alibi_attention.lab.bootstrap import bootstrap_interval, wilson_interval
from alibi_attention.lab.config import ExperimentConfig
from alibi_attention.lab.errors import LabError
from alibi_attention.lab.runs import MethodResult, RunFolder, evaluations_of
from alibi_attention.lab.scores import Evaluation, RecallScore, Score, usable_by_perplexity, usable_by_recall

LossProtocol = Literal["windows", "sliding", "targets"]

# Settings in which the runs of one summary may differ.
_FREE = frozenset({"seed", "checkpoint_every"})


@dataclass(frozen=True)
class Run:
    """A complete run."""

    root: Path
    config: ExperimentConfig
    results: list[MethodResult]
    start: dict[str, Any]


@dataclass(frozen=True)
class Point:
    """Bits per byte at one length under all seeds.

    Attributes:
        length: of the window.
        mean, interval: over seeds, and 95% over documents and seeds.
        change, change_interval: from the trained length (where that was not evaluated, from the shortest), paired by
            document and seed: once models predict well, far tighter than `interval`, which is mostly that documents
            differ.
        by_seed: one value a seed.
        scored_bytes, perplexity, note: as in `Score`.
    """

    length: int
    mean: float | None
    interval: tuple[float, float] | None
    change: float | None
    change_interval: tuple[float, float] | None
    by_seed: tuple[float, ...]
    scored_bytes: int
    perplexity: float | None
    note: str | None


@dataclass(frozen=True)
class Line:
    """One evaluation under all seeds.

    Attributes:
        name, title: of the evaluation.
        losses: points by protocol.
        by_position: (first, end, mean bits per byte) in windows of the longest length evaluated.
        recall: asked and recalled summed over seeds.
        usable_by_perplexity, usable_by_recall: by the same rules from the means and sums.
        parameters, position_parameters, train_seconds, eval_seconds: the last two as means over seeds, by method.
    """

    name: str
    title: str
    losses: dict[LossProtocol, tuple[Point, ...]]
    by_position: tuple[tuple[int, int, float], ...]
    recall: tuple[RecallScore, ...]
    usable_by_perplexity: int | None
    usable_by_recall: int | None
    parameters: int
    position_parameters: int
    train_seconds: float
    eval_seconds: float
    seeds: tuple[int, ...] = field(default=())


def read_runs(roots: Sequence[Path]) -> list[Run]:
    """Complete runs of one experiment, in the order of their seeds.

    Raises:
        LabError: if one is not complete, two have the same seed, or they differ in more than the seed.
    """
    runs = []
    for root in roots:
        folder = RunFolder(root)
        runs.append(Run(root, folder.read_config(), folder.read_results(), folder.read_start()))
    first = runs[0]
    for other in runs[1:]:
        for name in ExperimentConfig.model_fields:
            if name not in _FREE and getattr(other.config, name) != getattr(first.config, name):
                values = [f"{getattr(run.config, name)} in {run.root}" for run in (first, other)]
                got = f"{name} {', '.join(values)}"
                remedy = "report them apart"
                raise LabError("runs", expected="runs that differ in their seed alone", got=got, remedy=remedy)
        if other.start["corpus"]["fingerprint"] != first.start["corpus"]["fingerprint"]:
            got = f"different text in {first.root} and {other.root}"
            raise LabError("runs", expected="runs on one corpus", got=got, remedy="report them apart")
    seeds = [run.config.seed for run in runs]
    if len(set(seeds)) < len(seeds):
        raise LabError("runs", expected="runs with different seeds", got=f"seeds {seeds}", remedy="name each once")
    return sorted(runs, key=lambda run: run.config.seed)


def summarise(runs: Sequence[Run]) -> list[Line]:
    """One line for each evaluation, in the order of the runs."""
    columns = list(zip(*(evaluations_of(run.results) for run in runs), strict=True))
    methods = {result.method: i for i, result in enumerate(runs[0].results)}
    lines = []
    for evaluations in columns:
        name = evaluations[0].name
        results = [run.results[methods[name.partition(":")[0]]] for run in runs]
        losses: dict[LossProtocol, tuple[Point, ...]] = {}
        for protocol in ("windows", "sliding", "targets"):
            by_run = [getattr(evaluation, protocol) for evaluation in evaluations]
            if by_run[0]:
                columns_of = list(zip(*by_run, strict=True))
                trained = [scores for scores in columns_of if scores[0].length == runs[0].config.length]
                reference = (trained or columns_of)[0]
                losses[protocol] = tuple(_point(scores, reference) for scores in columns_of)
        recall = tuple(_pool(scores) for scores in zip(*(e.recall for e in evaluations), strict=True))
        mean_scores = [
            Score(length=p.length, bits_per_byte=p.mean, scored_bytes=p.scored_bytes) for p in losses.get("windows", ())
        ]
        lines.append(
            Line(
                name=name,
                title=evaluations[0].title,
                losses=losses,
                by_position=_by_position(evaluations),
                recall=recall,
                usable_by_perplexity=usable_by_perplexity(mean_scores, runs[0].config.length),
                usable_by_recall=usable_by_recall(recall),
                parameters=results[0].parameters,
                position_parameters=results[0].position_parameters,
                train_seconds=fmean(result.train_seconds for result in results),
                eval_seconds=fmean(result.eval_seconds for result in results),
                seeds=tuple(run.config.seed for run in runs),
            )
        )
    return lines


def _point(scores: Sequence[Score], reference: Sequence[Score]) -> Point:
    first = scores[0]
    values = tuple(score.bits_per_byte for score in scores if score.bits_per_byte is not None)
    if len(values) < len(scores):
        return Point(first.length, None, None, None, None, (), 0, None, first.note)
    interval = bootstrap_interval([score.document_bits for score in scores], first.document_bytes)
    perplexities = [score.perplexity for score in scores if score.perplexity is not None]
    perplexity = fmean(perplexities) if perplexities else None
    change = change_interval = None
    # The sliding window may score a few tokens more or less at one length than at another.
    if scores is not reference and reference[0].document_bytes == first.document_bytes:
        pairs = zip(scores, reference, strict=True)
        moved = [[a - b for a, b in zip(s.document_bits, r.document_bits, strict=True)] for s, r in pairs]
        change = sum(map(sum, moved)) / (len(moved) * first.scored_bytes)
        change_interval = bootstrap_interval(moved, first.document_bytes)
    mean = fmean(values)
    return Point(first.length, mean, interval, change, change_interval, values, first.scored_bytes, perplexity, None)


def _pool(scores: Sequence[RecallScore]) -> RecallScore:
    asked, recalled = sum(score.asked for score in scores), sum(score.recalled for score in scores)
    interval = wilson_interval(recalled, asked) if asked else None
    return scores[0].model_copy(update={"asked": asked, "recalled": recalled, "interval": interval})


def _by_position(evaluations: Sequence[Evaluation]) -> tuple[tuple[int, int, float], ...]:
    longest = [[s for s in e.windows if s.bits_per_byte is not None][-1:] for e in evaluations]
    if not all(longest):
        return ()
    bins = zip(*(scores[0].by_position for scores in longest), strict=True)
    return tuple((some[0].first, some[0].end, fmean(b.bits_per_byte for b in some)) for some in bins)
