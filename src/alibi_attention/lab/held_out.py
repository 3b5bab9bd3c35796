"""Held-out text as tokens, with what is needed to count it."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray


class HeldOut(NamedTuple):
    """Held-out text and what is needed to count it.

    Attributes:
        tokens: (n,) of any unsigned type.
        document_starts: (documents,) where each begins, ascending, the first at 0.
        token_bytes: (vocabulary,) bytes a token stands for.
        sizes: (n,) bytes each of ``tokens`` stands for, where a token does not always stand for the same; None
            otherwise.
    """

    tokens: NDArray[Any]
    document_starts: NDArray[np.int64]
    token_bytes: NDArray[np.int64]
    sizes: NDArray[Any] | None = None

    def bytes_at(self, targets: NDArray[np.int64]) -> NDArray[np.int64]:
        """Bytes of text that the tokens at these places stand for."""
        if self.sizes is not None:
            return self.sizes[targets].astype(np.int64)
        found: NDArray[np.int64] = self.token_bytes[self.tokens[targets]]
        return found

    def unigram_bits(self) -> float:
        """Bits per byte to whoever knows how often each token comes, and nothing of what goes before it."""
        counts = np.bincount(self.tokens)
        frequencies = counts[counts > 0] / len(self.tokens)
        bytes_ = (self.token_bytes[self.tokens] if self.sizes is None else self.sizes).sum(dtype=np.int64)
        return float(-(frequencies * np.log2(frequencies)).sum() * len(self.tokens) / bytes_)

    def documents_at(self, places: NDArray[np.int64]) -> NDArray[np.int64]:
        """The number of the document each place is in."""
        found: NDArray[np.int64] = np.searchsorted(self.document_starts, places, side="right") - 1
        return found


def segment_starts(stream_length: int, segment_length: int, budget: int) -> list[int]:
    """Where the scored segments begin: disjoint, evenly spread, about ``budget`` tokens in all and at least one.

    A segment of n tokens is n predictions and reads n + 1 tokens, the last of which may begin the next segment.
    """
    fitting = (stream_length - 1) // segment_length
    count = max(1, min(fitting, round(budget / segment_length)))
    last = stream_length - 1 - segment_length
    return [last * i // max(1, count - 1) for i in range(count)]
