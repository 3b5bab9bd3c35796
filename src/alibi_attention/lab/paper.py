"""The paper's WikiText-103 experiment in this laboratory's terms."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from alibi_attention.lab.config import ExperimentConfig, make_config
from alibi_attention.lab.documents import configurations, saved_to_disk
from alibi_attention.lab.numerals import whole_number

PAPER: Mapping[str, Any] = {
    "methods": ("alibi", "sinusoidal", "rope", "t5"),
    "length": 512,
    "eval_tokens": 217_646,
    "protocols": ("windows", "sliding"),
    "dataset": "Salesforce/wikitext",
    "dataset_config": "wikitext-103-v1",
    "dataset_split": "train",
    "dataset_held_out": "validation",
    "document_start": "^ = [^=]",
    "tokenizer": "words",
    "layers": 16,
    "heads": 8,
    "width": 1024,
    "activation": "relu",
    "bias": True,
    "embedding_scale": "sqrt-width",
    "final_norm": False,
    "dropout": 0.3,
    "attention_dropout": 0.1,
    "cutoffs": (20_000, 60_000),
    "optimizer": "nag",
    "learning_rate": 1.0,
    "warmup": 16_000,
    "final_rate": 1e-4,
    "weight_decay": 0.0,
    "clip": 0.1,
    "steps": 286_000,
    "precision": "bf16",
    "checkpoint_every": 1000,
    "device": "cuda",
}
"""All but what follows from the length and the devices.

Model and optimiser of Baevski and Auli (2019), which the paper trains. The model is fairseq's
``transformer_lm_wiki103``: 16 layers of 8 heads, width 1024, ReLU, biases, no norm before the output, adaptive input
and output with cutoffs at 20,000 and 60,000 words, embeddings times the square root of the width (under ALiBi too, in
the authors' code; that of their RoPE and T5 is not published). It has 246,933,504 parameters. Nesterov's momentum 0.99,
peak rate 1 after 16,000 steps, then one period of a cosine, 270,000 steps, to 0.0001 (``--min-lr`` of the command in
the README of the authors' code; ``--stop-min-lr 1e-09`` there never comes into force), gradients clipped at 0.1.
"""

GPUS = 8
TOKENS_A_GPU = 9_216
TOKENS_A_STEP = GPUS * TOKENS_A_GPU
"""The same at every training length."""

LENGTHS = (64, 128, 256, 512, 1024, 1536, 2048, 3072)
"""Those it trains and evaluates at: each model at its own and all that are longer."""

DIFFERENCES = (
    "weights drawn with unit variance through each matrix, less at the end of a sub-layer, and biases from 0; fairseq "
    "draws by Xavier's rule in attention and by torch's default in the feed-forward layer, most biases too",
    "the commonest words' vectors reach the output through the matrix they pass on their way in; fairseq has it on the "
    "way in alone",
    "sinusoids of the original's wavelengths, from position 0; fairseq's differ a little, and begin at position 2",
    "training windows drawn anywhere in the text, with replacement; fairseq cuts it into blocks once and shuffles "
    "those each epoch",
    "a token between articles, where fairseq has the ends of their lines alone",
    "dropout where this decoder has it, 0.3 and 0.1 of attention weights; none inside the feed-forward layer or the "
    "output",
    "a warm-up from 1/16,001 of the peak, where fairseq's begins at 1e-7; the rates differ by less than that",
    "bfloat16 matrix products, where the paper trained in float16",
    "T5's table in units of 10 nats: it moves as in nats, but counts ten times as much in the norm that is clipped",
    "whole segments of the longest length evaluated are scored, at most as many words as `eval_tokens`: 70 of 3,072, "
    "215,040 of the development set's 217,646 words",
    "a sliding window that moves by a quarter of its length over a quarter of the tokens; `--stride 1 --eval-tokens "
    "668608512`, 3,072 tokens read for each one scored, is the paper's",
)
"""What is not as in the paper at any length."""


def paper_config(changes: Mapping[str, Any] | None = None) -> ExperimentConfig:
    """The configuration of the paper, with ``changes`` of the caller's.

    A step has the paper's 73,728 words at any length and on any number of devices, as near as whole sequences come to
    it: parts of up to 9,216 words a device, as many as it takes, unless ``batch_size`` or ``accumulate`` say otherwise.
    Evaluated is at the trained length and at those of the paper's that are longer.

    Raises:
        LabError: for changes that cannot be used.
    """
    settings = {**PAPER, **(changes or {})}
    if "dataset_config" not in (changes or {}) and _of_one_configuration(str(settings["dataset"])):
        settings["dataset_config"] = ""
    length = _usable(settings["length"])
    settings |= _step(length, _usable(settings.get("devices", 1)), settings)
    if not settings.get("eval_lengths"):
        settings["eval_lengths"] = (length, *(longer for longer in LENGTHS if longer > length))
    return make_config(settings)


def _of_one_configuration(dataset: str) -> bool:
    """Whether it is a copy on this machine with one configuration to take. A clone of the hub's has the paper's among
    several."""
    path = Path(dataset)
    if path.is_dir() and not saved_to_disk(dataset):
        return len(configurations(dataset)) == 1
    return path.exists()


def _usable(value: Any) -> int:
    """A number to divide by; what is none stays in the settings, to be refused with all that cannot be used."""
    try:
        return max(1, whole_number(value) if isinstance(value, str) else int(value))
    except (TypeError, ValueError, OverflowError):
        return 1


def _step(length: int, devices: int, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Sequences in a part and parts of a step; what was given stays as it is, and the other makes up for it."""
    batch_size, accumulate = settings.get("batch_size"), settings.get("accumulate")
    if batch_size is None and accumulate is None:
        most = max(1, TOKENS_A_GPU // length)
        # The most that a device takes, and rather fewer than another number of words a step.
        whole = (n for n in range(most, 0, -1) if TOKENS_A_STEP % (n * devices * length) == 0)
        batch_size = devices * next(whole, most)
    elif batch_size is None:
        batch_size = devices * max(1, round(TOKENS_A_STEP / (_usable(accumulate) * devices * length)))
    if accumulate is None:
        accumulate = max(1, round(TOKENS_A_STEP / (_usable(batch_size) * length)))
    return {"batch_size": batch_size, "accumulate": accumulate}


_OF_THE_MODEL = ("activation", "bias", "embedding_scale", "final_norm")


def differences(config: ExperimentConfig) -> tuple[str, ...]:
    """What is not as in the paper in a configuration of `paper_config`, or of a run begun before it had all of these.

    That other sizes than the paper's are not the paper's goes without saying.
    """
    found = [
        f"{name} {getattr(config, name)}, where the paper's model has {PAPER[name]}"
        for name in _OF_THE_MODEL
        if getattr(config, name) != PAPER[name]
    ]
    tokens = config.batch_size * config.accumulate * config.length
    if tokens != TOKENS_A_STEP:
        found.append(f"{tokens:,} words a step, where the paper's have {TOKENS_A_STEP:,}")
    return (*DIFFERENCES, *found)
