"""GGUF, as llama.cpp reads MPT."""

from __future__ import annotations

from pathlib import Path

from alibi_attention.integrations.export.decoder import NORM_EPS, DecoderWeights
from alibi_attention.integrations.export.folder import new_folder
from alibi_attention.integrations.export.tokenizer import SEPARATOR, byte_symbols

FILE_NAME = "model.gguf"
BIAS_MAX = 8.0
_SEPARATOR_TEXT = "<|endoftext|>"


def write_gguf(decoder: DecoderWeights, output: Path, *, approximate: bool = False) -> Path:
    """Write model.gguf, float32, architecture ``mpt``, into a new folder.

    llama.cpp computes GELU by its tanh approximation from a float16 table on a CPU, whatever the file says, and holds
    keys and values as float16 by default; its logits agree to about 0.01.

    Args:
        decoder: what to write; its ``max_length`` becomes the context length.
        output: a new or empty folder.
        approximate: refused: llama.cpp approximates in any case, see above.

    Returns:
        The file.

    Raises:
        ValueError: for a decoder that MPT cannot express, ``approximate``, or an output that exists. Nothing is written
            then.

    Source: the GGUF specification, and the keys llama.cpp's converter writes for MPT.
    """
    if approximate:
        raise ValueError(
            "approximate: expected for MPT and BLOOM folders, got it for GGUF, where llama.cpp computes GELU by its "
            "tanh approximation whatever the file says; leave it out"
        )
    decoder.refuse_unless_expressible("MPT in llama.cpp")
    decoder.refuse_biases("MPT in llama.cpp")
    with new_folder(output) as folder:
        _write(decoder, folder / FILE_NAME)
    return output / FILE_NAME


def _write(decoder: DecoderWeights, path: Path) -> None:
    from gguf import GGML_QUANT_VERSION, GGUFType, GGUFWriter, LlamaFileType, TokenType

    writer = GGUFWriter(path, "mpt")
    writer.add_type(GGUFType.MODEL)
    writer.add_name(decoder.name)
    writer.add_context_length(decoder.max_length)
    writer.add_embedding_length(decoder.width)
    writer.add_block_count(len(decoder.blocks))
    writer.add_feed_forward_length(4 * decoder.width)
    writer.add_head_count(decoder.heads)
    writer.add_layer_norm_eps(NORM_EPS)
    writer.add_max_alibi_bias(BIAS_MAX)
    writer.add_file_type(LlamaFileType.ALL_F32)
    writer.add_quantization_version(GGML_QUANT_VERSION)

    symbols = byte_symbols()
    types = [int(TokenType.NORMAL)] * len(symbols)
    # Strings of this format end at NUL for many a reader, so the separator cannot be spelled as itself.
    symbols[SEPARATOR], types[SEPARATOR] = _SEPARATOR_TEXT, int(TokenType.CONTROL)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(symbols)
    writer.add_token_types(types)
    # A list of merges must be there and cannot be empty: this one is of two NULs, into a token that does not exist.
    writer.add_token_merges([" ".join([byte_symbols()[SEPARATOR]] * 2)])
    writer.add_bos_token_id(SEPARATOR)
    writer.add_eos_token_id(SEPARATOR)
    writer.add_pad_token_id(SEPARATOR)
    writer.add_add_bos_token(False)

    tensors = {"token_embd": decoder.embedding, "output_norm": decoder.final_norm}
    for number, block in enumerate(decoder.blocks):
        prefix = f"blk.{number}"
        tensors |= {
            f"{prefix}.attn_norm": block.attention_norm,
            f"{prefix}.attn_qkv": block.qkv,
            f"{prefix}.attn_output": block.out_proj,
            f"{prefix}.ffn_norm": block.mlp_norm,
            f"{prefix}.ffn_up": block.up_proj,
            f"{prefix}.ffn_down": block.down_proj,
        }
    for name, tensor in tensors.items():
        writer.add_tensor(f"{name}.weight", tensor.detach().cpu().float().contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
