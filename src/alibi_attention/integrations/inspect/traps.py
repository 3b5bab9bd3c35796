"""What goes wrong without a word in the models' own code. Found by running it, with Transformers 5.23."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch

from alibi_attention.integrations.inspect.description import AlibiModel, Trap, rounding_of_positions
from alibi_attention.slopes import alibi_slopes

_USUAL, _LONG = 2048, 32768

BOTH_WAYS = Trap(
    "both-ways",
    "An encoder: the bias falls on both sides of a token, -m |i - j|. Pass is_causal=False to our operator.",
)
SCALED_BY_D = Trap(
    "scaled-by-d",
    "Dot products are divided by head_dim, not by its square root (muP): pass scale=1/head_dim to our operator.",
)
PLAIN_BERT = Trap(
    "plain-bert",
    "model_type is 'bert': without trust_remote_code Transformers loads its own BERT, which has learned absolute "
    "positions and no bias, and leaves those positions untrained.",
)
LEARNED_SCALE = Trap(
    "learned-scale",
    "The slopes are multiplied by a trained scale that is in the weights, not in the configuration: those shown here "
    "are the ones training began with.",
)


def add(model: AlibiModel, *more: Trap) -> AlibiModel:
    """The model with more traps, before those it has."""
    return replace(model, traps=(*more, *model.traps))


def guessed(name: str) -> Trap:
    return Trap(
        "guessed",
        f"{name!r} is no family known here. It says it has linear biases; that they are interleaved, causal, outside "
        "of the scale and made with bias_max 8 is a guess.",
    )


def replaced(name: str) -> Trap:
    return Trap(
        "replaced",
        f"Trained with ALiBi in place of its own positions, which Transformers alone does not know: it loads a {name} "
        "with those it has by itself, and says nothing. Call "
        "alibi_attention.integrations.transformers.replace_positions(model) after loading.",
    )


def scaled_by_length(train_length: int) -> Trap:
    return Trap(
        "scaled-by-length",
        f"alibi_scaling.train_seq_len: beyond {train_length} tokens its code divides the slopes by length / "
        f"{train_length}; those shown are for shorter inputs. scale_slopes(..., 'dynamic') does the same.",
    )


def of_scale(model: AlibiModel, said: str) -> Iterator[Trap]:
    if model.scale != model.head_dim**-0.5:
        yield Trap(
            "softmax-scale",
            f"Dot products are multiplied by {model.scale:g} ({said}), not by 1/sqrt(head_dim): pass "
            f"scale={model.scale:g} to our operator.",
        )


def sliding(model: AlibiModel, said: str, sees: int) -> Trap:
    sides, right = ("before", "None") if model.causal else ("on each side of", f"{sees}")
    return Trap(
        "sliding-window",
        f"{said}: a head sees {sees:,} tokens {sides} each there and no farther, whatever its slope. The spans, "
        f"horizons and memory shown here leave that out: pass window=({sees}, {right}) to our operator.",
    )


def slopes_of_odd_heads(heads: int) -> tuple[Trap, ...]:
    if heads & (heads - 1) == 0:
        return ()
    return (
        Trap(
            "interleaved-slopes",
            f"{heads} heads are no power of two, so these interleaved slopes are not the geometric ones of the paper's "
            f"text: pass alibi_slopes({heads}, 'interleaved'), not the default.",
        ),
    )


def of_bloom(model: AlibiModel) -> Iterator[Trap]:
    if model.dtype in ("bfloat16", "float16"):
        dtype = getattr(torch, model.dtype)
        length = model.length or _USUAL
        yield Trap(
            "rounded-bias",
            f"Its code forms m * j from absolute positions and rounds it to {model.dtype}: at {length:,} tokens the "
            f"bias is off by up to {rounding_of_positions(model.slopes, length, dtype):.2g} nats, at "
            f"{_LONG:,} by up to {rounding_of_positions(model.slopes, _LONG, dtype):.2g}. "
            "Our operator forms it from distances in float32.",
        )
    yield Trap(
        "padding-holes",
        "Its code numbers positions by counting unmasked tokens: a mask with holes inside a sequence moves the tokens "
        "after them.",
    )


def of_baichuan(model: AlibiModel) -> Trap:
    length = model.length or _USUAL
    gibibytes = model.heads * length**2 * (4 if model.dtype == "float32" else 2) / 2**30
    rounded = "" if model.dtype == "float32" else ", where positions are rounded"
    return Trap(
        "dense-bias",
        f"Its code holds bias and mask as (heads, length, length) in the model's dtype{rounded}: {gibibytes:.2g} GiB "
        f"at {length:,} tokens. Our operator never forms them.",
    )


def of_falcon(model: AlibiModel) -> Iterator[Trap]:
    length = model.length or _USUAL
    undivided = alibi_slopes(model.heads, "interleaved")
    off = rounding_of_positions(undivided.bfloat16(), length, torch.bfloat16) / model.head_dim**0.5
    yield Trap(
        "rounded-bias",
        f"Its code forms m * j in bfloat16 whatever the dtype of the model: at {length:,} tokens the bias is off by up "
        f"to {off:.2g} nats. Our operator forms it from distances in float32.",
    )
    rounded = undivided.bfloat16().float()
    if torch.equal(undivided, rounded):
        use = "Pass them as they are."
    else:
        worst = float((rounded / undivided - 1).abs().max())
        yield Trap(
            "rounded-slopes",
            f"It also rounds the slopes themselves to bfloat16, by up to {worst:.2%}. Those shown are not rounded; "
            "`enable` computes with the rounded ones, "
            f"alibi_slopes({model.heads}, 'interleaved').bfloat16().float() / {model.head_dim}**0.5.",
        )
        use = "To pass them as they are is to leave their rounding out."
    yield Trap(
        "divided-bias",
        f"The bias is divided by sqrt(head_dim) with the scores; the slopes shown contain that. {use}",
    )
    yield Trap(
        "eager-twice",
        "Transformers' eager attention for it adds the bias twice; its sdpa path adds it once. Compare with sdpa.",
    )


def of_mpt(
    config: Mapping[str, Any], attention: Mapping[str, Any], model: AlibiModel, window: int | None
) -> Iterator[Trap]:
    if attention.get("alibi") is None:
        yield Trap(
            "alibi-unsaid",
            "Nothing says whether alibi is on: Transformers takes that for yes; "
            "llm-foundry, which MPT was trained with, takes it for no. Where the model comes from there it has learned "
            "positions, and no linear biases.",
        )
    if model.bias_max != 8:
        yield Trap(
            "bias-max-ignored",
            f"alibi_bias_max is {model.bias_max:g}, which Transformers' own MPT does not read: it computes with 8, "
            "other slopes than the model was trained with. The slopes shown are the right ones.",
        )
    if model.length:
        yield Trap(
            "length-cap",
            f"Transformers' own MPT fails beyond max_seq_len = {model.length:,} tokens, for no reason of the method: "
            "raise the key, which costs nothing.",
        )
    if attention.get("qk_ln"):
        yield Trap("qk-norm-ignored", "qk_ln is on, which Transformers' own MPT does not read.")
    if model.kv_heads != model.heads:
        yield Trap(
            "shared-keys",
            f"{model.kv_heads} heads of keys and values for {model.heads} of queries, which Transformers' own MPT does "
            "not have: it needs trust_remote_code.",
        )
    if window is not None:
        yield Trap(
            "sliding-window",
            f"sliding_window_size is {window:,}: a head sees that many tokens before each and no farther, whatever its "
            "slope. The spans, horizons and memory shown here leave that out, and Transformers' own MPT does not read "
            f"it: pass window=({window}, None) to our operator.",
        )
    if attention.get("prefix_lm"):
        yield Trap("prefix-lm", "prefix_lm is on: a prefix is attended both ways, which vLLM refuses.")
    yield from of_scale(model, "softmax_scale")
    if not config.get("use_cache"):
        said = "off" if config.get("use_cache") is False else "not set, and off by default"
        yield Trap(
            "no-cache", f"use_cache is {said}: pass use_cache=True to generate(), or each token costs a whole pass."
        )
    if config.get("architectures") == ["MptForCausalLM"]:
        yield Trap("spelling", "llama.cpp's converter knows the architecture as 'MPTForCausalLM' only.")
