"""Keys and values go to whom they are needed by, and their gradients come back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from alibi_attention.parallel.agreement import Shares
from alibi_attention.parallel.windows import Need


class Segment(NamedTuple):
    """Tokens [first, end) of one key head, counted from the start of the sequence."""

    head: int
    first: int
    end: int


def segments(needs: Sequence[Need], holder: tuple[int, int]) -> list[Segment]:
    """What a process with these needs takes from the holder of a part of the sequence."""
    found = []
    for head, need in enumerate(needs):
        for a, b in need.ranges():
            first, end = max(a, holder[0]), min(b, holder[1])
            if first < end:
                found.append(Segment(head, first, end))
    return found


class Exchange(torch.autograd.Function):
    """Own keys and values as they are, and in one row what comes from the others: keys, then values, by segment.

    The own ones go through it so that every process takes part in the way back, whatever it was sent.
    """

    @staticmethod
    def forward(
        ctx: Any, key: Tensor, value: Tensor, needs: Sequence[Sequence[Need]], shares: Shares, group: dist.ProcessGroup
    ) -> tuple[Tensor, Tensor, Tensor]:
        me, own = shares.rank, shares.span(shares.rank)
        ranks = range(len(needs))
        sent = [[] if rank == me else segments(needs[rank], own) for rank in ranks]
        width = key.shape[0] * (key.shape[3] + value.shape[3])
        taken = [[] if rank == me else segments(needs[me], shares.span(rank)) for rank in ranks]
        ctx.sent, ctx.start, ctx.group = sent, own[0], group
        sizes = tuple([width * sum(b - a for _, a, b in each) for each in whole] for whole in (sent, taken))
        ctx.sizes = sizes
        ctx.shapes = key.shape, value.shape
        parts = []
        for each in sent:
            for head, a, b in each:
                at = slice(a - own[0], b - own[0])
                parts += [key[:, head, at].reshape(-1), value[:, head, at].reshape(-1)]
        payload = torch.cat(parts) if parts else key.new_empty(0)
        received = _all_to_all(payload, sizes[0], sizes[1], group)
        return key.view_as(key), value.view_as(value), received

    @staticmethod
    def backward(ctx: Any, grad_key: Tensor, grad_value: Tensor, grad_received: Tensor) -> tuple[Tensor | None, ...]:
        sizes = ctx.sizes
        returned = _all_to_all(grad_received.contiguous(), sizes[1], sizes[0], ctx.group)
        # Of 16 bits sums are taken in 32.
        work = torch.promote_types(grad_key.dtype, torch.float32)
        grads, at = (grad_key.to(work, copy=True), grad_value.to(work, copy=True)), 0
        for each in ctx.sent:
            for head, a, b in each:
                for grad in grads:
                    place = grad[:, head, a - ctx.start : b - ctx.start]
                    place += returned[at : at + place.numel()].view(place.shape)
                    at += place.numel()
        return grads[0].to(grad_key.dtype), grads[1].to(grad_value.dtype), None, None, None


def _all_to_all(payload: Tensor, sent: list[int], taken: list[int], group: dist.ProcessGroup) -> Tensor:
    """As bytes: not every backend of torch.distributed knows every dtype."""
    size = payload.element_size()
    received = payload.new_empty(sum(taken))
    dist.all_to_all_single(
        received.view(torch.uint8), payload.contiguous().view(torch.uint8), [size * each for each in taken],
        [size * each for each in sent], group=group,
    )  # fmt: skip
    return received


def unpack(
    received: Tensor, needs: Sequence[Sequence[Need]], shares: Shares, key: Tensor, value: Tensor
) -> dict[Segment, tuple[Tensor, Tensor]]:
    """The segments in what came, own ones among them: (batch, tokens, dim) of keys and of values."""
    found: dict[Segment, tuple[Tensor, Tensor]] = {}
    at, batch = 0, key.shape[0]
    for rank in range(len(needs)):
        span = shares.span(rank)
        for each in segments(needs[shares.rank], span):
            if rank == shares.rank:
                here = slice(each.first - span[0], each.end - span[0])
                found[each] = key[:, each.head, here], value[:, each.head, here]
                continue
            parts = []
            for dim in (key.shape[3], value.shape[3]):
                size = batch * (each.end - each.first) * dim
                parts.append(received[at : at + size].view(batch, -1, dim))
                at += size
            found[each] = parts[0], parts[1]
    return found
