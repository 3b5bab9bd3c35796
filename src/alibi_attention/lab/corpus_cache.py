"""Where a corpus is kept from one reading to the next, mapped into memory and checked for damage."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sysconfig
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from alibi_attention.lab.config import ExperimentConfig
from alibi_attention.lab.reading import text_files
from alibi_attention.lab.streams import Corpus
from alibi_attention.lab.tokens import load_encoder

# Of what is kept in the cache; another number is another key.
_CACHE_VERSION = 3

# Of how splits are divided, near-duplicates of large texts found, and tokens named: of all corpora but the default one.
_RULES_VERSION = 3

# Settings that decide what a corpus is.
_DECISIVE = (
    "text", "held_out_text", "dataset", "dataset_config", "dataset_split", "dataset_held_out", "text_column",
    "document_start", "held_out_share", "tokenizer", "vocabulary",
)  # fmt: skip


def cache_folder(config: ExperimentConfig, whole: Any) -> Path:
    """Where the corpus of this configuration, and of what its files or its data set are now, is or will be kept."""
    return _root() / _key(config, whole)


def _root() -> Path:
    if "ALIBI_CACHE" in os.environ:
        return Path(os.environ["ALIBI_CACHE"])
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "alibi-attention"


def _key(config: ExperimentConfig, whole: Any) -> str:
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


def keep_corpus(corpus: Corpus, folder: Path, config: ExperimentConfig) -> Corpus:
    """Write a corpus where `read_kept` finds it, all or nothing, and map it; on failure it stays as it is."""
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
    return read_kept(folder, config) or corpus


def read_kept(folder: Path, config: ExperimentConfig) -> Corpus | None:
    """What `keep_corpus` wrote, if every part of it is there as it was written."""
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
    """sha256 over what `keep_corpus` says of a corpus, the fingerprint of its streams and of its sizes among it."""
    return hashlib.sha256(json.dumps(description).encode()).hexdigest()
