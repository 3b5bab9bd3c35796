"""Models of Transformers whose sequence several processes share."""

from __future__ import annotations

from typing import Any, TypeVar

import torch.distributed as dist
from torch import Tensor, nn

from alibi_attention.integrations.transformers.arguments import check_module
from alibi_attention.parallel.agreement import process_group
from alibi_attention.parallel.layers import SharedContext

Model = TypeVar("Model", bound=nn.Module)

_CONTEXT = "alibi_context"


def split_context(model: Model, group: dist.ProcessGroup | None = None) -> Model:
    """Have a model attend over the parts of a sequence that the processes of a group have.

    ::

        input_ids of rank r      (batch, tokens here), the positions s_r to s_(r+1) of the sequence
        logits of rank r         the rows s_r to s_(r+1) of the model's over the whole sequence

    Each process runs the model on its own tokens, in the order of ranks; a process takes from others the keys inside
    its horizons and no more (`alibi_attention.parallel`). It is for training and for scoring long texts, not for
    generation. Next-token losses are the caller's affair: a model that is given ``labels`` leaves out the target of the
    last token here, which is the first of the next process. Gradients of parameters are of the tokens here, and are to
    be added up as in data parallelism. `disable` undoes it, with what it stands on.

    Args:
        model: as `enable` or `replace_positions` left it; changed in place. Weights are left alone.
        group: of processes; all by default.

    Returns:
        model.

    Raises:
        ValueError: where no layer attends by ALiBi, there is no group, or a Falcon reproduces its rounded biases, which
            are not those of distances; the model is then as it was. In a forward, and in every process: for padding,
            packed sequences, dropout and tokens in a cache.
    """
    check_module(model)
    layers = [module for module in model.modules() if "alibi_slopes" in vars(module)]
    if not layers:
        raise ValueError(
            f"model: expected layers that attend by ALiBi, got a {type(model).__name__} without any; call "
            "enable(model) or replace_positions(model) first"
        )
    found = process_group(group)
    if any(_rounds(layer) for layer in layers):
        raise ValueError(f"model: {_ROUNDED}")
    for layer in layers:
        vars(layer)[_CONTEXT] = SharedContext(found)
    return model


_ROUNDED = (
    "expected a Falcon with the exact line of its biases where processes share a sequence, got one that reproduces "
    "their rounding to bfloat16, which is by absolute positions; call enable(model, falcon_rounding=False)"
)


def _rounds(layer: nn.Module) -> bool:
    return getattr(layer, "reproduces_rounding", False) is True


def context_of(layer: nn.Module) -> SharedContext | None:
    """What `split_context` gave the layer."""
    found: SharedContext | None = vars(layer).get(_CONTEXT)
    return found


def forget_context(layer: nn.Module) -> None:
    """The layer attends alone again."""
    vars(layer).pop(_CONTEXT, None)


def attend_shared(
    layer: nn.Module, context: SharedContext, query: Tensor, key: Tensor, value: Tensor, slopes: Tensor, *,
    key_mask: Tensor | None, packed: Tensor | None = None, **options: Any,
) -> Tensor:  # fmt: skip
    """The layer's attention over all parts.

    Args:
        key, value: with what a cache held before them, if there was one.
        key_mask: (batch, tokens) bool, or None.
        packed: cumulative lengths of packed sequences, or None.
        options: as `SharedContext` takes them.

    Returns:
        (batch, num_heads, tokens here, head_dim).

    Raises:
        ValueError: for what processes that share a sequence do not carry.
    """
    refusal = None
    if key.shape[2] != query.shape[2]:
        refusal = ValueError(
            f"past_key_values: expected no tokens in it where processes share a sequence, got {key.shape[2]} keys for "
            f"{query.shape[2]} queries; generate with a model of its own, which split_context has not taken"
        )
    elif key_mask is not None:
        refusal = ValueError(
            "attention_mask: expected no padding where processes share a sequence, got some; cut it off before the "
            "sequence is divided"
        )
    elif packed is not None:
        refusal = ValueError(
            "attention_mask: expected one sequence a row where processes share it, got several packed; give each a row"
        )
    elif _rounds(layer):
        refusal = ValueError(f"model: {_ROUNDED}")
    return context(query, key, value, slopes, key_mask=None, refusal=refusal, **options)
