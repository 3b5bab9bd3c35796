"""Text from a decoder of the laboratory: its tokens are bytes."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from alibi_attention import HorizonCache, KVCache
from alibi_attention.generation.source import CacheKind
from alibi_attention.generation.text import ByteText
from alibi_attention.lab.errors import LabError
from alibi_attention.lab.positions import Cache
from alibi_attention.lab.runs import RunFolder

# Stands between the documents the decoder was trained on: a text begins after one and ends at the next.
_SEPARATOR = 0


class LaboratorySource:
    """One of the methods of a run.

    Raises:
        LabError: for a method that was not trained, or one that cannot forget with a cache that does.
    """

    end = frozenset((_SEPARATOR,))

    def __init__(self, root: Path, method: str | None, cache: CacheKind) -> None:
        folder = RunFolder(root)
        trained = folder.trained_methods()
        if method is None:
            method = "alibi" if "alibi" in trained or not trained else trained[0]
        self._decoder = folder.load_decoder(method)
        if cache == "horizon" and not self._decoder.position.can_forget:
            raise LabError(
                "cache", expected=f"full for {self._decoder.position.title}", got="horizon",
                remedy="only a bias that grows with distance lets keys go: use --method alibi",
            )  # fmt: skip
        layers = range(len(self._decoder.blocks))
        self._caches: list[Cache] = [HorizonCache() if cache == "horizon" else KVCache() for _ in layers]
        self.name = f"{root} ({self._decoder.position.title})"

    def encode(self, prompt: str) -> list[int]:
        return [_SEPARATOR, *prompt.encode("utf-8", "surrogateescape")]

    def text(self) -> ByteText:
        return ByteText()

    def read(self, tokens: list[int]) -> Tensor:
        hidden = self._decoder.hidden(torch.tensor([tokens]), self._caches)[0, -1]
        return self._decoder.embedding.weight @ hidden

    @property
    def bytes_held(self) -> int:
        return sum(cache.bytes_held for cache in self._caches)

    def horizon_caches(self) -> list[HorizonCache]:
        return [cache for cache in self._caches if isinstance(cache, HorizonCache)]
