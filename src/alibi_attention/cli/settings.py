"""Every setting of an experiment as a flag, for each command that begins one."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from copy import copy
from pathlib import Path
from typing import Annotated, Any, NamedTuple, get_type_hints

import typer

from alibi_attention.cli.errors import refuse
from alibi_attention.cli.lab_values import COUNT, given_settings

_EXPERIMENT = "Experiment"
_CORPUS = "Corpus"
_EVALUATION = "Evaluation"
_MODEL = "Model"
_TRAINING = "Training"
RUN = "Run"


class Shown(NamedTuple):
    """A default that is not a value, or help that a command has in its own words.

    Attributes:
        default: None where only the command knows it.
        words: what help says of it instead.
        help: of the flag.
    """

    default: Any = None
    words: str | None = None
    help: str | None = None


def option(panel: str, text: str, **more: Any) -> Any:
    return typer.Option(help=text, rich_help_panel=panel, **more)


def _settings(
    methods: Annotated[
        str, option(_EXPERIMENT, "Position methods to compare, joined by commas.", metavar="NAMES")
    ] = "alibi,sinusoidal,rope",
    length: Annotated[int, option(_EXPERIMENT, "Length of training sequences, in tokens.", **COUNT)] = 256,
    objective: Annotated[
        str,
        option(
            _EXPERIMENT,
            "Predict the next token from those before it, or masked tokens from both sides.",
            metavar="next|masked",
        ),
    ] = "next",
    mask_share: Annotated[float, option(_EXPERIMENT, "Share of the tokens that are masked.")] = 0.15,
    seed: Annotated[
        int, option(_EXPERIMENT, "Seed of the initial weights and the batches; the same for every method.")
    ] = 0,
    text: Annotated[
        list[Path] | None,
        option(
            _CORPUS,
            "Your own text: UTF-8 files and folders. Documents are held out whole, near-duplicates together; "
            "a single one is cut once, its end held out.",
            metavar="PATH...",
            show_default="Python's standard library",
        ),
    ] = None,
    held_out_text: Annotated[
        list[Path] | None,
        option(
            _CORPUS,
            "Text to hold out, where --text is all for training; repeat the flag for more.",
            metavar="PATH",
            show_default="documents of --text",
        ),
    ] = None,
    more_text: Annotated[list[Path] | None, typer.Argument(hidden=True, metavar="PATH")] = None,
    dataset: Annotated[str, option(_CORPUS, "A Hugging Face data set, by name or the path of a folder or file.")] = "",
    dataset_config: Annotated[str, option(_CORPUS, "Configuration of the data set.")] = "",
    dataset_split: Annotated[str, option(_CORPUS, "Split of the data set to read.")] = "train",
    dataset_held_out: Annotated[
        str, option(_CORPUS, "Split to hold out.", show_default="documents of --dataset-split")
    ] = "",
    text_column: Annotated[str, option(_CORPUS, "Column of the data set.")] = "text",
    document_start: Annotated[
        str,
        option(
            _CORPUS,
            "Regular expression of lines of text, or rows of the data set, that begin a document.",
            show_default="each file or row is a document",
        ),
    ] = "",
    held_out_share: Annotated[float, option(_CORPUS, "Share of the text kept for evaluation.")] = 0.1,
    tokenizer: Annotated[str, option(_CORPUS, "How text is cut into tokens.", metavar="bytes|bpe|words")] = "bytes",
    vocabulary: Annotated[
        int, option(_CORPUS, "Size of the vocabulary.", show_default="256 bytes, 8192 of BPE, every word")
    ] = 0,
    eval_lengths: Annotated[
        str | None,
        option(
            _EVALUATION,
            "Lengths to evaluate at, joined by commas.",
            metavar="LENGTHS",
            show_default="--length and its five doublings",
        ),
    ] = None,
    eval_tokens: Annotated[
        int, option(_EVALUATION, "About how many held-out tokens to read at each length.", **COUNT)
    ] = 131_072,
    eval_precision: Annotated[
        str, option(_EVALUATION, "Precision of matrix products in evaluation.", metavar="fp32|bf16")
    ] = "fp32",
    variants: Annotated[
        str,
        option(
            _EVALUATION,
            "Other ways to evaluate the trained models, joined by commas, such as alibi:ntk,rope:yarn; or all.",
            metavar="NAMES",
        ),
    ] = "",
    protocols: Annotated[
        str,
        option(_EVALUATION, "What to evaluate, of windows, sliding, targets and recall; or all.", metavar="NAMES"),
    ] = "windows",
    stride: Annotated[
        int, option(_EVALUATION, "Stride of the sliding window.", **COUNT, show_default="a quarter of each length")
    ] = 0,
    recall_trials: Annotated[
        int,
        option(
            _EVALUATION,
            "Most windows per length to test recall in; --eval-tokens may lower this, but not below 32.",
        ),
    ] = 64,
    layers: Annotated[int, option(_MODEL, "Layers of the decoder.")] = 4,
    heads: Annotated[int, option(_MODEL, "Attention heads.")] = 8,
    width: Annotated[int, option(_MODEL, "Width of the decoder.")] = 128,
    activation: Annotated[
        str,
        option(
            _MODEL,
            "GELU by the error function, as MPT has it, or by tanh, as BLOOM has it, or ReLU, which no export has.",
            metavar="gelu|gelu-tanh|relu",
        ),
    ] = "gelu",
    bias: Annotated[bool, option(_MODEL, "Biases in matrices and layer norms.")] = False,
    embedding_scale: Annotated[
        str,
        option(
            _MODEL,
            "What embeddings are multiplied by: the root of the width, nothing, or what the position method asks for.",
            metavar="method|sqrt-width|none",
        ),
    ] = "method",
    final_norm: Annotated[bool, option(_MODEL, "A layer norm before the output.")] = True,
    dropout: Annotated[float, option(_MODEL, "Dropout of embeddings and sub-layers, while training.")] = 0.0,
    attention_dropout: Annotated[float, option(_MODEL, "Dropout of attention weights, while training.")] = 0.0,
    cutoffs: Annotated[
        str, option(_MODEL, "Ranks that cut an adaptive vocabulary, joined by commas.", metavar="RANKS")
    ] = "",
    steps: Annotated[int, option(_TRAINING, "Optimiser steps.")] = 900,
    batch_size: Annotated[int, option(_TRAINING, "Sequences in each part of a step.")] = 8,
    accumulate: Annotated[int, option(_TRAINING, "Parts of a step whose gradients are added up.")] = 1,
    optimizer: Annotated[
        str, option(_TRAINING, "Optimiser; nag is Nesterov's accelerated gradient.", metavar="adamw|nag")
    ] = "adamw",
    learning_rate: Annotated[float, option(_TRAINING, "Peak learning rate.")] = 3e-3,
    warmup: Annotated[int, option(_TRAINING, "Steps in which the learning rate rises to its peak.")] = 50,
    final_rate: Annotated[float, option(_TRAINING, "Learning rate at the end, as a share of the peak.")] = 0.1,
    weight_decay: Annotated[float, option(_TRAINING, "Weight decay of weight matrices.")] = 0.1,
    clip: Annotated[float, option(_TRAINING, "Largest gradient norm.")] = 1.0,
    recall_share: Annotated[
        float, option(_TRAINING, "Share of sequences with keys and values to recall in them.")
    ] = 0.0,
    precision: Annotated[
        str, option(_TRAINING, "Precision of matrix products in training.", metavar="fp32|bf16")
    ] = "fp32",
    device: Annotated[str, option(_TRAINING, "Where to compute.", metavar="cpu|cuda")] = "cpu",
    devices: Annotated[int, option(_TRAINING, "Processes that share every batch.")] = 1,
    checkpoint_every: Annotated[int, option(RUN, "Steps between resumable states.")] = 50,
) -> None:
    """What `ExperimentConfig` has, in its groups. Never called: this is where the flags are written down."""


def takes_settings(
    leave_out: tuple[str, ...] = (), defaults: Mapping[str, Any] | None = None
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command, after its context, a flag for every setting; it reads them with `given_experiment`.

    Args:
        leave_out: settings that are not its user's to choose.
        defaults: of settings whose defaults are the command's own: values, or `Shown`.
    """
    hints = get_type_hints(_settings, include_extras=True)
    settings = [
        _with_default(parameter.replace(annotation=hints[name]), (defaults or {}).get(name))
        for name, parameter in inspect.signature(_settings).parameters.items()
        if name not in leave_out
    ]

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        own = get_type_hints(command, include_extras=True)
        context, *rest = (
            parameter.replace(annotation=own[name]) for name, parameter in inspect.signature(command).parameters.items()
        )

        @functools.wraps(command)
        def wrapper(**values: Any) -> None:
            command(**{name: value for name, value in values.items() if name in own})

        # What a checkpoint takes stands last in help, after the command's own. Typer reads both of what follows.
        every = [context, *settings[:-1], *rest, settings[-1]]
        wrapper.__signature__ = inspect.Signature(every)  # type: ignore[attr-defined]
        wrapper.__annotations__ = {parameter.name: parameter.annotation for parameter in every}
        return wrapper

    return decorate


