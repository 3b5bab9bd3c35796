"""Sizes of tiles: one choice for each kernel, width of head, size of element and family of devices."""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal, NamedTuple, get_args

from alibi_attention.backends.triton import device
from alibi_attention.problem import Problem

# What may need tiles of its own, what needs the smallest first: dropout, gradients of slopes, and whatever sets rows
# apart in what they see (windows, padding, packed sequences, keys on both sides).
Feature = Literal["dropout", "learned", "masked"]
FEATURES: tuple[Feature, ...] = get_args(Feature)


class Config(NamedTuple):
    """How a kernel is compiled and how many of its programs there are.

    Attributes:
        constants: the sizes that are compiled in, by the name of the kernel's argument.
        num_warps, num_stages: as Triton means them.
        of: the gradients that `key_kernel` computes, a launch for each: "both", or those of "values", then of "keys".
    """

    constants: dict[str, int]
    num_warps: int
    num_stages: int
    of: tuple[str, ...] = ("both",)


def _tiles(block_m: int, block_n: int, num_warps: int, num_stages: int) -> Config:
    return Config({"block_m": block_m, "block_n": block_n}, num_warps, num_stages)


def _apart(block_m: int, block_n: int, num_warps: int, num_stages: int) -> Config:
    """Gradients of values and of keys in launches of their own: five products for four, but the registers of one of
    them for tiles twice as large, which no two warps compute twice.
    """
    return _tiles(block_m, block_n, num_warps, num_stages)._replace(of=("values", "keys"))


def _fixed(constants: dict[str, int], num_warps: int) -> dict[int, dict[int, Config]]:
    """One choice for every width and element, for what is limited by memory or rare."""
    return {size: dict.fromkeys((64, 128, 256), Config(constants, num_warps, 1)) for size in (2, 4)}


