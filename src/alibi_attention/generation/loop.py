"""The loop: read the prompt, then draw, give out, read, again and again."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from alibi_attention import HorizonViolation
from alibi_attention.generation.sampling import Sampling
from alibi_attention.generation.source import PROMPT_CHUNK, Source, violation
from alibi_attention.generation.text import Stops
from alibi_attention.lab.errors import LabError


@dataclass
class Outcome:
    """What has been done so far; right at any moment, so also where the loop was interrupted.

    Attributes:
        prompt_tokens, tokens: read beforehand, and generated.
        prompt_seconds, seconds: spent on either.
        reason: why it ended: "length", "stop", "end of text", or "interrupted".
    """

    prompt_tokens: int = 0
    tokens: int = 0
    prompt_seconds: float = 0.0
    seconds: float = 0.0
    reason: str = "interrupted"

    @property
    def speed(self) -> float | None:
        """Tokens a second; None below two: the first is drawn from what reading the prompt gave, and costs nothing."""
        return (self.tokens - 1) / self.seconds if self.tokens > 1 and self.seconds else None


def generate(
    source: Source,
    prompt: str,
    sampling: Sampling,
    outcome: Outcome,
    *,
    write: Callable[[str], None],
    max_tokens: int | None,
    stops: Sequence[str] = (),
    past_end: bool = False,
    seed: int | None = None,
) -> None:
    """Continue a prompt, writing text as it comes, whole characters at a time.

    Args:
        source: the model.
        prompt: what to continue.
        sampling: how tokens are drawn.
        outcome: kept up to date throughout.
        write: given each piece of text.
        max_tokens: to generate; None for no end.
        stops: strings that end the text; they are not written.
        past_end: go on where the model ends a text.
        seed: of the draws; None for a different text each time.

    Raises:
        LabError: for a text longer than there are positions, or logits that are no numbers; where keys that were
            forgotten may matter.
        KeyboardInterrupt: passed on; what was held back has been written.
    """
    generator = torch.Generator()
    if seed is None:
        generator.seed()
    else:
        generator.manual_seed(seed)
    reader, stop = source.text(), Stops(stops)
    try:
        _run(source, prompt, sampling, outcome, generator, reader.push, stop, write, max_tokens, past_end)
    except HorizonViolation as error:
        raise violation(error) from None
    finally:
        rest = stop.push(reader.end()) + ("" if stop.met else stop.end())
        # Met only now: in the rest of a character, or where it waited for another that began before it.
        if stop.met and outcome.reason != "interrupted":
            outcome.reason = "stop"
        if rest:
            write(rest)


def _run(
    source: Source, prompt: str, sampling: Sampling, outcome: Outcome, generator: torch.Generator,
    text_of: Callable[[int], str], stop: Stops, write: Callable[[str], None], max_tokens: int | None, past_end: bool,
) -> None:  # fmt: skip
    began = time.perf_counter()
    tokens = source.encode(prompt)
    _refuse_too_long(source, len(tokens), max_tokens)
    with torch.inference_mode():
        for at in range(0, len(tokens), PROMPT_CHUNK):
            logits = source.read(tokens[at : at + PROMPT_CHUNK])
            outcome.prompt_tokens = min(len(tokens), at + PROMPT_CHUNK)
            outcome.prompt_seconds = time.perf_counter() - began
        began = time.perf_counter()
        while max_tokens is None or outcome.tokens < max_tokens:
            token = sampling.choose(logits, generator)
            if token in source.end and not past_end:
                outcome.reason = "end of text"
                return
            outcome.tokens += 1
            outcome.seconds = time.perf_counter() - began
            # An end that is gone past is no text.
            piece = stop.push("\n" if token in source.end else text_of(token))
            if piece:
                write(piece)
            if stop.met:
                outcome.reason = "stop"
                return
            if outcome.tokens != max_tokens:
                logits = source.read([token])
    outcome.reason = "length"


def _refuse_too_long(source: Source, prompt_tokens: int, max_tokens: int | None) -> None:
    """Before anything is written."""
    if source.longest is None:
        return
    # The last token drawn is not read.
    room = source.longest - prompt_tokens + 1
    where = f"where the positions of {source.name} end"
    if room < 1:
        expected = f"at most {source.longest:,} tokens, {where}"
        raise LabError("prompt", expected=expected, got=f"{prompt_tokens:,}", remedy="shorten it")
    if max_tokens is None or max_tokens > room:
        expected = f"at most {room:,} after this prompt, {where}"
        got = "no end" if max_tokens is None else f"{max_tokens:,}"
        raise LabError("max_tokens", expected=expected, got=got, remedy=f"use --max-tokens {room}")
