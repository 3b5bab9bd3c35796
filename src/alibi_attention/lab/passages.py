"""Keys and values told in a text and asked for again: how a line is made, and lines written into training text."""

from __future__ import annotations

import string
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from alibi_attention.lab.errors import LabError
from alibi_attention.lab.tokens import SPECIAL, Encoder

KEYS = string.ascii_uppercase
VALUES = string.ascii_lowercase
"""Letters of another case, so that a key is never taken for a value. Guessing recalls one in 26."""

MOST_KEYS = 16
"""Of a training sequence."""

LEAST_MENTIONS = 3
"""Of a key in a training sequence: once told, at least twice asked."""

# Words that stand for letters are taken after so many, which are too common to be told from the text around them.
_COMMON = 256


class Alphabet(NamedTuple):
    """The parts of a line ``\\n@Qv\\n`` in tokens. Key and value are one token each, the value right after its key.

    Nothing simpler can be asked: what finds the key's last mention and reads on by one token has solved it.
    """

    mark: NDArray[np.int64]
    keys: NDArray[np.int64]
    values: NDArray[np.int64]
    end: NDArray[np.int64]

    @property
    def question(self) -> int:
        """Tokens up to and including the value."""
        return len(self.mark) + 2

    @property
    def width(self) -> int:
        """Tokens of a line."""
        return self.question + len(self.end)

    def line(self, key: int, value: int) -> NDArray[np.int64]:
        """The line that tells, or asks for, the value of a key, both as numbers of letters."""
        return np.concatenate([self.mark, self.keys[key : key + 1], self.values[value : value + 1], self.end])

    def draw(self, generator: np.random.Generator, count: int) -> list[NDArray[np.int64]]:
        """Lines with different keys and any values."""
        keys = generator.choice(len(self.keys), size=count, replace=False)
        values = generator.integers(0, len(self.values), size=count)
        return [self.line(key, value) for key, value in zip(keys.tolist(), values.tolist(), strict=True)]


def alphabet_of(encoder: Encoder) -> Alphabet:
    """Letters as tokens; where the vocabulary cannot tell letters apart, words of it in their place.

    Raises:
        LabError: for a vocabulary that is too small.
    """

    def tokens(text: str) -> NDArray[np.int64]:
        return encoder.encode(text.encode()).astype(np.int64)

    mark, end = tokens("\n@"), tokens("\n")
    letters = [tuple(tokens(letter).tolist()) for letter in KEYS + VALUES]
    if len(set(letters)) == len(letters) and all(len(letter) == 1 for letter in letters):
        symbols = [letter[0] for letter in letters]
    else:
        taken = {*mark.tolist(), *end.tolist()}
        words = [word for word in range(SPECIAL, encoder.vocabulary) if word not in taken]
        first = max(0, min(_COMMON, len(words) - len(letters)))
        symbols = words[first : first + len(letters)]
    if len(symbols) < len(letters):
        needed = encoder.vocabulary + len(letters) - len(symbols)
        expected = f"a vocabulary of at least {needed} words, some of them for keys and values"
        raise LabError("vocabulary", expected=expected, got=f"{encoder.vocabulary}",
                       remedy="raise it, or leave recall out")  # fmt: skip
    ids = np.array(symbols, dtype=np.int64)
    return Alphabet(mark, ids[: len(KEYS)], ids[len(KEYS) :], end)


class RecallMixer:
    """Writes key-value passages into a share of training windows.

    A chosen window gets 2 to 16 keys, few more often than many (log-uniform), each mentioned three times or more by the
    same line: the first mention tells the value, the others ask for it. From one mention of a key to the next the
    distance is about log-uniform, so that near ones are common and far ones occur. Between the lines there is text,
    from most of the window to none of it; what lies beneath them is overwritten, so that the length stays what it was.

    Args:
        encoder: of the tokens.
        share: of windows that are chosen, in [0, 1).
        length: of the training sequences.

    Raises:
        LabError: for sequences that are too short, or a vocabulary that is too small.
    """

    def __init__(self, encoder: Encoder, share: float, length: int) -> None:
        self.share = share
        if share > 0.0:
            self._alphabet = alphabet_of(encoder)
            needed = LEAST_MENTIONS * self._alphabet.width - 1
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
        width = self._alphabet.width
        room = len(window) // width
        most = min(MOST_KEYS, room // LEAST_MENTIONS)
        keys = log_uniform(generator, min(2, most), most)
        count = int(generator.integers(LEAST_MENTIONS * keys, room + 1))
        more = generator.multinomial(count - LEAST_MENTIONS * keys, np.full(keys, 1 / keys))
        lines = self._alphabet.draw(generator, keys)
        gaps = np.sort(generator.integers(0, len(window) - count * width + 1, size=count))
        order = in_order((LEAST_MENTIONS + more).tolist(), generator)
        for place, (gap, key) in enumerate(zip(gaps.tolist(), order, strict=True)):
            first = gap + place * width
            window[first : first + width] = lines[key]


def log_uniform(generator: np.random.Generator, low: int, high: int) -> int:
    """A whole number from ``low`` to ``high``, both included, each power of two as likely as the next."""
    return min(high, int(np.exp(generator.uniform(np.log(low), np.log(high + 1)))))


def in_order(mentions: Sequence[int], generator: np.random.Generator) -> list[int]:
    """Which key each line mentions, given how often each is mentioned.

    Key after key takes its places among those still free: the first anywhere, each further one at a log-uniform
    distance from the one before.
    """
    free = list(range(sum(mentions)))
    order = [0] * len(free)
    for key, count in enumerate(mentions):
        taken = [int(generator.integers(0, len(free) - count + 1))]
        for left in range(count - 1, 0, -1):
            taken.append(taken[-1] + log_uniform(generator, 1, len(free) - left - taken[-1]))
        for place in reversed(taken):
            order[free.pop(place)] = key
    return order
