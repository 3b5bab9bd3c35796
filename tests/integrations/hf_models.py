"""Small models of Transformers with random weights, made on the spot."""

from __future__ import annotations

from typing import Any

import torch
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    FalconConfig,
    FalconForCausalLM,
    MptConfig,
    MptForCausalLM,
    PreTrainedModel,
)

VOCABULARY = 97
HEAD_DIM = 8

# One for each way a family arranges its heads.
KINDS = ("bloom", "mpt", "falcon", "falcon-mqa", "falcon-gqa")


def small(kind: str, heads: int = 4, **options: Any) -> PreTrainedModel:
    """Two layers, weights ten times as wide as usual: logits a nat apart, scores that tell keys apart."""
    torch.manual_seed(heads)
    width = heads * HEAD_DIM
    common = {"vocab_size": VOCABULARY, "initializer_range": 0.2, "eos_token_id": None, "pad_token_id": 0}
    common |= {"bos_token_id": None, "use_cache": True} | options
    if kind == "bloom":
        model = BloomForCausalLM(BloomConfig(hidden_size=width, n_layer=2, n_head=heads, **common))
    elif kind == "mpt":
        common = {"max_seq_len": 64} | common
        model = MptForCausalLM(MptConfig(d_model=width, n_layers=2, n_heads=heads, **common))
    else:
        arrangement: dict[str, Any] = {
            "falcon": {"multi_query": False, "new_decoder_architecture": False},
            "falcon-mqa": {"multi_query": True, "new_decoder_architecture": False},
            "falcon-gqa": {"new_decoder_architecture": True, "num_kv_heads": heads // 2},
        }[kind]
        # Eager Falcon adds the bias twice.
        common = {"alibi": True, "attn_implementation": "sdpa"} | arrangement | common
        config = FalconConfig(hidden_size=width, num_hidden_layers=2, num_attention_heads=heads, **common)
        model = FalconForCausalLM(config)
    return model.eval()


def tokens(batch: int, length: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(1, VOCABULARY, (batch, length), generator=torch.Generator().manual_seed(seed))


def padding(lengths: list[int], width: int, side: str) -> torch.Tensor:
    """(batch, width) int64, 1 for tokens."""
    place = torch.arange(width)
    place = place if side == "right" else place.flip(0)
    return (place < torch.tensor(lengths).unsqueeze(1)).long()
