"""Input and output vocabulary of hundreds of thousands of words, rare ones in fewer dimensions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alibi_attention.lab.errors import LabError

FACTOR = 4
"""How many times narrower each band is than the one before it."""


class AdaptiveEmbedding(nn.Module):
    """Adaptive input representations with a tied adaptive softmax.

    Words are ranked by frequency and cut into bands at ``cutoffs``. Band b has vectors of width / 4^b and a projection
    from there to the full width. Output shares both: the first band's words and one entry for each later band are
    predicted together, ::

        ln p(w) = ln p(w | head)                            for a word of the first band
        ln p(w) = ln p(band b | head) + ln p(w | band b)    for the others

    Args:
        vocabulary: how many words.
        width: of the decoder; divisible by 4 for each band but the first.
        cutoffs: ascending ranks, below ``vocabulary``.

    Sources: Grave et al., "Efficient softmax approximation for GPUs", 2017; Baevski and Auli, "Adaptive Input
    Representations for Neural Language Modeling", 2019.
    """

    def __init__(self, vocabulary: int, width: int, cutoffs: Sequence[int]) -> None:
        super().__init__()
        if cutoffs[-1] >= vocabulary:
            got = ",".join(map(str, cutoffs))
            remedy = "lower the last one, or leave cutoffs out for a small vocabulary"
            raise LabError("cutoffs", expected=f"ranks below the vocabulary of {vocabulary}", got=got, remedy=remedy)
        if width % FACTOR ** len(cutoffs):
            expected = f"a multiple of {FACTOR ** len(cutoffs)}, so that {len(cutoffs)} cutoffs leave whole widths"
            raise LabError("width", expected=expected, got=f"{width}", remedy="change it, or use fewer cutoffs")
        self.num_embeddings = vocabulary
        self.edges = (0, *cutoffs, vocabulary)
        widths = [width // FACTOR**band for band in range(len(cutoffs) + 1)]
        sizes = [b - a for a, b in pairwise(self.edges)]
        self.bands = nn.ParameterList(
            torch.empty(size, narrow).normal_(std=1 / math.sqrt(narrow))
            for size, narrow in zip(sizes, widths, strict=True)
        )
        self.projections = nn.ParameterList(
            torch.empty(width, narrow).normal_(std=1 / math.sqrt(width)) for narrow in widths
        )
        self.band_entries = nn.Parameter(torch.empty(len(cutoffs), width).normal_(std=1 / math.sqrt(width)))

    def forward(self, tokens: Tensor) -> Tensor:
        """(...) integers to (..., width)."""
        out: Tensor = self.projections[0].new_zeros(*tokens.shape, self.projections[0].shape[0])
        for band, (first, end) in enumerate(pairwise(self.edges)):
            inside = (tokens >= first) & (tokens < end)
            vectors = F.linear(F.embedding(tokens[inside] - first, self.bands[band]), self.projections[band])
            out = out.index_put((inside,), vectors.to(out.dtype))
        return out

    def nats(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """-ln p of each target: (rows, width) and (rows,) to (rows,)."""
        head = self._head(hidden)
        place = targets.clone()
        for band in range(1, len(self.bands)):
            place[targets >= self.edges[band]] = self.edges[1] + band - 1
        nats = -head.gather(-1, place.unsqueeze(-1)).squeeze(-1)
        for band, (first, end) in enumerate(pairwise(self.edges)):
            inside = (targets >= first) & (targets < end)
            if band and bool(inside.any()):
                more = F.cross_entropy(self._scores(hidden[inside], band), targets[inside] - first, reduction="none")
                nats = nats.index_add(0, inside.nonzero().squeeze(-1), more)
        return nats

    def log_probabilities(self, hidden: Tensor) -> Tensor:
        """(..., width) to ln p of every word, (..., vocabulary)."""
        head = self._head(hidden)
        first = self.edges[1]
        parts = [head[..., :first]]
        for band in range(1, len(self.bands)):
            inside = self._scores(hidden, band).log_softmax(-1)
            parts.append(head[..., first + band - 1 : first + band] + inside)
        return torch.cat(parts, dim=-1)

    def _head(self, hidden: Tensor) -> Tensor:
        entries = F.linear(hidden, self.band_entries).float()
        return torch.cat((self._scores(hidden, 0), entries), dim=-1).log_softmax(-1)

    def _scores(self, hidden: Tensor, band: int) -> Tensor:
        return F.linear(F.linear(hidden, self.projections[band].T), self.bands[band]).float()
