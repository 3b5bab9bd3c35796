"""The documents that the settings of an experiment name: of files, folders and splits of a data set."""

from __future__ import annotations

import sysconfig
from pathlib import Path
from typing import Any

from alibi_attention.lab.config import ExperimentConfig
from alibi_attention.lab.documents import Document, without_copies
from alibi_attention.lab.errors import LabError
from alibi_attention.lab.reading import Reader, said


def source_of(config: ExperimentConfig) -> str:
    """Where they come from, in words."""
    if config.dataset:
        return f"the data set {config.dataset}" + (f" ({config.dataset_config})" if config.dataset_config else "")
    return ", ".join([*config.text, *config.held_out_text]) or "the Python standard library"


def documents_of(config: ExperimentConfig, whole: Any, reader: Reader) -> list[Document]:
    """Of all that is to be divided; the Python standard library where nothing is named."""
    if whole is not None:
        return without_copies(_rows_of(config.dataset_split, config, whole, reader))
    if config.text:
        return without_copies([document for text in config.text for document in reader.path(Path(text))])
    return without_copies(reader.folder(Path(sysconfig.get_path("stdlib")), (".py",)))


def splits_of(
    config: ExperimentConfig, whole: Any, reader: Reader
) -> tuple[list[Document], list[Document]]:  # fmt: skip
    """Of the split to train on and of the one to hold out."""
    train = _rows_of(config.dataset_split, config, whole, reader)
    return train, _rows_of(config.dataset_held_out, config, whole, reader)


def texts_of(config: ExperimentConfig, reader: Reader) -> tuple[list[Document], list[Document]]:
    """Of the text to train on and of the text to hold out."""
    held_out = [document for text in config.held_out_text for document in reader.path(Path(text), "held_out_text")]
    return [document for text in config.text for document in reader.path(Path(text))], held_out


def _rows_of(split: str, config: ExperimentConfig, whole: Any, reader: Reader) -> list[Document]:
    before = reader.passed_over.copy()
    documents = reader.rows(whole[split][config.text_column], split)
    if not documents:
        expected = "text in both splits" if config.dataset_held_out else "a split with text in it"
        got = f"none in {split}{said(reader.passed_over - before)}"
        raise LabError("dataset", expected=expected, got=got, remedy="choose another")
    return documents
