"""Rings and first tiles of all heads: what a cache that forgets still holds, and reading it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from alibi_attention.backends.appending import Known
from alibi_attention.cache.auditor import Auditor
from alibi_attention.cache.common import Drafted, bytes_of, check_continues, lasting, mean_key
from alibi_attention.cache.rings import Ring
from alibi_attention.cache.sinks import Sink
from alibi_attention.cache.steps import Part, attend_to_parts, may_be_put, new_radii
from alibi_attention.call import call_arguments
from alibi_attention.checks.values import values_can_be_read
from alibi_attention.horizon.summary import distances_from
from alibi_attention.horizon.tiles import BLOCK_K
from alibi_attention.ops import run_forward

if TYPE_CHECKING:
    from typing_extensions import Self


class Store(Drafted):
    """Keys and values of a batch, without those evicted.

    `let_go`, `append`, `crop` and `reorder` are for drafts.

    Args:
        key, value: (batch, num_kv_heads, tokens, dim), the first to come, for shape, dtype and device.
        key_mask: theirs.

    Attributes:
        length: tokens seen.
        safe_from: evictions so far leave queries from this position on what they need; 0 before the first.
        center: (batch, num_kv_heads, head_dim), what radii are taken about: the mean of the first keys.
        farther: (batch, num_kv_heads) float64, the largest radius of any key seen outside the first tiles.
        center_norm: (batch, num_kv_heads) float64.
        longest: (batch, num_kv_heads) float64, no finite key is longer, its distance to the center added.
        padding: (batch,) int64, tokens before each sequence; None where there never were any.
        rings, sinks: in the same order; a sink is there once something of its ring was evicted.
    """

    def __init__(self, key: Tensor, value: Tensor, key_mask: Tensor | None) -> None:
        self.length = self.safe_from = 0
        self.like = key[:, :, :1].detach().clone(), value[:, :, :1].detach().clone()
        with lasting():
            self.center = mean_key(key, key_mask).clone()
            self.longest = torch.zeros(key.shape[:2], dtype=torch.float64, device=key.device)
            self.farther = torch.full_like(self.longest, -torch.inf)
        self.center_norm = torch.linalg.vector_norm(self.center, dim=-1, dtype=torch.float64)
        self.padding: Tensor | None = None
        self.most_padding = 0
        self.rings = [Ring(list(range(key.shape[1])), key, value, 0)]
        self.sinks: list[Sink | None] = [None]
        self._place_heads()

    def draft(self) -> Self:
        other = super().draft()
        other.rings, other.sinks = [ring.draft() for ring in self.rings], list(self.sinks)
        return other

    def _place_heads(self) -> None:
        """Where the heads of each ring are; `inverse` puts the rings' results back in the order of heads."""
        order = [head for ring in self.rings for head in ring.heads]
        device = self.center.device
        for ring in self.rings:
            ring.center = self.center[:, ring.heads].contiguous()
            ring.index, ring.of = torch.tensor(ring.heads, device=device), self.center.shape[1]
        self._is_sorted = order == sorted(order)
        self._order = torch.tensor(order, device=device)

    def _begun(self, key_mask: Tensor) -> Tensor:
        """(batch,) bool, the rows that hold a token."""
        if self.padding is None:
            return key_mask.new_full(key_mask.shape[:1], self.length > 0)
        return self.padding != self.length

    def check_mask(self, key_mask: Tensor) -> None:
        """On every device: `append` reads how much padding there is, and so waits for a GPU in any case.

        Raises:
            ValueError: for padding after tokens.
        """
        check_continues(key_mask, self._begun(key_mask), waits=True)

    def _padding_added(self, key_mask: Tensor) -> Tensor:
        """(batch,) leading padding of these tokens, in rows that are nothing but padding so far."""
        return (key_mask.cumsum(1) == 0).sum(1).masked_fill(self._begun(key_mask), 0)

    def is_padding(self, first: int, end: int) -> Tensor | None:
        """(batch, end - first) bool for the tokens from ``first`` to ``end``; None where none of them is padding."""
        if self.padding is None or first >= self.most_padding:
            return None
        return torch.arange(first, end, device=self.padding.device) < self.padding.unsqueeze(1)

    def append(self, key: Tensor, value: Tensor, key_mask: Tensor | None) -> Callable[[], None]:
        """Hold more tokens; padding, whatever it is, as zeros. A mask has passed `check_mask`.

        What is returned writes them, once, and takes no memory.
        """
        tokens = key.shape[2]
        if key_mask is not None:
            added = self._padding_added(key_mask)
            self.padding = added if self.padding is None else self.padding + added
            self.most_padding = int(self.padding.max())
            key, value = (t.masked_fill(~key_mask[:, None, :, None], 0.0) for t in (key, value))
        radii = new_radii(self.center, key, value)
        if key_mask is not None:
            radii = radii.masked_fill(~key_mask.unsqueeze(1), -torch.inf)
        if len(self.rings) == 1:
            writes = [self.rings[0].append(key, value, radii)]
        else:
            writes = [
                ring.append(*(_heads(t, ring.heads, ring.index) for t in (key, value, radii))) for ring in self.rings
            ]
        self._remember(radii)
        self.length += tokens
        return _all_of(writes)

    def step(self, key: Tensor, value: Tensor) -> Callable[[], None] | None:
        """`append` of a few tokens for which nothing goes or moves, not in a draft; None where it has to be that.

        What is returned writes them, once.
        """
        # Many are shared by several threads on the long way; what is known of all keys is carried on by one.
        if key.shape[2] > BLOCK_K or self.length < self.most_padding + BLOCK_K or not may_be_put(key, value):
            return None
        found = []
        for ring in self.rings:
            if ring.evicts_from <= self.length or not ring.has_room(key.shape[2]):
                return None
            steps, at = ring.steps(), ring.offset + ring.held
            prepared = steps.find_append(key, value, at)
            if prepared is None:
                return None
            found.append((ring, steps, prepared, at))
        known = Known(self.center_norm, self.longest, self.farther)

        def write() -> None:
            for ring, steps, prepared, at in found:
                steps.put(prepared, key, value, at, known)
                ring.end += key.shape[2]
            self.length += key.shape[2]

        return write

    def _remember(self, radii: Tensor) -> None:
        most = radii.squeeze(2) if radii.shape[2] == 1 else radii.amax(2)
        finite = most
        if not (values_can_be_read(radii.device) and bool(most.sum() < torch.inf)):
            finite = radii.masked_fill(radii == torch.inf, -torch.inf).amax(2)
        self.longest = torch.maximum(self.longest, self.center_norm + finite)
        if self.length < self.most_padding + BLOCK_K:
            index = torch.arange(self.length, self.length + radii.shape[2], device=radii.device)
            most = radii.masked_fill((index < self.first_tile() + BLOCK_K).unsqueeze(1), -torch.inf).amax(2)
        self.farther = torch.maximum(self.farther, most)

    def first_tile(self) -> Tensor:
        """(batch or 1, 1) position of the tile of each row's first token."""
        if self.padding is None:
            return torch.zeros(1, 1, dtype=torch.int64, device=self.center.device)
        return (self.padding // BLOCK_K * BLOCK_K).unsqueeze(1)

    def _starts(self, position: int) -> list[int]:
        """Where each ring may begin for queries from ``position`` on."""
        apart = set() if self.padding is None else set(self.first_tile().flatten().tolist())
        return [ring.first_needed(position, apart) for ring in self.rings]

    def let_go(self, auditor: Auditor | None) -> None:
        """Evict what no query from the present length on needs, entering it into the books."""
        position = self.length
        starts = self._starts(position)
        if all(start == ring.start for start, ring in zip(starts, self.rings, strict=True)):
            return
        self.safe_from = position
        if auditor is not None:
            auditor.begin(position)
        for number, (ring, start) in enumerate(zip(self.rings, starts, strict=True)):
            if start == ring.start:
                continue
            if auditor is not None:
                self._enter(number, ring.evicted, start + BLOCK_K, auditor)
            ring.evict(start, _heads(self.farther, ring.heads, ring.index))
        if auditor is not None:
            auditor.close()

    def _enter(self, number: int, low: int, high: int, auditor: Auditor) -> None:
        ring = self.rings[number]
        first = self.first_tile()
        index = torch.arange(low, high, device=first.device)
        radii = distances_from(ring.center, *ring.span(low, high))
        padding = self.is_padding(low, high)
        if padding is not None:
            radii = radii.masked_fill(padding.unsqueeze(1), -torch.inf)
        in_sink = None
        if low < self.most_padding + BLOCK_K:
            sink = self.sinks[number]
            each = first.flatten().expand(ring.key.shape[0]).clone()
            sink = self.sinks[number] = Sink(ring, each) if sink is None else sink.draft()
            sink.first = each
            sink.take(ring, low, high)
            in_sink = ((index >= first) & (index < first + BLOCK_K)).expand(ring.key.shape[0], -1)
        group = auditor.slopes.shape[0] // self.center.shape[1]
        heads = torch.tensor([head * group + member for head in ring.heads for member in range(group)])
        auditor.take(heads.to(index.device), radii.repeat_interleave(group, 1), low, in_sink)

    def deal(self, groups: list[list[int]]) -> None:
        """Give each group of heads a ring of its own, before anything is evicted."""
        dealt = self.draft()
        dealt.rings = self.rings[0].split(groups)
        dealt.sinks = [None] * len(groups)
        dealt._place_heads()
        self.adopt(dealt)

    def attend(self, query: Tensor, slopes: Tensor, **call: Any) -> tuple[Tensor, Tensor]:
        """Output and lse over what is held, from one call of the operator for each ring."""
        group = query.shape[1] // self.center.shape[1]
        if len(self.rings) > 1 and self._is_sorted and query.shape[0] == 1 and self._is_past_padding():
            together = [
                Part(ring.steps(), ring.offset, ring.offset + ring.held, len(ring.heads) * group) for ring in self.rings
            ]
            found = attend_to_parts(together, query, slopes, **call)
            if found is not None:
                return found
        parts = []
        for ring, (queries, falling) in zip(self.rings, self._dealt(query, slopes, group), strict=True):
            padding = self.is_padding(ring.start, ring.end)
            if padding is None:
                results = ring.steps().attend(
                    queries, falling, ring.offset, ring.offset + ring.held, return_lse=True, **call
                )
                if results is not None:
                    parts.append((results[0], results[1]))
                    continue
            key, value, norms = ring.view()
            mask = None if padding is None else ~padding
            arguments = call_arguments(
                queries, key, value, falling, is_causal=True, query_offset=None, key_mask=mask, cu_seqlens=None,
                cu_seqlens_k=None, dropout_p=0.0, key_center=ring.center, key_norms=norms, autocast=False, **call,
            )  # fmt: skip
            parts.append(run_forward(arguments))
        return self._joined(parts, group)

    def _is_past_padding(self) -> bool:
        return self.padding is None or min(ring.start for ring in self.rings) >= self.most_padding

    def _dealt(self, query: Tensor, slopes: Tensor, group: int) -> list[tuple[Tensor, Tensor]]:
        if len(self.rings) == 1:
            return [(query, slopes)]
        if not self._is_sorted:
            order = _grouped(self._order, group)
            query, slopes = query.index_select(1, order), slopes.index_select(0, order)
        sizes = [len(ring.heads) * group for ring in self.rings]
        return list(zip(query.split(sizes, 1), slopes.split(sizes), strict=True))

    def _joined(self, parts: list[tuple[Tensor, Tensor]], group: int) -> tuple[Tensor, Tensor]:
        if len(parts) == 1:
            return parts[0]
        out, lse = (torch.cat(each, 1) for each in zip(*parts, strict=True))
        if self._is_sorted:
            return out, lse
        back = _grouped(self._order, group).argsort()
        return out.index_select(1, back), lse.index_select(1, back)

    def attend_sinks(self, query: Tensor, slopes: Tensor, position: int, **call: Any) -> tuple[Tensor, Tensor] | None:
        """The same over the first tiles that have left their rings; None where there are none."""
        if all(sink is None for sink in self.sinks):
            return None
        group = query.shape[1] // self.center.shape[1]
        padding = self.padding
        if padding is None:
            padding = torch.zeros(query.shape[0], dtype=torch.int64, device=query.device)
        parts = []
        for sink, (queries, falling) in zip(self.sinks, self._dealt(query, slopes, group), strict=True):
            if sink is None:
                out = queries.new_zeros(*queries.shape[:3], self.like[1].shape[3])
                dtype = torch.float64 if query.dtype == torch.float64 else torch.float32
                parts.append((out, queries.new_full(queries.shape[:3], -torch.inf, dtype=dtype)))
            else:
                parts.append(sink.attend(queries, falling, position, padding, **call))
        return self._joined(parts, group)

    def crop(self, length: int) -> Callable[[], None]:
        """Forget the tokens from ``length`` on; what is returned writes, once, and takes no memory."""
        first = length // BLOCK_K * BLOCK_K
        padding = self.is_padding(first, length)
        writes = []
        for ring in self.rings:
            radii = None
            if first < length:
                radii = new_radii(ring.center, *ring.span(first, length))
                if padding is not None:
                    radii = radii.masked_fill(padding.unsqueeze(1), -torch.inf)
            writes.append(ring.crop(length, radii))
        self.length = length
        if self.padding is not None:
            self.padding = self.padding.clamp_max(length)
            self.most_padding = int(self.padding.max())
        return _all_of(writes)

    def reorder(self, index: Tensor) -> None:
        """Make row b of the batch what row index[b] was."""
        index = index.to(self.center.device)
        with lasting():
            for name in ("center", "longest", "farther", "padding", "center_norm"):
                held = getattr(self, name)
                if held is not None:
                    setattr(self, name, held.index_select(0, index))
        self.like = self.like[0].index_select(0, index), self.like[1].index_select(0, index)
        self.sinks = [None if sink is None else sink.draft() for sink in self.sinks]
        for part in (*self.rings, *self.sinks):
            if part is not None:
                part.reorder(index)
        self._place_heads()

    @property
    def bytes_held(self) -> int:
        buffers = [t for ring in self.rings for t in (ring.key, ring.value, ring.norms, ring.center)]
        buffers += [t for sink in self.sinks if sink is not None for t in (sink.key, sink.value)]
        return bytes_of(*buffers, self.center, self.padding)


def _all_of(writes: list[Callable[[], None]]) -> Callable[[], None]:
    def write() -> None:
        for each in writes:
            each()

    return write


def _heads(tensor: Tensor, heads: list[int], index: Tensor) -> Tensor:
    """Some heads of a tensor: a view where they are neighbours."""
    if heads[-1] - heads[0] + 1 == len(heads):
        return tensor[:, heads[0] : heads[-1] + 1]
    return tensor.index_select(1, index)


def _grouped(order: Tensor, group: int) -> Tensor:
    """Query heads in the order of key heads."""
    if group == 1:
        return order
    return (order.unsqueeze(1) * group + torch.arange(group, device=order.device)).flatten()
