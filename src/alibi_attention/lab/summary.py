"""Several runs of one experiment, differing in their seed, as one set of numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import fmean, median
from typing import NamedTuple

from alibi_attention.lab.complete import Run
from alibi_attention.lab.environment import course, differences
from alibi_attention.lab.intervals import effective_number, mean_interval
from alibi_attention.lab.pairs import Difference, paired_difference
from alibi_attention.lab.runs import evaluations_of
from alibi_attention.lab.scores import Evaluation, LossProtocol, LossVerdict, RecallScore, RecallVerdict, Score
from alibi_attention.lab.verdicts import median_verdict, usable_by_perplexity, usable_by_recall

REFERENCE = "alibi"
"""What the others are compared with; where it was not evaluated, the first."""


@dataclass(frozen=True)
class Point:
    """Bits per byte at one length under all seeds.

    Attributes:
        length: of the window.
        mean, interval: over seeds, and 95% over documents and seeds.
        change: from the trained length (where that was not evaluated, from the shortest), paired by document and seed;
            None there.
        against: the method all are compared with, at this length, paired likewise: this one less that one; None for
            that method itself.
        by_seed: one value a seed.
        documents: that the scored bytes are of.
        effective_documents, largest_document: as many of one size say as much, and the share of the largest.
        scored_bytes, perplexity, whole_context, note: as in `Score`.
    """

    length: int
    mean: float | None
    interval: tuple[float, float] | None
    change: Difference | None
    against: Difference | None
    by_seed: tuple[float, ...]
    documents: int
    effective_documents: float
    largest_document: float
    scored_bytes: int
    perplexity: float | None
    whole_context: float | None
    note: str | None


class PositionMean(NamedTuple):
    """Bits per byte at positions [first, end) of a window, a mean over seeds, and of how many tokens in each."""

    first: int
    end: int
    bits: float
    tokens: int


@dataclass(frozen=True)
class RecallPoint:
    """Recall at one length and distance under all seeds, which are never pooled: models differ in whether they learned.

    Attributes:
        length, distance: of the window, and from the value told to the value asked for.
        by_seed: a score a seed, each with an interval of its own.
    """

    length: int
    distance: int
    by_seed: tuple[RecallScore, ...]

    @property
    def shares(self) -> tuple[float, ...]:
        """One a seed; none where it could not be asked."""
        return tuple(score.share for score in self.by_seed if score.share is not None)

    @property
    def median(self) -> float | None:
        return median(self.shares) if self.shares else None


@dataclass(frozen=True)
class Line:
    """One evaluation under all seeds.

    Attributes:
        name, title: of the evaluation.
        losses: points by protocol.
        by_position: of windows of the trained length, and of the longest that could be evaluated.
        recall: points in the order of lengths and distances.
        usable_by_perplexity: by the rule of a single run, the interval over documents and seeds.
        usable_by_recall, recall_by_seed: that of the median seed, and of each.
        parameters, position_parameters, train_seconds, eval_seconds: the last two as means over seeds, by method.
    """

    name: str
    title: str
    losses: dict[LossProtocol, tuple[Point, ...]]
    by_position: dict[int, tuple[PositionMean, ...]]
    recall: tuple[RecallPoint, ...]
    usable_by_perplexity: LossVerdict | None
    usable_by_recall: RecallVerdict | None
    recall_by_seed: tuple[RecallVerdict | None, ...]
    parameters: int
    position_parameters: int
    train_seconds: float
    eval_seconds: float
    seeds: tuple[int, ...] = field(default=())


def machine_differences(runs: Sequence[Run]) -> list[str]:
    """In words, what of where they ran differs between the first run and each of the others, all sessions told."""
    first = course(runs[0].sessions)
    found = []
    for run in runs[1:]:
        changed = differences(first, course(run.sessions), also=("python", "platform"))
        if changed:
            found.append(f"seed {run.config.seed}: {', '.join(changed)}")
    return found


def reference_name(lines: Sequence[Line]) -> str:
    """The evaluation the others are compared with."""
    names = [line.name for line in lines]
    return REFERENCE if REFERENCE in names else names[0]


def summarise(runs: Sequence[Run]) -> list[Line]:
    """One line for each evaluation, in the order of the runs."""
    columns = list(zip(*(evaluations_of(run.results) for run in runs), strict=True))
    methods = {result.method: i for i, result in enumerate(runs[0].results)}
    config = runs[0].config
    reference = next((some for some in columns if some[0].name == REFERENCE), columns[0])
    lines = []
    for evaluations in columns:
        name = evaluations[0].name
        results = [run.results[methods[name.partition(":")[0]]] for run in runs]
        recall = [
            RecallPoint(scores[0].length, scores[0].distance, tuple(scores))
            for scores in zip(*(evaluation.recall for evaluation in evaluations), strict=True)
        ]
        taught = config.recall_share > 0.0
        verdicts = [usable_by_recall(evaluation.recall, config.length, taught=taught) for evaluation in evaluations]
        lines.append(
            Line(
                name=name,
                title=evaluations[0].title,
                losses=_losses(evaluations, reference, config.length),
                by_position=_by_position(evaluations, config.length),
                recall=tuple(recall),
                usable_by_perplexity=usable_by_perplexity(evaluations, config.length),
                usable_by_recall=median_verdict(verdicts),
                recall_by_seed=tuple(verdicts),
                parameters=results[0].parameters,
                position_parameters=results[0].position_parameters,
                train_seconds=fmean(result.train_seconds for result in results),
                eval_seconds=fmean(result.eval_seconds for result in results),
                seeds=tuple(run.config.seed for run in runs),
            )
        )
    return lines


def _losses(
    evaluations: Sequence[Evaluation], reference: Sequence[Evaluation], train_length: int
) -> dict[LossProtocol, tuple[Point, ...]]:
    losses: dict[LossProtocol, tuple[Point, ...]] = {}
    for protocol in ("windows", "sliding", "targets"):
        columns = _by_length(evaluations, protocol)
        if columns:
            trained = next((scores for scores in columns if scores[0].length == train_length), columns[0])
            others = _by_length(reference, protocol)
            points = []
            for scores, other in zip(columns, others, strict=True):
                change = None if scores is trained else paired_difference(scores, trained)
                against = None if evaluations is reference else paired_difference(scores, other)
                points.append(_point(scores, change, against))
            losses[protocol] = tuple(points)
    return losses


def _by_length(evaluations: Sequence[Evaluation], protocol: LossProtocol) -> list[tuple[Score, ...]]:
    """For each length the scores of all seeds."""
    return list(zip(*(getattr(evaluation, protocol) for evaluation in evaluations), strict=True))


def _point(scores: Sequence[Score], change: Difference | None, against: Difference | None) -> Point:
    first = scores[0]
    values = tuple(score.bits_per_byte for score in scores if score.bits_per_byte is not None)
    if len(values) < len(scores):
        return Point(first.length, None, None, None, None, (), 0, 0.0, 0.0, 0, None, None, first.note)
    sizes = first.document_bytes
    interval = mean_interval([score.document_bits for score in scores], sizes)
    perplexities = [score.perplexity for score in scores if score.perplexity is not None]
    perplexity = fmean(perplexities) if perplexities else None
    return Point(
        first.length, fmean(values), interval, change, against, values, len(sizes), effective_number(sizes),
        max(sizes) / sum(sizes), first.scored_bytes, perplexity, first.whole_context, None,
    )  # fmt: skip


def _by_position(evaluations: Sequence[Evaluation], train_length: int) -> dict[int, tuple[PositionMean, ...]]:
    columns = [scores for scores in _by_length(evaluations, "windows") if all(score.by_position for score in scores)]
    found = {}
    for scores in columns:
        length = scores[0].length
        if length == train_length or scores is columns[-1]:
            # Every window has each position once, but for one at the end of a segment that is cut short.
            windows = scores[0].scored_tokens / length
            found[length] = tuple(
                PositionMean(some[0].first, some[0].end, fmean(bin_.bits_per_byte for bin_ in some),
                             round(windows * (some[0].end - some[0].first)))
                for some in zip(*(score.by_position for score in scores), strict=True)
            )  # fmt: skip
    return found


def farthest(line: Line) -> tuple[PositionMean, ...]:
    """Of the longest windows it was read in; none where there are none."""
    return line.by_position[max(line.by_position)] if line.by_position else ()


def longest_bins(lines: Sequence[Line]) -> tuple[PositionMean, ...]:
    """Those of the line that goes farthest: not every method can be evaluated at every length."""
    return max((farthest(line) for line in lines), key=lambda bins: bins[-1].end if bins else 0)
