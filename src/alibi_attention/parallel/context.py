"""Attention over a sequence whose tokens lie in several processes."""

from __future__ import annotations

from typing import Any, Literal, overload

import torch
import torch.distributed as dist
from torch import Tensor

from alibi_attention.call import call_arguments, problem_of
from alibi_attention.dispatch import choose
from alibi_attention.merge import merge_attention
from alibi_attention.ops import alibi_attention
from alibi_attention.parallel.agreement import Shares, agree, device_of, process_group
from alibi_attention.parallel.exchange import Exchange, together
from alibi_attention.parallel.windows import ContextWindows, Need, find_windows
from alibi_attention.problem import Problem


@overload
def context_attention(
    query: Tensor, key: Tensor, value: Tensor, slopes: Tensor | None = ..., *, group: dist.ProcessGroup | None = ...,
    is_causal: bool = ..., scale: float | None = ..., window: tuple[int | None, int | None] | None = ...,
    tolerance: float | None = ..., return_lse: Literal[False] = ..., backend: str | None = ...,
) -> Tensor: ...  # fmt: skip
@overload
def context_attention(
    query: Tensor, key: Tensor, value: Tensor, slopes: Tensor | None = ..., *, group: dist.ProcessGroup | None = ...,
    is_causal: bool = ..., scale: float | None = ..., window: tuple[int | None, int | None] | None = ...,
    tolerance: float | None = ..., return_lse: Literal[True], backend: str | None = ...,
) -> tuple[Tensor, Tensor]: ...  # fmt: skip
def context_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    slopes: Tensor | None = None,
    *,
    group: dist.ProcessGroup | None = None,
    is_causal: bool = True,
    scale: float | None = None,
    window: tuple[int | None, int | None] | None = None,
    tolerance: float | None = None,
    return_lse: bool = False,
    backend: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """`alibi_attention` over the parts of one sequence that the processes of a group have, in the order of their ranks.

    ::

        q, k, v of rank r        positions s_r to s_(r+1)
        out of rank r            the rows s_r to s_(r+1) of alibi_attention over all of q, k and v

    Every process calls it at the same time with its own part, of a token at least; parts may differ in length. Where
    one wants gradients of keys or values all do, and all go back through it, be it with a gradient of 0. A process
    takes from others the keys inside its horizons and no more, so that what is sent, and what is computed, depends on
    how far the flattest heads see and not on the length of the sequence. Gradients of keys and values go back to where
    these are.

    The horizon is certified as in `alibi_attention`, for each row over the keys of all processes: half of ``tolerance``
    is for what is not sent, half for what is sent and skipped. To know it, processes exchange their keys' mean and the
    largest norm in every 64 of them. Lengths are looked at on the host, which waits for the device there.

    Args:
        query: (batch, num_heads, tokens here, head_dim).
        key, value: (batch, num_kv_heads, tokens here, head_dim and value_dim).
        slopes: as in `alibi_attention`, the same in every process; their gradient is of the rows here, and is to be
            added up over the processes, as those of all parameters are.
        group: of processes; all by default.
        is_causal, scale, window, tolerance, return_lse, backend: as in `alibi_attention`, the same in every process.

    Returns:
        out (batch, num_heads, tokens here, value_dim); with return_lse also lse (batch, num_heads, tokens here).

    Raises:
        ValueError: as `alibi_attention`; for other lengths of key than of query; where processes do not call alike.
        RuntimeError: where another process's call was refused.
    """
    found: Tensor | tuple[Tensor, Tensor] = attend_together(
        query, key, value, slopes, group=process_group(group), is_causal=is_causal, scale=scale, window=window,
        tolerance=tolerance, return_lse=return_lse, backend=backend,
    )  # fmt: skip
    return found


# Lengths are looked at, so that compiled code would break here at every one of them.
@torch.compiler.disable  # type: ignore[untyped-decorator]
def attend_together(
    query: Tensor, key: Tensor, value: Tensor, slopes: Tensor | None, *, group: dist.ProcessGroup, is_causal: bool,
    scale: float | None = None, window: tuple[int | None, int | None] | None = None, tolerance: float | None = None,
    return_lse: bool = False, backend: str | None = None, refusal: ValueError | None = None,
    positions: tuple[float, float] | None = None,
) -> Any:  # fmt: skip
    """`context_attention`; with a ``refusal`` of the caller's, which is raised once the others know of it, and the
    positions of the first and the last token here, which are compared with the others'."""
    problem, shares, tensors, found = _prepare(
        query, key, value, slopes, group, is_causal, scale, window, tolerance, backend, refusal, positions
    )
    query, key, value, slopes = tensors
    options: dict[str, Any] = {
        "is_causal": is_causal, "scale": problem.scale, "window": window, "backend": backend, "return_lse": True,
        "tolerance": problem.tolerance,
    }  # fmt: skip
    exchange: Any = Exchange
    windows = iter(exchange.apply(key, value, found, shares, group))
    outs, order = [], []
    for each in together(found[shares.rank]):
        members = [head * problem.group_size + member for head in each.heads for member in range(problem.group_size)]
        pairs = [(next(windows), next(windows)) for _ in each.need.ranges()]
        outs.append(_attend(query, slopes, members, each.need, pairs, shares, options))
        order += members
    out, lse = (torch.cat(each, dim=1) if len(each) > 1 else each[0] for each in zip(*outs, strict=True))
    if order != sorted(order):
        place = torch.tensor(order, device=out.device).argsort()
        out, lse = out.index_select(1, place), lse.index_select(1, place)
    return (out, lse) if return_lse else out


