"""The configuration keys of the families that use linear biases.

A reader takes a configuration and gives a description, or raises `NotAlibi` where the family also has members without
linear biases and this is one. `describe` finds the reader.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from alibi_attention.integrations.inspect import traps as known
from alibi_attention.integrations.inspect.description import (
    LONGEST,
    MOST_HEADS,
    WIDEST,
    AlibiModel,
    NotAlibi,
    Trap,
    check_depth,
    dtype_of,
    flag,
    number,
    part,
    positive,
    window,
)
from alibi_attention.slopes import SlopeScheme, alibi_slopes

Config = Mapping[str, Any]

_MOST_BIAS = 126.0  # what alibi_slopes takes
_STEEPEST = 3e38


class _Shape(NamedTuple):
    """The keys of a configuration that say how large the model is."""

    layers: tuple[str, ...] = ("n_layer", "num_hidden_layers")
    heads: tuple[str, ...] = ("n_head", "num_attention_heads")
    width: tuple[str, ...] = ("n_embd", "hidden_size")
    length: tuple[str, ...] = ("n_positions", "max_position_embeddings")


_GPT = _Shape()
_BERT = _Shape(("num_hidden_layers",), ("num_attention_heads",), ("hidden_size",), ("max_position_embeddings",))


def describe(config: object) -> AlibiModel:
    """What a model's configuration says of its linear biases.

    Args:
        config: the contents of a config.json.

    Raises:
        NotAlibi: for a model without linear biases, or one that is not known.
        ValueError: for a configuration in which something needed is missing or wrong.
    """
    if not isinstance(config, Mapping):
        raise ValueError(f"config: expected a JSON object, got {type(config).__name__}")
    check_depth(config)
    if "alibi_positions" in config:
        return _read_replaced(config)
    inner = config.get("text_config")
    if isinstance(inner, Mapping):
        return describe(inner)
    if _data2vec(config) is not None:
        return _read_data2vec(config)
    kind = str(config.get("model_type", "")).lower()
    if kind in _READERS:
        return _READERS[kind](config)
    if config.get("position_embedding_type") == "alibi" or flag(config, "alibi", False):
        return _read_unknown(config)
    name = f"model_type {kind!r}" if kind else "a configuration without model_type"
    raise NotAlibi(
        f"{name}: no sign of linear biases (position_embedding_type, alibi, alibi_starting_size), and no family known "
        f"for them; known are {', '.join(FAMILIES)}"
    )


def _model(
    config: Config, family: str, shape: _Shape, *, causal: bool = True, kv_heads: int | None = None,
    kv_key: str = "kv_heads", bias_max: float = 8.0, factor: float = 1.0, note: str = "", scale_power: float = 0.5,
    slopes: Tensor | None = None, head_dim: int | None = None, extra: tuple[Trap, ...] = (),
) -> AlibiModel:  # fmt: skip
    heads, width = number(config, *shape.heads, most=MOST_HEADS), number(config, *shape.width, most=WIDEST)
    kv_heads = kv_heads or heads
    if head_dim is None and width % heads:
        key = next(key for key in shape.width if config.get(key) is not None)
        raise ValueError(f"{key}: expected a multiple of the {heads} heads, got {width}; mend the configuration")
    if heads % kv_heads:
        raise ValueError(
            f"{kv_key}: expected a number that divides the {heads} heads of queries, got {kv_heads}; mend the "
            "configuration"
        )
    length_key = next((key for key in shape.length if config.get(key) is not None), "")
    length = number(config, length_key, most=LONGEST) if length_key else None
    slopes = alibi_slopes(heads, "interleaved", bias_max) if slopes is None else slopes
    head_dim = head_dim or width // heads
    return AlibiModel(
        family=family,
        layers=number(config, *shape.layers, most=WIDEST),
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        slopes=slopes * factor,
        scheme="interleaved",
        bias_max=bias_max,
        slope_note=note,
        causal=causal,
        scale=head_dim**-scale_power,
        length=length,
        length_key=length_key,
        dtype=dtype_of(config),
        traps=(*extra, *known.slopes_of_odd_heads(heads), *(() if causal else (known.BOTH_WAYS,))),
    )


def _read_bloom(config: Config) -> AlibiModel:
    shape = _Shape(width=("n_embed", "hidden_size"), length=("seq_length",))
    model = _model(config, "BLOOM", shape)
    return known.add(model, *known.of_bloom(model))


def _read_mpt(config: Config) -> AlibiModel:
    inner = part(config, "attn_config")
    attention, inside = (config, "") if inner is None else (inner, "attn_config.")
    # True where it is not said, as Transformers has it.
    if not flag(attention, "alibi", True, inside=inside):
        raise NotAlibi(
            "MPT with attn_config.alibi off: learned positions instead of linear biases. Transformers' own MPT does "
            "not read this key and would apply linear biases all the same"
        )
    shape = _Shape(("n_layers",), ("n_heads",), ("d_model",), ("max_seq_len",))
    heads = number(config, "n_heads", most=MOST_HEADS)
    kv_heads = number(attention, "kv_n_heads", default=heads)
    if attention.get("attn_type") == "multiquery_attention":
        kv_heads = 1
    bias_max = positive(attention, "alibi_bias_max", 8, most=_MOST_BIAS, inside=inside)
    name = "Replit" if "replit" in str(config.get("_name_or_path", "")).lower() else "MPT"
    if config.get("model_type") == "replit_lm":
        name = "Replit"
    model = _model(config, name, shape, kv_heads=kv_heads, kv_key=f"{inside}kv_n_heads", bias_max=bias_max)
    model = replace(model, scale=positive(attention, "softmax_scale", model.scale, inside=inside))
    sees = window(attention, "sliding_window_size", inside=inside)
    return known.add(model, *known.of_mpt(config, attention, model, sees))


def _read_falcon(config: Config) -> AlibiModel:
    if not flag(config, "alibi", False):
        raise NotAlibi("Falcon with alibi off: rotary embedding instead of linear biases")
    heads = number(config, "n_head", "num_attention_heads", most=MOST_HEADS)
    width = number(config, "hidden_size", most=WIDEST)
    kv_heads = heads
    if flag(config, "new_decoder_architecture", False):
        kv_heads = number(config, "num_kv_heads", "n_head_kv", default=heads)
    elif flag(config, "multi_query", True):
        kv_heads = 1
    root = math.sqrt(max(1, width // heads))
    note = f"divided by sqrt(head_dim) = {root:g}, as its code divides the sum of scores and bias"
    model = _model(config, "Falcon", _GPT, kv_heads=kv_heads, kv_key="num_kv_heads", factor=1 / root, note=note)
    return known.add(model, *known.of_falcon(model))


def _read_baichuan(config: Config) -> AlibiModel:
    # Both sizes share a model_type; the 7B models, of width 4096, have rotary embedding. (vLLM tells them apart so.)
    if number(config, "hidden_size") == 4096:
        raise NotAlibi("Baichuan of width 4096 (the 7B models): rotary embedding instead of linear biases")
    shape = _BERT._replace(length=("model_max_length", "max_position_embeddings"))
    model = _model(config, "Baichuan-13B", shape)
    return known.add(model, known.of_baichuan(model))


def _read_cerebras(config: Config) -> AlibiModel:
    family = {"jais": "Jais", "btlm": "BTLM"}[str(config["model_type"]).lower()]
    if config.get("position_embedding_type") != "alibi":
        raise NotAlibi(f"{family} with position_embedding_type {config.get('position_embedding_type')!r}, not 'alibi'")
    by_d = flag(config, "mup_scale_qk_dot_by_d", flag(config, "scale_qk_dot_by_d", False))
    extra = (known.SCALED_BY_D,) if by_d else ()
    scaling = part(config, "alibi_scaling") or {}
    factor, note = 1.0, ""
    if scaling.get("factor") is not None:
        divisor = positive(scaling, "factor", 1.0, inside="alibi_scaling.")
        factor, note = 1.0 / divisor, f"divided by alibi_scaling.factor = {divisor}"
    elif scaling.get("train_seq_len") is not None:
        extra = (*extra, known.scaled_by_length(number(scaling, "train_seq_len", most=LONGEST)))
    return _model(
        config, family, _GPT, factor=factor, note=note, scale_power=1.0 if by_d else 0.5, extra=extra
    )  # fmt: skip


def _read_refact(config: Config) -> AlibiModel:
    return _model(config, "Refact", _GPT, kv_heads=1 if flag(config, "multi_query", True) else None)


def _read_bert(config: Config) -> AlibiModel:
    if config.get("position_embedding_type") == "alibi":
        return _model(config, "jina-embeddings-v2", _BERT, causal=False, extra=(known.PLAIN_BERT,))
    if "alibi_starting_size" in config:
        shape = _BERT._replace(length=("alibi_starting_size",))
        family = "DNABERT-2" if "dnabert" in str(config.get("_name_or_path", "")).lower() else "MosaicBERT or DNABERT-2"
        return _model(config, family, shape, causal=False, extra=(known.PLAIN_BERT,))
    raise NotAlibi("BERT without alibi_starting_size and without position_embedding_type 'alibi': learned positions")


def _data2vec(config: Config) -> Config | None:
    """The part of a data2vec 2 configuration that speaks of its biases, wherever it lies."""
    if config.get("use_alibi_encoder") is True:
        return config
    parts = [value for value in config.values() if isinstance(value, Mapping)]
    return next((found for part in parts if (found := _data2vec(part)) is not None), None)


def _read_data2vec(config: Config) -> AlibiModel:
    biases = _data2vec(config)
    assert biases is not None
    outer = config.get("model") if isinstance(config.get("model"), Mapping) else config
    merged = {**(outer if isinstance(outer, Mapping) else {}), **biases}
    shape = _Shape(
        ("model_depth", "depth", "encoder_layers", "num_hidden_layers"),
        ("num_alibi_heads", "num_heads", "num_attention_heads", "encoder_attention_heads"),
        ("embed_dim", "hidden_size", "encoder_embed_dim"),
        ("alibi_max_pos",),
    )
    learned = any(flag(biases, key, False) for key in ("learned_alibi", "learned_alibi_scale"))
    factor = positive(biases, "alibi_scale", 1.0)
    note = f"times alibi_scale = {factor:g}" if factor != 1.0 else ""
    extra = (known.LEARNED_SCALE,) if learned else ()
    return _model(merged, "data2vec 2", shape, causal=False, factor=factor, note=note, extra=extra)


_ANY = _Shape(
    ("n_layer", "num_hidden_layers", "n_layers"), ("n_head", "num_attention_heads", "n_heads"),
    ("n_embd", "hidden_size", "d_model"), ("n_positions", "max_position_embeddings", "max_seq_len"),
)  # fmt: skip


def _read_replaced(config: Config) -> AlibiModel:
    """A model whose own positions `replace_positions` switched off."""
    name = str(config.get("model_type") or "unnamed")
    heads = number(config, *_ANY.heads, most=MOST_HEADS)
    remembered = part(config, "alibi_positions") or {}
    given = remembered.get("slopes")
    numbers = [each for each in given if type(each) in (int, float)] if isinstance(given, list) else []
    if len(numbers) != heads or numbers != given or not all(-_STEEPEST < each < _STEEPEST for each in numbers):
        raise ValueError(
            f"alibi_positions.slopes: expected {heads} numbers that float32 can hold, one for each head, got {given!r}"
            "; mend the configuration"
        )
    causal = flag(remembered, "causal", True, inside="alibi_positions.")
    slopes = torch.tensor([float(each) for each in numbers])
    model = _any_model(config, f"{name} by replace_positions", causal=causal, slopes=slopes)
    scheme: SlopeScheme | None = None
    for each in ("geometric", "interleaved"):
        if torch.allclose(slopes, alibi_slopes(heads, each)):
            scheme = each
            break
    return known.add(replace(model, scheme=scheme, length=None, length_key=""), known.replaced(name))


def _read_unknown(config: Config) -> AlibiModel:
    name = str(config.get("model_type") or "unnamed")
    return _any_model(config, name, extra=(known.guessed(name),))


def _any_model(config: Config, family: str, **options: Any) -> AlibiModel:
    """A model by the keys that most of Transformers' models share."""
    head_dim = None if config.get("head_dim") is None else number(config, "head_dim", most=WIDEST)
    kv_heads = number(config, "num_key_value_heads", default=number(config, *_ANY.heads, most=MOST_HEADS))
    model = _model(
        config, family, _ANY, kv_heads=kv_heads, kv_key="num_key_value_heads", head_dim=head_dim, **options
    )  # fmt: skip
    said, scale = _scale(config, model)
    model = replace(model, scale=scale)
    return known.add(model, *known.of_scale(model, said), *_sliding(config, model))


