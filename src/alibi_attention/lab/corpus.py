"""Text to learn from and text held out, never mixed, the same on every reading."""

from __future__ import annotations

from typing import Any

from alibi_attention.lab.config import ExperimentConfig
from alibi_attention.lab.corpus_cache import cache_folder, keep_corpus, read_kept
from alibi_attention.lab.division import divided, divided_as_given
from alibi_attention.lab.documents import open_dataset
from alibi_attention.lab.errors import LabError
from alibi_attention.lab.progress import Progress
from alibi_attention.lab.reading import Reader
from alibi_attention.lab.streams import Corpus, joined_sizes, joined_stream
from alibi_attention.lab.texts import documents_of, source_of, splits_of, texts_of
from alibi_attention.lab.tokens import make_encoder


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
    folder = cache_folder(config, whole)
    corpus = read_kept(folder, config)
    if corpus is None:
        with progress or Progress() as progress:
            corpus = keep_corpus(_make(config, whole, progress), folder, config)
    _check_sizes(corpus, config)
    return corpus


def _make(config: ExperimentConfig, whole: Any, progress: Progress) -> Corpus:
    reader = Reader(config.document_start, progress)
    if config.dataset_held_out:
        train, held_out, split = divided_as_given(*splits_of(config, whole, reader), config, progress)
    elif config.held_out_text:
        train, held_out, split = divided_as_given(*texts_of(config, reader), config, progress)
    else:
        train, held_out, split = divided(documents_of(config, whole, reader), config, progress)
    encoder = make_encoder(config, [document.text for document in train], progress)
    train_stream, _ = joined_stream(train, encoder, progress)
    held_out_stream, starts = joined_stream(held_out, encoder, progress)
    return Corpus(
        source=source_of(config),
        split=split,
        train=train_stream,
        held_out=held_out_stream,
        train_documents=tuple(document.name for document in train),
        held_out_documents=tuple(document.name for document in held_out),
        held_out_starts=starts,
        encoder=encoder,
        held_out_sizes=joined_sizes(held_out, encoder),
        passed_over=dict(reader.passed_over),
    )


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
