"""Data sets by name: the command line against a hub on this machine, as against the real one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hub_server import hub_of

from alibi_attention.lab.config import ExperimentConfig
from alibi_attention.lab.corpus import load_corpus
from alibi_attention.lab.errors import LabError

_CARD = b"""---
configs:
- config_name: v1
  data_files:
  - {split: train, path: v1/train-*.jsonl}
  - {split: validation, path: v1/validation.jsonl}
---
"""
_TEXTS = [f"Chapter {number}: {number * number} is the square of {number}.\n" * 12 for number in range(16)]


def _rows(texts: list[str]) -> bytes:
    return "".join(json.dumps({"body": text}) + "\n" for text in texts).encode()


_FILES = {
    "README.md": _CARD,
    "v1/train-0.jsonl": _rows(_TEXTS[:6]),
    "v1/train-1.jsonl": _rows(_TEXTS[6:12]),
    "v1/validation.jsonl": _rows(_TEXTS[12:]),
}


def _environment(folder: Path, endpoint: str) -> dict[str, str]:
    """Nothing of what this user has set or in store, and no hub and no proxy but what is here."""
    theirs = ("HF_", "HUGGINGFACE_", "TRANSFORMERS_OFFLINE", "NO_PROXY")
    own = {
        name: value
        for name, value in os.environ.items()
        if not (name.upper().startswith(theirs) or name.upper().endswith("_PROXY"))
    }
    return own | {
        "HF_ENDPOINT": endpoint, "HF_HOME": str(folder / "home"), "HF_UPDATE_DOWNLOAD_COUNTS": "0",
        "ALIBI_CACHE": str(folder / "cache"), "COLUMNS": "200", "OMP_NUM_THREADS": "1",
    }  # fmt: skip


def _extrapolate(folder: Path, endpoint: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    variables = _environment(folder, endpoint) | environment
    command = [sys.executable, "-m", "alibi_attention.cli", "extrapolate", "--methods", "alibi", "--length", "16"]
    command += ["--eval-lengths", "32", "--layers", "1", "--heads", "2", "--width", "16", "--steps", "2", *arguments]
    return subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True, timeout=300, check=False)


def test_a_data_set_by_name_is_fetched_once_and_read_without_the_hub_afterwards(tmp_path: Path) -> None:
    named = ["--dataset", "team/chapters", "--dataset-config", "v1", "--text-column", "body"]
    named += ["--dataset-held-out", "validation"]
    with hub_of("team/chapters", _FILES) as endpoint:
        done = _extrapolate(tmp_path, endpoint, *named, "--output", "run")
        assert done.returncode == 0, done.stderr
    # The hub is gone.
    (tmp_path / "cache").rename(tmp_path / "another")
    again = _extrapolate(tmp_path, endpoint, *named, "--output", "again", HF_HUB_OFFLINE="1")
    assert again.returncode == 0, again.stderr
    first, second = (json.loads((tmp_path / run / "results.json").read_text())["corpus"] for run in ("run", "again"))
    assert first == second
    assert (first["source"], first["train_documents"], first["held_out_documents"]) == (
        "the data set team/chapters (v1)",
        12,
        4,
    )
    assert first["held_out_tokens"] >= sum(map(len, _TEXTS[12:]))


def test_what_the_hub_does_not_have_is_said_in_a_line(tmp_path: Path) -> None:
    with hub_of("team/chapters", _FILES) as endpoint:
        nowhere = _extrapolate(tmp_path, endpoint, "--dataset", "team/verses")
        other = _extrapolate(tmp_path, endpoint, "--dataset", "team/chapters", "--dataset-config", "v2")
    assert nowhere.returncode == 2, nowhere.stderr
    message = " ".join(nowhere.stderr.split())
    assert "dataset: expected a data set that can be read" in message
    assert "doesn't exist on the Hub" in message
    assert "Traceback" not in message
    assert other.returncode == 2, other.stderr
    assert other.stderr.endswith(
        "error: --dataset-config: expected a configuration of team/chapters, got 'v2'\n"
        "  there is v1 alone: --dataset-config '' takes it\n"
    )


class ConnectError(Exception):
    """As httpx has it: no OSError."""


@pytest.mark.parametrize(
    ("message", "cause", "told"),
    [
        ("[Errno 111] Connection refused", None, "[Errno 111] Connection refused"),
        ("could not reach it", ConnectError("no route\n to host"), "no route to host"),
        ("could not reach it", ConnectError(), "could not reach it"),
        ("", None, "ConnectError"),
    ],
)
def test_a_network_that_fails_in_its_own_words_is_no_crash(
    tiny: Callable[..., ExperimentConfig],
    monkeypatch: pytest.MonkeyPatch,
    message: str,
    cause: Exception | None,
    told: str,
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise ConnectError(message) from cause

    monkeypatch.setattr("datasets.load_dataset", fails)
    with pytest.raises(LabError) as error:
        load_corpus(tiny(text=(), dataset="team/chapters"))
    assert str(error.value) == (
        f"dataset: expected a data set that can be read, got team/chapters ({told}); give a name on the hub that this "
        "machine can reach, or the path of a local copy"
    )