def _with_default(parameter: inspect.Parameter, default: Any) -> inspect.Parameter:
    if default is None:
        return parameter
    shown = default if isinstance(default, Shown) else Shown(default)
    (kind, told) = parameter.annotation.__origin__, copy(parameter.annotation.__metadata__[0])
    told.show_default = shown.words or True
    told.help = shown.help or told.help
    return parameter.replace(annotation=Annotated[kind, told], default=shown.default)


def given_experiment(context: typer.Context, *, ignored: tuple[str, ...]) -> dict[str, Any]:
    """The settings that were written on the command line; a run must find its corpus again from any folder.

    Args:
        ignored: parameters of the command that are no settings.
    """
    text, held_out_text, more_text = (context.params.get(name) for name in ("text", "held_out_text", "more_text"))
    if more_text and not text:
        extra = " ".join(map(str, more_text))
        raise refuse("arguments", f"expected options only, got {extra}", "put --text before the names of files")
    if more_text and held_out_text:
        # What stands after a flag might be meant for either, and held-out text must not get into training.
        extra = " ".join(map(str, more_text))
        complaint = f"expected one path after each flag where text is held out, got {extra} besides"
        raise refuse("arguments", complaint, "repeat --text or --held-out-text before each")
    given = given_settings(context, ignored=(*ignored, "more_text"))
    if text:
        given["text"] = [str(path.resolve()) for path in [*text, *(more_text or [])]]
    if held_out_text:
        given["held_out_text"] = [str(path.resolve()) for path in held_out_text]
    if given.get("dataset") and Path(given["dataset"]).exists():
        given["dataset"] = str(Path(given["dataset"]).resolve())
    return given


def over_file(config: Path | None, given: Mapping[str, Any], names: dict[str, str]) -> dict[str, Any]:
    """The settings that were given, over those of a file where there is one.

    Args:
        config: the file.
        given: on the command line.
        names: gets what errors about settings of the file are to name, which are no flags.
    """
    if config is None:
        return dict(given)
    from alibi_attention.lab.config_file import read_settings

    settings = read_settings(config)
    names.update({name: place for name, place in settings.places.items() if name not in given})
    return {**settings, **given}
