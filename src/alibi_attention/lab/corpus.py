"""Text to learn from and text held out, never mixed, the same on every reading; kept as tokens, mapped into memory."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sysconfig
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alibi_attention.lab.config import ExperimentConfig
from alibi_attention.lab.documents import (
    Document,
    dataset_documents,
    open_dataset,
    read_folder,
    read_path,
    split_documents,
    text_files,
    without_copies,
)
from alibi_attention.lab.duplicates import near_duplicates
from alibi_attention.lab.errors import LabError
from alibi_attention.lab.tokens import SEPARATOR, ByteEncoder, Encoder, load_encoder, make_encoder

# Of what is kept in the cache; another number is another key.
_CACHE_VERSION = 2

# Of how splits are divided, near-duplicates of large texts found, and tokens named: of all corpora but the default one.
_RULES_VERSION = 3

# Settings that decide what a corpus is.
_DECISIVE = (
    "text", "held_out_text", "dataset", "dataset_config", "dataset_split", "dataset_held_out", "text_column",
    "document_start", "held_out_share", "tokenizer", "vocabulary",
)  # fmt: skip


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


def load_corpus(config: ExperimentConfig) -> Corpus:
    """Read, split and encode the corpus of an experiment, or map what was kept of the same the last time.

    The cache lies in ``$ALIBI_CACHE``, else in ``alibi-attention`` of the user's cache folder. Its key is made of the
    names, sizes and times of the files (of a data set: its own fingerprint) and of the settings that matter. A damaged
    entry is made again; where nothing can be written, the corpus stays in memory.

    Raises:
        LabError: for text that is missing, binary, or too short for the lengths asked for.
    """
    whole = open_dataset(config) if config.dataset else None
    folder = _cache_root() / _cache_key(config, whole)
    corpus = _read_cache(folder, config) or _keep(_make(config, whole), folder, config)
    _check_sizes(corpus, config)
    return corpus


def _make(config: ExperimentConfig, whole: Any) -> Corpus:
    if config.dataset_held_out:
        train, held_out, split = _as_given(*_split_documents_of(config, whole), config)
    elif config.held_out_text:
        train, held_out, split = _as_given(*_texts_of(config), config)
    else:
        train, held_out, split = _divide(_documents(config, whole), config)
    encoder = make_encoder(config, (document.text for document in train))
    train_stream, _ = _stream(train, encoder)
    held_out_stream, starts = _stream(held_out, encoder)
    return Corpus(
        source=_source(config),
        split=split,
        train=train_stream,
        held_out=held_out_stream,
        train_documents=tuple(document.name for document in train),
        held_out_documents=tuple(document.name for document in held_out),
        held_out_starts=starts,
        encoder=encoder,
        held_out_sizes=_sizes(held_out, encoder),
    )


def _source(config: ExperimentConfig) -> str:
    if config.dataset:
        return f"the data set {config.dataset}" + (f" ({config.dataset_config})" if config.dataset_config else "")
    return ", ".join([*config.text, *config.held_out_text]) or "the Python standard library"


def _documents(config: ExperimentConfig, whole: Any) -> list[Document]:
    if whole is not None:
        documents = dataset_documents(whole[config.dataset_split][config.text_column], config, config.dataset_split)
        if not documents:
            got = f"none in {config.dataset_split}"
            raise LabError("dataset", expected="a split with text in it", got=got, remedy="choose another")
        return without_copies(documents)
    if config.text:
        return without_copies([document for text in config.text for document in read_path(Path(text))])
    return without_copies(read_folder(Path(sysconfig.get_path("stdlib")), (".py",)))


def _split_documents_of(config: ExperimentConfig, whole: Any) -> tuple[list[Document], list[Document]]:
    """Of the split to train on and of the one to hold out."""
    names = config.dataset_split, config.dataset_held_out
    sides = [dataset_documents(whole[name][config.text_column], config, name) for name in names]
    for name, documents in zip(names, sides, strict=True):
        if not documents:
            raise LabError("dataset", expected="text in both splits", got=f"none in {name}", remedy="choose another")
    return sides[0], sides[1]


def _texts_of(config: ExperimentConfig) -> tuple[list[Document], list[Document]]:
    """Of the text to train on and of the text to hold out."""
    held_out = [document for text in config.held_out_text for document in read_path(Path(text), "held_out_text")]
    return [document for text in config.text for document in read_path(Path(text))], held_out


def _as_given(
    documents: list[Document], to_hold_out: list[Document], config: ExperimentConfig
) -> tuple[list[Document], list[Document], str]:
    """The user's own division, less training documents that are held out as well; what else is alike is said."""
    held_out, documents = without_copies(to_hold_out), without_copies(documents)
    texts = {document.text for document in held_out}
    train = [document for document in documents if document.text not in texts]
    if not train:
        name, remedy = "text", "name text that is not held out with --text"
        if config.dataset:
            name, remedy = "dataset_split", "choose another split, or another to hold out"
        raise LabError(name, expected="text that is not held out", got="none", remedy=remedy)
    if config.dataset:
        split = f"as the data set has it: {len(train)} documents of {config.dataset_split} for training, "
        split += f"{len(held_out)} of {config.dataset_held_out} held out"
    else:
        split = f"as given: {len(train)} documents for training, {len(held_out)} held out"
    if len(train) < len(documents):
        split += f"; {len(documents) - len(train)} of the former left out, being held out as well"
    groups = near_duplicates([document.text for document in [*train, *held_out]])
    trained = set(groups[: len(train)])
    alike = sum(group in trained for group in groups[len(train) :])
    if alike:
        split += f"; {alike} of the latter are near-duplicates of training documents"
    return train, held_out, split


