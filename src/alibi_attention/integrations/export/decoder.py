"""What is exported, and whether a format can say it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from alibi_attention.slopes import alibi_slopes

Activation = Literal["gelu", "gelu-tanh", "relu"]

NORM_EPS = 1e-5
BYTES = 256


class BlockWeights(NamedTuple):
    """x + out_proj(attention(qkv(attention_norm(x)))), then x + down_proj(activation(up_proj(mlp_norm(x)))).

    Attributes:
        attention_norm, mlp_norm: (width,) gains of layer norms, eps 1e-5.
        qkv: (3 * width, width), the rows of all queries, then all keys, then all values, each by head.
        out_proj: (width, width).
        up_proj: (4 * width, width).
        down_proj: (width, 4 * width).
    """

    attention_norm: Tensor
    qkv: Tensor
    out_proj: Tensor
    mlp_norm: Tensor
    up_proj: Tensor
    down_proj: Tensor


class Biases(NamedTuple):
    """What is added to each matrix's and norm's output, (outputs,) each.

    Attributes:
        blocks: of the layers, each by the name of its matrix or norm.
        final_norm: (width,).
    """

    blocks: tuple[BlockWeights, ...]
    final_norm: Tensor


@dataclass(frozen=True)
class DecoderWeights:
    """A pre-norm decoder over bytes, attention scaled by 1 / sqrt(head_dim).

    Attributes:
        embedding: (256, width), of the input and, transposed, of the output.
        blocks: the layers.
        final_norm: (width,).
        slopes: (heads,), in nats per token.
        activation: ``"gelu"``, by the error function, ``"gelu-tanh"``, its approximation, or ``"relu"``.
        train_length: of the sequences it was trained on, in tokens.
        max_length: the longest input to promise, in tokens, where a format wants one said.
        name: for metadata.
        biases: of all matrices and norms, or None.
    """

    embedding: Tensor
    blocks: tuple[BlockWeights, ...]
    final_norm: Tensor
    slopes: Tensor
    activation: Activation
    train_length: int
    max_length: int
    name: str = "alibi-decoder"
    biases: Biases | None = None

    @property
    def heads(self) -> int:
        return len(self.slopes)

    @property
    def width(self) -> int:
        return self.embedding.shape[1]

    @property
    def parameters(self) -> int:
        """How many numbers were trained."""
        tensors = [self.embedding, self.final_norm, *(weight for block in self.blocks for weight in block)]
        if self.biases is not None:
            tensors += [self.biases.final_norm, *(bias for block in self.biases.blocks for bias in block)]
        return sum(tensor.numel() for tensor in tensors)

    def refuse_unless_expressible(self, title: str) -> None:
        """Raise ValueError unless a format whose only slopes are the interleaved ones can hold this decoder."""
        if len(self.embedding) != BYTES:
            raise ValueError(
                f"embedding: expected {BYTES} tokens, one for each byte, got {len(self.embedding)}; "
                "the tokenizer that is written knows bytes alone"
            )
        if self.activation == "relu":
            raise ValueError(
                f"activation: expected 'gelu' or 'gelu-tanh', as {title} computes GELU whatever a file says, got "
                f"'relu'; train with one of these (--activation gelu)"
            )
        interleaved = alibi_slopes(self.heads, "interleaved")
        if not torch.allclose(self.slopes.detach().cpu().float(), interleaved, rtol=1e-6, atol=0.0):
            remedy = "train with slopes that are neither learned nor scaled"
            if torch.allclose(self.slopes.detach().cpu().float(), alibi_slopes(self.heads), rtol=1e-6, atol=0.0):
                power = 1 << (self.heads.bit_length() - 1)
                remedy = (
                    f"train the method alibi-interleaved, which has them, or with {power} or {2 * power} heads, for "
                    "which both schemes are the same"
                )
            raise ValueError(
                f"slopes: expected the interleaved ones for {self.heads} heads, the only ones {title} has, "
                f"got {[round(slope, 6) for slope in self.slopes.tolist()[:8]]}; {remedy}"
            )

    def refuse_biases(self, title: str) -> None:
        """Raise ValueError for biases, which a format has no place for."""
        if self.biases is not None:
            raise ValueError(
                f"bias: expected a decoder without biases for {title}, got one with them; train without them "
                "(--no-bias), or export as BLOOM (--format bloom), which has them"
            )

    def refuse_other_activation(self, title: str, activation: Activation) -> None:
        """Raise ValueError unless the decoder has the activation that is built into a format."""
        if self.activation != activation:
            names = {"gelu": "GELU by the error function", "gelu-tanh": "the tanh approximation of GELU"}
            raise ValueError(
                f"activation: expected {activation!r} for {title}, which has {names[activation]} built in, "
                f"got {self.activation!r}; logits would move by about 0.01: train with activation {activation!r}, or "
                "pass approximate (--approximate) to accept that"
            )
