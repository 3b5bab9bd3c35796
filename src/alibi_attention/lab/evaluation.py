"""Bits per byte over non-overlapping windows, the same bytes at every length."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from alibi_attention.lab.model import Decoder


class Score(BaseModel):
    """How well a decoder predicts at one length.

    Attributes:
        length: of the windows, in bytes.
        bits_per_byte: mean of -log2 p(next byte).
        scored_bytes: how many predictions that is the mean of.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    length: int
    bits_per_byte: float
    scored_bytes: int


def segment_starts(stream_length: int, segment_length: int, budget: int) -> list[int]:
    """Where the scored segments begin: disjoint, evenly spread, about ``budget`` bytes in all and at least one.

    A segment of n bytes is n predictions and reads n + 1 bytes, the last of which may begin the next segment.
    """
    fitting = (stream_length - 1) // segment_length
    count = max(1, min(fitting, round(budget / segment_length)))
    last = stream_length - 1 - segment_length
    return [last * i // max(1, count - 1) for i in range(count)]


@torch.no_grad()
def evaluate(
    decoder: Decoder,
    stream: NDArray[np.uint8],
    lengths: Sequence[int],
    budget: int,
    *,
    tick: Callable[[int], None] | None = None,
) -> list[Score]:
    """Score a decoder at each length, by the protocol of the paper's main table.

    The stream's segments are as long as the longest length. For a length l each is cut into windows of l bytes (the
    last is shorter where l does not divide it), every window is read on its own, and every byte after its first context
    byte counts once. All lengths thus predict the same bytes and differ only in how much comes before them.

    Args:
        decoder: on the device to use.
        stream: (bytes,) of held-out text, at least one byte longer than the longest length.
        lengths: ascending.
        budget: about how many bytes to score at each length.
        tick: called with the number of bytes scored after each segment; may raise to stop.

    Returns:
        One score per length, in their order.
    """
    device = next(decoder.parameters()).device
    segment = lengths[-1]
    starts = segment_starts(len(stream), segment, budget)
    scores = []
    for length in lengths:
        nats = 0.0
        for start in starts:
            tokens = torch.from_numpy(stream[start : start + segment + 1].astype(np.int64)).to(device)
            nats += _segment_nats(decoder, tokens, length)
            if tick is not None:
                tick(segment)
        scored = len(starts) * segment
        scores.append(Score(length=length, bits_per_byte=nats / math.log(2.0) / scored, scored_bytes=scored))
    return scores


def _segment_nats(decoder: Decoder, tokens: torch.Tensor, length: int) -> float:
    """Sum of -ln p over the predictions of a segment (segment + 1,), in windows of ``length``."""
    inputs, targets = tokens[:-1], tokens[1:]
    whole = len(inputs) // length * length
    parts = [(inputs[:whole].view(-1, length), targets[:whole].view(-1, length))]
    if whole < len(inputs):
        parts.append((inputs[whole:].view(1, -1), targets[whole:].view(1, -1)))
    return sum(float(decoder.nats(*part).double().sum()) for part in parts)
