"""A trained decoder from a run folder."""

from __future__ import annotations

from pathlib import Path

from alibi_attention.lab.checkpoint import load_tensors, load_weights
from alibi_attention.lab.errors import LabError
from alibi_attention.lab.model import Decoder, build_decoder
from alibi_attention.lab.runs import RunFolder
from alibi_attention.lab.tokens import Encoder, load_encoder


def load_trained(root: Path, method: str) -> tuple[Decoder, Encoder]:
    """One method's decoder as a run trained it, on the CPU in evaluation mode, and the encoder of its tokens.

    Raises:
        LabError: if the folder is no run, the method is not in it, or is not trained yet.
    """
    folder = RunFolder(root)
    config = folder.read_config()
    if method not in config.methods:
        remedy = f"choose from {', '.join(config.methods)}"
        raise LabError("method", expected=f"a method of {root}", got=repr(method), remedy=remedy)
    path = folder.weights(method)
    if not path.is_file():
        remedy = f"complete it with: alibi extrapolate --resume --output {root}"
        raise LabError("run", expected=f"a run with {method} trained", got=f"{root}", remedy=remedy)
    serialized = folder.tokenizer.read_text(encoding="utf-8") if folder.tokenizer.is_file() else None
    encoder = load_encoder(config.tokenizer, serialized)
    tensors, _ = load_tensors(path)
    decoder = build_decoder(config, method, vocabulary=encoder.vocabulary)
    load_weights(decoder, tensors, path)
    return decoder.eval(), encoder
