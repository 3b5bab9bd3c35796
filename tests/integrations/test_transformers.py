"""BLOOM, MPT and Falcon compute with our operator what they compute without it."""

from __future__ import annotations

import copy
import math
import pickle
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("transformers")

import torch
from hf_models import KINDS, padding, small, tokens
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    DataCollatorWithFlattening,
    DynamicCache,
    FalconForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
)
from transformers.models.bloom.modeling_bloom import BloomGelu, BloomMLP
from transformers.models.falcon.modeling_falcon import FalconFlashAttention2
from transformers.models.mpt import modeling_mpt

from alibi_attention.integrations.transformers import disable, enable, replace_positions
from alibi_attention.integrations.transformers.cache import KVLayer
from alibi_attention.integrations.transformers.native import FusedBloomGelu, LeanBloomMLP
from alibi_attention.integrations.transformers.versions import TESTED_VERSIONS, check

FAMILIES = ("bloom", "mpt", "falcon")


def logits(model, ids: Tensor, **options) -> Tensor:
    with torch.no_grad():
        return model(ids, use_cache=False, **options).logits


# The same function


@pytest.mark.parametrize("heads", [4, 6, 12, 40])
@pytest.mark.parametrize("kind", KINDS)
def test_logits_are_those_of_the_stock_model(kind: str, heads: int):
    model, ids = small(kind, heads), tokens(2, 40)
    stock = logits(model, ids)
    assert stock.std() > 0.5
    ours = logits(enable(model), ids)
    assert (ours - stock).abs().max() <= 1e-4
    assert torch.equal(logits(disable(model), ids), stock)


@pytest.mark.parametrize("kind", FAMILIES)
def test_far_keys_are_rounded_as_they_were_in_stock(kind: str):
    """At 400 tokens bfloat16 no longer holds every position: Falcon's rounding shows in every head."""
    model, ids = small(kind, 12, **({"max_seq_len": 400} if kind == "mpt" else {})), tokens(1, 400)
    stock = logits(model, ids)
    assert (logits(enable(model), ids) - stock).abs().max() <= 1e-4


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("kind", KINDS)
def test_padding(kind: str, side: str):
    model, ids, mask = small(kind), tokens(3, 20), padding([20, 13, 1], 20, side)
    stock = logits(model, ids, attention_mask=mask)
    ours = logits(enable(model), ids, attention_mask=mask)
    assert (ours - stock)[mask.bool()].abs().max() <= 1e-4
    assert ours.isfinite().all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("side", ["left", "right"])
def test_what_padding_holds_is_nothing_to_the_tokens(kind: str, side: str):
    model, ids, mask = enable(small(kind)), tokens(2, 12), padding([12, 5], 12, side)
    other = torch.where(mask.bool(), ids, 1 + ids % 50)
    assert not torch.equal(ids, other)
    before, after = (logits(model, each, attention_mask=mask)[mask.bool()] for each in (ids, other))
    assert torch.equal(before, after)


# Of stock's error, ours at most: BLOOM rounds the bias to bfloat16, Falcon too and divides it, MPT adds it in float32.
NEARER = {"bloom": 0.2, "mpt": 1.0, "falcon": 0.75, "falcon-mqa": 0.75, "falcon-gqa": 0.75}


@pytest.mark.parametrize("heads", [4, 6, 12])
@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16_is_nearer_to_the_float32_model_than_stock_is(kind: str, heads: int):
    """The rest of the model rounds as well: at this length the bias is what tells the two apart."""
    model, ids = small(kind, heads, **({"max_seq_len": 1000} if kind == "mpt" else {})), tokens(1, 1000)
    exact = logits(model, ids)
    half = copy.deepcopy(model).to(torch.bfloat16)
    stock = (logits(half, ids).float() - exact).square().mean().sqrt()
    ours = (logits(enable(half), ids).float() - exact).square().mean().sqrt()
    assert 0 < ours < NEARER[kind] * stock


# Training


def gradients(model, ids: Tensor, mask: Tensor | None = None) -> dict[str, Tensor]:
    model.zero_grad()
    labels = ids if mask is None else ids.masked_fill(mask == 0, -100)
    model(ids, attention_mask=mask, labels=labels).loss.backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}


