"""The attention of BLOOM, MPT and Falcon, around our operator: the weights and everything else are theirs."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers.models.bloom.modeling_bloom import BloomAttention, BloomGelu, BloomMLP, BloomModel, dropout_add
from transformers.models.falcon.modeling_falcon import FalconAttention, FalconModel
from transformers.models.mpt.modeling_mpt import MptAttention, MptBlock, MptModel

from alibi_attention.integrations.transformers.attention import attend, give_slopes, refuse_weights
from alibi_attention.integrations.transformers.masks import key_mask_of
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
        output_attentions: bool = False,
        **_: Any,
    ) -> tuple[Tensor, None]:
        """As BloomAttention; no weights are returned."""
        refuse_weights(output_attentions)
        context = attend(
            self, list(self._reshape(self.query_key_value(hidden_states))), cache=layer_past,
            attention_mask=attention_mask, scale=self.inv_norm_factor,
            dropout_p=self.attention_dropout.p if self.training else 0.0,
        )  # fmt: skip
        out = self.dense(context)
        del context
        if self.training or torch.is_grad_enabled() or _is_watched(self.dense):
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
        parts = (self.dense_h_to_4h, self.gelu_impl, self.dense_4h_to_h)
        if (
            hidden_states.shape[:-1].numel() <= _MLP_TOKENS
            or torch.is_grad_enabled()
            or torch.compiler.is_compiling()
            or (self.pretraining_tp > 1 and self.slow_but_exact)
            or any(_is_watched(part) for part in parts)
        ):
            whole: Tensor = super().forward(hidden_states, residual)
            return whole
        tokens = hidden_states.flatten(0, -2)
        out: Tensor | None = None
        for start in range(0, tokens.shape[0], _MLP_TOKENS):
            piece = self.dense_4h_to_h(self.gelu_impl(self.dense_h_to_4h(tokens[start : start + _MLP_TOKENS])))
            if out is None:
                # Under autocast a piece is of fewer bits than the sum.
                dtype = torch.promote_types(piece.dtype, residual.dtype)
                out = piece.new_empty(tokens.shape[0], piece.shape[-1], dtype=dtype)
            out[start : start + _MLP_TOKENS] = piece
        assert out is not None
        out = out.view(residual.shape)
        if self.training:
            summed: Tensor = dropout_add(out, residual, self.hidden_dropout, self.training)
            return summed
        return _with_residual(out, residual)


_MLP_TOKENS = 512


def _with_residual(out: Tensor, residual: Tensor) -> Tensor:
    """Their sum, in the memory of ``out`` where that holds it: under autocast the residual alone is float32."""
    holds_it = torch.promote_types(out.dtype, residual.dtype) == out.dtype
    return out.add_(residual) if holds_it else out + residual


def _is_watched(module: nn.Module) -> bool:
    """Whether hooks would see the difference."""
    return bool(module._forward_hooks or module._forward_pre_hooks or hasattr(module, "_hf_hook"))


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
        for name, trained in (("qk_ln", "norms of queries and keys"), ("prefix_lm", "a prefix attended both ways")):
            if getattr(attention, name, False):
                raise ValueError(
                    f"model.config.attn_config.{name}: expected False, got True: the checkpoint says it was trained "
                    f"with {trained}, which Transformers leaves out. Where that is a mistake, set it to False"
                )
        return alibi_slopes(config.n_heads, "interleaved", float(attention.alibi_bias_max))

    def forward(
        self,
        hidden_states: Tensor,
        position_bias: Tensor | None,  # noqa: ARG002
        past_key_values: Any = None,
        attention_mask: Tensor | None = None,
        **_: Any,
    ) -> tuple[Tensor, None]:
        """As MptAttention; no weights are returned."""
        mixed = self.Wqkv(hidden_states)
        if self.clip_qkv:
            mixed = mixed.clamp(min=-self.clip_qkv, max=self.clip_qkv)
        heads = list(mixed.unflatten(-1, (3, self.n_heads, self.head_dim)).permute(2, 0, 3, 1, 4))
        del mixed
        context = attend(
            self, heads, cache=past_key_values, attention_mask=attention_mask, scale=self.softmax_scale,
            dropout_p=self.attn_dropout_p if self.training else 0.0,
        )  # fmt: skip
        return self.out_proj(context), None


class ALiBiMptBlock(MptBlock):  # type: ignore[misc]
    """MptBlock, which alone is told that attention weights are wanted."""

    def forward(self, *arguments: Any, output_attentions: bool = False, **options: Any) -> Any:
        """As MptBlock; refuses weights, which are never formed."""
        refuse_weights(output_attentions)
        return super().forward(*arguments, output_attentions=output_attentions, **options)


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
        **_: Any,
    ) -> tuple[Tensor, None]:
        """As FalconAttention; no weights are returned."""
        refuse_weights(output_attentions)
        heads = [part.transpose(1, 2) for part in self._heads(self.query_key_value(hidden_states))]
        if self.reproduces_rounding:
            past = 0 if layer_past is None else layer_past.get_seq_length(self.layer_idx)
            heads[:2] = self._with_rounding(heads[0], heads[1], past, key_mask_of(attention_mask))
        context = attend(
            self, heads, cache=layer_past, attention_mask=attention_mask, scale=self.inv_norm_factor,
            dropout_p=self.attention_dropout.p if self.training else 0.0,
        )  # fmt: skip
        return self.dense(context), None

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


# Biases that nobody reads are not formed: (heads, keys) of them at every step.


def no_bloom_bias(attention_mask: Tensor, num_heads: int, dtype: torch.dtype) -> Tensor:  # noqa: ARG001
    """In place of BloomModel.build_alibi_tensor."""
    return torch.empty(0, dtype=dtype, device=attention_mask.device)


_BLOOM_NAMES = tuple(inspect.signature(BloomModel.forward).parameters)[1:]


def no_columns(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:  # noqa: ARG001
    """Where BloomModel is given no mask it forms its biases by itself: it is given one without columns."""
    named = {**dict(zip(_BLOOM_NAMES, args, strict=False)), **kwargs}
    tokens = named.get("input_ids") if named.get("inputs_embeds") is None else named.get("inputs_embeds")
    if named.get("attention_mask") is not None or not isinstance(tokens, Tensor):
        return None
    mask, at = tokens.new_ones(tokens.shape[0], 0, dtype=torch.bool), _BLOOM_NAMES.index("attention_mask")
    if len(args) > at:
        return (*args[:at], mask, *args[at + 1 :]), kwargs
    return args, {**kwargs, "attention_mask": mask}


def _bloom_without_bias(model: Any) -> None:
    model.build_alibi_tensor = no_bloom_bias
    if no_columns not in model._forward_pre_hooks.values():
        model.register_forward_pre_hook(no_columns, with_kwargs=True)


def _bloom_with_bias(model: Any) -> None:
    vars(model).pop("build_alibi_tensor", None)
    for key, hook in list(model._forward_pre_hooks.items()):
        if hook is no_columns:
            del model._forward_pre_hooks[key]
            model._forward_pre_hooks_with_kwargs.pop(key, None)


def no_mpt_bias(num_heads: int, sequence_length: int, alibi_bias_max: float = 8, device: Any = None) -> Tensor:  # noqa: ARG001
    """In place of MptModel.build_mpt_alibi_tensor."""
    return torch.empty(0, device=device)


def _mpt_without_bias(model: Any) -> None:
    model.build_mpt_alibi_tensor = no_mpt_bias


def _mpt_with_bias(model: Any) -> None:
    vars(model).pop("build_mpt_alibi_tensor", None)


def _falcon_without_bias(model: Any) -> None:
    model.use_alibi = False


def _falcon_with_bias(model: Any) -> None:
    model.use_alibi = model.config.alibi


class Family(NamedTuple):
    """How one kind of model is enabled.

    Attributes:
        slopes: of a configuration, or a ValueError for one that cannot be enabled.
        swaps: (stock class, ours); subclasses of the stock class are swapped too.
        model: the class that forms the biases.
        without_bias: has it form none, however often called.
        with_bias: has it form them again.
        implementation: the attn_implementation of a stock model that was loaded as ours.
    """

    slopes: Callable[[Any], Tensor]
    swaps: tuple[tuple[type[nn.Module], type[nn.Module]], ...]
    model: type[nn.Module]
    without_bias: Callable[[Any], None]
    with_bias: Callable[[Any], None]
    implementation: str


FAMILIES = {
    "bloom": Family(
        ALiBiBloomAttention.slopes,
        ((BloomAttention, ALiBiBloomAttention), (BloomGelu, FusedBloomGelu), (BloomMLP, LeanBloomMLP)),
        BloomModel,
        _bloom_without_bias,
        _bloom_with_bias,
        "eager",
    ),
    "mpt": Family(
        ALiBiMptAttention.slopes,
        ((MptAttention, ALiBiMptAttention), (MptBlock, ALiBiMptBlock)),
        MptModel,
        _mpt_without_bias,
        _mpt_with_bias,
        "eager",
    ),
    "falcon": Family(
        ALiBiFalconAttention.slopes,
        ((FalconAttention, ALiBiFalconAttention),),
        FalconModel,
        _falcon_without_bias,
        _falcon_with_bias,
        "sdpa",
    ),
}
