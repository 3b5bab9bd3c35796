"""generate() with an enabled model: the stock model's tokens, by every kind of cache, reading only what is near."""

from __future__ import annotations

import copy
import pickle
import shutil
from typing import Any

import pytest

pytest.importorskip("transformers")

import torch
from hf_models import KINDS, padding, small, tokens
from torch import Tensor
from transformers import Cache, CompileConfig, DynamicCache, StaticCache
from transformers.cache_utils import DynamicLayer

from alibi_attention.cache import HorizonViolation, KVCache
from alibi_attention.integrations.transformers import disable, enable, horizon_cache, kv_cache
from alibi_attention.integrations.transformers.cache import KVLayer

FAMILIES = ("bloom", "mpt", "falcon")
PROMPTS = [11, 7, 2]


def prompts() -> dict[str, Tensor]:
    return {"input_ids": tokens(3, 11), "attention_mask": padding(PROMPTS, 11, "left")}


def generated(model, *, count: int = 12, **options) -> Tensor:
    torch.manual_seed(1)
    return model.generate(**{**prompts(), "do_sample": False, **options}, max_new_tokens=count)


WAYS = {
    "greedy": {},
    "unpadded": {"attention_mask": torch.ones(3, 11)},
    "sampling": {"do_sample": True, "temperature": 1.3, "top_k": 20},
    "beams": {"num_beams": 3},
    "several": {"do_sample": True, "num_return_sequences": 2},
    "without a cache": {"use_cache": False},
    "prompt lookup": {"input_ids": tokens(1, 11), "attention_mask": torch.ones(1, 11), "prompt_lookup_num_tokens": 3},
    "chunked prefill": {"prefill_chunk_size": 4},
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", KINDS)
def test_tokens_are_those_of_the_stock_model(kind: str, way: str):
    model = small(kind)
    expected = generated(model, **WAYS[way])
    assert torch.equal(generated(enable(model), **WAYS[way]), expected)


@pytest.mark.parametrize("heads", [4, 6, 12, 40])
@pytest.mark.parametrize("kind", KINDS)
def test_greedy_tokens_for_every_number_of_heads(kind: str, heads: int):
    model = small(kind, heads)
    expected = generated(model, count=20)
    assert torch.equal(generated(enable(model), count=20), expected)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("side", ["left", None])
def test_static_cache(kind: str, side: str | None):
    model = small(kind)
    mask = {} if side else {"attention_mask": torch.ones(3, 11)}
    expected = generated(model, **mask)
    model = enable(model)
    assert torch.equal(generated(model, cache_implementation="static", disable_compile=True, **mask), expected)


@pytest.mark.parametrize("way", ["sampling", "beams", "several"])
@pytest.mark.parametrize("kind", KINDS)
def test_static_cache_in_other_ways(kind: str, way: str):
    model, static = small(kind), {"cache_implementation": "static", "disable_compile": True}
    expected = generated(model, **WAYS[way])
    assert torch.equal(generated(enable(model), **static, **WAYS[way]), expected)


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.parametrize("side", ["left", None])
@pytest.mark.parametrize("kind", KINDS)
def test_static_cache_compiled_into_one_graph(kind: str, side: str | None):
    model = small(kind)
    mask = {} if side else {"attention_mask": torch.ones(3, 11)}
    expected = generated(model, **mask)
    torch.compiler.reset()
    compile_config = CompileConfig(fullgraph=True, backend="aot_eager", mode=None)
    compile_config._compile_all_devices = True  # Transformers compiles on accelerators alone unless told so
    with torch._dynamo.config.patch(error_on_recompile=True):
        out = generated(enable(model), cache_implementation="static", compile_config=compile_config, **mask)
    assert hasattr(model, "_compiled_call")
    assert torch.equal(out, expected)
    torch.compiler.reset()


@pytest.mark.skipif(shutil.which("c++") is None, reason="Inductor needs a C++ compiler")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_static_cache_compiled_into_code():
    model = small("bloom")
    expected = generated(model)
    torch.compiler.reset()
    compile_config = CompileConfig(fullgraph=True, backend="inductor", mode=None)
    compile_config._compile_all_devices = True
    out = generated(enable(model), cache_implementation="static", compile_config=compile_config)
    assert hasattr(model, "_compiled_call")
    assert torch.equal(out, expected)
    torch.compiler.reset()


# The layers of a growing cache


def test_a_plain_dynamic_cache_gets_layers_that_keep_a_summary():
    model, cache = enable(small("bloom")), DynamicCache()
    generated(model, past_key_values=cache)
    assert [type(layer) for layer in cache.layers] == [KVLayer, KVLayer]
    assert all(isinstance(layer.cache, KVCache) for layer in cache.layers)
    assert cache.get_seq_length() == 11 + 12 - 1


@pytest.mark.parametrize("kind", KINDS)
def test_a_cache_filled_by_the_stock_model_is_taken_over_and_handed_back(kind: str):
    model, ids = small(kind), tokens(1, 30)
    with torch.no_grad():
        expected = model(ids).logits
        cache = DynamicCache(config=model.config)
        model(ids[:, :10], past_key_values=cache, use_cache=True)
        if kind not in ("bloom", "mpt"):
            # Falcon's keys carry the rounding of its biases while it is enabled: the two do not mix.
            with pytest.raises(
                ValueError, match=r"past_key_values: expected . heads of keys of .* start again with another cache"
            ):
                enable(model)(ids[:, 10:20], past_key_values=cache, use_cache=True)
            return
        enable(model)
        second = model(ids[:, 10:20], past_key_values=cache, use_cache=True).logits
        assert isinstance(cache.layers[0], KVLayer)
        disable(model)
        third = model(ids[:, 20:], past_key_values=cache, use_cache=True).logits
    assert (torch.cat([second, third], 1) - expected[:, 10:]).abs().max() <= 1e-4


@pytest.mark.parametrize("kind", KINDS)
def test_a_prompt_padded_on_the_right_is_not_continued(kind: str):
    model, ids, mask = enable(small(kind)), tokens(2, 8), padding([8, 5], 8, "right")
    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        model(ids, attention_mask=mask, past_key_values=cache, use_cache=True)
        longer = torch.cat([mask, torch.ones(2, 1, dtype=mask.dtype)], 1)
        with pytest.raises(ValueError, match=r"padding between tokens in rows .1.*becomes a hole"):
            model(ids[:, :1], attention_mask=longer, past_key_values=cache, use_cache=True)


@pytest.mark.parametrize("make", [kv_cache, horizon_cache])
def test_a_cache_goes_on_with_a_longer_text_and_refuses_a_shorter_one(make):
    model, ids = enable(small("bloom")), tokens(1, 9)
    cache = make(model)
    said = model.generate(ids, do_sample=False, max_new_tokens=4, past_key_values=cache)
    longer = torch.cat([said, tokens(1, 5)], 1)
    more = {"do_sample": False, "max_new_tokens": 6}
    assert torch.equal(model.generate(longer, past_key_values=cache, **more), model.generate(longer, **more))
    with pytest.raises(ValueError, match=r"input_ids: expected tokens beyond the \d+ in the cache.*new cache"):
        model.generate(ids, past_key_values=cache, **more)


def test_a_cache_that_changes_its_mind_about_padding_is_refused():
    model, ids, mask = enable(small("bloom")), tokens(2, 8), padding([8, 5], 8, "left")
    one = torch.ones(2, 1, dtype=mask.dtype)
    with torch.no_grad():
        cache = model(ids, attention_mask=mask, use_cache=True).past_key_values
        for other, got in ((None, "None"), (padding([9, 4], 9, "left"), "another padding")):
            with pytest.raises(ValueError, match=f"what it said before of the 8 tokens in the cache, got {got}"):
                model(ids[:, :1], attention_mask=other, past_key_values=copy.deepcopy(cache), use_cache=True)
        model(ids[:, :1], attention_mask=torch.cat([mask, one], 1), past_key_values=cache, use_cache=True)
    assert cache.get_seq_length() == 9


LEAVING = {
    "selected": lambda cache: cache.batch_select_indices(torch.tensor([True, False])),
    "reordered": lambda cache: cache.reorder_cache(torch.tensor([0])),
    "cropped": lambda cache: cache.crop(-8),
}


@pytest.mark.parametrize("way", LEAVING)
@pytest.mark.parametrize("make", [kv_cache, horizon_cache])
def test_padding_that_has_left_need_not_be_spoken_of(make, way: str):
    """A batch without its padded row, or without its padded tokens, is one that never had any."""
    model, ids, mask = enable(small("bloom")), tokens(2, 8), padding([8, 5], 8, "left")
    cache = make(model)
    with torch.no_grad():
        model(ids, attention_mask=mask, past_key_values=cache, use_cache=True)
        LEAVING[way](cache)
        kept = ids[:, :0] if way == "cropped" else ids[:1]
        more = tokens(len(kept), 4, seed=1)
        out = model(more, past_key_values=cache, use_cache=True).logits
        expected = model(torch.cat([kept, more], 1), use_cache=False).logits[:, -4:]
    assert (out - expected).abs().max() <= 1e-4


def test_training_on_a_cached_prompt_keeps_the_graph():
    model, ids = small("bloom"), tokens(1, 20)
    grads = []
    for prepare in (disable, enable):
        prepare(model).zero_grad()
        with torch.no_grad():
            cache = model(ids[:, :10], use_cache=True).past_key_values
        model(ids[:, 10:], past_key_values=cache, labels=ids[:, 10:]).loss.backward()
        grads.append(model.transformer.h[0].self_attention.query_key_value.weight.grad.clone())
        assert type(cache.layers[0]) is type(DynamicCache(config=model.config).layers[0])
    torch.testing.assert_close(grads[1], grads[0], rtol=1e-3, atol=1e-5)


def test_the_layer_keeps_the_books_of_transformers():
    model, ids = enable(small("bloom")), tokens(2, 12)
    with torch.no_grad():
        expected = model(ids).logits
        cache = model(torch.cat([ids[:, :8], ids[:, :3]], 1), use_cache=True).past_key_values
        cache.crop(-3)
        assert cache.get_seq_length() == 8
        cache.batch_repeat_interleave(2)
        cache.reorder_cache(torch.tensor([3, 3, 0]))
        cache.batch_select_indices(torch.tensor([True, False, True]))
        assert cache.batch_size == 2
        out = model(ids.flip(0)[:, 8:], past_key_values=cache, use_cache=True).logits
    assert (out - expected.flip(0)[:, 8:]).abs().max() <= 1e-4
    cache.reset()
    assert (cache.get_seq_length(), cache.layers[0].keys, cache.layers[0].values) == (0, None, None)
    with pytest.raises(NotImplementedError, match=r"expected without offloading; DynamicCache\(offloading=True\)"):
        cache.layers[0].offload()


@pytest.mark.parametrize("way", ["greedy", "beams"])
def test_room_is_made_at_once(way: str):
    model = small("mpt")
    expected = generated(model, **WAYS[way])
    cache = kv_cache(enable(model), capacity=500)
    assert isinstance(cache, Cache)
    assert torch.equal(generated(model, past_key_values=cache, **WAYS[way]), expected)
    rows = 3 * WAYS[way].get("num_beams", 1)
    assert cache.layers[0].keys.untyped_storage().nbytes() == rows * 4 * 8 * 512 * 4


def test_a_step_reads_only_what_is_near():
    """Old keys and values that are beyond every horizon may be anything at all, once they are summarised."""
    model, ids = enable(small("bloom")), tokens(1, 3000)
    with torch.no_grad():
        cache = model(ids, use_cache=True).past_key_values
        spoilt = copy.deepcopy(cache)
        for layer in spoilt.layers:
            # The steepest head: 1/4 of a nat a token.
            layer.keys[:, 0, 64:512] = torch.nan
            layer.values[:, 0, 64:512] = torch.nan
        steps = [model(ids[:, :1], past_key_values=each, use_cache=True).logits for each in (cache, spoilt)]
    assert steps[0].isfinite().all()
    assert torch.equal(*steps)


@pytest.mark.parametrize("kind", KINDS)
def test_a_static_cache_used_by_hand(kind: str):
    model, ids = enable(small(kind)), tokens(2, 12)
    with torch.no_grad():
        expected = model(ids).logits
        cache = StaticCache(config=model.config, max_cache_len=16)
        parts = [model(part, past_key_values=cache, use_cache=True).logits for part in ids.split([7, 1, 4], dim=1)]
    assert (torch.cat(parts, 1) - expected).abs().max() <= 1e-4


def test_a_static_cache_that_is_full_is_called_so():
    model, ids, mask = enable(small("bloom")), tokens(2, 12), torch.ones(2, 12, dtype=torch.long)
    mask[0, :3] = 0
    cache = StaticCache(config=model.config, max_cache_len=16)
    with pytest.raises(ValueError, match=r"^past_key_values: expected room for the 17 tokens .* fixed length 16,"):
        model.generate(
            ids, attention_mask=mask, past_key_values=cache, max_new_tokens=8, do_sample=False, eos_token_id=None
        )


# Constant memory


@pytest.mark.parametrize("kind", FAMILIES)
def test_a_horizon_cache_forgets_and_says_so(kind: str):
    """Steep heads and gentle scores: a long text leaves most of itself behind, and the tokens stay the same."""
    model, ids = enable(small(kind, initializer_range=0.05), falcon_rounding=False), tokens(1, 4000)
    full, cache = kv_cache(model), horizon_cache(model)
    with torch.no_grad():
        for part in ids.split(400, dim=1):
            expected, out = (model(part, past_key_values=each, use_cache=True).logits for each in (full, cache))
            assert (out - expected).abs().max() <= 1e-5
    for layer in cache.layers:
        certificate = layer.cache.certificate()
        assert certificate.length == 4000
        assert min(certificate.evicted[:2].tolist()) >= 1024
        assert certificate.bytes_held < full.layers[0].cache.bytes_held
        assert certificate.violations == 0
        assert certificate.dropped_share <= 2.0**-24


LONG = {
    "greedy": {},
    "unpadded": {"attention_mask": torch.ones(3, 3600)},
    "sampling": {"do_sample": True, "temperature": 1.3, "top_k": 20},
    "beams": {"num_beams": 3},
    "chunked prefill": {"prefill_chunk_size": 300},
}


def long_prompts() -> dict[str, Tensor]:
    """Long enough that keys of the three steepest heads go, with the padding of one row and inside that of another."""
    return {"input_ids": tokens(3, 3600), "attention_mask": padding([3600, 3300, 1700], 3600, "left")}


@pytest.mark.parametrize("way", LONG)
@pytest.mark.parametrize("kind", FAMILIES)
def test_generate_with_keys_gone(kind: str, way: str):
    model = enable(small(kind), falcon_rounding=False)
    how = {**long_prompts(), **LONG[way]}
    expected = generated(model, count=30, **how, past_key_values=kv_cache(model))
    cache = horizon_cache(model)
    assert torch.equal(generated(model, count=30, **how, past_key_values=cache), expected)
    for layer in cache.layers:
        certificate = layer.cache.certificate()
        assert certificate.length == 3600 + 30 - 1
        assert min(certificate.evicted[:2].tolist()) >= 512
        assert certificate.violations == 0
        assert 0.0 < certificate.dropped_share <= 2.0**-24


@pytest.mark.parametrize(
    ("kind", "length", "way"),
    [("falcon-gqa", 3600, "greedy"), ("falcon-gqa", 3600, "beams"), ("falcon-mqa", 27_000, "sampling")],
)
def test_generate_with_keys_gone_that_heads_share(kind: str, length: int, way: str):
    """A head of keys keeps what the flattest of its queries needs; Falcon's last reaches some 25,000 tokens."""
    model = enable(small(kind, initializer_range=0.05), falcon_rounding=False)
    how = {"input_ids": tokens(2, length), "attention_mask": padding([length, length - 300], length, "left")}
    how |= LONG[way]
    expected = generated(model, count=30, **how, past_key_values=kv_cache(model))
    cache = horizon_cache(model)
    assert torch.equal(generated(model, count=30, **how, past_key_values=cache), expected)
    for layer in cache.layers:
        certificate = layer.cache.certificate()
        assert certificate.evicted[0] >= 512
        assert certificate.violations == 0
        assert 0.0 < certificate.dropped_share <= 2.0**-24


@pytest.mark.parametrize("kind", FAMILIES)
def test_generate_asks_the_full_cache_where_keys_are_missing(kind: str):
    """A window far too small: nearly every step is answered from the full cache beside it."""
    model = enable(small(kind), falcon_rounding=False)
    how = {**long_prompts(), **LONG["beams"]}
    expected = generated(model, **how, past_key_values=kv_cache(model))
    cache = horizon_cache(model, window=10, on_violation="refetch", backing="cpu")
    assert torch.equal(generated(model, **how, past_key_values=cache), expected)
    for layer in cache.layers:
        assert layer.cache.certificate().refetches >= 10
    with pytest.raises(HorizonViolation, match="evicted keys may hold up to"):
        generated(model, **how, past_key_values=horizon_cache(model, window=10))


@pytest.mark.parametrize("layer", [0, 1])
def test_a_cache_whose_attention_failed_goes_no_further(layer: int):
    """A query above its cap is refused when its tokens are in the layer; in the last one all hold as many."""
    model, ids = enable(small("bloom")), tokens(1, 40)
    cache = horizon_cache(model, mode="guaranteed", query_norm=1e3, key_norm=1e3)
    with torch.no_grad():
        expected = model(ids[:, :20], past_key_values=cache, use_cache=True).logits
        query = model.transformer.h[layer].self_attention.query_key_value.weight.view(4, 3, 8, 32)[:, 0]
        kept = query.clone()
        query *= 1e6
        with pytest.raises(ValueError, match="query: expected norms up to the cap query_norm, 1000"):
            model(ids[:, 20:25], past_key_values=cache, use_cache=True)
        query.copy_(kept)
        assert [each.get_seq_length() for each in cache.layers] == [25, 20 + 5 * layer]
        with pytest.raises(ValueError, match=r"whose layers hold the same tokens, got .*: call cache\.reset\(\)"):
            model(ids[:, 20:25], past_key_values=cache, use_cache=True)
        cache.reset()
        assert torch.equal(model(ids[:, :20], past_key_values=cache, use_cache=True).logits, expected)


@pytest.mark.parametrize("last", [False, True])
def test_a_cache_that_a_violation_has_cut_short_goes_no_further(last: bool):
    """The layers before the one that raised have the tokens of the step, those behind it lack them."""
    model, ids = enable(small("bloom")), tokens(1, 2600)
    cache, wide = horizon_cache(model, window=10), horizon_cache(model)
    if last:
        cache.layers[0] = wide.layers[0]
    at = 0
    with torch.no_grad():
        failed = False
        while not failed:
            try:
                model(ids[:, at : at + 200], past_key_values=cache, use_cache=True)
                at += 200
            except HorizonViolation:
                failed = True
        assert [layer.get_seq_length() for layer in cache.layers] == [at + 200, at + 200 * last]
        for _ in range(2):
            with pytest.raises(ValueError, match=r"whose layers hold the same tokens, got .*: call cache\.reset\(\)"):
                model(ids[:, at : at + 1], past_key_values=cache, use_cache=True)
        cache.reset()
        out = model(ids[:, :20], past_key_values=cache, use_cache=True).logits
        assert (out - model(ids[:, :20]).logits).abs().max() <= 1e-4


@pytest.mark.parametrize("make", [kv_cache, horizon_cache, lambda model: DynamicCache(config=model.config)])
@pytest.mark.parametrize("first", [0, 9])
def test_a_step_that_was_interrupted_between_layers_is_noticed(make, first: int):
    model, ids = enable(small("bloom")), tokens(1, 12)
    cache = make(model)

    def interrupt(*_) -> None:
        raise KeyboardInterrupt

    with torch.no_grad():
        if first:
            model(ids[:, :first], past_key_values=cache, use_cache=True)
        hook = model.transformer.h[0].mlp.register_forward_hook(interrupt)
        with pytest.raises(KeyboardInterrupt):
            model(ids[:, first : first + 2], past_key_values=cache, use_cache=True)
        hook.remove()
        with pytest.raises(
            ValueError,
            match=rf"the same tokens, got {first} in layer 1 and {first + 2} in the first; a step that is cut",
        ):
            model(ids[:, first : first + 1], past_key_values=cache, use_cache=True)


def test_horizon_caches_are_refused_where_they_would_mislead():
    model, ids = small("bloom"), tokens(1, 8)
    for make in (kv_cache, horizon_cache):
        with pytest.raises(
            ValueError, match=r"expected an enabled BLOOM, MPT or Falcon.*'eager'; call enable\(model\)"
        ):
            make(model)
    enable(model)
    falcon = enable(small("falcon"))
    with pytest.raises(
        ValueError,
        match=r"model: expected a Falcon with the exact line of its biases, got one that reproduces .*: call "
        r"enable\(model, falcon_rounding=False\), or use kv_cache\(model\)",
    ):
        horizon_cache(falcon)
    assert kv_cache(falcon).layers
    assert horizon_cache(enable(falcon, falcon_rounding=False)).layers
    with pytest.raises(ValueError, match=r"backing: expected None or .cpu., got a KVCache"):
        horizon_cache(model, backing=KVCache())
    cache = horizon_cache(model, backing="cpu", on_violation="refetch")
    with pytest.raises(ValueError, match="expected without gradients or dropout, got HorizonLayer"):
        model(ids, past_key_values=cache, labels=ids)
    with pytest.raises(ValueError, match=r"expected a cache that holds every key .* got a horizon cache; it serves"):
        disable(model)(ids, past_key_values=cache, use_cache=True)


def test_falcon_without_its_rounding_is_the_exact_line():
    model, ids = small("falcon", 12), tokens(1, 600)
    with torch.no_grad():
        stock = model(ids, use_cache=False).logits
        exact = enable(model, falcon_rounding=False)(ids, use_cache=False).logits
        rounded = enable(model)(ids, use_cache=False).logits
    assert (rounded - stock).abs().max() <= 1e-4
    assert (exact - stock).abs().max() > 1e-2


class OddLayer(DynamicLayer):
    """Any layer that is not exactly DynamicLayer: quantized, offloaded, somebody's own."""


@pytest.mark.parametrize("kind", FAMILIES)
def test_layers_of_other_kinds_are_attended_to_as_they_are(kind: str):
    model = small(kind)
    expected = generated(model)
    cache = Cache(layer_class_to_replicate=OddLayer)
    assert torch.equal(generated(enable(model), past_key_values=cache), expected)
    assert [type(layer) for layer in cache.layers] == [OddLayer, OddLayer]


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_a_compiled_model_with_a_cache_that_grows():
    model, ids = enable(small("bloom")), tokens(1, 11)
    torch.compiler.reset()
    compiled, cache = torch.compile(model, backend="eager"), kv_cache(model)
    with torch.no_grad():
        expected = model(ids, use_cache=False).logits
        parts = [compiled(part, past_key_values=cache, use_cache=True).logits for part in ids.split([9, 1, 1], dim=1)]
    torch.compiler.reset()
    assert (torch.cat(parts, 1) - expected).abs().max() <= 1e-4


def test_autocast():
    model, ids = enable(small("bloom")), tokens(1, 12)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        whole = model(ids, use_cache=False).logits
        cache = kv_cache(model)
        parts = [model(part, past_key_values=cache, use_cache=True).logits for part in ids.split([9, 3], dim=1)]
    assert cache.layers[0].keys.dtype == torch.bfloat16
    assert (torch.cat(parts, 1) - whole).abs().max() <= 0.1


@pytest.mark.parametrize("kind", ["bloom", "mpt", "falcon"])
@pytest.mark.parametrize("make", [kv_cache, horizon_cache, lambda _: DynamicCache()])
def test_a_cache_that_generation_would_fill_with_the_whole_text_again_and_again_is_refused(kind: str, make: Any):
    """So does an MPT, whose configuration has use_cache False, unless it is asked; stock says nothing."""
    model = enable(small(kind, use_cache=False), falcon_rounding=False)
    ids = tokens(1, 9)
    options: dict[str, Any] = {"max_new_tokens": 3, "do_sample": False, "attention_mask": torch.ones_like(ids)}
    with pytest.raises(
        ValueError, match=r"^use_cache: expected True .* got False: the cache holds 9 tokens and gets 10"
    ):
        model.generate(ids, past_key_values=make(model), **options)
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        with pytest.raises(ValueError, match=r"^use_cache: expected True .* got False: the cache holds 9 tokens"):
            copied.generate(ids, past_key_values=make(model), num_beams=2, **options)
    cache = make(model)
    out = model.generate(ids, past_key_values=cache, use_cache=True, **options)
    assert cache.get_seq_length() == 11
    assert torch.equal(out, model.generate(ids, **options))


@pytest.mark.parametrize("first", [1, 10, 12, 20])
@pytest.mark.parametrize("kind", ["bloom", "mpt", "falcon"])
@pytest.mark.parametrize("make", [kv_cache, horizon_cache, lambda _: DynamicCache()])
def test_a_call_that_continues_a_cache_unasked_is_taken(kind: str, make: Any, first: int):
    """Whatever it brings: 11 new tokens after 10 are no text fed again, nor are the same ones once more."""
    model, ids = enable(small(kind, use_cache=False), falcon_rounding=False), tokens(1, 21)
    for text in (ids, torch.cat([ids[:, :first], ids[:, :first], ids[:, :1]], 1)):
        cache = make(model)
        with torch.no_grad():
            model(text[:, :first], past_key_values=cache)
            out = model(text[:, first:], past_key_values=cache).logits
            torch.testing.assert_close(out, model(text).logits[:, first:], rtol=0, atol=1e-4)
