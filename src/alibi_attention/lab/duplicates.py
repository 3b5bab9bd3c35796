"""Which documents are largely the same text, so that a split can keep them together."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from alibi_attention.lab.progress import Progress

WORDS = 5
"""Words in a shingle."""

THRESHOLD = 0.25
"""Two documents belong together if this share of the shorter one's shingles is in the other.

A quarter brings Python's code pages together, whose tables differ in their upper halves.
"""

CHARACTERS = 15
"""Characters in a shingle of text that has no spaces between its words, white space not counted."""

# Text with more bytes than this for each piece between spaces is taken for one without spaces between words.
_UNSPACED = 64

# Shingles of fewer than these in common say little: a licence line, an empty module. Of shingles that were sampled, as
# many stand for more of them; yet fewer than the second number may be chance.
_LEAST_COMMON = 8
_LEAST_SAMPLED = 4

# Text up to this size is looked at whole; of more, an even sample of shingles.
_WHOLE = 32 << 20

# Of a document so many shingles are kept, if it has them, however small the sample.
_LEAST_KEPT = 32

# A shingle in more documents than this is boilerplate: its documents are compared with their neighbours only.
_COMMONPLACE = 64

_ODD = np.uint64(0x9E3779B97F4A7C15)


def near_duplicates(texts: Sequence[bytes], progress: Progress | None = None) -> list[int]:
    """A group number for each text; texts linked by near-duplicates, directly or through others, share one.

    ``progress`` is told of each text; silent by default.

    Shingles are runs of five words, hashed; of text without spaces between words, runs of fifteen characters. For two
    texts with shingle sets A and B the measure is containment, |A and B| / min(|A|, |B|), so that a part of a longer
    text is found, too. Fewer than eight in common never suffice: texts of less than twelve words have not that many.

    Above 64 MiB of text in all, hashes are sampled: of a text those are kept that a power of two divides, the same one
    for all but short texts, which keep at least 32 if they have them. Two texts are compared by the hashes that the
    larger of their powers divides, so that the measure stays unbiased and near-copies of any length find each other. A
    short text inside a far longer one is found only if at least four of its hashes are among those that this one keeps.

    Source: Broder, "On the resemblance and containment of documents", 1997.
    """
    # A power of two, so that what a larger sample keeps a smaller one has as well.
    coarsest = (1 + sum(map(len, texts)) // _WHOLE).bit_length() - 1
    sketches, powers = [], []
    progress = progress or Progress()
    for text in progress.through(texts, "Corpus: comparing documents", total=len(texts), unit="documents"):
        sketch, power = _sketch(text, coarsest)
        sketches.append(sketch)
        powers.append(power)
    # By power, how many of a text's hashes a coarser sample has.
    sizes = [[len(_divisible(sketch, power)) for power in range(coarsest + 1)] for sketch in sketches]
    parent = list(range(len(texts)))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    for (first, second), common in _common(sketches).items():
        power = max(powers[first], powers[second])
        least = max(_LEAST_COMMON >> power, _LEAST_SAMPLED)
        if common >= least and common >= THRESHOLD * min(sizes[first][power], sizes[second][power]):
            low, high = sorted((root(first), root(second)))
            parent[high] = low
    return [root(i) for i in range(len(texts))]


def _sketch(text: bytes, coarsest: int) -> tuple[NDArray[np.uint64], int]:
    """Sorted distinct hashes of a text's shingles, those divisible by a power of two, and which power."""
    hashes = _shingles(text)
    spare = len(hashes) // _LEAST_KEPT
    power = min(coarsest, max(0, spare.bit_length() - 1))
    return _divisible(hashes, power), power


def _divisible(hashes: NDArray[np.uint64], power: int) -> NDArray[np.uint64]:
    """Those whose last ``power`` bits are zero."""
    kept: NDArray[np.uint64] = hashes[hashes & np.uint64((1 << power) - 1) == 0] if power else hashes
    return kept


def _shingles(text: bytes) -> NDArray[np.uint64]:
    """Sorted distinct hashes of the runs of `WORDS` words, or of `CHARACTERS` characters."""
    pieces = text.split()
    if len(text) > _UNSPACED * len(pieces):
        joined = b"".join(pieces).decode("utf-8", "replace").encode("utf-32-le")
        units, width = np.frombuffer(joined, dtype="<u4").astype(np.uint64), CHARACTERS
    else:
        units, width = np.array([zlib.crc32(piece) for piece in pieces], dtype=np.uint64), WORDS
    if len(units) < width:
        return np.empty(0, dtype=np.uint64)
    runs = np.zeros(len(units) - width + 1, dtype=np.uint64)
    for offset in range(width):
        # Wraps around, as a polynomial hash does; the shift mixes high bits back down.
        runs = (runs + units[offset : offset + len(runs)]) * _ODD
        runs ^= runs >> np.uint64(29)
    return np.unique(runs)


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
