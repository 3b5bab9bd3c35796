"""The checks of the kernels in order of worth, and how several processes share them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import checks_decoding as decoding
import checks_device as gpu
import checks_horizon as horizon
import checks_options as options
import checks_packing as packing
import checks_shapes as shapes
import torch
from checks_shapes import DTYPES, LENGTHS

HEAD_DIMS = (16, 24, 32, 64, 80, 96, 128, 192, 256)
# On a GPU, where each is seven kernels more: a width padded to a power of two and the widest, or those most used.
_FEWER = {torch.bfloat16: HEAD_DIMS, torch.float16: (24, 64, 128), torch.float32: (80, 256)}
# Where a thin run looks at calls that are not causal.
_BOTH_WAYS = ((1, torch.float32), (17, torch.bfloat16), (129, torch.float32), (250, torch.bfloat16))


@dataclass(frozen=True)
class Check:
    """One thing that must hold; ``run`` takes "cpu" (the interpreter) or "cuda" and raises where it does not.

    Attributes:
        cost: about how many kernels it compiles.
        family: of checks that run the same kernels; its own name where that is empty.
    """

    name: str
    run: Callable[[str], None]
    gpu_only: bool = False
    cost: int = 8
    family: str = ""


def checks(cases: int, device: str, *, quick: bool = False) -> Iterator[Check]:
    """All checks in order of worth: what runs out of time is at the end. ``quick`` thins out combinations alone."""
    yield Check("chosen by default", gpu.chosen_by_default, gpu_only=True, cost=0)
    for length in LENGTHS:
        for dtype in DTYPES:
            for is_causal in (True, False):
                if quick and not is_causal and (length, dtype) not in _BOTH_WAYS:
                    continue
                family = f"{_name(dtype)}, {'causal' if is_causal else 'both ways'}"
                run = partial(shapes.grid, length, dtype, is_causal)
                yield Check(f"length {length}, {family}", run, family=family)
    yield from _real_sizes(device)
    yield from _horizons()
    for at, dtype in enumerate(DTYPES):
        for group, queries in ((1, 1), (4, 1), (2, 3))[at :: 3 if quick else 1]:
            name = f"decoding, {_name(dtype)}, group {group}, {queries} queries"
            yield Check(name, partial(decoding.decode, dtype, group, queries))
    yield Check("decoding, padded", decoding.decode_padded)
    for heads, kv_heads, queries in ((71, 1, 1), (16, 1, 5), (4, 2, 17), (6, 1, 64)):
        name = f"decoding, {heads} heads on {kv_heads}, {queries} queries"
        yield Check(name, partial(decoding.decode_many_rows, heads, kv_heads, queries))
    for dtype in DTYPES:
        yield Check(f"positions near 2^20, {_name(dtype)}", partial(shapes.far_positions, dtype))
    yield Check("positions beyond 2^30", shapes.positions_beyond_2_to_the_30)
    yield Check("steep slopes both ways", shapes.steep_both_ways)
    yield Check("rows 34 million elements apart", shapes.rows_far_apart)
    for dtype in DTYPES[1:]:
        yield Check(f"gradients of slopes, {_name(dtype)}", partial(shapes.gradients_of_slopes, dtype))
    for dtype in DTYPES[::2] if quick else DTYPES:
        yield Check(f"dropout, {_name(dtype)}", partial(options.dropout, dtype), cost=14)
    yield Check("dropout masks are those of the common generator", options.dropout_masks, cost=2)
    yield Check("padding", options.masks, cost=14)
    for window in options.WINDOWS:
        left, right = ("open" if side is None else side for side in window)
        yield Check(f"window {left} to {right}", partial(options.windows, window), cost=14)
    yield Check("packing", packing.packing, cost=21)
    yield Check("tables of packed sequences", packing.row_tables, cost=8)
    yield Check("values that are no bounds of sequences", packing.values_that_are_no_bounds, cost=4)
    yield Check("packed buffers longer than their sequences", packing.buffers_longer_than_their_sequences, cost=14)
    yield Check("packing within the horizon", packing.packing_within_the_horizon, cost=22, family="packed")
    for number in range(2 if quick else 6):
        yield Check(f"many packed, {number}", partial(packing.many_packed, number), cost=14, family="packed")
    yield Check("offsets", options.offsets, cost=21)
    yield Check("what is not finite stays with those who see it", options.not_finite)
    yield Check("gradients of keys and of values apart", options.gradients_apart, cost=14)
    yield Check("a score that overflows", options.overflow, cost=14)
    for kv_heads in (1, 3) if quick else (1, 2, 3, 6):
        yield Check(f"grouped queries, 6 on {kv_heads}", partial(shapes.groups, kv_heads), cost=14, family="grouped")
    for q_len, k_len in ((1, 250), (17, 129), (129, 17), (64, 250)):
        name = f"{q_len} queries, {k_len} keys"
        yield Check(name, partial(shapes.unequal_lengths, q_len, k_len), cost=14, family="unequal lengths")
    for q_len, k_len, offset in shapes.DIAGONALS:
        name = f"{q_len} queries from position {offset} on {k_len} keys"
        yield Check(name, partial(shapes.diagonals, q_len, k_len, offset), cost=14, family="unequal lengths")
    for head_dim in HEAD_DIMS:
        only = DTYPES[HEAD_DIMS.index(head_dim) % 3]
        for dtype in DTYPES:
            if head_dim in _FEWER[dtype] if device != "cpu" else dtype == only:
                run = partial(shapes.head_dims, head_dim, dtype)
                yield Check(f"head_dim {head_dim}, {_name(dtype)}", run, cost=14 if dtype == torch.bfloat16 else 7)
    for number in range(cases):
        yield Check(f"random call {number}", partial(shapes.random, number, 600 if device != "cpu" else 130))


def _real_sizes(device: str) -> Iterator[Check]:
    """What the kernels are for: lengths with a horizon, thousands of programs at once, graphs."""
    for dtype in (torch.bfloat16, torch.float32):
        for length in (1000, 2048, 4100):
            for head_dim in (64, 128):
                family = f"D={head_dim}, {_name(dtype)}"
                run = partial(gpu.long_calls, length, head_dim, dtype)
                yield Check(f"length {length}, {family}", run, gpu_only=True, cost=9, family=f"long, {family}")
    for head_dim in (64, 128) if device != "cpu" else (32,):
        family = f"long, D={head_dim}, bfloat16"
        yield Check(f"repeated, D={head_dim}", partial(gpu.repeated, head_dim), family=family)
    for name, run, cost in (
        ("CUDA graph, forward and backward", gpu.cuda_graph, 11), ("CUDA graph, decoding", gpu.decode_in_a_graph, 4),
        ("memory is linear", gpu.linear_memory, 11),
    ):  # fmt: skip
        yield Check(name, run, gpu_only=True, cost=cost)
    for kind in gpu.KINDS:
        # Each has kernels of its own, a dozen: all in one process would outlast the time of the checks.
        run = partial(gpu.no_synchronisation, kind)
        yield Check(f"no synchronisation, {kind}", run, gpu_only=True, cost=11)


def _horizons() -> Iterator[Check]:
    for is_causal in (True, False):
        how = "causal" if is_causal else "both ways"
        yield Check(f"horizon, {how}", partial(horizon.horizon, torch.float32, is_causal), family=f"horizon, {how}")
        yield Check(f"dropped mass, {how}", partial(horizon.dropped_mass, is_causal), family=f"horizon, {how}")
    yield Check("horizon, bfloat16", partial(horizon.horizon, torch.bfloat16, True))
    yield Check("horizon, tiles of 128", horizon.horizon_in_large_tiles, cost=14)
    yield Check("one tile on the diagonal", horizon.one_tile_on_the_diagonal, cost=1)
    for name, run in (
        ("what underflows is left out bit for bit", horizon.what_underflows_is_left_out_bit_for_bit),
        ("outliers beyond the horizon are kept", horizon.outliers_are_kept),
        ("slopes that are no numbers", horizon.slopes_that_are_no_numbers),
    ):
        yield Check(name, run, family="horizon, causal")


def shared(every: Sequence[Check], part: int, parts: int, device: str) -> list[Check]:
    """The part-th of so many parts, from 1, in the order of the whole.

    On a GPU time goes into compiling, and two processes that want the same kernel at once both compile it: families
    stay together, each given to the part that has least to do. The interpreter compiles nothing.
    """
    if device == "cpu":
        return list(every[part - 1 :: parts])
    families: dict[str, list[Check]] = {}
    for check in every:
        families.setdefault(check.family or check.name, []).append(check)
    loads = [0] * parts
    owner: dict[str, int] = {}
    for name, members in families.items():
        owner[name] = loads.index(min(loads))
        # The first of a family compiles what the others find in the cache, or nearly all of it.
        loads[owner[name]] += max(check.cost for check in members) + 2 * len(members)
    return [check for check in every if owner[check.family or check.name] == part - 1]


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
