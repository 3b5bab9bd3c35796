"""Configurations of the families with linear biases, and what is said of them."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from alibi_attention import HorizonCache, alibi_slopes, certify
from alibi_attention.integrations.inspect import AlibiModel, NotAlibi, describe, read_config, report
from alibi_attention.integrations.inspect.description import rounding_of_positions

# As the models' own config.json have them, less what does not matter here.
BLOOM = {"model_type": "bloom", "n_head": 112, "n_embed": 14336, "n_layer": 70, "seq_length": 2048}
MPT = {
    "model_type": "mpt", "d_model": 4096, "n_heads": 32, "n_layers": 32, "max_seq_len": 65536, "use_cache": False,
    "torch_dtype": "bfloat16", "attn_config": {"alibi": True, "alibi_bias_max": 16, "clip_qkv": 6, "prefix_lm": False},
}  # fmt: skip
FALCON = {
    "model_type": "falcon", "alibi": True, "hidden_size": 2048, "num_attention_heads": 32, "num_hidden_layers": 24,
    "multi_query": False, "torch_dtype": "bfloat16",
}  # fmt: skip
BAICHUAN = {
    "model_type": "baichuan", "hidden_size": 5120, "num_attention_heads": 40, "num_hidden_layers": 40,
    "model_max_length": 4096, "torch_dtype": "bfloat16",
}  # fmt: skip
JAIS = {
    "model_type": "jais", "position_embedding_type": "alibi", "n_embd": 5120, "n_head": 40, "n_layer": 40,
    "n_positions": 2048, "mup_scale_qk_dot_by_d": True,
}  # fmt: skip
BTLM = {**JAIS, "model_type": "btlm", "n_embd": 2560, "n_head": 32, "n_layer": 32, "n_positions": 8192}
REPLIT = {
    "model_type": "mpt", "_name_or_path": "replit/replit-code-v1_5-3b", "d_model": 3072, "n_heads": 24, "n_layers": 32,
    "max_seq_len": 4096, "attn_config": {"alibi": True, "alibi_bias_max": 8, "kv_n_heads": 8},
}  # fmt: skip
REPLIT_V1 = {
    "model_type": "replit_lm", "alibi": True, "alibi_bias_max": 8, "d_model": 2560, "n_heads": 32, "n_layers": 32,
    "max_seq_len": 2048,
}  # fmt: skip
REFACT = {
    "model_type": "gpt_refact", "n_embd": 2048, "n_head": 32, "n_layer": 32, "n_positions": 4096, "multi_query": True,
}  # fmt: skip
BERT = {"model_type": "bert", "hidden_size": 768, "num_attention_heads": 12, "num_hidden_layers": 12}
JINA = {**BERT, "position_embedding_type": "alibi", "max_position_embeddings": 8192}
MOSAIC = {**BERT, "alibi_starting_size": 512, "max_position_embeddings": 512}
DNABERT = {**MOSAIC, "position_embedding_type": "absolute", "_name_or_path": "zhihan1996/DNABERT-2-117M"}
DATA2VEC = {
    "model": {
        "depth": 8, "num_heads": 12, "embed_dim": 768,
        "modalities": {"audio": {"use_alibi_encoder": True, "learned_alibi_scale": True, "alibi_scale": 0.5}},
    }
}  # fmt: skip

# layers, heads, key heads, head_dim, causal, length
SIZES: list[tuple[str, dict[str, Any], tuple[int, int, int, int, bool, int | None]]] = [
    ("BLOOM", BLOOM, (70, 112, 112, 128, True, 2048)),
    ("MPT", MPT, (32, 32, 32, 128, True, 65536)),
    ("Falcon", FALCON, (24, 32, 32, 64, True, None)),
    ("Baichuan-13B", BAICHUAN, (40, 40, 40, 128, True, 4096)),
    ("Jais", JAIS, (40, 40, 40, 128, True, 2048)),
    ("BTLM", BTLM, (32, 32, 32, 80, True, 8192)),
    ("Replit", REPLIT, (32, 24, 8, 128, True, 4096)),
    ("Replit", REPLIT_V1, (32, 32, 32, 80, True, 2048)),
    ("Refact", REFACT, (32, 32, 1, 64, True, 4096)),
    ("jina-embeddings-v2", JINA, (12, 12, 12, 64, False, 8192)),
    ("MosaicBERT or DNABERT-2", MOSAIC, (12, 12, 12, 64, False, 512)),
    ("DNABERT-2", DNABERT, (12, 12, 12, 64, False, 512)),
    ("data2vec 2", DATA2VEC, (8, 12, 12, 64, False, None)),
]

UNKNOWN = {
    "model_type": "newcomer", "alibi": True, "hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 2,
}  # fmt: skip


def of_mpt(**attention: Any) -> dict[str, Any]:
    return {**MPT, "attn_config": {"alibi": True, **attention}}


def nested(key: str) -> dict[str, Any]:
    config: dict[str, Any] = dict(BLOOM)
    for _ in range(3000):
        config = {key: config}
    return config


def nested_list() -> list[Any]:
    value: list[Any] = []
    for _ in range(3000):
        value = [value]
    return value


def holds_itself() -> dict[str, Any]:
    config: dict[str, Any] = {}
    config["one"] = config["other"] = config
    return config


def codes(model: AlibiModel) -> set[str]:
    return {trap.code for trap in model.traps}


@pytest.mark.parametrize(("family", "config", "sizes"), SIZES, ids=[str(n) for n in range(len(SIZES))])
def test_each_family_is_understood(family: str, config: dict[str, Any], sizes: tuple[Any, ...]) -> None:
    model = describe(config)
    assert model.family == family
    assert sizes == (model.layers, model.heads, model.kv_heads, model.head_dim, model.causal, model.length)
    assert model.scheme == "interleaved"
    assert ("interleaved-slopes" in codes(model)) == (model.heads not in (1, 2, 4, 8, 16, 32, 64))
    assert ("both-ways" in codes(model)) == (not model.causal)


def test_slopes() -> None:
    assert torch.equal(describe(BLOOM).slopes, alibi_slopes(112, "interleaved"))
    assert torch.equal(describe(MPT).slopes, alibi_slopes(32, bias_max=16.0))
    assert torch.equal(describe(FALCON).slopes, alibi_slopes(32) / 8)
    assert describe(FALCON).slope_note.startswith("divided by sqrt(head_dim) = 8")
    assert torch.equal(describe(DATA2VEC).slopes, alibi_slopes(12, "interleaved") / 2)
    assert torch.equal(describe({**JAIS, "alibi_scaling": {"factor": 4.0}}).slopes, alibi_slopes(40, "interleaved") / 4)


def test_scales() -> None:
    assert describe(JAIS).scale == 1 / 128
    assert describe({**JAIS, "mup_scale_qk_dot_by_d": False}).scale == 128**-0.5
    assert "scaled-by-d" in codes(describe(JAIS))
    assert "scaled-by-d" not in codes(describe(BLOOM))


def test_stock_models_have_these_slopes() -> None:
    transformers = pytest.importorskip("transformers")
    from transformers.models.bloom.modeling_bloom import build_alibi_tensor as bloom_bias
    from transformers.models.falcon.modeling_falcon import build_alibi_tensor as falcon_bias
    from transformers.models.mpt.modeling_mpt import build_mpt_alibi_tensor as mpt_bias

    mask = torch.ones(1, 2, dtype=torch.int64)
    for heads in (12, 16):
        bloom = transformers.BloomConfig(n_head=heads, hidden_size=96).to_dict()
        torch.testing.assert_close(bloom_bias(mask, heads, torch.float32)[:, 0, 1], describe(bloom).slopes)
        mpt = transformers.MptConfig(n_heads=heads, d_model=96).to_dict()
        torch.testing.assert_close(mpt_bias(heads, 2)[:, 0, 1] - mpt_bias(heads, 2)[:, 0, 0], describe(mpt).slopes)
        falcon = describe(transformers.FalconConfig(num_attention_heads=heads, hidden_size=96, alibi=True).to_dict())
        stock = falcon_bias(mask, heads, torch.float32)[:, 0, 1] / math.sqrt(96 // heads)
        torch.testing.assert_close(stock, falcon.slopes, rtol=2.0**-8, atol=0)  # bfloat16 rounds it
        assert falcon.kv_heads == 1


# Traps


def test_traps_of_mpt() -> None:
    assert codes(describe(MPT)) == {"bias-max-ignored", "length-cap", "no-cache"}
    assert "shared-keys" in codes(describe(REPLIT))
    attention = {"alibi": True, "qk_ln": True, "prefix_lm": True}
    changed = {**MPT, "attn_config": attention, "use_cache": True, "architectures": ["MptForCausalLM"]}
    assert codes(describe(changed)) == {"length-cap", "qk-norm-ignored", "prefix-lm", "spelling"}


def test_what_the_traps_of_mpt_say_is_so() -> None:
    transformers = pytest.importorskip("transformers")

    def logits(length: int = 8, **attention: Any) -> torch.Tensor:
        torch.manual_seed(0)
        config = transformers.MptConfig(
            d_model=16, n_heads=2, n_layers=1, max_seq_len=8, vocab_size=32, attn_config=attention
        )
        model = transformers.MptForCausalLM(config).eval()
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter)
        with torch.no_grad():
            out: torch.Tensor = model(torch.arange(length)[None]).logits
        return out

    stock = logits()
    for ignored in ({"alibi_bias_max": 16}, {"alibi": False}, {"qk_ln": True}, {"sliding_window_size": 2}):
        assert torch.equal(logits(**ignored), stock), ignored
    assert not torch.equal(logits(softmax_scale=0.9), stock)
    torch.testing.assert_close(logits(softmax_scale=8**-0.5), stock)
    assert transformers.MptConfig(attn_config={"attn_impl": "torch"}).attn_config.alibi is True
    assert transformers.MptConfig().use_cache is False
    with pytest.raises(RuntimeError):
        logits(length=9)


def test_mpt_that_leaves_defaults_unsaid() -> None:
    """Transformers' defaults, which its own files leave out."""
    silent = {key: value for key, value in MPT.items() if key not in ("use_cache", "attn_config")}
    for config in (silent, {**silent, "attn_config": {}}, {**silent, "attn_config": {"clip_qkv": 6}}):
        model = describe(config)
        assert codes(model) == {"alibi-unsaid", "length-cap", "no-cache"}
        assert torch.equal(model.slopes, alibi_slopes(32))
    texts = {trap.code: trap.text for trap in describe(silent).traps}
    assert "llm-foundry, which MPT was trained with, takes it for no" in texts["alibi-unsaid"]
    assert texts["no-cache"].startswith("use_cache is not set, and off by default: pass use_cache=True to generate()")
    assert "no-cache" not in codes(describe({**silent, "use_cache": True}))
    assert "alibi-unsaid" not in codes(describe(of_mpt(alibi=True)))


