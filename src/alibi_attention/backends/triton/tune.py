"""Trying configurations on the call at hand, where ALIBI_TRITON_AUTOTUNE=1 asks for it."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch

from alibi_attention.backends.triton import arguments, configs
from alibi_attention.backends.triton.configs import Config
from alibi_attention.problem import Problem

_ROUNDS = 5
_SIZES = {
    "forward": [(128, 128, 8), (128, 64, 8), (128, 64, 4), (64, 64, 4), (128, 32, 8), (64, 32, 4)],
    "query": [
        (128, 128, 8), (128, 64, 8), (128, 64, 4), (128, 32, 8), (128, 32, 4), (64, 64, 4), (64, 32, 4), (32, 32, 4),
    ],
    "key": [
        (64, 128, 8), (32, 128, 8), (32, 128, 4), (16, 128, 8), (64, 64, 4), (32, 64, 4), (32, 64, 2), (32, 32, 4),
    ],
}  # fmt: skip
_CHOSEN: dict[tuple[Any, ...], Config] = {}


def pick(kernel: str, problem: Problem, run: Callable[[Config], object]) -> Config:
    """The shipped configuration or, if asked for, the quickest of several, found once for each kind of call.

    Timing waits for the device, so nothing is tried while a CUDA graph is captured: warm up beforehand, as one does.

    Args:
        run: does the kernel's work with a configuration; it may be called many times.
    """
    features = _features(problem)
    shipped = configs.config_for(kernel, *configs.kind(problem), features)
    if not _is_asked_for() or problem.device.type != "cuda":
        return shipped
    call = (
        kernel, *configs.kind(problem), problem.head_dim, problem.value_dim, problem.group_size > 1,
        problem.is_packed, arguments.is_two_sided(problem), *features,
        problem.q_len.bit_length(), problem.k_len.bit_length(), problem.tolerance > 0.0,
    )  # fmt: skip
    if call not in _CHOSEN:
        if torch.cuda.is_current_stream_capturing():
            return shipped
        _CHOSEN[call] = min([shipped, *_others(kernel)], key=lambda config: _seconds(config, run))
    return _CHOSEN[call]


def _is_asked_for() -> bool:
    given = os.environ.get("ALIBI_TRITON_AUTOTUNE", "")
    if given not in ("", "0", "1"):
        raise ValueError(f"ALIBI_TRITON_AUTOTUNE: expected 1 or 0, got {given!r}; 1 tries tiles on a GPU")
    return given == "1"


def _features(problem: Problem) -> list[configs.Feature]:
    has: dict[configs.Feature, bool] = {
        "dropout": problem.dropout_p > 0.0, "learned": problem.learned_slopes,
        "masked": not arguments.is_plain(problem),
    }  # fmt: skip
    return [feature for feature, is_there in has.items() if is_there]


def _others(kernel: str) -> list[Config]:
    found = [
        Config({"block_m": m, "block_n": n}, warps, stages) for m, n, warps in _SIZES[kernel] for stages in (1, 2, 3)
    ]
    if kernel == "key":
        found += [config._replace(of=("values", "keys")) for config in found if _is_large(config)]
    return found


def _is_large(config: Config) -> bool:
    """Whether a tile has no registers for two gradients of wide heads, and two launches for one may pay."""
    return config.num_stages < 3 and config.constants["block_m"] * config.constants["block_n"] >= 4096


def _seconds(config: Config, run: Callable[[Config], object]) -> float:
    """The least of a few rounds; infinite for what a device has no room for."""
    try:
        run(config)
    except Exception as error:  # Triton's, of several kinds, whose types are not to be loaded here.
        if type(error).__module__.startswith("triton."):
            return float("inf")
        raise
    times: list[float] = []
    for _ in range(_ROUNDS):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        run(config)
        end.record()
        end.synchronize()
        times.append(float(begin.elapsed_time(end)))
    return min(times)
