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
from transformers import BertConfig, BertForMaskedLM, LlamaConfig, LlamaForCausalLM
from transformers.utils import logging

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

# What generate() would rather be told is nothing here.
logging.set_verbosity_error()

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


MODELS: dict[str, Callable[[], Any]] = {
    "bloom": lambda: enable(small("bloom")),
    "mpt": lambda: enable(small("mpt")),
    "falcon": lambda: enable(small("falcon-gqa"), falcon_rounding=False),
    "llama": llama,
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
            if expected.grad is None or float(expected.grad.abs().max()) < 1e-4:
                # Nothing but rounding: what all keys have in common a softmax does not see.
                continue
            assert ours.grad is not None, (name, parameter)
            dist.all_reduce(ours.grad)
            close(ours.grad, expected.grad, 5 * SUMS[torch.float32], f"{parameter} of {name}")


@check
def a_checkpointed_model_goes_back_as_often_as_forward(rank: int) -> None:
    ids, own = tokens(2, LENGTH), parts(LENGTH, torch.Generator().manual_seed(9))[rank]
    model = split_context(enable(small("bloom", attention_dropout=0.0, hidden_dropout=0.0))).train()
    loss(model(ids[:, own]).logits, ids[:, own.start + 1 : own.stop + 1]).backward()
    expected = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    model.gradient_checkpointing_enable()
    loss(model(ids[:, own]).logits, ids[:, own.start + 1 : own.stop + 1]).backward()
    assert all(torch.equal(parameter.grad, grad) for parameter, grad in zip(model.parameters(), expected, strict=True))


@check
def what_a_divided_model_does_not_carry_is_refused(rank: int) -> None:
    ids = tokens(2, 40)
    text = "model: expected layers that attend by ALiBi, got a BloomForCausalLM without any; call enable(model) or"
    refuses(ValueError, text, lambda: split_context(small("bloom")))
    text = "model: expected a Falcon with the exact line of its biases where processes share a sequence"
    refuses(ValueError, text, lambda: split_context(enable(small("falcon"))))
    falcon = split_context(enable(small("falcon"), falcon_rounding=False))
    mask = torch.ones_like(ids)
    mask[0, :3] = 0
    with torch.no_grad():
        falcon(ids)
        refuses(ValueError, text, lambda: enable(falcon, falcon_rounding=True)(ids))
        bloom, llama = (split_context(MODELS[name]()) for name in ("bloom", "llama"))
        for model in (bloom, llama):
            refuses(
                ValueError,
                "attention_mask: expected no padding where",
                lambda model=model: model(ids, attention_mask=mask),
            )
            text = "past_key_values: expected no tokens in it where processes share a sequence, got 41 keys for 1 quer"
            refuses(ValueError, text, lambda model=model: model.generate(ids, max_new_tokens=4, do_sample=False))
        cache = kv_cache(bloom)
        bloom(ids, past_key_values=cache)
        refuses(ValueError, text, lambda: bloom(ids[:, :1], past_key_values=cache))
        text = "past_key_values: expected a model enabled by"
        refuses(ValueError, text, lambda: bloom(ids, past_key_values=horizon_cache(bloom)))
        positions = torch.arange(40)[None] % 20
        text = "attention_mask: expected one sequence a row where processes share it, got several packed"
        refuses(ValueError, text, lambda: llama(ids[:1], position_ids=positions, use_cache=False))
        # One that is refused keeps nobody waiting.
        if rank == 2:
            refuses(ValueError, "attention_mask: expected no padding where", lambda: bloom(ids, attention_mask=mask))
        else:
            refuses(RuntimeError, "the call of rank 2 was refused", lambda: bloom(ids))
    dropping = split_context(enable(small("bloom", attention_dropout=0.1))).train()
    refuses(ValueError, "dropout: expected 0 where processes share a sequence", lambda: dropping(ids))


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
