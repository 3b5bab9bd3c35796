"""Inputs from a model: what the heads of its layers are given on text that it was not trained on."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from alibi_attention.bench.errors import BenchError

if TYPE_CHECKING:
    from alibi_attention.lab.config import ExperimentConfig

_METHOD = "alibi"
_REMEDY = "name a finished run folder: alibi extrapolate --output FOLDER"


def shape_of(model: Path) -> tuple[int, int]:
    """Heads and head dimension of the model in a run folder.

    Raises:
        BenchError: where there is none that ALiBi was trained in.
    """
    config = _config(model)
    return config.heads, config.width // config.heads


def layers_of(model: Path, tokens: int) -> tuple[list[tuple[Tensor, Tensor, Tensor]], Tensor, str]:
    """Query, key and value of every layer, (1, heads, tokens, head_dim), the slopes, and in words what they are.

    The first ``tokens`` bytes of the held-out text go through the model at once.

    Raises:
        BenchError: as `shape_of`, and for more tokens than there is text.
    """
    from alibi_attention.lab.checkpoint import load_tensors
    from alibi_attention.lab.corpus import load_corpus
    from alibi_attention.lab.errors import LabError
    from alibi_attention.lab.model import build_decoder
    from alibi_attention.lab.runs import RunFolder

    config = _config(model)
    decoder = build_decoder(config, _METHOD)
    try:
        corpus = load_corpus(config)
        decoder.load_state_dict(load_tensors(RunFolder(model).weights(_METHOD))[0])
    except (LabError, OSError) as error:
        raise BenchError("model", expected="a whole run folder", got=f"{model} ({error})", remedy=_REMEDY) from None
    if len(corpus.held_out) < tokens:
        got = f"{len(corpus.held_out):,} bytes in {corpus.source}"
        remedy = "give shorter --lengths, or train on more text"
        raise BenchError("lengths", expected=f"{tokens:,} bytes of held-out text", got=got, remedy=remedy)
    text = torch.from_numpy(corpus.held_out[:tokens].astype("int64"))[None]
    found: list[tuple[Tensor, Tensor, Tensor]] = []
    position: Any = decoder.position
    attend = position.attend

    def keep_and_attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        found.append((query.contiguous(), key.contiguous(), value.contiguous()))
        out: Tensor = attend(query, key, value)
        return out

    position.attend = keep_and_attend
    with torch.no_grad():
        decoder.hidden(text)
    trained = config.steps * config.batch_size * config.length
    note = (
        f"inputs are those of a trained model, {config.layers} layers of {config.heads} heads of "
        f"{config.width // config.heads}, {trained / 1e6:.1f} million bytes of {corpus.source} at length "
        f"{config.length}, on held-out text; times are of all its layers"
    )
    return found, position.slopes, note


def _config(model: Path) -> ExperimentConfig:
    missing = [name for name in ("pydantic", "safetensors", "numpy") if find_spec(name) is None]
    if missing:
        remedy = "pip install 'alibi-attention[lab]'"
        raise BenchError("model", expected="the extra lab", got=f"no {missing[0]}", remedy=remedy)
    from alibi_attention.lab.errors import LabError
    from alibi_attention.lab.runs import RunFolder

    folder = RunFolder(model)
    try:
        config = folder.read_config()
    except (LabError, OSError, ValueError, KeyError) as error:
        raise BenchError("model", expected="a run folder", got=f"{model} ({error})", remedy=_REMEDY) from None
    if not folder.weights(_METHOD).is_file():
        got = f"{model}, without {folder.weights(_METHOD).relative_to(model)}"
        raise BenchError("model", expected="a run in which ALiBi is trained", got=got, remedy=_REMEDY)
    return config
