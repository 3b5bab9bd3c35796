"""What happens to one model or cache is nothing to others: configurations shared, caches handed on, prefixes tuned."""

from __future__ import annotations

import copy
import gc
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("transformers")

from hf_models import HEAD_DIM, small, tokens
from transformers import AutoModelForCausalLM, DynamicCache, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from alibi_attention.integrations.transformers import disable, enable, kv_cache, replace_positions

FAMILIES = ("bloom", "mpt", "falcon")
IDS = tokens(2, 12)


@torch.no_grad()
def logits(model: PreTrainedModel, ids: Tensor = IDS) -> Tensor:
    found: Tensor = model(ids).logits
    return found


@pytest.mark.parametrize("kind", FAMILIES)
def test_a_model_built_of_the_same_configuration_stays_stock(kind: str) -> None:
    ours = small(kind)
    other = type(ours)(ours.config).eval()
    want = logits(other)
    enable(ours)
    assert torch.equal(logits(other), want)
    assert ours.config is ours.base_model.config
    assert ours.base_model.config is ours.base_model.base_model.config
    assert ours.config is not other.config
    # One of two that are enabled may be disabled.
    enable(other)
    disable(ours)
    torch.testing.assert_close(logits(other), want, rtol=1e-4, atol=1e-4)
    both = copy.deepcopy(other)
    disable(other)
    assert torch.equal(logits(other), want)
    torch.testing.assert_close(logits(both), want, rtol=1e-4, atol=1e-4)


@pytest.fixture
def frozen() -> Iterator[None]:
    """What there is is out of the garbage collector's sight, as servers have it before they fork."""
    yield
    gc.unfreeze()


@pytest.mark.usefixtures("frozen")
@pytest.mark.parametrize("kind", [*FAMILIES, "llama"])
def test_a_model_that_nobody_can_find_stays_stock(kind: str) -> None:
    ours = _llama() if kind == "llama" else small(kind)
    other = type(ours)(ours.config).eval()
    want = logits(other)
    gc.freeze()
    (replace_positions if kind == "llama" else enable)(ours)
    assert torch.equal(logits(other), want)
    assert other.config._attn_implementation != ours.config._attn_implementation


@pytest.mark.parametrize("kind", [*FAMILIES, "llama"])
def test_a_model_has_its_configuration_back(kind: str) -> None:
    model, change = (_llama(), replace_positions) if kind == "llama" else (small(kind), enable)
    config, holders = model.config, [m for m in model.modules() if vars(m).get("config") is model.config]
    assert len(holders) > 1
    before = copy.deepcopy(config)
    own = change(model).config
    assert change(model).config is own
    assert all(holder.config is own for holder in holders)
    assert own is not config
    assert vars(config) == vars(before)
    own.use_cache = False
    assert model(IDS).past_key_values is None
    own.use_cache = True
    copied = copy.deepcopy(model)
    disable(model)
    assert all(holder.config is config for holder in holders)
    disable(copied)
    assert {id(m.config) for m in copied.modules() if "config" in vars(m)} == {id(copied.config)}
    assert vars(copied.config) == vars(config) == vars(before)


@pytest.mark.parametrize("kind", [*FAMILIES, "llama"])
def test_what_was_changed_in_a_configuration_stays(kind: str) -> None:
    """More embeddings, above all, of which other models have none."""
    model, change = (_llama(), replace_positions) if kind == "llama" else (small(kind), enable)
    other = type(model)(model.config)
    change(model).resize_token_embeddings(120)
    disable(model)
    assert model.config.vocab_size == model.base_model.config.vocab_size == 120
    assert other.config.vocab_size == 97
    assert model.config._attn_implementation == other.config._attn_implementation


@pytest.mark.parametrize("kind", FAMILIES)
def test_a_part_and_then_the_whole_have_one_configuration(kind: str) -> None:
    model = small(kind)
    config = model.config
    enable(model.base_model)
    assert model.config is config
    enable(model)
    assert model.config is model.base_model.config
    assert len(kv_cache(model).layers) == 2
    want = logits(model)
    # A name that others have put there: of what is theirs as well nothing is changed.
    other = type(model)._from_config(model.config, attn_implementation="eager").eval()
    stock = logits(other)
    enable(model)
    assert torch.equal(logits(model), want)
    assert torch.equal(logits(other), stock)
    disable(model)
    assert model.config is model.base_model.config is config


@pytest.mark.parametrize("kind", FAMILIES)
def test_of_an_enabled_configuration_no_stock_model_is_built(kind: str) -> None:
    """It would get no mask, and look into the future."""
    model = enable(small(kind))
    stock = disable(copy.deepcopy(model)).config
    for config in (model.config, copy.deepcopy(model.config)):
        with pytest.raises(ValueError, match=r'attn_implementation="alibi \(enabled\)"` is not supported'):
            type(model)(config)
        with pytest.raises(ValueError, match=r'attn_implementation="alibi \(enabled\)"` is not supported'):
            AutoModelForCausalLM.from_config(config)
    name = stock._attn_implementation
    named = AutoModelForCausalLM.from_config(copy.deepcopy(model.config), attn_implementation=name).eval()
    changed = IDS.clone()
    changed[:, -1] = changed[:, -1] % 90 + 1
    assert torch.equal(logits(named)[:, 0], logits(named, changed)[:, 0])
    # Without the copy Transformers writes the name into the enabled model's own.
    want = logits(model)
    AutoModelForCausalLM.from_config(model.config, attn_implementation=name)
    with pytest.raises(ValueError, match=r"^attention_mask: .* call enable\(model\) again, or replace"):
        logits(model)
    assert torch.equal(logits(enable(model)), want)


