"""Inputs from a model: what the heads of its layers are given on text that it was not trained on."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from alibi_attention.bench.errors import BenchError
from alibi_attention.extras import installing

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

    The first ``tokens`` tokens of the held-out text go through the model at once.

    Raises:
        BenchError: as `shape_of`, and for more tokens than there is text.
    """
    from alibi_attention.lab.corpus import load_corpus
    from alibi_attention.lab.errors import LabError
    from alibi_attention.lab.runs import RunFolder
    from alibi_attention.lab.trained import load_trained

    config = _config(model)
    try:
        decoder, _ = load_trained(model, _METHOD)
        corpus = load_corpus(config)
    except (LabError, OSError) as error:
        raise BenchError("model", expected="a whole run folder", got=f"{model} ({error})", remedy=_REMEDY) from None
    unit = "bytes" if config.tokenizer == "bytes" else "tokens"
    if len(corpus.held_out) < tokens:
        got = f"{len(corpus.held_out):,} {unit} in {corpus.source}"
        remedy = "give shorter --lengths, or train on more text"
        raise BenchError("lengths", expected=f"{tokens:,} {unit} of held-out text", got=got, remedy=remedy)
    try:
        RunFolder(model).refuse_changed_corpus(corpus)
        what = "held-out text"
    except LabError:
        what = "text of which it may have seen some: the corpus, or how it is split, is not that of the run any more"
    text = torch.from_numpy(corpus.held_out[:tokens].astype("int64"))[None]
    if int(text.max()) >= decoder.embedding.num_embeddings:
        got = f"another vocabulary, from {corpus.source} as it is now"
        raise BenchError("model", expected="the vocabulary of the run", got=got, remedy="restore the text of the run")
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
    trained = config.steps * config.accumulate * config.batch_size * config.length
    note = (
        f"inputs are those of a trained model, {config.layers} layers of {config.heads} heads of "
        f"{config.width // config.heads}, {trained / 1e6:.1f} million {unit} of {corpus.source} at length "
        f"{config.length}, on {what}; times are of all its layers"
    )
    return found, position.slopes_for(tokens).detach(), note


def _config(model: Path) -> ExperimentConfig:
    missing = [name for name in ("pydantic", "safetensors", "numpy") if find_spec(name) is None]
    if missing:
        remedy = installing("lab")
        raise BenchError("model", expected="the extra lab", got=f"no {missing[0]}", remedy=remedy)
    from alibi_attention.lab.errors import LabError
    from alibi_attention.lab.runs import RunFolder
    from alibi_attention.lab.trained import read_run

    folder = RunFolder(model)
    try:
        config = read_run(folder)
    except (LabError, OSError) as error:
        raise BenchError("model", expected="a run folder", got=f"{model} ({error})", remedy=_REMEDY) from None
    if config.objective != "next":
        got = f"{model}, an encoder trained by masked prediction"
        raise BenchError("model", expected="a decoder: cases are causal", got=got, remedy=_REMEDY)
    if not folder.weights(_METHOD).is_file():
        got = f"{model}, without {folder.weights(_METHOD).relative_to(model)}"
        raise BenchError("model", expected="a run in which ALiBi is trained", got=got, remedy=_REMEDY)
    return config
