"""Models of Transformers whose sequence several processes share, compared with what one process does."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from process_checks import SUMS, check, close, parts, refuses
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BloomConfig,
    BloomForSequenceClassification,
    Lfm2Config,
    Lfm2ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    StaticCache,
)

from alibi_attention.integrations.transformers import (
    disable,
    enable,
    horizon_cache,
    kv_cache,
    replace_positions,
    split_context,
)

sys.path.append(str(Path(__file__).parents[1] / "integrations"))
from hf_models import small, tokens

LENGTH = 300
_SIZES = {
    "vocab_size": 97, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48,
    "initializer_range": 0.2,
}  # fmt: skip


def llama() -> Any:
    torch.manual_seed(1)
    return replace_positions(LlamaForCausalLM(LlamaConfig(num_key_value_heads=2, **_SIZES)).eval())


def bert() -> Any:
    torch.manual_seed(2)
    return replace_positions(BertForMaskedLM(BertConfig(max_position_embeddings=64, **_SIZES)).eval())


def mistral() -> Any:
    """Windows that end in another process."""
    torch.manual_seed(4)
    config = MistralConfig(num_key_value_heads=2, sliding_window=90, **_SIZES)
    return replace_positions(MistralForCausalLM(config).eval())


MODELS: dict[str, Callable[[], Any]] = {
    "bloom": lambda: enable(small("bloom")),
    "mpt": lambda: enable(small("mpt")),
    "falcon": lambda: enable(small("falcon-gqa"), falcon_rounding=False),
    "llama": llama,
    "mistral": mistral,
    "bert": bert,
}


def loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Summed, so that what processes have adds up to what one has; of a part without targets, 0."""
    return cross_entropy(logits[:, : targets.shape[1]].flatten(0, 1), targets.flatten(), reduction="sum")


@check
def models_of_transformers_are_trained_on_a_divided_sequence(rank: int) -> None:
    ids = tokens(2, LENGTH)
    for number, (name, make) in enumerate(MODELS.items()):
        own = parts(LENGTH, torch.Generator().manual_seed(number))[rank]
        whole = make()
        divided = split_context(copy.deepcopy(whole))
        with torch.no_grad():
            close(divided(ids[:, own]).logits, whole(ids).logits[:, own], 2e-5, f"logits of {name}")
        # What comes after each token, the first of the next process among them.
        loss(divided(ids[:, own]).logits, ids[:, own.start + 1 : own.stop + 1]).backward()
        loss(whole(ids).logits, ids[:, 1:]).backward()
        for (parameter, ours), (_, expected) in zip(divided.named_parameters(), whole.named_parameters(), strict=True):
            if expected.grad is None:
                assert ours.grad is None, (name, parameter)
                continue
            assert ours.grad is not None, (name, parameter)
            dist.all_reduce(ours.grad)
            if float(expected.grad.abs().max()) < 1e-4:
                # Nothing but rounding: what all keys have in common a softmax does not see.
                assert float(ours.grad.abs().max()) < 1e-4, (name, parameter)
                continue
            close(ours.grad, expected.grad, SUMS[torch.float32], f"{parameter} of {name}")


@check
def a_checkpointed_model_goes_back_as_often_as_forward(rank: int) -> None:
    ids, own = tokens(2, LENGTH), parts(LENGTH, torch.Generator().manual_seed(9))[rank]
    model = split_context(enable(small("bloom", attention_dropout=0.0, hidden_dropout=0.0))).train()
    loss(model(ids[:, own]).logits, ids[:, own.start + 1 : own.stop + 1]).backward()
    expected = [parameter.grad.clone() for parameter in model.parameters()]
    for reentrant in (False, True):
        model.zero_grad()
        model.activation_checkpointing_enable({"use_reentrant": reentrant})
        loss(model(ids[:, own]).logits, ids[:, own.start + 1 : own.stop + 1]).backward()
        assert all(torch.equal(each.grad, grad) for each, grad in zip(model.parameters(), expected, strict=True))


