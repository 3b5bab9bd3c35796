"""The library's own contestants: every backend that is not the reference, each by name."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor

from alibi_attention.bench.case import Trial
from alibi_attention.bench.inputs import Group, Inputs
from alibi_attention.bench.peer import Attend, Peer, timed_call
from alibi_attention.bench.peers_layer import our_layer
from alibi_attention.cache import KVCache
from alibi_attention.certificate import certify
from alibi_attention.dispatch import backend_names, explain_backends
from alibi_attention.ops import alibi_attention

_REFERENCE = "reference"
LAYER = "alibi-layer"


def our_names(trial: Trial) -> list[str]:
    """Names of our contestants of a trial; each is ``alibi-`` and a backend, or the layer, which chooses itself."""
    if trial.case.mode == "layer":
        return [LAYER]
    return [f"alibi-{name}" for name in backend_names() if name != _REFERENCE]


def why_not_ours(trial: Trial, group: Group) -> dict[str, str | None]:
    """For each of our contestants the reason it cannot run the trial, or None."""
    if trial.case.mode == "layer":
        return {LAYER: None}
    found = explain_backends(group.query, group.key, group.value, group.slopes, tolerance=trial.case.tolerance)
    return {f"alibi-{name}": reason for name, reason in found.items() if name != _REFERENCE}


def default_of(refusals: dict[str, str | None]) -> str:
    """The contestant that a call without a backend's name runs: the first that can."""
    return next(name for name, reason in refusals.items() if reason is None)


def make_ours(name: str, trial: Trial, inputs: Inputs) -> Callable[[], Any]:
    """The call that is timed for one of our contestants."""
    if name == LAYER:
        return timed_call(trial, inputs, partial(our_layer, trial))
    return timed_call(trial, inputs, partial(_attend, trial, name.removeprefix("alibi-")))


def _attend(trial: Trial, backend: str, group: Group) -> Attend:
    query, key, value, slopes, tolerance = group.query, group.key, group.value, group.slopes, trial.case.tolerance
    if trial.case.cached:
        cache = KVCache(key.shape[2])
        cache.append(key.detach(), value.detach())
        return lambda: cache.attend(query, slopes, tolerance=tolerance, backend=backend)
    return lambda: alibi_attention(query, key, value, slopes, tolerance=tolerance, backend=backend)


def _in_float32(trial: Trial, group: Group) -> Attend:
    query, key, value = (tensor.detach().float() for tensor in (group.query, group.key, group.value))
    slopes, tolerance = group.slopes, trial.case.tolerance
    return lambda: alibi_attention(query, key, value, slopes, tolerance=tolerance)


def _forward_alone(trial: Trial) -> str | None:
    return None if trial.case.mode == "forward" else "measured without gradients alone"


# Ours in another dtype, to compare the dtypes: a peer of ours, measured as peers are.
OUR_PEERS = (Peer("alibi-fp32", "alibi-attention, on float32 copies", _in_float32, refuses=_forward_alone),)


def computed_tiles(trial: Trial, inputs: Inputs) -> tuple[int, float]:
    """Tiles of 128 queries by 64 keys that the certificate keeps, and their share of the visible ones."""
    kept: list[Tensor] = []
    tiles = 0
    for group in inputs.groups:
        found = certify(group.query, group.key, group.slopes, value=group.value, tolerance=trial.case.tolerance)
        tiles += int((-(-found.window // found.block_k)).sum())
        kept.append(found.kept_share.mean())
    return tiles, float(sum(kept, kept[0] * 0)) / len(kept)
