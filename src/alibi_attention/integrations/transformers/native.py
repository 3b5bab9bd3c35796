"""The attention of BLOOM, MPT and Falcon, around our operator: the weights and everything else are theirs."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from transformers.models.bloom.modeling_bloom import BloomAttention, BloomGelu, BloomMLP, dropout_add
from transformers.models.falcon.modeling_falcon import FalconAttention
from transformers.models.mpt.modeling_mpt import MptAttention

from alibi_attention.integrations.transformers.attention import attend, give_slopes, refuse_weights
from alibi_attention.integrations.transformers.masks import key_mask_of
from alibi_attention.integrations.transformers.one_token import is_watched, through
from alibi_attention.slopes import alibi_slopes


class ALiBiBloomAttention(BloomAttention):  # type: ignore[misc]
    """BloomAttention with our operator."""

    @staticmethod
    def slopes(config: Any) -> Tensor:
        if config.slow_but_exact and config.pretraining_tp > 1:
            raise ValueError(
                "model.config.slow_but_exact: expected False, got True, which splits the output projection to "
                "reproduce a training run to the bit; our attention does not"
            )
        return alibi_slopes(config.n_head, "interleaved")

    def forward(
        self,
        hidden_states: Tensor,
        residual: Tensor,
        alibi: Tensor | None,  # noqa: ARG002
        attention_mask: Tensor | None,
        layer_past: Any = None,
        use_cache: bool = False,  # noqa: ARG002
        output_attentions: bool = False,  # noqa: ARG002
    ) -> tuple[Tensor, None]:
        """As BloomAttention; no weights are returned."""
        context = attend(
            self, list(self._reshape(through(self.query_key_value, hidden_states))), cache=layer_past,
            attention_mask=attention_mask, scale=self.inv_norm_factor,
            dropout_p=self.attention_dropout.p if self.training else 0.0,
        )  # fmt: skip
        out = through(self.dense, context)
        del context
        if self.training or torch.is_grad_enabled() or is_watched(self.dense):
            return dropout_add(out, residual, self.hidden_dropout, self.training), None
        return _with_residual(out, residual), None


class FusedBloomGelu(BloomGelu):  # type: ignore[misc]
    """BloomGelu, the tanh form of GELU, in one pass: once attention is quick, its eight take longer than attention."""

    def forward(self, x: Tensor) -> Tensor:
        """As BloomGelu."""
        return nn.functional.gelu(x, approximate="tanh")


class LeanBloomMLP(BloomMLP):  # type: ignore[misc]
    """BloomMLP, some hundred tokens at a time where no graph is kept.

    Once nothing of length x length is there, a long prompt needs its memory for 4 * hidden_size numbers a token.
    """

    def forward(self, hidden_states: Tensor, residual: Tensor) -> Tensor:
        """As BloomMLP."""
        if self.pretraining_tp > 1 and self.slow_but_exact:
            exact: Tensor = super().forward(hidden_states, residual)
            return exact
        parts = (self.dense_h_to_4h, self.gelu_impl, self.dense_4h_to_h)
        if (
            hidden_states.shape[:-1].numel() <= _MLP_TOKENS
            or torch.is_grad_enabled()
            or torch.compiler.is_compiling()
            or any(is_watched(part) for part in parts)
        ):
            out = through(self.dense_4h_to_h, self.gelu_impl(through(self.dense_h_to_4h, hidden_states)))
            whole: Tensor = dropout_add(out, residual, self.hidden_dropout, self.training)
            return whole
        tokens = hidden_states.flatten(0, -2)
        pieces: Tensor | None = None
        for start in range(0, tokens.shape[0], _MLP_TOKENS):
            piece = self.dense_4h_to_h(self.gelu_impl(self.dense_h_to_4h(tokens[start : start + _MLP_TOKENS])))
            if pieces is None:
                # Under autocast a piece is of fewer bits than the sum.
                dtype = torch.promote_types(piece.dtype, residual.dtype)
                pieces = piece.new_empty(tokens.shape[0], piece.shape[-1], dtype=dtype)
            pieces[start : start + _MLP_TOKENS] = piece
        assert pieces is not None
        out = pieces.view(residual.shape)
        if self.training:
            summed: Tensor = dropout_add(out, residual, self.hidden_dropout, self.training)
            return summed
        return _with_residual(out, residual)


_MLP_TOKENS = 512


def _with_residual(out: Tensor, residual: Tensor) -> Tensor:
    """Their sum, in the memory of ``out`` where that holds it: under autocast the residual alone is float32."""
    holds_it = torch.promote_types(out.dtype, residual.dtype) == out.dtype
    return out.add_(residual) if holds_it else out + residual


class ALiBiMptAttention(MptAttention):  # type: ignore[misc]
    """MptAttention with our operator."""

    @staticmethod
    def slopes(config: Any) -> Tensor:
        attention = config.attn_config
        if not attention.alibi:
            raise ValueError(
                "model.config.attn_config.alibi: expected True, got False: the checkpoint says it was trained without "
                "ALiBi (Transformers applies it all the same). Where that is a mistake, set it to True"
            )
        # That several texts in a row were kept apart in training (attn_uses_sequence_id) is nothing to one text.
        for name, without, trained in (
            ("qk_ln", False, "norms of queries and keys"),
            ("qk_gn", False, "norms of queries and keys by head"),
            ("rope", False, "rotary positions"),
            ("prefix_lm", False, "a prefix attended both ways"),
            ("sliding_window_size", -1, "attention to the nearest tokens alone"),
        ):
            found = getattr(attention, name, without)
            if found is not None and found != without:
                raise ValueError(
                    f"model.config.attn_config.{name}: expected {without}, got {found}: the checkpoint says it was "
                    f"trained with {trained}, which Transformers leaves out. Where that is a mistake, set it to "
                    f"{without}"
                )
        return alibi_slopes(config.n_heads, "interleaved", float(attention.alibi_bias_max))

    def forward(
        self,
        hidden_states: Tensor,
        position_bias: Tensor | None,  # noqa: ARG002
        past_key_values: Any = None,
        attention_mask: Tensor | None = None,
    ) -> tuple[Tensor, None]:
        """As MptAttention; no weights are returned."""
        mixed = through(self.Wqkv, hidden_states)
        if self.clip_qkv:
            mixed = mixed.clamp(min=-self.clip_qkv, max=self.clip_qkv)
        heads = list(mixed.unflatten(-1, (3, self.n_heads, self.head_dim)).permute(2, 0, 3, 1, 4))
        del mixed
        context = attend(
            self, heads, cache=past_key_values, attention_mask=attention_mask, scale=self.softmax_scale,
            dropout_p=self.attn_dropout_p if self.training else 0.0,
        )  # fmt: skip
        return through(self.out_proj, context), None


class ALiBiFalconAttention(FalconAttention):  # type: ignore[misc]
    """FalconAttention with our operator; keys and values shared by a group of heads are not repeated for it.

    Falcon was trained with biases that were rounded to bfloat16, m_h * j from absolute positions j, and computes them
    so in every dtype. The operator has the exact line; what rounding adds for each head and key rides along as further
    dimensions of the keys, one for each query head that shares them, which that head's queries pick with a 1.
    """

    reproduces_rounding = True

    def __init__(self, config: Any, layer_idx: int | None = None) -> None:
        super().__init__(config, layer_idx)
        give_slopes(self, self.slopes(config))

    @staticmethod
    def slopes(config: Any) -> Tensor:
        if not config.alibi:
            raise ValueError(
                "model.config.alibi: expected True, got False: this Falcon has rotary positions; "
                "replace_positions is for training a model with ALiBi"
            )
        # The bias, too, is divided by sqrt(head_dim).
        return _falcon_slopes(config.num_attention_heads).float() * _falcon_scale(config)

    def forward(
        self,
        hidden_states: Tensor,
        alibi: Tensor | None,  # noqa: ARG002
        attention_mask: Tensor | None,
        position_ids: Tensor | None = None,  # noqa: ARG002
        layer_past: Any = None,
        use_cache: bool = False,  # noqa: ARG002
        output_attentions: bool = False,
        position_embeddings: Any = None,  # noqa: ARG002
    ) -> tuple[Tensor, None]:
        """As FalconAttention; no weights are returned."""
        refuse_weights(output_attentions)
        heads = [part.transpose(1, 2) for part in self._heads(through(self.query_key_value, hidden_states))]
        if self.reproduces_rounding:
            past = 0 if layer_past is None else layer_past.get_seq_length(self.layer_idx)
            heads[:2] = self._with_rounding(heads[0], heads[1], past, key_mask_of(attention_mask))
        context = attend(
            self, heads, cache=layer_past, attention_mask=attention_mask, scale=self.inv_norm_factor,
            dropout_p=self.attention_dropout.p if self.training else 0.0,
        )  # fmt: skip
        return through(self.dense, context), None

    def _heads(self, fused: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(batch, tokens, heads, head_dim) of query, key and value."""
        if not self.new_decoder_architecture:
            query, key, value = self._split_heads(fused)
            return query, key, value
        grouped = fused.unflatten(-1, (self.num_kv_heads, self.num_heads // self.num_kv_heads + 2, self.head_dim))
        return grouped[..., :-2, :].flatten(2, 3), grouped[..., -2, :], grouped[..., -1, :]

    def _with_rounding(
        self, query: Tensor, key: Tensor, past: int | Tensor, key_mask: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Query and key with the further dimensions.

        Args:
            past: tokens before these.
            key_mask: (batch, at least past and these) bool, or None.
        """
        batch, heads, tokens, _ = query.shape
        group = heads // key.shape[1]
        position = past + torch.arange(tokens, device=query.device).unsqueeze(0)
        if key_mask is not None:
            # Only real tokens are counted.
            position = (key_mask.cumsum(1) - 1).index_select(1, position.flatten())
        slopes = _falcon_slopes(heads).to(query.device).view(1, heads, 1)
        position = position.unsqueeze(1)
        rounding = (slopes * position).float() - slopes.float() * position
        rounding = rounding.unflatten(1, (-1, group)).transpose(2, 3).expand(batch, -1, -1, -1)
        picks = torch.eye(group, dtype=query.dtype, device=query.device).repeat(key.shape[1], 1).unsqueeze(1)
        return (
            torch.cat([query, picks.expand(batch, -1, tokens, -1)], dim=-1),
            torch.cat([key, rounding.to(key.dtype)], dim=-1),
        )


def _falcon_slopes(num_heads: int) -> Tensor:
    return alibi_slopes(num_heads, "interleaved").to(torch.bfloat16)


def _falcon_scale(config: Any) -> float:
    return 1.0 / math.sqrt(config.hidden_size // config.num_attention_heads)
