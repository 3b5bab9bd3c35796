"""Models of Transformers whose sequence several processes share."""

from __future__ import annotations

from typing import Any, NoReturn, TypeVar

import torch.distributed as dist
from torch import Tensor, nn
from transformers import PreTrainedModel

from alibi_attention.integrations.transformers.arguments import check_module
from alibi_attention.integrations.transformers.context import (
    ROUNDED,
    context_of,
    forget_context,
    give_context,
    rounds,
)
from alibi_attention.integrations.transformers.probing import PROBE, what_follows
from alibi_attention.integrations.transformers.telling import keep_quiet, tell_others
from alibi_attention.parallel.agreement import process_group
from alibi_attention.parallel.layers import SharedContext

Model = TypeVar("Model", bound=nn.Module)


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

    That nothing but attention looks at other tokens, and that there is a result for every token, is tried out on six of
    them. Models without weights as yet are taken at their word, and so is a module that is no model of Transformers and
    has none in it, such as a list of layers. ``generate`` is refused where the model handed over has it, not where a
    model around it does. What is added up over tokens, such as the auxiliary loss of experts, is of the tokens here.

    Args:
        model: as `enable` or `replace_positions` left it; changed in place. Weights are left alone.
        group: of processes; all by default.

    Returns:
        model.

    Raises:
        ValueError: where no layer attends by ALiBi, there is no group, something else looks at other tokens (a
            convolution, a recurrence, a head that reads one token for all), or a Falcon reproduces its rounded biases,
            which are not those of distances, or where it cannot be tried out; the model is then as it was. In a
            forward: for padding, packed sequences, dropout and tokens in a cache, and for position_ids that do not go
            on where the process before ends.
        RuntimeError: in a forward, where another process was refused, or failed before its first attention. One that
            fails later leaves the others waiting for it, as in all that processes do together.
    """
    check_module(model)
    layers = [module for module in model.modules() if "alibi_slopes" in vars(module)]
    if not layers:
        raise ValueError(
            f"model: expected layers that attend by ALiBi, got a {type(model).__name__} without any; call "
            "enable(model) or replace_positions(model) first"
        )
    found = process_group(group)
    if any(rounds(layer) for layer in layers):
        raise ValueError(f"model: {ROUNDED}")
    taken = {id(layer) for layer in layers}
    parts = [
        part
        for part in model.modules()
        if isinstance(part, PreTrainedModel) and any(id(each) in taken for each in part.modules())
    ]
    inner = {id(each) for part in parts for each in part.modules() if each is not part}
    outermost = [part for part in parts if id(part) not in inner]
    # What is tried out is nobody else's affair.
    before = [(part, context) for part in parts if (context := keep_quiet(part)) is not None]
    try:
        for part in outermost:
            if not any(parameter.is_meta for parameter in part.parameters()):
                _try(part, layers, _Nothing(found))
    except BaseException:
        for part, context in before:
            tell_others(part, context)
        raise
    context = SharedContext(found)
    for layer in layers:
        give_context(layer, context)
    for part in parts:
        tell_others(part, context)
        if hasattr(part, "generate"):
            vars(part)["generate"] = _refuse_generation
    return model


def join_context(part: nn.Module) -> None:
    """Undo `split_context` for a model; layers are the affair of who takes their slopes."""
    keep_quiet(part)
    if vars(part).get("generate") is _refuse_generation:
        del vars(part)["generate"]


def _refuse_generation(*_: Any, **__: Any) -> NoReturn:
    raise ValueError(
        "generate: expected a model with the whole text, got one after split_context, which has a part of it; generate "
        "with a model of its own"
    )


class _Nothing(SharedContext):
    """Attention that sees nothing."""

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, slopes: Tensor, **_: Any) -> Tensor:  # noqa: ARG002
        return query.new_zeros(*query.shape[:3], value.shape[-1])


def _try(part: Any, layers: list[nn.Module], nothing: SharedContext) -> None:
    """Raises ValueError where a token's result follows another token with attention left out."""
    before = [context_of(layer) for layer in layers]
    name = type(part).__name__
    try:
        for layer in layers:
            give_context(layer, nothing)
        shape, follows = what_follows(part)
    except Exception as error:
        raise ValueError(
            f"model: expected one that {PROBE} tokens can be tried on, got a {name} that answers with "
            f"{type(error).__name__}: {error}; split it as it was loaded, before anything wraps it or its layers"
        ) from error
    finally:
        for layer, context in zip(layers, before, strict=True):
            forget_context(layer)
            if context is not None:
                give_context(layer, context)
    if shape[:2] != (1, PROBE):
        raise ValueError(
            f"model: expected a result for every token, got {tuple(shape)} of a {name} for {PROBE} tokens; where its "
            "head reads one token for all, split the model beneath it"
        )
    if follows:
        raise ValueError(
            f"model: expected nothing but attention to look at other tokens, got a {name}, in which something else "
            "does (a convolution or a recurrence); what it sees would end where a part begins"
        )
