"""ALiBi in models that came with other positions: switched off, tried out, trained, longer than in training."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transformers")

import torch
from hf_models import padding, tokens
from torch import Tensor
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertModel,
    DistilBertConfig,
    DistilBertModel,
    DynamicCache,
    FalconConfig,
    FalconForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoConfig,
    GPTNeoForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    Ministral3Config,
    Ministral3ForCausalLM,
    ModernBertConfig,
    ModernBertForMaskedLM,
    OlmoeConfig,
    OlmoeForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    PreTrainedModel,
    Qwen2MoeConfig,
    Qwen2MoeForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    StaticCache,
    T5Config,
    T5ForConditionalGeneration,
)
from transformers.models.opt.modeling_opt import OPTDecoderLayer, OPTLearnedPositionalEmbedding

from alibi_attention import alibi_slopes
from alibi_attention.integrations.inspect import describe
from alibi_attention.integrations.transformers import disable, enable, replace_positions
from alibi_attention.integrations.transformers.hooks import remove_hooks
from alibi_attention.integrations.transformers.packing import keep_packed_apart

CAUSAL = ("llama", "qwen3", "qwen3-sliding", "qwen2-moe", "gpt2")
BIDIRECTIONAL = ("bert", "modernbert")
COMMON = {
    "vocab_size": 97, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "initializer_range": 0.2,
    "pad_token_id": 0, "eos_token_id": None, "bos_token_id": None,
}  # fmt: skip


def small(kind: str, **options: Any) -> PreTrainedModel:
    torch.manual_seed(3)
    options = COMMON | options
    if kind == "llama":
        model = LlamaForCausalLM(LlamaConfig(intermediate_size=48, num_key_value_heads=2, **options))
    elif kind in ("qwen3", "qwen3-sliding"):
        if kind == "qwen3-sliding":  # from the second layer on
            options |= {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}
        config = Qwen3Config(intermediate_size=48, num_key_value_heads=2, head_dim=8, **options)
        model = Qwen3ForCausalLM(config)
    elif kind == "qwen2-moe":  # whose layers leave the window, from the first of them on, to their mask
        options |= {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1, "num_experts": 2}
        options |= {"num_experts_per_tok": 1, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16}
        model = Qwen2MoeForCausalLM(Qwen2MoeConfig(num_key_value_heads=2, **options))
    elif kind == "gpt2":
        model = GPT2LMHeadModel(GPT2Config(n_positions=64, **options))
    elif kind == "bert":
        model = BertForMaskedLM(BertConfig(intermediate_size=48, max_position_embeddings=64, **options))
    elif kind == "opt":
        options |= {"ffn_dim": 48, "word_embed_proj_dim": 32, "max_position_embeddings": 64}
        model = OPTForCausalLM(OPTConfig(**{"init_std": options.pop("initializer_range"), **options}))
    else:
        options |= {"cls_token_id": 1, "sep_token_id": 2, "local_attention": 16}
        model = ModernBertForMaskedLM(ModernBertConfig(intermediate_size=48, **options))
    return model.eval()


def logits(model, ids: Tensor, **options) -> Tensor:
    with torch.no_grad():
        return model(ids, **options).logits


# What is computed


class Recorded(torch.nn.Module):
    """Stands in for the operator, and compares each call with the definition."""

    def __init__(self, attend) -> None:
        super().__init__()
        self.attend, self.calls = attend, []

    def forward(self, query, key, value, slopes, **options):
        out = self.attend(query, key, value, slopes, **options)
        self.calls.append((query, key, value, slopes, options, out))
        return out


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> list:
    from alibi_attention.integrations.transformers import general

    stand_in = Recorded(general.alibi_attention)
    monkeypatch.setattr(general, "alibi_attention", stand_in)
    return stand_in.calls


@pytest.mark.parametrize("kind", [*CAUSAL, *BIDIRECTIONAL])
def test_every_layer_attends_by_content_and_distance_alone(kind: str, recorded: list):
    model, ids = replace_positions(small(kind)), tokens(2, 30)
    recorded.clear()
    logits(model, ids)
    windows = {"qwen3-sliding": [None, (7, None)], "qwen2-moe": [(7, None), None], "modernbert": [None, (8, 8)]}
    assert [options["window"] for *_, options, _ in recorded] == windows.get(kind, [None, None])
    for query, key, value, slopes, options, out in recorded:
        assert options["is_causal"] == (kind in CAUSAL)
        assert torch.equal(slopes, alibi_slopes(4))
        distance = (torch.arange(30)[:, None] - torch.arange(30)).double()
        hidden = distance < 0 if kind in CAUSAL else torch.zeros(30, 30, dtype=torch.bool)
        if options["window"] is not None:
            hidden |= distance.abs() > options["window"][0]
        shared = query.shape[1] // key.shape[1]
        k, v = (each.double().repeat_interleave(shared, 1) for each in (key, value))
        scores = query.double() @ k.mT * 8**-0.5 - slopes.double()[:, None, None] * distance.abs()
        expected = scores.masked_fill(hidden, -torch.inf).softmax(-1) @ v
        torch.testing.assert_close(out, expected.float())


@pytest.mark.parametrize("kind", [*CAUSAL, *BIDIRECTIONAL])
def test_position_ids_mean_nothing_any_more(kind: str):
    model, ids = small(kind), tokens(2, 20)
    mixed, mask = torch.randperm(20).unsqueeze(0), torch.ones(2, 20)
    assert not torch.equal(logits(model, ids, attention_mask=mask, position_ids=mixed), logits(model, ids))
    replace_positions(model)
    assert torch.equal(logits(model, ids, attention_mask=mask, position_ids=mixed), logits(model, ids))


@pytest.mark.parametrize("kind", ["gpt2", "bert"])
def test_there_is_no_longest_length_any_more(kind: str):
    ids = tokens(1, 200)
    with pytest.raises((IndexError, RuntimeError)):
        logits(small(kind), ids)
    assert logits(replace_positions(small(kind)), ids).isfinite().all()


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("kind", [*CAUSAL, *BIDIRECTIONAL])
def test_padding_is_left_out(kind: str, side: str):
    model, ids, mask = replace_positions(small(kind)), tokens(2, 12), padding([12, 7], 12, side)
    padded = logits(model, ids, attention_mask=mask)[1][mask[1].bool()]
    alone = logits(model, ids[1:, mask[1].bool()])[0]
    torch.testing.assert_close(padded, alone, atol=1e-4, rtol=1e-4)


def test_a_table_that_is_asked_by_place():
    """DistilBERT gives its embeddings their arguments without names."""
    torch.manual_seed(3)
    config = DistilBertConfig(vocab_size=97, dim=32, n_layers=2, n_heads=4, hidden_dim=48, max_position_embeddings=64)
    model, ids = replace_positions(DistilBertModel(config).eval()), tokens(1, 200)
    mixed = torch.randperm(200).unsqueeze(0) % 64
    with torch.no_grad():
        # With a mask, or they would begin a sequence each.
        whole = torch.ones_like(ids)
        placed, moved = (model(ids, attention_mask=whole, position_ids=at)[0] for at in (None, mixed))
        backwards = model(ids.flip(1))[0].flip(1)
    assert torch.equal(placed, moved)
    # The penalty is the same on both sides.
    torch.testing.assert_close(backwards, placed, atol=1e-4, rtol=1e-4)


def test_packed_sequences_do_not_see_each_other():
    model, ids = replace_positions(small("llama")), tokens(1, 20)
    lengths = [7, 1, 12]
    placed = torch.cat([torch.arange(length) for length in lengths]).unsqueeze(0)
    expected = torch.cat([logits(model, part) for part in ids.split(lengths, dim=1)], 1)
    for options in ({"use_cache": False}, {}):
        assert (logits(model, ids, position_ids=placed, **options) - expected).abs().max() <= 1e-4
    model.train()
    assert (logits(model, ids, position_ids=placed) - expected).abs().max() <= 1e-4
    model.eval()
    assert (model.model(ids, None, placed)[0] - model.model(ids, None, placed, use_cache=False)[0]).abs().max() == 0
    for options in ({"use_cache": True}, {"past_key_values": DynamicCache()}):
        with pytest.raises(ValueError, match=r"^use_cache: expected False for sequences packed .* got a cache"):
            logits(model, ids, position_ids=placed, **options)
    assert model(ids, position_ids=torch.arange(20)[None]).past_key_values is not None, "one text may be cached"
    bounds = torch.tensor([0, 7, 8, 20], dtype=torch.int32)
    packed = {"cu_seq_lens_q": bounds, "cu_seq_lens_k": bounds, "max_length_q": 12, "max_length_k": 12}
    assert (logits(model, ids, use_cache=False, **packed) - expected).abs().max() <= 1e-4
    with pytest.raises(
        ValueError, match=r"attention_mask: expected none beside cu_seq_lens_q, got padding of shape \(1, 20\); packed"
    ):
        logits(model, ids, attention_mask=padding([15], 20, "right"), use_cache=False, **packed)


@pytest.mark.parametrize("kind", [*CAUSAL, *BIDIRECTIONAL, "opt"])
def test_packed_sequences_whoever_reads_their_positions(kind: str):
    """Transformers looks at position ids for some models, and lets the sequences of others see each other."""
    model, ids, lengths = replace_positions(small(kind)), tokens(1, 40), [17, 1, 22]
    placed = torch.cat([torch.arange(length) for length in lengths]).unsqueeze(0)
    expected = torch.cat([logits(model, part) for part in ids.split(lengths, dim=1)], 1)
    for copied in (model, copy.deepcopy(model)):
        assert (logits(copied, ids, position_ids=placed) - expected).abs().max() <= 1e-4
    one_text = logits(model, ids, attention_mask=torch.ones_like(ids), position_ids=placed)
    assert torch.equal(one_text, logits(model, ids, attention_mask=torch.ones_like(ids)))
    assert (one_text - expected).abs().max() > 1e-2
    with pytest.raises(ValueError, match=r"^position_ids: expected sequences packed in one row, got .*\b2\b"):
        logits(model, ids.expand(2, -1), position_ids=placed.expand(2, -1))


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_packed_sequences_in_compiled_code():
    model, ids = replace_positions(small("opt")), tokens(1, 12)
    torch.compiler.reset()
    compiled = torch.compile(model, backend="eager")
    placed = torch.arange(12).unsqueeze(0)
    with torch.no_grad():
        out = compiled(ids, position_ids=placed, use_cache=False).logits
        assert (out - model(ids).logits).abs().max() <= 1e-4
        with pytest.raises(RuntimeError, match="position_ids: expected one sequence a row in compiled code"):
            compiled(ids, position_ids=placed % 6, use_cache=False)
    torch.compiler.reset()


def test_packed_sequences_that_no_layer_can_hear_of_are_refused(monkeypatch: pytest.MonkeyPatch):
    model = small("opt")
    forward = OPTDecoderLayer.forward
    monkeypatch.setattr(OPTDecoderLayer, "forward", lambda self, *args, **kwargs: forward(self, *args, **deaf(kwargs)))
    replace_positions(model)
    ids = tokens(1, 12)
    assert logits(model, ids, position_ids=torch.arange(12).unsqueeze(0)).isfinite().all()
    with pytest.raises(ValueError, match="position_ids: expected one sequence a row, got several; the layers of a OPT"):
        logits(model, ids, position_ids=torch.arange(12).unsqueeze(0) % 6)


def deaf(kwargs: dict[str, Any]) -> dict[str, Any]:
    return {name: each for name, each in kwargs.items() if not name.startswith("cu_seq_lens")}


@pytest.mark.parametrize("kind", CAUSAL)
def test_generation(kind: str):
    model, ids, mask = replace_positions(small(kind)), tokens(2, 9), padding([9, 4], 9, "left")
    options = {"attention_mask": mask, "max_new_tokens": 8, "do_sample": False}
    expected = model.generate(ids, use_cache=False, **options)
    assert torch.equal(model.generate(ids, **options), expected)
    assert torch.equal(model.generate(ids, num_beams=1, past_key_values=DynamicCache(), **options), expected)


def test_slopes_of_ones_own():
    model, ids = small("llama"), tokens(1, 20)
    flat = logits(replace_positions(model, torch.zeros(4)), ids)
    steep = logits(replace_positions(model, torch.full((4,), 2.0)), ids)
    # Those it has stay, unless others are given.
    assert torch.equal(logits(replace_positions(model), ids), steep)
    preset = logits(replace_positions(model, alibi_slopes(4)), ids)
    assert not torch.equal(flat, steep)
    assert torch.equal(logits(replace_positions(small("llama")), ids), preset)


@pytest.mark.parametrize("kind", [*CAUSAL, *BIDIRECTIONAL])
def test_without_slopes_it_is_sdpa_without_positions(kind: str):
    """Windows, scales and masks are then all that is left, and SDPA has its own."""
    model, ids, mask = replace_positions(small(kind), torch.zeros(4)), tokens(2, 40), padding([40, 33], 40, "right")
    ours = logits(model, ids, attention_mask=mask)
    # Which is refused to all but this test.
    for module in model.modules():
        remove_hooks(module, keep_packed_apart)
    model.config._attn_implementation_internal = "sdpa"
    stock = logits(model, ids, attention_mask=mask)
    assert (ours - stock)[mask.bool()].abs().max() <= 1e-4


# Switching off and on


@pytest.mark.parametrize("kind", [*CAUSAL, *BIDIRECTIONAL])
def test_disabling_brings_the_positions_back(kind: str):
    model, ids = small(kind), tokens(1, 20)
    expected, frozen = logits(model, ids), [p.requires_grad for p in model.parameters()]
    attributes = [set(vars(module)) for module in model.modules()]
    assert replace_positions(model) is model
    assert model.config._attn_implementation == "alibi"
    again = logits(replace_positions(model), ids)
    assert not torch.equal(again, expected)
    copied = copy.deepcopy(model)
    assert torch.equal(logits(disable(model), ids), expected)
    assert model.config._attn_implementation == "sdpa"
    assert [p.requires_grad for p in model.parameters()] == frozen
    assert [set(vars(module)) for module in model.modules()] == attributes
    assert torch.equal(logits(copied, ids), again)
    assert torch.equal(logits(disable(copied), ids), expected)


def test_loaded_with_it_and_then_prepared(tmp_path):
    model, ids = replace_positions(small("llama")), tokens(1, 15)
    expected = logits(model, ids)
    model.save_pretrained(tmp_path)
    loaded = LlamaForCausalLM.from_pretrained(tmp_path, attn_implementation="alibi")
    with pytest.raises(
        ValueError, match=r"LlamaAttention that has its own positions.*replace_positions\(model\) first"
    ):
        logits(loaded, ids)
    assert torch.equal(logits(replace_positions(loaded), ids), expected)


def test_modes_and_generators_are_left_alone():
    model = small("llama").train()
    model.model.layers[0].eval()
    state = torch.get_rng_state()
    replace_positions(model)
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training
    assert not model.model.layers[0].training


# Refusals


def refused(model, match: str) -> None:
    before = model.config._attn_implementation
    hooks = [len(module._forward_hooks) for module in model.modules()]
    with pytest.raises(ValueError, match=match):
        replace_positions(model)
    assert model.config._attn_implementation == before
    assert [len(module._forward_hooks) for module in model.modules()] == hooks


def test_layers_that_compute_their_own_attention_are_refused():
    options = {name: size for name, size in COMMON.items() if name not in ("num_hidden_layers", "num_attention_heads")}
    config = GPTNeoConfig(num_layers=2, num_heads=4, attention_types=[[["global"], 2]], **options)
    model, ids = GPTNeoForCausalLM(config).eval(), tokens(1, 9)
    expected = logits(model, ids)
    refused(model, r"expected every attention layer to ask .* GPTNeoForCausalLM with 2 layers \(GPTNeoSelfAttention\)")
    assert torch.equal(logits(model, ids), expected)
    # A rotary Falcon fails under an attention whose name it does not know.
    for options in ({}, {"new_decoder_architecture": True}):
        model = FalconForCausalLM(FalconConfig(alibi=False, **COMMON, **options)).eval()
        expected = logits(model, ids)
        refused(model, r"expected every attention layer to ask .* FalconForCausalLM with 2 layers \(FalconAttention\)")
        assert torch.equal(logits(model, ids), expected)


@pytest.mark.parametrize("place", ["before", "inside"])
def test_what_fails_elsewhere_is_not_taken_for_a_layer_that_does_not_ask(monkeypatch: pytest.MonkeyPatch, place: str):
    kind = OPTDecoderLayer if place == "inside" else OPTLearnedPositionalEmbedding
    forward, model = kind.forward, small("opt")

    def fails(self: Any, *args: Any, **kwargs: Any) -> Any:
        output = forward(self, *args, **kwargs)
        if model.config._attn_implementation != "sdpa":
            raise TypeError("a fault of another kind")
        return output

    monkeypatch.setattr(kind, "forward", fails)
    with pytest.raises(TypeError, match="a fault of another kind"):
        replace_positions(model)


def test_models_whose_positions_stay_are_refused():
    sizes = {"vocab_size": 40, "d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2}
    refused(T5ForConditionalGeneration(T5Config(**sizes)), "expected self-attention alone, got .* with cross-attention")
    refused(small("gpt2", add_cross_attention=True), "got a GPT2LMHeadModel with cross-attention")
    from hf_models import small as native

    refused(enable(native("bloom")), r"got a BloomForCausalLM, which has ALiBi already; call enable\(model\)")
    refused(native("mpt"), r"got a MptForCausalLM, which has ALiBi already; call enable\(model\)")
    own = small("gpt2")
    for block in own.transformer.h:
        del block.attn.is_causal
    refused(own, "expected attention layers that ask Transformers for their attention by name, got a GPT2LMHeadModel")
    sizes = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 1, "state_size": 4}
    refused(MambaForCausalLM(MambaConfig(**sizes)), "expected layers of attention, got a MambaForCausalLM without any")


def test_positions_of_an_unknown_kind_are_refused():
    """A rotation under another name stays on, and is noticed."""
    model = small("llama")
    rotary = model.model.rotary_emb
    rotary.__class__ = type("Spinner", (type(rotary),), {})
    refused(model, "which can be switched off; found neither")
    both = small("gpt2")

    class Shifted(type(both.transformer)):
        def forward(self, input_ids=None, position_ids=None, inputs_embeds=None, **options):  # noqa: ARG002
            embedded = self.wte(input_ids)
            return super().forward(
                inputs_embeds=embedded + position_ids[..., None] * 0.1, position_ids=position_ids, **options
            )

    both.transformer.__class__ = Shifted
    refused(both, "which can be switched off; some are left")


def test_a_window_that_the_mask_does_not_have_is_refused():
    """OLMoE's layers speak of one, of which only flash-attn would take notice."""
    torch.manual_seed(3)
    config = OlmoeConfig(intermediate_size=16, num_experts=2, num_experts_per_tok=1, sliding_window=8, **COMMON)
    model, ids = OlmoeForCausalLM(config).eval(), tokens(1, 9)
    expected = logits(model, ids)
    refused(
        model,
        r"^model: expected a OlmoeAttention to attend to what its mask leaves, the tokens up to each, got one that "
        r"says the tokens up to each within 7 of it; .* mend its configuration",
    )
    assert torch.equal(logits(model, ids), expected)


