"""What the settings of the decoder change, by a second computation, and what they leave alone."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor, nn

from alibi_attention import alibi_slopes
from alibi_attention.lab.config import make_config
from alibi_attention.lab.model import Decoder, build_decoder
from alibi_attention.lab.positions.sinusoidal import sinusoids

Array = npt.NDArray[np.float64]

LAYERS, HEADS, WIDTH, SEED = 2, 4, 32, 3
SETTINGS: dict[str, Any] = {"layers": LAYERS, "heads": HEADS, "width": WIDTH, "length": 16, "seed": SEED}
TOKENS = [[3, 1, 4, 1, 5, 9, 2, 6, 5]]
PAPERS = {"activation": "relu", "bias": True, "embedding_scale": "sqrt-width", "final_norm": False}


def decoder_of(method: str = "alibi", vocabulary: int = 256, **changes: Any) -> Decoder:
    return build_decoder(make_config({**SETTINGS, **changes}), method, vocabulary=vocabulary)


def moved(decoder: Decoder) -> Decoder:
    """In float64, with embeddings of some size, and no gain 1 and no bias 0."""
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in decoder.named_parameters():
            if name == "embedding.weight":
                parameter.mul_(20)
            elif parameter.dim() == 1:
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=draw))
    return decoder.double().eval()


def by_hand(decoder: Decoder, *, activation: str, factor: float, waves: bool) -> Array:
    """Logits of TOKENS: whatever there is of biases and of a last norm is used."""
    w = {name: tensor.numpy() for name, tensor in decoder.state_dict().items()}
    heads, width = HEADS, WIDTH // HEADS

    def linear(x: Array, name: str) -> Array:
        out: Array = x @ w[f"{name}.weight"].T + w.get(f"{name}.bias", 0.0)
        return out

    def norm(x: Array, name: str) -> Array:
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
        out: Array = x * w[f"{name}.weight"] + w.get(f"{name}.bias", 0.0)
        return out

    def active(x: Array) -> Array:
        if activation == "relu":
            return np.where(x > 0, x, 0.0)
        return x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))

    x = factor * w["embedding.weight"][TOKENS[0]]
    n = len(x)
    if waves:
        x = x + sinusoids(n, WIDTH).numpy()
    distance = np.arange(n)[:, None] - np.arange(n)
    for layer in range(LAYERS):
        block = f"blocks.{layer}"
        qkv = linear(norm(x, f"{block}.attention_norm"), f"{block}.attention.qkv").reshape(n, 3, heads, width)
        mixed = []
        for head, slope in enumerate(alibi_slopes(heads).tolist()):
            query, key, value = (qkv[:, i, head] for i in range(3))
            scores = query @ key.T / math.sqrt(width) - (0.0 if waves else slope) * distance
            weights = np.where(distance >= 0, np.exp(scores), 0.0)
            mixed.append(weights / weights.sum(-1, keepdims=True) @ value)
        x = x + linear(np.concatenate(mixed, axis=-1), f"{block}.attention.out_proj")
        x = x + linear(active(linear(norm(x, f"{block}.mlp_norm"), f"{block}.up_proj")), f"{block}.down_proj")
    if "final_norm.weight" in w:
        x = norm(x, "final_norm")
    out: Array = x @ w["embedding.weight"].T
    return out


@pytest.mark.parametrize(
    ("method", "changes", "factor"),
    [
        ("alibi", {}, 1.0),
        ("alibi", {"activation": "relu"}, 1.0),
        ("alibi", {"bias": True}, 1.0),
        ("alibi", {"embedding_scale": "sqrt-width"}, math.sqrt(WIDTH)),
        ("alibi", {"final_norm": False}, 1.0),
        ("alibi", PAPERS, math.sqrt(WIDTH)),
        ("sinusoidal", {}, math.sqrt(WIDTH)),
        ("sinusoidal", {"embedding_scale": "none"}, 1.0),
        ("sinusoidal", PAPERS, math.sqrt(WIDTH)),
    ],
)
def test_each_setting_is_what_it_says(method: str, changes: dict[str, Any], factor: float) -> None:
    decoder = moved(decoder_of(method, **changes))
    want = by_hand(
        decoder, activation=changes.get("activation", "gelu"), factor=factor, waves=method == "sinusoidal"
    )  # fmt: skip
    with torch.no_grad():
        got, default = decoder(torch.tensor(TOKENS))[0].numpy(), moved(decoder_of(method))(torch.tensor(TOKENS))[0]
    # Some thousand roundings of 2^-53 of numbers of size 100.
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-10)
    assert (np.abs(want - default.numpy()).max() > 0.1) == bool(changes)


@pytest.mark.parametrize(("scale", "factor"), [("method", 1.0), ("sqrt-width", math.sqrt(WIDTH)), ("none", 1.0)])
def test_an_adaptive_vocabulary_is_scaled_on_its_way_in_alone(scale: str, factor: float) -> None:
    decoder = decoder_of(vocabulary=12, tokenizer="words", cutoffs=(4, 8), embedding_scale=scale).eval()
    seen: list[Tensor] = []
    decoder.blocks[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    tokens, hidden = torch.tensor(TOKENS), torch.randn(1, 9, WIDTH)
    with torch.no_grad():
        decoder(tokens)
        assert torch.equal(seen[0], factor * decoder.embedding(tokens))
        assert torch.equal(decoder.logits(hidden), decoder.embedding.log_probabilities(hidden))


# What runs of before had


NAMES = (
    "embedding.weight", "blocks.0.attention_norm.weight", "blocks.0.attention.qkv.weight",
    "blocks.0.attention.out_proj.weight", "blocks.0.mlp_norm.weight", "blocks.0.up_proj.weight",
    "blocks.0.down_proj.weight", "blocks.1.attention_norm.weight", "blocks.1.attention.qkv.weight",
    "blocks.1.attention.out_proj.weight", "blocks.1.mlp_norm.weight", "blocks.1.up_proj.weight",
    "blocks.1.down_proj.weight", "final_norm.weight",
)  # fmt: skip


def as_drawn_before() -> dict[str, Tensor]:
    """The matrices as they were drawn before there were these settings."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        drawn = {"embedding.weight": nn.Embedding(256, WIDTH).weight}
        sizes = {
            "attention.qkv": (3 * WIDTH, WIDTH), "attention.out_proj": (WIDTH, WIDTH), "up_proj": (4 * WIDTH, WIDTH),
            "down_proj": (WIDTH, 4 * WIDTH),
        }  # fmt: skip
        for layer in range(LAYERS):
            for name, (outputs, inputs) in sizes.items():
                drawn[f"blocks.{layer}.{name}.weight"] = nn.Linear(inputs, outputs, bias=False).weight
        for name, weight in drawn.items():
            std = 0.02 if name == "embedding.weight" else 1 / math.sqrt(weight.shape[1])
            nn.init.normal_(
                weight,
                std=std / math.sqrt(2 * LAYERS) if name.endswith(("out_proj.weight", "down_proj.weight")) else std,
            )
    return {name: weight.detach() for name, weight in drawn.items()}


