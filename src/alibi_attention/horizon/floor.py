"""A lower bound on the softmax mass of every row, without any score but a few."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from alibi_attention.horizon.summary import KeySummary, head_chunks
from alibi_attention.problem import Problem
from alibi_attention.visibility import Rows


def mass_floor(problem: Problem, rows: Rows, query: Tensor, key: Tensor, slopes: Tensor, summary: KeySummary) -> Tensor:
    """A lower bound on each row's lse, less its own scale * q . center; (batch, num_heads, q_len) float64.

    Jensen: the log of a sum of W exponentials is at least ln W plus their mean exponent. Over the W keys nearest the
    row the mean score takes one difference of prefix sums of the keys; W = 1 (the nearest key alone) and W = 2/m,
    which is where ln W - m (W - 1) / 2 peaks, are both tried.
    """
    falling = slopes.detach().double().expand(problem.batch, -1)
    floor = torch.full((problem.batch, problem.num_heads, problem.q_len), -torch.inf, dtype=torch.float64)
    floor = floor.to(problem.device)
    widest = (2.0 / falling.clamp_min(1e-9)).round().clamp(1, problem.k_len).to(torch.int64)
    group = problem.group_size
    grouped_query = query.unflatten(1, (problem.num_kv_heads, group))
    rows, span = _keys_read(problem, rows, int(widest.max()))
    for at in head_chunks(problem):
        centered = key[at][:, :, span].double() - summary.center[at].double().unsqueeze(2)
        if problem.key_mask is not None:
            centered = centered.masked_fill(~problem.key_mask[at[0], None, span, None], 0.0)
        prefix = torch.nn.functional.pad(centered.cumsum(2), (0, 0, 1, 0))
        del centered
        for member in range(group):
            heads = slice(at[1].start * group + member, at[1].stop * group, group)
            queries = grouped_query[at[0], at[1], member].double() * problem.scale
            best = floor[at[0], heads]
            for width in (widest[at[0], heads], torch.ones_like(widest[at[0], heads])):
                for start, end in _nearest(problem, rows, at[0], width.unsqueeze(-1)):
                    bound = _jensen(queries, prefix, start, end, rows.position, at[0], falling[at[0], heads])
                    best = torch.fmax(best, bound)
            floor[at[0], heads] = best
    return floor


def _keys_read(problem: Problem, rows: Rows, widest: int) -> tuple[Rows, slice]:
    """The keys within ``widest`` of some row, and the rows counted from the first of them.

    A few queries at the end of a long cache thus read their own neighbourhood and nothing else.
    """
    if problem.q_len + 2 * widest >= problem.k_len:
        return rows, slice(0, problem.k_len)
    sees = rows.upper > rows.lower
    nearest = torch.maximum(rows.lower, torch.minimum(rows.upper, rows.position + 1))
    first = int(torch.where(sees, nearest, problem.k_len).min()) - widest
    first = max(0, first)
    end = max(first, min(problem.k_len, int(torch.where(sees, nearest, 0).max()) + widest))
    return Rows(*(part - first for part in rows)), slice(first, end)


def _nearest(problem: Problem, rows: Rows, batches: slice, width: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """First and end of the ``width`` visible keys nearest each row on its left, then, if not causal, on its right."""
    position, lower, upper = (_rows_of(part, batches).unsqueeze(1) for part in rows)
    end = torch.minimum(upper, position + 1)
    yield torch.maximum(lower, end - width), end.expand(-1, width.shape[1], -1)
    if not problem.is_causal:
        start = torch.maximum(lower, position)
        yield start.expand(-1, width.shape[1], -1), torch.minimum(upper, start + width)


def _rows_of(part: Tensor, batches: slice) -> Tensor:
    return part if part.shape[0] == 1 else part[batches]


def _jensen(
    queries: Tensor,
    prefix: Tensor,
    start: Tensor,
    end: Tensor,
    position: Tensor,
    batches: slice,
    falling: Tensor,
) -> Tensor:
    number = end - start
    length = prefix.shape[2] - 1
    total = _rows_at(prefix, end.clamp(0, length)) - _rows_at(prefix, start.clamp(0, length))
    count = number.clamp_min(1).double()
    mean_score = torch.einsum("bhqd,bhqd->bhq", queries, total) / count
    middle = (start + end - 1).double() / 2
    mean_bias = falling.unsqueeze(-1) * (_rows_of(position, batches).unsqueeze(1).double() - middle).abs()
    return torch.where(number > 0, count.log() + mean_score - mean_bias, -torch.inf)


def _rows_at(table: Tensor, index: Tensor) -> Tensor:
    """table[b, h, index[b, h, q]] as one selection of whole rows, several times faster than advanced indexing."""
    batch, heads, length, dim = table.shape
    head = torch.arange(batch * heads, device=table.device).view(batch, heads, 1) * length
    flat = table.reshape(-1, dim).index_select(0, (head + index).flatten())
    return flat.view(batch, heads, -1, dim)
