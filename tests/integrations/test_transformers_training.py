"""A small Llama and a small BERT learn Python's library with ALiBi, and read further than they were trained."""

from __future__ import annotations

import sysconfig
from functools import cache
from pathlib import Path

import pytest

pytest.importorskip("transformers")

import torch
from torch import Tensor
from transformers import BertConfig, BertForMaskedLM, LlamaConfig, LlamaForCausalLM

from alibi_attention.integrations.transformers import replace_positions

TRAINED, LONG, BATCH = 64, 256, 16
STEPS = {"llama": 100, "bert": 150}
MASKED = 0
# Nats a byte by frequency alone.
NO_CONTEXT = 3.0


@cache
def library() -> tuple[Tensor, Tensor]:
    """Bytes to train on, and others to test on."""
    sources = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))[:60]
    text = torch.tensor(list(b"".join(path.read_bytes() for path in sources))).clamp_max(127)
    return text[: len(text) * 9 // 10], text[len(text) * 9 // 10 :]


def windows(text: Tensor, count: int, length: int, draws: torch.Generator) -> Tensor:
    starts = torch.randint(len(text) - length, (count,), generator=draws)
    return text[starts.unsqueeze(1) + torch.arange(length)]


def make(kind: str) -> LlamaForCausalLM | BertForMaskedLM:
    torch.manual_seed(0)
    sizes = {"vocab_size": 128, "hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2}
    sizes |= {"num_attention_heads": 4, "max_position_embeddings": LONG}
    if kind == "llama":
        return LlamaForCausalLM(LlamaConfig(use_cache=False, **sizes))
    # Wide weights: with the usual ones a BERT spends its first hundreds of steps on the frequencies of bytes.
    sizes["initializer_range"] = 0.1
    return BertForMaskedLM(BertConfig(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, **sizes))


def losses(model, ids: Tensor, hidden: Tensor) -> Tensor:
    """Mean cross-entropy of the tokens that are hidden from BERT, or of each given those before it for Llama."""
    if isinstance(model, BertForMaskedLM):
        return model(ids.masked_fill(hidden, MASKED), labels=ids.masked_fill(~hidden, -100)).loss
    return model(ids, labels=ids.masked_fill(~hidden, -100)).loss


def trained(kind: str, alibi: bool) -> LlamaForCausalLM | BertForMaskedLM:
    model = make(kind)
    if alibi:
        replace_positions(model)
    draws, text = torch.Generator().manual_seed(0), library()[0]
    optimizer = torch.optim.AdamW([each for each in model.parameters() if each.requires_grad], lr=7e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 7e-3, total_steps=STEPS[kind])
    for _ in range(STEPS[kind]):
        ids = windows(text, BATCH, TRAINED, draws)
        hidden = torch.rand(ids.shape, generator=draws) < (0.25 if kind == "bert" else 1.0)
        losses(model, ids, hidden).backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    return model.eval()


@torch.no_grad()
def short_and_long(model) -> tuple[float, float]:
    """Loss of the same tokens, alone as in training, and with four times as much text around or before them."""
    draws = torch.Generator().manual_seed(1)
    ids = windows(library()[1], 128, LONG, draws)
    part = slice(96, 160) if isinstance(model, BertForMaskedLM) else slice(LONG - TRAINED, LONG)
    asked = torch.zeros_like(ids, dtype=torch.bool)
    # Not the first ones, which have no context where they are alone.
    asked[:, part.start + 16 : part.stop] = torch.rand(128, TRAINED - 16, generator=draws) < 0.25
    return losses(model, ids[:, part], asked[:, part]).item(), losses(model, ids, asked).item()


@pytest.mark.parametrize("kind", ["llama", "bert"])
def test_trained_short_tested_long(kind: str):
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        short, long = short_and_long(trained(kind, alibi=True))
        _, own = short_and_long(trained(kind, alibi=False))
    finally:
        torch.set_num_threads(before)
    assert short < NO_CONTEXT - 0.2, f"{kind} has learned: {short:.3f}"
    assert long <= short + 0.02, f"{kind} with ALiBi, {TRAINED} to {LONG} tokens: {short:.3f} to {long:.3f}"
    assert own >= long + 0.06, f"{kind} at {LONG} tokens: {long:.3f} with ALiBi, {own:.3f} with its own positions"
    print(f"{kind}: ALiBi {short:.3f} to {long:.3f}, own positions {own:.3f}")