def test_a_seed_gives_the_weights_it_gave_before() -> None:
    found = decoder_of().state_dict()
    assert tuple(found) == NAMES
    want = as_drawn_before()
    assert all(torch.equal(tensor, want.get(name, torch.ones(WIDTH))) for name, tensor in found.items())
    # As the code before printed them; processors without AVX2 may draw other last bits.
    sums = {"embedding.weight": 3.5617881, "blocks.0.attention.qkv.weight": -2.6136312}
    sums |= {"blocks.1.up_proj.weight": 6.6027779, "blocks.1.down_proj.weight": 3.5631419}
    assert {name: float(found[name].double().sum()) for name in sums} == pytest.approx(sums, abs=1e-4)


@pytest.mark.parametrize("name", PAPERS)
def test_no_setting_changes_what_is_drawn(name: str) -> None:
    for method in ("alibi", "learned"):
        before, after = (decoder_of(method, **changes).state_dict() for changes in ({}, {name: PAPERS[name]}))
        more, less = after.keys() - before.keys(), before.keys() - after.keys()
        assert less == ({"final_norm.weight"} if name == "final_norm" else set())
        # Each matrix and norm but the embedding.
        assert more == ({f"{each[:-6]}bias" for each in NAMES[1:]} if name == "bias" else set())
        assert all(torch.equal(tensor, before[each]) for each, tensor in after.items() if each not in more)
        assert not any(after[each].any() for each in more)
