"""The protocols of evaluation by name: how much work each is, and doing it."""

from __future__ import annotations

from alibi_attention.lab.config import ExperimentConfig, Protocol
from alibi_attention.lab.corpus import Corpus
from alibi_attention.lab.ends import Ends, sliding_ends, target_ends
from alibi_attention.lab.evaluation import Tick, evaluate_ends, evaluate_windows, window_work
from alibi_attention.lab.held_out import HeldOut
from alibi_attention.lab.masking import evaluate_masked
from alibi_attention.lab.model import Decoder
from alibi_attention.lab.recall import evaluate_recall, trial_count
from alibi_attention.lab.scores import RecallScore, Score


def held_out_of(corpus: Corpus) -> HeldOut:
    return HeldOut(corpus.held_out, corpus.held_out_starts, corpus.encoder.token_bytes, corpus.held_out_sizes)


def protocol_work(protocol: Protocol, held_out: HeldOut, config: ExperimentConfig) -> int:
    """Tokens that go through the decoder."""
    if protocol == "windows":
        return window_work(held_out, config.eval_lengths, config.eval_tokens)
    if protocol == "recall":
        return sum(n * trial_count(n, config.eval_tokens, config.recall_trials) for n in config.eval_lengths)
    return sum(length * len(ends.ends) for length, ends in _ends(protocol, held_out, config))


def run_protocol(
    protocol: Protocol, decoder: Decoder, corpus: Corpus, config: ExperimentConfig, variant: str | None, tick: Tick
) -> list[Score] | list[RecallScore]:
    """Evaluate a decoder, on the device it is on, at every length of the configuration."""
    held_out = held_out_of(corpus)
    if config.objective == "masked":
        # Its only protocol.
        return evaluate_masked(
            decoder, held_out, config.eval_lengths, config.eval_tokens, config.mask_share, variant=variant, tick=tick
        )  # fmt: skip
    if protocol == "windows":
        return evaluate_windows(
            decoder, held_out, config.eval_lengths, config.eval_tokens, variant=variant, tick=tick
        )  # fmt: skip
    if protocol == "recall":
        return evaluate_recall(
            decoder, held_out, corpus.encoder, config.eval_lengths, budget=config.eval_tokens,
            most=config.recall_trials, seed=config.seed, variant=variant, tick=tick,
        )  # fmt: skip
    return [
        evaluate_ends(decoder, held_out, length, ends, variant=variant, tick=tick)
        for length, ends in _ends(protocol, held_out, config)
    ]


def _ends(protocol: Protocol, held_out: HeldOut, config: ExperimentConfig) -> list[tuple[int, Ends]]:
    lengths, budget = config.eval_lengths, config.eval_tokens
    if protocol == "sliding":
        return [(n, sliding_ends(held_out, lengths, budget, config.stride, n)) for n in lengths]
    ends = target_ends(held_out, config.window_lengths, budget, config.targets)
    return [(n, ends) for n in config.window_lengths]
