"""A cache that forgets what can no longer matter, and proves it: constant memory however long the text."""

from __future__ import annotations

import math
from typing import Literal, overload

import torch
from torch import Tensor

from alibi_attention.cache.audited import Audit
from alibi_attention.cache.caps import Caps, check_keys
from alibi_attention.cache.common import check_append, check_index, check_length, outside_compiler, shape_words
from alibi_attention.cache.kv import KVCache
from alibi_attention.cache.options import Many, make_options
from alibi_attention.cache.proof import HorizonCertificate
from alibi_attention.cache.run import PIECE, dealt_from
from alibi_attention.cache.sizes import group_heads
from alibi_attention.cache.store import Store
from alibi_attention.call import autocast_is_on
from alibi_attention.checks.options import check_flag
from alibi_attention.checks.positions import check_key_mask
from alibi_attention.checks.tensors import check_tensor, check_tensors
from alibi_attention.checks.values import plain
from alibi_attention.problem import default_tolerance
from alibi_attention.slopes import alibi_slopes


class HorizonCache:
    """The keys and values that queries to come can still need, of a batch of sequences without end.

    ::

        cache = HorizonCache()
        cache.append(key, value)                  # a prompt, a chunk of one, or a single token
        out = cache.attend(query, slopes)         # the queries of those tokens
        print(cache.certificate())

    Each key head keeps whole tiles as far back as its flattest query head looks, and memory stops growing when the
    window of the flattest head of all is full. Positions are exact at any length. What a key that has gone would have
    weighed is bounded, in one of two ways:

    - ``audited``: the mass of evicted keys is kept as a bound, for each query head, by norm of the query; every row
      attended to is held against it. Windows are found from the rows seen so far, with ``headroom`` to spare, and widen
      when it is used up. A row that may have lost more than the tolerance is never passed over: ``on_violation`` says
      what happens.
    - ``guaranteed``: norms of queries and keys are capped, as QK norms cap them. The windows follow from the caps,
      no row can lose more than the tolerance, and a norm above its cap is refused.

    What is still held is attended to by the same kernels, in the same tiles and by the same tests as in a `KVCache`,
    and the result is the same to the last bit wherever those tests come out the same (docs/streaming.md). The first
    tile of a sequence, where attention sinks live, is kept for as long as it may matter.

    Args:
        mode: "audited" or "guaranteed".
        query_norm: guaranteed: caps on |q|, one number or one for each query head.
        key_norm: guaranteed: caps on |k|, one number or one for each key head.
        window: audited: tokens to keep before a query, one number or one for each key head; found by itself by default.
            The last 1,024 stay in any case, and keys go 512 at a time.
        headroom: audited: nats by which windows found by themselves are wider than the rows seen ask for; 8 by default.
        tolerance: the largest share of a row's softmax mass that evicted keys may hold, beside what attention itself
            may skip; None is rounding level, 2^-24 (2^-53 in float64).
        on_violation: audited: "raise" `HorizonViolation`, "warn" with `HorizonWarning` and go on, or "refetch": answer
            from ``backing``.
        backing: a full cache to keep beside this one and to refetch from: a `KVCache`, or "cpu" for one in host memory.

    Raises:
        ValueError: for options that do not go together.

    Source: docs/maths.md, section 9.
    """

    def __init__(
        self,
        mode: Literal["audited", "guaranteed"] = "audited",
        *,
        query_norm: Many | None = None,
        key_norm: Many | None = None,
        window: Many | None = None,
        headroom: float | None = None,
        tolerance: float | None = None,
        on_violation: Literal["raise", "warn", "refetch"] = "raise",
        backing: KVCache | Literal["cpu"] | None = None,
    ) -> None:
        has_backing = backing is not None
        self._options = make_options(mode, query_norm, key_norm, window, headroom, tolerance, on_violation, has_backing)
        if has_backing and backing != "cpu" and not isinstance(backing, KVCache):
            raise ValueError(f"backing: expected a KVCache, 'cpu' or None, got {backing!r}")
        if isinstance(backing, KVCache) and backing.length:
            raise ValueError(
                f"backing: expected an empty KVCache, got one of {backing.length} tokens; this cache fills it"
            )
        self._backing: KVCache | None = KVCache() if backing == "cpu" else backing
        self._backing_device = torch.device("cpu") if backing == "cpu" else None
        self._clear()

    def _clear(self) -> None:
        self._store: Store | None = None
        self._slopes: Tensor | None = None
        self._scale: float | None = None
        self._judge: Audit | Caps | None = None
        self._is_settled = False
        # Where windows were found last; and before heads were dealt out among rings, the position to find them at next.
        self._settled_at = 0
        self._deals_from: float = 2 * PIECE
        # While tokens are moved where they lie: an interrupt then leaves some moved and some not.
        self._is_torn = False

    @property
    def length(self) -> int:
        """Tokens seen, padding included."""
        return 0 if self._store is None else self._store.length

    @property
    def bytes_held(self) -> int:
        """Memory of keys, values and their summary; some numbers a head, the audit's books, and a full cache aside."""
        return 0 if self._store is None else self._store.bytes_held

    @property
    def tolerance(self) -> float:
        """The largest share of a row's softmax mass that evicted keys may hold."""
        given = self._options.tolerance
        if given is not None:
            return given
        return default_tolerance(torch.float32 if self._store is None else self._store.like[0].dtype)

    def __repr__(self) -> str:
        if self._store is None:
            return f"HorizonCache({self._options.mode}, empty)"
        held = ", ".join(f"{ring.held:,}" for ring in self._store.rings)
        words = shape_words(self.length, *self._store.like)
        return f"HorizonCache({self._options.mode}, {words}, {self.bytes_held:,} bytes, rings of {held} tokens)"

    @outside_compiler
    def append(self, key: Tensor, value: Tensor, *, key_mask: Tensor | None = None) -> None:
        """Add the keys and values of the next tokens, after letting go of those that no query from here on needs.

        Args:
            key: (batch, num_kv_heads, tokens, head_dim).
            value: (batch, num_kv_heads, tokens, value_dim).
            key_mask: (batch, tokens) bool, False for padding, on the left only. It is read: on a GPU, leave it out
                where there is no padding.

        Raises:
            ValueError: as `KVCache.append`, and for padding after tokens on every device; in guaranteed mode for a key
                norm above its cap, and for keys or values that are not finite; for a full cache beside this one that
                others have changed.
        """
        self._check_whole()
        if key_mask is None and self._append_shortly(key, value):
            return
        store = self._store
        check_append(key, value, *((None, None) if store is None else store.like))
        if key_mask is not None:
            check_key_mask(key_mask, key.shape[0], key.shape[2], key.device)
        if store is None:
            store = Store(key, value, key_mask)
        if key_mask is not None:
            store.check_mask(key_mask)
        if self._options.mode == "guaranteed":
            check_keys(self._options, key, value, key_mask)
        judge = self._judge
        if judge is not None:
            self._settle(store, judge)
        draft, auditor = store.draft(), judge.auditor.draft() if isinstance(judge, Audit) else None
        if judge is not None:
            draft.let_go(auditor)
        write = draft.append(key, value, key_mask)
        if self._backing is not None:
            device = self._backing_device or key.device
            mask = None if key_mask is None else key_mask.to(device)
            self._backing.append(key.to(device), value.to(device), key_mask=mask)
        # Nothing from here on takes memory: an append that fails has changed nothing, and may be repeated.
        self._is_torn = True
        write()
        store.adopt(draft)
        self._store = store
        if isinstance(judge, Audit) and auditor is not None:
            judge.auditor.adopt(auditor)
        self._is_torn = False

    def _append_shortly(self, key: Tensor, value: Tensor) -> bool:
        """`append` where nothing is evicted or moved and no window is looked for: most steps of decoding."""
        store, judge = self._store, self._judge
        if store is None or judge is None or self._backing is not None or self._may_settle(store):
            return False
        write = store.step(key, value)
        if write is None:
            return False
        if self._options.mode == "guaranteed":
            check_keys(self._options, key, value, None)
        self._is_torn = True
        write()
        self._is_torn = False
        return True

    def _check_whole(self) -> None:
        if self._is_torn:
            raise ValueError(
                "cache: expected one whose last change came to its end, got one that was interrupted while tokens were "
                "moved; call reset(), and read the text again"
            )
        if self._backing is not None and self._backing.length != self.length:
            raise ValueError(
                f"backing: expected {self.length:,} tokens, as this cache has seen, got {self._backing.length:,}; "
                "change it through this cache alone: reset() empties both"
            )

    def _may_settle(self, store: Store) -> bool:
        if self._is_settled:
            return store.length - self._settled_at >= PIECE and any(ring.start == 0 for ring in store.rings)
        return store.length >= self._deals_from

    def _settle(self, store: Store, judge: Audit | Caps) -> None:
        """Find the windows; those of rings that are not full yet are found again, from more."""
        if not self._may_settle(store):
            return
        position = store.length
        reaches = judge.reaches(store)
        if not self._is_settled:
            # What rows ask for only grows, so it will not be sooner.
            self._deals_from = dealt_from(reaches)
            if position < self._deals_from:
                return
            store.deal(group_heads(reaches))
            self._is_settled = True
        self._settled_at = position
        for ring in store.rings:
            if ring.start == 0:
                farthest = max(reaches[head] for head in ring.heads)
                ring.reach = None if farthest == math.inf else int(farthest)

    @overload
    def attend(
        self, query: Tensor, slopes: Tensor | None = ..., *, scale: float | None = ...,
        window: tuple[int | None, int | None] | None = ..., tolerance: float | None = ...,
        return_lse: Literal[False] = ..., backend: str | None = ...,
    ) -> Tensor: ...  # fmt: skip
    @overload
    def attend(
        self, query: Tensor, slopes: Tensor | None = ..., *, scale: float | None = ...,
        window: tuple[int | None, int | None] | None = ..., tolerance: float | None = ...,
        return_lse: Literal[True], backend: str | None = ...,
    ) -> tuple[Tensor, Tensor]: ...  # fmt: skip
    @outside_compiler
    def attend(
        self,
        query: Tensor,
        slopes: Tensor | None = None,
        *,
        scale: float | None = None,
        window: tuple[int | None, int | None] | None = None,
        tolerance: float | None = None,
        return_lse: bool = False,
        backend: str | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Causal attention of the queries of the last tokens over everything they can need.

        Args:
            query: (batch, num_heads, q_len, head_dim); query i belongs to the token q_len - i from the end, and q_len
                is at most the number of tokens appended last: what older queries need may be gone.
            slopes: (num_heads,) float32, the same in every call; `alibi_slopes(num_heads)` by default. A head whose
                slope is not positive forgets nothing.
            scale: as in `alibi_attention`, the same in every call.
            window, tolerance, return_lse, backend: as in `alibi_attention`; ``tolerance`` is what attention may skip
                of what is held.

        Returns:
            As `alibi_attention` over all tokens seen.

        Raises:
            ValueError: for more queries than that, for slopes or a scale that change, where a gradient is asked for, in
                guaranteed mode for a query norm above its cap, for a full cache beside this one that others have
                changed, and as `alibi_attention`.
            HorizonViolation: in audited mode, where evicted keys may matter.
        """
        check_tensor("query", query)
        check_flag("return_lse", return_lse)
        store = self._checked(query)
        if autocast_is_on(query.device.type):
            query = query.to(store.like[0].dtype)
        slopes, scale = self._checked_slopes(store, query, slopes, scale)
        judge = self._judge or self._new_judge(store, slopes, scale)
        if isinstance(judge, Caps):
            judge.check_queries(query, store.is_padding(store.length - query.shape[2], store.length))
        call = {"scale": scale, "window": window, "backend": backend}
        out, lse = store.attend(query, slopes, tolerance=tolerance, **call)
        if isinstance(judge, Audit):
            out, lse = judge.judge(query, slopes, out, lse, tolerance, **call)
        if self._judge is None:
            # From the first call that succeeds on. A copy: slopes that are learned change in place.
            self._slopes, self._scale, self._judge = slopes.detach().clone(), scale, judge
        return (out, lse) if return_lse else out

    def _checked(self, query: Tensor) -> Store:
        store = self._store
        if store is None:
            raise ValueError("cache: expected keys and values to have been appended, got an empty cache")
        self._check_whole()
        if query.dim() == 4 and query.shape[2] > store.length - store.safe_from:
            what = f"the {store.length:,} tokens seen"
            if store.safe_from:
                what = f"the {store.length - store.safe_from:,} tokens appended last"
            raise ValueError(
                f"query: expected at most one for each of {what}, got shape {tuple(query.shape)}; "
                "attend after each append, before what these queries need is gone"
            )
        return store

    def _checked_slopes(
        self, store: Store, query: Tensor, slopes: Tensor | None, scale: float | None
    ) -> tuple[Tensor, float]:
        heads = int(query.shape[1]) if query.dim() == 4 else 1
        if slopes is None:
            slopes = alibi_slopes(heads).to(query.device) if self._slopes is None else self._slopes
        check_tensors(query, *store.like, slopes)
        if torch.is_grad_enabled() and (query.requires_grad or slopes.requires_grad):
            raise ValueError(
                "query, slopes: expected tensors without a gradient, got one that requires it; a cache that forgets "
                "keeps no graph: run under torch.no_grad()"
            )
        scale = query.shape[3] ** -0.5 if scale is None else plain(scale)
        if self._slopes is not None and (scale != self._scale or not torch.equal(slopes, self._slopes)):
            raise ValueError(
                f"slopes, scale: expected those of the calls before, got others (scale {scale:.6g}); what was evicted "
                "was judged by them: reset() empties the cache for others"
            )
        return slopes, scale

    def _new_judge(self, store: Store, slopes: Tensor, scale: float) -> Audit | Caps:
        if slopes.dim() != 1:
            raise ValueError(
                f"slopes: expected shape ({slopes.shape[1]},), one set for the batch, got {tuple(slopes.shape)}; "
                "keep sequences with slopes of their own in caches of their own"
            )
        # A copy: slopes may change in place.
        exact, limit = slopes.detach().to(torch.float64, copy=True), math.log(self.tolerance)
        if self._options.mode == "guaranteed":
            return Caps(self._options, exact, scale, limit)
        return Audit(self._options, store, exact, scale, limit, self._backing)

    def dropped_shares(self) -> Tensor:
        """The bound on what evicted keys would have weighed, as a share of the mass kept.

        Returns:
            float64, 0 where nothing has been evicted. Audited: (batch, num_heads, q_len), for each row of the last
            `attend`, or (batch, num_heads, 1) if nothing had been evicted by then. Guaranteed: (num_heads,), for any
            row. Before the first `attend`: (0,).
        """
        store, judge = self._store, self._judge
        if store is None or judge is None:
            return torch.zeros(0, dtype=torch.float64)
        if isinstance(judge, Caps):
            return judge.log_shares(store).exp()
        if judge.excess is None:
            return torch.zeros(store.center.shape[0], len(judge.auditor.worst), 1, dtype=torch.float64)
        return judge.excess.exp()

    def certificate(self) -> HorizonCertificate:
        """What has been forgotten so far, and the bound on what it would have weighed."""
        store, judge = self._store, self._judge
        heads = 0 if store is None else store.center.shape[1]
        evicted = torch.zeros(heads, dtype=torch.int64)
        for ring in [] if store is None else store.rings:
            evicted[ring.heads] = ring.evicted
        logs = torch.full((heads if self._slopes is None else len(self._slopes),), -torch.inf, dtype=torch.float64)
        if isinstance(judge, Audit):
            logs = judge.auditor.worst.cpu()
        elif isinstance(judge, Caps) and store is not None:
            logs = judge.log_shares(store).cpu()
        return HorizonCertificate(
            mode=self._options.mode,
            tolerance=self.tolerance,
            length=self.length,
            windows=self.length - evicted,
            evicted=evicted,
            bytes_held=self.bytes_held,
            dropped_share=float(logs.exp().amax()) if heads else 0.0,
            by_head=logs.exp(),
            checked=judge.auditor.checked if isinstance(judge, Audit) else 0,
            violations=judge.violations if isinstance(judge, Audit) else 0,
            refetches=judge.refetches if isinstance(judge, Audit) else 0,
            sink_reads=judge.sink_reads if isinstance(judge, Audit) else 0,
        )

    def crop(self, length: int) -> None:
        """Forget the tokens from ``length`` on, as speculative decoding does with those it rejects.

        Raises:
            ValueError: for a length that is not between 0 and what was seen, or, once keys were evicted, below what it
                was before the last append: what older queries need may be gone; and for a full cache beside this one
                that others have changed.
        """
        self._check_whole()
        least = 0 if self._store is None else self._store.safe_from
        why = "; what queries before that need may have been evicted" if least else ""
        check_length(length, least, self.length, "seen", why)
        if self._store is None or length == self.length:
            return
        draft = self._store.draft()
        write = draft.crop(length)
        if self._backing is not None:
            self._backing.crop(length)
        self._is_torn = True
        write()
        self._store.adopt(draft)
        self._is_torn = False

    def reorder(self, index: Tensor) -> None:
        """Make row b of the batch what row index[b] was, as beam search does; rows may repeat or fall away.

        Args:
            index: (new batch,) integers.

        Raises:
            ValueError: for an index that is not one-dimensional and integer, or on the CPU out of range, and for a full
                cache beside this one that others have changed.
        """
        if self._store is None:
            raise ValueError("cache: expected keys and values to have been appended, got an empty cache")
        self._check_whole()
        check_index(index, self._store.center.shape[0])
        store, judge = self._store.draft(), None
        store.reorder(index)
        if isinstance(self._judge, Audit):
            judge = self._judge.draft()
            judge.reorder(index.to(store.center.device), store)
        backing = None if self._backing is None else self._backing._reordered(index)
        # Nothing from here on takes memory.
        self._is_torn = True
        if self._backing is not None and backing is not None:
            vars(self._backing).update(backing)
        self._store.adopt(store)
        if isinstance(self._judge, Audit) and judge is not None:
            self._judge.adopt(judge)
        self._is_torn = False

    def reset(self) -> None:
        """Forget everything, the slopes too, and free the memory; a full cache kept beside this one is emptied."""
        if self._backing is not None:
            self._backing.reset()
        self._clear()
