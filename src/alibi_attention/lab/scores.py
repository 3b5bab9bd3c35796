"""What evaluation finds, as records that are kept, and what they say of the usable length."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

from alibi_attention.lab.intervals import wilson_interval

RECALLED = 0.5
"""Values count as recalled where surely no less than this share of them is: by the lower end of the 95% interval."""

LossProtocol = Literal["windows", "sliding", "targets"]


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
        interval: of bits_per_byte, 95%, over documents (`mean_interval`).
        perplexity: 2 to the mean of -log2 p(token), per token.
        scored_bytes, scored_tokens: what the means are over.
        document_bits, document_bytes: the same by document, those with scored tokens, in the order of the corpus.
        by_position: the loss in log-spaced bins of position, for non-overlapping windows.
        whole_context: share of the windows that lie within the document of their last token, for fixed targets and the
            sliding window.
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
    whole_context: float | None = None
    note: str | None = None


class RecallScore(BaseModel):
    """How often a value is recalled when asked for ``distance`` tokens after it was told.

    Attributes:
        length: of the window, in tokens.
        distance: from the value told to the value asked for, in tokens.
        asked, recalled: times; recalled means that the value is the likeliest token.
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

    @property
    def surely(self) -> bool:
        """Whether `RECALLED` holds."""
        return self.asked > 0 and wilson_interval(self.recalled, self.asked)[0] >= RECALLED


class LossVerdict(BaseModel):
    """Usable length by loss.

    Attributes:
        protocol: whose scores were judged.
        length: the longest usable one; None of a model that learned nothing of order, whose loss tells nothing.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    protocol: LossProtocol
    length: int | None

    @property
    def words(self) -> str:
        return "not learned" if self.length is None else f"{self.length:,}"


class RecallVerdict(BaseModel):
    """Usable length by recall.

    Attributes:
        nearest, nearest_share: the shortest distance tested inside the trained length, and the share recalled there.
        learned: whether that counts as recalling. A model that does not recall what is near says nothing of distance.
        length, distance: the longest usable length, and the farthest distance tested in it; None where there is none.
        failed_distance, failed_share: the distance recalled least in the first length that is not usable, and the share
            recalled there; None where all are usable, the share also where positions end earlier.
        taught: whether there were such values in training at all.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    nearest: int
    nearest_share: float
    learned: bool
    length: int | None = None
    distance: int | None = None
    failed_distance: int | None = None
    failed_share: float | None = None
    taught: bool = True

    @property
    def words(self) -> str:
        if not self.learned:
            return f"not {'learned' if self.taught else 'taught'}: {self.nearest_share:.0%} at {self.nearest:,}"
        if self.length is None:
            share = "" if self.failed_share is None else f": {self.failed_share:.0%}"
            surely = "surely " if (self.failed_share or 0.0) >= RECALLED else ""
            return f"not {surely}recalled from {self.failed_distance:,}{share}"
        return f"{self.length:,} ({self.distance:,} away)"

    @property
    def rank(self) -> tuple[bool, int, float]:
        """Orders verdicts from worst to best."""
        return self.learned, self.length or 0, self.nearest_share


class Evaluation(BaseModel):
    """One way of using one trained model.

    Attributes:
        name, title: ``"rope"`` or ``"rope:yarn"``, and as in tables.
        objective: what it was trained for and is scored by, of `lab.config.Objective`.
        unigram_bits: bits per byte of the held-out text to whoever knows its tokens' frequencies alone; None of before
            it was kept.
        windows, sliding, targets, recall: by protocol; empty for those not asked for.
        usable_by_perplexity, usable_by_recall: longest usable length, by the rules in `verdicts`; None where it was not
            measured.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    title: str
    objective: Literal["next", "masked"] = "next"
    unigram_bits: float | None = None
    windows: tuple[Score, ...] = ()
    sliding: tuple[Score, ...] = ()
    targets: tuple[Score, ...] = ()
    recall: tuple[RecallScore, ...] = ()
    usable_by_perplexity: LossVerdict | None = None
    usable_by_recall: RecallVerdict | None = None

    @property
    def unit(self) -> str:
        """What its scores count."""
        return "bits per masked byte" if self.objective == "masked" else "bits per byte"

    @property
    def scores(self) -> tuple[Score, ...]:
        """Of the first protocol that was evaluated, windows before sliding before targets."""
        return self.windows or self.sliding or self.targets
