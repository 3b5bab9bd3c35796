"""What is refused before anything is trained, and what is said of it: what the machine lacks, lengths and models that
cannot be, settings that would tell nothing."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import torch

from alibi_attention.lab.config import ExperimentConfig
from alibi_attention.lab.ends import sliding_tokens
from alibi_attention.lab.errors import LabError
from alibi_attention.lab.model import build_decoder
from alibi_attention.lab.passages import RecallMixer, alphabet_of
from alibi_attention.lab.positions import DecoderShape, position_methods, split_name
from alibi_attention.lab.protocols import held_out_of, protocol_lengths
from alibi_attention.lab.reading import left_out
from alibi_attention.lab.recall import askable_distances
from alibi_attention.lab.streams import Corpus
from alibi_attention.lab.training import learning_rate_factor

FEW_SCORED = 256
"""Fewer tokens than this by the sliding window are said to be few."""

UNTAUGHT = (
    "Recall is tested in models that were never shown the task (--recall-share 0): values that are not recalled then "
    "say nothing of positions."
)

LOSSY = (
    "Tokens are words: unknown ones and white space count as bytes and nothing of them is told, so bits per byte come "
    "out too low to compare with bytes or BPE. Compare perplexities, of one vocabulary."
)

# What a setting of evaluation is of.
_OF_PROTOCOLS = {"stride": "sliding", "recall_trials": "recall"}


def refuse_output_in_text(config: ExperimentConfig, root: Path) -> None:
    """Refuse a run folder below its own text: what the run writes would be text, and the run another one.

    Hidden folders are no text.
    """
    here = root.resolve()
    data = [config.dataset] if config.dataset else []
    for text in (*config.text, *config.held_out_text, *data):
        folder = Path(text).resolve()
        if folder.is_dir() and here.is_relative_to(folder):
            if any(left_out(name) for name in here.relative_to(folder).parts):
                continue
            beside = folder.with_name(folder.name + "-run")
            raise LabError(
                "output",
                expected=f"a folder outside the text in {text}",
                got=f"{root}, where all that the run writes would become text",
                remedy=f"name another, such as {beside}, or give the folders of text alone",
            )


def check_recall(config: ExperimentConfig, corpus: Corpus) -> None:
    """Refuse lengths or a vocabulary with no room for keys and values, before anything is written."""
    RecallMixer(corpus.encoder, config.recall_share, config.length)
    if "recall" in config.protocols:
        alphabet = alphabet_of(corpus.encoder)
        if not askable_distances(alphabet, config.eval_lengths[-1]):
            least = alphabet.question + alphabet.width - 1
            expected = f"a length of at least {least} tokens for recall, which is told and asked"
            got = ",".join(map(str, config.eval_lengths))
            raise LabError("eval_lengths", expected=expected, got=got, remedy="add one, or leave recall out")


def check_machine(config: ExperimentConfig, *, trains: bool = True) -> None:
    """Refuse what this machine has not got, before anything is computed; without training, one device is enough."""
    if config.device == "cuda":
        seen = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if not seen:
            got = "cuda, which torch does not see here"
            raise LabError("device", expected="a device of this machine", got=got, remedy="use cpu")
        if trains and seen < config.devices:
            raise LabError("devices", expected=f"at most the {seen} of this machine", got=f"{config.devices}",
                           remedy="lower it")  # fmt: skip
    for name in config.variants:
        method, variant = split_name(name)
        position_methods()[method].require(variant)


def check_models(config: ExperimentConfig, corpus: Corpus) -> None:
    """Refuse settings that some method's model cannot be built with, before anything is written."""
    for method in config.methods:
        # Without memory: what a model would be is asked, not the model itself.
        with torch.device("meta"):
            build_decoder(config, method, vocabulary=corpus.encoder.vocabulary)


def refuse_idle(config: ExperimentConfig, names: Collection[str] = tuple(_OF_PROTOCOLS)) -> None:
    """Refuse those of these settings that are of a protocol which is not evaluated, and would do nothing."""
    for name, protocol in _OF_PROTOCOLS.items():
        if name in names and protocol not in config.protocols:
            default = ExperimentConfig.model_fields[name].default
            if getattr(config, name) != default:
                got = f"{getattr(config, name)} without the protocol {protocol}"
                remedy = f"leave it out, or add {protocol} to the protocols"
                raise LabError(name, expected=f"the default, {default}", got=got, remedy=remedy)


def remarks(config: ExperimentConfig, corpus: Corpus, *, trains: bool) -> list[str]:
    """What whoever reads the results had better know, in sentences."""
    found = []
    if trains and config.warmup >= config.steps:
        reached = learning_rate_factor(config.steps - 1, steps=config.steps, warmup=config.warmup, final=1.0)
        found.append(f"The learning rate rises over {config.warmup} steps and there are {config.steps}: it ends at "
                     f"{reached:.0%} of its peak and never falls. Give a --warmup below --steps.")  # fmt: skip
    if "recall" in config.protocols and config.recall_share == 0.0:
        found.append(UNTAUGHT)
    if config.tokenizer == "words":
        found.append(LOSSY)
    if "sliding" in config.protocols:
        scored, enough = sliding_tokens(held_out_of(corpus), config.eval_lengths, config.eval_tokens, config.stride,
                                        FEW_SCORED)  # fmt: skip
        if scored < FEW_SCORED:
            remedy = (
                "the held-out text has no more" if enough is None else f"--eval-tokens {enough} reads enough for more"
            )
            found.append(
                f"By the sliding window {scored} tokens are scored at every length, too few to go by; {remedy}."
            )
    return found


def refuse_unreachable(config: ExperimentConfig) -> None:
    """Refuse lengths at which no method has positions: all that was trained would end in dashes."""
    shortest = min(protocol_lengths(protocol, config)[0] for protocol in config.protocols)
    shape = DecoderShape(config.length, config.layers, config.heads, config.width)
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        ends = [position_methods()[method](shape).longest for method in config.methods]
    farthest = max(shortest if end is None else end for end in ends)
    if farthest < shortest:
        which = ", ".join(config.methods)
        expected = f"a length of at most {farthest:,}, where the positions of {which} end"
        got = ",".join(map(str, config.eval_lengths))
        raise LabError("eval_lengths", expected=expected, got=got, remedy=f"add {farthest}, or a method beside it")
