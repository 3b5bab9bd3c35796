"""The protocols of evaluation by name: how much work each is, and doing it, one length at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import torch

from alibi_attention.lab.config import ExperimentConfig, Protocol
from alibi_attention.lab.ends import sliding_ends, target_ends
from alibi_attention.lab.evaluation import Tick, evaluate_ends, evaluate_windows, window_work
from alibi_attention.lab.held_out import HeldOut
from alibi_attention.lab.masking import evaluate_masked
from alibi_attention.lab.model import Decoder
from alibi_attention.lab.recall import evaluate_recall, trial_count
from alibi_attention.lab.scores import RecallScore, Score
from alibi_attention.lab.streams import Corpus


class Scored(NamedTuple):
    """What a protocol comes to at one length: one score, or, for recall, one for each distance that fits."""

    length: int
    scores: list[Score] | list[RecallScore]


def held_out_of(corpus: Corpus) -> HeldOut:
    return HeldOut(corpus.held_out, corpus.held_out_starts, corpus.encoder.token_bytes, corpus.held_out_sizes)


def protocol_lengths(protocol: Protocol, config: ExperimentConfig) -> tuple[int, ...]:
    """The lengths a protocol is evaluated at, ascending."""
    return config.window_lengths if protocol == "targets" else config.eval_lengths


def protocol_work(
    protocol: Protocol, held_out: HeldOut, config: ExperimentConfig, lengths: Iterable[int] | None = None
) -> int:
    """Tokens that go through the decoder, at some of the protocol's lengths or at all."""
    lengths = protocol_lengths(protocol, config) if lengths is None else tuple(lengths)
    if protocol == "windows":
        # The same at every length.
        return len(lengths) * window_work(held_out, config.eval_lengths[-1:], config.eval_tokens)
    if protocol == "recall":
        return sum(n * trial_count(n, config.eval_tokens, config.recall_trials) for n in lengths)
    if protocol == "sliding":
        return sum(n * len(sliding_ends(held_out, *_sliding(config), n).ends) for n in lengths)
    return sum(lengths) * len(target_ends(held_out, *_targets(config)).ends)


def run_protocol(
    protocol: Protocol, decoder: Decoder, corpus: Corpus, config: ExperimentConfig, variant: str | None, tick: Tick,
    lengths: Iterable[int] | None = None,
) -> Iterator[Scored]:  # fmt: skip
    """Evaluate a decoder, on the device it is on, at some of the protocol's lengths or at all, one after the other.

    What a length comes to does not depend on which others are evaluated beside it, nor on when.
    """
    evaluate = _evaluator(protocol, decoder, corpus, config, variant, tick)
    device = next(decoder.parameters()).device.type
    for length in protocol_lengths(protocol, config) if lengths is None else lengths:
        with torch.autocast(device, torch.bfloat16, enabled=config.eval_precision == "bf16"):
            scores = evaluate(length)
        yield Scored(length, scores)


def _evaluator(
    protocol: Protocol, decoder: Decoder, corpus: Corpus, config: ExperimentConfig, variant: str | None, tick: Tick
) -> Callable[[int], list[Score] | list[RecallScore]]:
    """Scores at a length."""
    held_out, budget = held_out_of(corpus), config.eval_tokens
    if config.objective == "masked":
        # Its only protocol.
        return lambda length: evaluate_masked(
            decoder, held_out, (length,), budget, config.mask_share, segment=config.segment_length, variant=variant,
            tick=tick,
        )  # fmt: skip
    if protocol == "windows":
        return lambda length: evaluate_windows(
            decoder, held_out, (length,), budget, segment=config.segment_length, variant=variant, tick=tick
        )
    if protocol == "recall":
        return lambda length: evaluate_recall(
            decoder, held_out, corpus.encoder, (length,), budget=budget, most=config.recall_trials, seed=config.seed,
            variant=variant, tick=tick,
        )  # fmt: skip
    if protocol == "sliding":
        return lambda length: [
            evaluate_ends(
                decoder, held_out, length, sliding_ends(held_out, *_sliding(config), length), variant=variant, tick=tick
            )
        ]
    ends = target_ends(held_out, *_targets(config))
    return lambda length: [evaluate_ends(decoder, held_out, length, ends, variant=variant, tick=tick)]


def _sliding(config: ExperimentConfig) -> tuple[tuple[int, ...], int, int]:
    return config.eval_lengths, config.eval_tokens, config.stride


def _targets(config: ExperimentConfig) -> tuple[tuple[int, ...], int, int]:
    return config.window_lengths, config.eval_tokens, config.targets
