"""Results as rows."""

from __future__ import annotations

from collections.abc import Sequence

from alibi_attention.lab.runs import MethodResult, evaluations_of
from alibi_attention.lab.scores import Evaluation, RecallScore, Score

NONE = "—"
"""Where there is no number."""


def table_rows(results: Sequence[MethodResult]) -> tuple[list[str], list[list[str]]]:
    """Header and rows: one row per evaluation, one column of bits per byte per evaluation length, and the change."""
    evaluations = evaluations_of(results)
    lengths = [score.length for score in evaluations[0].scores]
    header = [f"{evaluations[0].unit} at", *map(str, lengths), f"{lengths[0]} → {lengths[-1]}"]
    return header, [[e.title, *map(_bits, e.scores), change(e.scores)] for e in evaluations]


def change(scores: Sequence[Score]) -> str:
    """From the first length to the last, with its sign."""
    first, last = scores[0].bits_per_byte, scores[-1].bits_per_byte
    return NONE if first is None or last is None else f"{last - first:+.3f}"


def _bits(score: Score) -> str:
    return NONE if score.bits_per_byte is None else f"{score.bits_per_byte:.3f}"


def recall_rows(evaluations: Sequence[Evaluation]) -> tuple[list[str], list[list[str]]]:
    """Header and rows: the share recalled from the farthest distance tested in windows of each length."""
    farthest = [_farthest(evaluation.recall) for evaluation in evaluations]
    header = ["recalled at", *(f"{score.distance} of {score.length}" for score in farthest[0])]
    rows = []
    for evaluation, scores in zip(evaluations, farthest, strict=True):
        shares = [NONE if score.share is None else f"{score.share:.0%}" for score in scores]
        rows.append([evaluation.title, *shares])
    return header, rows


def _farthest(scores: Sequence[RecallScore]) -> list[RecallScore]:
    last: dict[int, RecallScore] = {}
    for score in scores:
        if score.length not in last or score.distance > last[score.length].distance:
            last[score.length] = score
    return [last[length] for length in sorted(last)]


def verdict_rows(evaluations: Sequence[Evaluation]) -> tuple[list[str], list[list[str]]]:
    """Header and rows: the longest usable length by each measure."""
    header = ["usable length by", "perplexity", "recall"]
    return header, [[e.title, _length(e.usable_by_perplexity), _length(e.usable_by_recall)] for e in evaluations]


def _length(length: int | None) -> str:
    return NONE if length is None else f"{length:,}"


def notes(results: Sequence[MethodResult]) -> list[str]:
    """Why numbers are missing, each reason once."""
    reasons: dict[str, list[int]] = {}
    for evaluation in evaluations_of(results):
        for score in evaluation.scores:
            if score.note is not None:
                reasons.setdefault(f"{evaluation.title}: {score.note}", []).append(score.length)
    return [f"{reason}; no result at {', '.join(map(str, lengths))}" for reason, lengths in reasons.items()]


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    rule = ["---", *["---:"] * (len(header) - 1)]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in [header, rule, *rows])


def markdown_table(results: Sequence[MethodResult]) -> str:
    """All tables of a run, one after the other."""
    evaluations = evaluations_of(results)
    text = markdown(*table_rows(results))
    if evaluations[0].recall:
        text += "\n" + markdown(*recall_rows(evaluations))
    if len(evaluations[0].scores) > 1 and (evaluations[0].windows or evaluations[0].recall):
        text += "\n" + markdown(*verdict_rows(evaluations))
    return text + "".join(f"\n{note}.\n" for note in notes(results))
