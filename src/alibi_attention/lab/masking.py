"""Masked prediction: which tokens are hidden, what a model is shown instead, and its loss on them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from alibi_attention.lab.evaluation import Tick, impossible, rows_at_once, score, tell
from alibi_attention.lab.held_out import HeldOut, segment_starts
from alibi_attention.lab.model import Decoder
from alibi_attention.lab.scores import Score

SHOWN = -1
"""Stands among the targets for a token that is not predicted."""

# Of the masks of evaluation. Not the seed of a run: runs of several seeds predict the same tokens.
_SEED = 0x6D61736B

# Places of a stream that are drawn together.
_BLOCK = 1 << 10


def mask_count(length: int, share: float) -> int:
    """How many tokens of ``length`` are masked: the nearest whole number, and at least one."""
    return max(1, round(share * length))


def draw_masks(generator: np.random.Generator, rows: int, length: int, share: float) -> NDArray[np.bool_]:
    """(rows, length), as many True in every row, anywhere in it with the same probability.

    As many, not about as many: parts of a step, and processes that share one, then weigh the same.
    """
    order = np.argsort(generator.random((rows, length)), axis=1, kind="stable")
    return order < mask_count(length, share)


def hide(windows: Tensor, masks: NDArray[np.bool_], mask_token: int) -> tuple[Tensor, Tensor]:
    """What a model is shown, and its targets: `SHOWN` where nothing is asked. Each of the shape of ``windows``.

    Every masked token is replaced by the mask token. BERT leaves a tenth of them as they are and replaces another tenth
    at random, for the sake of later use on text without masks. Here there is no such use: what is trained is what is
    scored. Wettig et al., "Should You Mask 15% in Masked Language Modeling?" (2023), do without as well.
    """
    hidden = torch.from_numpy(masks)
    return windows.masked_fill(hidden, mask_token), windows.masked_fill(~hidden, SHOWN)


class Masker:
    """Hides tokens of training windows.

    Args:
        share: of the tokens of a window.
        mask_token: shown instead.
    """

    def __init__(self, share: float, mask_token: int) -> None:
        self._share = share
        self._mask_token = mask_token

    def hide(self, windows: Tensor, generator: np.random.Generator) -> Tensor:
        """(rows, length) to (rows, 2, length): what is shown, then the targets, in one tensor of the same rows."""
        masks = draw_masks(generator, windows.shape[0], windows.shape[1], self._share)
        return torch.stack(hide(windows, masks, self._mask_token), dim=1)


def masked_nats(decoder: Decoder, shown: Tensor, targets: Tensor) -> Tensor:
    """-ln p of every masked token, (masked,), row after row; logits exist for these alone."""
    asked = targets != SHOWN
    return decoder.nats_of(decoder.hidden(shown)[asked], targets[asked])


def evaluation_masks(starts: Sequence[int], segment: int, share: float) -> list[NDArray[np.bool_]]:
    """For each segment of a stream the tokens that are masked in evaluation, (segment,).

    Each token with probability ``share``, by its place in the stream and nothing else: all methods, variants, lengths
    and seeds predict the same tokens, and so do evaluations of other lengths wherever they read the same text. Where
    that masks none at all, the first token is masked.
    """
    masks = [_drawn(start, start + segment) < share for start in starts]
    if not any(mask.any() for mask in masks):
        masks[0][0] = True
    return masks


def _drawn(first: int, end: int) -> NDArray[np.float64]:
    """A number in [0, 1) for every place of a stream from ``first`` up to, not including, ``end``."""
    blocks = range(first // _BLOCK, (end - 1) // _BLOCK + 1)
    # Keyed by the block: whichever part of a stream is asked for, a place has the same number.
    drawn = [np.random.Generator(np.random.Philox(key=[_SEED, block])).random(_BLOCK) for block in blocks]
    begin = blocks.start * _BLOCK
    return np.concatenate(drawn)[first - begin : end - begin]


@torch.no_grad()
def evaluate_masked(
    decoder: Decoder, held_out: HeldOut, lengths: Sequence[int], budget: int, share: float,
    *, segment: int | None = None, variant: str | None = None, tick: Tick | None = None,
) -> list[Score]:  # fmt: skip
    """Score an encoder at each length over non-overlapping windows of text with masked tokens.

    The segments are those of `evaluate_windows`, cut into windows in the same way. The masked tokens of a segment are
    the same at every length, which thus differs only in how much text there is around them.

    Args:
        decoder: with attention to both sides, on the device to use.
        held_out: text.
        lengths: ascending.
        budget: about how many tokens are read at each length; ``share`` of them are scored.
        share: of masked tokens.
        segment, variant, tick: as in `evaluate_windows`.

    Returns:
        One score per length, in bits per masked byte; without a number where positions end earlier.
    """
    segment = segment or lengths[-1]
    starts = segment_starts(len(held_out.tokens), segment, budget)
    masks = evaluation_masks(starts, segment, share)
    places = [np.flatnonzero(mask) for mask in masks]
    targets = np.concatenate([start + place for start, place in zip(starts, places, strict=True)])
    scores = []
    for length in lengths:
        note = impossible(decoder, length)
        if note is not None:
            scores.append(Score(length=length, bits_per_byte=None, scored_bytes=0, note=note))
            tell(tick, segment * len(starts))
            continue
        parts = []
        for start, mask in zip(starts, masks, strict=True):
            text = torch.from_numpy(held_out.tokens[start : start + segment].astype(np.int64))
            with decoder.position.used_at(length, variant):
                parts.append(_segment_nats(decoder, *hide(text, mask, decoder.mask_token), length))
            tell(tick, segment)
        within = np.concatenate(places) % length
        scores.append(score(held_out, length, targets, np.concatenate(parts), within))
    return scores


def _segment_nats(decoder: Decoder, shown: Tensor, targets: Tensor, length: int) -> NDArray[np.float64]:
    device = next(decoder.parameters()).device
    whole = len(shown) // length * length
    found: list[Any] = []
    for first, end in ((0, whole), (whole, len(shown))):
        if first == end:
            continue
        width = length if end == whole else end - first
        rows = rows_at_once(decoder, width)
        pairs = (part[first:end].view(-1, width).split(rows) for part in (shown, targets))
        found += [masked_nats(decoder, a.to(device), b.to(device)) for a, b in zip(*pairs, strict=True)]
    return torch.cat(found).double().cpu().numpy()
