"""Putting our attention into a loaded model, and taking it out."""

from __future__ import annotations

from collections.abc import Iterator
from types import MethodType
from typing import Any, TypeVar

from torch import nn
from transformers import PreTrainedModel

from alibi_attention.checks.options import check_flag
from alibi_attention.integrations.transformers.arguments import check_module
from alibi_attention.integrations.transformers.attention import give_slopes
from alibi_attention.integrations.transformers.configs import give_back_config, own_config
from alibi_attention.integrations.transformers.context import forget_context
from alibi_attention.integrations.transformers.families import FAMILIES, Family
from alibi_attention.integrations.transformers.feeding import forget_feeding, watch_feeding
from alibi_attention.integrations.transformers.masks import GENERAL, NATIVE
from alibi_attention.integrations.transformers.native import ALiBiFalconAttention
from alibi_attention.integrations.transformers.positions import restore_positions
from alibi_attention.integrations.transformers.splitting import join_context

Model = TypeVar("Model", bound=nn.Module)

_STOCK = "_alibi_stock"


def enable(model: Model, *, falcon_rounding: bool = True) -> Model:
    """Put the operator into a BLOOM, an MPT or a Falcon with ALiBi, in place.

    Parameters, state dict, configuration file and outputs stay what they were (up to rounding), and so do other models
    built of the same configuration object: ``model.config`` is a copy from then on. Prefill and training then need
    O(length) memory, and a step of generation reads only the keys inside its horizons. Slopes are taken from the
    configuration; MPT's ``alibi_bias_max``, which Transformers ignores, is honoured. MPT runs beyond ``max_seq_len``.

    Args:
        model: a model of Transformers, with any head, or a module that contains some; of what lies beneath a head, the
            head keeps the configuration it has. Enabling twice does nothing more.
        falcon_rounding: Falcon was trained with biases m * j rounded to bfloat16, and Transformers rounds them so in
            every dtype. True reproduces that, False keeps the exact line: what is lost grows with the position, to
            nats beyond some thousand tokens. Other families are never rounded.

    Returns:
        model.

    Raises:
        ValueError: where there is nothing to enable, the configuration asks for what the operator does not do, or a
            layer's forward is not that of Transformers; the model is then as it was. In a forward: for attention
            weights, packed texts and what else would be passed over. In ``generate``: for a cache without use_cache.
    """
    check_module(model)
    check_flag("falcon_rounding", falcon_rounding)
    parts = list(_native_parts(model))
    if not parts:
        raise ValueError(
            f"model: expected a BLOOM, an MPT or a Falcon with alibi=True, got {type(model).__name__}, which holds "
            "none; replace_positions(model) trains others with ALiBi"
        )
    work = []
    for part, family in parts:
        slopes = family.slopes(part.config)
        work.append((part, family, slopes, list(_to_swap(part, family))))
    for config in {id(part.config): part.config for part, _ in parts}.values():
        if config._attn_implementation != NATIVE:
            own_config(model, config)
    for part, family, slopes, modules in work:
        if part.config._attn_implementation not in (NATIVE, GENERAL):
            setattr(part, _STOCK, part.config._attn_implementation)
        part.config._attn_implementation_internal = NATIVE
        for module, own in modules:
            # A model and the head around it hold the same layers.
            if not isinstance(module, own):
                setattr(module, _STOCK, type(module))
                if hasattr(own, "slopes"):
                    give_slopes(module, slopes)
                _become(module, own)
        for module in part.modules():
            if isinstance(module, ALiBiFalconAttention):
                module.reproduces_rounding = falcon_rounding
        if isinstance(part, family.model):
            family.without_bias(part)
        watch_feeding(part)
    return model


def disable(model: Model) -> Model:
    """Put Transformers' own attention, or the positions that `replace_positions` took away, back in place.

    What `split_context` divided is whole again. The model has the configuration object back that it had, unless
    something was changed in its copy meanwhile, which then stays.

    Args:
        model: as `enable` or `replace_positions` took it; any other is left alone.

    Returns:
        model.

    Raises:
        ValueError: for what is no module.
    """
    check_module(model)
    for part, family in _native_parts(model):
        for module in part.modules():
            for stock, own in family.swaps:
                if isinstance(module, own):
                    _become(module, vars(module).pop(_STOCK, stock))
                    for name in ("alibi_slopes", "reproduces_rounding"):
                        vars(module).pop(name, None)
                    forget_context(module)
        if isinstance(part, family.model):
            family.with_bias(part)
        forget_feeding(part)
        before = vars(part).pop(_STOCK, None)
        if before is not None or part.config._attn_implementation in (NATIVE, GENERAL):
            part.config._attn_implementation_internal = before or family.implementation
    restore_positions(model)
    give_back_config(model)
    for module in model.modules():
        join_context(module)
    return model


def _native_parts(model: nn.Module) -> Iterator[tuple[Any, Family]]:
    for part in model.modules():
        if isinstance(part, PreTrainedModel) and part.config.model_type in FAMILIES:
            yield part, FAMILIES[part.config.model_type]


def _to_swap(part: nn.Module, family: Family) -> Iterator[tuple[nn.Module, type[nn.Module]]]:
    """Modules that are stock still, and what each is to become."""
    for module in part.modules():
        for stock, own in family.swaps:
            if isinstance(module, stock) and not isinstance(module, own):
                hidden = vars(module).get("forward")
                if hidden is not None and not hasattr(module, "_old_forward"):
                    # A forward of the instance's own would hide that of its new class.
                    raise ValueError(
                        f"model: expected {type(module).__name__} to run its own forward, got one put over it "
                        f"({hidden!r}); enable the model before whatever did that"
                    )
                # Transformers has subclasses of its own, beside the stock class.
                defined = getattr(type(module).forward, "__module__", None)
                if defined != stock.__module__:
                    raise ValueError(
                        f"model: expected {type(module).__name__} to have the forward of Transformers' "
                        f"{stock.__name__}, got one defined in {defined}, which ours would replace; put the stock "
                        "class back to enable the model"
                    )
                yield module, own


def _become(module: nn.Module, kind: type[nn.Module]) -> None:
    if isinstance(vars(module).get("_old_forward"), MethodType):
        # Accelerate keeps the forward it has wrapped, bound.
        vars(module)["_old_forward"] = MethodType(kind.forward, module)
    module.__class__ = kind
