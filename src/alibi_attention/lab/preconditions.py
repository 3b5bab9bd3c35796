"""What is refused before anything is trained: what the machine lacks, and lengths that could tell nothing."""

from __future__ import annotations

import torch

from alibi_attention.lab.config import ExperimentConfig
from alibi_attention.lab.corpus import Corpus
from alibi_attention.lab.errors import LabError
from alibi_attention.lab.passages import RecallMixer, alphabet_of
from alibi_attention.lab.positions import DecoderShape, position_methods, split_name
from alibi_attention.lab.protocols import protocol_lengths
from alibi_attention.lab.recall import askable_distances


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


def check_machine(config: ExperimentConfig) -> None:
    """Refuse what this machine has not got, before anything is trained."""
    if config.device == "cuda":
        seen = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if not seen:
            got = "cuda, which torch does not see here"
            raise LabError("device", expected="a device of this machine", got=got, remedy="use cpu")
        if seen < config.devices:
            raise LabError("devices", expected=f"at most the {seen} of this machine", got=f"{config.devices}",
                           remedy="lower it")  # fmt: skip
    for name in config.variants:
        method, variant = split_name(name)
        position_methods()[method].require(variant)


def refuse_unreachable(config: ExperimentConfig) -> None:
    """Refuse lengths at which no method has positions: all that was trained would end in dashes."""
    shortest = min(protocol_lengths(protocol, config)[0] for protocol in config.protocols)
    shape = DecoderShape(config.length, config.layers, config.heads, config.width)
    with torch.random.fork_rng(devices=[]):
        ends = [position_methods()[method](shape).longest for method in config.methods]
    farthest = max(shortest if end is None else end for end in ends)
    if farthest < shortest:
        which = ", ".join(config.methods)
        expected = f"a length of at most {farthest:,}, where the positions of {which} end"
        got = ",".join(map(str, config.eval_lengths))
        raise LabError("eval_lengths", expected=expected, got=got, remedy=f"add {farthest}, or a method beside it")
