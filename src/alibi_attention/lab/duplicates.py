"""Which documents are largely the same text, so that a split can keep them together."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

WORDS = 5
"""Words in a shingle."""

THRESHOLD = 0.25
"""Two documents belong together if this share of the shorter one's shingles is in the other.

A quarter brings Python's code pages together, whose tables differ in their upper halves.
"""

# Shingles of fewer than these in common say little: a licence line, an empty module.
_LEAST_COMMON = 8

# Text up to this size is looked at whole; of more, an even sample of shingles.
_WHOLE = 32 << 20

# A shingle in more documents than this is boilerplate: its documents are compared with their neighbours only.
_COMMONPLACE = 64

_ODD = np.uint64(0x9E3779B97F4A7C15)


def near_duplicates(texts: Sequence[bytes]) -> list[int]:
    """A group number for each text; texts linked by near-duplicates, directly or through others, share one.

    Shingles are runs of five words, hashed. For two texts with shingle sets A and B the measure is containment,
    |A and B| / min(|A|, |B|), so that a part of a longer text is found, too. Above 32 MiB of text in all, only hashes
    divisible by a small number are kept, the same ones everywhere, which leaves the measure unbiased.

    Source: Broder, "On the resemblance and containment of documents", 1997.
    """
    sample = np.uint64(1 + sum(map(len, texts)) // _WHOLE)
    sketches = [_shingles(text, sample) for text in texts]
    sizes = [len(sketch) for sketch in sketches]
    parent = list(range(len(texts)))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    for (first, second), common in _common(sketches).items():
        if common >= _LEAST_COMMON and common >= THRESHOLD * min(sizes[first], sizes[second]):
            low, high = sorted((root(first), root(second)))
            parent[high] = low
    return [root(i) for i in range(len(texts))]


def _shingles(text: bytes, sample: np.uint64) -> NDArray[np.uint64]:
    """Sorted distinct hashes of the runs of `WORDS` words, those divisible by ``sample``."""
    words = np.array([zlib.crc32(word) for word in text.split()], dtype=np.uint64)
    if len(words) < WORDS:
        return np.empty(0, dtype=np.uint64)
    runs = np.zeros(len(words) - WORDS + 1, dtype=np.uint64)
    for offset in range(WORDS):
        # Wraps around, as a polynomial hash does; the shift mixes high bits back down.
        runs = (runs + words[offset : offset + len(runs)]) * _ODD
        runs ^= runs >> np.uint64(29)
    runs = np.unique(runs)
    kept: NDArray[np.uint64] = runs[runs % sample == 0]
    return kept


def _common(sketches: Sequence[NDArray[np.uint64]]) -> dict[tuple[int, int], int]:
    """How many hashes each pair of documents shares, pairs that share none left out."""
    hashes = np.concatenate([np.empty(0, np.uint64), *sketches])
    owners = np.repeat(np.arange(len(sketches)), [len(sketch) for sketch in sketches])
    order = np.lexsort((owners, hashes))
    hashes, owners = hashes[order], owners[order]
    starts = np.flatnonzero(np.r_[True, hashes[1:] != hashes[:-1]]) if len(hashes) else np.empty(0, np.int64)
    ends = np.r_[starts[1:], len(hashes)]
    shared = np.flatnonzero(ends - starts > 1)
    # Shingles of the same documents are counted together: a family of files shares thousands.
    families: dict[bytes, int] = {}
    for i in shared.tolist():
        key = owners[starts[i] : ends[i]].tobytes()
        families[key] = families.get(key, 0) + 1
    counts: dict[tuple[int, int], int] = {}
    for key, times in families.items():
        members = np.frombuffer(key, dtype=owners.dtype).tolist()
        reach = len(members) if len(members) <= _COMMONPLACE else 1
        for i, first in enumerate(members):
            for second in members[i + 1 : i + 1 + reach]:
                counts[first, second] = counts.get((first, second), 0) + times
    return counts
