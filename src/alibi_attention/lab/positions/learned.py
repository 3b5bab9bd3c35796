"""Absolute positions as a trained table, added to the embeddings."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from alibi_attention.lab.errors import LabError
from alibi_attention.lab.positions.base import DecoderShape, PositionMethod


class Learned(PositionMethod):
    """x' = x + table[t], one trained row of the embedding's width for each position of the training length.

    There is nothing to add past the last row: longer inputs are refused, and evaluation reports their lengths as such.

    Source: Gehring et al., "Convolutional Sequence to Sequence Learning", 2017; GPT-2 and BERT have it.
    """

    name = "learned"
    title = "learned"

    def __init__(self, shape: DecoderShape) -> None:
        super().__init__(shape)
        self.table = nn.Parameter(torch.empty(shape.length, shape.width).normal_(std=0.02))

    @property
    def longest(self) -> int:
        return self.shape.length

    def embed(self, x: Tensor, start: int = 0) -> Tensor:
        end = start + x.shape[1]
        if end > self.longest:
            raise LabError(
                "length",
                expected=f"at most {self.longest}, the positions that were trained",
                got=f"{end} tokens",
                remedy="use shorter inputs, or a method whose positions do not end",
            )
        return x + self.table[start:end]
