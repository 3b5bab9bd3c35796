"""The paper's WikiText-103 experiment in this laboratory's terms."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from alibi_attention.lab.config import ExperimentConfig, make_config
from alibi_attention.lab.documents import saved_to_disk

PAPER: Mapping[str, Any] = {
    "methods": ("alibi", "sinusoidal", "rope", "t5"),
    "length": 512,
    "eval_lengths": (512, 1024, 1536, 2048, 3072),
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
    "batch_size": 18,
    "accumulate": 8,
    "precision": "bf16",
    "checkpoint_every": 1000,
    "device": "cuda",
}
"""Model and optimiser of Baevski and Auli (2019), which the paper trains: 16 layers of 8 heads, width 1024, adaptive
input and output with cutoffs at 20,000 and 60,000 words, Nesterov's momentum 0.99, peak rate 1 after 16,000 steps, then
one period of a cosine, 270,000 steps, to 0.0001 (``--min-lr`` of the command in the README of the authors' code;
``--stop-min-lr 1e-09`` there never comes into force), gradients clipped at 0.1. 18 sequences of 512 in 8 parts are the
8 x 9,216 tokens of its 8 GPUs.
"""

DIFFERENCES = (
    "this laboratory's decoder: GELU and no bias terms, where the paper's has ReLU and biases",
    "embeddings times the square root of the width under the sinusoidal method alone, where fairseq has the factor for "
    "every method",
    "a norm before the output, where the paper's model ends without one",
    "dropout where this decoder has it, 0.3 and 0.1 of attention weights; none inside the feed-forward layer or the "
    "output",
    "a warm-up from 1/16,001 of the peak, where fairseq's begins at 1e-7; the rates differ by less than that",
    "bfloat16 matrix products, where the paper trained in float16",
    "T5's table in units of 10 nats: it moves as in nats, but counts ten times as much in the norm that is clipped",
    "a sliding window that moves by a quarter of its length over a quarter of the tokens; `stride: 1` and "
    "`eval_tokens: 668608512` in a --config file, 3,072 tokens read for each one scored, are the paper's",
)
"""What is not as in the paper."""


def paper_config(changes: Mapping[str, Any] | None = None) -> ExperimentConfig:
    """The configuration of the paper, with ``changes`` of the caller's.

    Raises:
        LabError: for changes that cannot be used.
    """
    settings = {**PAPER, **(changes or {})}
    if saved_to_disk(str(settings["dataset"])) and "dataset_config" not in (changes or {}):
        # A copy saved to disk is of one configuration, and takes no name of one.
        settings["dataset_config"] = ""
    return make_config(settings)
