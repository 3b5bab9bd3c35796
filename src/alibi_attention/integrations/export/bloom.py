"""BLOOM, which has a layer norm behind the embedding and biases everywhere.

The biases are zero where the decoder has none. The layer norm is made the identity, up to a term nobody sees. With the
embedding scaled by a small power of two, s, the variance of a row is far below eps, so that

    LN(s e) = (s e - s mean(e)) / sqrt(s^2 var(e) + eps) * g  =  e - mean(e)       for  g = sqrt(eps) / s

up to a relative error of s^2 var(e) / (2 eps), chosen below 2^-26. The mean vanishes in every layer norm that reads
the residual stream, and nothing else reads it. The output embedding is the same scaled matrix; the gain of the last
norm, and its bias, are divided by s, which is exact.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from alibi_attention.integrations.export.decoder import NORM_EPS, BlockWeights, DecoderWeights
from alibi_attention.integrations.export.folder import new_folder, write_json, write_weights
from alibi_attention.integrations.export.tokenizer import SEPARATOR, write_tokenizer

# The relative error that the norm behind the embedding may make; float32 rounds at 2^-24.
_NORM_ERROR = 2.0**-26


def write_bloom(decoder: DecoderWeights, output: Path, *, approximate: bool = False) -> Path:
    """Write a folder that Transformers (`AutoModelForCausalLM`) knows as BLOOM.

    The weights want float32 or bfloat16: the scaled embedding is below what float16 resolves.

    Args:
        decoder: what to write.
        output: a new or empty folder.
        approximate: accept that GELU becomes its tanh approximation.

    Returns:
        The folder.

    Raises:
        ValueError: for a decoder that BLOOM cannot express, or an output that exists. Nothing is written then.

    Source: the configuration and tensor names of bigscience/bloom.
    """
    decoder.refuse_unless_expressible("BLOOM")
    if not approximate:
        decoder.refuse_other_activation("BLOOM", "gelu-tanh")
    with new_folder(output) as folder:
        write_weights(folder, bloom_tensors(decoder))
        write_json(folder / "config.json", bloom_config(decoder))
        write_tokenizer(folder, decoder.max_length)
    return output


def bloom_config(decoder: DecoderWeights) -> dict[str, Any]:
    return {
        "architectures": ["BloomForCausalLM"],
        "model_type": "bloom",
        "hidden_size": decoder.width,
        "n_head": decoder.heads,
        "n_layer": len(decoder.blocks),
        "seq_length": decoder.train_length,
        "vocab_size": len(decoder.embedding),
        "apply_residual_connection_post_layernorm": False,
        "attention_dropout": 0.0,
        "hidden_dropout": 0.0,
        "initializer_range": 0.02,
        "layer_norm_epsilon": NORM_EPS,
        "pretraining_tp": 1,
        "slow_but_exact": False,
        "tie_word_embeddings": True,
        "torch_dtype": "float32",
        "use_cache": True,
        "bos_token_id": SEPARATOR,
        "eos_token_id": SEPARATOR,
        "pad_token_id": SEPARATOR,
    }


def bloom_tensors(decoder: DecoderWeights) -> dict[str, Tensor]:
    embedding = decoder.embedding.detach().cpu().float()
    shrink = _shrinkage(embedding)
    width, biases = decoder.width, decoder.biases
    tensors = {
        "transformer.word_embeddings.weight": embedding * shrink,
        "transformer.word_embeddings_layernorm.weight": torch.full((width,), math.sqrt(NORM_EPS) / shrink),
        "transformer.word_embeddings_layernorm.bias": torch.zeros(width),
        "transformer.ln_f.weight": decoder.final_norm / shrink,
        "transformer.ln_f.bias": torch.zeros(width) if biases is None else biases.final_norm / shrink,
    }
    for number, block in enumerate(decoder.blocks):
        none = BlockWeights(*(torch.zeros(len(weight)) for weight in block))
        for kind, part in (("weight", block), ("bias", none if biases is None else biases.blocks[number])):
            for name, tensor in _named(part, decoder.heads).items():
                tensors[f"transformer.h.{number}.{name}.{kind}"] = tensor
    return tensors


def _named(block: BlockWeights, heads: int) -> dict[str, Tensor]:
    return {
        "input_layernorm": block.attention_norm,
        "self_attention.query_key_value": _by_head(block.qkv, heads),
        "self_attention.dense": block.out_proj,
        "post_attention_layernorm": block.mlp_norm,
        "mlp.dense_h_to_4h": block.up_proj,
        "mlp.dense_4h_to_h": block.down_proj,
    }


def _shrinkage(embedding: Tensor) -> float:
    """The largest power of two s, at most 1, with s^2 var / (2 eps) within `_NORM_ERROR` for every row."""
    variance = max(float(embedding.double().var(1, correction=0).max()), 1e-30)
    exponent = math.floor(0.5 * math.log2(2.0 * NORM_EPS * _NORM_ERROR / variance))
    return math.ldexp(1.0, min(0, exponent))


def _by_head(qkv: Tensor, heads: int) -> Tensor:
    """Rows [all q, all k, all v] to [q, k, v of head 0, q, k, v of head 1, ...]."""
    rows: Tensor = qkv.unflatten(0, (3, heads, -1)).transpose(0, 1).flatten(0, 2)
    return rows
