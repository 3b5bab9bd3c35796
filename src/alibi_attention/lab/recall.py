"""Keys and values told in a text and asked for later: mixed into training text, and tested by distance."""

from __future__ import annotations

import string
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from alibi_attention.lab.bootstrap import wilson_interval
from alibi_attention.lab.errors import LabError
from alibi_attention.lab.evaluation import BATCH_TOKENS, HeldOut, Tick
from alibi_attention.lab.model import Decoder
from alibi_attention.lab.scores import RecallScore
from alibi_attention.lab.tokens import Encoder

KEY_LETTERS = 3
VALUE_DIGITS = 3
"""Guessing at random recalls one value in a thousand."""

TOKENS_PER_PAIR = 64
"""One pair for this many tokens of a training sequence."""

NEAREST = 32
"""Shortest distance tested, in tokens; the others are its doublings."""

LEAST_TRIALS = 8
"""Windows per length, at least, however long they are."""


class Line(NamedTuple):
    """``\\n@key=value\\n`` in tokens, in three parts, each encoded on its own so that no token spans two of them."""

    prompt: NDArray[np.int64]
    answer: NDArray[np.int64]
    end: NDArray[np.int64]

    @property
    def whole(self) -> NDArray[np.int64]:
        return np.concatenate(self)


def make_lines(encoder: Encoder, generator: np.random.Generator, count: int) -> list[Line]:
    """Lines with different keys and any values."""
    numbers = generator.choice(len(string.ascii_lowercase) ** KEY_LETTERS, size=count, replace=False)
    values = generator.integers(0, 10**VALUE_DIGITS, size=count)
    lines = []
    for number, value in zip(numbers.tolist(), values.tolist(), strict=True):
        letters = []
        for _ in range(KEY_LETTERS):
            number, letter = divmod(number, len(string.ascii_lowercase))
            letters.append(string.ascii_lowercase[letter])
        parts = f"\n@{''.join(letters)}=", f"{value:0{VALUE_DIGITS}d}", "\n"
        lines.append(Line(*(encoder.encode(part.encode()).astype(np.int64) for part in parts)))
    return lines