@check
def models_that_cannot_be_divided_are_refused(rank: int) -> None:
    del rank
    text = "model: expected layers that attend by ALiBi, got a BloomForCausalLM without any; call enable(model) or"
    refuses(ValueError, text, lambda: split_context(small("bloom")))
    text = "model: expected a Falcon with the exact line of its biases where processes share a sequence"
    refuses(ValueError, text, lambda: split_context(enable(small("falcon"))))
    config = Lfm2Config(num_key_value_heads=2, layer_types=["conv", "full_attention"], **_SIZES)
    hybrid = replace_positions(Lfm2ForCausalLM(config).eval())
    ids = tokens(1, 30)
    with torch.no_grad():
        before = hybrid(ids).logits
    text = "model: expected nothing but attention to look at other tokens, got a Lfm2ForCausalLM, in which something"
    refuses(ValueError, text, lambda: split_context(hybrid))
    config = BloomConfig(vocab_size=97, hidden_size=32, n_layer=2, n_head=4, pad_token_id=0)
    judge = enable(BloomForSequenceClassification(config).eval())
    with torch.no_grad():
        verdict = judge(ids).logits
    text = "model: expected a result for every token, got (1, 2) of a BloomForSequenceClassification for 6 tokens"
    refuses(ValueError, text, lambda: split_context(judge))
    with torch.no_grad():
        # As they were.
        assert torch.equal(hybrid(ids).logits, before)
        assert torch.equal(judge(ids).logits, verdict)
        split_context(judge.transformer)(ids)


@check
def what_a_divided_model_does_not_carry_is_refused(rank: int) -> None:
    ids = tokens(2, 40)
    mask = torch.ones_like(ids)
    mask[0, :3] = 0
    falcon, bloom, llama = (split_context(MODELS[name]()) for name in ("falcon", "bloom", "llama"))
    dropping = split_context(enable(small("bloom", attention_dropout=0.1))).train()
    packed = {"position_ids": torch.arange(40)[None] % 20, "use_cache": False}
    full = StaticCache(config=llama.config, max_cache_len=64)
    rounded, padded = "model: expected a Falcon with the exact line", "attention_mask: expected no padding"
    with torch.no_grad():
        cases: list[tuple[str, Callable[[], Any], Callable[[], Any]]] = [
            (padded, lambda: bloom(ids, attention_mask=mask), lambda: bloom(ids)),
            (padded, lambda: llama(ids, attention_mask=mask), lambda: llama(ids)),
            ("attention_mask: expected one sequence", lambda: llama(ids[:1], **packed), lambda: llama(ids[:1])),
            ("dropout: expected 0 where", lambda: dropping(ids), lambda: dropping.eval()(ids)),
            (
                "past_key_values: expected a cache that holds every key",
                lambda: bloom(ids, past_key_values=horizon_cache(bloom)),
                lambda: bloom(ids),
            ),
            (rounded, lambda: enable(falcon, falcon_rounding=True)(ids), lambda: falcon(ids)),
        ]
        for text, wrong, right in cases:
            # One that is refused keeps nobody waiting.
            if rank == 2:
                refuses(ValueError, text, wrong)
            else:
                refuses(RuntimeError, "the call of rank 2 was refused", right)
        for model in (bloom, llama):
            cache = kv_cache(bloom) if model is bloom else None
            cache = model(ids, past_key_values=cache, use_cache=True).past_key_values
            text = "past_key_values: expected none, or an empty one that grows"
            refuses(ValueError, text, lambda model=model, cache=cache: model(ids[:, :1], past_key_values=cache))
        refuses(ValueError, "past_key_values: expected", lambda: llama(ids, past_key_values=full))
        for model in (bloom, llama, split_context(MODELS["mpt"]())):
            text = "generate: expected a model with the whole text, got one after split_context"
            refuses(ValueError, text, lambda model=model: model.generate(ids, max_new_tokens=4))
            refuses(ValueError, text, lambda model=model: model.generate(ids, max_new_tokens=4, use_cache=False))


@check
def a_model_that_is_disabled_attends_alone(rank: int) -> None:
    ids = tokens(1, 20 + rank)
    with torch.no_grad():
        for name, make in MODELS.items():
            if name == "falcon":
                continue
            model = make()
            expected = model(ids).logits
            enabled = enable if name in ("bloom", "mpt") else replace_positions
            again = enabled(disable(split_context(model)))
            assert torch.equal(again(ids).logits, expected), name
            if name != "bert":
                again.generate(ids, max_new_tokens=2, pad_token_id=0)
