"""The beginnings of run folders that earlier versions wrote, as this version would have written them."""

from __future__ import annotations

from typing import Any

SCHEMA_VERSION = 2
"""Of a run folder. Raised when a file of it changes its meaning; additions leave it alone."""


def brought_up_to_date(start: dict[str, Any]) -> dict[str, Any]:
    """A ``config.json`` of schema 1 as one of schema 2; any other unchanged.

    Schema 1 knew bytes alone: a setting named after them is now named after tokens. What it did not have takes its
    default, which is what schema 1 did. The weights are the same in both.
    """
    config = start.get("config")
    if start.get("schema_version") != 1 or not isinstance(config, dict):
        return start
    config = dict(config)
    if "eval_bytes" in config:
        config["eval_tokens"] = config.pop("eval_bytes")
    return {**start, "schema_version": SCHEMA_VERSION, "config": config}
