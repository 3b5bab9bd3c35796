"""The library's own contestants: every backend that is not the reference, each by name."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from alibi_attention.backends.cpu import CpuBackend
from alibi_attention.backends.native import BLOCK_Q, PLAN
from alibi_attention.bench.case import Trial
from alibi_attention.bench.inputs import Group, Inputs
from alibi_attention.bench.peer import Attend, Peer, timed_call
from alibi_attention.bench.peers_layer import our_layer
from alibi_attention.cache import KVCache
from alibi_attention.call import call_arguments
from alibi_attention.certificate import certify
from alibi_attention.dispatch import backend_names, explain_backends
from alibi_attention.ops import alibi_attention

_REFERENCE = "reference"
_BLOCK_K = 64
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
    if trial.steps:
        return _steps(trial, backend, group)
    if trial.case.cached:
        cache = KVCache(key.shape[2])
        cache.append(key.detach(), value.detach())
        return lambda: cache.attend(query, slopes, tolerance=tolerance, backend=backend)
    return lambda: alibi_attention(query, key, value, slopes, tolerance=tolerance, backend=backend)


def _steps(trial: Trial, backend: str, group: Group) -> Attend:
    """Steps of decoding, the last of which attends to all keys."""
    query, slopes, tolerance, steps = group.query, group.slopes, trial.case.tolerance, trial.steps
    held = trial.keys - steps
    cache = KVCache(trial.keys)
    cache.append(group.key[:, :, :held], group.value[:, :, :held])
    tokens = list(zip(group.key[:, :, held:].split(1, 2), group.value[:, :, held:].split(1, 2), strict=True))

    def attend() -> Tensor:
        cache.crop(held)
        for key, value in tokens:
            cache.append(key, value)
            out = cache.attend(query, slopes, tolerance=tolerance, backend=backend)
        return out

    return attend


def _by_default(trial: Trial, group: Group) -> Attend:
    query, key, value, slopes, tolerance = group.query, group.key, group.value, group.slopes, trial.case.tolerance
    return lambda: alibi_attention(query, key, value, slopes, tolerance=tolerance)


def _in_float32(group: Group) -> Group:
    query, key, value = (
        tensor.detach().float().requires_grad_(tensor.requires_grad) for tensor in (group.query, group.key, group.value)
    )
    return Group(query, key, value, group.slopes, None if group.grad is None else group.grad.float())


def _no_layer(trial: Trial) -> str | None:
    return "attention alone, without projections" if trial.case.mode == "layer" else None


# Ours in another dtype, to compare the dtypes: a peer of ours, measured as peers are.
OUR_PEERS = (
    Peer("alibi-fp32", "alibi-attention, on float32 copies", _by_default, refuses=_no_layer, convert=_in_float32),
)


class Tiles(NamedTuple):
    """What a call computes: ``kept`` tiles of ``rows`` queries by 64 keys, ``share`` of the visible ones.

    ``scored`` counts tiles whose scores were taken, with those passed over for what these showed and those scored
    twice; None where the backend does not say.
    """

    kept: int
    share: float
    rows: int
    scored: int | None


def computed_tiles(trial: Trial, inputs: Inputs, backend: str) -> Tiles:
    """The tiles of all calls of a trial.

    The cpu backend says itself which it computed: its plan is what backward goes by. Of another, and of a step through
    a cache, they are those that the certificate keeps.
    """
    if backend == f"alibi-{CpuBackend.name}" and not trial.case.cached:
        planned = [_planned_tiles(trial, group) for group in inputs.groups]
        kept, visible, scored = (sum(column) for column in zip(*planned, strict=True))
        return Tiles(kept, kept / visible, BLOCK_Q, scored)
    shares: list[Tensor] = []
    tiles = 0
    for group in inputs.groups:
        found = certify(group.query, group.key, group.slopes, value=group.value, tolerance=trial.case.tolerance)
        tiles += int((-(-found.window // found.block_k)).sum())
        shares.append(found.kept_share.mean())
    # Of several steps each computes about as many.
    tiles *= max(1, trial.steps)
    return Tiles(tiles, float(torch.stack(shares).mean()), found.block_q, None)


def _planned_tiles(trial: Trial, group: Group) -> tuple[int, int, int]:
    """Tiles of the plan that forward hands to backward, those that a dense pass computes, and those scored."""
    with torch.no_grad():
        arguments = call_arguments(
            group.query, group.key, group.value, group.slopes, is_causal=True, scale=None, query_offset=None,
            key_mask=None, cu_seqlens=None, cu_seqlens_k=None, window=None, dropout_p=0.0,
            tolerance=trial.case.tolerance, backend=CpuBackend.name,
        )  # fmt: skip
        plan = torch.ops.alibi_attention.forward(*arguments)[2].view(-1, PLAN)
    first, end, apart, scored = plan.unbind(1)
    last = torch.arange(BLOCK_Q, trial.queries + BLOCK_Q, BLOCK_Q).clamp_max(trial.queries)
    seen = -(-(last + trial.keys - trial.queries) // _BLOCK_K)
    kept = int((end - first).sum() + (apart >= 0).sum())
    return kept, int(seen.sum()) * len(group.slopes), int(scored.sum())