def test_a_table_that_is_given_positions_by_name():
    """OPT's takes a mask first; its rows end at 64."""
    torch.manual_seed(3)
    config = OPTConfig(ffn_dim=48, max_position_embeddings=64, word_embed_proj_dim=32, **COMMON)
    model, ids = OPTForCausalLM(config).eval(), tokens(1, 200)
    with pytest.raises((IndexError, RuntimeError)):
        logits(model, ids)
    replace_positions(model)
    found = logits(model, ids)
    torch.testing.assert_close(found[:, :60], logits(model, ids[:, :60]))
    # Nor are the biases missing.
    level = logits(replace_positions(model, torch.zeros(4)), ids)
    assert (level - found)[:, 1:].abs().amin(1).max() > 0.0


def test_positions_that_show_only_far_away_are_refused():
    """Ministral 3 multiplies queries by a function of their position that is 1 up to 16,383."""
    torch.manual_seed(3)
    config = Ministral3Config(intermediate_size=48, num_key_value_heads=2, head_dim=8, **COMMON)
    model, ids = Ministral3ForCausalLM(config).eval(), tokens(1, 9)
    expected = logits(model, ids)
    refused(model, "which can be switched off; some are left")
    assert torch.equal(logits(model, ids), expected)


def test_a_model_without_positions_to_see_is_refused():
    refused(small("llama", num_hidden_layers=0), "expected attention layers|depend on position_ids")
    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(intermediate_size=48, **COMMON))
    refused(model, "expected weights, got meta tensors")


