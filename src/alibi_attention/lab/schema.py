"""What other versions wrote: beginnings of run folders by earlier ones, and what later ones added."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from alibi_attention import __version__
from alibi_attention.lab.config import ExperimentConfig
from alibi_attention.lab.environment import sources
from alibi_attention.lab.errors import LabError

SCHEMA_VERSION = 3
"""Of a run folder. Raised when a file of it changes its meaning; additions leave it alone."""

OLDER = (1, 2)
"""Schemas whose weights are read all the same."""


def brought_up_to_date(start: dict[str, Any]) -> dict[str, Any]:
    """A ``config.json`` of schema 1 or 2 as one of schema 3; any other unchanged.

    Schema 1 knew bytes alone: a setting named after them is now named after tokens. Schema 2 had other passages of keys
    and values in training, and scored other tokens. What a schema did not have takes its default, which is what it did.
    The weights are the same in all.
    """
    config = start.get("config")
    if start.get("schema_version") not in OLDER or not isinstance(config, dict):
        return start
    config = dict(config)
    if "eval_bytes" in config:
        config["eval_tokens"] = config.pop("eval_bytes")
    return {**start, "schema_version": SCHEMA_VERSION, "config": config}


def refuse_later_settings(config: Mapping[str, Any], path: Path, environments: Sequence[Mapping[str, Any]]) -> None:
    """Raise `LabError` if settings are not all known here and other sources than these wrote them.

    Args:
        config: settings by name.
        path: of the file.
        environments: those of the processes that may have written it.
    """
    later = [name for name in config if name not in ExperimentConfig.model_fields]
    _refuse_later(later, path, environments)


def refuse_later_fields(error: ValidationError, path: Path, environments: Sequence[Mapping[str, Any]]) -> None:
    """Raise `LabError` if all that is wrong with a file are fields that these sources do not know, and others wrote it.

    Args:
        error: what was found in it.
        path, environments: as in `refuse_later_settings`.
    """
    found = error.errors()
    if all(each["type"] == "extra_forbidden" for each in found):
        _refuse_later([str(each["loc"][-1]) for each in found], path, environments)


def _refuse_later(names: list[str], path: Path, environments: Sequence[Mapping[str, Any]]) -> None:
    others = [each for each in environments if isinstance(each, Mapping) and each.get("sources") != sources()]
    if names and others:
        raise _of_later_version(names, path, others[-1])


def _of_later_version(names: list[str], path: Path, environment: Mapping[str, Any]) -> LabError:
    wrote = f"{environment.get('alibi_attention', 'not told')}, sources {environment.get('sources', 'not told')}"
    more = "" if len(names) == 1 else f" and {len(names) - 1} more"
    return LabError(
        "run",
        expected=f"what this version of alibi-attention, {__version__}, knows",
        got=f"{names[0]}{more} in {path}, which another worked on ({wrote})",
        remedy="read and continue it with that version, or take out what was added by hand",
    )