class RecallMixer:
    """Writes key-value passages into a share of training windows.

    Each chosen window gets one pair of lines for every 64 tokens. The two lines of a pair are the same, at places of
    random distance: the first tells the value, the second asks for it. The text beneath them is overwritten, so that
    the length stays what it was.

    Args:
        encoder: of the tokens.
        share: of windows that are chosen, in [0, 1).
        length: of the training sequences.
    """

    def __init__(self, encoder: Encoder, share: float, length: int) -> None:
        self._encoder = encoder
        self.share = share
        self._pairs = max(1, length // TOKENS_PER_PAIR)
        if share > 0.0:
            needed = 2 * max(len(line.whole) for line in make_lines(encoder, np.random.default_rng(0), 16))
            if length < needed:
                remedy = "train longer sequences, or leave --recall-share out"
                raise LabError("recall_share", expected=f"sequences of at least {needed} tokens to ask and tell in",
                               got=f"{length}", remedy=remedy)  # fmt: skip

    def mix(self, windows: NDArray[np.int64], generator: np.random.Generator) -> NDArray[np.int64]:
        """(batch, length + 1) tokens to the same with passages in them. Draws nothing where the share is 0."""
        if self.share == 0.0:
            return windows
        chosen = np.flatnonzero(generator.random(len(windows)) < self.share)
        for row in chosen:
            self._write(windows[row], generator)
        return windows

    def _write(self, window: NDArray[np.int64], generator: np.random.Generator) -> None:
        lines = [line.whole for line in make_lines(self._encoder, generator, self._pairs)]
        widest = max(map(len, lines))
        pairs = min(self._pairs, len(window) // (2 * widest))
        # Places in order, with random gaps; a random order of lines, each twice, makes every distance possible.
        gaps = np.sort(generator.integers(0, len(window) - 2 * pairs * widest + 1, size=2 * pairs))
        order = generator.permutation(np.repeat(np.arange(pairs), 2))
        for place, (gap, number) in enumerate(zip(gaps.tolist(), order.tolist(), strict=True)):
            line = lines[number]
            first = gap + place * widest
            window[first : first + len(line)] = line


def trial_count(length: int, budget: int, most: int) -> int:
    """Windows in which recall is tested at a length."""
    return min(most, max(LEAST_TRIALS, budget // length))


@torch.no_grad()
def evaluate_recall(
    decoder: Decoder, held_out: HeldOut, encoder: Encoder, lengths: Sequence[int], *,
    budget: int, most: int, seed: int = 0, variant: str | None = None, tick: Tick | None = None,
) -> list[RecallScore]:  # fmt: skip
    """Ask for values told 32, 64, 128, ... tokens before, in windows of each length.

    A window is held-out text with one line told for every distance that fits, and all of them asked at its end, one
    after the other, nearest first. One reading thus tests every distance. A value counts as recalled when each of its
    tokens is the likeliest one, which is what greedy decoding would write.

    Args:
        decoder, held_out, variant, tick: as in `evaluate_ends`.
        encoder: of the tokens.
        lengths: of windows, ascending; those too short for one question are left out.
        budget: about how many tokens to read at each length.
        most: windows per length at most; at least 8.
        seed: of keys, values and places of text.

    Returns:
        One score per length and distance.
    """
    scores = []
    for length in lengths:
        trials = trial_count(length, budget, most)
        longest = decoder.position.longest
        generator = np.random.Generator(np.random.Philox(key=[seed, length]))
        built = [_trial(held_out, encoder, length, generator) for _ in range(trials)]
        # Where tokens differ in width, a trial may have room for one distance less.
        fitting = min(len(trial.asked) for trial in built)
        built = [_Trial(trial.tokens, trial.asked[:fitting]) for trial in built]
        distances = [distance for distance, _ in built[0].asked]
        if longest is not None and length > longest:
            note = f"its positions end at {longest:,}"
            scores += [RecallScore(length=length, distance=d, asked=0, recalled=0, note=note) for d in distances]
            if tick is not None:
                tick(trials * length)
            continue
        recalled = np.zeros(len(distances), dtype=np.int64)
        rows = max(1, BATCH_TOKENS // length)
        for first in range(0, trials, rows):
            some = built[first : first + rows]
            with decoder.position.used_at(length, variant):
                recalled += _recalled(decoder, some)
            if tick is not None:
                tick(len(some) * length)
        for distance, count in zip(distances, recalled.tolist(), strict=True):
            found = {"length": length, "distance": distance, "asked": trials, "recalled": count}
            scores.append(RecallScore(**found, interval=wilson_interval(count, trials)))
    return scores


class _Trial(NamedTuple):
    tokens: NDArray[np.int64]
    """(length + 1,), the last one only predicted."""
    asked: list[tuple[int, slice]]
    """For each question its distance, and where in `tokens` the answer is."""


def _trial(held_out: HeldOut, encoder: Encoder, length: int, generator: np.random.Generator) -> _Trial:
    start = int(generator.integers(0, len(held_out.tokens) - length))
    tokens = held_out.tokens[start : start + length + 1].astype(np.int64)
    most = max(0, (length // NEAREST).bit_length() - 1)
    lines = make_lines(encoder, generator, max(1, most))
    while most > 0:
        asked = _place(tokens, lines[:most])
        if asked is not None:
            return _Trial(tokens, asked)
        most -= 1
    return _Trial(tokens, [])


def _place(tokens: NDArray[np.int64], lines: Sequence[Line]) -> list[tuple[int, slice]] | None:
    """Write the lines as told and as asked, or return None if the farthest does not fit."""
    questions = np.concatenate([line.whole for line in lines])[: -len(lines[-1].end)]
    at = len(tokens) - len(questions)
    places, asked = [], []
    before = at
    for i, line in enumerate(lines):
        distance = NEAREST << i
        told = at - distance
        if told < 0 or told + len(line.whole) > before:
            return None
        places.append(told)
        answer = at + len(line.prompt)
        asked.append((distance, slice(answer, answer + len(line.answer))))
        before = told
        at += len(line.whole)
    for told, line in zip(places, lines, strict=True):
        tokens[told : told + len(line.whole)] = line.whole
    tokens[len(tokens) - len(questions) :] = questions
    return asked


def _recalled(decoder: Decoder, trials: Sequence[_Trial]) -> NDArray[np.int64]:
    """How many of the trials recall each distance's value."""
    device = next(decoder.parameters()).device
    tokens = torch.from_numpy(np.stack([trial.tokens for trial in trials])).to(device)
    hidden = decoder.hidden(tokens[:, :-1])
    counts = np.zeros(len(trials[0].asked), dtype=np.int64)
    for row, trial in enumerate(trials):
        for i, (_, answer) in enumerate(trial.asked):
            predicted = decoder.logits(hidden[row, answer.start - 1 : answer.stop - 1]).argmax(-1)
            counts[i] += int(torch.equal(predicted, tokens[row, answer]))
    return counts
