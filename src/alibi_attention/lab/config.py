"""Everything that decides the outcome of an experiment, in one frozen record."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator, model_validator

from alibi_attention.lab.errors import LabError
from alibi_attention.lab.kinds import (
    Count,
    HeldOutShare,
    Lengths,
    NotNegative,
    Pattern,
    Positive,
    Ranks,
    Seed,
    Share,
    WholeNumber,
)
from alibi_attention.lab.positions import position_methods

# 256 to 8192 for the default training length: each doubling up to 32 times what the model was trained at.
DEFAULT_DOUBLINGS = 5

MIN_BPE = 260

# Memory for all of a BPE is set aside before it is learned; the largest vocabularies in use have a million tokens.
MAX_BPE = 1 << 20


Protocol = Literal["windows", "sliding", "targets", "recall"]
Activation = Literal["gelu", "gelu-tanh", "relu"]

EmbeddingScale = Literal["method", "sqrt-width", "none"]

Objective = Literal["next", "masked"]

Precision = Literal["fp32", "bf16"]

MASK_SHARE = 0.15

PROTOCOLS: tuple[Protocol, ...] = get_args(Protocol)

# Several values, which a file may join by commas.
JOINED = ("methods", "variants", "protocols", "eval_lengths", "cutoffs")
# What they say is said of a data set, and nothing otherwise.
_OF_DATA_SETS = ("dataset_config", "dataset_split", "dataset_held_out", "text_column")

EVALUATION_SETTINGS = (
    "variants", "eval_lengths", "eval_tokens", "eval_precision", "protocols", "stride", "recall_trials", "device",
)  # fmt: skip
"""What may be changed without training again."""


class ExperimentConfig(BaseModel):
    """One experiment: the methods compared, the lengths, the corpus, the model and its training.

    Lengths are in tokens: bytes, unless ``tokenizer`` says otherwise.

    Attributes:
        objective: ``"next"``, a decoder that predicts each token from those before it, or ``"masked"``, an encoder that
            sees both sides and predicts tokens it is not shown.
        mask_share: share of the tokens that are masked, in training and in evaluation.
        methods: names of position methods, trained and drawn in this order.
        variants: other ways to evaluate them, without training of their own, such as ``"rope:yarn"``; ``"all"`` stands
            for every variant of the methods but those that repeat another in full windows (``alibi:dynamic``).
        length: length of the training sequences.
        eval_lengths: lengths of evaluation, ascending; by default ``length`` and its first five doublings.
        eval_tokens: about how many held-out tokens are read at every length, on average over the lengths for fixed
            targets; the same ones are scored at all.
        eval_precision: as ``precision``, of evaluation.
        protocols: what is evaluated, of ``PROTOCOLS``; ``"all"`` stands for every one.
        stride: of the sliding window; 0 for a quarter of each length, or the power of two below.
        recall_share: share of training sequences in which keys and values are told and asked for.
        recall_trials: most windows per length in which recall is tested.
        text: files and folders of the corpus; empty for Python's own standard library, unless ``dataset`` is given.
        held_out_text: files and folders to hold out, where ``text`` is all for training; by default documents of it.
        dataset: a Hugging Face data set, by name or local path.
        dataset_config, dataset_split, dataset_held_out: its configuration, the split to read, and the split to hold out
            (by default documents of the former).
        text_column: of the data set.
        document_start: a regular expression; rows of the data set, or lines of the text, that match begin a document,
            the others continue it. By default each row, or file, is a document.
        held_out_share: share of the corpus kept for evaluation.
        tokenizer: ``"bytes"``, ``"bpe"`` (byte-level, trained on the training text) or ``"words"`` (split at spaces).
        vocabulary: how many tokens; 0 for 256 bytes, 8192 of BPE, or every word of the training text.
        layers, heads, width: of the decoder.
        activation: of its MLPs: GELU by the error function, as MPT has it, or by tanh, as BLOOM has it, or ReLU.
        bias: whether its matrices and layer norms have biases; they begin at 0.
        embedding_scale: what embeddings of tokens are multiplied by before anything is added to them: the square root
            of the width (``"sqrt-width"``), 1 (``"none"``), or, ``"method"``, whichever of the two the position method
            asks for, as ``sinusoidal`` alone does for the root.
        final_norm: whether a layer norm stands between the last layer and the output.
        dropout, attention_dropout: while training.
        cutoffs: ranks at which an adaptive input and output vocabulary changes width, fourfold each; none by default.
        steps, batch_size: optimiser steps, and sequences in each part of a step.
        accumulate: parts whose gradients are added up for one step.
        optimizer: ``"adamw"``, or ``"nag"``, stochastic gradient descent with Nesterov's momentum 0.99.
        learning_rate: peak; it rises over ``warmup`` steps and falls to ``final_rate`` of it on a cosine.
        weight_decay, clip: of matrices other than embeddings of positions, and the largest gradient norm.
        precision: ``"fp32"``, or ``"bf16"``: matrix products in bfloat16, weights in float32.
        checkpoint_every: steps between resumable states. It has no influence on the outcome.
        seed: of the initial weights and the order of training sequences; the same for every method.
        device: ``"cpu"``, where an interrupted run continues to the same bits, or ``"cuda"``.
        devices: processes with a device each, which share every batch.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    objective: Objective = "next"
    mask_share: Share = MASK_SHARE
    methods: tuple[str, ...] = ("alibi", "sinusoidal", "rope")
    variants: tuple[str, ...] = ()
    length: Count = 256
    eval_lengths: Lengths = Field(default=(), validate_default=True)
    eval_tokens: Count = 131_072
    eval_precision: Precision = "fp32"
    protocols: tuple[Protocol, ...] = ("windows",)
    stride: WholeNumber = 0
    recall_share: Share = 0.0
    recall_trials: Count = 64
    text: tuple[str, ...] = ()
    held_out_text: tuple[str, ...] = ()
    dataset: str = ""
    dataset_config: str = ""
    dataset_split: str = "train"
    dataset_held_out: str = ""
    text_column: str = "text"
    document_start: Pattern = ""
    held_out_share: HeldOutShare = 0.1
    tokenizer: Literal["bytes", "bpe", "words"] = "bytes"
    vocabulary: WholeNumber = 0
    layers: Count = 4
    heads: Count = 8
    width: Count = 128
    activation: Activation = "gelu"
    bias: bool = False
    embedding_scale: EmbeddingScale = "method"
    final_norm: bool = True
    dropout: Share = 0.0
    attention_dropout: Share = 0.0
    cutoffs: Ranks = ()
    steps: Count = 900
    batch_size: Count = 8
    accumulate: Count = 1
    optimizer: Literal["adamw", "nag"] = "adamw"
    learning_rate: Positive = 3e-3
    warmup: WholeNumber = 50
    final_rate: Share = 0.1
    weight_decay: NotNegative = 0.1
    clip: Positive = 1.0
    precision: Precision = "fp32"
    checkpoint_every: Count = 50
    seed: Seed = 0
    device: Literal["cpu", "cuda"] = "cpu"
    devices: Count = 1

    @field_validator("methods")
    @classmethod
    def _known_methods(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        known = position_methods()
        remedy = f"choose from {', '.join(known)}"
        if not names or len(set(names)) != len(names):
            raise LabError("methods", expected="one or more names, each once", got=f"{list(names)}", remedy=remedy)
        for name in names:
            if name not in known:
                raise LabError("methods", expected="names of position methods", got=repr(name), remedy=remedy)
        return names

    @field_validator("variants")
    @classmethod
    def _known_variants(cls, names: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        known = position_methods()
        of_methods = [f"{m}:{v}" for m in info.data.get("methods", ()) for v in known[m].variants]
        if names == ("all",):
            return tuple(
                name for name in of_methods if name.partition(":")[2] not in known[name.partition(":")[0]].repeated
            )
        remedy = f"choose from {', '.join(of_methods)}, or all" if of_methods else "leave it out"
        for name in names:
            if name not in of_methods:
                expected = "names of variants of the methods"
                raise LabError("variants", expected=expected, got=repr(name), remedy=remedy)
        if len(set(names)) != len(names):
            raise LabError("variants", expected="each name once", got=",".join(names), remedy="drop the repetitions")
        return names

    @field_validator("protocols", mode="before")
    @classmethod
    def _all_protocols(cls, names: Any) -> Any:
        if not isinstance(names, list | tuple):
            return names
        if tuple(names) == ("all",):
            return PROTOCOLS
        remedy = f"choose from {', '.join(PROTOCOLS)}, or all"
        if not names:
            raise LabError("protocols", expected="one or more names", got="none", remedy=remedy)
        for name in names:
            if name not in PROTOCOLS:
                raise LabError("protocols", expected="names of protocols", got=repr(name), remedy=remedy)
        return tuple(name for name in PROTOCOLS if name in names)

    @field_validator("eval_lengths")
    @classmethod
    def _filled(cls, lengths: tuple[int, ...], info: ValidationInfo) -> tuple[int, ...]:
        # A length that cannot be used is not among the data, and is refused by itself.
        if lengths or "length" not in info.data:
            return lengths
        return tuple(info.data["length"] << i for i in range(DEFAULT_DOUBLINGS + 1))

    @model_validator(mode="after")
    def _fits_together(self) -> ExperimentConfig:
        if self.width % (2 * self.heads):
            step = 2 * self.heads
            nearest = max(step, round(self.width / step) * step)
            expected = f"a multiple of twice the heads, {step}, so that each head has an even width"
            raise LabError("width", expected=expected, got=f"{self.width}", remedy=f"try {nearest}")
        if self.batch_size % self.devices:
            expected = f"a multiple of the {self.devices} devices, which share a batch"
            remedy = f"try {self.devices * max(1, round(self.batch_size / self.devices))}"
            raise LabError("batch_size", expected=expected, got=f"{self.batch_size}", remedy=remedy)
        if self.text and self.dataset:
            got = f"--text and a data set, {self.dataset}"
            raise LabError("dataset", expected="one corpus", got=got, remedy="leave one of them out")
        if self.held_out_text and not self.text:
            remedy = "name the training text with --text"
            raise LabError("held_out_text", expected="text to train on beside it", got="none", remedy=remedy)
        self._fits_corpus()
        if self.tokenizer == "bytes" and self.vocabulary not in (0, 256):
            remedy = "leave it out, or choose --tokenizer bpe"
            raise LabError("vocabulary", expected="256 for bytes", got=f"{self.vocabulary}", remedy=remedy)
        if self.tokenizer == "bpe" and 0 < self.vocabulary < MIN_BPE:
            expected = f"at least {MIN_BPE}: the bytes, and some pairs"
            raise LabError("vocabulary", expected=expected, got=f"{self.vocabulary}", remedy="such as 4096")
        if self.tokenizer == "bpe" and self.vocabulary > MAX_BPE:
            expected = f"at most {MAX_BPE} tokens of BPE"
            raise LabError("vocabulary", expected=expected, got=f"{self.vocabulary}", remedy="such as 8192")
        self._fits_objective()
        return self

    def _fits_corpus(self) -> None:
        """Refuse a split that would be learned and held out, and settings that would do nothing."""
        if not self.dataset:
            for name in _OF_DATA_SETS:
                self._refuse_idle(name, "without a data set", "name one with --dataset, or leave it out")
            if not self.text:
                why = "for Python's standard library, whose files are its documents"
                self._refuse_idle("document_start", why, "name a text or a data set, or leave it out")
        if self.dataset and self.dataset_held_out == self.dataset_split:
            expected = "another split than the one to train on"
            remedy = f"leave it out to hold out documents of {self.dataset_split}"
            raise LabError("dataset_held_out", expected=expected, got=repr(self.dataset_held_out), remedy=remedy)
        for given in ("held_out_text", "dataset_held_out"):
            if getattr(self, given):
                flag = f"--{given.replace('_', '-')}"
                why = f"beside {flag}, which is held out as it is"
                self._refuse_idle("held_out_share", why, f"leave it out, or {flag}")

    def _refuse_idle(self, name: str, why: str, remedy: str) -> None:
        """Raise `LabError` unless a setting, which would do nothing, is at its default."""
        value, default = getattr(self, name), type(self).model_fields[name].default
        if value != default:
            expected = f"the default, {default}" if default else "nothing"
            raise LabError(name, expected=expected, got=f"{value!r} {why}", remedy=remedy)

    def _fits_objective(self) -> None:
        """Refuse what has no meaning where tokens are predicted from both sides, and masks where none are made."""
        if self.objective == "next":
            if self.mask_share != MASK_SHARE:
                remedy = "add --objective masked, or leave it out"
                got = f"{self.mask_share} for next-token prediction, which masks nothing"
                raise LabError("mask_share", expected=f"the default, {MASK_SHARE}", got=got, remedy=remedy)
            return
        if not self.mask_share:
            remedy = f"{MASK_SHARE} is the default"
            raise LabError("mask_share", expected="a share above 0", got="0", remedy=remedy)
        known = position_methods()
        for method in self.methods:
            if not known[method].bidirectional:
                expected = "methods whose attention looks both ways for --objective masked"
                got = f"{method!r}, whose class {known[method].__name__} is causal"
                remedy = "leave it out, or have its attend() follow `causal` and set bidirectional = True"
                raise LabError("methods", expected=expected, got=got, remedy=remedy)
        for protocol in self.protocols:
            if protocol != "windows":
                expected = "windows for --objective masked"
                got = f"{protocol}, which predicts a token from those before it"
                raise LabError("protocols", expected=expected, got=got, remedy="leave it out")
        if self.recall_share:
            expected = "0 for --objective masked: a value is asked for after it was told"
            raise LabError("recall_share", expected=expected, got=f"{self.recall_share}", remedy="leave it out")

    @property
    def window_lengths(self) -> tuple[int, ...]:
        """Lengths of the protocol of fixed targets: evaluation lengths, and halvings of the shortest one."""
        shorter, length = [], self.eval_lengths[0] // 2
        while length >= 2 * self.targets:
            shorter.append(length)
            length //= 2
        return (*reversed(shorter), *self.eval_lengths)

    @property
    def targets(self) -> int:
        """Tokens in a block of fixed targets: 32, or a quarter of the shortest evaluation length."""
        return max(1, min(32, self.eval_lengths[0] // 4))

    @property
    def segment_length(self) -> int:
        """Tokens scored together: the longest evaluation length, cut into windows for the shorter ones."""
        return self.eval_lengths[-1]


def nearest_setting(name: str) -> str | None:
    """The setting that a name which is none may have been meant for."""
    return next(iter(difflib.get_close_matches(name, ExperimentConfig.model_fields, n=1)), None)


def make_config(values: Mapping[str, Any]) -> ExperimentConfig:
    """`ExperimentConfig` from plain values.

    Raises:
        LabError: for the first value that cannot be used.
    """
    # A file may join names as the flags do.
    values = {
        name: [part.strip() for part in each.split(",")] if name in JOINED and isinstance(each, str) and each else each
        for name, each in values.items()
    }
    try:
        return ExperimentConfig(**values)
    except ValidationError as error:
        first = error.errors()[0]
        cause = first.get("ctx", {}).get("error")
        if isinstance(cause, LabError):
            raise cause from None
        name = str(first["loc"][0]) if first["loc"] else "configuration"
        if first["type"] == "extra_forbidden":
            known = ", ".join(ExperimentConfig.model_fields)
            near = nearest_setting(name)
            remedy = f"{near} is meant? Known are {known}" if near else f"known are {known}"
            raise LabError(name, expected="a known setting", got="this name", remedy=remedy) from None
        got = "nothing" if first["input"] is None else repr(first["input"])
        if first["type"] == "literal_error":
            expected, remedy = first["msg"].removeprefix("Input should be "), "choose one of these"
        else:
            expected, remedy = _kind_of(name, first["input"])
        raise LabError(name, expected=expected, got=got, remedy=remedy) from None


def _kind_of(name: str, value: Any) -> tuple[str, str]:
    """What a setting takes, in words, and what mends a value that is none: mostly an example."""
    default = ExperimentConfig.model_fields[name].default
    if name in ("eval_lengths", "cutoffs"):
        return "a list of whole numbers", "such as 256,512,1024" if name == "eval_lengths" else "such as 20000,60000"
    if name == "variants":
        return "a list of names", "such as alibi:ntk,rope:yarn, or all"
    if isinstance(default, tuple):
        return "a list of names", f"such as {','.join(default)}" if default else "such as book.txt"
    if isinstance(default, str):
        return "text", "leave it out for the default" if value is None else "put it into quotes"
    if isinstance(default, bool):
        return "true or false", f"such as {str(default).lower()}, the default"
    kind = "a whole number" if isinstance(default, int) else "a finite number"
    return kind, f"such as {default}, the default"
