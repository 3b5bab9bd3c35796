"""What a comparison found, as it is kept in a file."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from alibi_attention.bench.errors import BenchError
from alibi_attention.bench.summary import measured, median
from alibi_attention.bench.timing import Samples
from alibi_attention.lab.files import write_json
from alibi_attention.lab.scores import LossProtocol

SCHEMA_VERSION = 2

Phase = Literal["training", "prefill", "decode"]
PHASES: tuple[Phase, ...] = get_args(Phase)


@dataclass
class Timed:
    """One contestant at one size; ``refused`` says why it has no samples."""

    name: str
    title: str
    method: str
    samples: Samples | None = None
    refused: str = ""

    @property
    def seconds(self) -> float | None:
        """Median of a call."""
        return None if self.samples is None or not measured(self.samples.seconds) else median(self.samples.seconds)


@dataclass
class Speed:
    """All contestants in one phase at one length; ``kept_share`` of the tiles are computed within the horizon."""

    phase: Phase
    length: int
    kept_share: float | None = None
    load: float | None = None
    timed: list[Timed] = field(default_factory=list)

    def find(self, name: str) -> Timed | None:
        return next((each for each in self.timed if each.name == name), None)


@dataclass
class Memory:
    """Bytes at the peak beyond the inputs, of which ``outputs`` are what the call returns; or why they are not known.

    For "cache" they are what holds the keys and values of one layer.
    """

    phase: str
    length: int
    name: str
    title: str
    method: str
    peak: int | None = None
    outputs: int = 0
    note: str = ""


@dataclass
class Quality:
    """Bits at one length by one way of using a trained method.

    Attributes:
        name, title: such as ``"rope:yarn"``, and in words.
        multiple: length over the trained length.
        bits, low, high: mean over seeds, 95% interval over documents and seeds.
        difference, difference_low, difference_high: that less the bits of `Trained.reference` at this length, paired by
            document and seed; None for the reference itself.
        documents: that the scored bytes are of.
        note: why there is no number.
    """

    name: str
    title: str
    length: int
    multiple: float
    bits: float | None
    low: float | None = None
    high: float | None = None
    difference: float | None = None
    difference_low: float | None = None
    difference_high: float | None = None
    documents: int = 0
    note: str = ""


@dataclass
class Usable:
    """Up to which length one way of using a trained method is of use, in the words of the laboratory's verdicts.

    Attributes:
        name, title: as of `Quality`.
        by_loss, by_recall: "" where that was not measured.
    """

    name: str
    title: str
    by_loss: str = ""
    by_recall: str = ""


@dataclass
class Trained:
    """Finished runs that differ in their seed.

    Attributes:
        objective: "next" or "masked".
        train_length, layers, heads, width, steps, tokens, unit, corpus, seeds: what was trained, and how.
        protocol: by which the bits were measured, of `lab.scores.LossProtocol`.
        reference: title of the method that the others are compared with.
        position_parameters: by method.
        quality, usable: in the order of the runs.
    """

    objective: str
    train_length: int
    layers: int
    heads: int
    width: int
    steps: int
    tokens: int
    unit: str
    corpus: str
    seeds: list[int]
    protocol: LossProtocol = "windows"
    reference: str = ""
    position_parameters: dict[str, int] = field(default_factory=dict)
    quality: list[Quality] = field(default_factory=list)
    usable: list[Usable] = field(default_factory=list)


@dataclass
class Comparison:
    """All of it.

    Attributes:
        methods, titles: of the columns.
        timed_as: by method whose attention it has (`contestants.timed_as`).
        position_parameters: by method, of a decoder as the settings have it.
    """

    machine: dict[str, Any]
    settings: dict[str, Any]
    methods: list[str]
    titles: dict[str, str]
    timed_as: dict[str, str | None]
    position_parameters: dict[str, int]
    speed: list[Speed] = field(default_factory=list)
    memory: list[Memory] = field(default_factory=list)
    trained: list[Trained] = field(default_factory=list)
    status: str = "incomplete"
    seconds: float = 0.0
    schema_version: int = SCHEMA_VERSION

    def write(self, path: Path) -> None:
        """Replace the file as a whole."""
        write_json(path, asdict(self))


def read_comparison(path: Path) -> Comparison:
    """A file that `Comparison.write` wrote.

    Raises:
        BenchError: where there is none, or something else.
    """
    remedy = "name a versus.json that alibi versus wrote"
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "no JSON"
        raise BenchError("table", expected="a comparison", got=f"{path} ({reason})", remedy=remedy) from None
    version = value.get("schema_version") if isinstance(value, dict) else None
    if version != SCHEMA_VERSION:
        got = f"{path} of version {version}"
        raise BenchError("table", expected=f"a comparison of version {SCHEMA_VERSION}", got=got, remedy=remedy)
    try:
        speed = [Speed(**{**each, "timed": [_timed(one) for one in each["timed"]]}) for each in value.pop("speed")]
        memory = [Memory(**each) for each in value.pop("memory")]
        trained = [_trained(each) for each in value.pop("trained")]
        return Comparison(speed=speed, memory=memory, trained=trained, **value)
    except (KeyError, TypeError) as error:
        got = f"{path} ({error})"
        raise BenchError("table", expected="a comparison as written", got=got, remedy=remedy) from None


def _timed(value: dict[str, Any]) -> Timed:
    samples = value["samples"]
    return Timed(**{**value, "samples": None if samples is None else Samples(**samples)})


def _trained(value: dict[str, Any]) -> Trained:
    quality, usable = [Quality(**one) for one in value["quality"]], [Usable(**one) for one in value["usable"]]
    return Trained(**{**value, "quality": quality, "usable": usable})
