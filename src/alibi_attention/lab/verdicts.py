"""Up to which length a model is of use, by its loss and by recall: the rules, and how they are put in words."""

from __future__ import annotations

from collections.abc import Sequence

from alibi_attention.lab.config import ExperimentConfig
from alibi_attention.lab.intervals import mean_interval
from alibi_attention.lab.pairs import paired_difference
from alibi_attention.lab.scores import (
    Evaluation,
    LossProtocol,
    LossVerdict,
    RecallScore,
    RecallVerdict,
    Score,
)

SLACK = 0.01
"""A length is usable by loss while bits per byte are surely at most this share above those at the trained length."""

LOSS_PROTOCOLS: tuple[LossProtocol, ...] = ("sliding", "targets", "windows")
"""In the order a verdict prefers them: windows that do not overlap gain with length whether or not context is used."""


def loss_protocol(evaluation: Evaluation) -> LossProtocol | None:
    """The protocol a verdict by loss is based on: sliding window, else fixed targets, else windows."""
    return next((protocol for protocol in LOSS_PROTOCOLS if getattr(evaluation, protocol)), None)


def usable_by_perplexity(evaluations: Sequence[Evaluation], train_length: int) -> LossVerdict | None:
    """The longest evaluated length to which the loss stays what it is at the trained length.

    That is: at this and at every shorter evaluated length from the trained one on, the upper end of the 95% interval of
    the change in bits per byte since the trained length, paired by document and seed, is at most 1% of what they are
    there. Where there is no interval, of a single document or one that is nearly all, the change itself is taken. A
    model that is no better there than the tokens' frequencies are has not learned anything that a length could take
    from it.

    Args:
        evaluations: of one method or variant, one a seed.
        train_length: the length it was trained at.

    Returns:
        The verdict; None where no loss was evaluated at the trained length.
    """
    protocol = loss_protocol(evaluations[0])
    if protocol is None:
        return None
    columns = list(zip(*(getattr(evaluation, protocol) for evaluation in evaluations), strict=True))
    trained = next((scores for scores in columns if scores[0].length == train_length), None)
    bits = None if trained is None else _mean(trained)
    if trained is None or bits is None:
        return None
    guesses = [each.unigram_bits for each in evaluations if each.unigram_bits is not None]
    if guesses and not bits < min(guesses):
        return LossVerdict(protocol=protocol, length=None)
    usable = train_length
    for scores in columns:
        if scores[0].length > train_length:
            change = paired_difference(scores, trained)
            if change is None:
                break
            worst = change.mean if change.interval is None else change.interval[1]
            # Written so that a loss that is no number fails, too.
            if not worst <= SLACK * bits:
                break
            usable = scores[0].length
    return LossVerdict(protocol=protocol, length=usable)


def _mean(scores: Sequence[Score]) -> float | None:
    values = [score.bits_per_byte for score in scores if score.bits_per_byte is not None]
    return sum(values) / len(values) if len(values) == len(scores) else None


def usable_by_recall(scores: Sequence[RecallScore], train_length: int, *, taught: bool = True) -> RecallVerdict | None:
    """The longest evaluated length within which values are recalled, wherever they were told, under one seed.

    That is: in windows of this and of every shorter evaluated length, surely at least half of the values told at each
    distance tested in that window are recalled, by the lower end of the 95% interval. A model may know the beginning
    of a window and not its middle, so the farthest distance alone does not decide. Where this does not hold at the
    nearest distance, in windows of the trained length (or the shortest evaluated), the task was not learned, and
    nothing is said of distance. ``taught`` is whether there were such values in training.

    Returns:
        The verdict; None where nothing could be asked.
    """
    lengths = sorted({score.length for score in scores})
    by_length = {n: sorted((s for s in scores if s.length == n), key=lambda score: score.distance) for n in lengths}
    asked = [n for n in lengths if by_length[n][0].share is not None]
    if not asked:
        return None
    inside = [n for n in asked if n <= train_length]
    first = by_length[inside[-1] if inside else asked[0]][0]
    found: dict[str, object] = {"nearest": first.distance, "nearest_share": first.share, "taught": taught}
    found["learned"] = first.surely
    if first.surely:
        for length in lengths:
            failed = [score for score in by_length[length] if not score.surely]
            if failed:
                # The one recalled least; before all, one that could not be asked.
                worst = min(failed, key=lambda score: -1.0 if score.share is None else score.share)
                found |= {"failed_distance": worst.distance, "failed_share": worst.share}
                break
            found |= {"length": length, "distance": by_length[length][-1].distance}
    return RecallVerdict.model_validate(found)


def judge(evaluation: Evaluation, config: ExperimentConfig) -> Evaluation:
    """An evaluation with the intervals and verdicts its scores come to, whatever was written there."""
    scores = {str(protocol): tuple(map(_told, getattr(evaluation, protocol))) for protocol in LOSS_PROTOCOLS}
    by_loss = usable_by_perplexity([evaluation], config.length)
    by_recall = usable_by_recall(evaluation.recall, config.length, taught=config.recall_share > 0.0)
    verdicts = {"usable_by_perplexity": by_loss, "usable_by_recall": by_recall}
    return evaluation.model_copy(update={**scores, **verdicts})


def _told(score: Score) -> Score:
    return score.model_copy(update={"interval": mean_interval(score.document_bits, score.document_bytes)})


def median_verdict(verdicts: Sequence[RecallVerdict | None]) -> RecallVerdict | None:
    """That of the median seed, the worse of the two in the middle; None where one has none."""
    known = sorted((verdict for verdict in verdicts if verdict is not None), key=lambda verdict: verdict.rank)
    return known[(len(known) - 1) // 2] if known and len(known) == len(verdicts) else None
