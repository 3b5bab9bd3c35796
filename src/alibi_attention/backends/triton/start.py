"""Starting a kernel with what it takes of what a call has."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from alibi_attention.backends.triton import arguments, configs, launch
from alibi_attention.problem import Problem


def common(problem: Problem, slopes: Tensor) -> dict[str, Any]:
    """What most kernels take: slopes, scales, sizes, and how products are formed."""
    return {
        **arguments.slope_arguments(slopes),
        **arguments.scales(problem),
        "num_heads": problem.num_heads,
        "group": problem.group_size,
        "head_dim": problem.head_dim,
        "value_dim": problem.value_dim,
        "block_d": configs.padded(problem.head_dim),
        "block_v": configs.padded(problem.value_dim),
        "two_sided": arguments.is_two_sided(problem),
        "precision": configs.precision_for(*configs.kind(problem)),
    }


def start(
    kernel: Any, problem: Problem, grid: tuple[int, ...], config: configs.Config, given: Mapping[str, Any]
) -> None:
    taken = {name: given[name] for name in kernel.arg_names if name not in config.constants}
    launch.run(kernel, grid, config, problem.device, taken)