def _plan(rows: int, size: int, width: int, num_warps: int = 8) -> Config:
    """The keys summed for the floor of a row: fewer, or none, where a tile of them would not fit in 64 KiB."""
    if rows == 16:
        # The products of float32 keep both operands in registers, in two parts.
        most = {2: 1 << 15, 4: 1 << 14 if width < 256 else 0}[size]
        return Config({"block_m": rows, "nearest": min(128, most // (size * width))}, 4, 1)
    nearest = 128 if size * width <= 128 else 64 if size * width == 256 else 0
    return Config({"block_m": rows, "nearest": nearest}, num_warps, 1)


# By kernel, bytes of an element, and width: the greater head dimension padded to a power of two, at least 64. Each is
# that of the tiles tried with the fewest instructions for a score that compiles, causal, with no access to local memory
# in the main loop (or a few: the tests' known_faults.json) and hardly any in that over tiles with masks; what is put
# aside around them, once a program, costs next to nothing. Nothing here has been timed.
# Float32 keeps two parts of each operand in registers (three products of tf32) where a warp multiplies, hence its small
# tiles there.
_EVERYWHERE: dict[str, dict[int, dict[int, Config]]] = {
    # Blocks that met an infinity or a NaN, looked for among so many rows or keys by one program.
    "mend": _fixed({"at_once": 128, "block_m": 16, "block_n": 16}, 8),
    "rows": _fixed({"block_m": 32}, 4),
    "summary": _fixed({"tiles_at_once": 8, "samples": 64}, 8),
    "plan": {size: {width: _plan(128, size, width) for width in (64, 128, 256)} for size in (2, 4)},
    "plan_few": {size: {width: _plan(16, size, width) for width in (64, 128, 256)} for size in (2, 4)},
    # Bound by memory: what matters is how many bytes are on their way.
    "decode": {
        2: {
            64: Config({"block_n": 64}, 4, 3),
            128: Config({"block_n": 64}, 4, 2),
            256: Config({"block_n": 32}, 4, 1),
        },
        4: {
            64: Config({"block_n": 64}, 4, 3),
            128: Config({"block_n": 32}, 4, 2),
            # With fewer warps the 64 rows that a step may have do not fit in registers, by kilobytes.
            256: Config({"block_n": 16}, 16, 1),
        },
    },
}
# What multiplies, by family: elements of 4 bytes, then those of 2. A warp multiplies 16 rows or more, on gfx942 up to
# 32: with more warps than the rows of a tile need, several of them would compute the same scores. gfx11 is every other
# GPU of AMD: compiled for gfx1100 when its tiles were chosen, in no test, and with local memory in loops from width 128
# on.
_FLOAT32: dict[str, dict[str, dict[int, Config]]] = {
    "sm_80": {
        "forward": {64: _tiles(32, 32, 2, 2), 128: _tiles(32, 32, 4, 2), 256: _tiles(32, 16, 8, 1)},
        "query": {64: _tiles(32, 32, 4, 1), 128: _tiles(16, 32, 4, 1), 256: _tiles(16, 16, 8, 1)},
        "key": {64: _tiles(32, 32, 4, 1), 128: _tiles(32, 16, 4, 1), 256: _tiles(16, 16, 8, 1)},
    },
    "sm_90": {
        "forward": {64: _tiles(64, 32, 4, 2), 128: _tiles(128, 16, 8, 1), 256: _tiles(32, 16, 8, 1)},
        "query": {64: _tiles(128, 64, 8, 1), 128: _tiles(16, 32, 4, 1), 256: _tiles(16, 16, 8, 1)},
        "key": {64: _tiles(32, 128, 8, 1), 128: _apart(16, 64, 4, 1), 256: _tiles(16, 16, 8, 1)},
        "query, dropout": {64: _tiles(128, 32, 8, 1)},
        "query, learned": {64: _tiles(128, 32, 8, 1)},
    },
    "sm_100": {
        "forward": {64: _tiles(64, 32, 4, 2), 128: _tiles(32, 32, 4, 2), 256: _tiles(32, 16, 8, 1)},
        "query": {64: _tiles(32, 32, 4, 1), 128: _tiles(16, 32, 4, 1), 256: _tiles(16, 16, 8, 1)},
        "key": {64: _tiles(32, 32, 4, 1), 128: _tiles(32, 16, 4, 1), 256: _tiles(16, 16, 8, 1)},
    },
    "gfx11": {
        "forward": {64: _tiles(64, 16, 4, 2), 128: _tiles(16, 32, 4, 2), 256: _tiles(32, 16, 8, 1)},
        "query": {64: _tiles(32, 32, 4, 1), 128: _tiles(16, 16, 4, 1), 256: _tiles(16, 16, 8, 1)},
        "key": {64: _tiles(32, 32, 4, 1), 128: _tiles(16, 16, 4, 1), 256: _tiles(16, 16, 8, 1)},
    },
    "gfx942": {
        "forward": {64: _tiles(128, 32, 4, 2), 128: _tiles(64, 32, 2, 1), 256: _tiles(32, 16, 2, 1)},
        "query": {64: _tiles(128, 32, 4, 1), 128: _tiles(64, 16, 4, 1), 256: _tiles(32, 16, 2, 1)},
        "key": {64: _tiles(32, 64, 2, 1), 128: _tiles(16, 64, 4, 1), 256: _tiles(16, 32, 2, 1)},
    },
}
_SIXTEEN_BITS: dict[str, dict[str, dict[int, Config]]] = {
    "sm_80": {
        "forward": {64: _tiles(128, 64, 8, 3), 128: _tiles(128, 64, 8, 2), 256: _tiles(32, 32, 4, 2)},
        "query": {64: _tiles(128, 32, 8, 2), 128: _tiles(128, 32, 8, 2), 256: _tiles(16, 32, 4, 1)},
        "key": {64: _tiles(64, 128, 8, 2), 128: _tiles(32, 64, 4, 2), 256: _tiles(32, 32, 4, 1)},
        "forward, dropout": {128: _tiles(128, 32, 8, 2)},
        "key, dropout": {64: _tiles(32, 64, 4, 1), 128: _tiles(16, 128, 8, 1)},
    },
    "sm_90": {
        "forward": {64: _tiles(128, 128, 8, 3), 128: _tiles(128, 128, 8, 2), 256: _tiles(128, 64, 8, 2)},
        "query": {64: _tiles(128, 128, 8, 2), 128: _tiles(128, 64, 8, 2), 256: _tiles(128, 32, 8, 2)},
        # A warp group's product with 32 rows reads shared memory for longer than it multiplies; but 64 rows have no
        # registers for dropout's words, nor for masks in loops of their own.
        "key": {64: _tiles(64, 128, 8, 2), 128: _tiles(64, 128, 8, 2), 256: _apart(32, 128, 8, 2)},
        "key, dropout": {128: _tiles(32, 128, 8, 2)},
        "key, masked": {128: _tiles(32, 128, 8, 2)},
        "query, dropout": {64: _tiles(128, 64, 8, 2)},
        "query, learned": {64: _tiles(128, 64, 8, 2)},
        "forward, dropout": {64: _tiles(128, 64, 8, 3), 128: _tiles(128, 64, 8, 2), 256: _tiles(128, 32, 8, 2)},
    },
    "sm_100": {
        "forward": {64: _tiles(128, 64, 4, 3), 128: _tiles(128, 64, 8, 3), 256: _tiles(128, 32, 8, 2)},
        "query": {64: _tiles(128, 64, 4, 2), 128: _tiles(128, 64, 8, 2), 256: _tiles(128, 32, 8, 2)},
        "key": {64: _tiles(64, 128, 8, 2), 128: _tiles(64, 128, 8, 2), 256: _apart(32, 128, 8, 1)},
        "query, dropout": {64: _tiles(128, 64, 8, 2)},
        "query, learned": {64: _tiles(128, 64, 8, 2)},
        "forward, dropout": {64: _tiles(128, 64, 8, 3)},
    },
    "gfx11": {
        "forward": {64: _tiles(64, 32, 4, 2), 128: _tiles(64, 32, 4, 2), 256: _tiles(64, 32, 8, 1)},
        "query": {64: _tiles(64, 16, 4, 1), 128: _tiles(64, 16, 4, 1), 256: _tiles(64, 16, 8, 1)},
        "key": {64: _tiles(16, 64, 4, 1), 128: _tiles(16, 64, 4, 1), 256: _tiles(16, 64, 8, 1)},
    },
    "gfx942": {
        "forward": {64: _tiles(128, 64, 4, 2), 128: _tiles(128, 32, 4, 2), 256: _tiles(64, 32, 2, 1)},
        "query": {64: _tiles(128, 64, 4, 1), 128: _tiles(128, 32, 4, 1), 256: _tiles(64, 16, 2, 1)},
        "key": {64: _tiles(32, 64, 2, 1), 128: _tiles(32, 128, 4, 1), 256: _tiles(16, 64, 4, 1)},
    },
}


def _of(family: str) -> dict[str, dict[int, dict[int, Config]]]:
    by_size = {2: _SIXTEEN_BITS[family], 4: _FLOAT32[family]}
    kernels = {kernel: None for table in by_size.values() for kernel in table}
    return {
        **_EVERYWHERE,
        **{kernel: {size: table.get(kernel, {}) for size, table in by_size.items()} for kernel in kernels},
    }


TABLES = {family: _of(family) for family in _SIXTEEN_BITS}
# 64 KiB of shared memory hold two tiles of 64 keys in float32, not three.
TABLES["gfx942"]["decode"] = TABLES["gfx11"]["decode"] = {
    **_EVERYWHERE["decode"], 4: {**_EVERYWHERE["decode"][4], 64: Config({"block_n": 64}, 4, 2)}
}  # fmt: skip
# For sm_100 Triton 3.7 can't compile what reduces the maxima of rows once more, to one number for the block, where it
# has the products in tensor memory (an error in its pass over layouts there). Those of 16 warps are not put there; in
# float32 they have registers for fewer keys.
TABLES["sm_100"]["plan"] = {
    2: {64: _plan(128, 2, 64, 16), 128: _plan(128, 2, 128, 16), 256: _plan(128, 2, 256)},
    4: {64: Config({"block_m": 128, "nearest": 32}, 16, 1), 128: _plan(128, 4, 128), 256: _plan(128, 4, 256)},
}


def family_of(architecture: str) -> str:
    """The table an architecture uses: its own or that of its kin, or that of the smallest shared memory."""
    if architecture.startswith("gfx"):
        return "gfx942" if architecture.startswith("gfx9") else "gfx11"
    if architecture.startswith(("sm_10", "sm_11")):
        # All that have tensor memory.
        return "sm_100"
    return architecture if architecture in TABLES else "sm_80"


def width_of(head_dim: int, value_dim: int) -> int:
    """The least power of two, from 16, that holds both."""
    return max(16, 1 << (max(head_dim, value_dim) - 1).bit_length())


def padded(dim: int) -> int:
    return max(16, 1 << (dim - 1).bit_length())


def config_for(
    kernel: str, architecture: str, element_size: int, width: int, features: Collection[Feature] = ()
) -> Config:
    """The configuration a call runs with: that of the first of its features that has one of its own, or of none."""
    table, width = TABLES[family_of(architecture)], max(64, width)
    if not set(features) <= set(FEATURES):
        raise ValueError(f"features: expected some of {', '.join(map(repr, FEATURES))}, got {features!r}")
    for feature in (each for each in FEATURES if each in features):
        own = table.get(f"{kernel}, {feature}", {}).get(element_size, {})
        if width in own:
            return own[width]
    return table[kernel][element_size][width]


def kind(problem: Problem) -> tuple[str, int, int]:
    """Architecture, bytes of an element, and width of a call."""
    architecture = device.target(problem.device)
    assert architecture is not None, problem.device
    return architecture, problem.dtype.itemsize, width_of(problem.head_dim, problem.value_dim)


def precision_for(architecture: str, element_size: int, width: int) -> str:
    """How products of float32 are formed; those of 16-bit numbers are exact, and none is asked for.

    "tf32x3" splits each operand in two and forms three products on tensor cores, to within 2^-21 or so; at width 256
    the parts no longer fit in registers, and products are float32 ("ieee"), as they are on AMD. Plain tf32 is never
    used: its error of 2^-11 is not SDPA's.
    """
    if element_size == 4 and architecture.startswith("sm_") and width <= 128:
        return "tf32x3"
    return "ieee"


def shipped() -> list[tuple[str, str, int, int, Config]]:
    """Every choice in the tables: family, kernel, bytes of an element, width, and the choice."""
    return [
        (family, kernel, size, width, config)
        for family, table in TABLES.items()
        for kernel, sizes in table.items()
        for size, widths in sizes.items()
        for width, config in widths.items()
    ]