@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_gradients(kind: str, use_cache: bool):
    model, ids, mask = small(kind).train(), tokens(3, 20), padding([20, 9, 3], 20, "right")
    for dropout in [module for module in model.modules() if isinstance(module, torch.nn.Dropout)]:
        dropout.p = 0.0
    model.config.use_cache = use_cache
    stock = gradients(model, ids, mask)
    ours = gradients(enable(model), ids, mask)
    assert stock.keys() == ours.keys()
    for name, expected in stock.items():
        torch.testing.assert_close(ours[name], expected, rtol=1e-3, atol=1e-5, msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.parametrize("kind", FAMILIES)
def test_gradient_checkpointing_changes_nothing_even_with_dropout(kind: str):
    options = {} if kind == "mpt" else {"attention_dropout": 0.2}
    model, ids = enable(small(kind, use_cache=False, **options)).train(), tokens(2, 20)
    if kind == "mpt":  # whose configuration takes whole numbers alone
        for block in model.transformer.blocks:
            block.attn.attn_dropout_p = 0.2
    torch.manual_seed(5)
    plain = gradients(model, ids)
    model.activation_checkpointing_enable()
    torch.manual_seed(5)
    for name, expected in gradients(model, ids).items():
        torch.testing.assert_close(expected, plain[name], msg=lambda m, name=name: f"{name}: {m}")
    torch.manual_seed(6)
    assert any(not torch.equal(each, plain[name]) for name, each in gradients(model, ids).items())


def test_a_step_of_training_goes_downhill():
    model, ids = enable(small("bloom")).train(), tokens(2, 30)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(8):
        loss = model(ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0] - 1.0


def test_the_activation_of_bloom_is_the_same_in_one_pass():
    stock, fused = BloomGelu(), FusedBloomGelu()
    x = torch.linspace(-9, 9, 2001, requires_grad=True)
    torch.testing.assert_close(fused(x), stock(x), atol=1e-6, rtol=1e-6)
    grads = [torch.autograd.grad(gelu(x).sum(), x)[0] for gelu in (fused, stock)]
    torch.testing.assert_close(*grads, atol=1e-5, rtol=1e-5)


def test_long_prompts_go_through_blooms_mlp_in_pieces_and_under_hooks_in_one():
    torch.manual_seed(0)
    stock = BloomMLP(BloomConfig(hidden_size=16, n_head=2)).eval()
    ours = copy.deepcopy(stock)
    ours.__class__, ours.gelu_impl.__class__ = LeanBloomMLP, FusedBloomGelu
    x, residual = torch.randn(2, 2, 1500, 16).unbind(0)
    kept = x.clone(), residual.clone()
    pieces = []
    with torch.no_grad():
        want = stock(x, residual)
        torch.testing.assert_close(ours(x, residual), want, atol=1e-6, rtol=1e-5)
        assert torch.equal(x, kept[0])
        assert torch.equal(residual, kept[1])
        ours.dense_h_to_4h.register_forward_hook(lambda *call: pieces.append(call[2].shape))
        torch.testing.assert_close(ours(x, residual), want, atol=1e-6, rtol=1e-5)
    assert pieces == [(2, 1500, 64)]


@pytest.mark.parametrize("length", [40, 600])  # BLOOM's MLP in one piece, and in two
@pytest.mark.parametrize("kind", FAMILIES)
def test_autocast_rounds_no_more_than_in_stock(kind: str, length: int):
    """What runs past the layers stays float32, to which each of them adds."""
    model, ids = small(kind, 12, **({"max_seq_len": length} if kind == "mpt" else {})), tokens(1, length)
    exact = logits(model, ids)
    with torch.autocast("cpu", torch.bfloat16):
        stock = model_states(model, ids)
        ours = model_states(enable(model), ids)
    assert [each.dtype for each in ours] == [each.dtype for each in stock]
    errors = [(each[-1].float() - exact).square().mean().sqrt() for each in (ours, stock)]
    assert 0 < errors[0] < 1.1 * errors[1]


def model_states(model, ids: Tensor) -> list[Tensor]:
    """What goes from layer to layer, and the logits."""
    with torch.no_grad():
        out = model(ids, use_cache=False, output_hidden_states=True)
    return [*out.hidden_states, out.logits]


def test_autocast_in_blooms_mlp_adds_to_a_float32_residual():
    torch.manual_seed(0)
    stock = BloomMLP(BloomConfig(hidden_size=16, n_head=2)).eval()
    ours = copy.deepcopy(stock)
    ours.__class__ = LeanBloomMLP
    # Far larger than what is added: bfloat16 would lose most of that.
    x, residual = torch.randn(1, 600, 16), 100 * torch.randn(1, 600, 16)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        want, got = stock(x, residual), ours(x, residual)
    assert got.dtype == want.dtype == torch.float32
    torch.testing.assert_close(got, want, atol=1e-2, rtol=0)


# Nothing of size length x length


class LargestTensor(TorchDispatchMode):
    """Notes the most elements any operation returned."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for each in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(each, Tensor):
                self.elements = max(self.elements, each.untyped_storage().nbytes() // each.element_size())
        return result


def largest(model, ids: Tensor, **options) -> int:
    with LargestTensor() as watch, torch.no_grad():
        model(ids, logits_to_keep=1, **options)
    return watch.elements


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_no_square_mask_or_bias_is_built(kind: str, padded: bool):
    length = 900
    model, ids = small(kind), tokens(1, length)
    options = {"attention_mask": padding([length - 7], length, "left")} if padded else {}
    if kind != "mpt":
        assert largest(model, ids, **options) >= length**2
    assert largest(enable(model), ids, **options) < length**2 / 4


class Rows(TorchDispatchMode):
    """Notes the most elements of any result whose last dimension is so long."""

    def __init__(self, length: int) -> None:
        super().__init__()
        self.length, self.elements = length, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor) and result.dim() and result.shape[-1] == self.length:
            self.elements = max(self.elements, result.numel())
        return result


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_a_step_forms_no_bias_of_all_keys_for_every_head(kind: str, masked: bool):
    held, heads = 700, 4
    options = {"max_seq_len": held + 1} if kind == "mpt" else {}
    model, ids = small(kind, heads, **options), tokens(1, held + 1)
    for own in (False, True):
        if own:
            enable(enable(model), falcon_rounding=False)
        cache, mask = DynamicCache(config=model.config), padding([held + 1], held + 1, "left") if masked else None
        with torch.no_grad():
            model(ids[:, :held], past_key_values=cache, use_cache=True)
            with Rows(held + 1) as watch:
                model(ids[:, held:], attention_mask=mask, past_key_values=cache, use_cache=True)
        assert (watch.elements < heads * (held + 1)) is own
    with torch.no_grad():
        stock, again = small(kind, heads, **options), disable(model)
        assert torch.equal(stock(ids).logits, again(ids).logits)


@pytest.mark.parametrize("named", [False, True])
def test_a_bloom_without_a_mask_whatever_it_is_given(named: bool):
    stock, own, ids = small("bloom"), enable(small("bloom")), tokens(2, 20)
    seen: list[int] = []
    own.transformer.register_forward_pre_hook(lambda _, args: seen.append(len(args)))
    embedded = stock.transformer.word_embeddings(ids)
    calls = [{"input_ids": ids}, {"inputs_embeds": embedded}] if named else [{}]
    for options in calls:
        arguments = () if named else (ids, None, None)
        want, got = (m.transformer(*arguments, use_cache=False, **options)[0] for m in (stock, own))
        torch.testing.assert_close(got, want, atol=1e-4, rtol=0)
        for model, out in ((stock, want), (own, got)):
            model.zero_grad()
            out.square().sum().backward(retain_graph=True)
        weight = "transformer.h.0.self_attention.query_key_value.weight"
        ours, theirs = (dict(m.named_parameters())[weight].grad for m in (own, stock))
        torch.testing.assert_close(ours, theirs, atol=1e-2, rtol=1e-3)
    assert set(seen) == {len(arguments)}


def test_memory_grows_with_the_length_and_not_its_square():
    model = enable(small("bloom"))
    short, long = (largest(model, tokens(1, length)) for length in (500, 2000))
    assert long <= 4.1 * short


@pytest.mark.parametrize("kind", ["bloom", "mpt"])
def test_a_projection_is_gone_once_its_keys_and_values_are_in_the_cache(kind: str, monkeypatch: pytest.MonkeyPatch):
    made, alive = [], []
    attend = KVLayer.attend

    def watched(self, *arguments):
        alive.append(not made[-1].expired())
        return attend(self, *arguments)

    monkeypatch.setattr(KVLayer, "attend", watched)
    model = enable(small(kind))
    for name, module in model.named_modules():
        if name.endswith(("query_key_value", "Wqkv")):
            module.register_forward_hook(lambda _, __, out: made.append(StorageWeakRef(out.untyped_storage())))
    with torch.no_grad():
        model(tokens(1, 40), use_cache=True)
    assert alive == [False] * model.config.num_hidden_layers


def test_a_hook_on_blooms_output_projection_sees_what_stays_so():
    """Without one the residual is added in place."""
    model, seen = enable(small("bloom")), []
    model.transformer.h[0].self_attention.dense.register_forward_hook(
        lambda _, __, out: seen.append((out, out.clone()))
    )
    watched = logits(model, tokens(1, 9))
    assert torch.equal(*seen[0])
    torch.testing.assert_close(watched, logits(small("bloom"), tokens(1, 9)), atol=1e-4, rtol=0)


# MPT: what Transformers leaves out


def test_mpt_runs_beyond_max_seq_len():
    ids = tokens(1, 100)
    exact = logits(small("mpt", max_seq_len=100), ids)
    model = small("mpt", max_seq_len=16)
    with pytest.raises(RuntimeError):
        logits(model, ids)
    assert (logits(enable(model), ids) - exact).abs().max() <= 1e-4


@pytest.mark.parametrize(
    ("name", "set_to", "without"),
    [("qk_ln", True, False), ("qk_gn", True, False), ("rope", True, False), ("prefix_lm", True, False),
     ("sliding_window_size", 4, -1)],
)  # fmt: skip
def test_an_mpt_of_which_transformers_leaves_a_part_out_is_refused(name: str, set_to: object, without: object):
    model = small("mpt", attn_config={name: set_to})
    with pytest.raises(
        ValueError, match=rf"model\.config\.attn_config\.{name}: expected {without}, got {set_to}: .*leaves out"
    ):
        enable(model)
    setattr(model.config.attn_config, name, without)
    enable(model)


@pytest.mark.parametrize("bias_max", [4, 16])
def test_mpt_honours_alibi_bias_max(bias_max: int, monkeypatch: pytest.MonkeyPatch):
    model, ids = small("mpt", attn_config={"alibi_bias_max": bias_max}), tokens(2, 40)
    ignored = logits(model, ids)
    build = modeling_mpt.build_mpt_alibi_tensor
    monkeypatch.setattr(modeling_mpt, "build_mpt_alibi_tensor", lambda h, n, _, device: build(h, n, bias_max, device))
    meant = logits(model, ids)
    ours = logits(enable(model), ids)
    assert (ours - meant).abs().max() <= 1e-4
    assert (ours - ignored).abs().max() > 1e-2


# Putting it in, taking it out


@pytest.mark.parametrize("kind", FAMILIES)
def test_enabling_is_undone_and_leaves_no_trace(kind: str):
    model = small(kind)
    before = (model.config.to_json_string(), [type(module) for module in model.modules()], list(model.state_dict()))
    implementation = model.config._attn_implementation
    attributes = [set(vars(module)) for module in model.modules()]
    assert enable(enable(model)) is model
    assert [type(module) for module in model.modules()] != before[1]
    assert (model.config.to_json_string(), list(model.state_dict())) == (before[0], before[2])
    assert disable(model) is model
    assert (model.config.to_json_string(), [type(m) for m in model.modules()], list(model.state_dict())) == before
    assert model.config._attn_implementation == implementation
    assert [set(vars(module)) for module in model.modules()] == attributes
    disable(model)


@pytest.mark.parametrize("kind", FAMILIES)
def test_an_enabled_model_is_copied_pickled_moved_and_saved(kind: str, tmp_path):
    model, ids = enable(small(kind, 6)), tokens(1, 30)
    expected = logits(model, ids)
    assert torch.equal(logits(copy.deepcopy(model), ids), expected)
    assert torch.equal(logits(pickle.loads(pickle.dumps(model)), ids), expected)
    model.to(torch.float64).to(torch.float32)
    slopes = [module.alibi_slopes for module in model.modules() if hasattr(module, "alibi_slopes")]
    assert len(slopes) == 2
    assert all(each.dtype == torch.float32 for each in slopes)
    model.save_pretrained(tmp_path)
    stock = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert "alibi" not in stock.config._attn_implementation
    assert (logits(stock, ids) - expected).abs().max() <= 1e-4
    assert (logits(enable(stock), ids) - expected).abs().max() <= 1e-6


def test_falcon_is_loaded_with_it(tmp_path):
    model, ids = small("falcon-gqa", 6), tokens(2, 30)
    model.save_pretrained(tmp_path)
    loaded = FalconForCausalLM.from_pretrained(tmp_path, attn_implementation="alibi")
    expected = logits(model, ids)
    assert (logits(loaded, ids) - expected).abs().max() <= 1e-4
    assert largest(loaded, tokens(1, 600)) < 600**2 / 2
    assert (logits(enable(loaded), ids) - expected).abs().max() <= 1e-4
    disable(loaded)
    assert loaded.config._attn_implementation == "sdpa"
    assert torch.equal(logits(loaded, ids), expected)


@pytest.mark.parametrize("kind", ["bloom", "mpt"])
def test_bloom_and_mpt_loaded_with_it_say_what_to_call(kind: str, tmp_path):
    model, ids = small(kind), tokens(1, 12)
    expected = logits(model, ids)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="alibi")
    with pytest.raises(ValueError, match=rf"{kind} does not choose its attention by name.*enable\(model\)"):
        logits(loaded, ids)
    assert (logits(enable(loaded), ids) - expected).abs().max() <= 1e-4


@pytest.mark.parametrize("kind", FAMILIES)
def test_models_spread_by_accelerate(kind: str):
    accelerate = pytest.importorskip("accelerate")
    model, ids = small(kind), tokens(1, 12)
    expected = logits(model, ids)
    accelerate.cpu_offload(model, execution_device=torch.device("cpu"))
    assert (logits(enable(model), ids) - expected).abs().max() <= 1e-4
    assert largest(model, tokens(1, 500, seed=1)) < 500**2
    disable(model)
    assert torch.equal(logits(model, ids), expected)


# BLOOM's own activation, as the compiler looks at it.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.parametrize("kind", FAMILIES)
def test_it_compiles_into_one_graph(kind: str):
    model, ids = enable(small(kind)), tokens(2, 24)
    expected = logits(model, ids)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    assert (logits(compiled, ids) - expected).abs().max() <= 1e-5
    torch.compiler.reset()


# Refusals


def test_models_without_alibi_are_refused():
    llama = LlamaForCausalLM(
        LlamaConfig(vocab_size=50, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
    )
    with pytest.raises(
        ValueError, match=r"expected a BLOOM, an MPT or a Falcon.*got LlamaForCausalLM.*replace_positions"
    ):
        enable(llama)
    with pytest.raises(ValueError, match=r"model\.config\.alibi: expected True, got False.*rotary"):
        enable(small("falcon", alibi=False))
    with pytest.raises(ValueError, match=r"attn_config\.alibi: expected True, got False"):
        enable(small("mpt", attn_config={"alibi": False}))
    with pytest.raises(ValueError, match="slow_but_exact: expected False"):
        enable(small("bloom", slow_but_exact=True, pretraining_tp=2))


@pytest.mark.parametrize("change", [enable, disable, replace_positions])
def test_what_is_no_model_is_refused(change):
    for odd, got in ((None, "NoneType None"), ("bigscience/bloom-560m", "str 'bigscience/bloom-560m'")):
        with pytest.raises(ValueError, match=f"^model: expected a model of Transformers, got {got}; load it first"):
            change(odd)


def test_a_refused_model_is_left_as_it_was():
    both = torch.nn.ModuleList([small("bloom"), small("mpt", attn_config={"alibi": False})])
    ids = tokens(1, 8)
    expected = logits(both[0], ids)
    with pytest.raises(ValueError, match=r"attn_config\.alibi"):
        enable(both)
    assert torch.equal(logits(both[0], ids), expected)


def test_a_forward_put_over_the_attention_is_refused():
    model = small("bloom")
    attention = model.transformer.h[1].self_attention
    attention.forward = lambda *args, **kwargs: None  # noqa: ARG005
    with pytest.raises(ValueError, match="expected BloomAttention to run its own forward"):
        enable(model)


@pytest.mark.parametrize("kind", FAMILIES)
def test_a_subclass_with_a_forward_of_its_own_is_refused(kind: str):
    model, ids = small(kind), tokens(1, 8)
    attention = next(module for module in model.modules() if type(module).__name__.endswith("Attention"))
    stock = type(attention)

    class Renamed(stock):
        pass

    class Doubled(Renamed):
        def forward(self, *args, **kwargs):
            out, weights = super().forward(*args, **kwargs)
            return 2 * out, weights

    attention.__class__ = Doubled
    expected = logits(model, ids)
    with pytest.raises(ValueError, match=rf"expected Doubled to have the forward of Transformers' {stock.__name__}"):
        enable(model)
    assert torch.equal(logits(model, ids), expected)
    # One that only has another name, and those of Transformers, are taken.
    attention.__class__ = Renamed
    assert (logits(enable(model), ids) - logits(small(kind), ids)).abs().max() <= 1e-4
    assert type(next(module for module in disable(model).modules() if isinstance(module, stock))) is Renamed
    if kind == "falcon":
        attention.__class__ = FalconFlashAttention2
        assert type(enable(model).transformer.h[0].self_attention).__name__ == "ALiBiFalconAttention"


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.parametrize("wants_graph", [False, True])
@pytest.mark.parametrize("kind", FAMILIES)
def test_padding_between_tokens_is_refused_by_compiled_code(kind: str, wants_graph: bool):
    model, ids = enable(small(kind)), tokens(2, 24)
    torch.compiler.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")

    def run(run_model, mask: Tensor) -> Tensor:
        with torch.set_grad_enabled(wants_graph):
            return run_model(ids, attention_mask=mask, use_cache=False).logits

    for mask in (padding([24, 13], 24, "left"), padding([24, 13], 24, "right"), padding([24, 24], 24, "left")):
        assert (run(compiled, mask) - run(model, mask))[mask.bool()].abs().max() <= 1e-5
    mask[1, 8:12] = 0
    with pytest.raises(RuntimeError, match=r"got padding between tokens; distances across the hole are ambiguous"):
        run(compiled, mask)
    torch.compiler.reset()


@pytest.mark.parametrize("kind", FAMILIES)
def test_padding_between_tokens_is_refused(kind: str):
    mask = torch.ones(2, 10, dtype=torch.long)
    mask[1, 4:6] = 0
    with pytest.raises(ValueError, match=r"padding between tokens in rows \[1\].*count only real tokens.*padding_side"):
        logits(enable(small(kind)), tokens(2, 10), attention_mask=mask)


@pytest.mark.parametrize("kind", ["bloom", "mpt"])  # Falcon itself takes no other
def test_masks_of_another_shape_are_refused(kind: str):
    model = enable(small(kind))
    with pytest.raises(ValueError, match=r"attention_mask: expected \(batch, length\).*got shape \(1, 1, 8, 8\)"):
        logits(model, tokens(1, 8), attention_mask=torch.ones(1, 1, 8, 8).tril())
    with pytest.raises(ValueError, match="expected one column for each of the 8 tokens"):
        model(tokens(1, 8), attention_mask=torch.ones(1, 5), use_cache=True)


@pytest.mark.parametrize("kind", FAMILIES)
def test_attention_weights_are_refused(kind: str):
    model, said = enable(small(kind)), r"output_attentions: expected False, got True; the weights are never formed"
    for part in (model, model.base_model):
        with pytest.raises(ValueError, match=said):
            part(tokens(1, 8), output_attentions=True)
    asked = small(kind, attn_implementation="eager", output_attentions=True)
    with pytest.raises(ValueError, match=said):
        logits(enable(asked), tokens(1, 8))
    assert logits(asked, tokens(1, 8), output_attentions=False).isfinite().all()


@pytest.mark.parametrize("kind", FAMILIES)
def test_packed_texts_are_refused(kind: str):
    """As a collator of Transformers packs them; stock models let them see each other without a word."""
    features = [{"input_ids": row.tolist()} for row in tokens(2, 10)]
    for options, name in (({}, "position_ids"), ({"return_flash_attn_kwargs": True}, "cu_seq_lens_q")):
        batch = DataCollatorWithFlattening(return_tensors="pt", **options)(features)
        model = enable(small(kind)).train()
        with pytest.raises(ValueError, match=rf"^{name}: expected .* got .* give each (text )?a row and an attention_"):
            model(**batch)
        with pytest.raises(ValueError, match=rf"^{name}: expected"):
            model.base_model(**{key: each for key, each in batch.items() if key != "labels"})
        assert disable(model)(**batch).loss.isfinite()
        assert enable(model)(batch["input_ids"], labels=batch["labels"]).loss.isfinite()


@pytest.mark.parametrize("name", ["cu_seq_lens_k", "max_length_q", "seq_idx", "sliding_window", "head_mask", "softcap"])
@pytest.mark.parametrize("kind", FAMILIES)
def test_what_stock_passes_over_is_refused(kind: str, name: str):
    model, ids = enable(small(kind)), tokens(1, 8)
    with pytest.raises(ValueError, match=rf"^{name}: expected none, got one, which an enabled \w+ would pass over as"):
        logits(model, ids, **{name: torch.tensor([0, 4, 8])})
    assert logits(model, ids, **{name: None}).isfinite().all()


@pytest.mark.parametrize("kind", FAMILIES)
def test_positions_that_say_nothing_new_are_taken(kind: str):
    """Each after the other, from wherever a text begins; a mask says where padding is, whatever they are."""
    model, ids = enable(small(kind)), tokens(2, 12)
    want = logits(model, ids)
    for first in (0, 2):
        assert torch.equal(logits(model, ids, position_ids=first + torch.arange(12)[None]), want)
    mask = padding([12, 7], 12, "left")
    places = (mask.cumsum(1) - 1).clamp_min(0)
    assert torch.equal(
        logits(model, ids, attention_mask=mask, position_ids=places), logits(model, ids, attention_mask=mask)
    )
    cache = DynamicCache()
    with torch.no_grad():
        model(ids[:, :5], past_key_values=cache, use_cache=True, position_ids=torch.arange(5)[None])
        with pytest.raises(ValueError, match=r"^position_ids: expected one text a row, in numbers that go on by one"):
            model(ids[:, 5:], past_key_values=cache, use_cache=True, position_ids=torch.arange(7)[None])
        rest = model(ids[:, 5:], past_key_values=cache, use_cache=True, position_ids=torch.arange(5, 12)[None])
    assert (rest.logits - want[:, 5:]).abs().max() <= 1e-4


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.parametrize("kind", FAMILIES)
def test_packed_texts_are_refused_by_compiled_code(kind: str):
    model, ids = enable(small(kind)), tokens(1, 12)
    torch.compiler.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    places = torch.arange(12)[None]
    assert (logits(compiled, ids, position_ids=places) - logits(model, ids)).abs().max() <= 1e-5
    with pytest.raises(RuntimeError, match="position_ids: expected one text a row"):
        logits(compiled, ids, position_ids=places % 6)
    torch.compiler.reset()


@pytest.mark.parametrize(
    ("version", "message"),
    [
        ("4.57.1", rf"expected a tested version.*{TESTED_VERSIONS[-1]}.*found 4\.57\.1"),
        (None, r"pip install -c constraints.txt '\.\[transformers\]' in a checkout"),
    ],
)
def test_untested_versions_are_refused(version: str | None, message: str):
    with pytest.raises(ImportError, match=message):
        check(version)


def test_importing_refuses_an_untested_version():
    code = (
        "import importlib.metadata as m; real = m.version\n"
        "m.version = lambda name: '5.0.0' if name == 'transformers' else real(name)\n"
        "try:\n    import alibi_attention.integrations.transformers\n"
        "except ImportError as error:\n    print(error)\n"
        "import sys; assert 'transformers' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert "found 5.0.0" in done.stdout


def test_falcon_slopes_are_those_it_was_trained_with():
    attention = enable(small("falcon", 6)).transformer.h[0].self_attention
    nominal = torch.tensor([2.0 ** -(8 * h / 4) for h in range(1, 5)] + [2.0**-1, 2.0**-3])
    torch.testing.assert_close(attention.alibi_slopes, nominal.to(torch.bfloat16).float() / math.sqrt(8))


def test_the_extra_asks_for_a_version_that_is_taken():
    text = (Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8")
    pinned = re.search(r'^transformers = \["transformers==(.+)"\]$', text, re.MULTILINE)
    assert pinned
    assert pinned[1] in TESTED_VERSIONS
