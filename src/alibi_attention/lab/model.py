"""The one decoder that every position method is tried on."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alibi_attention.lab.config import Activation, ExperimentConfig
from alibi_attention.lab.positions import Cache, DecoderShape, PositionMethod, position_methods

VOCABULARY = 256
"""Byte values. Text holds no NUL, so 0 stands between documents."""

# Logits of this many positions exist at once; (positions, 256) float32 is then 4 MiB at any length.
LOSS_CHUNK = 4096


class Attention(nn.Module):
    """Causal self-attention; `position` decides how queries meet keys."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out_proj = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor, position: PositionMethod, cache: Cache | None = None) -> Tensor:
        split = self.qkv(x).unflatten(-1, (3, self.heads, -1))
        query, key, value = split.permute(2, 0, 3, 1, 4)
        if cache is None:
            mixed = position.attend(query, key, value)
        else:
            mixed = position.continue_with(cache, query, key, value)
        out: Tensor = self.out_proj(mixed.transpose(1, 2).flatten(-2))
        return out


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, width: int, heads: int, activation: Activation) -> None:
        super().__init__()
        self.gelu = "tanh" if activation == "gelu-tanh" else "none"
        self.attention_norm = nn.LayerNorm(width, bias=False)
        self.attention = Attention(width, heads)
        self.mlp_norm = nn.LayerNorm(width, bias=False)
        self.up_proj = nn.Linear(width, 4 * width, bias=False)
        self.down_proj = nn.Linear(4 * width, width, bias=False)

    def forward(self, x: Tensor, position: PositionMethod, cache: Cache | None = None) -> Tensor:
        x = x + self.attention(self.attention_norm(x), position, cache)
        out: Tensor = x + self.down_proj(F.gelu(self.up_proj(self.mlp_norm(x)), approximate=self.gelu))
        return out


class Decoder(nn.Module):
    """A pre-norm decoder over bytes: no bias anywhere, GELU, input and output embeddings tied (as MPT is built).

    Args:
        shape: training length, layers, heads and width.
        method: name of the position method.
        seed: of the initial weights. The decoder draws before its position method does, so that all methods start from
            the same decoder.
        activation: ``"gelu"``, by the error function, or ``"gelu-tanh"``, its approximation.
    """

    def __init__(self, shape: DecoderShape, method: str, *, seed: int, activation: Activation = "gelu") -> None:
        super().__init__()
        self.activation = activation
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.embedding = nn.Embedding(VOCABULARY, shape.width)
            self.blocks = nn.ModuleList(Block(shape.width, shape.heads, activation) for _ in range(shape.layers))
            self.final_norm = nn.LayerNorm(shape.width, bias=False)
            self._initialise(shape.layers)
            self.position = position_methods()[method](shape)

    def _initialise(self, layers: int) -> None:
        nn.init.normal_(self.embedding.weight, std=0.02)
        for name, parameter in self.blocks.named_parameters():
            if parameter.dim() == 2:
                # Unit variance through each matrix; the two that end in the residual stream share it among all layers.
                std = 1.0 / math.sqrt(parameter.shape[1])
                into_stream = name.endswith(("out_proj.weight", "down_proj.weight"))
                nn.init.normal_(parameter, std=std / math.sqrt(2 * layers) if into_stream else std)

    def hidden(self, tokens: Tensor, caches: Sequence[Cache] | None = None) -> Tensor:
        """(batch, seq_len) integers to (batch, seq_len, width).

        With ``caches``, one for each layer, the tokens follow those that went before, and are remembered in their turn.
        """
        layers: Sequence[Cache | None] = caches or [None] * len(self.blocks)
        x = self.position.embed(self.embedding(tokens), caches[0].length if caches else 0)
        for block, cache in zip(self.blocks, layers, strict=True):
            x = block(x, self.position, cache)
        out: Tensor = self.final_norm(x)
        return out

    def forward(self, tokens: Tensor, caches: Sequence[Cache] | None = None) -> Tensor:
        """(batch, seq_len) integers to logits (batch, seq_len, 256); ``caches`` as in `hidden`."""
        return F.linear(self.hidden(tokens, caches), self.embedding.weight)

    def nats(self, tokens: Tensor, targets: Tensor) -> Tensor:
        """-ln p(target) at every position, (batch, seq_len), with the logits of few positions in memory at a time."""
        hidden = self.hidden(tokens).flatten(0, 1)
        parts = torch.split(hidden, LOSS_CHUNK), torch.split(targets.flatten(), LOSS_CHUNK)
        weight = self.embedding.weight
        losses = [
            F.cross_entropy(F.linear(part, weight), target, reduction="none")
            for part, target in zip(*parts, strict=True)
        ]
        return torch.cat(losses).view_as(targets)


def build_decoder(config: ExperimentConfig, method: str) -> Decoder:
    """The decoder of an experiment with one of its position methods."""
    shape = DecoderShape(config.length, config.layers, config.heads, config.width)
    return Decoder(shape, method, seed=config.seed, activation=config.activation)
