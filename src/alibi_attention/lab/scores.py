"""What evaluation finds, as records that are kept, and what they say of the usable length."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import BaseModel, ConfigDict

SLACK = 0.01
"""A length is usable by perplexity while bits per byte are at most this share above those at the trained length."""

RECALLED = 0.5
"""A length is usable by recall while at least this share of the farthest values asked for is recalled."""


class PositionBin(BaseModel):
    """Loss at positions [first, end) of a window, counted from its first prediction."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    first: int
    end: int
    bits_per_byte: float


class Score(BaseModel):
    """How well a decoder predicts at one length.

    Attributes:
        length: of the windows, in tokens.
        bits_per_byte: sum of -log2 p(token) over the bytes those tokens stand for; None where it cannot be had.
        interval: of bits_per_byte, 95%, over documents (`bootstrap_interval`).
        perplexity: 2 to the mean of -log2 p(token), per token.
        scored_bytes, scored_tokens: what the means are over.
        document_bits, document_bytes: the same by document, those with scored tokens, in the order of the corpus.
        by_position: the loss in log-spaced bins of position, for non-overlapping windows.
        note: why there is no score.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    length: int
    bits_per_byte: float | None
    scored_bytes: int
    scored_tokens: int = 0
    interval: tuple[float, float] | None = None
    perplexity: float | None = None
    document_bits: tuple[float, ...] = ()
    document_bytes: tuple[int, ...] = ()
    by_position: tuple[PositionBin, ...] = ()
    note: str | None = None


class RecallScore(BaseModel):
    """How often a value is recalled when asked for ``distance`` tokens after it was told.

    Attributes:
        length: of the window, in tokens.
        distance: from the value told to the value asked for, in tokens.
        asked, recalled: times; recalled means that every token of the value is the likeliest one.
        interval: of recalled / asked, 95% (`wilson_interval`).
        note: why it was not asked.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    length: int
    distance: int
    asked: int
    recalled: int
    interval: tuple[float, float] | None = None
    note: str | None = None

    @property
    def share(self) -> float | None:
        return self.recalled / self.asked if self.asked else None


class Evaluation(BaseModel):
    """One way of using one trained model.

    Attributes:
        name, title: ``"rope"`` or ``"rope:yarn"``, and as in tables.
        objective: what it was trained for and is scored by, of `lab.config.Objective`.
        windows, sliding, targets, recall: by protocol; empty for those not asked for.
        usable_by_perplexity, usable_by_recall: longest usable length by the rules of `usable_by_perplexity` and
            `usable_by_recall`; None where there is none or it was not measured.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    title: str
    objective: Literal["next", "masked"] = "next"
    windows: tuple[Score, ...] = ()
    sliding: tuple[Score, ...] = ()
    targets: tuple[Score, ...] = ()
    recall: tuple[RecallScore, ...] = ()
    usable_by_perplexity: int | None = None
    usable_by_recall: int | None = None

    @property
    def unit(self) -> str:
        """What its scores count."""
        return "bits per masked byte" if self.objective == "masked" else "bits per byte"

    @property
    def scores(self) -> tuple[Score, ...]:
        """Of the first protocol that was evaluated, windows before sliding before targets."""
        return self.windows or self.sliding or self.targets


def usable_by_perplexity(scores: Sequence[Score], train_length: int) -> int | None:
    """The longest evaluated length to which the loss stays what it is at the trained length.

    That is: at this and at every shorter evaluated length from the trained one on, bits per byte (non-overlapping
    windows) exceed those at the trained length by at most 1%. None if the trained length was not evaluated.
    """
    longer = [score for score in scores if score.length >= train_length]
    if not longer or longer[0].length != train_length or longer[0].bits_per_byte is None:
        return None
    allowed = (1 + SLACK) * longer[0].bits_per_byte
    usable = None
    for score in longer:
        if score.bits_per_byte is None or not score.bits_per_byte <= allowed:
            break
        usable = score.length
    return usable


def usable_by_recall(scores: Sequence[RecallScore]) -> int | None:
    """The longest evaluated length within which values are recalled from far away.

    That is: in windows of this and of every shorter evaluated length, at least half of the values told at the farthest
    distance tested in that window are recalled. None if this fails at the shortest length already.
    """
    usable = None
    for length in sorted({score.length for score in scores}):
        farthest = max((score for score in scores if score.length == length), key=lambda score: score.distance)
        if farthest.share is None or farthest.share < RECALLED:
            break
        usable = length
    return usable
