"""Everything that decides the outcome of an experiment, in one frozen record."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from alibi_attention.lab.errors import LabError
from alibi_attention.lab.positions import position_methods

# 256 to 8192 for the default training length: each doubling up to 32 times what the model was trained at.
DEFAULT_DOUBLINGS = 5


def _at_least(minimum: float) -> AfterValidator:
    def check(value: float, info: ValidationInfo) -> float:
        if value < minimum:
            name = info.field_name or "value"
            raise LabError(
                name, expected=f"at least {minimum}", got=f"{value}", remedy=f"raise it to {minimum} or more"
            )
        return value

    return AfterValidator(check)


def _positive(value: float, info: ValidationInfo) -> float:
    if not value > 0:
        name = info.field_name or "value"
        raise LabError(name, expected="a number above 0", got=f"{value}", remedy="leave it out to take the default")
    return value


Count = Annotated[int, _at_least(1)]
WholeNumber = Annotated[int, _at_least(0)]
Positive = Annotated[float, Field(allow_inf_nan=False), AfterValidator(_positive)]

Activation = Literal["gelu", "gelu-tanh"]


class ExperimentConfig(BaseModel):
    """One experiment: the methods compared, the lengths, the corpus, the model and its training.

    Lengths and sizes are in bytes, which are the tokens of this model.

    Attributes:
        methods: names of position methods, trained and drawn in this order.
        length: length of the training sequences.
        eval_lengths: lengths of evaluation, ascending; by default ``length`` and its first five doublings.
        eval_bytes: about how many held-out bytes are scored, the same ones at every length.
        text: files and folders of the corpus; empty for Python's own standard library.
        held_out_share: share of the corpus kept for evaluation.
        layers, heads, width: of the decoder.
        activation: of its MLPs: GELU by the error function, as MPT has it, or by tanh, as BLOOM has it.
        steps, batch_size: optimiser steps, and sequences in each.
        learning_rate: peak; it rises over ``warmup`` steps and falls to a tenth on a cosine.
        weight_decay, clip: of AdamW's matrices, and the largest gradient norm.
        checkpoint_every: steps between resumable states. It has no influence on the outcome.
        seed: of the initial weights and the order of training sequences; the same for every method.
        device: ``"cpu"``, where an interrupted run continues to the same bits, or ``"cuda"``.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    methods: tuple[str, ...] = ("alibi", "sinusoidal", "rope")
    length: Count = 256
    eval_lengths: tuple[int, ...] = ()
    eval_bytes: Count = 131_072
    text: tuple[str, ...] = ()
    held_out_share: float = 0.1
    layers: Count = 4
    heads: Count = 8
    width: Count = 128
    activation: Activation = "gelu"
    steps: Count = 900
    batch_size: Count = 8
    learning_rate: Positive = 3e-3
    warmup: WholeNumber = 50
    weight_decay: Annotated[float, _at_least(0)] = 0.1
    clip: Positive = 1.0
    checkpoint_every: Count = 50
    seed: WholeNumber = 0
    device: Literal["cpu", "cuda"] = "cpu"

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

    @field_validator("held_out_share")
    @classmethod
    def _proper_share(cls, share: float) -> float:
        if not 0.0 < share <= 0.5:
            remedy = "keep enough for training; 0.1 is the default"
            raise LabError("held_out_share", expected="a share above 0 and up to 0.5", got=f"{share}", remedy=remedy)
        return share

    @model_validator(mode="before")
    @classmethod
    def _fill_eval_lengths(cls, values: Any) -> Any:
        length = values.get("length", cls.model_fields["length"].default)
        if not values.get("eval_lengths") and isinstance(length, int):
            return {**values, "eval_lengths": tuple(length << i for i in range(DEFAULT_DOUBLINGS + 1))}
        return values

    @field_validator("eval_lengths")
    @classmethod
    def _ascending(cls, lengths: tuple[int, ...]) -> tuple[int, ...]:
        if lengths and (lengths[0] < 1 or any(a >= b for a, b in pairwise(lengths))):
            remedy = "list each length once, shortest first, such as 256,512,1024"
            got = ",".join(map(str, lengths))
            raise LabError("eval_lengths", expected="ascending lengths of at least 1", got=got, remedy=remedy)
        return lengths

    @model_validator(mode="after")
    def _heads_divide_width(self) -> ExperimentConfig:
        if self.width % (2 * self.heads):
            step = 2 * self.heads
            nearest = max(step, round(self.width / step) * step)
            expected = f"a multiple of twice the heads, {step}, so that each head has an even width"
            raise LabError("width", expected=expected, got=f"{self.width}", remedy=f"try {nearest}")
        return self

    @property
    def segment_length(self) -> int:
        """Bytes scored together: the longest evaluation length, cut into windows for the shorter ones."""
        return self.eval_lengths[-1]


def make_config(values: Mapping[str, Any]) -> ExperimentConfig:
    """`ExperimentConfig` from plain values.

    Raises:
        LabError: for the first value that cannot be used.
    """
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
            raise LabError(name, expected="a known setting", got="this name", remedy=f"known are {known}") from None
        expected = first["msg"].removeprefix("Input should be ")
        remedy = "choose one of these" if first["type"] == "literal_error" else "give such a value"
        raise LabError(name, expected=expected, got=repr(first["input"]), remedy=remedy) from None