@pytest.mark.parametrize("config", [of_mpt(softmax_scale=0.5), {**REPLIT_V1, "softmax_scale": 0.5}])
def test_the_scale_that_mpt_says(config: dict[str, Any]) -> None:
    model = describe(config)
    assert model.scale == 0.5
    trap = next(trap for trap in model.traps if trap.code == "softmax-scale")
    assert trap.text.endswith("not by 1/sqrt(head_dim): pass scale=0.5 to our operator.")
    usual = describe(of_mpt(softmax_scale=None))
    assert usual.scale == 128**-0.5
    assert "softmax-scale" not in codes(usual)


@pytest.mark.parametrize("config", [of_mpt(sliding_window_size=4096), {**REPLIT_V1, "sliding_window_size": 4096}])
def test_the_window_that_mpt_says(config: dict[str, Any]) -> None:
    trap = next(trap for trap in describe(config).traps if trap.code == "sliding-window")
    assert trap.text.startswith("sliding_window_size is 4,096: a head sees that many tokens before each")
    assert trap.text.endswith("pass window=(4096, None) to our operator.")
    for open_window in ({"sliding_window_size": -1}, {"sliding_window_size": None}):
        assert "sliding-window" not in codes(describe(of_mpt(**open_window)))


SIZES_OF_ANY = {
    "vocab_size": 40, "hidden_size": 40, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1,
    "sep_token_id": 2,
}  # fmt: skip
# Heads of another size than the width says, scales and windows of their own.
ANY: list[tuple[str, dict[str, Any]]] = [
    ("qwen3", {"head_dim": 32}),
    ("qwen3", {"num_attention_heads": 6, "head_dim": 8}),
    ("qwen3", {"head_dim": 8, "use_sliding_window": True, "sliding_window": 7, "max_window_layers": 1}),
    ("qwen3", {"head_dim": 8, "use_sliding_window": False, "sliding_window": 7}),
    ("mistral", {"head_dim": 10, "sliding_window": 5}),
    ("gemma2", {"head_dim": 8, "query_pre_attn_scalar": 100, "sliding_window": 6, "attn_logit_softcapping": None}),
    ("granite", {"attention_multiplier": 0.5}),
    ("gpt2", {"scale_attn_weights": False}),
    ("modernbert", {"local_attention": 12}),
    ("modernbert-decoder", {"local_attention": 12}),
]


