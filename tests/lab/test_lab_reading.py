"""Text from files, folders and data sets: what becomes a document, and what is said of the rest."""

from __future__ import annotations

import io
import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
from lab_cases import WORDS
from rich.console import Console

from alibi_attention.lab.config import ExperimentConfig
from alibi_attention.lab.corpus import load_corpus
from alibi_attention.lab.errors import LabError
from alibi_attention.lab.experiment import start_experiment
from alibi_attention.lab.progress import Progress
from alibi_attention.lab.reading import Reader, text_files

MakeConfig = Callable[..., ExperimentConfig]


def spoil(folder: Path) -> None:
    """Files that are no text, and what is left out by its name or holds nothing."""
    (folder / "picture.bin").write_bytes(b"\x89PNG\0\0")
    (folder / "wide.txt").write_bytes("wide".encode("utf-16"))
    (folder / "latin.txt").write_bytes("é".encode("latin-1"))
    (folder / ".hidden").write_bytes(b"\0")
    (folder / "empty.txt").write_bytes(b"")
    (folder / "elsewhere").symlink_to(folder.parent, target_is_directory=True)


PASSED_OVER = {"files with NUL": 2, "files not in UTF-8": 1, "links to folders": 1}
SAID = "; passed over: files not in UTF-8 (1), files with NUL (2), links to folders (1)"


def telling(every: float = 3600.0) -> tuple[io.StringIO, Progress]:
    """What a progress says, and the progress."""
    text = io.StringIO()
    return text, Progress(Console(file=text, width=400), every=every)


# What is passed over


def test_what_a_folder_holds_besides_text_is_counted_and_said(tiny: MakeConfig, texts: Path, tmp_path: Path) -> None:
    assert load_corpus(tiny()).passed_over == {}
    spoil(texts)
    for _ in ("read", "from the cache"):
        corpus = load_corpus(tiny())
        assert corpus.passed_over == PASSED_OVER
        assert corpus.division == corpus.split + SAID
    text, progress = telling()
    start_experiment(tiny(methods=("nope",), steps=1), tmp_path / "run", progress)
    assert f"{corpus.split}{SAID}.\n" in text.getvalue()
    kept = json.loads((tmp_path / "run" / "documents.json").read_text(encoding="utf-8"))
    assert kept["passed_over"] == PASSED_OVER
    assert len(kept["train"]) + len(kept["held_out"]) == 12


def test_held_out_text_is_counted_too(tiny: MakeConfig, texts: Path, tmp_path: Path) -> None:
    away = tmp_path / "away"
    away.mkdir()
    (away / "one.txt").write_text("nothing like the others " * 20, encoding="utf-8")
    for folder in (texts, away):
        (folder / "latin.txt").write_bytes("é".encode("latin-1"))
    corpus = load_corpus(tiny(held_out_text=(str(away),)))
    assert corpus.division == "as given: 12 documents for training, 1 held out; passed over: files not in UTF-8 (2)"


def test_a_folder_of_nothing_but_that_is_refused_with_the_count(tiny: MakeConfig, tmp_path: Path) -> None:
    folder = tmp_path / "spoilt"
    folder.mkdir()
    spoil(folder)
    with pytest.raises(LabError) as error:
        load_corpus(tiny(text=(str(folder),)))
    assert str(error.value) == (
        f"text: expected a folder with UTF-8 text in it, got none in {folder}{SAID}; "
        "name text files, or a folder that holds some"
    )


