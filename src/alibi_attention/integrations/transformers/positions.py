"""ALiBi in place of a model's own sense of position, to train it so."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from alibi_attention.checks.slopes import check_finite_slopes, check_slopes
from alibi_attention.checks.tensors import check_tensor
from alibi_attention.integrations.transformers.arguments import check_module
from alibi_attention.integrations.transformers.attention import give_slopes
from alibi_attention.integrations.transformers.configs import own_config
from alibi_attention.integrations.transformers.context import forget_context
from alibi_attention.integrations.transformers.families import FAMILIES
from alibi_attention.integrations.transformers.general import forget_window, heard
from alibi_attention.integrations.transformers.hooks import (
    NAMES,
    Arguments,
    hook_arguments,
    named_arguments,
    remove_hooks,
)
from alibi_attention.integrations.transformers.masks import GENERAL, TRIED
from alibi_attention.integrations.transformers.packing import (
    forget_packing,
    keep_packed_apart,
    try_packing,
    watch_packing,
)
from alibi_attention.integrations.transformers.probing import PROBE, in_evaluation, probe_of
from alibi_attention.slopes import alibi_slopes

Model = TypeVar("Model", bound=nn.Module)

_BEFORE = "_alibi_before"
# What a checkpoint's config.json remembers: {"slopes": [one number a head], "causal": whether attention is}.
REMEMBERED = "alibi_positions"
# What a configuration hands to whoever loads it: a checkpoint then asks for ours, which refuses until positions are
# replaced again, or, where this package was not imported, for what Transformers does not know. Without, it would load
# with its own positions, in silence.
_ASKS = "attn_implementation"
# Tables of learned positions, by the names Transformers gives them.
_TABLES = {"wpe", "position_embeddings", "position_embedding", "embed_positions"}
# Some models scale queries by a step function of the position, whose first step is thousands of tokens wide.
_FAR = 2**20


def replace_positions(model: Model, slopes: Tensor | None = None) -> Model:
    """Switch a model's own positions off and ALiBi on, in place; for training it from there.

    Rotary embeddings turn by nothing, and tables of learned positions are left out (and frozen); so there is no longest
    length any more. That the output no longer depends on position ids is then tried out, on six tokens, at near
    positions and beyond a million. The model must choose its attention by name, as Llama, Qwen3, GPT-2, BERT and
    ModernBERT do; it need not have been loaded with ``attn_implementation="alibi"``, which this sets. A checkpoint's
    config.json remembers the slopes, under "alibi_positions", and asks for this attention: call this again after
    loading one, which refuses to run until then.

    Args:
        model: a PreTrainedModel with weights, no encoder-decoder. ``model.config`` is a copy from then on, so that
            others built of the same object stay as they are; where what lies beneath a head is handed over, the head
            keeps the configuration it has, and saves it without the slopes.
        slopes: (num_heads,) float32, nats per token; by default those that the configuration remembers, or else
            `alibi_slopes(num_heads)`.

    Returns:
        model.

    Raises:
        ValueError: where no positions are found or they do not go away, where attention is not chosen by name or a
            layer and its mask say different things, or for slopes of another shape; the model is then as it was.
    """
    check_module(model)
    part = _only_part(model)
    config = part.config
    if _is_replaced(part):
        return _replace(model, part, slopes)
    undo = own_config(model, config)
    try:
        return _replace(model, part, slopes)
    except BaseException:
        undo()
        raise


def _replace(model: Model, part: Any, slopes: Tensor | None) -> Model:
    config = part.config
    held = getattr(config, REMEMBERED, None)
    heads = config.num_attention_heads
    if slopes is not None:
        check_tensor("slopes", slopes)
        slopes = slopes.detach().to("cpu", copy=True)
        check_slopes(slopes, 1, heads)
    else:
        slopes = alibi_slopes(heads) if held is None else _remembered(held, heads)
    before = config._attn_implementation
    layers = [module for module in part.modules() if _dispatches(module)]
    if not layers:
        raise ValueError(
            f"model: expected attention layers that ask Transformers for their attention by name, "
            f"got a {type(part).__name__} without any"
        )
    remembered = {"slopes": slopes.flatten().tolist(), "causal": all(layer.is_causal for layer in layers)}
    if _is_replaced(part):
        # They are off already.
        for layer in layers:
            give_slopes(layer, slopes)
        _remember(config, remembered)
        return model
    name = before if before not in (GENERAL, None) else "sdpa"
    config._attn_implementation_internal = name
    try:
        if _ignores_positions(part):
            raise ValueError(
                f"model: expected a {type(part).__name__} to depend on position_ids before they are switched off; it "
                "does not, so it cannot be seen whether they are"
            )
        found = [*_switch_off(part)]
        for layer in layers:
            give_slopes(layer, slopes)
        vars(part)[_BEFORE] = name, held
        config._attn_implementation_internal = TRIED
        ignores = _tried(part, layers)
        deaf = [layer for layer in layers if heard(layer) is None]
        config._attn_implementation_internal = GENERAL
        if deaf:
            raise ValueError(_deaf(part, deaf))
        if not found or not ignores:
            raise ValueError(
                f"model: expected the positions of a {type(part).__name__} to be rotary embeddings or a table of "
                f"learned ones, which can be switched off; {'some are left' if found else 'found neither'}"
            )
        config._attn_implementation_internal = TRIED
        with in_evaluation(part):
            try_packing(part, layers, probe_of(part))
        config._attn_implementation_internal = GENERAL
        _remember(config, remembered)
    except BaseException:
        restore_positions(model)
        config._attn_implementation_internal = before
        raise
    return model


def _is_replaced(part: PreTrainedModel) -> bool:
    return part.config._attn_implementation == GENERAL and _BEFORE in vars(part)


def _tried(part: PreTrainedModel, layers: list[nn.Module]) -> bool:
    """Whether positions are ignored, near and far.

    Raises:
        ValueError: where a layer looks at the name of its attention and goes ways of its own, as Falcon's do: one that
            does not know the name fails in its own words.
    """
    entered: list[nn.Module] = []
    handles = [layer.register_forward_pre_hook(lambda module, _: entered.append(module)) for layer in layers]
    try:
        return _ignores_positions(part) and _ignores_positions(part, _FAR)
    except (TypeError, KeyError, AttributeError) as failure:
        # What fails before the first layer, or in one that asked, is another matter.
        if entered and heard(entered[0]) is None:
            raise ValueError(_deaf(part, layers)) from failure
        raise
    finally:
        for handle in handles:
            handle.remove()


def _deaf(part: PreTrainedModel, layers: list[nn.Module]) -> str:
    return (
        "model: expected every attention layer to ask Transformers for its attention by name, got a "
        f"{type(part).__name__} with {len(layers)} layers ({type(layers[0]).__name__}) that do not; they would be left "
        "without any positions"
    )


def _remember(config: Any, slopes: dict[str, Any]) -> None:
    setattr(config, REMEMBERED, slopes)
    setattr(config, _ASKS, GENERAL)


def _remembered(held: Any, heads: int) -> Tensor:
    """The slopes of a configuration."""
    try:
        slopes = torch.tensor(held["slopes"], dtype=torch.float32)
        check_slopes(slopes, 1, heads)
        check_finite_slopes(slopes)
    except (TypeError, KeyError, ValueError, RuntimeError, OverflowError):
        raise ValueError(
            f'model.config.{REMEMBERED}: expected {{"slopes": [{heads} numbers, one for each head]}}, got {held!r}; '
            "pass slopes, or mend the configuration"
        ) from None
    return slopes


def restore_positions(model: nn.Module) -> None:
    """Undo `replace_positions`; any other model is left alone."""
    for part in model.modules():
        if not isinstance(part, PreTrainedModel) or _BEFORE not in vars(part):
            continue
        part.config._attn_implementation_internal, held = vars(part).pop(_BEFORE)
        for name in (REMEMBERED, _ASKS):
            vars(part.config).pop(name, None)
        if held is not None:
            setattr(part.config, REMEMBERED, held)
        for module in part.modules():
            remove_hooks(module, *_HOOKS)
            heard(module)
            forget_window(module)
            forget_packing(module)
            forget_context(module)
            for name in ("alibi_slopes", NAMES):
                vars(module).pop(name, None)
            if vars(module).pop("_alibi_froze", False):
                module.weight.requires_grad_(True)


def _only_part(model: nn.Module) -> Any:
    """The model proper, inside whatever wraps it."""
    parts = [each for each in model.modules() if isinstance(each, PreTrainedModel)]
    if not parts:
        raise ValueError(f"model: expected a PreTrainedModel of Transformers, got a {type(model).__name__}")
    part, config = parts[0], parts[0].config
    if config.is_encoder_decoder or getattr(config, "add_cross_attention", False):
        raise ValueError(
            f"model: expected self-attention alone, got a {type(part).__name__} with cross-attention; ALiBi has no "
            "distances between two sequences"
        )
    if any(each.config is not config for each in parts):
        raise ValueError(
            f"model: expected one model of one configuration, got several in a {type(part).__name__}; call this for "
            "the language model alone"
        )
    if config.model_type in FAMILIES and _has_alibi(config):
        raise ValueError(
            f"model: expected one with positions of its own, got a {type(part).__name__}, which has ALiBi already; "
            "call enable(model)"
        )
    if not hasattr(config, "num_attention_heads"):
        raise ValueError(f"model: expected layers of attention, got a {type(part).__name__} without any heads of it")
    if next(part.parameters()).is_meta:
        raise ValueError("model: expected weights, got meta tensors; load them first: the result is tried out")
    return part


def _has_alibi(config: Any) -> bool:
    # A BLOOM has nothing else; an MPT and a Falcon are asked.
    return bool(getattr(getattr(config, "attn_config", config), "alibi", True))


def _dispatches(module: nn.Module) -> bool:
    return hasattr(module, "is_causal") and hasattr(module, "config") and not isinstance(module, PreTrainedModel)


def _switch_off(part: PreTrainedModel) -> Iterator[nn.Module]:
    watch_packing(part)
    for name, module in part.named_modules():
        if "RotaryEmbedding" in type(module).__name__:
            module.register_forward_hook(no_rotation)
        elif isinstance(module, nn.Embedding) and name.split(".")[-1] in _TABLES:
            module.register_forward_pre_hook(first_row, with_kwargs=True)
            module.register_forward_hook(no_embedding)
            if module.weight.requires_grad:
                module.weight.requires_grad_(False)
                vars(module)["_alibi_froze"] = True
        elif isinstance(getattr(module, "position_ids", None), Tensor) and _takes_positions(module):
            hook_arguments(module, no_positions)
            continue
        else:
            continue
        yield module


def no_rotation(module: nn.Module, inputs: Any, output: Any) -> tuple[Tensor, Tensor]:  # noqa: ARG001
    """A turn by the angle 0."""
    if not isinstance(output, tuple) or len(output) != 2:
        raise ValueError(f"model: expected {type(module).__name__} to give a cosine and a sine, got {type(output)}")
    return torch.ones_like(output[0]), torch.zeros_like(output[1])


def first_row(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Arguments:  # noqa: ARG001
    """Positions past the end of a table are no reason to fail any more, whether they or a mask come first."""
    if args and isinstance(args[0], Tensor):
        args = (torch.zeros_like(args[0]), *args[1:])
    whole = {name: each for name, each in kwargs.items() if isinstance(each, Tensor) and not each.is_floating_point()}
    return args, {**kwargs, **{name: torch.zeros_like(each) for name, each in whole.items()}}


def no_embedding(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:  # noqa: ARG001
    return torch.zeros_like(output)


def no_positions(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Arguments:
    """Position 0 for every token: a buffer of position ids ends where the table did."""
    named = named_arguments(module, args, kwargs)
    # Models call what is embedded by more than one name.
    given = next(named[name] for name in vars(module)[NAMES] if isinstance(named.get(name), Tensor))
    ids = torch.zeros(1, given.shape[1], dtype=torch.int64, device=given.device)
    return (), {**named, "position_ids": ids}


_HOOKS = (no_rotation, first_row, no_embedding, no_positions, keep_packed_apart)


def _takes_positions(module: nn.Module) -> bool:
    return "position_ids" in inspect.signature(module.forward).parameters


@torch.no_grad()
def _ignores_positions(part: Any, first: int = 0) -> bool:
    """Whether the output is the same for tokens in place and for positions all mixed up, from ``first`` on."""
    base = part.base_model
    if not _takes_positions(base):
        raise ValueError(
            f"model: expected a {type(base).__name__} that takes position_ids, by which the result is tried"
        )
    ids = probe_of(part)
    mixed = torch.tensor([[0, 5, 1, 4, 2, 3]], device=ids.device) + first
    # A mask is given so that mixed positions are not taken for packed sequences.
    options = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "return_dict": True}
    with in_evaluation(part):
        # In place last: rotary tables that were stretched for far positions are then as they were.
        moved, placed = (
            base(**options, position_ids=at)[0] for at in (mixed, torch.arange(PROBE, device=ids.device)[None])
        )
    return bool(torch.equal(placed, moved))
