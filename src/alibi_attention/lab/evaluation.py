"""Loss at many lengths: non-overlapping windows, a sliding window, and fixed targets with growing context."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from alibi_attention.lab.ends import Ends
from alibi_attention.lab.held_out import HeldOut, segment_starts
from alibi_attention.lab.intervals import mean_interval
from alibi_attention.lab.model import Decoder
from alibi_attention.lab.scores import PositionBin, Score

Tick = Callable[[int], None]

# Tokens that go through the decoder at once, where windows are shorter than that: what caches of a CPU hold, and what
# fills other devices.
CPU_BATCH_TOKENS = 1 << 12
BATCH_TOKENS = 1 << 15


def window_work(held_out: HeldOut, lengths: Sequence[int], budget: int) -> int:
    """Tokens that `evaluate_windows` ticks."""
    return len(segment_starts(len(held_out.tokens), lengths[-1], budget)) * lengths[-1] * len(lengths)


@torch.no_grad()
def evaluate_windows(
    decoder: Decoder, held_out: HeldOut, lengths: Sequence[int], budget: int,
    *, segment: int | None = None, variant: str | None = None, tick: Tick | None = None,
) -> list[Score]:  # fmt: skip
    """Score a decoder at each length over non-overlapping windows, by the protocol of the paper's main table.

    The stream's segments are as long as the longest length. For a length l each is cut into windows of l tokens (the
    last is shorter where l does not divide it), every window is read on its own, and every token after its first
    context token counts once. All lengths thus predict the same tokens and differ only in how much comes before them.

    Args:
        decoder: on the device to use.
        held_out: text, at least one token longer than the longest length.
        lengths: ascending.
        budget: about how many tokens to score at each length.
        segment: length of the segments, where it is not the longest of these lengths: that of all, if these are some
            of them.
        variant: of the position method, set up for each length.
        tick: called with the number of tokens scored; may raise to stop.

    Returns:
        One score per length, in their order, with the loss by position; without a number where positions end earlier.
    """
    segment = segment or lengths[-1]
    starts = segment_starts(len(held_out.tokens), segment, budget)
    targets = np.concatenate([np.arange(start + 1, start + 1 + segment) for start in starts])
    scores = []
    for length in lengths:
        note = impossible(decoder, length)
        if note is not None:
            scores.append(Score(length=length, bits_per_byte=None, scored_bytes=0, note=note))
            tell(tick, segment * len(starts))
            continue
        parts = []
        for start in starts:
            tokens = _tensor(decoder, held_out.tokens[start : start + segment + 1])
            with decoder.position.used_at(length, variant):
                parts.append(_segment_nats(decoder, tokens, length))
            tell(tick, segment)
        nats = np.concatenate(parts)
        within = np.tile(np.arange(segment) % length, len(starts))
        scores.append(score(held_out, length, targets, nats, within))
    return scores


def _segment_nats(decoder: Decoder, tokens: torch.Tensor, length: int) -> NDArray[np.float64]:
    """-ln p of the predictions of a segment (segment + 1,), read in windows of ``length``."""
    inputs, targets = tokens[:-1], tokens[1:]
    whole = len(inputs) // length * length
    parts = [(inputs[:whole].view(-1, length), targets[:whole].view(-1, length))]
    if whole < len(inputs):
        parts.append((inputs[whole:].view(1, -1), targets[whole:].view(1, -1)))
    found = []
    for windows, wanted in parts:
        rows = rows_at_once(decoder, windows.shape[1])
        for some, want in zip(windows.split(rows), wanted.split(rows), strict=True):
            found.append(decoder.nats(some, want).flatten())
    return torch.cat(found).double().cpu().numpy()


@torch.no_grad()
def evaluate_ends(
    decoder: Decoder, held_out: HeldOut, length: int, ends: Ends,
    *, variant: str | None = None, tick: Tick | None = None,
) -> Score:  # fmt: skip
    """Score the last predictions of windows that end at given places.

    Every scored token has at least ``length - scored`` tokens of context. With a sliding window the windows' last parts
    lie side by side; with fixed targets they are the same for every length, and only the context before them grows.

    Args:
        decoder: on the device to use.
        held_out: text.
        length: tokens of each window.
        ends: index of the last token predicted in each window, and how many predictions before it count.
        variant, tick: as in `evaluate_windows`; ticked with the tokens that were read.

    Returns:
        The score; without a number where positions end earlier.
    """
    note = impossible(decoder, length)
    if note is not None:
        tell(tick, length * len(ends.ends))
        return Score(length=length, bits_per_byte=None, scored_bytes=0, note=note)
    rows = rows_at_once(decoder, length)
    scored = min(ends.scored, length)
    found, targets = [], []
    for first in range(0, len(ends.ends), rows):
        some = ends.ends[first : first + rows]
        windows = np.stack([held_out.tokens[end - length : end + 1] for end in some])
        tokens = _tensor(decoder, windows)
        with decoder.position.used_at(length, variant):
            nats = decoder.nats(tokens[:, :-1], tokens[:, 1:])
        found.append(nats[:, -scored:].flatten().double().cpu().numpy())
        targets += [np.arange(end - scored + 1, end + 1) for end in some]
        tell(tick, windows.size - len(some))
    ending = np.array(ends.ends)
    whole = held_out.documents_at(ending) == held_out.documents_at(ending - length)
    found_score = score(held_out, length, np.concatenate(targets), np.concatenate(found))
    return found_score.model_copy(update={"whole_context": float(whole.mean())})


def rows_at_once(decoder: Decoder, length: int) -> int:
    """Windows of ``length`` tokens to read together: as many as the decoder's device reads fastest, at least 1."""
    on_cpu = next(decoder.parameters()).device.type == "cpu"
    return max(1, (CPU_BATCH_TOKENS if on_cpu else BATCH_TOKENS) // length)


def impossible(decoder: Decoder, length: int) -> str | None:
    """Why there is no score at a length, or None."""
    longest = decoder.position.longest
    if longest is not None and length > longest:
        return f"its positions end at {longest:,}"
    return None


def score(
    held_out: HeldOut, length: int, targets: NDArray[np.int64], nats: NDArray[np.float64],
    within: NDArray[np.int64] | None = None,
) -> Score:  # fmt: skip
    """The score of predictions ``nats`` of the tokens at ``targets``; with their places ``within`` a window, by these
    too."""
    sizes = held_out.bytes_at(targets)
    documents = held_out.documents_at(targets)
    count = len(held_out.document_starts)
    bits = np.bincount(documents, nats, minlength=count) / math.log(2.0)
    bytes_ = np.bincount(documents, sizes, minlength=count).astype(np.int64)
    seen = np.bincount(documents, minlength=count) > 0
    mean = float(nats.mean())
    return Score(
        length=length,
        bits_per_byte=float(bits.sum() / sizes.sum()),
        scored_bytes=int(sizes.sum()),
        scored_tokens=len(targets),
        interval=mean_interval(bits[seen], bytes_[seen]),
        # Beyond what a float holds, it is of no interest how far.
        perplexity=math.exp(min(mean, 700.0)),
        document_bits=tuple(bits[seen].tolist()),
        document_bytes=tuple(bytes_[seen].tolist()),
        by_position=() if within is None else _by_position(held_out, targets, nats, within, length),
    )


def _by_position(
    held_out: HeldOut, targets: NDArray[np.int64], nats: NDArray[np.float64], within: NDArray[np.int64], length: int
) -> tuple[PositionBin, ...]:
    """Bins [0, 1), [1, 2), [2, 4), [4, 8) and so on, the last one up to the length."""
    sizes = held_out.bytes_at(targets)
    edges = [0]
    while edges[-1] < length:
        edges.append(min(length, max(1, 2 * edges[-1])))
    bits = np.bincount(within, nats, minlength=length) / math.log(2.0)
    counts = np.bincount(within, sizes, minlength=length)
    bins = []
    for first, end in pairwise(edges):
        total = counts[first:end].sum()
        if total:
            bins.append(PositionBin(first=first, end=end, bits_per_byte=float(bits[first:end].sum() / total)))
    return tuple(bins)


def _tensor(decoder: Decoder, tokens: NDArray[Any]) -> torch.Tensor:
    return torch.from_numpy(tokens.astype(np.int64)).to(next(decoder.parameters()).device)


def tell(tick: Tick | None, tokens: int) -> None:
    """Tick, if anyone listens."""
    if tick is not None:
        tick(tokens)
