"""Recall tested by distance: values told in a text, and asked for so many tokens later."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from alibi_attention.lab.evaluation import Tick, rows_at_once
from alibi_attention.lab.held_out import HeldOut
from alibi_attention.lab.intervals import wilson_interval
from alibi_attention.lab.model import Decoder
from alibi_attention.lab.passages import Alphabet, alphabet_of
from alibi_attention.lab.scores import RecallScore
from alibi_attention.lab.tokens import Encoder

NEAREST = 32
"""Shortest distance tested, in tokens; then come its doublings, and the farthest there is room for."""

LEAST_TRIALS = 32
"""Windows per length, at least, however long they are: of fewer, half recalled would be hard to tell from a third."""


def trial_count(length: int, budget: int, most: int) -> int:
    """Windows in which recall is tested at a length."""
    return min(most, max(LEAST_TRIALS, budget // length))


def askable_distances(alphabet: Alphabet, length: int) -> list[int]:
    """From mention to mention, ascending: 32, 64, 128, ... as far as there is room, and from the window's beginning.

    The last is the length less a question, so that recall within a window is tested over the whole of it. There are
    never more than there are keys. Empty where no line can be told and asked.
    """
    farthest = length + 1 - alphabet.question
    if farthest < alphabet.width:
        return []
    doublings: list[int] = []
    while len(doublings) < len(alphabet.keys) - 1:
        tried = [*doublings, NEAREST << len(doublings), farthest]
        told = _places_told(alphabet, length, tried)
        if told[-2] < told[-1] + alphabet.width:
            break
        doublings = tried[:-1]
    return [*doublings, farthest]


def _places_told(alphabet: Alphabet, length: int, distances: Sequence[int]) -> list[int]:
    """Where in a window each value is told, if all are asked at its end, one after the other."""
    first = length + 1 - (len(distances) * alphabet.width - len(alphabet.end))
    return [first + i * alphabet.width - distance for i, distance in enumerate(distances)]


@torch.no_grad()
def evaluate_recall(
    decoder: Decoder, held_out: HeldOut, encoder: Encoder, lengths: Sequence[int], *,
    budget: int, most: int, seed: int = 0, variant: str | None = None, tick: Tick | None = None,
) -> list[RecallScore]:  # fmt: skip
    """Ask for values told 32, 64, 128, ... tokens before, and as far away as a window goes, in windows of each length.

    A window is held-out text with one line told for every distance, and all of them asked at its end, one after the
    other, nearest first. One reading thus tests every distance. A value counts as recalled when it is the likeliest
    token, which is what greedy decoding would write.

    Args:
        decoder, held_out, variant, tick: as in `evaluate_ends`.
        encoder: of the tokens.
        lengths: of windows, ascending; those too short for one question are left out.
        budget: about how many tokens to read at each length.
        most: windows per length at most; at least 32 where it allows.
        seed: of keys, values and places of text.

    Returns:
        One score per length and distance.
    """
    scores = []
    alphabet = alphabet_of(encoder)
    longest = decoder.position.longest
    for length in lengths:
        trials = trial_count(length, budget, most)
        distances = askable_distances(alphabet, length)
        if longest is not None and length > longest:
            note = f"its positions end at {longest:,}"
            scores += [RecallScore(length=length, distance=d, asked=0, recalled=0, note=note) for d in distances]
            if tick is not None:
                tick(trials * length)
            continue
        generator = np.random.Generator(np.random.Philox(key=np.array([seed, length], dtype=np.uint64)))
        windows = np.stack([_window(held_out, alphabet, length, distances, generator) for _ in range(trials)])
        recalled = np.zeros(len(distances), dtype=np.int64)
        rows = rows_at_once(decoder, length)
        for first in range(0, trials, rows):
            some = windows[first : first + rows]
            with decoder.position.used_at(length, variant):
                recalled += _recalled(decoder, some, alphabet, len(distances))
            if tick is not None:
                tick(len(some) * length)
        for distance, count in zip(distances, recalled.tolist(), strict=True):
            found = {"length": length, "distance": distance, "asked": trials, "recalled": count}
            scores.append(RecallScore(**found, interval=wilson_interval(count, trials)))
    return scores


def _window(
    held_out: HeldOut, alphabet: Alphabet, length: int, distances: Sequence[int], generator: np.random.Generator
) -> NDArray[np.int64]:
    """(length + 1,) tokens of text with lines told and, at the end, asked; the last token is only predicted."""
    start = int(generator.integers(0, len(held_out.tokens) - length))
    tokens = held_out.tokens[start : start + length + 1].astype(np.int64)
    lines = alphabet.draw(generator, len(distances))
    for told, line in zip(_places_told(alphabet, length, distances), lines, strict=True):
        tokens[told : told + alphabet.width] = line
    if lines:
        questions = np.concatenate(lines)[: -len(alphabet.end)]
        tokens[len(tokens) - len(questions) :] = questions
    return tokens


def _recalled(decoder: Decoder, windows: NDArray[np.int64], alphabet: Alphabet, questions: int) -> NDArray[np.int64]:
    """In how many of the windows each distance's value is the likeliest token."""
    device = next(decoder.parameters()).device
    tokens = torch.from_numpy(windows).to(device)
    # The last token of the window is the last answer.
    answers = tokens.shape[1] - 1 - alphabet.width * torch.arange(questions - 1, -1, -1, device=device)
    predicted = decoder.logits(decoder.hidden(tokens[:, :-1])[:, answers - 1]).argmax(-1)
    found: NDArray[np.int64] = (predicted == tokens[:, answers]).sum(0).cpu().numpy()
    return found
