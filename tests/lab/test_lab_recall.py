from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from alibi_attention.lab.config import make_config
from alibi_attention.lab.errors import LabError
from alibi_attention.lab.evaluation import HeldOut
from alibi_attention.lab.model import Decoder
from alibi_attention.lab.positions import DecoderShape
from alibi_attention.lab.recall import RecallMixer, evaluate_recall, make_lines, trial_count
from alibi_attention.lab.tokens import ByteEncoder, Encoder, make_encoder

LINE = re.compile(rb"\n@([a-z]{3})=(\d{3})\n")
TEXT = b"plain words without any mark of their own " * 60


def encoders() -> list[Encoder]:
    config = make_config({"tokenizer": "bpe", "vocabulary": 290})
    return [ByteEncoder(), make_encoder(config, [TEXT])]


def held_out(encoder: Encoder) -> HeldOut:
    return HeldOut(encoder.encode(TEXT), np.zeros(1, np.int64), encoder.token_bytes)


@pytest.mark.parametrize("encoder", encoders(), ids=["bytes", "bpe"])
def test_every_key_is_told_and_asked(encoder: Encoder) -> None:
    mixer = RecallMixer(encoder, 0.99, 256)
    plain = np.tile(encoder.encode(TEXT)[:257].astype(np.int64), (20, 1))
    windows = mixer.mix(plain.copy(), np.random.default_rng(0))
    assert windows.shape == plain.shape
    changed = [row for row, before in zip(windows, plain, strict=True) if not np.array_equal(row, before)]
    assert len(changed) >= 18
    distances = []
    for row in changed:
        found = LINE.findall(encoder.decode(row))
        assert len(found) == 8
        keys = [key for key, _ in found]
        assert all(keys.count(key) == 2 for key in keys)
        assert len(set(found)) == len(set(keys)) == 4
        places = [match.start() for match in LINE.finditer(encoder.decode(row))]
        distances += [places[keys.index(key, i + 1)] - places[i] for i, key in enumerate(keys) if key not in keys[:i]]
    assert min(distances) < 40
    assert max(distances) > 120


def test_share_of_windows() -> None:
    encoder = ByteEncoder()
    plain = np.full((2000, 65), 97, dtype=np.int64)
    windows = RecallMixer(encoder, 0.25, 64).mix(plain.copy(), np.random.default_rng(0))
    assert (windows != plain).any(-1).mean() == pytest.approx(0.25, abs=0.03)
    generator = np.random.default_rng(0)
    assert RecallMixer(encoder, 0.0, 4).mix(plain, generator) is plain
    assert generator.integers(1000) == np.random.default_rng(0).integers(1000)


def test_short_sequences_are_refused() -> None:
    with pytest.raises(LabError) as error:
        RecallMixer(ByteEncoder(), 0.1, 19)
    assert str(error.value) == (
        "recall_share: expected sequences of at least 20 tokens to ask and tell in, got 19; "
        "train longer sequences, or leave --recall-share out"
    )


def test_values_are_spread_and_keys_differ() -> None:
    lines = make_lines(ByteEncoder(), np.random.default_rng(0), 2000)
    keys = {bytes(line.prompt.tolist()) for line in lines}
    values = [int(bytes(line.answer.tolist())) for line in lines]
    assert len(keys) == 2000
    assert min(values) < 10
    assert max(values) > 990


class Oracle(Decoder):
    """Looks the value up in its input, up to a distance; in place of a trained decoder."""

    reach = 10**9
    seen: list[Tensor]

    def hidden(self, tokens: Tensor) -> Tensor:
        """Which window and which place, for `logits` to look there."""
        self.seen.append(tokens)
        rows, places = torch.meshgrid(*(torch.arange(n) for n in tokens.shape), indexing="ij")
        return torch.stack((rows, places), dim=-1)

    def logits(self, hidden: Tensor) -> Tensor:
        window, end = int(hidden[0, 0]), int(hidden[0, 1]) + 1
        text = bytes(self.seen[-1][window].tolist())
        prompt = text[end - 5 : end]
        assert re.fullmatch(rb"@[a-z]{3}=", prompt)
        told = text.index(prompt) + 5
        answer = list(text[told : told + 3]) if end - told <= self.reach else [0, 0, 0]
        return torch.nn.functional.one_hot(torch.tensor(answer), 256).double()


def oracle(reach: int = 10**9) -> Any:
    found = Oracle(DecoderShape(64, 1, 2, 8), "nope", seed=0)
    found.seen, found.reach = [], reach
    return found


def test_each_distance_is_asked_at_that_distance() -> None:
    scores = evaluate_recall(
        oracle(), held_out(ByteEncoder()), ByteEncoder(), (64, 100, 256, 1024), budget=1024, most=64
    )
    cells = {(score.length, score.distance): score for score in scores}
    assert list(cells) == [
        (64, 32), (100, 32), (256, 32), (256, 64), (256, 128),
        (1024, 32), (1024, 64), (1024, 128), (1024, 256), (1024, 512),
    ]  # fmt: skip
    assert all(score.recalled == score.asked for score in scores)
    assert [cells[n, 32].asked for n in (64, 100, 256, 1024)] == [16, 10, 8, 8]
    assert cells[64, 32].interval is not None


@pytest.mark.parametrize("reach", [31, 32, 128, 200])
def test_recall_ends_where_the_reach_does(reach: int) -> None:
    scores = evaluate_recall(oracle(reach), held_out(ByteEncoder()), ByteEncoder(), (1024,), budget=1, most=64)
    assert [score.recalled for score in scores] == [8 if score.distance <= reach else 0 for score in scores]


def test_untrained_decoder_recalls_nothing_with_any_tokens() -> None:
    for encoder in encoders():
        decoder = Decoder(DecoderShape(64, 1, 2, 8), "alibi", seed=0, vocabulary=encoder.vocabulary)
        scores = evaluate_recall(decoder, held_out(encoder), encoder, (64, 256), budget=512, most=64, variant="ntk")
        assert scores
        assert all(score.recalled == 0 for score in scores)


def test_positions_that_end_are_reported() -> None:
    decoder = Decoder(DecoderShape(64, 1, 2, 8), "learned", seed=0)
    ticks: list[int] = []
    scores = evaluate_recall(
        decoder, held_out(ByteEncoder()), ByteEncoder(), (64, 128), budget=512, most=64, tick=ticks.append
    )
    assert [score.note for score in scores] == [None, "its positions end at 64", "its positions end at 64"]
    assert scores[1].share is None
    assert sum(ticks) == 64 * trial_count(64, 512, 64) + 128 * trial_count(128, 512, 64)


def test_the_same_seed_asks_the_same() -> None:
    decoder = Decoder(DecoderShape(64, 1, 2, 8), "nope", seed=0)
    arguments = (held_out(ByteEncoder()), ByteEncoder(), (64, 128))
    runs = []
    for seed in (0, 0, 1):
        tokens: list[Tensor] = []
        original = decoder.hidden
        decoder.hidden = lambda t, kept=tokens, f=original: (kept.append(t), f(t))[1]  # type: ignore[method-assign]
        evaluate_recall(decoder, *arguments, budget=256, most=64, seed=seed)
        decoder.hidden = original  # type: ignore[method-assign]
        runs.append(torch.cat([t.flatten() for t in tokens]))
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])
