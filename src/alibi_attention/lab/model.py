"""The one decoder that every position method is tried on, and the encoder it is without its causal mask."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alibi_attention.lab.adaptive import AdaptiveEmbedding
from alibi_attention.lab.config import Activation, EmbeddingScale, ExperimentConfig
from alibi_attention.lab.positions import Cache, DecoderShape, PositionMethod, position_methods

VOCABULARY = 256
"""Byte values, the tokens by default. Text holds no NUL, so 0 stands between documents."""

# Logits that exist at once: 4 MiB of float32 at any length.
LOSS_CHUNK = 1 << 20


def _linear(inputs: int, outputs: int, bias: bool) -> nn.Linear:
    layer = nn.Linear(inputs, outputs, bias=False)
    if bias:
        # Not drawn: with biases and without, a seed gives the same matrices.
        layer.bias = nn.Parameter(torch.zeros(outputs))
    return layer


class Attention(nn.Module):
    """Self-attention; `position` decides how queries meet keys."""

    def __init__(self, width: int, heads: int, bias: bool) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = _linear(width, 3 * width, bias)
        self.out_proj = _linear(width, width, bias)

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

    def __init__(self, width: int, heads: int, activation: Activation, bias: bool, dropout: float) -> None:
        super().__init__()
        self.activation = activation
        self.dropout = nn.Dropout(dropout)
        self.attention_norm = nn.LayerNorm(width, bias=bias)
        self.attention = Attention(width, heads, bias)
        self.mlp_norm = nn.LayerNorm(width, bias=bias)
        self.up_proj = _linear(width, 4 * width, bias)
        self.down_proj = _linear(4 * width, width, bias)

    def forward(self, x: Tensor, position: PositionMethod, cache: Cache | None = None) -> Tensor:
        x = x + self.dropout(self.attention(self.attention_norm(x), position, cache))
        inner = self._activated(self.up_proj(self.mlp_norm(x)))
        out: Tensor = x + self.dropout(self.down_proj(inner))
        return out

    def _activated(self, x: Tensor) -> Tensor:
        if self.activation == "relu":
            return F.relu(x)
        return F.gelu(x, approximate="tanh" if self.activation == "gelu-tanh" else "none")


class Decoder(nn.Module):
    """A pre-norm decoder, input and output embeddings tied. As it is by default, MPT is built.

    Args:
        shape: training length, layers, heads and width.
        method: name of the position method.
        seed: of the initial weights. The decoder draws before its position method does, so that all methods start from
            the same decoder.
        activation: ``"gelu"``, by the error function, ``"gelu-tanh"``, its approximation, or ``"relu"``.
        bias: whether matrices and norms have biases. The embeddings, tied to the output, have none.
        embedding_scale: whether embeddings are multiplied by the square root of the width on their way in
            (`ExperimentConfig`).
        final_norm: whether the last layer is normed before the output.
        vocabulary: how many tokens there are; bytes by default.
        cutoffs: of an adaptive vocabulary (`AdaptiveEmbedding`); none by default.
        dropout: of embeddings and of what each sub-layer adds, while training.
        attention_dropout: of attention weights, while training.
        causal: whether a token sees only those before it. An encoder sees both sides, and has one token more, the last,
            that stands for a hidden one (`masking`).
    """

    def __init__(
        self, shape: DecoderShape, method: str, *, seed: int, activation: Activation = "gelu", bias: bool = False,
        embedding_scale: EmbeddingScale = "method", final_norm: bool = True, vocabulary: int = VOCABULARY,
        cutoffs: Sequence[int] = (), dropout: float = 0.0, attention_dropout: float = 0.0, causal: bool = True,
    ) -> None:  # fmt: skip
        super().__init__()
        self.mask_token = vocabulary
        vocabulary += not causal
        self.activation = activation
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.embedding: nn.Embedding | AdaptiveEmbedding = (
                AdaptiveEmbedding(vocabulary, shape.width, cutoffs)
                if cutoffs
                else nn.Embedding(vocabulary, shape.width)
            )
            blocks = (Block(shape.width, shape.heads, activation, bias, dropout) for _ in range(shape.layers))
            self.blocks = nn.ModuleList(blocks)
            self.final_norm = nn.LayerNorm(shape.width, bias=bias) if final_norm else None
            self._initialise(shape.layers)
            self.position = position_methods()[method](shape)
        scaled = self.position.scales_embeddings if embedding_scale == "method" else embedding_scale == "sqrt-width"
        self.embedding_factor = math.sqrt(shape.width) if scaled else 1.0
        self.dropout = nn.Dropout(dropout)
        self.position.attention_dropout = attention_dropout
        self.position.causal = causal

    def _initialise(self, layers: int) -> None:
        if isinstance(self.embedding, nn.Embedding):
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
        if caches:
            self.position.check_cache()
        layers: Sequence[Cache | None] = caches or [None] * len(self.blocks)
        x: Tensor = self.embedding(tokens)
        if self.embedding_factor != 1.0:
            x = self.embedding_factor * x
        x = self.dropout(self.position.embed(x, caches[0].length if caches else 0))
        for block, cache in zip(self.blocks, layers, strict=True):
            x = block(x, self.position, cache)
        return x if self.final_norm is None else self.final_norm(x)

    def forward(self, tokens: Tensor, caches: Sequence[Cache] | None = None) -> Tensor:
        """(batch, seq_len) integers to logits (batch, seq_len, vocabulary); ``caches`` as in `hidden`."""
        return self.logits(self.hidden(tokens, caches))

    def logits(self, hidden: Tensor) -> Tensor:
        """What `hidden` gives, or some of its rows, (..., width) to (..., vocabulary)."""
        if isinstance(self.embedding, AdaptiveEmbedding):
            return self.embedding.log_probabilities(hidden)
        return F.linear(hidden, self.embedding.weight)

    def nats(self, tokens: Tensor, targets: Tensor) -> Tensor:
        """-ln p(target) at every position, (batch, seq_len), with the logits of few positions in memory at a time."""
        return self.nats_of(self.hidden(tokens).flatten(0, 1), targets.flatten()).view_as(targets)

    def nats_of(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """The same of rows of `hidden`, (rows, width) and (rows,) to (rows,)."""
        rows = max(1, LOSS_CHUNK // self.embedding.num_embeddings)
        parts = zip(torch.split(hidden, rows), torch.split(targets, rows), strict=True)
        return torch.cat([self._nats(*part) for part in parts])

    def _nats(self, hidden: Tensor, targets: Tensor) -> Tensor:
        if isinstance(self.embedding, AdaptiveEmbedding):
            return self.embedding.nats(hidden, targets)
        return F.cross_entropy(F.linear(hidden, self.embedding.weight).float(), targets, reduction="none")


def build_decoder(config: ExperimentConfig, method: str, *, vocabulary: int = VOCABULARY) -> Decoder:
    """The decoder, or encoder, of an experiment with one of its position methods."""
    shape = DecoderShape(config.length, config.layers, config.heads, config.width)
    return Decoder(
        shape, method, seed=config.seed, activation=config.activation, bias=config.bias,
        embedding_scale=config.embedding_scale, final_norm=config.final_norm, vocabulary=vocabulary,
        cutoffs=config.cutoffs, dropout=config.dropout, attention_dropout=config.attention_dropout,
        causal=config.objective == "next",
    )  # fmt: skip
