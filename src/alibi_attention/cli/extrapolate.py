"""``alibi extrapolate``: train short, test long."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from alibi_attention.cli.errors import laboratory_errors, refuse
from alibi_attention.cli.extras import require
from alibi_attention.cli.lab_output import print_results
from alibi_attention.cli.lab_values import COUNT, given_settings

DEFAULT_OUTPUT = Path("runs/extrapolate")

_EXPERIMENT = "Experiment"
_CORPUS = "Corpus"
_EVALUATION = "Evaluation"
_MODEL = "Model"
_TRAINING = "Training"
_RUN = "Run"


def _option(panel: str, text: str, **more: Any) -> Any:
    return typer.Option(help=text, rich_help_panel=panel, **more)


def extrapolate(
    context: typer.Context,
    methods: Annotated[
        str, _option(_EXPERIMENT, "Position methods to compare, joined by commas.", metavar="NAMES")
    ] = "alibi,sinusoidal,rope",
    length: Annotated[int, _option(_EXPERIMENT, "Length of training sequences, in tokens.", **COUNT)] = 256,
    objective: Annotated[
        str,
        _option(
            _EXPERIMENT,
            "Predict the next token from those before it, or masked tokens from both sides.",
            metavar="next|masked",
        ),
    ] = "next",
    mask_share: Annotated[float, _option(_EXPERIMENT, "Share of the tokens that are masked.")] = 0.15,
    seed: Annotated[
        int, _option(_EXPERIMENT, "Seed of the initial weights and the batches; the same for every method.")
    ] = 0,
    text: Annotated[
        list[Path] | None,
        _option(
            _CORPUS,
            "Your own text: UTF-8 files and folders. Documents are held out whole, near-duplicates together; "
            "a single one is cut once, its end held out.",
            metavar="PATH...",
            show_default="Python's standard library",
        ),
    ] = None,
    held_out_text: Annotated[
        list[Path] | None,
        _option(
            _CORPUS,
            "Text to hold out, where --text is all for training; repeat the flag for more.",
            metavar="PATH",
            show_default="documents of --text",
        ),
    ] = None,
    more_text: Annotated[list[Path] | None, typer.Argument(hidden=True, metavar="PATH")] = None,
    dataset: Annotated[str, _option(_CORPUS, "A Hugging Face data set, by name or the path of a folder or file.")] = "",
    dataset_config: Annotated[str, _option(_CORPUS, "Configuration of the data set.")] = "",
    dataset_split: Annotated[str, _option(_CORPUS, "Split of the data set to read.")] = "train",
    dataset_held_out: Annotated[
        str, _option(_CORPUS, "Split to hold out.", show_default="documents of --dataset-split")
    ] = "",
    text_column: Annotated[str, _option(_CORPUS, "Column of the data set.")] = "text",
    document_start: Annotated[
        str,
        _option(
            _CORPUS,
            "Regular expression of lines of text, or rows of the data set, that begin a document.",
            show_default="each file or row is a document",
        ),
    ] = "",
    held_out_share: Annotated[float, _option(_CORPUS, "Share of the text kept for evaluation.")] = 0.1,
    tokenizer: Annotated[str, _option(_CORPUS, "How text is cut into tokens.", metavar="bytes|bpe|words")] = "bytes",
    vocabulary: Annotated[
        int, _option(_CORPUS, "Size of the vocabulary.", show_default="256 bytes, 8192 of BPE, every word")
    ] = 0,
    eval_lengths: Annotated[
        str | None,
        _option(
            _EVALUATION,
            "Lengths to evaluate at, joined by commas.",
            metavar="LENGTHS",
            show_default="--length and its five doublings",
        ),
    ] = None,
    eval_tokens: Annotated[
        int, _option(_EVALUATION, "About how many held-out tokens to read at each length.", **COUNT)
    ] = 131_072,
    eval_precision: Annotated[
        str, _option(_EVALUATION, "Precision of matrix products in evaluation.", metavar="fp32|bf16")
    ] = "fp32",
    variants: Annotated[
        str,
        _option(
            _EVALUATION,
            "Other ways to evaluate the trained models, joined by commas, such as alibi:ntk,rope:yarn; or all.",
            metavar="NAMES",
        ),
    ] = "",
    protocols: Annotated[
        str,
        _option(_EVALUATION, "What to evaluate, of windows, sliding, targets and recall; or all.", metavar="NAMES"),
    ] = "windows",
    stride: Annotated[
        int, _option(_EVALUATION, "Stride of the sliding window.", **COUNT, show_default="a quarter of each length")
    ] = 0,
    recall_trials: Annotated[
        int,
        _option(
            _EVALUATION,
            "Most windows per length to test recall in; --eval-tokens may lower this, but not below 32.",
        ),
    ] = 64,
    layers: Annotated[int, _option(_MODEL, "Layers of the decoder.")] = 4,
    heads: Annotated[int, _option(_MODEL, "Attention heads.")] = 8,
    width: Annotated[int, _option(_MODEL, "Width of the decoder.")] = 128,
    activation: Annotated[
        str,
        _option(
            _MODEL, "GELU by the error function, as MPT has it, or by tanh, as BLOOM has it.", metavar="gelu|gelu-tanh"
        ),
    ] = "gelu",
    dropout: Annotated[float, _option(_MODEL, "Dropout of embeddings and sub-layers, while training.")] = 0.0,
    attention_dropout: Annotated[float, _option(_MODEL, "Dropout of attention weights, while training.")] = 0.0,
    cutoffs: Annotated[
        str, _option(_MODEL, "Ranks that cut an adaptive vocabulary, joined by commas.", metavar="RANKS")
    ] = "",
    steps: Annotated[int, _option(_TRAINING, "Optimiser steps.")] = 900,
    batch_size: Annotated[int, _option(_TRAINING, "Sequences in each part of a step.")] = 8,
    accumulate: Annotated[int, _option(_TRAINING, "Parts of a step whose gradients are added up.")] = 1,
    optimizer: Annotated[
        str, _option(_TRAINING, "Optimiser; nag is Nesterov's accelerated gradient.", metavar="adamw|nag")
    ] = "adamw",
    learning_rate: Annotated[float, _option(_TRAINING, "Peak learning rate.")] = 3e-3,
    warmup: Annotated[int, _option(_TRAINING, "Steps in which the learning rate rises to its peak.")] = 50,
    final_rate: Annotated[float, _option(_TRAINING, "Learning rate at the end, as a share of the peak.")] = 0.1,
    weight_decay: Annotated[float, _option(_TRAINING, "Weight decay of weight matrices.")] = 0.1,
    clip: Annotated[float, _option(_TRAINING, "Largest gradient norm.")] = 1.0,
    recall_share: Annotated[
        float, _option(_TRAINING, "Share of sequences with keys and values to recall in them.")
    ] = 0.0,
    precision: Annotated[
        str, _option(_TRAINING, "Precision of matrix products in training.", metavar="fp32|bf16")
    ] = "fp32",
    device: Annotated[str, _option(_TRAINING, "Where to compute.", metavar="cpu|cuda")] = "cpu",
    devices: Annotated[int, _option(_TRAINING, "Processes that share every batch.")] = 1,
    output: Annotated[Path, _option(_RUN, "Folder of the run; must be new.")] = DEFAULT_OUTPUT,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue the interrupted run in --output.", rich_help_panel=_RUN)
    ] = False,
    config: Annotated[
        Path | None, _option(_RUN, "YAML file of settings; flags take precedence.", metavar="FILE")
    ] = None,
    checkpoint_every: Annotated[int, _option(_RUN, "Steps between resumable states.")] = 50,
) -> None:
    """Train short, test long: one small decoder per position method, evaluated beyond its training length.

    Writes a folder: configuration, results (JSON), weights (safetensors), tables, and a figure (PNG and SVG).
    Ctrl-C stops after the step at hand; --resume continues to the very same result.
    """
    if more_text and not text:
        extra = " ".join(map(str, more_text))
        raise refuse("arguments", f"expected options only, got {extra}", "put --text before the names of files")
    if more_text and held_out_text:
        # What stands after a flag might be meant for either, and held-out text must not get into training.
        extra = " ".join(map(str, more_text))
        complaint = f"expected one path after each flag where text is held out, got {extra} besides"
        raise refuse("arguments", complaint, "repeat --text or --held-out-text before each")
    given = given_settings(context, ignored=("output", "resume", "config", "more_text"))
    if text:
        # The run must find its corpus again from any folder.
        given["text"] = [str(path.resolve()) for path in [*text, *(more_text or [])]]
    if held_out_text:
        given["held_out_text"] = [str(path.resolve()) for path in held_out_text]
    if Path(given.get("dataset", "")).exists() and given.get("dataset"):
        given["dataset"] = str(Path(given["dataset"]).resolve())

    require("lab")
    with laboratory_errors(output):
        from rich.console import Console

        from alibi_attention.lab.config import make_config
        from alibi_attention.lab.config_file import read_settings
        from alibi_attention.lab.experiment import resume_experiment, start_experiment
        from alibi_attention.lab.progress import Progress

        settings = {**(read_settings(config) if config else {}), **given}
        if resume:
            results = resume_experiment(output, Progress(Console()), expected=settings)
        else:
            results = start_experiment(make_config(settings), output, Progress(Console()))
        print_results(results, output)
