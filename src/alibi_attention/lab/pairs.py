"""How much one set of scores differs from another over the same text, document by document."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from alibi_attention.lab.intervals import mean_interval
from alibi_attention.lab.scores import Score


@dataclass(frozen=True)
class Difference:
    """Of bits per byte.

    Attributes:
        mean: over seeds.
        interval: 95%, over documents and seeds (`mean_interval`); None for a single document.
        by_seed: one value a seed.
    """

    mean: float
    interval: tuple[float, float] | None
    by_seed: tuple[float, ...]


def paired_difference(scores: Sequence[Score], reference: Sequence[Score]) -> Difference | None:
    """``scores`` less ``reference``, one of each a seed, paired by document and seed.

    Once models predict well this is far tighter than what two intervals would say, which is mostly that documents
    differ. None unless all scored the same bytes of the same documents.
    """
    sizes = reference[0].document_bytes
    if not sizes or any(score.document_bytes != sizes for score in [*scores, *reference]):
        return None
    moved = [
        [a - b for a, b in zip(score.document_bits, other.document_bits, strict=True)]
        for score, other in zip(scores, reference, strict=True)
    ]
    by_seed = tuple(sum(differences) / sum(sizes) for differences in moved)
    return Difference(sum(by_seed) / len(by_seed), mean_interval(moved, sizes), by_seed)
