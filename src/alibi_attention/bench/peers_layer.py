"""Whole attention layers: projections of random weights, and the attention between them.

Timed from hidden states (1, tokens, heads * head_dim) to the same shape; biases and masks are made beforehand.
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention as sdpa

from alibi_attention.bench.case import Trial
from alibi_attention.bench.inputs import Group
from alibi_attention.bench.peer import Attend, Peer
from alibi_attention.module import ALiBiAttention


def hidden_states(group: Group) -> Tensor:
    """(1, tokens, heads * head_dim), standard normal."""
    return group.query.detach().transpose(1, 2).flatten(2).contiguous()


def our_layer(trial: Trial, group: Group) -> Attend:
    """`ALiBiAttention` with the backend it chooses."""
    layer, hidden = _layer(trial), hidden_states(group)
    return lambda: layer(hidden)


def _layer(trial: Trial) -> ALiBiAttention:
    return ALiBiAttention(trial.case.heads * trial.head_dim, trial.case.heads).eval()


def _row_bias_layer(trial: Trial, group: Group) -> Attend:
    layer, hidden, bias = _layer(trial), hidden_states(group), group.row_bias
    split = (trial.case.heads, trial.head_dim)

    def attend() -> Tensor:
        query, key, value = (
            project(hidden).unflatten(-1, split).transpose(1, 2)
            for project in (layer.q_proj, layer.k_proj, layer.v_proj)
        )
        out = sdpa(query, key, value, attn_mask=bias, is_causal=True)
        projected: Tensor = layer.out_proj(out.transpose(1, 2).flatten(-2))
        return projected

    return attend


def _bloom(trial: Trial, group: Group) -> Attend:
    bloom: Any = import_module("transformers.models.bloom.modeling_bloom")
    heads, tokens = trial.case.heads, trial.keys
    config = bloom.BloomConfig(hidden_size=heads * trial.head_dim, n_head=heads, n_layer=1)
    layer, hidden = bloom.BloomAttention(config, layer_idx=0).eval(), hidden_states(group)
    alibi = bloom.build_alibi_tensor(torch.ones(1, tokens, dtype=torch.long), heads, torch.float32)
    lowest = torch.finfo(torch.float32).min
    mask = torch.full((1, 1, tokens, tokens), lowest).triu_(1)

    def attend() -> Tensor:
        out: Tensor = layer(hidden, hidden, alibi, mask)[0]
        return out

    return attend


def _mpt(trial: Trial, group: Group) -> Attend:
    mpt: Any = import_module("transformers.models.mpt.modeling_mpt")
    heads, tokens = trial.case.heads, trial.keys
    config = mpt.MptConfig(d_model=heads * trial.head_dim, n_heads=heads, n_layers=1, max_seq_len=tokens)
    layer, hidden = mpt.MptAttention(config, layer_idx=0).eval(), hidden_states(group)
    alibi = mpt.build_mpt_alibi_tensor(heads, tokens)
    mask = torch.ones(1, 1, tokens, tokens, dtype=torch.bool).triu_(1)

    def attend() -> Tensor:
        out: Tensor = layer(hidden, position_bias=alibi, attention_mask=mask)[0]
        return out

    return attend


def _refuses_transformers(trial: Trial) -> str | None:
    if find_spec("transformers") is None:
        return "Transformers is not installed: pip install transformers"
    return _layers_alone(trial)


def _layers_alone(trial: Trial) -> str | None:
    return None if trial.case.mode == "layer" else "a layer, measured against layers"


LAYER_PEERS = (
    Peer(
        "layer-sdpa-row", "our layer with SDPA, row bias, inside", _row_bias_layer, exact=False, refuses=_layers_alone
    ),
    Peer(
        "transformers-bloom", "Transformers' BLOOM attention", _bloom, exact=False, matrices={"layer": 4},
        refuses=_refuses_transformers,
    ),
    Peer(
        "transformers-mpt", "Transformers' MPT attention", _mpt, exact=False, matrices={"layer": 4},
        refuses=_refuses_transformers,
    ),
)  # fmt: skip
