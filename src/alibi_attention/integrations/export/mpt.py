"""MPT, which is the laboratory's decoder in all but the names of its tensors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from alibi_attention.integrations.export.decoder import NORM_EPS, DecoderWeights
from alibi_attention.integrations.export.folder import new_folder, write_json, write_weights
from alibi_attention.integrations.export.tokenizer import SEPARATOR, write_tokenizer


def write_mpt(decoder: DecoderWeights, output: Path, *, approximate: bool = False) -> Path:
    """Write a folder that Transformers (`AutoModelForCausalLM`), vLLM and llama.cpp's converter know as MPT.

    Args:
        decoder: what to write; its ``max_length`` becomes ``max_seq_len``, beyond which Transformers' MPT fails.
        output: a new or empty folder.
        approximate: accept that the tanh approximation of GELU becomes the exact one.

    Returns:
        The folder.

    Raises:
        ValueError: for a decoder that MPT cannot express, or an output that exists. Nothing is written then.

    Source: the configuration and tensor names of mosaicml/mpt-7b.
    """
    decoder.refuse_unless_expressible("MPT")
    # Transformers' MPT has none, whatever ``no_bias`` says.
    decoder.refuse_biases("MPT")
    if not approximate:
        decoder.refuse_other_activation("MPT", "gelu")
    with new_folder(output) as folder:
        write_weights(folder, mpt_tensors(decoder))
        write_json(folder / "config.json", mpt_config(decoder))
        write_tokenizer(folder, decoder.max_length)
    return output


def mpt_config(decoder: DecoderWeights) -> dict[str, Any]:
    return {
        # llama.cpp's converter and vLLM know this spelling; Transformers goes by model_type.
        "architectures": ["MPTForCausalLM"],
        "model_type": "mpt",
        "d_model": decoder.width,
        "n_heads": decoder.heads,
        "n_layers": len(decoder.blocks),
        "expansion_ratio": 4,
        "max_seq_len": decoder.max_length,
        "vocab_size": len(decoder.embedding),
        "attn_config": {
            "attn_type": "multihead_attention",
            "attn_impl": "torch",
            "attn_pdrop": 0,
            "attn_uses_sequence_id": False,
            "alibi": True,
            "alibi_bias_max": 8,
            "clip_qkv": None,
            "prefix_lm": False,
            "qk_ln": False,
            "softmax_scale": None,
        },
        "emb_pdrop": 0,
        "resid_pdrop": 0,
        "embedding_fraction": 1.0,
        "initializer_range": 0.02,
        "layer_norm_epsilon": NORM_EPS,
        "learned_pos_emb": False,
        "logit_scale": None,
        "no_bias": True,
        "norm_type": "low_precision_layernorm",
        "tie_word_embeddings": True,
        "torch_dtype": "float32",
        "use_cache": True,
        "bos_token_id": SEPARATOR,
        "eos_token_id": SEPARATOR,
        "pad_token_id": SEPARATOR,
    }


def mpt_tensors(decoder: DecoderWeights) -> dict[str, Tensor]:
    tensors = {"transformer.wte.weight": decoder.embedding, "transformer.norm_f.weight": decoder.final_norm}
    for number, block in enumerate(decoder.blocks):
        prefix = f"transformer.blocks.{number}"
        tensors |= {
            f"{prefix}.norm_1.weight": block.attention_norm,
            f"{prefix}.attn.Wqkv.weight": block.qkv,
            f"{prefix}.attn.out_proj.weight": block.out_proj,
            f"{prefix}.norm_2.weight": block.mlp_norm,
            f"{prefix}.ffn.up_proj.weight": block.up_proj,
            f"{prefix}.ffn.down_proj.weight": block.down_proj,
        }
    return tensors
