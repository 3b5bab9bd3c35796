"""Results as they are kept in a file."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from alibi_attention.bench.errors import BenchError
from alibi_attention.bench.summary import measured, median
from alibi_attention.bench.timing import Samples
from alibi_attention.lab.files import write_json

SCHEMA_VERSION = 1


@dataclass
class Entry:
    """One contestant at one size.

    Attributes:
        name, title: of the peer or of our contestant.
        ours: whether it is the library's own; ``default`` marks the one that a call takes unasked.
        alibi, exact: whether it computes ALiBi, and exactly so at long range.
        refused: why it was not measured, or None.
        note: what else to know about its samples.
        error: largest absolute difference to float64 on a few rows of the output, where that was looked at.
        grad_error: the most that a gradient of a query, key or value is off, to float32, as a part of its length.
        memory: peak memory beyond the inputs, bytes, where that was measured; ``memory_note`` says why not.
        outputs: bytes of that which are what the call returns.
        plain, flushed: samples with denormals as they come, and flushed to zero (peers alone).
    """

    name: str
    title: str
    ours: bool
    default: bool = False
    alibi: bool = True
    exact: bool = True
    refused: str | None = None
    note: str = ""
    error: float | None = None
    grad_error: float | None = None
    memory: int | None = None
    memory_note: str = ""
    outputs: int | None = None
    plain: Samples | None = None
    flushed: Samples | None = None

    @property
    def counted(self) -> Samples | None:
        """The samples that count: of the two kinds the faster."""
        kinds = [kind for kind in (self.plain, self.flushed) if kind is not None and measured(kind.seconds)]
        return min(kinds, key=lambda kind: median(kind.seconds), default=None)

    @property
    def seconds(self) -> float | None:
        """Median seconds of a call, or None where nothing was measured."""
        return None if self.counted is None else median(self.counted.seconds)


@dataclass
class TrialResult:
    """One case at one size.

    Attributes:
        queries, keys: lengths, in tokens.
        target_peer, target_ratio: the peer that a speed is asked against, and how many times its.
        target_also: other peers that the same is asked against.
        target_mean: lengths over whose geometric mean it is asked; empty where it is asked of each.
        limits: what is asked by itself, as `bench.case.Limits`.
        tiles: tiles kept of ``tile_rows`` queries by 64 keys; ``kept_share`` is their share of the visible ones.
        tiles_scored: tiles whose scores were computed, with those passed over for what these showed; None where the
            backend does not say.
        load: as the system says.
        targets: the ratios asked for by peer, where they differ from peer to peer.
    """

    case: str
    title: str
    mode: str
    heads: int
    head_dim: int
    queries: int
    keys: int
    dtype: str
    tolerance: float | None
    target_peer: str | None
    target_ratio: float | None
    tiles: int | None = None
    kept_share: float | None = None
    note: str = ""
    load: float | None = None
    complete: bool = False
    target_also: list[str] = field(default_factory=list)
    target_mean: list[int] = field(default_factory=list)
    limits: dict[str, Any] = field(default_factory=dict)
    tile_rows: int = 128
    tiles_scored: int | None = None
    entries: list[Entry] = field(default_factory=list)
    targets: dict[str, float] = field(default_factory=dict)

    def entry(self, name: str | None) -> Entry | None:
        return next((entry for entry in self.entries if entry.name == name), None)

    @property
    def default(self) -> Entry | None:
        return next((entry for entry in self.entries if entry.default), None)

    @property
    def target_peers(self) -> list[str]:
        return [] if self.target_peer is None else [self.target_peer, *self.target_also]

    def asked(self, peer: str) -> float | None:
        """The ratio asked for against a peer at this size, or None."""
        return self.targets.get(peer, self.target_ratio if peer in self.target_peers and not self.target_mean else None)


@dataclass
class Results:
    """A run. ``status`` is "incomplete" until every size has been measured, then "complete".

    ``suite`` says what the kernels' checks found, where they ran beside (bench/gpu/suite.py).
    """

    machine: dict[str, Any]
    settings: dict[str, Any]
    trials: list[TrialResult] = field(default_factory=list)
    status: str = "incomplete"
    seconds: float = 0.0
    schema_version: int = SCHEMA_VERSION
    suite: dict[str, Any] = field(default_factory=dict)

    def write(self, path: Path) -> None:
        """Replace the file as a whole."""
        write_json(path, asdict(self))


def read_results(path: Path) -> Results:
    """A file that `Results.write` wrote.

    Raises:
        BenchError: where there is none, or something else.
    """
    remedy = "name files that alibi bench wrote"
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BenchError(
            "FILES", expected="files of results", got=f"{path} ({error.strerror})", remedy=remedy
        ) from None
    except ValueError:
        raise BenchError("FILES", expected="JSON", got=f"{path}, which is none", remedy=remedy) from None
    version = value.get("schema_version") if isinstance(value, dict) else None
    if isinstance(value, dict) and "corpus" in value:
        got, remedy = f"{path}, a run of the laboratory", "alibi report reads those"
        raise BenchError("FILES", expected="files of results", got=got, remedy=remedy)
    if version != SCHEMA_VERSION:
        got = f"{path} of version {version}" if version is not None else f"{path}, which has no version"
        raise BenchError("FILES", expected=f"results of version {SCHEMA_VERSION}", got=got, remedy=remedy)
    try:
        trials = [trial_result(trial) for trial in value.pop("trials")]
        return Results(trials=trials, **value)
    except (KeyError, TypeError) as error:
        raise BenchError("FILES", expected="results as written", got=f"{path} ({error})", remedy=remedy) from None


def trial_result(value: dict[str, Any]) -> TrialResult:
    """A size from the dictionary it was written as."""
    entries = [_entry(entry) for entry in value.pop("entries")]
    return TrialResult(entries=entries, **value)


def _entry(value: dict[str, Any]) -> Entry:
    kinds = {kind: None if value[kind] is None else Samples(**value[kind]) for kind in ("plain", "flushed")}
    return Entry(**{**value, **kinds})
