"""What the processes that share a sequence tell each other of their calls, before anything else is exchanged."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from alibi_attention.problem import SUPPORTED_DTYPES, Problem

# What must be the same everywhere, in the order it is told.
_SHARED = (
    "batch", "num_heads", "num_kv_heads", "head_dim", "value_dim", "dtype", "is_causal", "window", "window", "scale",
    "tolerance", "requires_grad", "slopes",
)  # fmt: skip


class Shares(NamedTuple):
    """Who has which part of the sequence: rank r the positions starts[r] to starts[r + 1]."""

    rank: int
    starts: tuple[int, ...]

    @property
    def total(self) -> int:
        return self.starts[-1]

    def span(self, rank: int) -> tuple[int, int]:
        return self.starts[rank], self.starts[rank + 1]


def process_group(group: dist.ProcessGroup | None) -> dist.ProcessGroup:
    """The group asked for, or that of all processes.

    Raises:
        ValueError: where there is none, or this process is not in it.
    """
    if not (dist.is_available() and dist.is_initialized()):
        raise ValueError(
            "group: expected processes that know each other, got none; call torch.distributed.init_process_group first"
        )
    found = dist.group.WORLD if group is None else group
    if not isinstance(found, dist.ProcessGroup) or dist.get_rank(found) < 0:
        raise ValueError(f"group: expected one that this process is in, got {group!r}; make it with dist.new_group")
    return found


def device_of(query: object, group: dist.ProcessGroup) -> torch.device:
    """Where the group's processes tell each other: a call that is refused may lie anywhere."""
    if dist.get_backend(group) == "nccl":
        return query.device if isinstance(query, Tensor) and query.is_cuda else torch.device("cuda")
    return query.device if isinstance(query, Tensor) and not query.is_meta else torch.device("cpu")


# What stands for the positions of a call that has none.
_NO_POSITIONS = (math.nan, math.nan)


def agree(
    problem: Problem | None, device: torch.device, group: dist.ProcessGroup, slopes: Tensor | None, *, trains: bool,
    positions: tuple[float, float] | None = None,
) -> Shares:  # fmt: skip
    """Learn how long each part is, and that all calls are of one kind.

    Args:
        problem: this process's call, of its own keys alone; None where it is refused, so that nobody waits for it.
        trains: whether gradients of its keys or values are wanted: then everybody takes part in the way back.
        positions: of the first and the last token here, where the caller has them.

    Raises:
        ValueError: in every process, where calls differ.
        RuntimeError: in the others, where one was refused.
    """
    told = torch.zeros(4 + len(_SHARED), dtype=torch.float64, device=device)
    if problem is not None:
        assert slopes is not None
        shared = (
            problem.batch, problem.num_heads, problem.num_kv_heads, problem.head_dim, problem.value_dim,
            SUPPORTED_DTYPES.index(problem.dtype), problem.is_causal, *problem.window, problem.scale, problem.tolerance,
            trains,
        )  # fmt: skip
        where = positions or _NO_POSITIONS
        told = torch.tensor([1.0, problem.q_len, *where, *shared, 0.0], dtype=torch.float64, device=device)
        # Told by one number, of which other slopes, or the same in another order, have another.
        flat = slopes.detach().double().flatten()
        told[-1] = (flat * torch.arange(1, flat.numel() + 1, device=flat.device)).sum()
    table = [torch.empty_like(told) for _ in range(dist.get_world_size(group))]
    dist.all_gather(table, told, group=group)
    rows = torch.stack(table).tolist()
    refused = [rank for rank, row in enumerate(rows) if row[0] == 0.0]
    rank = dist.get_rank(group)
    if refused and rank not in refused:
        raise RuntimeError(f"context_attention: the call of rank {refused[0]} was refused; its own error says why")
    if not refused:
        for name, *values in zip(_SHARED, *(row[4:] for row in rows), strict=True):
            other = next((r for r, value in enumerate(values) if value != values[0]), None)
            if other is not None:
                got = f"{values[0]:g} in rank 0 and {values[other]:g} in rank {other}"
                if name == "slopes":
                    got = f"others in rank {other} than in rank 0"
                elif name == "requires_grad":
                    name, got = "key", f"gradients wanted of key or value {_where(values)} alone"
                elif name == "dtype":
                    got = " and ".join(f"{SUPPORTED_DTYPES[int(values[r])]} in rank {r}" for r in (0, other))
                raise ValueError(f"{name}: expected the same in every process, got {got}")
        _check_positions([(row[2], row[3]) for row in rows])
    starts = [0]
    for row in rows:
        starts.append(starts[-1] + int(row[1]))
    return Shares(rank, tuple(starts))


def _check_positions(told: list[tuple[float, float]]) -> None:
    """Raises ValueError where a part does not begin behind the one before it, by what both say."""
    for rank in range(1, len(told)):
        (_, before), (first, _) = told[rank - 1 : rank + 1]
        if not (math.isnan(before) or math.isnan(first)) and first != before + 1:
            raise ValueError(
                "position_ids: expected those of one sequence, of which each process has a part, got parts that do not "
                f"follow one another, alike in every row, in rank {rank} and the one before; leave them out, which is "
                "the same, and give packed sequences a row each"
            )


def _where(values: list[float]) -> str:
    ranks = [str(rank) for rank, value in enumerate(values) if value]
    return f"in rank{'' if len(ranks) == 1 else 's'} {', '.join(ranks)}"