def _divide(documents: list[Document], config: ExperimentConfig) -> tuple[list[Document], list[Document], str]:
    if len(documents) == 1:
        name, text = documents[0].name, documents[0].text
        cut = len(text) - round(len(text) * config.held_out_share)
        while 0 < cut < len(text) and text[cut] & 0xC0 == 0x80:
            cut -= 1  # never inside a character
        split = f"one document, cut once: its first {cut:,} bytes are for training, the rest is held out"
        return [Document(name, text[:cut])], [Document(name, text[cut:])], split
    groups = near_duplicates([document.text for document in documents])
    if len(set(groups)) == 1:
        train, held_out = split_documents(documents, config.held_out_share)
        apart = "; all are near-duplicates of each other"
    else:
        train, held_out = split_documents(documents, config.held_out_share, groups)
        alike = sum(size for size in Counter(groups).values() if size > 1)
        apart = f"; near-duplicates ({alike} documents) kept together" if alike else ""
    return train, held_out, f"by document: {len(train)} for training, {len(held_out)} held out{apart}"


def _stream(documents: Sequence[Document], encoder: Encoder) -> tuple[NDArray[Any], NDArray[np.int64]]:
    parts = [encoder.encode(document.text) for document in documents]
    separator = np.full(1, SEPARATOR, dtype=parts[0].dtype)
    joined = [piece for part in parts for piece in (separator, part)][1:]
    lengths = np.array([len(part) + 1 for part in parts], dtype=np.int64)
    return np.concatenate(joined), np.cumsum(lengths) - lengths


def _sizes(documents: Sequence[Document], encoder: Encoder) -> NDArray[np.uint32] | None:
    """Bytes each token of `_stream` stands for; a separator for one."""
    parts = [encoder.sizes(document.text) for document in documents]
    counted = [part for part in parts if part is not None]
    if len(counted) < len(parts):
        return None
    return np.concatenate([np.append(part, 1) for part in counted])[:-1].astype(np.uint32)


def _cache_root() -> Path:
    if "ALIBI_CACHE" in os.environ:
        return Path(os.environ["ALIBI_CACHE"])
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "alibi-attention"