def _prefix() -> tuple[DynamicCache, list[Tensor]]:
    cache, generator = DynamicCache(), torch.Generator().manual_seed(0)
    held = [torch.randn(2, 4, 3, HEAD_DIM, generator=generator).requires_grad_() for _ in range(4)]
    for layer in range(2):
        cache.update(held[2 * layer], held[2 * layer + 1], layer)
    return cache, held


@pytest.mark.parametrize("trains", ["prefix", "prefix and head"])
@pytest.mark.parametrize("kind", FAMILIES)
def test_a_prefix_in_the_cache_is_tuned(kind: str, trains: str) -> None:
    grads = []
    for way in ("stock", "enabled"):
        model = small(kind)
        if way == "enabled":
            enable(model, falcon_rounding=False)
        model.requires_grad_(False)
        if trains == "prefix and head":
            next(module for name, module in model.named_modules() if name.endswith("_f")).requires_grad_(True)
        cache, held = _prefix()
        mask = torch.ones(2, 3 + IDS.shape[1], dtype=torch.long)
        loss = model(IDS, past_key_values=cache, attention_mask=mask, labels=IDS, use_cache=True).loss
        grads.append(torch.autograd.grad(loss, held))
    for got, want in zip(grads[1], grads[0], strict=True):
        torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("kind", FAMILIES)
def test_a_cache_that_is_handed_back_keeps_the_graph(kind: str) -> None:
    """Filled by an enabled model, then trained on by a stock one."""
    more, grads = tokens(2, 5, seed=3), []
    for way in ("stock", "handed back"):
        model, cache = small(kind), DynamicCache()
        if way != "stock":
            enable(model, falcon_rounding=False)
        with torch.no_grad():
            model(IDS, past_key_values=cache, use_cache=True)
        disable(model)
        for _ in range(2):
            # The second time over what the first has left, with its graph.
            loss = model(more, past_key_values=cache, labels=more, use_cache=True).loss
        names = [name for name, each in model.named_parameters() if each.requires_grad]
        found = torch.autograd.grad(loss, [model.get_parameter(name) for name in names])
        grads.append(dict(zip(names, found, strict=True)))
        assert cache.get_seq_length() == IDS.shape[1] + 2 * more.shape[1]
    for name, want in grads[0].items():
        torch.testing.assert_close(
            grads[1][name], want, rtol=1e-3, atol=1e-4, msg=lambda told, name=name: f"{name}: {told}"
        )


def test_a_falcons_rounded_keys_are_not_trained_on_by_a_stock_one() -> None:
    model, cache = enable(small("falcon")), DynamicCache()
    with torch.no_grad():
        model(IDS, past_key_values=cache, use_cache=True)
    with pytest.raises(ValueError, match=r"^past_key_values: expected 4 heads of keys of 8 dimensions, got 4 of 9;"):
        disable(model)(IDS, past_key_values=cache, use_cache=True)


def _llama(config: Any = None) -> PreTrainedModel:
    torch.manual_seed(0)
    config = config or LlamaConfig(
        vocab_size=97, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, pad_token_id=0, bos_token_id=None, eos_token_id=None, initializer_range=0.2,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def test_positions_are_replaced_in_one_model_alone() -> None:
    first, stock = _llama(), None
    stock = _llama(first.config)
    want = logits(stock)
    replace_positions(first)
    assert torch.equal(logits(stock), want)
    second = replace_positions(_llama(stock.config))
    ours = logits(second)
    disable(first)
    assert torch.equal(logits(second), ours)
    assert torch.equal(logits(first), want)


def test_a_model_without_positions_is_not_run_by_another_attention() -> None:
    for switch in (
        lambda model: model.set_attn_implementation("sdpa"),
        lambda model: setattr(model.config, "_attn_implementation", "eager"),
    ):
        model = _llama()
        want = logits(model)
        replace_positions(model)
        switch(model)
        message = (
            r"^attn_implementation: expected 'alibi' in a model whose positions were replaced, got '(sdpa|eager)', "
        )
        with pytest.raises(ValueError, match=message + r"which would leave it without any; call disable"):
            logits(model)
        disable(model)
        assert torch.equal(logits(model), want)


def test_a_refused_model_keeps_its_configuration() -> None:
    model = _llama()
    config = model.config
    with pytest.raises(ValueError, match=r"^slopes:"):
        replace_positions(model, torch.ones(3))
    assert model.config is config
    assert model.base_model.layers[0].self_attn.config is config