@pytest.mark.parametrize(("kind", "options"), ANY)
def test_what_is_said_of_replaced_models_is_what_they_do(
    kind: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    transformers = pytest.importorskip("transformers")
    from alibi_attention.integrations.transformers import general, replace_positions

    config = transformers.AutoConfig.for_model(kind, **SIZES_OF_ANY | options)
    auto = transformers.AutoModel if kind == "modernbert" else transformers.AutoModelForCausalLM
    model, calls, attend = replace_positions(auto.from_config(config).eval()), [], general.alibi_attention

    def watched(query: torch.Tensor, *arguments: Any, **given: Any) -> Any:
        calls.append((query.shape[-1], given["scale"], given["window"]))
        return attend(query, *arguments, **given)

    monkeypatch.setattr(general, "alibi_attention", watched)
    model(torch.arange(9)[None])
    found = model.config.to_dict()
    # By the keys of a family that is not known, too; that such a one looks both ways is not said.
    guessed = {name: each for name, each in found.items() if name != "alibi_positions"} | {"alibi": True}
    for said in [describe(found)] + [describe(guessed)] * (kind != "modernbert"):
        assert {head_dim for head_dim, _, _ in calls} == {said.head_dim}
        assert [scale for _, scale, _ in calls] == pytest.approx([said.scale] * len(calls))
        texts = {trap.code: trap.text for trap in said.traps}
        assert ("softmax-scale" in texts) == (said.scale != said.head_dim**-0.5)
        windows = [each for *_, each in calls if each is not None]
        assert ("sliding-window" in texts) == bool(windows)
        if windows:
            assert f"in {len(windows)} of {len(calls)} layers" in texts["sliding-window"]
            assert texts["sliding-window"].endswith(f"pass window={windows[0]} to our operator.")


def test_what_the_traps_of_falcon_say_is_so() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.FalconConfig(
        hidden_size=16, num_attention_heads=2, num_hidden_layers=1, vocab_size=32, alibi=True, multi_query=False
    )
    assert codes(describe(config.to_dict())) == {"rounded-bias", "divided-bias", "eager-twice"}
    outs = []
    for implementation in ("eager", "sdpa"):
        torch.manual_seed(0)
        model = transformers.FalconForCausalLM._from_config(config, attn_implementation=implementation).eval()
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
        with torch.no_grad():
            outs.append(model(torch.arange(32)[None]).logits)
    assert (outs[0] - outs[1]).abs().max() > 1e-2
    assert "rounded-slopes" in codes(describe(FALCON))


def test_the_slopes_that_enable_gives_a_falcon_are_said() -> None:
    """Where rounding changes them, the slopes shown are not what it computes with, and the formula given is."""
    transformers = pytest.importorskip("transformers")
    from alibi_attention.integrations.transformers.native import ALiBiFalconAttention

    for heads, changes in ((8, False), (12, True), (32, True)):
        config = transformers.FalconConfig(num_attention_heads=heads, hidden_size=heads * 24, alibi=True)
        enabled, model = ALiBiFalconAttention.slopes(config), describe(config.to_dict())
        text = {trap.code: trap.text for trap in model.traps}
        assert text["divided-bias"].endswith("Pass them as they are.") is not changes
        assert ("rounded-slopes" in text) is changes
        # By half a step of bfloat16 at most, against a step of float32.
        off = float((model.slopes / enabled - 1).abs().max())
        assert (2.0**-14 < off <= 2.0**-8) if changes else off < 2.0**-22
        if changes:
            formula = re.search(r"computes with the rounded ones, (.*)\.$", text["rounded-slopes"])
            assert formula
            given = eval(formula[1], {"alibi_slopes": alibi_slopes})
            torch.testing.assert_close(given, enabled, rtol=2.0**-22, atol=0)


def test_rounding_of_the_bias() -> None:
    # A slope of 1/2 at 8192 tokens: positions to 4096, which bfloat16 holds in steps of 16.
    assert rounding_of_positions(torch.tensor([0.5]), 8192, torch.bfloat16) == 8.0
    assert rounding_of_positions(torch.tensor([0.5]), 256, torch.bfloat16) == 0.0
    assert "rounded-bias" not in codes(describe(BLOOM))
    rounded = next(t for t in describe({**BLOOM, "dtype": "bfloat16"}).traps if t.code == "rounded-bias")
    assert "rounds it to bfloat16: at 2,048 tokens the bias is off by up to 4 nats" in rounded.text


@pytest.mark.parametrize("length", [2**15 + 1, 40_000, 131_072])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rounding_of_the_bias_is_found_without_trying_every_position(length: int, dtype: torch.dtype) -> None:
    slopes = torch.cat([alibi_slopes(7, "interleaved") / 2, (alibi_slopes(12, "interleaved") / 8).bfloat16().float()])
    exact = slopes.double().unsqueeze(1) * torch.arange(length)
    by_slope = (exact.to(dtype).double() - exact).abs().amax(1)
    for slope, expected in zip(slopes, by_slope.tolist(), strict=True):
        assert rounding_of_positions(slope[None], length, dtype) == expected
    assert rounding_of_positions(slopes, length, dtype) == by_slope.max()


@pytest.mark.parametrize(
    "config", [{**BLOOM, "dtype": "bfloat16", "seq_length": 2**40}, {**FALCON, "n_positions": 2**40}]
)
def test_a_length_that_no_memory_holds(config: dict[str, Any]) -> None:
    text = next(trap.text for trap in describe(config).traps if trap.code == "rounded-bias")
    assert "at 1,099,511,627,776 tokens the bias is off by up to" in text
    # Products up to 2^39.5, between numbers 2^32 apart.
    assert rounding_of_positions(alibi_slopes(16), 2**40, torch.bfloat16) == pytest.approx(2.0**31, rel=1e-6)


def test_other_traps() -> None:
    dense = next(trap for trap in describe(BAICHUAN).traps if trap.code == "dense-bias")
    assert "where positions are rounded: 1.2 GiB at 4,096 tokens" in dense.text  # 40 * 4096^2 * 2 bytes
    assert "plain-bert" in codes(describe(JINA))
    assert "plain-bert" in codes(describe(DNABERT))
    assert "learned-scale" in codes(describe(DATA2VEC))
    scaled = describe({**JAIS, "alibi_scaling": {"type": "dynamic", "train_seq_len": 2048}})
    assert "scaled-by-length" in codes(scaled)
    assert torch.equal(scaled.slopes, describe(JAIS).slopes)
    unknown = {"model_type": "newcomer", "alibi": True, "hidden_size": 64, "num_attention_heads": 4}
    assert "guessed" in codes(describe({**unknown, "num_hidden_layers": 2}))
    with pytest.raises(ValueError, match=r"^n_layer: expected in the configuration, got none"):
        describe(unknown)


@pytest.mark.parametrize(
    ("config", "text"),
    [
        ({"model_type": "llama"}, "model_type 'llama': no sign of linear biases"),
        ({}, "a configuration without model_type"),
        ({**MPT, "attn_config": {"alibi": False}}, "MPT with attn_config.alibi off"),
        ({**FALCON, "alibi": False}, "Falcon with alibi off: rotary"),
        ({**BAICHUAN, "hidden_size": 4096, "num_attention_heads": 32}, "Baichuan of width 4096"),
        ({**JAIS, "position_embedding_type": "learned"}, "Jais with position_embedding_type 'learned'"),
        (BERT, "BERT without alibi_starting_size"),
        ({"model_type": "x", "text_config": {"model_type": "llama"}}, "model_type 'llama'"),
    ],
)
def test_models_without_linear_biases(config: dict[str, Any], text: str) -> None:
    with pytest.raises(NotAlibi) as error:
        describe(config)
    assert str(error.value).startswith(text)


@pytest.mark.parametrize(
    ("config", "text"),
    [
        ([], "config: expected a JSON object, got list"),
        ({**BLOOM, "n_head": "many"}, "n_head: expected an integer of at least 1, got 'many'"),
        ({**BLOOM, "n_embed": 100}, "n_embed: expected a multiple of the 112 heads, got 100"),
        ({**BLOOM, "n_head": 0}, "n_head: expected an integer of at least 1, got 0"),
        ({**BLOOM, "n_head": -16}, "n_head: expected an integer of at least 1, got -16"),
        ({**BLOOM, "n_head": True}, "n_head: expected an integer of at least 1, got True"),
        ({**BLOOM, "n_head": 10**7, "n_embed": 10**7}, "n_head: expected an integer of at most 1,024, got 10000000"),
        ({**BLOOM, "seq_length": -1}, "seq_length: expected an integer of at least 1, got -1"),
        ({**BLOOM, "seq_length": "2048"}, "seq_length: expected an integer of at least 1, got '2048'"),
        ({**BLOOM, "seq_length": 2**41}, "seq_length: expected an integer of at most 1,099,511,627,776, got 2199"),
        ({**BLOOM, "n_embed": 112 * 10**400}, "n_embed: expected an integer of at most 1,099,511,627,776, got 112000"),
        ({**BLOOM, "n_layer": 10**400}, "n_layer: expected an integer of at most 1,099,511,627,776, got 10000"),
        ({**FALCON, "hidden_size": 10**400}, "hidden_size: expected an integer of at most 1,099,511,627,776, got 100"),
        (of_mpt(softmax_scale="wide"), "attn_config.softmax_scale: expected a number above 0, got 'wide'"),
        (of_mpt(sliding_window_size="wide"), "attn_config.sliding_window_size: expected -1 or an integer from 0"),
        (of_mpt(sliding_window_size=-2), "attn_config.sliding_window_size: expected -1 or an integer from 0"),
        (of_mpt(sliding_window_size=True), "attn_config.sliding_window_size: expected -1 or an integer from 0"),
        (nested("text_config"), "config: expected objects within one another at most 32 deep, got deeper ones"),
        (nested("part"), "config: expected objects within one another at most 32 deep, got deeper ones"),
        (holds_itself(), "config: expected objects within one another at most 32 deep, got deeper ones"),
        ({"model_type": nested_list()}, "config: expected objects within one another at most 32 deep"),
        ({**BLOOM, "dtype": 7}, "dtype: expected the name of a dtype, such as 'bfloat16', got 7"),
        ({**MPT, "attn_config": "alibi"}, "attn_config: expected an object, got 'alibi'"),
        ({**MPT, "attn_config": [1]}, "attn_config: expected an object, got [1]"),
        (of_mpt(alibi="yes"), "attn_config.alibi: expected true or false, got 'yes'"),
        (of_mpt(alibi_bias_max="8"), "attn_config.alibi_bias_max: expected a number above 0 and at most 126, got '8'"),
        (of_mpt(alibi_bias_max=0), "attn_config.alibi_bias_max: expected a number above 0 and at most 126, got 0"),
        (of_mpt(alibi_bias_max=True), "attn_config.alibi_bias_max: expected a number above 0 and at most 126, got Tr"),
        (of_mpt(alibi_bias_max=math.nan), "attn_config.alibi_bias_max: expected a number above 0 and at most 126"),
        (of_mpt(alibi_bias_max=10**400), "attn_config.alibi_bias_max: expected a number above 0 and at most 126"),
        (of_mpt(kv_n_heads=5), "attn_config.kv_n_heads: expected a number that divides the 32 heads of queries, got 5"),
        (of_mpt(kv_n_heads=64), "attn_config.kv_n_heads: expected a number that divides the 32 heads of queries"),
        ({**FALCON, "alibi": "true"}, "alibi: expected true or false, got 'true'"),
        ({**FALCON, "multi_query": "no"}, "multi_query: expected true or false, got 'no'"),
        ({**JAIS, "alibi_scaling": 4.0}, "alibi_scaling: expected an object, got 4.0"),
        ({**JAIS, "alibi_scaling": {"factor": 0}}, "alibi_scaling.factor: expected a number above 0, got 0"),
        ({**JAIS, "alibi_scaling": {"factor": -2.0}}, "alibi_scaling.factor: expected a number above 0, got -2.0"),
        ({**JAIS, "alibi_scaling": {"factor": "two"}}, "alibi_scaling.factor: expected a number above 0, got 'two'"),
        ({**JAIS, "alibi_scaling": {"train_seq_len": "x"}}, "train_seq_len: expected an integer of at least 1, got"),
        ({**DATA2VEC, "alibi_scale": -1, "use_alibi_encoder": True}, "alibi_scale: expected a number above 0, got -1"),
        ({**UNKNOWN, "num_key_value_heads": 3}, "num_key_value_heads: expected a number that divides the 4 heads"),
        ({**UNKNOWN, "alibi": "True"}, "alibi: expected true or false, got 'True'"),
        ({**UNKNOWN, "hidden_size": 66}, "hidden_size: expected a multiple of the 4 heads, got 66"),
        ({**UNKNOWN, "head_dim": 0}, "head_dim: expected an integer of at least 1, got 0"),
        ({**UNKNOWN, "sliding_window": "wide"}, "sliding_window: expected -1 or an integer from 0"),
        ({**UNKNOWN, "query_pre_attn_scalar": 0}, "query_pre_attn_scalar: expected a number above 0, got 0"),
        ({"model_type": "bloom"}, "n_head: expected in the configuration, got none"),
    ],
)
def test_damaged_configurations(config: Any, text: str) -> None:
    with pytest.raises(ValueError, match="expected") as error:
        describe(config)
    assert not isinstance(error.value, NotAlibi)
    assert str(error.value).startswith(text)
    if config:
        assert str(error.value).endswith("; mend the configuration")


def test_a_file_nested_too_deeply(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_text('{"part": ' * 100_000 + "1" + "}" * 100_000, encoding="utf-8")
    with pytest.raises(ValueError, match=r"^expected JSON, got .*config\.json, nested too deeply; restore it"):
        read_config(str(file))


def test_a_model_inside_a_model() -> None:
    assert describe({"model_type": "llava_mpt", "text_config": MPT}).family == "MPT"


# Windows and memory


def test_windows_by_their_formula() -> None:
    result = report(describe(MPT), logit_bound=5.0)
    flattest = 2.0**16
    assert float(result.guaranteed[-1]) == math.ceil((2 * 5 + 24 * math.log(2)) * flattest)
    assert float(result.typical[-1]) == math.ceil((5 - 0.5 + 24 * math.log(2)) * flattest)
    assert result.spans[-1].tolist() == [flattest, 5 * flattest, 10 * flattest]
    assert report(describe(MPT)).logit_bound == math.sqrt(128)


def test_typical_windows_are_those_of_unit_normal_queries_and_keys() -> None:
    config = {"model_type": "bloom", "n_head": 8, "n_embed": 512, "n_layer": 1}
    predicted = report(describe(config)).typical
    torch.manual_seed(0)
    query, key = (torch.randn(1, 8, 16384, 64) for _ in range(2))
    last = certify(query[:, :, -128:], key, alibi_slopes(8))
    measured = last.window[0, :, 0].double()
    # Whole tiles: up to 64 keys more on the left, up to 127 for the first query of the block.
    for head in range(8):
        assert abs(measured[head] - predicted[head]) < 0.25 * predicted[head] + 192, head


def test_memory() -> None:
    result = report(describe({**REPLIT, "dtype": "bfloat16"}), lengths=[64, 10**6])
    short, long = result.memory
    token = 2 * 32 * 128 * 2
    assert short.full == token * 8 * 64
    assert short.keys_read < 64
    assert long.full == token * 8 * 10**6
    # At least what each key head needs for the flattest of its three query heads.
    widest = result.guaranteed.view(8, 3).amax(1)
    assert token * float(widest.sum()) < long.horizon < long.full
    assert long.keys_read == pytest.approx(float(result.typical.mean()))
    assert result.element_bytes == 2
    assert report(describe({**REPLIT, "dtype": "float32"}), lengths=[1]).memory[0].full == 2 * token * 8
    assert report(describe(JINA)).memory == ()
    assert [m.length for m in report(describe(MPT)).memory] == [65536, 4 * 65536, 16 * 65536, 64 * 65536]
    assert report(describe({**MPT, "torch_dtype": "float64"})).tolerance == 2.0**-53


SMALL = {
    "model_type": "mpt", "d_model": 64, "n_heads": 8, "n_layers": 3, "max_seq_len": 2048,
    "attn_config": {"alibi": True, "alibi_bias_max": 7, "kv_n_heads": 4},
}  # fmt: skip


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
def test_memory_is_what_a_horizon_cache_allocates(dtype: str) -> None:
    """To the byte: at every length, before, while and after its windows fill."""
    model = describe({**SMALL, "torch_dtype": dtype})
    lengths = (100, 1000, 2048, 3000, 4608, 7000, 9000, 12000)
    reckoned = report(model, lengths=lengths, logit_bound=1.5)
    assert reckoned.chunk == 512
    caps = {"query_norm": 3.0, "key_norm": 0.5 / model.scale}
    draw = torch.Generator().manual_seed(0)
    held = {}
    for length in lengths:
        cache = HorizonCache("guaranteed", **caps)
        for at in range(0, length, 512):
            tokens = min(512, length - at)
            unit = torch.randn(1, 8, tokens, 8, generator=draw, dtype=torch.float64)
            # A little below their caps, which bfloat16 would round some above.
            unit = (0.99 * torch.nn.functional.normalize(unit, dim=-1)).to(getattr(torch, dtype))
            # Keys in pairs of opposites: their mean is 0, exactly.
            key = unit[:, :4]
            key = torch.cat([key[:, :, : tokens // 2], -key[:, :, : tokens // 2]], 2) * caps["key_norm"]
            cache.append(key, key)
            cache.attend(unit * caps["query_norm"], model.slopes, scale=model.scale)
        assert cache.length == length
        held[length] = cache.bytes_held
    assert bool((cache.certificate().evicted > 0).all())  # every window is full
    assert [memory.horizon for memory in reckoned.memory] == [model.layers * held[length] for length in lengths]
    assert reckoned.memory[-1].horizon == reckoned.memory[-2].horizon  # and stays


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"lengths": []}, "lengths: expected one or more"),
        ({"lengths": [0]}, "lengths: expected one or more"),
        ({"lengths": [10**30]}, "lengths: expected one or more numbers of tokens, each from 1 to 2^46, got [1000"),
        ({"logit_bound": -1.0}, "logit_bound: expected a finite number of at least 0, got -1.0"),
        ({"logit_bound": math.nan}, "logit_bound: expected a finite number of at least 0, got nan"),
    ],
)
def test_assumptions_that_cannot_be(options: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match="expected") as error:
        report(describe(MPT), **options)
    assert str(error.value).startswith(text)


def test_configurations_are_json() -> None:
    for _, config, _ in SIZES:
        assert describe(json.loads(json.dumps(config))).heads