def test_slopes_of_the_wrong_number_are_refused():
    with pytest.raises(ValueError, match=r"slopes: expected shape \(4,\)"):
        replace_positions(small("llama"), torch.ones(3))


def test_what_the_operator_does_not_carry_is_refused():
    model, ids = replace_positions(small("llama")), tokens(1, 8)
    with pytest.raises(ValueError, match="expected a cache that grows"):
        logits(model, ids, past_key_values=StaticCache(config=model.config, max_cache_len=16), use_cache=True)
    with pytest.raises(ValueError, match="padding between tokens"):
        logits(model, ids, attention_mask=torch.tensor([[1, 1, 0, 1, 1, 1, 1, 1]]))
    with pytest.raises(ValueError, match=r"attention_mask: expected \(batch, length\)"):
        logits(model, ids, attention_mask=torch.ones(1, 1, 8, 8))
    attention = model.model.layers[0].self_attn
    from alibi_attention.integrations.transformers.general import alibi_forward

    query = torch.randn(1, 4, 5, 8)
    with pytest.raises(ValueError, match="softcap: expected None"):
        alibi_forward(attention, query, query, query, None, softcap=30.0)
    with pytest.raises(ValueError, match="expected self-attention, as many keys as the 5 queries, got 3"):
        alibi_forward(attention, query, query[:, :, :3], query[:, :, :3], None, is_causal=False)


