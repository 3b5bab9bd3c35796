"""The registry of cases, and which of them a run takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from alibi_attention.bench.case import Case, Limits, Target, Trial
from alibi_attention.bench.errors import BenchError

K = 1024
_MOST = 4 * K * K
_DENSE = (1 * K, 2 * K, 4 * K, 8 * K)
_MEMORY = 64 * 10**6

# What the kernels are asked for: times faster than SDPA with the row bias, denormals flushed.
_DENSE_FORWARD = Target(
    "sdpa-row", at={(d, n): ratio for d, ratio in ((64, 1.4), (128, 1.15)) for n in _DENSE}, mean=True
)
_HORIZON_FORWARD = Target(
    "sdpa-row",
    at={
        (64, 2 * K): 2.4,
        (64, 8 * K): 4.0,
        (64, 32 * K): 12.0,
        (64, 128 * K): 42.0,
        (128, 2 * K): 1.9,
        (128, 8 * K): 3.0,
        (128, 32 * K): 8.5,
        (128, 128 * K): 30.0,
    },
)
_DENSE_TRAINING = Target(
    "sdpa-row", at={(d, n): ratio for d, ratio in ((64, 1.3), (128, 1.15)) for n in _DENSE}, also=("sdpa",), mean=True
)
_HORIZON_TRAINING = Target("sdpa-row", at={(64, 8 * K): 4.0, (64, 32 * K): 11.0, (128, 8 * K): 3.0, (128, 32 * K): 8.0})
_DECODE = Target("sdpa-row", at={(d, n): ratio for d in (64, 128) for n, ratio in ((32 * K, 10.0), (128 * K, 35.0))})

_ALL = (
    Case(
        "forward-dense", "forward, every tile computed", "forward", _DENSE, tolerance=0.0, target=_DENSE_FORWARD,
        peers=("sdpa", "sdpa-row", "sdpa-full", "flex", "eager"), memory_lengths=(8 * K,),
    ),
    Case(
        "forward-horizon", "forward, tiles beyond the horizon skipped", "forward",
        (2 * K, 8 * K, 32 * K, 128 * K), target=_HORIZON_FORWARD,
        peers=("sdpa", "sdpa-row", "sdpa-full", "flex", "flex-horizon"), memory_lengths=(32 * K,),
    ),
    Case(
        "training-dense", "forward and backward, every tile computed", "training", _DENSE, tolerance=0.0,
        peers=("sdpa", "sdpa-row", "sdpa-full", "flex", "eager"), target=_DENSE_TRAINING,
        memory_lengths=(8 * K,),
    ),
    Case(
        "training-horizon", "forward and backward, tiles beyond the horizon skipped", "training", (8 * K, 32 * K),
        peers=("sdpa", "sdpa-row", "sdpa-full"), target=_HORIZON_TRAINING, memory_lengths=(32 * K,),
    ),
    Case(
        "decode", "one query against a cache of keys, ours a KVCache", "forward", (32 * K, 128 * K),
        queries=1, cached=True, peers=("sdpa", "sdpa-row"), target=_DECODE, quick_lengths=(4 * K,),
    ),
    Case(
        "decode-steps", "64 steps of decoding, each of which appends a token and attends, ours a KVCache", "forward",
        (128, 512, 4 * K, 32 * K), queries=1, cached=True, steps=64, peers=("sdpa", "sdpa-row"), quick_lengths=(128,),
    ),
    Case(
        "few-queries", "8 queries at the end of a cache, as where drafts are verified, ours a KVCache", "forward",
        (512, 4 * K, 32 * K), queries=8, cached=True, peers=("sdpa-full", "eager"), quick_lengths=(4 * K,),
    ),
    Case(
        "few-queries-bf16", "8 queries at the end of a cache in bfloat16, ours a KVCache", "forward",
        (512, 4 * K, 32 * K), queries=8, cached=True, dtype=torch.bfloat16, peers=("sdpa-full", "eager"), alone=True,
        quick_lengths=(4 * K,),
    ),
    Case(
        "sweep", "forward over lengths: time per token and per computed tile", "forward",
        (1 * K, 2 * K, 4 * K, 8 * K, 16 * K, 32 * K, 64 * K, 128 * K, 256 * K), quick_lengths=(1 * K, 4 * K),
        alone=True, limits=Limits(token_growth=(32 * K, 256 * K, 1.2), tile_spread=(8 * K, 0.05)),
    ),
    Case(
        "memory", "peak memory of a forward pass", "forward", (128 * K,), alone=True, memory_lengths=(128 * K,),
        limits=Limits(memory=_MEMORY),
    ),
    Case(
        "memory-bf16", "peak memory of a forward pass in bfloat16", "forward", (128 * K,), dtype=torch.bfloat16,
        alone=True, memory_lengths=(128 * K,), limits=Limits(memory=_MEMORY),
    ),
    Case(
        "memory-training", "peak memory of a forward and a backward pass", "training", (128 * K,), alone=True,
        memory_lengths=(128 * K,), limits=Limits(memory=_MEMORY),
    ),
    Case(
        "memory-bf16-training", "peak memory of a forward and a backward pass in bfloat16", "training", (128 * K,),
        dtype=torch.bfloat16, alone=True, memory_lengths=(128 * K,), limits=Limits(memory=_MEMORY),
    ),
    Case(
        "trained-forward", "forward on queries and keys of a trained model, all its layers", "forward",
        (8 * K, 32 * K), head_dims=(), peers=("sdpa", "sdpa-row"), alone=True, trained=True,
    ),
    Case(
        "trained-training", "forward and backward on queries and keys of a trained model, all its layers", "training",
        (8 * K, 32 * K), head_dims=(), peers=("sdpa", "sdpa-row"), alone=True, trained=True,
    ),
    Case(
        "bf16", "forward in bfloat16, tiles beyond the horizon skipped", "forward", (2 * K, 8 * K),
        dtype=torch.bfloat16, peers=("sdpa", "sdpa-row", "sdpa-row-fp32", "alibi-fp32"), alone=True,
        target=Target("alibi-fp32", 1.0),
    ),
    Case(
        "bf16-dense", "forward in bfloat16, every tile computed", "forward", (2 * K, 8 * K), tolerance=0.0,
        dtype=torch.bfloat16, peers=("sdpa", "sdpa-row", "alibi-fp32"), alone=True, target=Target("alibi-fp32", 1.0),
    ),
    Case(
        "bf16-training", "forward and backward in bfloat16, tiles beyond the horizon skipped", "training",
        (2 * K, 8 * K), dtype=torch.bfloat16, peers=("sdpa", "sdpa-row", "alibi-fp32"), alone=True,
        target=Target("alibi-fp32", 1.0),
    ),
    Case(
        "overhead-forward", "what a call costs, without gradients", "forward", (16,), head_dims=(64,),
        peers=("sdpa", "sdpa-row"), target=Target("sdpa-row", at={(64, 16): 0.5}, also=("sdpa",)),
        quick_lengths=(16,), limits=Limits(seconds=25e-6),
    ),
    Case(
        "overhead-training", "what a call and its gradients cost", "training", (16,), head_dims=(64,),
        peers=("sdpa", "sdpa-row"), target=Target("sdpa-row", at={(64, 16): 0.5}, also=("sdpa",)),
        quick_lengths=(16,),
    ),
    Case(
        "layer", "an attention layer with its projections, forward", "layer", (1 * K, 2 * K, 4 * K), head_dims=(64,),
        peers=("layer-sdpa-row", "transformers-bloom", "transformers-mpt"), target=Target("layer-sdpa-row", 1.2),
        memory_lengths=(4 * K,),
    ),
    Case(
        "bloom-176b", "the attention of one layer of BLOOM-176B, without its projections: 112 heads of 128", "forward",
        (32 * K,), head_dims=(128,), heads=112, peers=("sdpa-row",), alone=True, memory_lengths=(32 * K,),
        memory_of_peers=False,
    ),
)  # fmt: skip
CASES: dict[str, Case] = {case.name: case for case in _ALL}


def pick_cases(names: Sequence[str]) -> list[Case]:
    """The named cases in the order of the registry; all of them for no names.

    Raises:
        BenchError: for a name that is none; lists those there are.
    """
    unknown = [name for name in names if name not in CASES]
    if unknown:
        raise BenchError(
            "CASES", expected="names of cases", got=", ".join(map(repr, unknown)), remedy=f"choose from {_list(CASES)}"
        )
    return [case for case in CASES.values() if not names or case.name in names]


def pick_trials(
    cases: Sequence[Case],
    lengths: Sequence[int],
    quick: bool,
    *,
    head_dims: Sequence[int] = (),
    model: Path | None = None,
) -> list[Trial]:
    """Every size of the cases: their own lengths (tokens) and head dimensions, those of a quick look, or those given.

    Args:
        head_dims: take these alone of a case's own.
        model: run folder of `alibi extrapolate` for the trained cases, which are left out without one.

    Raises:
        BenchError: for a length that is no number of tokens to attend over, head dimensions that no case has, a folder
            that holds no trained model, or nothing left to measure.
    """
    for length in lengths:
        if not 1 <= length <= _MOST:
            raise BenchError("lengths", expected=f"1 to {_MOST} tokens", got=str(length), remedy="such as 1K,8K")
    sized = [_sized(case, model) if case.trained and model is not None else case for case in cases]
    trials = [
        Trial(case, head_dim, length, model if case.trained else None)
        for case in sized
        for head_dim in (case.head_dims[:1] if quick else case.head_dims)
        if not head_dims or head_dim in head_dims
        for length in sorted(set(lengths)) or (case.quick_lengths if quick else case.lengths)
    ]
    if not trials and cases and all(case.trained for case in cases):
        raise BenchError(
            "model", expected="the folder of a trained model for these cases", got="none",
            remedy="such as --model runs/first, from alibi extrapolate --output runs/first",
        )  # fmt: skip
    if not trials and head_dims:
        there = ", ".join(map(str, sorted({dim for case in sized for dim in case.head_dims})))
        got = ", ".join(map(str, head_dims))
        raise BenchError("head-dims", expected="head dimensions of these cases", got=got, remedy=f"such as {there}")
    return trials


def _sized(case: Case, model: Path) -> Case:
    """The case with the heads and the head dimension of the model."""
    from alibi_attention.bench.trained import shape_of

    heads, head_dim = shape_of(model)
    return replace(case, heads=heads, head_dims=(head_dim,))


def _list(names: dict[str, Case]) -> str:
    return ", ".join(names)
