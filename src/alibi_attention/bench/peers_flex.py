"""FlexAttention, compiled, with ALiBi as its score_mod; and the same given our own horizons as its block mask."""

from __future__ import annotations

import os
import shutil
from typing import Any

import torch
from torch import Tensor

from alibi_attention.bench.case import Trial
from alibi_attention.bench.inputs import Group
from alibi_attention.bench.peer import Attend, Peer
from alibi_attention.certificate import certify

BLOCK = 128
# A kernel compiled for one length; torch gives up compiling the same function anew after a few.
_COMPILERS = ("c++", "g++", "clang++")


def _flex(trial: Trial, group: Group) -> Attend:
    return _compiled(trial, group, torch.zeros(1, 1, -(-trial.queries // BLOCK), dtype=torch.int64))


def _flex_with_horizon(trial: Trial, group: Group) -> Attend:
    found = certify(group.query, group.key, group.slopes, value=group.value, tolerance=trial.case.tolerance)
    first = torch.where(found.sink_keys, 0, found.first_key) if found.sink_keys.any() else found.first_key
    return _compiled(trial, group, first // BLOCK)


def _compiled(trial: Trial, group: Group, first_block: Tensor) -> Attend:
    from torch.nn.attention.flex_attention import flex_attention

    # Otherwise the ninth length of a run would be measured uncompiled, with nothing but a warning.
    torch._dynamo.reset()
    kernel = torch.compile(flex_attention, dynamic=False, fullgraph=True)
    mask = block_mask(trial.queries, trial.keys, first_block)
    query, key, value, slopes = group.query, group.key, group.value, group.slopes

    def score_mod(score: Tensor, batch: Tensor, head: Tensor, row: Tensor, column: Tensor) -> Tensor:  # noqa: ARG001
        return score - slopes[head] * (row - column)

    def attend() -> Tensor:
        out: Tensor = kernel(query, key, value, score_mod=score_mod, block_mask=mask)
        return out

    with torch.no_grad():
        attend()
    return attend


def block_mask(queries: int, keys: int, first_block: Tensor) -> Any:
    """Causal blocks of 128 x 128 from the first on, (1, heads or 1, query blocks); built without an L x L mask."""
    from torch.nn.attention.flex_attention import BlockMask

    query_blocks, key_blocks = -(-queries // BLOCK), -(-keys // BLOCK)
    device = first_block.device
    rows = torch.arange(query_blocks, device=device)
    full = rows - first_block
    # Indices count up from the first block; those past the number of full ones are not looked at.
    indices = (
        (first_block[..., None] + torch.arange(key_blocks, device=device)).clamp_max(key_blocks - 1).to(torch.int32)
    )
    diagonal = rows[:, None].expand(*first_block.shape, key_blocks).to(torch.int32)
    return BlockMask.from_kv_blocks(
        torch.ones_like(full, dtype=torch.int32),
        diagonal.contiguous(),
        full.to(torch.int32).contiguous(),
        indices.contiguous(),
        BLOCK_SIZE=BLOCK,
        mask_mod=_causal,
        seq_lengths=(queries, keys),
    )


def _causal(batch: Tensor, head: Tensor, row: Tensor, column: Tensor) -> Tensor:  # noqa: ARG001
    return row >= column


def _refuses(trial: Trial) -> str | None:
    if trial.case.mode != "forward":
        return "FlexAttention has no backward on the CPU"
    if trial.queries != trial.keys:
        return "as many queries as keys alone"
    if trial.keys % BLOCK:
        return f"lengths that are multiples of {BLOCK} alone"
    if not (os.environ.get("CXX") or any(map(shutil.which, _COMPILERS))):
        return "needs a C++ compiler, and finds none"
    return None


def _refuses_without_horizon(trial: Trial) -> str | None:
    return "every tile is computed here" if trial.case.tolerance == 0.0 else _refuses(trial)


FLEX_PEERS = (
    Peer("flex", "FlexAttention, compiled, ALiBi as score_mod", _flex, refuses=_refuses),
    Peer(
        "flex-horizon", "FlexAttention, given our horizons as its block mask", _flex_with_horizon,
        refuses=_refuses_without_horizon,
    ),
)  # fmt: skip
