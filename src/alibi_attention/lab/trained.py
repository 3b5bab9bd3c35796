"""Trained decoders, read back from the folder of a run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast, get_args

import torch
from torch import Tensor, nn

from alibi_attention import alibi_slopes
from alibi_attention.integrations.export.decoder import Biases, BlockWeights, DecoderWeights
from alibi_attention.integrations.inspect import AlibiModel, NotAlibi
from alibi_attention.lab.checkpoint import load_tensors
from alibi_attention.lab.config import ExperimentConfig
from alibi_attention.lab.errors import LabError
from alibi_attention.lab.model import Block, Decoder, build_decoder
from alibi_attention.lab.positions import DecoderShape, position_methods
from alibi_attention.lab.positions.alibi import Alibi
from alibi_attention.lab.runs import RunFolder
from alibi_attention.lab.tokens import Encoder, load_encoder
from alibi_attention.slopes import SlopeScheme

SCHEMES: tuple[SlopeScheme, ...] = get_args(SlopeScheme)


@dataclass(frozen=True)
class Trained:
    """One method of a run.

    Attributes:
        folder: of the run.
        config: of the run.
        method: name of the position method.
    """

    folder: RunFolder
    config: ExperimentConfig
    method: str

    @property
    def has_linear_biases(self) -> bool:
        return issubclass(position_methods()[self.method], Alibi)


def find_trained(path: Path) -> Trained:
    """The method that ``RUN`` or ``RUN/METHOD`` names; the run alone will do where one method of it has linear biases.

    Raises:
        LabError: if there is no run, or the path does not say which method.
    """
    method = None
    folder = RunFolder(path)
    if not folder.config.is_file() and RunFolder(path.parent).config.is_file():
        folder, method = RunFolder(path.parent), path.name
    config = read_run(folder)
    if method is None:
        fitting = [name for name in config.methods if Trained(folder, config, name).has_linear_biases]
        if len(fitting) != 1:
            expected = f"{path}/METHOD, with a method of the run ({', '.join(config.methods)})"
            got = f"{path}, of which {' and '.join(fitting) if fitting else 'none'} has linear biases"
            raise LabError("run", expected=expected, got=got, remedy="name one")
        method = fitting[0]
    if method not in config.methods:
        expected = f"a method of the run in {folder.root} ({', '.join(config.methods)})"
        raise LabError("run", expected=expected, got=repr(method), remedy="name one of these")
    return Trained(folder, config, method)


def read_run(folder: RunFolder) -> ExperimentConfig:
    """The configuration of a run, for those who do not want to continue it.

    Raises:
        LabError: about ``run``.
    """
    if not folder.config.is_file():
        expected = "the folder that alibi extrapolate wrote, or a method's folder in it"
        got = f"{folder.root}, which " + ("has no config.json" if folder.root.is_dir() else "does not exist")
        raise LabError("run", expected=expected, got=got, remedy="name such a folder")
    try:
        return folder.read_config(older=True)
    except LabError as error:
        if error.argument == "run":
            raise
        # Of a setting, which is no flag here.
        expected, _, got = error.complaint.removeprefix("expected ").partition(", got ")
        got = f"{got} for {error.argument} in {folder.config}"
        raise LabError("run", expected=expected, got=got, remedy=error.remedy) from None
    except (KeyError, TypeError, AttributeError):
        expected, got = "a config.json as alibi extrapolate wrote it", f"{folder.config}, which holds something else"
        raise LabError("run", expected=expected, got=got, remedy="name the folder of a run") from None


def load_decoder(trained: Trained) -> Decoder:
    """The decoder with its trained weights, on the CPU, in evaluation mode.

    Raises:
        LabError: if it is not trained yet, or its file is damaged or of another model.
    """
    path = trained.folder.weights(trained.method)
    if not path.is_file():
        expected = "a run that has trained this method"
        got = f"{trained.folder.root}, in which {trained.method} has no {path.name}"
        raise LabError("run", expected=expected, got=got, remedy="continue it with alibi extrapolate --resume")
    try:
        tensors, _ = load_tensors(path)
    except LabError as error:
        _, _, got = error.complaint.partition(", got ")
        remedy = "restore it from a copy, or train again"
        raise LabError("run", expected="a whole file of weights", got=got, remedy=remedy) from None
    decoder = build_decoder(trained.config, trained.method, vocabulary=load_vocabulary(trained).vocabulary)
    try:
        decoder.load_state_dict(tensors)
    except RuntimeError as error:
        expected = f"the weights of {trained.config.layers} layers of width {trained.config.width}"
        got = f"others in {path} ({str(error).splitlines()[-1].strip()})"
        remedy = "restore config.json and weights as they were written"
        raise LabError("run", expected=expected, got=got, remedy=remedy) from None
    return decoder.eval()


def load_vocabulary(trained: Trained) -> Encoder:
    """The encoder of the tokens of a run.

    Raises:
        LabError: if it was learned from text and is not here, or is damaged.
    """
    kind, path = trained.config.tokenizer, trained.folder.tokenizer
    if kind == "bytes":
        return load_encoder(kind, None)
    try:
        return load_encoder(kind, path.read_text(encoding="utf-8"))
    except LabError:
        raise
    except Exception as error:  # what a damaged file makes tokenizers raise has no class of its own
        expected = f"the {path.name} of a run with the tokenizer {kind}"
        got = f"{path} ({str(error).splitlines()[0]})"
        remedy = "restore it from a copy, or train again"
        raise LabError("run", expected=expected, got=got, remedy=remedy) from None


def trained_methods(folder: RunFolder) -> list[str]:
    """Methods of a run whose weights are there."""
    return [method for method in read_run(folder).methods if folder.weights(method).is_file()]


def load_trained(root: Path, method: str) -> tuple[Decoder, Encoder]:
    """One method's decoder as a run trained it, on the CPU in evaluation mode, and the encoder of its tokens.

    Raises:
        LabError: about ``method`` if it is not in the run or not trained yet; else as `read_run` and `load_decoder`.
    """
    folder = RunFolder(root)
    config = read_run(folder)
    there = trained_methods(folder)
    if method not in there:
        got = f"{method!r}, of which {root} has no weights"
        remedy = f"there are those of {', '.join(there)}" if there else "train it first: alibi extrapolate"
        if method in config.methods:
            remedy = f"complete the run with: alibi extrapolate --resume --output {root}"
        raise LabError("method", expected="a method that was trained", got=got, remedy=remedy)
    trained = Trained(folder, config, method)
    return load_decoder(trained), load_vocabulary(trained)


def describe_run(trained: Trained) -> AlibiModel:
    """What `integrations.inspect` says of a configuration, of a run.

    Raises:
        NotAlibi: for methods without linear biases.
        LabError: as `load_decoder`, for slopes that are trained.
    """
    config = trained.config
    if not trained.has_linear_biases:
        raise NotAlibi(f"the method {trained.method} of the run {trained.folder.root}: no linear biases")
    shape = DecoderShape(config.length, config.layers, config.heads, config.width)
    position = position_methods()[trained.method](shape)
    learned = any(True for _ in position.parameters())
    if learned:
        position = load_decoder(trained).position
    slopes = cast(Tensor, position.slopes).detach()
    scheme = next((each for each in SCHEMES if torch.equal(slopes, alibi_slopes(config.heads, each))), None)
    return AlibiModel(
        family=f"laboratory run {trained.folder.root}, method {trained.method}",
        layers=config.layers,
        heads=config.heads,
        kv_heads=config.heads,
        head_dim=config.width // config.heads,
        slopes=slopes,
        scheme=scheme,
        bias_max=8.0 if scheme else None,
        slope_note="trained" if learned else "",
        causal=config.objective == "next",
        scale=(config.width // config.heads) ** -0.5,
        length=config.length,
        length_key="length",
        dtype="float32",
        traps=(),
    )


def decoder_weights(trained: Trained, max_length: int | None = None) -> DecoderWeights:
    """What `integrations.export` writes, of a decoder over bytes with linear biases.

    Args:
        trained: which decoder.
        max_length: the longest input to promise; by default the longest the run was evaluated at.

    Raises:
        LabError: as `load_decoder`, and for methods other than ALiBi, and what no format has a place for.
    """
    if not trained.has_linear_biases:
        expected = "a method with linear biases: MPT, BLOOM and GGUF's MPT know positions by nothing else"
        got = f"{trained.method!r}"
        remedy = f"name a folder such as {trained.folder.root / Alibi.name}"
        raise LabError("run", expected=expected, got=got, remedy=remedy)
    if trained.config.objective != "next":
        expected = "a decoder, which predicts the next token: MPT, BLOOM and GGUF's MPT are decoders"
        got = f"an encoder trained by masked prediction in {trained.folder.root}"
        raise LabError("run", expected=expected, got=got, remedy="train with --objective next")
    if trained.config.tokenizer != "bytes" or trained.config.cutoffs:
        expected = "a run over bytes, with one embedding for each: other vocabularies are not exported"
        adaptive = f", cutoffs {','.join(map(str, trained.config.cutoffs))}" if trained.config.cutoffs else ""
        got = f"the tokenizer {trained.config.tokenizer}{adaptive} in {trained.folder.root}"
        remedy = "train with --tokenizer bytes and without --cutoffs"
        raise LabError("run", expected=expected, got=got, remedy=remedy)
    if not trained.config.final_norm:
        expected = "a norm before the output (final_norm): MPT, BLOOM and GGUF's MPT have one"
        got = f"a decoder without it in {trained.folder.root}"
        raise LabError("run", expected=expected, got=got, remedy="train with --final-norm")
    if max_length is not None and max_length < 1:
        raise LabError("max_length", expected="at least 1 token", got=f"{max_length}", remedy="leave it out")
    longest = max_length or max((trained.config.length, *trained.config.eval_lengths))
    name = f"{trained.folder.root.resolve().name}-{trained.method}"
    return weights_of(load_decoder(trained), longest, name)


def weights_of(decoder: Decoder, max_length: int, name: str) -> DecoderWeights:
    """The weights of a decoder over bytes whose position method has ``slopes``, with a norm before the output.

    No format multiplies embeddings on their way in alone. So they are written multiplied, and what comes to the output,
    which they are too, is as much smaller: the same up to rounding, and exactly where the factor is a power of two.
    """
    embedding, norm = cast(nn.Embedding, decoder.embedding), cast(nn.LayerNorm, decoder.final_norm)
    factor = decoder.embedding_factor
    blocks = [cast(Block, block) for block in decoder.blocks]
    biases = None
    if norm.bias is not None:
        biases = Biases(tuple(_of_block(block, "bias") for block in blocks), norm.bias.detach() / factor)
    return DecoderWeights(
        embedding=factor * embedding.weight.detach(),
        blocks=tuple(_of_block(block, "weight") for block in blocks),
        final_norm=norm.weight.detach() / factor,
        slopes=cast(Tensor, decoder.position.slopes).detach(),
        activation=decoder.activation,
        train_length=decoder.position.shape.length,
        max_length=max_length,
        name=name,
        biases=biases,
    )


def _of_block(block: Block, kind: Literal["weight", "bias"]) -> BlockWeights:
    attention = block.attention
    parts = (block.attention_norm, attention.qkv, attention.out_proj, block.mlp_norm, block.up_proj, block.down_proj)
    return BlockWeights(*(getattr(part, kind).detach() for part in parts))
