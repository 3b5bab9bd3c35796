"""Text to learn from and text held out, never mixed, the same on every reading; kept as tokens, mapped into memory."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sysconfig
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alibi_attention.lab.config import ExperimentConfig
from alibi_attention.lab.documents import Document, open_dataset, split_documents, without_copies
from alibi_attention.lab.duplicates import near_duplicates
from alibi_attention.lab.errors import LabError
from alibi_attention.lab.progress import Progress
from alibi_attention.lab.reading import Reader, said, text_files
from alibi_attention.lab.tokens import SEPARATOR, ByteEncoder, Encoder, load_encoder, make_encoder

# Of what is kept in the cache; another number is another key.
_CACHE_VERSION = 3

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


def load_corpus(config: ExperimentConfig, progress: Progress | None = None) -> Corpus:
    """Read, split and encode the corpus of an experiment, or map what was kept of the same the last time.

    The cache lies in ``$ALIBI_CACHE``, else in ``alibi-attention`` of the user's cache folder. Its key is made of the
    names, sizes and times of the files (of a data set: its own fingerprint) and of the settings that matter. A damaged
    entry is made again; where nothing can be written, the corpus stays in memory.

    Args:
        config: of the experiment.
        progress: told of what is read, compared, learned and encoded; silent by default, and not to be entered yet.

    Raises:
        LabError: for text that is missing, binary, or too short for the lengths asked for.
    """
    whole = open_dataset(config) if config.dataset else None
    folder = _cache_root() / _cache_key(config, whole)
    corpus = _read_cache(folder, config)
    if corpus is None:
        with progress or Progress() as progress:
            corpus = _keep(_make(config, whole, progress), folder, config)
    _check_sizes(corpus, config)
    return corpus


def _make(config: ExperimentConfig, whole: Any, progress: Progress) -> Corpus:
    reader = Reader(config.document_start, progress)
    if config.dataset_held_out:
        train, held_out, split = _as_given(*_split_documents_of(config, whole, reader), config, progress)
    elif config.held_out_text:
        train, held_out, split = _as_given(*_texts_of(config, reader), config, progress)
    else:
        train, held_out, split = _divide(_documents(config, whole, reader), config, progress)
    encoder = make_encoder(config, [document.text for document in train], progress)
    train_stream, _ = _stream(train, encoder, progress)
    held_out_stream, starts = _stream(held_out, encoder, progress)
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
        passed_over=dict(reader.passed_over),
    )


def _source(config: ExperimentConfig) -> str:
    if config.dataset:
        return f"the data set {config.dataset}" + (f" ({config.dataset_config})" if config.dataset_config else "")
    return ", ".join([*config.text, *config.held_out_text]) or "the Python standard library"


def _documents(config: ExperimentConfig, whole: Any, reader: Reader) -> list[Document]:
    if whole is not None:
        return without_copies(_rows_of(config.dataset_split, config, whole, reader))
    if config.text:
        return without_copies([document for text in config.text for document in reader.path(Path(text))])
    return without_copies(reader.folder(Path(sysconfig.get_path("stdlib")), (".py",)))


def _split_documents_of(
    config: ExperimentConfig, whole: Any, reader: Reader
) -> tuple[list[Document], list[Document]]:  # fmt: skip
    """Of the split to train on and of the one to hold out."""
    train = _rows_of(config.dataset_split, config, whole, reader)
    return train, _rows_of(config.dataset_held_out, config, whole, reader)


def _rows_of(split: str, config: ExperimentConfig, whole: Any, reader: Reader) -> list[Document]:
    before = reader.passed_over.copy()
    documents = reader.rows(whole[split][config.text_column], split)
    if not documents:
        expected = "text in both splits" if config.dataset_held_out else "a split with text in it"
        got = f"none in {split}{said(reader.passed_over - before)}"
        raise LabError("dataset", expected=expected, got=got, remedy="choose another")
    return documents


def _texts_of(config: ExperimentConfig, reader: Reader) -> tuple[list[Document], list[Document]]:
    """Of the text to train on and of the text to hold out."""
    held_out = [document for text in config.held_out_text for document in reader.path(Path(text), "held_out_text")]
    return [document for text in config.text for document in reader.path(Path(text))], held_out


def _as_given(
    documents: list[Document], to_hold_out: list[Document], config: ExperimentConfig, progress: Progress
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
    groups = near_duplicates([document.text for document in [*train, *held_out]], progress)
    trained = set(groups[: len(train)])
    alike = sum(group in trained for group in groups[len(train) :])
    if alike:
        split += f"; {alike} of the latter are near-duplicates of training documents"
    return train, held_out, split


def _divide(
    documents: list[Document], config: ExperimentConfig, progress: Progress
) -> tuple[list[Document], list[Document], str]:
    if len(documents) == 1:
        name, text = documents[0].name, documents[0].text
        cut = len(text) - round(len(text) * config.held_out_share)
        while 0 < cut < len(text) and text[cut] & 0xC0 == 0x80:
            cut -= 1  # never inside a character
        split = f"one document, cut once: its first {cut:,} bytes are for training, the rest is held out"
        return [Document(name, text[:cut])], [Document(name, text[cut:])], split
    groups = near_duplicates([document.text for document in documents], progress)
    if len(set(groups)) == 1:
        train, held_out = split_documents(documents, config.held_out_share)
        apart = "; all are near-duplicates of each other"
    else:
        train, held_out = split_documents(documents, config.held_out_share, groups)
        alike = sum(size for size in Counter(groups).values() if size > 1)
        apart = f"; near-duplicates ({alike} documents) kept together" if alike else ""
    return train, held_out, f"by document: {len(train)} for training, {len(held_out)} held out{apart}"


def _stream(
    documents: Sequence[Document], encoder: Encoder, progress: Progress
) -> tuple[NDArray[Any], NDArray[np.int64]]:
    size = sum(len(document.text) for document in documents)
    told = progress.through(
        documents, "Corpus: encoding", total=size, unit="bytes", size=lambda document: len(document.text)
    )
    parts = [encoder.encode(document.text) for document in told]
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


def _stamp(path: Path) -> tuple[int, int, bool]:
    try:
        status = path.stat()
    except OSError:
        return 0, 0, False
    # One that may be read from now on is as old as before.
    return status.st_size, status.st_mtime_ns, os.access(path, os.R_OK)


def _keep(corpus: Corpus, folder: Path, config: ExperimentConfig) -> Corpus:
    """Write a corpus where `_read_cache` finds it, all or nothing, and map it; on failure it stays as it is."""
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}")
    sizes = corpus.held_out_sizes
    description = {
        **corpus.summary(),
        "dtype": corpus.train.dtype.name,
        "documents": [corpus.train_documents, corpus.held_out_documents],
        "starts": corpus.held_out_starts.tolist(),
        "serialized": corpus.encoder.serialized,
        "sizes": None if sizes is None else hashlib.sha256(sizes.data).hexdigest(),
        "passed_over": dict(corpus.passed_over),
    }
    description["checksum"] = _checksum(description)
    try:
        temporary.mkdir(parents=True)
        corpus.train.tofile(temporary / "train.bin")
        corpus.held_out.tofile(temporary / "held_out.bin")
        if sizes is not None:
            sizes.tofile(temporary / "sizes.bin")
        (temporary / "corpus.json").write_text(json.dumps(description), encoding="utf-8")
        shutil.rmtree(folder, ignore_errors=True)
        temporary.replace(folder)
    except OSError:
        shutil.rmtree(temporary, ignore_errors=True)
        return corpus
    return _read_cache(folder, config) or corpus


def _read_cache(folder: Path, config: ExperimentConfig) -> Corpus | None:
    """What `_keep` wrote, if every part of it is there as it was written."""
    try:
        kept = json.loads((folder / "corpus.json").read_text(encoding="utf-8"))
        if kept.pop("checksum") != _checksum(kept):
            return None
        train, held_out = (
            np.memmap(folder / f"{part}.bin", dtype=kept["dtype"], mode="r") for part in ("train", "held_out")
        )
        sizes = None
        if kept["sizes"] is not None:
            sizes = np.memmap(folder / "sizes.bin", dtype=np.uint32, mode="r")
            if hashlib.sha256(sizes.data).hexdigest() != kept["sizes"]:
                return None
        names = kept["documents"]
        corpus = Corpus(
            kept["source"], kept["split"], train, held_out, tuple(names[0]), tuple(names[1]),
            np.array(kept["starts"], dtype=np.int64), load_encoder(config.tokenizer, kept["serialized"]), sizes,
            kept["passed_over"],
        )  # fmt: skip
    except Exception:  # of a damaged file there is no telling what is raised; tokenizers has no class of its own for it
        return None
    return corpus if corpus.fingerprint == kept["fingerprint"] else None


def _checksum(description: Mapping[str, Any]) -> str:
    """sha256 over what `_keep` says of a corpus, the fingerprint of its streams and of its sizes among it."""
    return hashlib.sha256(json.dumps(description).encode()).hexdigest()


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