def context_windows(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    slopes: Tensor | None = None,
    *,
    group: dist.ProcessGroup | None = None,
    is_causal: bool = True,
    scale: float | None = None,
    window: tuple[int | None, int | None] | None = None,
    tolerance: float | None = None,
) -> ContextWindows:
    """What `context_attention` would exchange; every process calls it at the same time.

    Args:
        query, key, value, slopes, group, is_causal, scale, window, tolerance: as in `context_attention`.
    """
    problem, shares, tensors, found = _prepare(
        query, key, value, slopes, process_group(group), is_causal, scale, window, tolerance, None, None
    )
    size = problem.batch * (problem.head_dim + problem.value_dim) * tensors[1].element_size()
    return ContextWindows(shares.rank, shares.starts, found, size)


def _prepare(
    query: Tensor, key: Tensor, value: Tensor, slopes: Tensor | None, group: dist.ProcessGroup, is_causal: bool,
    scale: float | None, window: tuple[int | None, int | None] | None, tolerance: float | None, backend: str | None,
    refusal: ValueError | None, positions: tuple[float, float] | None = None,
) -> tuple[Problem, Shares, tuple[Tensor, Tensor, Tensor, Tensor], tuple[tuple[Need, ...], ...]]:  # fmt: skip
    problem: Problem | None = None
    refused: Exception | None = refusal
    try:
        _check_tokens(query, key)
        arguments = call_arguments(
            query, key, value, slopes, is_causal=is_causal, scale=scale, query_offset=0, key_mask=None, cu_seqlens=None,
            cu_seqlens_k=None, window=window, dropout_p=0.0, tolerance=tolerance, backend=backend,
        )  # fmt: skip
        query, key, value, slopes, *call = arguments
        problem, _ = problem_of(query, key, value, *call)
        choose(problem, backend)
    except Exception as error:
        # Whatever it is, memory that there is not among it: the others wait to hear of it.
        refused = refused or error
    trains = refused is None and torch.is_grad_enabled() and (key.requires_grad or value.requires_grad)
    shares = agree(
        None if refused else problem, device_of(query, group), group, slopes, trains=trains, positions=positions
    )
    if refused is not None:
        raise refused
    assert problem is not None
    assert slopes is not None
    # A half for what is not sent, a half for what is skipped of what is.
    problem = problem._replace(tolerance=problem.tolerance / 2)
    with torch.no_grad():
        found = find_windows(problem, query, key, value, slopes, shares, group)
    return problem, shares, (query, key, value, slopes), found


def _check_tokens(query: object, key: object) -> None:
    if not (isinstance(query, Tensor) and isinstance(key, Tensor) and query.dim() == key.dim() == 4):
        # Said by who looks at tensors.
        return
    if query.shape[2] == 0:
        raise ValueError(
            "query: expected a token at least in every process, got none here; divide the sequence among fewer, or "
            "otherwise"
        )
    if key.shape[2] != query.shape[2]:
        raise ValueError(
            f"key: expected as many tokens as query, {query.shape[2]}, got {key.shape[2]}; a process has the queries, "
            "keys and values of the same tokens"
        )


def _attend(
    query: Tensor, slopes: Tensor, members: list[int], need: Need, pairs: list[tuple[Tensor, Tensor]], shares: Shares,
    options: dict[str, Any],
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Output and lse of heads that need the same keys."""
    if len(members) < query.shape[1]:
        first, last = members[0], members[-1]
        if last - first + 1 == len(members):
            query, slopes = query[:, first : last + 1], slopes[..., first : last + 1]
        else:
            index = torch.tensor(members, device=query.device)
            query, slopes = query.index_select(1, index), slopes.index_select(-1, index)
    start = shares.starts[shares.rank]
    out, lse = alibi_attention(query, *pairs[-1], slopes, query_offset=start - need.first, **options)
    if need.sink:
        # Few keys, of which none is left out.
        first_out, first_lse = alibi_attention(
            query, *pairs[0], slopes, query_offset=start, **{**options, "tolerance": 0.0}
        )
        out, lse = merge_attention((first_out, out), (first_lse, lse))
    return out, lse
