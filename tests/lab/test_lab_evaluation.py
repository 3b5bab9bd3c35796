from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch

from alibi_attention.lab.evaluation import evaluate, segment_starts
from alibi_attention.lab.model import Decoder
from alibi_attention.lab.positions import DecoderShape

SHAPE = DecoderShape(length=8, layers=1, heads=2, width=16)


@pytest.mark.parametrize(
    ("stream", "segment", "budget"), [(1000, 64, 640), (65, 64, 640), (500, 64, 10), (130, 64, 999)]
)
def test_segments_are_disjoint_and_spread(stream: int, segment: int, budget: int) -> None:
    starts = segment_starts(stream, segment, budget)
    assert len(starts) == max(1, min(round(budget / segment), (stream - 1) // segment))
    assert all(b - a >= segment for a, b in pairwise(starts))
    assert starts[0] == 0
    assert starts[-1] + segment + 1 <= stream
    if len(starts) > 1:
        assert starts[-1] + segment + 1 == stream


def test_agrees_with_one_prediction_at_a_time() -> None:
    decoder = Decoder(SHAPE, "rope", seed=0)
    stream = np.random.default_rng(0).integers(0, 256, size=120, dtype=np.uint8)
    # 24 is no divisor of 40: the last window of a segment is then 16 long.
    lengths = (8, 24, 40)
    scores = evaluate(decoder, stream, lengths, budget=80)
    starts = segment_starts(len(stream), 40, 80)
    assert len(starts) == 2
    for length, score in zip(lengths, scores, strict=True):
        bits = []
        for start in starts:
            for position in range(start, start + 40):
                first = start + (position - start) // length * length
                context = torch.from_numpy(stream[first : position + 1].astype(np.int64))
                with torch.no_grad():
                    logits = decoder(context[None])[0, -1].double()
                bits.append(-logits.log_softmax(-1)[int(stream[position + 1])].item() / math.log(2))
        assert score.length == length
        assert score.scored_bytes == len(bits) == 80
        assert score.bits_per_byte == pytest.approx(np.mean(bits), abs=1e-5)


def test_ticks_once_per_segment_and_may_stop() -> None:
    decoder = Decoder(SHAPE, "rope", seed=0)
    stream = np.zeros(200, dtype=np.uint8)
    ticks: list[int] = []
    evaluate(decoder, stream, (8, 16), 48, tick=ticks.append)
    assert ticks == [16] * 6

    def stop(_: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate(decoder, stream, (8, 16), 48, tick=stop)


def test_uniform_predictions_cost_eight_bits() -> None:
    decoder = Decoder(SHAPE, "alibi", seed=0)
    torch.nn.init.zeros_(decoder.embedding.weight)
    stream = np.random.default_rng(1).integers(0, 256, size=100, dtype=np.uint8)
    assert [score.bits_per_byte for score in evaluate(decoder, stream, (8, 32), 64)] == pytest.approx([8.0, 8.0])
