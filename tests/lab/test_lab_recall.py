from __future__ import annotations

import itertools
import re
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from alibi_attention.lab.config import make_config
from alibi_attention.lab.errors import LabError
from alibi_attention.lab.held_out import HeldOut
from alibi_attention.lab.model import Decoder
from alibi_attention.lab.passages import RecallMixer, alphabet_of, log_uniform, place_mentions
from alibi_attention.lab.positions import DecoderShape
from alibi_attention.lab.recall import askable_distances, evaluate_recall, trial_count
from alibi_attention.lab.tokens import ByteEncoder, Encoder, make_encoder

LINE = re.compile(rb"\n@([A-Z])([a-z])\n")
TEXT = b"plain words without any mark of their own " * 60
# Forty words apart from the letters' stand-ins, so that the stand-ins are none of the commonest.
WORDS = b" ".join(b"w%d" % (i * i % 97) for i in range(3000))


def encoders() -> list[Encoder]:
    config = make_config({"tokenizer": "bpe", "vocabulary": 290})
    return [ByteEncoder(), make_encoder(config, [TEXT])]


def words() -> Encoder:
    return make_encoder(make_config({"tokenizer": "words"}), [b"\n".join([WORDS, b"@", b"a b c d"])])


def held_out(encoder: Encoder, text: bytes = TEXT) -> HeldOut:
    return HeldOut(encoder.encode(text), np.zeros(1, np.int64), encoder.token_bytes)


# Passages in training text


@pytest.mark.parametrize("encoder", encoders(), ids=["bytes", "bpe"])
def test_every_key_is_told_once_and_asked_at_every_distance_alike(encoder: Encoder) -> None:
    mixer = RecallMixer(encoder, 0.99, 256)
    plain = np.tile(encoder.encode(TEXT)[:257].astype(np.int64), (1500, 1))
    windows = mixer.mix(plain.copy(), np.random.default_rng(0))
    assert windows.shape == plain.shape
    changed = [row for row, before in zip(windows, plain, strict=True) if not np.array_equal(row, before)]
    assert len(changed) >= 1450
    alphabet = alphabet_of(encoder)
    keys_of, asked, distances, shares = [], [], [], []
    for row in changed:
        places = np.flatnonzero(np.isin(row, alphabet.keys))
        lines = {tuple(row[place - len(alphabet.mark) : place + 2].tolist()) for place in places}
        counts = Counter(row[places].tolist())
        assert min(counts.values()) >= 2
        # One value for each key: every mention after the first can be answered.
        assert len(lines) == len(counts)
        assert all(line[-1] in alphabet.values and (*line[:-2],) == tuple(alphabet.mark) for line in lines)
        keys_of.append(len(counts))
        asked.append(len(places) - len(counts))
        shares.append(alphabet.width * len(places) / 257)
        for key in counts:
            distances += np.diff(places[row[places] == key]).tolist()
    assert (min(keys_of), min(asked)) == (2, 2)
    assert max(keys_of) >= 16
    assert max(asked) >= 23
    # The farthest tested at this length, told at the very beginning and asked at the very end, is trained.
    assert (min(distances), max(distances)) == (5, 253)
    doublings = [(5, 10), (10, 20), (20, 40), (40, 80), (80, 160), (160, 254)]
    for low, end in doublings:
        expected = np.log(end / low) / np.log(254 / 5)
        assert np.mean([low <= d < end for d in distances]) == pytest.approx(expected, rel=0.08)
    assert min(shares) < 0.1
    assert max(shares) > 0.65


def test_values_follow_their_keys_in_words_too() -> None:
    encoder = words()
    alphabet = alphabet_of(encoder)
    symbols = [*alphabet.keys.tolist(), *alphabet.values.tolist()]
    assert len(set(symbols)) == 52
    assert not set(symbols) & {0, 1, *alphabet.mark.tolist(), *alphabet.end.tolist()}
    window = np.ones((1, 101), dtype=np.int64)
    row = RecallMixer(encoder, 0.99, 100).mix(window, np.random.default_rng(0))[0]
    places = np.flatnonzero(np.isin(row, alphabet.keys))
    assert len(places) >= 4
    pairs = {(int(row[i]), int(row[i + 1])) for i in places}
    assert len(pairs) == len({key for key, _ in pairs})
    assert all(value in alphabet.values for _, value in pairs)


def test_a_vocabulary_too_small_is_refused() -> None:
    encoder = make_encoder(make_config({"tokenizer": "words"}), [b"so few words\n"])
    with pytest.raises(LabError) as error:
        alphabet_of(encoder)
    # Separator, unknown word and newline are no letters; "@" is unknown here.
    assert str(error.value) == (
        "vocabulary: expected a vocabulary of at least 55 words, some of them for keys and values, got 6; "
        "raise it, or leave recall out"
    )


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
        RecallMixer(ByteEncoder(), 0.1, 7)
    assert str(error.value) == (
        "recall_share: expected sequences of at least 8 tokens to ask and tell in, got 7; "
        "train longer sequences, or leave --recall-share out"
    )
    window = RecallMixer(ByteEncoder(), 0.99, 8).mix(np.zeros((1, 9), np.int64), np.random.default_rng(0))
    assert re.fullmatch(rb"(\n@[A-Z][a-z]\n)\1", bytes(window[0].tolist()) + b"\n")


