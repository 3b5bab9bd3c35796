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

LEAST_KEYS, MOST_KEYS = 2, 16
"""Of a training sequence; a few more where distances need them."""

LEAST_ASKED = 2
"""Questions in a training sequence, unless it is too short for them."""

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

    A chosen window asks between 2 times and once for every two lines that fit, any number as likely as another. From
    the mention before to the one that asks it is a distance that is log-uniform between a line and the whole window, so
    that each doubling is asked as often as the next, and what is tested inside the trained length was trained. A key is
    told once and asked once or more, by the same line. What lies beneath the lines is overwritten, so that the length
    stays what it was.

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
            needed = self._alphabet.width + self._alphabet.question - 1
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
        alphabet = self._alphabet
        farthest = len(window) - alphabet.question
        most = max(LEAST_ASKED, len(window) // alphabet.width // 2)
        distances = [
            log_uniform(generator, alphabet.width, farthest)
            for _ in range(int(generator.integers(LEAST_ASKED, most + 1)))
        ]
        mentions = place_mentions(
            distances, len(window), alphabet.width, alphabet.question,
            wanted=log_uniform(generator, LEAST_KEYS, MOST_KEYS), most=len(alphabet.keys), generator=generator,
        )  # fmt: skip
        for line, places in zip(alphabet.draw(generator, len(mentions)), mentions, strict=True):
            for place in places:
                # The last line of a window may end with its value, where the tested ones do.
                there = window[place : place + alphabet.width]
                there[:] = line[: len(there)]


def log_uniform(generator: np.random.Generator, low: int, high: int) -> int:
    """A whole number from ``low`` to ``high``, both included, each power of two as likely as the next."""
    return min(high, int(np.exp(generator.uniform(np.log(low), np.log(high + 1)))))


def place_mentions(
    distances: Sequence[int], room: int, width: int, question: int, *, wanted: int, most: int,
    generator: np.random.Generator,
) -> list[list[int]]:  # fmt: skip
    """Where the lines of each key stand in a window, so that from one mention to the next it is one of the distances.

    A distance is given a key of its own, at any place, while there are fewer keys than wanted; then it leads on from a
    key's last mention, or up to its first; a further key is taken where it fits none. Far ones come first, since they
    have the fewest places; a distance that is left without one is dropped.

    Args:
        distances: from mention to mention, each at least ``width``.
        room: tokens of the window.
        width, question: tokens of a line, and of its part that must be in the window.
        wanted, most: number of keys.
        generator: of places.

    Returns:
        For each key the places of its lines, ascending; at least two.
    """
    # By where a line begins; the last may reach beyond the window by what follows its value.
    fits = np.ones(room - question + 1, dtype=bool)
    mentions: list[list[int]] = []
    for distance in sorted(distances, reverse=True):
        taken = _lead_on(mentions, distance, fits, generator) if len(mentions) >= wanted else []
        if not taken and len(mentions) < most:
            taken = _begin(mentions, distance, fits, generator)
        for place in taken:
            fits[max(0, place - width + 1) : place + width] = False
    return mentions


def _lead_on(
    mentions: Sequence[list[int]], distance: int, fits: NDArray[np.bool_], generator: np.random.Generator
) -> list[int]:
    """Mention a key once more, after its last place or before its first; the place taken, if there is one."""
    after = [(places, places[-1] + distance) for places in mentions]
    before = [(places, places[0] - distance) for places in mentions]
    found = [(places, place) for places, place in (*after, *before) if 0 <= place < len(fits) and fits[place]]
    if not found:
        return []
    places, place = found[int(generator.integers(len(found)))]
    places.append(place)
    places.sort()
    return [place]


def _begin(
    mentions: list[list[int]], distance: int, fits: NDArray[np.bool_], generator: np.random.Generator
) -> list[int]:
    """Mention another key, twice; the places taken, if there are any."""
    firsts = np.flatnonzero(fits[: len(fits) - distance] & fits[distance:])
    if not len(firsts):
        return []
    first = int(generator.choice(firsts))
    mentions.append([first, first + distance])
    return [first, first + distance]
