"""Keys and values go to whom they are needed by, and their gradients come back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from alibi_attention.parallel.agreement import Shares
from alibi_attention.parallel.windows import Need


class Together(NamedTuple):
    """Key heads of a process that need the same keys."""

    heads: tuple[int, ...]
    need: Need

    def picked(self) -> slice | list[int]:
        """What picks the heads out of a dimension of theirs: a view where they are neighbours."""
        first, last = self.heads[0], self.heads[-1]
        return slice(first, last + 1) if last - first + 1 == len(self.heads) else list(self.heads)


class Segment(NamedTuple):
    """Tokens [first, end) of some heads, counted from the start of the sequence; for one range of their need."""

    group: int
    range: int
    first: int
    end: int


def together(needs: Sequence[Need]) -> tuple[Together, ...]:
    """Heads by what they need, in the order of the first of each."""
    found: dict[Need, list[int]] = {}
    for head, need in enumerate(needs):
        found.setdefault(need, []).append(head)
    return tuple(Together(tuple(heads), need) for need, heads in found.items())


def segments(groups: Sequence[Together], holder: tuple[int, int]) -> list[Segment]:
    """What a process with these needs takes from the holder of a part of the sequence."""
    found = []
    for number, group in enumerate(groups):
        for place, (a, b) in enumerate(group.need.ranges()):
            first, end = max(a, holder[0]), min(b, holder[1])
            if first < end:
                found.append(Segment(number, place, first, end))
    return found


class Exchange(torch.autograd.Function):
    """The keys and values that each group of heads needs: for each of its ranges two tensors, (batch, heads of the
    group, tokens, dim).

    Everybody's own keys are in what it returns, so that every process takes part in the way back.
    """

    @staticmethod
    def forward(
        ctx: Any, key: Tensor, value: Tensor, needs: Sequence[Sequence[Need]], shares: Shares, group: dist.ProcessGroup
    ) -> tuple[Tensor, ...]:
        me, own = shares.rank, shares.span(shares.rank)
        groups = [together(each) for each in needs]
        sent = [[] if rank == me else segments(of_rank, own) for rank, of_rank in enumerate(groups)]
        taken = [[] if rank == me else segments(groups[me], shares.span(rank)) for rank in range(len(needs))]
        ctx.plan = groups, sent, taken, segments(groups[me], own), own, group
        ctx.shapes, ctx.dtype = (key.shape, value.shape), key.dtype
        dims = key.shape[3], value.shape[3]
        ctx.sizes = (
            [_numbers(key.shape[0], dims, groups[rank], each) for rank, each in enumerate(sent)],
            [_numbers(key.shape[0], dims, groups[me], each) for each in taken],
        )
        parts = []
        for rank, each in enumerate(sent):
            for segment in each:
                heads = groups[rank][segment.group].picked()
                parts += [_tokens(whole, heads, segment, own).reshape(-1) for whole in (key, value)]
        payload = torch.cat(parts) if parts else key.new_empty(0)
        received = _all_to_all(payload, *ctx.sizes, group=group)
        windows = _windows(groups[me], key, value)
        for segment in ctx.plan[3]:
            heads = groups[me][segment.group].picked()
            for window, whole in zip(windows[segment.group, segment.range], (key, value), strict=True):
                _place(window, groups[me], segment).copy_(_tokens(whole, heads, segment, own))
        _unpacked(received, windows, groups[me], taken)
        return tuple(window for pair in windows.values() for window in pair)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        groups, sent, taken, kept, own, group = ctx.plan
        mine = groups[dist.get_rank(group)]
        # Of 16 bits sums are taken in 32.
        work = torch.promote_types(ctx.dtype, torch.float32)
        totals = [grads[0].new_zeros(shape, dtype=work) for shape in ctx.shapes]
        places = [(number, place) for number, each in enumerate(mine) for place in range(len(each.need.ranges()))]
        windows = {at: (grads[2 * i], grads[2 * i + 1]) for i, at in enumerate(places)}
        for segment in kept:
            heads = mine[segment.group].picked()
            for total, window in zip(totals, windows[segment.group, segment.range], strict=True):
                _tokens(total, heads, segment, own, add=_place(window, mine, segment))
        parts = [
            _place(window, mine, segment).reshape(-1)
            for each in taken for segment in each for window in windows[segment.group, segment.range]
        ]  # fmt: skip
        payload = torch.cat(parts) if parts else grads[0].new_empty(0)
        returned = _all_to_all(payload, ctx.sizes[1], ctx.sizes[0], group=group)
        at = 0
        for rank, each in enumerate(sent):
            for segment in each:
                heads = groups[rank][segment.group]
                for total in totals:
                    shape = (total.shape[0], len(heads.heads), segment.end - segment.first, total.shape[3])
                    size = torch.Size(shape).numel()
                    _tokens(total, heads.picked(), segment, own, add=returned[at : at + size].view(shape))
                    at += size
        return totals[0].to(ctx.dtype), totals[1].to(ctx.dtype), None, None, None


def _numbers(batch: int, dims: tuple[int, int], groups: Sequence[Together], each: Sequence[Segment]) -> int:
    tokens = sum(len(groups[segment.group].heads) * (segment.end - segment.first) for segment in each)
    return batch * sum(dims) * tokens


def _tokens(
    whole: Tensor, heads: slice | list[int], segment: Segment, own: tuple[int, int], add: Tensor | None = None
) -> Tensor:
    """The segment out of this process's part, (batch, heads, tokens, dim); with ``add`` that is added to it there."""
    part = whole[:, :, segment.first - own[0] : segment.end - own[0]]
    if add is not None:
        if isinstance(heads, slice):
            part[:, heads] += add
        else:
            part[:, heads] = part[:, heads] + add
    return part[:, heads]


def _place(window: Tensor, groups: Sequence[Together], segment: Segment) -> Tensor:
    first = groups[segment.group].need.ranges()[segment.range][0]
    return window[:, :, segment.first - first : segment.end - first]


def _windows(groups: Sequence[Together], key: Tensor, value: Tensor) -> dict[tuple[int, int], tuple[Tensor, Tensor]]:
    """Room for what each group needs, by group and range."""
    found = {}
    for number, group in enumerate(groups):
        for place, (a, b) in enumerate(group.need.ranges()):
            shape = key.shape[0], len(group.heads), b - a
            found[number, place] = (
                key.new_empty(*shape, key.shape[3]),
                value.new_empty(*shape, value.shape[3]),
            )
    return found


def _unpacked(
    received: Tensor, windows: dict[tuple[int, int], tuple[Tensor, Tensor]], groups: Sequence[Together],
    taken: Sequence[Sequence[Segment]],
) -> None:  # fmt: skip
    at = 0
    for each in taken:
        for segment in each:
            for window in windows[segment.group, segment.range]:
                place = _place(window, groups, segment)
                place.copy_(received[at : at + place.numel()].view(place.shape))
                at += place.numel()


def _all_to_all(payload: Tensor, sent: list[int], taken: list[int], *, group: dist.ProcessGroup) -> Tensor:
    """As bytes: not every backend of torch.distributed knows every dtype."""
    size = payload.element_size()
    received = payload.new_empty(sum(taken))
    dist.all_to_all_single(
        received.view(torch.uint8), payload.contiguous().view(torch.uint8), [size * each for each in taken],
        [size * each for each in sent], group=group,
    )  # fmt: skip
    return received
