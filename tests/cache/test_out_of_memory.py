"""A change that runs out of memory has changed nothing: repeated, it gives what one that never failed gives."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from streams import Stream, stream
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from alibi_attention import HorizonCache, HorizonWarning, KVCache

SLOPES = torch.tensor([0.005, 0.01, 0.3, 0.2])
Either = KVCache | HorizonCache


class OutOfMemoryError(RuntimeError):
    """As that of torch."""


class Scarce(TorchDispatchMode):
    """Memory for so many new tensors and no more; views, and writing to what is there, take none."""

    def __init__(self, tensors: int) -> None:
        super().__init__()
        self.left = tensors

    def __torch_dispatch__(
        self, func: Any, types: object, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> object:
        if not func._schema.is_mutable and not func.is_view:
            self.left -= 1
            if self.left < 0:
                raise OutOfMemoryError
        return func(*args, **(kwargs or {}))


def fail_everywhere(call: Callable[[], None], check: Callable[[], None]) -> int:
    """Repeat a call that fails at its first new tensor, at its second and so on, until it succeeds."""
    tensors = 0
    while True:
        try:
            with Scarce(tensors):
                call()
        except OutOfMemoryError:
            check()
            tensors += 1
        else:
            return tensors


class Pair:
    """A cache that fails wherever it can, and is asked again each time, and one of the same options that never does."""

    def __init__(self, make: Callable[[], Either]) -> None:
        self.failing, self.smooth = make(), make()
        self.failures = 0
        self._last: Tensor | None = None

    def append(self, part: Stream, key_mask: Tensor | None) -> None:
        self._both(lambda cache: cache.append(part.key, part.value, key_mask=key_mask))
        self._answer_alike(part.query)
        if isinstance(self.failing, HorizonCache) and isinstance(self.smooth, HorizonCache):
            assert str(self.failing.certificate()) == str(self.smooth.certificate())
        self._last = part.query[:, :, -1:]

    def crop(self, length: int) -> None:
        self._both(lambda cache: cache.crop(length))

    def reorder(self, *index: int) -> None:
        self._both(lambda cache: cache.reorder(torch.tensor(index)))

    def _both(self, change: Callable[[Either], None]) -> None:
        self.failures += fail_everywhere(lambda: change(self.failing), self._check)
        change(self.smooth)

    def _check(self) -> None:
        """A failure has changed nothing."""
        assert self.failing.length == self.smooth.length
        backing = getattr(self.failing, "_backing", None)
        assert backing is None or backing.length == self.smooth.length
        if self._last is None:
            assert self.failing.bytes_held == 0
        else:
            self._answer_alike(self._last)

    def _answer_alike(self, query: Tensor) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", HorizonWarning)
            one, other = (cache.attend(query, SLOPES, return_lse=True) for cache in (self.failing, self.smooth))
        torch.testing.assert_close(one, other)


def read(pair: Pair, length: int, padding: int, *sizes: int) -> None:
    """Two sequences, ``padding`` tokens before the second."""
    whole = stream(length, batch=2, kv_heads=2)
    mask = torch.arange(length) >= torch.tensor([[0], [padding]])
    at = 0
    for part in whole.parts(*sizes):
        end = at + part.key.shape[2]
        pair.append(part, mask[:, at:end] if at < padding else None)
        at = end


@pytest.mark.parametrize("padding", [0, 70])
def test_a_full_cache(padding: int) -> None:
    """Through its growth, at 256 tokens and at 512."""
    pair = Pair(KVCache)
    read(pair, 700, padding, 40, 1, 219)
    pair.crop(650)
    pair.reorder(1, 0)
    read(pair, 30, 0, 30)
    assert pair.failures > 50


@pytest.mark.parametrize(("kind", "padding"), [("audited", 0), ("window", 1500), ("backing", 0), ("guaranteed", 70)])
def test_a_cache_that_forgets(kind: str, padding: int) -> None:
    """Through growth, the dealing out of heads, evictions and a run's return to the front of its buffer.

    Windows given are too small on purpose: first tiles, kept apart, are read, and the full cache is asked.
    """
    options: dict[str, Any] = {
        "audited": {},
        "window": {"window": [150, 2200], "on_violation": "warn"},
        "guaranteed": {"mode": "guaranteed", "query_norm": 9.0, "key_norm": 9.0},
        "backing": {"window": [150, 2200], "on_violation": "refetch"},
    }[kind]
    pair = Pair(lambda: HorizonCache(**options, backing=KVCache() if kind == "backing" else None))
    read(pair, 4500, padding, 300, 1, 500)
    pair.crop(4450)
    pair.reorder(1, 0)
    read(pair, 30, 0, 30)
    assert isinstance(pair.failing, HorizonCache)
    certificate = pair.failing.certificate()
    assert (certificate.evicted > 2000).tolist() == [bool(options.get("window")), True]
    assert bool(certificate.sink_reads) == bool(options.get("window"))
    assert bool(certificate.refetches) == (kind == "backing")
    assert pair.failures > 300