def _scale(config: Config, model: AlibiModel) -> tuple[str, float]:
    """The factor on dot products, and what the configuration calls it."""
    if config.get("query_pre_attn_scalar") is not None:
        return "query_pre_attn_scalar**-0.5", positive(config, "query_pre_attn_scalar", 1.0) ** -0.5
    if not flag(config, "scale_attn_weights", True):
        return "scale_attn_weights is off", 1.0
    return "attention_multiplier", positive(config, "attention_multiplier", model.scale)


def _sliding(config: Config, model: AlibiModel) -> Iterator[Trap]:
    """The window that some or all layers have."""
    key = next((key for key in ("sliding_window", "local_attention") if config.get(key) is not None), None)
    kinds = config.get("layer_types")
    layers = kinds.count("sliding_attention") if isinstance(kinds, list) else model.layers
    if key is None or layers == 0 or not flag(config, "use_sliding_window", True):
        return
    size = window(config, key) or 0
    if key == "local_attention":
        # Of both sides together, in the configurations of ModernBERT and its decoder.
        size //= 2
    if size:
        # Itself included, where a token looks back alone.
        sees = size - 1 if model.causal else size
        yield known.sliding(model, f"{key} is {config[key]:,} in {layers} of {model.layers} layers", sees)


_READERS: dict[str, Callable[[Config], AlibiModel]] = {
    "bloom": _read_bloom,
    "mpt": _read_mpt,
    "replit_lm": _read_mpt,
    "falcon": _read_falcon,
    "refinedweb": _read_falcon,
    "refinedwebmodel": _read_falcon,
    "baichuan": _read_baichuan,
    "jais": _read_cerebras,
    "btlm": _read_cerebras,
    "gpt_refact": _read_refact,
    "bert": _read_bert,
}

FAMILIES = (
    *("BLOOM", "MPT", "Falcon", "Baichuan-13B", "Jais", "BTLM", "Replit", "Refact", "jina-embeddings-v2"),
    *("MosaicBERT", "DNABERT-2", "data2vec 2"),
)
"""Names of the families whose keys are known."""
