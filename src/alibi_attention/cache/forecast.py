"""What a `HorizonCache` will hold, by the arithmetic that it holds it by, without a tensor of its size."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from alibi_attention.cache.run import PIECE, Run, dealt_from
from alibi_attention.cache.sizes import group_heads, nats_for_caps, reach_of
from alibi_attention.horizon.tiles import BLOCK_K
from alibi_attention.problem import compute_dtype, default_tolerance

CHUNK = PIECE
"""Tokens appended at a time, unless said otherwise."""

_NORM_BYTES = 8


def reaches_of_caps(
    logit_bound: float, slopes: Tensor, kv_heads: int, *, tolerance: float | None = None, center: float = 0.0
) -> list[float]:
    """How far back each key head is held in guaranteed mode; inf for one that forgets nothing.

    Args:
        logit_bound: scale * query_norm * key_norm, of the caps.
        slopes: (num_heads,).
        kv_heads: heads of keys, each shared by as many query heads.
        tolerance: of `HorizonCache`; None is rounding level, 2^-24.
        center: norm of the mean of the keys appended first, as a share of key_norm: from 0 to 1.
    """
    exact = slopes.double()
    norm = torch.full_like(exact, math.sqrt(logit_bound))
    nats = nats_for_caps(norm, norm, center * norm, exact, 1.0)
    tolerance = default_tolerance(torch.float32) if tolerance is None else tolerance
    return reach_of(nats - math.log(tolerance), exact, exact.shape[0] // kv_heads)


def rooms_after(length: int, reaches: Sequence[float], chunk: int = CHUNK) -> list[tuple[int, int]]:
    """Key heads of each ring, and tokens that its buffer has room for, after a text whose queries were all attended to.

    Args:
        length: of the text, in tokens.
        reaches: of each key head, as `reaches_of_caps` gives them.
        chunk: tokens appended at a time.
    """
    first = dealt_from(reaches)
    stop = length if first >= length else min(length, -(-int(first) // chunk) * chunk)
    whole = Run()
    _read_on(whole, stop, chunk)
    if stop == length:
        return [(len(reaches), whole.room)]
    rooms = []
    for heads in group_heads(list(reaches)):
        farthest = max(reaches[head] for head in heads)
        part = Run(None if farthest == math.inf else int(farthest), whole.room_of_part())
        part.end = stop
        _read_on(part, length, chunk)
        rooms.append((len(heads), part.room))
    return rooms


def _read_on(run: Run, length: int, chunk: int) -> None:
    """Append to a run until the text is ``length`` tokens long.

    What goes on as it did is taken at once: appends at which nothing moves, evictions that move a run that does not
    grow through its buffer, and all of that from one return to the buffer's front to the next.
    """
    rounds: dict[tuple[tuple[int, int, int], int], int] = {}
    steps: dict[tuple[int, int, int], tuple[int, int]] = {}
    while run.end < length:
        run.begin_at(run.first_needed(run.end))
        if run.start:
            step = (run.held, run.room, run.end % PIECE)
            before = rounds.get((step, run.offset))
            if before is not None:
                tokens = (length - run.end) // (run.end - before) * (run.end - before)
                run.start, run.end = run.start + tokens, run.end + tokens
                rounds, steps = {}, {}
                if run.end == length:
                    return
            end, offset = steps.get(step, (0, 0))
            if end and run.offset - offset == run.end - end:
                around = run.end - end
                tokens = min(run.room - run.offset - run.most(chunk), length - run.end) // around * around
                if tokens > 0:
                    run.begin_at(run.start + tokens)
                    run.end += tokens
                    if run.end == length:
                        return
            rounds[step, run.offset], steps[step] = run.end, (run.end, run.offset)
        run.extend(min(chunk, length - run.end))
        still = min(run.room - run.offset - run.held, length - run.end) // chunk
        if run.evicts_from != math.inf:
            still = min(still, -(-(int(run.evicts_from) - run.end) // chunk))
        run.end += max(0, still) * chunk


def bytes_after(
    length: int, reaches: Sequence[float], head_dim: int, dtype: torch.dtype, *, chunk: int = CHUNK
) -> int:  # fmt: skip
    """`HorizonCache.bytes_held` in guaranteed mode, of one sequence of one layer: buffers with their room, and summary.

    Args:
        length, reaches, chunk: as `rooms_after`.
        head_dim: of keys and of values.
        dtype: of both.
    """
    tile = 2 * BLOCK_K * head_dim * dtype.itemsize + _NORM_BYTES
    tiles = sum(heads * room // BLOCK_K for heads, room in rooms_after(length, reaches, chunk))
    # The center is held once for all heads, and once beside each ring.
    return tiles * tile + 2 * len(reaches) * head_dim * compute_dtype(dtype).itemsize
