"""Where text comes from: a run of the laboratory, or a Transformers directory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal, Protocol

from torch import Tensor

from alibi_attention import HorizonCache, HorizonViolation
from alibi_attention.generation.text import ByteText, TokenText, WordText
from alibi_attention.lab.errors import LabError

CacheKind = Literal["full", "horizon"]
PROMPT_CHUNK = 1024
"""Tokens of a prompt that go through the model at once: memory then does not follow its length."""


class Source(Protocol):
    """A model with its vocabulary and its caches."""

    name: str
    end: frozenset[int]
    """Tokens that end a text."""

    def encode(self, prompt: str) -> list[int]:
        """Tokens of a prompt; at least one, if only the one that begins a text."""

    def text(self) -> ByteText | TokenText | WordText:
        """A reader of what is generated."""

    def read(self, tokens: list[int]) -> Tensor:
        """Logits (vocabulary,) of what follows these tokens and all before them."""

    @property
    def longest(self) -> int | None:
        """Tokens of the longest text, prompt included, that there are positions for; None where they never end."""

    @property
    def bytes_held(self) -> int:
        """Memory of the caches."""

    def horizon_caches(self) -> list[HorizonCache]:
        """The caches that forget, one for each layer; none where everything is kept."""


def open_source(path: Path, *, method: str | None, cache: CacheKind, device: str, dtype: str | None) -> Source:
    """The model in a folder.

    Args:
        path: a run of the laboratory, or a directory of Transformers.
        method: laboratory: which position method; ALiBi by default, or the first trained.
        cache: "full", or "horizon" for one that forgets.
        device: of a Transformers model.
        dtype: of a Transformers model; None for that of its weights.

    Raises:
        LabError: for a folder that is neither, or a model that cannot be run so.
    """
    kind = kind_of(path)
    if kind == "laboratory":
        from alibi_attention.generation.laboratory import LaboratorySource

        for name, given, usual in (("device", device, "cpu"), ("dtype", dtype, None)):
            if given != usual:
                remedy = "leave it out"
                raise LabError(name, expected="none for a run of the laboratory", got=f"{given}", remedy=remedy)
        return LaboratorySource(path, method, cache)
    if method is not None:
        remedy = "leave it out"
        raise LabError("method", expected="none for a Transformers directory", got=method, remedy=remedy)
    from alibi_attention.generation.pretrained import PretrainedSource

    return PretrainedSource(path, cache, device, dtype)


def kind_of(path: Path) -> Literal["laboratory", "transformers"]:
    """What a folder holds.

    Raises:
        LabError: for neither.
    """
    expected = "the folder of a run of alibi extrapolate, or of a Transformers model"
    remedy = "check the spelling and the folder you are in"
    config = path / "config.json"
    try:
        if not path.is_dir():
            got = f"{path}, which is {'a file' if path.exists() else 'not there'}"
            raise LabError("source", expected=expected, got=got, remedy=remedy)
        has_config = config.is_file()
    except OSError as error:  # a name that is too long, a folder that may not be entered
        raise LabError("source", expected=expected, got=f"{path} ({error.strerror})", remedy=remedy) from None
    remedy = "name the folder that has config.json in it"
    if not has_config and (path.parent / "config.json").is_file():
        remedy = f"name the run, {path.parent}, with --method {path.name}"
    if not has_config:
        raise LabError("source", expected=expected, got=f"{path}, which has no config.json", remedy=remedy)
    try:
        found: Any = json.loads(config.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise LabError("source", expected=expected, got=f"{config} ({error})", remedy="restore the file") from None
    if isinstance(found, dict) and "model_type" in found:
        return "transformers"
    if isinstance(found, dict) and "schema_version" in found:
        return "laboratory"
    raise LabError("source", expected=expected, got=f"{config}, which describes neither", remedy=remedy)


def reason_of(error: Exception) -> str:
    """The first line of what an error says, or its name where it says nothing."""
    return next(iter(str(error).strip().splitlines()), "") or type(error).__name__


def violation(error: HorizonViolation) -> LabError:
    """A violation as an error about the flag that can mend it."""
    return LabError("cache", expected="keys that may be forgotten", got=str(error), remedy="use --cache full")
