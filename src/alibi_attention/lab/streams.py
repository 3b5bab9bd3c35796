"""Documents as streams of tokens: the two streams of an experiment, and what is known of them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alibi_attention.lab.documents import Document
from alibi_attention.lab.progress import Progress
from alibi_attention.lab.reading import said
from alibi_attention.lab.tokens import SEPARATOR, ByteEncoder, Encoder


@dataclass(frozen=True)
class Corpus:
    """Two streams of tokens, documents joined by the separator.

    Attributes:
        source: in words, for people.
        split: in words, how the two were kept apart.
        train, held_out: (tokens,) of the smallest unsigned type; where a cache can be written, mapped from it.
        train_documents, held_out_documents: names, in the order of the streams.
        held_out_starts: (held_out_documents,) int64, where each begins in its stream.
        held_out_sizes: (held-out tokens,) uint32, bytes each stands for, where the encoder's ``token_bytes`` do not
            tell; None otherwise.
        encoder: of the tokens.
        passed_over: how much was not read, by what it is and why (see `Reader`).
    """

    source: str
    split: str
    train: NDArray[Any]
    held_out: NDArray[Any]
    train_documents: tuple[str, ...]
    held_out_documents: tuple[str, ...]
    held_out_starts: NDArray[np.int64] = field(default_factory=lambda: np.zeros(1, np.int64))
    encoder: Encoder = field(default_factory=ByteEncoder)
    held_out_sizes: NDArray[Any] | None = None
    passed_over: Mapping[str, int] = field(default_factory=dict)

    @property
    def division(self) -> str:
        """In words, the split, and what was passed over."""
        return self.split + said(self.passed_over)

    @property
    def fingerprint(self) -> str:
        """sha256 over both streams and where one ends."""
        digest = hashlib.sha256(len(self.train).to_bytes(8, "little"))
        digest.update(np.ascontiguousarray(self.train).data)
        digest.update(np.ascontiguousarray(self.held_out).data)
        return digest.hexdigest()

    def summary(self) -> dict[str, Any]:
        return {
            "source": self.source,
            "split": self.split,
            "tokens": self.encoder.description,
            "vocabulary": self.encoder.vocabulary,
            "fingerprint": self.fingerprint,
            "train_tokens": len(self.train),
            "held_out_tokens": len(self.held_out),
            "train_documents": len(self.train_documents),
            "held_out_documents": len(self.held_out_documents),
        }


def joined_stream(
    documents: Sequence[Document], encoder: Encoder, progress: Progress
) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Tokens of the documents, joined by the separator, and where each document begins."""
    size = sum(len(document.text) for document in documents)
    told = progress.through(
        documents, "Corpus: encoding", total=size, unit="bytes", size=lambda document: len(document.text)
    )
    parts = [encoder.encode(document.text) for document in told]
    separator = np.full(1, SEPARATOR, dtype=parts[0].dtype)
    joined = [piece for part in parts for piece in (separator, part)][1:]
    lengths = np.array([len(part) + 1 for part in parts], dtype=np.int64)
    return np.concatenate(joined), np.cumsum(lengths) - lengths


def joined_sizes(documents: Sequence[Document], encoder: Encoder) -> NDArray[np.uint32] | None:
    """Bytes each token of `joined_stream` stands for; a separator for one."""
    parts = [encoder.sizes(document.text) for document in documents]
    counted = [part for part in parts if part is not None]
    if len(counted) < len(parts):
        return None
    return np.concatenate([np.append(part, 1) for part in counted])[:-1].astype(np.uint32)