def test_what_may_not_be_read_is_counted(texts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (texts / "closed").mkdir()
    read, scan = Path.read_bytes, os.scandir

    def read_bytes(path: Path) -> bytes:
        if path.name == "3.txt":
            raise PermissionError
        return read(path)

    def scandir(path: Any) -> Any:
        if Path(path).name == "closed":
            raise PermissionError
        return scan(path)

    monkeypatch.setattr(Path, "read_bytes", read_bytes)
    monkeypatch.setattr(os, "scandir", scandir)
    reader = Reader()
    assert len(reader.path(texts)) == 11
    assert reader.passed_over == {"files that may not be read": 1, "folders that may not be opened": 1}


def test_a_disk_that_fails_is_no_reason_to_go_on_without_it(texts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> bytes:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(Path, "read_bytes", fail)
    with pytest.raises(OSError, match="Input/output error"):
        Reader().folder(texts)
    monkeypatch.setattr(os, "scandir", fail)
    with pytest.raises(OSError, match="Input/output error"):
        text_files(texts)


def test_a_file_that_may_be_read_from_now_on_is_read(
    tiny: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though neither its time nor its size is another."""
    monkeypatch.setenv("ALIBI_CACHE", str(tmp_path / "cache"))
    read, access = Path.read_bytes, os.access

    def read_bytes(path: Path) -> bytes:
        if path.name == "3.txt":
            raise PermissionError
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", read_bytes)
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path).name != "3.txt" and access(path, mode))
    assert load_corpus(tiny()).passed_over == {"files that may not be read": 1}
    monkeypatch.undo()
    monkeypatch.setenv("ALIBI_CACHE", str(tmp_path / "cache"))
    corpus = load_corpus(tiny())
    assert "3.txt" in corpus.train_documents + corpus.held_out_documents


def test_rows_that_are_no_text_are_counted() -> None:
    reader = Reader()
    documents = reader.rows(["one", None, "t\0o", " ", 4], "train")
    assert [(document.name, document.text) for document in documents] == [("train/0", b"one")]
    assert reader.passed_over == {"rows that are no text": 2, "rows with NUL": 1}
    of_rows = Reader("^=")
    documents = of_rows.rows(["before", "= a", "x", None, "= b", "\0", "= c"], "train")
    assert [document.text for document in documents] == [b"before", b"= ax", b"= c"]
    assert of_rows.passed_over == {"rows that are no text": 1, "documents with NUL": 1}


def test_a_split_of_nothing_but_that_is_refused_with_the_count(
    tiny: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    datasets.Dataset.from_dict({"text": ["a\0b", "\0"]}).save_to_disk(str(tmp_path / "saved"))
    with pytest.raises(LabError) as error:
        load_corpus(tiny(text=(), dataset=str(tmp_path / "saved")))
    assert str(error.value) == (
        "dataset: expected a split with text in it, got none in train; passed over: rows with NUL (2); choose another"
    )


# Lines that begin a document


def chapters(numbers: range) -> str:
    return "".join(f"Chapter {i}\n{line(i)}\n{line(100 + i)}\n" for i in numbers)


def line(seed: int) -> str:
    return " ".join(random.Random(seed).choices(WORDS, k=30))


def test_lines_begin_documents(tiny: MakeConfig, tmp_path: Path) -> None:
    book = tmp_path / "book.txt"
    book.write_bytes(("A preface, Chapter and verse\n" + chapters(range(20))).encode())
    corpus = load_corpus(tiny(text=(str(book),), document_start=r"^Chapter \d+$"))
    names = corpus.train_documents + corpus.held_out_documents
    assert sorted(names) == sorted(f"book.txt/{i}" for i in range(21))
    assert len(corpus.held_out_starts) == len(corpus.held_out_documents) > 0
    assert corpus.split.startswith("by document: ")
    pieces = corpus.train.tobytes().split(b"\0") + corpus.held_out.tobytes().split(b"\0")
    expected = [b"A preface, Chapter and verse\n", *(chapters(range(i, i + 1)).encode() for i in range(20))]
    assert sorted(pieces) == sorted(expected)


def test_a_line_is_what_ends_with_a_line_feed(tmp_path: Path) -> None:
    book = tmp_path / "book.txt"
    # A form feed and a line separator end no line; before the end of one a carriage return is no part of it.
    text = "\n \r\nChapter 1\r\nö\u2028Chapter 2\fChapter 3\nChapter 4\r\n"
    book.write_bytes(text.encode())
    documents = Reader(r"^Chapter \d$").path(book)
    assert [document.name for document in documents] == ["book.txt/1", "book.txt/2"]
    assert [document.text.decode() for document in documents] == [text[4:-11], "Chapter 4\r\n"]
    plain = Reader("^Section").path(book)
    assert [(document.name, document.text) for document in plain] == [("book.txt/0", text.encode())]
    book.write_text("\n\n", encoding="utf-8")
    assert [document.text for document in Reader("^Section").path(book)] == [b"\n\n"]


def test_lines_of_each_file_of_a_folder_and_of_held_out_text(tiny: MakeConfig, tmp_path: Path) -> None:
    for name, numbers in (("train", range(4)), ("held", range(10, 13))):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.txt").write_text(chapters(numbers), encoding="utf-8")
    (tmp_path / "train" / "b.txt").write_text("another beginning\n" + chapters(range(20, 22)), encoding="utf-8")
    config = tiny(text=(str(tmp_path / "train"),), held_out_text=(str(tmp_path / "held"),), document_start="^Chapter")
    corpus = load_corpus(config)
    assert corpus.train_documents == ("a.txt/0", "a.txt/1", "a.txt/2", "a.txt/3", "b.txt/0", "b.txt/1", "b.txt/2")
    assert corpus.held_out_documents == ("a.txt/0", "a.txt/1", "a.txt/2")


# A data set that is one file


ROWS = [{"body": line(i), "title": f"t{i}"} for i in range(20)]


def write_rows(path: Path) -> Path:
    table = datasets.Dataset.from_list(ROWS)
    if path.suffix == ".parquet":
        table.to_parquet(str(path))
    elif path.suffix == ".csv":
        table.to_csv(str(path))
    else:
        text = json.dumps(ROWS) if path.suffix == ".json" else "\n".join(map(json.dumps, ROWS))
        path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.parquet", "odd [1] *.JSONL"])
def test_a_data_set_of_one_file(
    tiny: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:  # fmt: skip
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    path = write_rows(tmp_path / name)
    corpus = load_corpus(tiny(text=(), dataset=str(path), text_column="body"))
    pieces = corpus.train.tobytes().split(b"\0") + corpus.held_out.tobytes().split(b"\0")
    assert sorted(pieces) == sorted(row["body"].encode() for row in ROWS)
    assert corpus.source == f"the data set {path}"
    assert all(document.startswith("train/") for document in corpus.train_documents)


def test_a_data_set_of_lines_of_text(tiny: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "book.txt"
    path.write_text(chapters(range(8)), encoding="utf-8")
    corpus = load_corpus(tiny(text=(), dataset=str(path), document_start="^Chapter"))
    pieces = corpus.train.tobytes().split(b"\0") + corpus.held_out.tobytes().split(b"\0")
    assert sorted(pieces) == sorted(chapters(range(i, i + 1)).encode() for i in range(8))
    # Another text in the same file is another corpus.
    path.write_text(chapters(range(9)), encoding="utf-8")
    assert load_corpus(tiny(text=(), dataset=str(path), document_start="^Chapter")).fingerprint != corpus.fingerprint


def test_a_data_set_of_one_file_that_cannot_be_used(
    tiny: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    path = write_rows(tmp_path / "a.jsonl")

    def refusal(**values: str) -> str:
        with pytest.raises(LabError) as error:
            load_corpus(tiny(text=(), **{"dataset": str(path), "text_column": "body", **values}))
        return str(error.value)

    assert refusal(dataset_config="v1") == (
        f"dataset_config: expected nothing, got 'v1' with {path}, a single file, which is of one configuration; "
        "leave it out"
    )
    assert refusal(dataset_split="test") == f"dataset_split: expected a split of {path}, got 'test'; choose from train"
    assert refusal(dataset_held_out="test") == (
        f"dataset_held_out: expected a split of {path}, got 'test'; leave it out to hold out documents of train"
    )
    assert refusal(text_column="text") == (
        f"text_column: expected a column of {path}, got 'text'; choose from body, title"
    )
    other = tmp_path / "a.docx"
    other.write_bytes(b"\0")
    assert refusal(dataset=str(other)) == (
        f"dataset: expected a file that ends in .jsonl, .json, .csv, .parquet, .txt, got {other}; "
        "name such a file, or give plain text with --text"
    )
    remedy = "; see that it holds rows of named columns, written as its suffix says"
    for number, text in enumerate(("", "{nonsense")):
        broken = tmp_path / f"broken-{number}.jsonl"
        broken.write_text(text, encoding="utf-8")
        said = refusal(dataset=str(broken))
        assert said.startswith(f"dataset: expected a data set that can be read, got {broken} (")
        assert said.endswith(remedy)
        assert "()" not in said


# Signs of life


def test_reading_comparing_learning_and_encoding_are_told(tiny: MakeConfig) -> None:
    text, progress = telling(every=0.0)
    load_corpus(tiny(tokenizer="bpe", vocabulary=300, eval_lengths=(16,)), progress)
    told = {line.split(": ")[1]: line for line in text.getvalue().splitlines()}
    assert list(told) == ["reading", "comparing documents", "learning a vocabulary", "encoding"]
    assert told["reading"].startswith("Corpus: reading: 12 of 12, ")
    assert " files/s, 0 min left" in told["reading"]
    assert " bytes/s, " in told["encoding"]
    text, progress = telling(every=0.0)
    load_corpus(tiny(tokenizer="bpe", vocabulary=300, eval_lengths=(16,)), progress)
    assert text.getvalue() == ""  # what was kept is mapped


def test_many_rows_move_the_bar_a_thousand_times(monkeypatch: pytest.MonkeyPatch) -> None:
    moved: list[int] = []
    monkeypatch.setattr(Progress, "advance", lambda _, units=1: moved.append(units))
    assert len(Reader().rows(["row"] * 25_000, "train")) == 25_000
    assert moved == [25] * 1000