@pytest.mark.parametrize("kind", [*CAUSAL, *BIDIRECTIONAL, "opt"])
def test_attention_weights_are_refused(kind: str):
    """GPT-2 would answer with none of them."""
    model, ids, said = replace_positions(small(kind)), tokens(1, 8), r"^output_attentions: expected False, got True"
    for part in (model, model.base_model):
        with pytest.raises(ValueError, match=said):
            part(ids, output_attentions=True)
    model.config._output_attentions = True
    with pytest.raises(ValueError, match=said):
        logits(model, ids)
    assert logits(model, ids, output_attentions=False).isfinite().all()


def test_bert_as_a_decoder_is_causal(recorded: list):
    config = BertConfig(intermediate_size=48, is_decoder=True, **COMMON)
    model = replace_positions(BertModel(config).eval())
    recorded.clear()
    with torch.no_grad():
        model(tokens(1, 10))
    assert [call[4]["is_causal"] for call in recorded] == [True, True]


@pytest.mark.parametrize("kind", ["llama", "bert"])
def test_a_checkpoint_remembers_the_slopes(kind: str, tmp_path: Path) -> None:
    slopes = torch.tensor([0.7, 0.2, 0.1, 0.03])
    model = replace_positions(small(kind), slopes)
    ids = tokens(1, 12)
    with torch.no_grad():
        want = model.eval()(ids).logits
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path).eval()
    # With its own positions it would run, and be another model.
    with pytest.raises(ValueError, match=r"call alibi_attention.integrations.transformers.replace_positions"):
        loaded(ids)
    replace_positions(loaded)
    with torch.no_grad():
        torch.testing.assert_close(loaded(ids).logits, want)
    seen = describe(json.loads((tmp_path / "config.json").read_text(encoding="utf-8")))
    assert seen.causal == (kind == "llama")
    torch.testing.assert_close(seen.slopes, slopes)
    assert seen.scheme is None
    assert any(trap.code == "replaced" for trap in seen.traps)
    # Others may be given; and without them it is as it was.
    replace_positions(loaded, alibi_slopes(4))
    assert loaded.config.alibi_positions == {"slopes": alibi_slopes(4).tolist(), "causal": kind == "llama"}
    # What is undone is as it was: here as it was loaded.
    disable(loaded)
    assert loaded.config.alibi_positions == model.config.alibi_positions
    disable(model)
    assert not hasattr(model.config, "alibi_positions")
    model.save_pretrained(tmp_path)
    type(model).from_pretrained(tmp_path)(ids)


def test_a_failed_call_leaves_what_an_earlier_one_did() -> None:
    model, ids = small("llama"), tokens(1, 12)
    want = logits(replace_positions(model, torch.tensor([0.7, 0.2, 0.1, 0.03])), ids)
    remembered = model.config.alibi_positions
    with pytest.raises(ValueError, match=r"slopes: expected shape \(4,\)"):
        replace_positions(model, torch.zeros(5))
    assert torch.equal(logits(model, ids), want)
    assert model.config.alibi_positions == remembered


@pytest.mark.parametrize(
    "held",
    [3, {"slopes": "steep"}, {"slopes": [1.0, 2.0]}, {}, {"slopes": [1.0, 2.0, 3.0, 1e300]}, {"slopes": [10**400] * 4}],
)
def test_what_is_remembered_and_makes_no_sense_is_refused(held: object) -> None:
    model = small("llama")
    model.config.alibi_positions = held
    with pytest.raises(ValueError, match=r"^model.config.alibi_positions: expected"):
        replace_positions(model)
    assert model.config.alibi_positions == held
    with pytest.raises(ValueError, match=r"^alibi_positions"):
        describe({**model.config.to_dict(), "alibi_positions": held})
    replace_positions(model, alibi_slopes(4))