def _cache_key(config: ExperimentConfig, whole: Any) -> str:
    facts: list[Any] = [_CACHE_VERSION, *(getattr(config, name) for name in _DECISIVE)]
    if config.text or config.dataset or config.tokenizer != "bytes":
        facts.append(_RULES_VERSION)
    if whole is not None:
        facts += [(str(split), getattr(whole[split], "_fingerprint", "")) for split in whole]
    else:
        library = Path(sysconfig.get_path("stdlib"))
        roots = [Path(text) for text in [*config.text, *config.held_out_text]] or [library]
        for root in roots:
            paths = text_files(root, () if config.text else (".py",)) if root.is_dir() else [root]
            facts += [(str(path), *_stamp(path)) for path in paths]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:32]


def _stamp(path: Path) -> tuple[int, int]:
    try:
        status = path.stat()
    except OSError:
        return 0, 0
    return status.st_size, status.st_mtime_ns


def _keep(corpus: Corpus, folder: Path, config: ExperimentConfig) -> Corpus:
    """Write a corpus where `_read_cache` finds it, all or nothing, and map it; on failure it stays as it is."""
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}")
    description = {
        **corpus.summary(),
        "dtype": corpus.train.dtype.name,
        "documents": [corpus.train_documents, corpus.held_out_documents],
        "starts": corpus.held_out_starts.tolist(),
        "serialized": corpus.encoder.serialized,
        "sized": corpus.held_out_sizes is not None,
    }
    try:
        temporary.mkdir(parents=True)
        corpus.train.tofile(temporary / "train.bin")
        corpus.held_out.tofile(temporary / "held_out.bin")
        if corpus.held_out_sizes is not None:
            corpus.held_out_sizes.tofile(temporary / "sizes.bin")
        (temporary / "corpus.json").write_text(json.dumps(description), encoding="utf-8")
        shutil.rmtree(folder, ignore_errors=True)
        temporary.replace(folder)
    except OSError:
        shutil.rmtree(temporary, ignore_errors=True)
        return corpus
    return _read_cache(folder, config) or corpus


def _read_cache(folder: Path, config: ExperimentConfig) -> Corpus | None:
    try:
        kept = json.loads((folder / "corpus.json").read_text(encoding="utf-8"))
        train, held_out = (
            np.memmap(folder / f"{part}.bin", dtype=kept["dtype"], mode="r") for part in ("train", "held_out")
        )
        sizes = np.memmap(folder / "sizes.bin", dtype=np.uint32, mode="r") if kept["sized"] else None
        names = kept["documents"]
        corpus = Corpus(
            kept["source"], kept["split"], train, held_out, tuple(names[0]), tuple(names[1]),
            np.array(kept["starts"], dtype=np.int64), load_encoder(config.tokenizer, kept["serialized"]), sizes,
        )  # fmt: skip
    except (OSError, ValueError, KeyError, TypeError):
        return None
    whole = sizes is None or len(sizes) == len(held_out)
    return corpus if whole and corpus.fingerprint == kept["fingerprint"] else None


def _check_sizes(corpus: Corpus, config: ExperimentConfig) -> None:
    unit = "bytes" if config.tokenizer == "bytes" else "tokens"
    # One token more than a window everywhere: the last token of a window is predicted, too.
    for part, stream, length, flag in (
        ("training", corpus.train, config.length, "--length"),
        ("held-out", corpus.held_out, config.segment_length, "--eval-lengths"),
    ):
        if len(stream) < length + 1:
            given = "held_out_text" if part == "held-out" and config.held_out_text else "text"
            raise LabError(
                "dataset" if config.dataset else given,
                expected=f"at least {length + 1:,} {unit} of {part} text",
                got=f"{len(stream):,} from {corpus.source}",
                remedy=f"add text, or ask for a shorter {flag}",
            )
