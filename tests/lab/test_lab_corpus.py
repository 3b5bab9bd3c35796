from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from alibi_attention.lab.config import ExperimentConfig
from alibi_attention.lab.corpus import Corpus, Document, load_corpus, split_documents
from alibi_attention.lab.errors import LabError

MakeConfig = Callable[..., ExperimentConfig]


def pieces(stream: np.ndarray) -> list[bytes]:
    return stream.tobytes().split(b"\0")


def test_split_is_by_document_and_complete(tiny: MakeConfig, texts: Path) -> None:
    corpus = load_corpus(tiny())
    originals = {path.read_bytes() for path in texts.iterdir()}
    train, held_out = pieces(corpus.train), pieces(corpus.held_out)
    assert sorted(train + held_out) == sorted(originals)
    assert not set(train) & set(held_out)
    assert held_out
    assert set(corpus.train_documents) | set(corpus.held_out_documents) == {path.name for path in texts.iterdir()}
    assert len(corpus.train_documents) == len(train)


def test_split_depends_on_names_alone(tiny: MakeConfig, texts: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    # Created in another order, as another machine would list them.
    elsewhere.mkdir()
    for path in sorted(texts.iterdir(), reverse=True):
        shutil.copy(path, elsewhere)
    first, second = load_corpus(tiny()), load_corpus(tiny(text=(str(elsewhere),)))
    assert first.fingerprint == second.fingerprint
    assert first.held_out_documents == second.held_out_documents


def test_fingerprint_sees_every_byte_and_the_split(tiny: MakeConfig, texts: Path) -> None:
    before = load_corpus(tiny())
    moved = Corpus("", "", before.train[:-1], np.append(before.train[-1:], before.held_out), (), ())
    assert moved.fingerprint != before.fingerprint
    file = texts / "3.txt"
    file.write_bytes(file.read_bytes()[:-1] + b"!")
    assert load_corpus(tiny()).fingerprint != before.fingerprint


def test_copies_never_fall_on_both_sides(tiny: MakeConfig, texts: Path) -> None:
    for path in list(texts.iterdir()):
        shutil.copy(path, texts / f"copy-of-{path.name}")
    corpus = load_corpus(tiny())
    everything = pieces(corpus.train) + pieces(corpus.held_out)
    assert len(everything) == len(set(everything)) == 12


def test_same_name_in_two_folders_is_two_documents(tiny: MakeConfig, texts: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "3.txt").write_text("another text of the same name " * 20, encoding="utf-8")
    corpus = load_corpus(tiny(text=(str(texts), str(other))))
    names = corpus.train_documents + corpus.held_out_documents
    assert len(names) == len(set(names)) == 13


def test_single_document_is_cut_once(tiny: MakeConfig, tmp_path: Path) -> None:
    path = tmp_path / "book.txt"
    text = "".join(f"line {i}\n" for i in range(200))
    path.write_text(text, encoding="utf-8")
    corpus = load_corpus(tiny(text=(str(path),)))
    assert corpus.train.tobytes() + corpus.held_out.tobytes() == text.encode()
    assert len(corpus.held_out) == round(0.1 * len(text))
    assert corpus.split == (
        f"one document, cut once: its first {len(corpus.train):,} bytes are for training, the rest is held out"
    )


def test_share_is_met_unless_a_document_is_too_large() -> None:
    documents = [Document(f"{i}", bytes([65 + i % 26]) * 100) for i in range(200)]
    train, held_out = split_documents(documents, 0.1)
    assert len(held_out) == 20
    assert len(train) == 180
    giant = Document("giant", b"x" * 100_000)
    train, held_out = split_documents([*documents, giant], 0.1)
    assert giant in train
    assert held_out
    train, held_out = split_documents([Document("a", b"xx"), Document("b", b"y")], 0.1)
    assert [d.name for d in train + held_out] == ["a", "b"]


def test_folders_pass_over_what_is_no_text(tiny: MakeConfig, texts: Path) -> None:
    before = load_corpus(tiny()).fingerprint
    (texts / "picture.bin").write_bytes(b"\x89PNG\0\0")
    (texts / "latin.txt").write_bytes("é".encode("latin-1"))
    (texts / ".hidden").write_text("hidden", encoding="utf-8")
    (texts / "empty.txt").write_text("", encoding="utf-8")
    (texts / "__pycache__").mkdir()
    (texts / "__pycache__" / "x.txt").write_text("cached", encoding="utf-8")
    assert load_corpus(tiny()).fingerprint == before


def test_standard_library_by_default(tiny: MakeConfig) -> None:
    corpus = load_corpus(tiny(text=()))
    assert corpus.source == "the Python standard library"
    assert "argparse.py" in corpus.train_documents + corpus.held_out_documents
    assert not any("site-packages" in name for name in corpus.train_documents + corpus.held_out_documents)
    assert 0.05 < len(corpus.held_out) / (len(corpus.train) + len(corpus.held_out)) < 0.2


def test_refusals(tiny: MakeConfig, tmp_path: Path) -> None:
    def refusal(*paths: Path) -> str:
        with pytest.raises(LabError) as error:
            load_corpus(tiny(text=tuple(map(str, paths))))
        return str(error.value)

    missing = tmp_path / "missing.txt"
    assert refusal(missing) == (
        f"text: expected an existing file or folder, got {missing}; check the spelling and the folder you are in"
    )
    binary = tmp_path / "binary.txt"
    binary.write_bytes(b"ab\0c" * 100)
    assert refusal(binary) == (
        f"text: expected UTF-8 text, got {binary}, which is binary or in another encoding; "
        "extract its text first, or convert it with `iconv -t utf-8`"
    )
    empty = tmp_path / "empty"
    empty.mkdir()
    assert refusal(empty) == (
        f"text: expected a folder with UTF-8 text in it, got none in {empty}; "
        "name text files, or a folder that holds some"
    )
    short = tmp_path / "short.txt"
    short.write_text("a" * 15, encoding="utf-8")
    assert refusal(short) == (
        f"text: expected at least 17 bytes of training text, got 13 from {short}; "
        "add text, or ask for a shorter --length"
    )
    short.write_text("a" * 100, encoding="utf-8")
    assert refusal(short) == (
        f"text: expected at least 65 bytes of held-out text, got 10 from {short}; "
        "add text, or ask for a shorter --eval-lengths"
    )