def test_lines_stand_apart_by_the_distances_asked_for() -> None:
    generator = np.random.default_rng(0)
    for _ in range(200):
        room, wanted = int(generator.integers(9, 300)), int(generator.integers(1, 12))
        distances = [log_uniform(generator, 5, room - 4) for _ in range(int(generator.integers(1, 40)))]
        mentions = place_mentions(distances, room, 5, 4, wanted=wanted, most=14, generator=generator)
        places = sorted(place for key in mentions for place in key)
        assert places[0] >= 0
        assert places[-1] <= room - 4
        assert all(b - a >= 5 for a, b in itertools.pairwise(places))
        assert all(key == sorted(key) and len(key) >= 2 for key in mentions)
        assert len(mentions) <= 14
        found = Counter(b - a for key in mentions for a, b in itertools.pairwise(key))
        assert found <= Counter(distances)
        # The farthest, placed first, always has a place.
        assert max(distances) in found
    drawn = [log_uniform(generator, 2, 16) for _ in range(4000)]
    assert (min(drawn), max(drawn)) == (2, 16)
    assert np.mean(np.array(drawn) < 6) == pytest.approx(np.log(6 / 2) / np.log(17 / 2), abs=0.03)


# The test


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
        answers = torch.tensor([[self._answer(*place) for place in row] for row in hidden.tolist()])
        return torch.nn.functional.one_hot(answers, 256).double()

    def _answer(self, window: int, place: int) -> int:
        text = bytes(self.seen[-1][window].tolist())
        prompt = text[place - 2 : place + 1]
        assert re.fullmatch(rb"\n@[A-Z]", prompt)
        told = text.index(prompt) + 2
        return text[told + 1] if place - told <= self.reach else 0


def oracle(reach: int = 10**9) -> Any:
    found = Oracle(DecoderShape(64, 1, 2, 8), "nope", seed=0)
    found.seen, found.reach = [], reach
    return found


def test_each_distance_is_asked_at_that_distance() -> None:
    lengths = (12, 16, 64, 100, 256, 1024)
    scores = evaluate_recall(oracle(), held_out(ByteEncoder()), ByteEncoder(), lengths, budget=1024, most=64)
    cells = {(score.length, score.distance): score for score in scores}
    assert list(cells) == [
        (12, 9), (16, 13), (64, 32), (64, 61), (100, 32), (100, 64), (100, 97),
        (256, 32), (256, 64), (256, 128), (256, 253),
        (1024, 32), (1024, 64), (1024, 128), (1024, 256), (1024, 512), (1024, 1021),
    ]  # fmt: skip
    assert all(score.recalled == score.asked for score in scores)
    assert [cells[n, 32].asked for n in (64, 100, 256, 1024)] == [32] * 4
    assert cells[64, 32].interval is not None


def test_windows_without_room_are_left_out_and_distances_end_with_the_keys() -> None:
    alphabet = alphabet_of(ByteEncoder())
    assert askable_distances(alphabet, 7) == []
    assert askable_distances(alphabet, 8) == [5]
    # Told right behind one another, 256 and the farthest would overlap.
    assert askable_distances(alphabet, 265)[-2:] == [128, 262]
    assert len(askable_distances(alphabet, 65_536)) == 12
    few = alphabet._replace(keys=alphabet.keys[:4])
    assert askable_distances(few, 65_536) == [32, 64, 128, 65_533]


@pytest.mark.parametrize("reach", [31, 32, 128, 200, 1020, 1021])
def test_recall_ends_where_the_reach_does(reach: int) -> None:
    scores = evaluate_recall(oracle(reach), held_out(ByteEncoder()), ByteEncoder(), (1024,), budget=1, most=64)
    assert [score.recalled for score in scores] == [32 if score.distance <= reach else 0 for score in scores]


def test_untrained_decoder_recalls_no_more_than_by_chance_with_any_tokens() -> None:
    for encoder, text in (*((e, TEXT) for e in encoders()), (words(), WORDS)):
        decoder = Decoder(DecoderShape(64, 1, 2, 8), "alibi", seed=0, vocabulary=encoder.vocabulary)
        text_of = held_out(encoder, text)
        scores = evaluate_recall(decoder, text_of, encoder, (64, 256), budget=4096, most=64, variant="ntk")
        assert len(scores) == 6
        assert sum(score.recalled for score in scores) < 0.15 * sum(score.asked for score in scores)


def test_positions_that_end_are_reported() -> None:
    decoder = Decoder(DecoderShape(64, 1, 2, 8), "learned", seed=0)
    ticks: list[int] = []
    scores = evaluate_recall(
        decoder, held_out(ByteEncoder()), ByteEncoder(), (64, 128), budget=512, most=64, tick=ticks.append
    )
    assert [score.note for score in scores] == [None] * 2 + ["its positions end at 64"] * 3
    assert scores[2].share is None
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
