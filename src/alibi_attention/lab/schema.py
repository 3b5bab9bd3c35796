"""The beginnings of run folders that earlier versions wrote, as this version would have written them."""

from __future__ import annotations

from typing import Any

SCHEMA_VERSION = 3
"""Of a run folder. Raised when a file of it changes its meaning; additions leave it alone."""


def brought_up_to_date(start: dict[str, Any]) -> dict[str, Any]:
    """A ``config.json`` of schema 1 or 2 as one of schema 3; any other unchanged.

    Schema 1 knew bytes alone: a setting named after them is now named after tokens. Schema 2 had other passages of keys
    and values in training, and scored other tokens. What a schema did not have takes its default, which is what it did.
    The weights are the same in all.
    """
    config = start.get("config")
    if start.get("schema_version") not in (1, 2) or not isinstance(config, dict):
        return start
    config = dict(config)
    if "eval_bytes" in config:
        config["eval_tokens"] = config.pop("eval_bytes")
    return {**start, "schema_version": SCHEMA_VERSION, "config": config}
