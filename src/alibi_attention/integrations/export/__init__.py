"""A decoder with linear biases, written in the formats of other libraries: MPT, BLOOM and GGUF."""

from alibi_attention.integrations.export.bloom import write_bloom
from alibi_attention.integrations.export.decoder import Biases, BlockWeights, DecoderWeights
from alibi_attention.integrations.export.gguf import write_gguf
from alibi_attention.integrations.export.mpt import write_mpt

__all__ = ["WRITERS", "Biases", "BlockWeights", "DecoderWeights", "write_bloom", "write_gguf", "write_mpt"]

WRITERS = {"mpt": write_mpt, "bloom": write_bloom, "gguf": write_gguf}
"""The function of each format, by its name on the command line."""
