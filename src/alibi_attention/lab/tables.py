"""Results as rows."""

from __future__ import annotations

from collections.abc import Sequence

from alibi_attention.lab.runs import MethodResult, evaluations_of
from alibi_attention.lab.scores import Evaluation, LossProtocol, RecallScore, Score
from alibi_attention.lab.verdicts import loss_protocol

PROTOCOL_NAMES: dict[LossProtocol, str] = {
    "windows": "windows",
    "sliding": "sliding window",
    "targets": "fixed targets",
}

NONE = "—"
"""Where there is no number."""


def signed(number: float) -> str:
    """With three digits after the point and its sign, which what rounds to nothing has not."""
    text = f"{number:+.3f}"
    return text[1:] if float(text) == 0.0 else text.replace("-", "\N{MINUS SIGN}")


def table_rows(results: Sequence[MethodResult]) -> tuple[list[str], list[list[str]]]:
    """Header and rows: one row per evaluation, one column of bits per byte per evaluation length, and the change."""
    evaluations = evaluations_of(results)
    lengths = [score.length for score in evaluations[0].scores]
    header = [f"{evaluations[0].unit} at", *map(str, lengths), f"{lengths[0]} → {lengths[-1]}"]
    return header, [[e.title, *map(_bits, e.scores), change(e.scores)] for e in evaluations]


def change(scores: Sequence[Score]) -> str:
    """From the first length to the last, with its sign."""
    first, last = scores[0].bits_per_byte, scores[-1].bits_per_byte
    return NONE if first is None or last is None else signed(last - first)


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
    """Header and rows: the longest usable length by each measure, and what it was measured by."""
    header = ["usable length by", by_loss(loss_protocol(evaluations[0])), "recall"]
    rows = []
    for evaluation in evaluations:
        verdicts = evaluation.usable_by_perplexity, evaluation.usable_by_recall
        rows.append([evaluation.title, *(NONE if verdict is None else verdict.words for verdict in verdicts)])
    return header, rows


def by_loss(protocol: LossProtocol | None) -> str:
    """The head of a column of verdicts."""
    return "perplexity" if protocol is None else f"perplexity, {PROTOCOL_NAMES[protocol]}"


def notes(results: Sequence[MethodResult]) -> list[str]:
    """Why numbers are missing, each reason once."""
    reasons: dict[str, list[int]] = {}
    for evaluation in evaluations_of(results):
        for score in evaluation.scores or _farthest(evaluation.recall):
            if score.note is not None:
                reasons.setdefault(f"{evaluation.title}: {score.note}", []).append(score.length)
    return [f"{reason}; no result at {', '.join(map(str, lengths))}" for reason, lengths in reasons.items()]


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    rule = ["---", *["---:"] * (len(header) - 1)]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in [header, rule, *rows])


def result_tables(results: Sequence[MethodResult]) -> list[tuple[list[str], list[list[str]]]]:
    """Header and rows of every table of a run: losses, recall and verdicts, those that were measured."""
    evaluations = evaluations_of(results)
    tables = []
    if evaluations[0].scores:
        tables.append(table_rows(results))
    if evaluations[0].recall:
        tables.append(recall_rows(evaluations))
    if len(evaluations[0].scores) > 1 or evaluations[0].recall:
        tables.append(verdict_rows(evaluations))
    return tables


def markdown_table(results: Sequence[MethodResult]) -> str:
    """All tables of a run, one after the other."""
    text = "\n".join(markdown(*table) for table in result_tables(results))
    return text + "".join(f"\n{note}.\n" for note in notes(results))
