"""Text from a decoder of the laboratory."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from alibi_attention import HorizonCache, KVCache
from alibi_attention.generation.source import CacheKind
from alibi_attention.generation.text import ByteText, TokenText, WordText
from alibi_attention.lab.errors import LabError
from alibi_attention.lab.positions import Cache
from alibi_attention.lab.runs import RunFolder
from alibi_attention.lab.tokens import SEPARATOR, ByteEncoder, TrainedEncoder
from alibi_attention.lab.trained import load_trained, trained_methods


class LaboratorySource:
    """One of the methods of a run.

    Raises:
        LabError: for a method that was not trained or cannot read on from a cache, and for a cache that forgets with a
            method that cannot.
    """

    # Stands between the documents the decoder was trained on: a text begins after one and ends at the next.
    end = frozenset((SEPARATOR,))

    def __init__(self, root: Path, method: str | None, cache: CacheKind) -> None:
        folder = RunFolder(root)
        trained = trained_methods(folder)
        if method is None:
            method = "alibi" if "alibi" in trained or not trained else trained[0]
        self._decoder, self._encoder = load_trained(root, method)
        self._decoder.position.check_cache()
        if cache == "horizon" and not self._decoder.position.can_forget:
            raise LabError(
                "cache", expected=f"full for {self._decoder.position.title}", got="horizon",
                remedy="only a bias that grows with distance lets keys go: use --method alibi",
            )  # fmt: skip
        layers = range(len(self._decoder.blocks))
        self._caches: list[Cache] = [HorizonCache() if cache == "horizon" else KVCache() for _ in layers]
        self.name = f"{root} ({self._decoder.position.title})"

    def encode(self, prompt: str) -> list[int]:
        if isinstance(self._encoder, ByteEncoder):
            return [SEPARATOR, *prompt.encode("utf-8", "surrogateescape")]
        # Learned vocabularies know text alone.
        tokens = self._encoder.encode(prompt.encode("utf-8", "replace"))
        return [SEPARATOR, *(int(token) for token in tokens)]

    def text(self) -> ByteText | TokenText | WordText:
        encoder = self._encoder
        if not isinstance(encoder, TrainedEncoder):
            return ByteText()
        if encoder.words:
            return WordText(lambda token: encoder.decode([token]).decode("utf-8"))
        return TokenText(lambda tokens: encoder.decode(tokens).decode("utf-8"))

    @property
    def longest(self) -> int | None:
        return self._decoder.position.longest

    def read(self, tokens: list[int]) -> Tensor:
        return self._decoder.logits(self._decoder.hidden(torch.tensor([tokens]), self._caches)[:, -1])[0]

    @property
    def bytes_held(self) -> int:
        return sum(cache.bytes_held for cache in self._caches)

    def horizon_caches(self) -> list[HorizonCache]:
        return [cache for cache in self._caches if isinstance(cache, HorizonCache)]
