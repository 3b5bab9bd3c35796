"""Text to learn from and text held out, never mixed, the same on every reading."""

from __future__ import annotations

import hashlib
import os
import sysconfig
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alibi_attention.lab.config import ExperimentConfig
from alibi_attention.lab.errors import LabError

SEPARATOR = b"\0"
"""Stands between documents; text holds no NUL."""

_SKIPPED_FOLDERS = frozenset({"site-packages", "dist-packages", "__pycache__", "node_modules"})


@dataclass(frozen=True)
class Document:
    """One text and the name it is known by: its path below what the user named."""

    name: str
    text: bytes

    @property
    def key(self) -> str:
        """Decides the split: a hash of the name, so that it depends neither on the machine nor on the file order."""
        return hashlib.sha256(self.name.encode()).hexdigest()


@dataclass(frozen=True)
class Corpus:
    """Two streams of bytes, documents joined by NUL.

    Attributes:
        source: in words, for people.
        split: in words, how the two were kept apart.
        train, held_out: (bytes,) uint8.
        train_documents, held_out_documents: names, in the order of the streams.
    """

    source: str
    split: str
    train: NDArray[np.uint8]
    held_out: NDArray[np.uint8]
    train_documents: tuple[str, ...]
    held_out_documents: tuple[str, ...]

    @property
    def fingerprint(self) -> str:
        """sha256 over both streams and where one ends."""
        digest = hashlib.sha256(len(self.train).to_bytes(8, "little"))
        digest.update(self.train.data)
        digest.update(self.held_out.data)
        return digest.hexdigest()

    def summary(self) -> dict[str, Any]:
        return {
            "source": self.source,
            "split": self.split,
            "fingerprint": self.fingerprint,
            "train_bytes": len(self.train),
            "held_out_bytes": len(self.held_out),
            "train_documents": len(self.train_documents),
            "held_out_documents": len(self.held_out_documents),
        }


def load_corpus(config: ExperimentConfig) -> Corpus:
    """Read and split the corpus of an experiment.

    Raises:
        LabError: for text that is missing, binary, or too short for the lengths asked for.
    """
    if config.text:
        source = ", ".join(config.text)
        documents = [document for path in config.text for document in _read_path(Path(path))]
    else:
        library = Path(sysconfig.get_path("stdlib"))
        source = "the Python standard library"
        documents = list(_read_folder(library, (".py",)))
    documents = _without_copies(documents)
    if len(documents) == 1:
        cut = len(documents[0].text) - round(len(documents[0].text) * config.held_out_share)
        name, text = documents[0].name, documents[0].text
        train, held_out = [Document(name, text[:cut])], [Document(name, text[cut:])]
        split = f"one document, cut once: its first {cut:,} bytes are for training, the rest is held out"
    else:
        train, held_out = split_documents(documents, config.held_out_share)
        split = f"by document: {len(train)} for training, {len(held_out)} held out"
    corpus = Corpus(
        source=source,
        split=split,
        train=_stream(train),
        held_out=_stream(held_out),
        train_documents=tuple(document.name for document in train),
        held_out_documents=tuple(document.name for document in held_out),
    )
    _check_sizes(corpus, config)
    return corpus


def split_documents(documents: Sequence[Document], share: float) -> tuple[list[Document], list[Document]]:
    """Hold out whole documents, in the order of their keys, until they make up ``share`` of the bytes.

    A document that would take more than twice the share is left for training, so that one giant file cannot take the
    training text away; where every document is as large as that, the smallest is held out.

    Args:
        documents: at least two.
        share: of all bytes, in (0, 1).

    Returns:
        Training documents and held-out documents, neither empty, both in the order of their keys.
    """
    ranked = sorted(documents, key=lambda document: document.key)
    target = share * sum(len(document.text) for document in ranked)
    held_out: list[Document] = []
    size = 0
    for document in ranked:
        if size < target and size + len(document.text) <= 2 * target:
            held_out.append(document)
            size += len(document.text)
    held_out = held_out or [min(ranked, key=lambda document: len(document.text))]
    names = {document.name for document in held_out}
    return [document for document in ranked if document.name not in names], held_out


def _read_path(path: Path) -> Iterable[Document]:
    if path.is_dir():
        documents = list(_read_folder(path))
        if not documents:
            remedy = "name text files, or a folder that holds some"
            raise LabError("text", expected="a folder with UTF-8 text in it", got=f"none in {path}", remedy=remedy)
        return documents
    if not path.is_file():
        remedy = "check the spelling and the folder you are in"
        raise LabError("text", expected="an existing file or folder", got=str(path), remedy=remedy)
    try:
        data = path.read_bytes()
    except OSError as error:
        remedy = "check its permissions"
        got = f"{path} ({error.strerror})"
        raise LabError("text", expected="a file that can be read", got=got, remedy=remedy) from None
    if not _is_text(data):
        remedy = "extract its text first, or convert it with `iconv -t utf-8`"
        got = f"{path}, which is binary or in another encoding"
        raise LabError("text", expected="UTF-8 text", got=got, remedy=remedy)
    return [Document(path.name, data)]


def _read_folder(folder: Path, suffixes: tuple[str, ...] = ()) -> Iterable[Document]:
    """Every text below a folder; hidden files, installed packages, empty files and binary files are passed over."""
    for parent, folders, files in os.walk(folder):
        # Pruned in place: os.walk then neither enters nor lists them, and goes through the rest in a fixed order.
        folders[:] = sorted(name for name in folders if name not in _SKIPPED_FOLDERS and not name.startswith("."))
        for name in sorted(files):
            path = Path(parent, name)
            if name.startswith(".") or (suffixes and path.suffix not in suffixes) or not path.is_file():
                continue
            try:
                data = path.read_bytes()
            except PermissionError:
                continue
            if data and _is_text(data):
                yield Document(path.relative_to(folder).as_posix(), data)


def _is_text(data: bytes) -> bool:
    if SEPARATOR in data:
        return False
    try:
        data.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _without_copies(documents: Iterable[Document]) -> list[Document]:
    """One document per content, or a copy of a training text could be held out; and one per name, for the split."""
    by_content: dict[bytes, Document] = {}
    names: dict[str, int] = {}
    for document in documents:
        digest = hashlib.sha256(document.text).digest()
        if digest not in by_content:
            count = names[document.name] = names.get(document.name, 0) + 1
            by_content[digest] = document if count == 1 else Document(f"{document.name}#{count}", document.text)
    return list(by_content.values())


def _stream(documents: Sequence[Document]) -> NDArray[np.uint8]:
    return np.frombuffer(SEPARATOR.join(document.text for document in documents), dtype=np.uint8)


def _check_sizes(corpus: Corpus, config: ExperimentConfig) -> None:
    # One byte more than a window everywhere: the last byte of a window is predicted, too.
    for part, stream, length, flag in (
        ("training", corpus.train, config.length, "--length"),
        ("held-out", corpus.held_out, config.segment_length, "--eval-lengths"),
    ):
        if len(stream) < length + 1:
            raise LabError(
                "text",
                expected=f"at least {length + 1:,} bytes of {part} text",
                got=f"{len(stream):,} from {corpus.source}",
                remedy=f"add text, or ask for a shorter {flag}",
            )
