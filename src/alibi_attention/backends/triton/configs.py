"""Sizes of tiles: one choice for each kernel, width of head, size of element and family of devices."""

from __future__ import annotations

from typing import Any, NamedTuple

from alibi_attention.backends.triton import device
from alibi_attention.problem import Problem


class Config(NamedTuple):
    """How a kernel is compiled and how many of its programs there are.

    Attributes:
        constants: the sizes that are compiled in, by the name of the kernel's argument.
        num_warps, num_stages: as Triton means them.
    """

    constants: dict[str, int]
    num_warps: int
    num_stages: int


def _tiles(block_m: int, block_n: int, num_warps: int, num_stages: int) -> Config:
    return Config({"block_m": block_m, "block_n": block_n}, num_warps, num_stages)


WIDTHS = (16, 32, 64, 128, 256)

# By kernel, bytes of an element, and width, the head dimension padded to a power of two.
_NVIDIA: dict[str, dict[int, dict[int, Config]]] = {
    "forward": {
        2: {64: _tiles(128, 64, 4, 3), 128: _tiles(128, 64, 8, 3), 256: _tiles(64, 32, 4, 2)},
        4: {64: _tiles(64, 32, 4, 2), 128: _tiles(64, 32, 8, 2), 256: _tiles(32, 32, 8, 1)},
    },
    "query": {
        2: {64: _tiles(64, 64, 4, 2), 128: _tiles(64, 64, 8, 2), 256: _tiles(64, 32, 8, 1)},
        4: {64: _tiles(32, 32, 4, 1), 128: _tiles(32, 32, 8, 1), 256: _tiles(16, 32, 8, 1)},
    },
    "key": {
        2: {64: _tiles(64, 64, 4, 2), 128: _tiles(32, 64, 8, 2), 256: _tiles(32, 32, 8, 1)},
        4: {64: _tiles(32, 32, 4, 1), 128: _tiles(16, 32, 8, 1), 256: _tiles(16, 16, 8, 1)},
    },
}
# Blocks that met an infinity or a NaN: rare, so small tiles that fit anywhere.
for _table in (_NVIDIA,):
    _table["mend"] = {size: dict.fromkeys((64, 128, 256), _tiles(16, 16, 4, 1)) for size in (2, 4)}
    _table["summary"] = {size: dict.fromkeys((64, 128, 256), Config({}, 4, 1)) for size in (2, 4)}
    _table["plan"] = {size: dict.fromkeys((64, 128, 256), Config({"block_m": 128}, 8, 1)) for size in (2, 4)}
    _table["plan_few"] = {size: dict.fromkeys((64, 128, 256), Config({"block_m": 16}, 4, 1)) for size in (2, 4)}
    _table["decode"] = {size: dict.fromkeys((64, 128, 256), Config({"block_n": 64}, 4, 2)) for size in (2, 4)}
_AMD = _NVIDIA


def width_of(head_dim: int, value_dim: int) -> int:
    """The least power of two, from 16, that holds both."""
    return max(16, 1 << (max(head_dim, value_dim) - 1).bit_length())


def padded(dim: int) -> int:
    return max(16, 1 << (dim - 1).bit_length())


def config_for(kernel: str, architecture: str, element_size: int, width: int) -> Config:
    """The configuration a call runs with."""
    table = _AMD if architecture.startswith("gfx") else _NVIDIA
    return table[kernel][element_size][max(64, width)]


def kind(problem: Problem) -> tuple[str, int, int]:
    """Architecture, bytes of an element, and width of a call."""
    architecture = device.target(problem.device)
    assert architecture is not None, problem.device
    return architecture, problem.dtype.itemsize, width_of(problem.head_dim, problem.value_dim)


def precision_for(architecture: str, element_size: int, width: int) -> str:  # noqa: ARG001
    """How products of float32 are formed. Those of 16-bit numbers are exact, and none is asked for."""
    if element_size == 2 or not architecture.startswith("sm_"):
        return "ieee"
    return "tf32x3"


def shipped() -> list[dict[str, Any]]:
    """Every choice in the tables."""
    return [
        {"family": family, "kernel": kernel, "element_size": size, "width": width, "config": config}
        for family, table in (("sm", _NVIDIA), ("gfx", _AMD))
        for kernel, sizes in table.items()
        for size, widths in sizes.items()
        for width, config in widths.items()
    ]
