"""Peers made of what torch has: its scaled_dot_product_attention (SDPA) in three forms, and plain matrix products."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention as sdpa

from alibi_attention.bench.case import Trial
from alibi_attention.bench.inputs import Group
from alibi_attention.bench.peer import Attend, Peer


def _steps(trial: Trial, group: Group, bias: Tensor | None) -> Attend:
    """Steps of decoding over buffers that have room for all: each puts a token in place and attends to those there are.

    A row of bias serves at every length: what is added to all scores alike changes nothing.
    """
    query, held = group.query, trial.keys - trial.steps
    keys, values = group.key.contiguous().clone(), group.value.contiguous().clone()
    tokens = [(at, group.key[:, :, at : at + 1], group.value[:, :, at : at + 1]) for at in range(held, trial.keys)]

    def attend() -> Tensor:
        for at, key, value in tokens:
            keys[:, :, at : at + 1] = key
            values[:, :, at : at + 1] = value
            mask = None if bias is None else bias[..., : at + 1]
            out = sdpa(query, keys[:, :, : at + 1], values[:, :, : at + 1], attn_mask=mask)
        return out

    return attend


def _no_bias(trial: Trial, group: Group) -> Attend:
    if trial.steps:
        return _steps(trial, group, None)
    query, key, value = group.query, group.key, group.value
    # SDPA aligns its causal mask to the upper left; a single query at the end sees every key without one.
    causal = trial.queries > 1
    return lambda: sdpa(query, key, value, is_causal=causal)


def _row_bias(trial: Trial, group: Group) -> Attend:
    if trial.steps:
        return _steps(trial, group, group.row_bias)
    query, key, value, bias = group.query, group.key, group.value, group.row_bias
    causal = trial.queries > 1
    return lambda: sdpa(query, key, value, attn_mask=bias, is_causal=causal)


def _row_bias_in_float32(trial: Trial, group: Group) -> Attend:
    query, key, value = (tensor.detach().float() for tensor in (group.query, group.key, group.value))
    bias, causal = group.row_bias, trial.queries > 1
    return lambda: sdpa(query, key, value, attn_mask=bias, is_causal=causal)


def _full_bias(trial: Trial, group: Group) -> Attend:  # noqa: ARG001
    query, key, value, bias = group.query, group.key, group.value, group.full_bias
    return lambda: sdpa(query, key, value, attn_mask=bias)


def _eager(trial: Trial, group: Group) -> Attend:
    query, key, value, bias = group.query, group.key, group.value, group.full_bias
    scale = trial.head_dim**-0.5
    return lambda: torch.softmax((query * scale) @ key.transpose(-1, -2) + bias, dim=-1) @ value


def _causal_from_the_start(trial: Trial) -> str | None:
    if trial.queries not in (1, trial.keys):
        return "SDPA aligns its causal mask to the upper left: one query, or as many queries as keys"
    return None


def _forward_alone(trial: Trial) -> str | None:
    return "measured without gradients alone" if trial.case.mode != "forward" else _causal_from_the_start(trial)


SDPA_PEERS = (
    Peer("sdpa", "SDPA, no positions at all", _no_bias, alibi=False, refuses=_causal_from_the_start),
    Peer("sdpa-row", "SDPA, row bias and is_causal", _row_bias, exact=False, refuses=_causal_from_the_start),
    Peer(
        "sdpa-row-fp32", "SDPA, row bias, on float32 copies", _row_bias_in_float32, exact=False, refuses=_forward_alone
    ),
    # Two in training: the mask, and what its backward keeps while it runs.
    Peer("sdpa-full", "SDPA, full bias", _full_bias, matrices={"forward": 2, "training": 3}),
    Peer("eager", "matmul, softmax, matmul, full bias", _eager, matrices={"forward": 4, "training": 6}),
)
