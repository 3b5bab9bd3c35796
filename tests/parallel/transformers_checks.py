"""Models of Transformers whose sequence several processes share, compared with what one process does."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

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
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
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
    for dtype in (torch.bfloat16, torch.float16):
        # Hardly trained, so that hardly a digit of 16 bits follows the token before.
        config = Lfm2Config(
            num_key_value_heads=2, layer_types=["conv", "full_attention"], **_SIZES | {"initializer_range": 0.02}
        )
        hardly = replace_positions(Lfm2ForCausalLM(config).to(dtype).eval())
        refuses(ValueError, text, lambda hardly=hardly: split_context(hardly))
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
def what_experts_round_otherwise_is_no_reason_to_refuse_them(rank: int) -> None:
    """Many layers make the rounding of few tokens as large as what one token makes of another."""
    sizes = {**_SIZES, "num_hidden_layers": 16, "hidden_size": 64, "moe_intermediate_size": 48}
    torch.manual_seed(3)
    model = Qwen3MoeForCausalLM(Qwen3MoeConfig(num_experts=8, head_dim=16, **sizes)).eval()
    divided = split_context(replace_positions(model))
    ids, own = tokens(1, 60), slice(15 * rank, 15 * rank + 15)
    with torch.no_grad():
        found = divided(ids[:, own]).logits
    assert found.shape == (1, 15, 97)


@check
def a_model_that_looks_ahead_is_refused(rank: int) -> None:
    """Which BERT does not, and one whose tokens are mixed behind its layers does, backwards or forwards."""
    del rank

    class Shifted(BertForMaskedLM):
        by = 1

        def forward(self, *args: Any, **kwargs: Any) -> Any:
            found = super().forward(*args, **kwargs)
            found.logits = found.logits + 0.01 * found.logits.roll(self.by, 1)
            return found

    text = "model: expected nothing but attention to look at other tokens, got a Shifted"
    config = BertConfig(max_position_embeddings=64, **_SIZES)
    for by in (1, -1):
        model = replace_positions(Shifted(config).eval())
        model.by = by
        refuses(ValueError, text, lambda model=model: split_context(model))


@check
def a_compiled_model_is_divided_as_well(rank: int) -> None:
    """A Llama without a mask, in which compiled code cannot see that sequences are not packed."""
    model = split_context(MODELS["llama"]())
    torch.compiler.reset()
    compiled = torch.compile(model, backend="eager")
    with torch.no_grad():
        for batch in (1, 2):
            ids = tokens(batch, 80)[:, 20 * rank : 20 * rank + 20]
            expected = model(ids, use_cache=False).logits
            close(compiled(ids, use_cache=False).logits, expected, 2e-5, f"logits of {batch}")


@check
def a_call_that_fails_before_its_first_attention_keeps_nobody_waiting(rank: int) -> None:
    ids = tokens(2, 40)
    holed = torch.ones_like(ids)
    holed[0, 5] = 0
    bloom, llama = split_context(MODELS["bloom"]()), split_context(MODELS["llama"]())
    packed = (torch.arange(40) % 20).expand(2, -1)
    with torch.no_grad():
        other = MODELS["llama"]()(tokens(3, 7), use_cache=True).past_key_values
        cases: list[tuple[type[Exception], str, Any, dict[str, Any]]] = [
            (
                ValueError,
                "attention_mask: expected padding on the left or on the right",
                bloom,
                {"attention_mask": holed},
            ),
            (
                ValueError,
                "attention_mask: expected padding on the left or on the right",
                llama,
                {"attention_mask": holed},
            ),
            (
                ValueError,
                "position_ids: expected sequences packed in one row",
                llama,
                {"position_ids": packed, "use_cache": False},
            ),
            (
                ValueError,
                "use_cache: expected False for sequences packed",
                llama,
                {"position_ids": packed, "use_cache": True},
            ),
            (RuntimeError, "Sizes of tensors must match", llama, {"past_key_values": other}),
            (ValueError, "You must specify exactly one of", bloom, {"inputs_embeds": torch.zeros(2, 40, 32)}),
        ]
        for kind, text, model, wrong in cases:
            for _ in range(2):
                if rank == 1:
                    refuses(kind, text, lambda model=model, wrong=wrong: model(ids, **wrong))
                else:
                    refuses(RuntimeError, "the call of rank 1 was refused", lambda model=model: model(ids))
            # And the model goes on as if nothing had been.
            assert model(ids).logits.shape[:2] == ids.shape
        # The model inside tells as well, and who is at work on an error of another kind tells nothing.
        if rank == 1:
            refuses(ValueError, cases[1][1], lambda: llama.model(ids, attention_mask=holed))
        else:
            refuses(RuntimeError, "the call of rank 1 was refused", lambda: llama.model(ids))
        try:
            raise KeyError("of the caller's own")
        except KeyError:
            assert llama.model(ids).last_hidden_state.shape[:2] == ids.shape
            # Divided once more, and tried out.
            split_context(llama)
        # Memory that there is not, as the call is looked at.
        if rank == 1:
            with mock.patch("alibi_attention.parallel.context.call_arguments", side_effect=MemoryError("none left")):
                refuses(MemoryError, "none left", lambda: llama(ids))
        else:
            refuses(RuntimeError, "the call of rank 1 was refused", lambda: llama(ids))
        # Where all of them fail alike each says why itself.
        refuses(ValueError, cases[0][1], lambda: bloom(ids, attention_mask=holed))
        assert bloom(ids).logits.shape[:2] == ids.shape


@check
def positions_that_do_not_go_on_are_refused(rank: int) -> None:
    """Sequences packed so that each process has one of its own look like parts of one, but for their positions."""
    model, ids = split_context(MODELS["llama"]()), tokens(1, 40)
    here = torch.arange(40 * rank, 40 * rank + 40)[None]
    with torch.no_grad():
        alone = model(ids).logits
        assert torch.equal(model(ids, position_ids=here).logits, alone)
        # Some may leave them out.
        assert torch.equal(model(ids, position_ids=here if rank < 2 else None).logits, alone)
        text = "position_ids: expected those of one sequence, of which each process has a part"
        refuses(ValueError, text, lambda: model(ids, position_ids=here % 40))
        refuses(ValueError, text, lambda: model(ids, position_ids=here - 80 * (rank >= 2)))
        both = torch.cat([here, here + (rank == 3)])
        refuses(ValueError, text, lambda: model(ids.expand(2, -1), position_ids=both))
        # With a mask a row is one sequence, as it is without processes.
        assert torch.equal(model(ids, attention_mask=torch.ones_like(ids), position_ids=here % 40).logits, alone)
        assert torch.equal(model(ids).logits, alone)


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
