from __future__ import annotations

import json
import pickle
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from lab_cases import read_config_file

from alibi_attention.lab.batches import Batches
from alibi_attention.lab.config import ExperimentConfig, make_config
from alibi_attention.lab.corpus import load_corpus
from alibi_attention.lab.documents import Document, split_documents
from alibi_attention.lab.duplicates import near_duplicates
from alibi_attention.lab.errors import LabError
from alibi_attention.lab.protocols import held_out_of
from alibi_attention.lab.streams import Corpus
from alibi_attention.lab.tokens import load_encoder, make_encoder

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
    # Code pages are one table with another upper half: a family, wherever it falls.
    for family in (("cp1250", "cp1251", "cp1252", "iso8859_1"), ("cp437", "cp850", "cp866"), ("big5", "gb2312")):
        sides = {f"encodings/{name}.py" in corpus.held_out_documents for name in family}
        assert len(sides) == 1, family
    assert "near-duplicates (" in corpus.split
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


# Near-duplicates


def words(seed: int, count: int = 200) -> list[str]:
    return random.Random(seed).choices([f"word{i}" for i in range(500)], k=count)


def test_near_duplicates_are_found_and_others_are_not() -> None:
    plain = words(0)
    edited = [word if i % 40 else "changed" for i, word in enumerate(plain)]
    part = plain[50:110]
    other = words(1)
    texts = [" ".join(t).encode() for t in (plain, other, edited, part, words(2)[:3])]
    first, second, third, fourth, fifth = near_duplicates(texts)
    assert first == third == fourth
    assert len({first, second, fifth}) == 3
    assert near_duplicates([]) == []


def test_copies_with_one_change_each_are_one_family_however_many() -> None:
    plain = words(0, 100)
    texts = [" ".join([*plain, f"tail{i}"]).encode() for i in range(200)]
    assert len(set(near_duplicates(texts))) == 1


def test_boilerplate_makes_no_family() -> None:
    licence = words(9, 12)
    texts = [" ".join([*licence, *words(100 + i)]).encode() for i in range(30)]
    assert len(set(near_duplicates(texts))) == 30


def test_sampled_shingles_find_the_same_families(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [" ".join(words(i // 2, 2000)).encode() + b" end%d" % i for i in range(10)]
    whole = near_duplicates(texts)
    monkeypatch.setattr("alibi_attention.lab.duplicates._WHOLE", 20_000)
    assert near_duplicates(texts) == whole == [0, 0, 2, 2, 4, 4, 6, 6, 8, 8]


@pytest.mark.parametrize("count", [20, 50, 200, 500])
def test_near_copies_are_found_in_corpora_of_any_size(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = []
    for i in range(20):
        plain = words(i, count)
        texts += [
            " ".join(each).encode() for each in (plain, [*plain[: count // 2], "changed", *plain[count // 2 + 1 :]])
        ]
    expected = [i - i % 2 for i in range(40)]
    assert near_duplicates(texts) == expected
    # As in a corpus of 3 GiB.
    monkeypatch.setattr("alibi_attention.lab.duplicates._WHOLE", sum(map(len, texts)) // 100)
    assert near_duplicates(texts) == expected


def test_boilerplate_makes_no_family_in_large_corpora_either(monkeypatch: pytest.MonkeyPatch) -> None:
    licence = words(9, 12)
    texts = [" ".join([*licence, *words(100 + i, 40 + 10 * i)]).encode() for i in range(30)]
    monkeypatch.setattr("alibi_attention.lab.duplicates._WHOLE", sum(map(len, texts)) // 100)
    assert len(set(near_duplicates(texts))) == 30


def test_text_without_spaces_is_compared_by_characters() -> None:
    def chinese(seed: int) -> str:
        return "".join(chr(0x4E00 + i) for i in random.Random(seed).choices(range(2000), k=3000))

    first, second = chinese(0), chinese(1)
    texts = [first, second, first[:1500] + "x" + first[1501:], "\n".join([second[:200], second[200:1000]])]
    assert near_duplicates([each.encode() for each in texts]) == [0, 1, 0, 1]


def test_groups_are_never_divided() -> None:
    documents = [Document(f"{i}", bytes([65 + i % 26]) * 100) for i in range(200)]
    groups = [i // 5 for i in range(200)]
    train, held_out = split_documents(documents, 0.1, groups)
    assert len(held_out) == 20
    assert not {int(d.name) // 5 for d in train} & {int(d.name) // 5 for d in held_out}


def test_near_duplicate_files_stay_on_one_side(tiny: MakeConfig, texts: Path) -> None:
    for path in list(texts.iterdir()):
        (texts / f"near-{path.name}").write_text(path.read_text(encoding="utf-8") + " more", encoding="utf-8")
    corpus = load_corpus(tiny())
    assert len(corpus.train_documents) + len(corpus.held_out_documents) == 24
    for name in corpus.held_out_documents:
        assert {name.removeprefix("near-"), f"near-{name.removeprefix('near-')}"} <= set(corpus.held_out_documents)
    assert corpus.split.endswith("; near-duplicates (24 documents) kept together")


def test_nothing_but_near_duplicates_is_split_all_the_same(tiny: MakeConfig, tmp_path: Path) -> None:
    folder = tmp_path / "same"
    folder.mkdir()
    for i in range(10):
        (folder / f"{i}.txt").write_text(" ".join(words(0)) + f" {i}", encoding="utf-8")
    corpus = load_corpus(tiny(text=(str(folder),)))
    assert corpus.train_documents
    assert corpus.held_out_documents
    assert corpus.split.endswith("; all are near-duplicates of each other")


# Data sets


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    rows = [" ".join(words(i, 60)) for i in range(30)]
    columns = {"text": rows, "title": [f"t{i}" for i in range(30)]}
    parts = {"train": datasets.Dataset.from_dict(columns), "validation": datasets.Dataset.from_dict({"text": rows[:3]})}
    datasets.DatasetDict(parts).save_to_disk(str(tmp_path / "saved"))
    return tmp_path / "saved"


def test_data_set_saved_to_disk(tiny: MakeConfig, saved: Path) -> None:
    corpus = load_corpus(tiny(text=(), dataset=str(saved)))
    rows = [" ".join(words(i, 60)).encode() for i in range(30)]
    assert sorted(pieces(corpus.train) + pieces(corpus.held_out)) == sorted(rows)
    assert corpus.source == f"the data set {saved}"
    assert all(name.startswith("train/") for name in corpus.train_documents)


def test_splits_of_a_data_set_share_no_text(tiny: MakeConfig, saved: Path) -> None:
    rows = [" ".join(words(i, 60)) for i in range(30)]
    # Its first three are held out too; a fourth is all but one of them.
    parts = {"train": [*rows, rows[5]], "validation": [*rows[:3], rows[4] + " more"]}
    sets = {name: datasets.Dataset.from_dict({"text": texts}) for name, texts in parts.items()}
    datasets.DatasetDict(sets).save_to_disk(str(saved.parent / "leaking"))
    corpus = load_corpus(tiny(text=(), dataset=str(saved.parent / "leaking"), dataset_held_out="validation"))
    assert not set(pieces(corpus.train)) & set(pieces(corpus.held_out))
    assert sorted(pieces(corpus.train)) == sorted(row.encode() for row in rows[3:])
    assert corpus.split == (
        "as the data set has it: 27 documents of train for training, 4 of validation held out; 3 of the former left "
        "out, being held out as well; 1 of the latter are near-duplicates of training documents"
    )


def test_nothing_but_held_out_rows_is_refused(tiny: MakeConfig, saved: Path) -> None:
    with pytest.raises(LabError) as error:
        load_corpus(tiny(text=(), dataset=str(saved), dataset_split="validation", dataset_held_out="train"))
    assert str(error.value) == (
        "dataset_split: expected text that is not held out, got none; choose another split, or another to hold out"
    )


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"dataset": "d", "dataset_held_out": "train"}, "dataset_held_out: expected another split than the one to "
         "train on, got 'train'; leave it out to hold out documents of train"),
        ({"document_start": "^="}, "document_start: expected nothing, got '^=' for Python's standard library, whose "
         "files are its documents; name a text or a data set, or leave it out"),
        ({"text": ("a",), "text_column": "body"}, "text_column: expected the default, text, got 'body' without a data "
         "set; name one with --dataset, or leave it out"),
        ({"dataset_split": "test"}, "dataset_split: expected the default, train, got 'test' without a data set; "
         "name one with --dataset, or leave it out"),
        ({"dataset_held_out": "test"}, "dataset_held_out: expected nothing, got 'test' without a data set; "
         "name one with --dataset, or leave it out"),
        ({"dataset_config": "v1"}, "dataset_config: expected nothing, got 'v1' without a data set; "
         "name one with --dataset, or leave it out"),
        ({"text": ("a",), "held_out_text": ("b",), "held_out_share": 0.2}, "held_out_share: expected the default, 0.1, "
         "got 0.2 beside --held-out-text, which is held out as it is; leave it out, or --held-out-text"),
        ({"dataset": "d", "dataset_held_out": "test", "held_out_share": 0.2}, "held_out_share: expected the default, "
         "0.1, got 0.2 beside --dataset-held-out, which is held out as it is; leave it out, or --dataset-held-out"),
    ],
)  # fmt: skip
def test_settings_that_would_do_nothing(values: dict[str, Any], text: str) -> None:
    with pytest.raises(LabError) as error:
        make_config(values)
    assert str(error.value) == text


def test_data_set_beside_the_file_that_names_it(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved.parent / "experiment.yaml"
    path.write_text("dataset: saved\n", encoding="utf-8")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    assert read_config_file(path).dataset == str(saved)
    # Else where one is working, and else it is a name.
    (elsewhere / "here").mkdir()
    for text, found in (("here", str(elsewhere / "here")), ("someone/something", "someone/something")):
        path.write_text(f"dataset: {text}\n", encoding="utf-8")
        assert read_config_file(path).dataset == found


def test_data_set_of_files(tiny: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "files"
    folder.mkdir()
    lines = [json.dumps({"body": " ".join(words(i, 60))}) for i in range(20)]
    (folder / "train.jsonl").write_text("\n".join(lines), encoding="utf-8")
    corpus = load_corpus(tiny(text=(), dataset=str(folder), text_column="body"))
    assert len(corpus.train_documents) + len(corpus.held_out_documents) == 20


def test_held_out_split_and_documents_of_many_rows(tiny: MakeConfig, tmp_path: Path) -> None:
    def wiki(first: int, articles: int) -> list[str]:
        rows = []
        for i in range(first, first + articles):
            rows += ["", f" = Title {i} = \n", "", *(" ".join(words(10 * i + j, 9)) + " \n" for j in range(4))]
            rows += [" = = Section = = \n", " ".join(words(10 * i + 9, 9)) + " \n"]
        return rows

    parts = {
        "train": datasets.Dataset.from_dict({"text": wiki(0, 6)}),
        "validation": datasets.Dataset.from_dict({"text": wiki(6, 2)}),
    }
    datasets.DatasetDict(parts).save_to_disk(str(tmp_path / "wiki"))
    config = tiny(text=(), dataset=str(tmp_path / "wiki"), dataset_held_out="validation", document_start="^ = [^=]")
    corpus = load_corpus(config)
    assert len(corpus.train_documents) == 6
    assert len(corpus.held_out_documents) == 2
    documents = pieces(corpus.held_out)
    assert documents[0].startswith(b" = Title 6 = \n")
    assert b" = = Section = = \n" in documents[0]
    assert corpus.split == "as the data set has it: 6 documents of train for training, 2 of validation held out"


def test_data_set_refusals(tiny: MakeConfig, saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refusal(**values: str) -> str:
        with pytest.raises(LabError) as error:
            load_corpus(tiny(text=(), **{"dataset": str(saved), **values}))
        return str(error.value)

    assert refusal(dataset_split="test") == (
        f"dataset_split: expected a split of {saved}, got 'test'; choose from train, validation"
    )
    assert refusal(dataset_held_out="dev") == (
        f"dataset_held_out: expected a split of {saved}, got 'dev'; choose from train, validation"
    )
    assert (
        refusal(text_column="body") == f"text_column: expected a column of {saved}, got 'body'; choose from text, title"
    )
    assert refusal(dataset_config="v1") == (
        f"dataset_config: expected nothing, got 'v1' with {saved}, a copy saved to disk, which is of one "
        "configuration; leave it out"
    )
    empty = tmp_path / "empty"
    empty.mkdir()
    assert refusal(dataset=str(empty)).startswith(f"dataset: expected a data set that can be read, got {empty} (")
    monkeypatch.setattr("alibi_attention.lab.documents.find_spec", lambda _: None)
    assert refusal() == (
        "dataset: expected the package datasets, got none installed; "
        "pip install -c constraints.txt '.[all,data]' in a checkout of alibi-attention"
    )
    # First what can be mended without it.
    missing = str(tmp_path / "mising")
    assert refusal(dataset=missing) == (
        f"dataset: expected an existing file or folder, got {missing}; check the spelling and the folder you are in"
    )
    for name in ("./rows", "../rows", "a/b/c"):
        assert refusal(dataset=name).startswith(f"dataset: expected an existing file or folder, got {name}; ")


def test_a_configuration_there_is_not(tiny: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "rows"
    folder.mkdir()
    datasets.Dataset.from_dict({"text": [" ".join(words(i, 60)) for i in range(20)]}).to_parquet(folder / "a.parquet")

    def refusal(name: str) -> str:
        with pytest.raises(LabError) as error:
            load_corpus(tiny(text=(), dataset=str(folder), dataset_config=name))
        return str(error.value)

    assert refusal("v1") == (
        f"dataset_config: expected a configuration of {folder}, got 'v1'; "
        "there is default alone: --dataset-config '' takes it"
    )
    assert load_corpus(tiny(text=(), dataset=str(folder), dataset_config="")).source == f"the data set {folder}"
    each = "".join(f"- config_name: {name}\n  data_files: a.parquet\n" for name in ("one", "two"))
    (folder / "README.md").write_text(f"---\nconfigs:\n{each}---\n", encoding="utf-8")
    for name in ("v1", ""):
        assert refusal(name) == (
            f"dataset_config: expected a configuration of {folder}, got {name!r}; choose from one, two"
        )


# A division of the user's own


def test_text_is_held_out_as_given(tiny: MakeConfig, texts: Path, tmp_path: Path) -> None:
    away = tmp_path / "away"
    away.mkdir()
    (away / "one.txt").write_text("nothing like the others " * 20, encoding="utf-8")
    corpus = load_corpus(tiny(held_out_text=(str(away),)))
    assert len(corpus.train_documents) == 12
    assert corpus.held_out_documents == ("one.txt",)
    assert corpus.encoder.decode(corpus.held_out) == (away / "one.txt").read_bytes()
    assert corpus.split == "as given: 12 documents for training, 1 held out"
    assert str(away) in corpus.source
    # A copy of training text is taken out of training; what is merely alike is said.
    shutil.copyfile(texts / "0.txt", away / "copy.txt")
    text = (texts / "1.txt").read_text(encoding="utf-8")
    (away / "alike.txt").write_text(text + " and more", encoding="utf-8")
    corpus = load_corpus(tiny(held_out_text=(str(away),)))
    assert "0.txt" not in corpus.train_documents
    assert corpus.split == (
        "as given: 11 documents for training, 3 held out; 1 of the former left out, being held out as well; "
        "1 of the latter are near-duplicates of training documents"
    )
    assert (texts / "0.txt").read_bytes() not in bytes(corpus.train)


def test_bad_held_out_text_is_refused_by_its_name(tiny: MakeConfig, texts: Path, tmp_path: Path) -> None:
    with pytest.raises(LabError, match=r"^held_out_text: expected an existing file or folder, got .*missing; check"):
        load_corpus(tiny(held_out_text=(str(tmp_path / "missing"),)))
    (tmp_path / "short.txt").write_text("short", encoding="utf-8")
    with pytest.raises(LabError, match=r"^held_out_text: expected at least 65 bytes of held-out text, got 5 from "):
        load_corpus(tiny(held_out_text=(str(tmp_path / "short.txt"),)))
    with pytest.raises(LabError) as error:
        load_corpus(tiny(held_out_text=(str(texts),)))
    assert str(error.value) == (
        f"held_out_text: expected text that leaves some of --text to train on, got {texts}, which has all of it; "
        "hold out other text, or leave it out to hold out documents of --text"
    )


# Tokens


def test_bpe_gives_the_text_back(tiny: MakeConfig, texts: Path) -> None:
    (texts / "unicode.txt").write_text("schön 长 🙂\n\ttabs  and   spaces\n" * 30, encoding="utf-8")
    corpus = load_corpus(tiny(tokenizer="bpe", vocabulary=310, eval_lengths=(16, 24)))
    encoder = corpus.encoder
    assert encoder.vocabulary == 310
    assert corpus.train.dtype == np.uint16
    originals = {path.read_bytes() for path in texts.iterdir()}
    decoded = [*encoder.decode(corpus.train).split(b"\0"), *encoder.decode(corpus.held_out).split(b"\0")]
    assert set(decoded) == originals
    for stream in (corpus.train, corpus.held_out):
        assert encoder.token_bytes[stream].sum() == len(encoder.decode(stream))
    assert len(corpus.train) < 0.6 * encoder.token_bytes[corpus.train].sum()
    starts = corpus.held_out_starts
    assert len(starts) == len(corpus.held_out_documents)
    assert (corpus.held_out[starts[1:] - 1] == 0).all()
    assert encoder.description == "byte-level BPE, 310 tokens"


def test_bpe_learns_from_training_text_alone(tiny: MakeConfig) -> None:
    config = tiny(tokenizer="bpe", vocabulary=300, eval_lengths=(16,))
    first, second = (make_encoder(config, [b"aaaa bbbb " * 50]) for _ in range(2))
    assert first.serialized == second.serialized
    assert len(first.encode(b"aaaa bbbb")) < len(first.encode(b"zzzz yyyy")) == 9
    again = load_encoder("bpe", first.serialized)
    assert again.encode(b"aaaa zz").tolist() == first.encode(b"aaaa zz").tolist()


NAMES = "before <|end|> <|unknown|> <|newline|> after"


@pytest.mark.parametrize("kind", ["bpe", "words"])
def test_names_of_special_tokens_in_a_text_are_text(tiny: MakeConfig, kind: str) -> None:
    # Often enough to be learned.
    texts = [f"{NAMES} again <|end|>\n".encode() * 50]
    encoder = make_encoder(tiny(tokenizer=kind, vocabulary=400 if kind == "bpe" else 0, eval_lengths=(16,)), texts)
    for text in (NAMES.encode(), NAMES.replace(" ", "").encode()):
        tokens = encoder.encode(text)
        assert 0 not in tokens
        if kind == "bpe":
            assert encoder.token_bytes[tokens].sum() == len(text)
            assert encoder.decode(tokens) == text
    sizes = encoder.sizes(NAMES.encode())
    if kind == "words":
        assert sizes is not None
        assert sizes.sum() == len(NAMES)
        assert encoder.decode(encoder.encode(NAMES.encode())) == NAMES.encode()
        assert len(set(encoder.encode(NAMES.encode()).tolist())) == 5
    assert encoder.decode([0]) == b"\0"
    first, second = encoder.encode(b"before after"), encoder.encode(b"after")
    assert encoder.decode([*first, 0, *second]) == b"before after\0after"


def test_vocabularies_of_words_from_before_are_read(tiny: MakeConfig) -> None:
    made = make_encoder(tiny(tokenizer="words", eval_lengths=(16,)), [b"the cat sat\n" * 3])
    assert made.serialized is not None
    older = made.serialized.replace("\\u0000newline", "<|newline|>").replace("\\u0000unknown", "<|unknown|>")
    encoder = load_encoder("words", older.replace("\\u0000", "<|end|>"))
    tokens = encoder.encode(b"the cat\nsat")
    assert encoder.decode([*tokens, 0, *tokens[:1]]) == b"the cat\nsat\0the"
    assert encoder.token_bytes[[0, *tokens]].tolist() == [1, 4, 4, 1, 4]


def test_long_texts_are_encoded_in_pieces(tiny: MakeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny(tokenizer="bpe", vocabulary=300, eval_lengths=(16,))
    text = "".join(f"line {i} of some\n" for i in range(60)).encode()
    encoder = make_encoder(config, [text])
    monkeypatch.setattr("alibi_attention.lab.tokens._PIECE", 50)
    assert encoder.decode(encoder.encode(text)) == text


def test_words(tiny: MakeConfig) -> None:
    config = tiny(tokenizer="words", eval_lengths=(16,))
    encoder = make_encoder(config, [b"the cat sat on the mat\nthe end\n" * 3])
    # By frequency, which is what an adaptive vocabulary needs.
    assert encoder.encode(b"the\nunheard cat").tolist()[:2] == [2, 3]
    assert encoder.decode(encoder.encode(b"the cat\nthe mat")) == b"the cat\nthe mat"
    assert encoder.token_bytes[encoder.encode(b"the cat\n")].tolist() == [4, 4, 1]
    assert encoder.vocabulary == 2 + 7 + 0


def test_words_count_the_bytes_they_stand_for(tiny: MakeConfig, texts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "  the unheardof cät\n\n sat\ton  the mat \n"
    encoder = make_encoder(tiny(tokenizer="words", eval_lengths=(16,)), [b"the sat on mat\n" * 3])
    sizes = encoder.sizes(text.encode())
    # Space before a word is the word's, what is left at the end the last one's.
    assert sizes.tolist() == [5, 10, 5, 1, 1, 4, 3, 5, 4, 2]
    monkeypatch.setattr("alibi_attention.lab.tokens._PIECE", 20)
    assert encoder.sizes(text.encode()).tolist() == sizes.tolist()
    assert encoder.sizes(b"\n".join([b" "] * 40) + b"the").sum() == 82
    # Held-out words that training never saw, counted to the last byte, also from the cache.
    for path in texts.iterdir():
        path.write_text(path.read_text(encoding="utf-8") + f" seen-nowhere-else-{path.stem}", encoding="utf-8")
    for _ in range(2):
        corpus = load_corpus(tiny(tokenizer="words", eval_lengths=(16,)))
        held_out = held_out_of(corpus)
        assert 1 in corpus.held_out
        total = sum(len((texts / name).read_bytes()) for name in corpus.held_out_documents)
        places = np.arange(len(corpus.held_out))
        assert held_out.bytes_at(places).sum() == total + len(corpus.held_out_documents) - 1
        assert held_out.bytes_at(corpus.held_out_starts[1:] - 1).tolist() == [1] * (len(corpus.held_out_starts) - 1)
    assert isinstance(corpus.held_out_sizes, np.memmap)


def test_tokenizers_missing_is_said(tiny: MakeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("alibi_attention.lab.tokens.find_spec", lambda _: None)
    with pytest.raises(LabError, match=r"^tokenizer: expected the package tokenizers, got none installed; pip install"):
        make_encoder(tiny(tokenizer="bpe"), [])


# Cache


def test_second_reading_maps_what_the_first_one_kept(
    tiny: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALIBI_CACHE", str(tmp_path / "cache"))
    config = tiny(tokenizer="bpe", vocabulary=300, eval_lengths=(16,))
    first = load_corpus(config)
    assert isinstance(first.train, np.memmap)
    monkeypatch.setattr("alibi_attention.lab.corpus._make", None)  # not called again
    second = load_corpus(config)
    assert second.summary() == first.summary()
    assert second.held_out_documents == first.held_out_documents
    assert second.held_out_starts.tolist() == first.held_out_starts.tolist()
    assert second.encoder.serialized == first.encoder.serialized


def test_damaged_cache_is_made_again(tiny: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALIBI_CACHE", str(tmp_path / "cache"))
    fingerprint = load_corpus(tiny()).fingerprint
    (folder,) = (tmp_path / "cache").iterdir()
    for spoil in ("train.bin", "corpus.json"):
        (folder / spoil).write_bytes(b"\1" + (folder / spoil).read_bytes()[1:])
        assert load_corpus(tiny()).fingerprint == fingerprint
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [folder.name]


def alter(path: Path, name: str) -> None:
    """One part of what is kept, as a failing disk would: the file stays one of its kind."""
    if path.suffix == ".bin":
        path.write_bytes(bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:])
        return
    kept = json.loads(path.read_text(encoding="utf-8"))
    changed = {
        "serialized": lambda text: text.replace('"added_tokens"', '"added_tokenz"'),
        "starts": lambda starts: [starts[0], *(start + 1 for start in starts[1:])],
        "documents": lambda names: [names[0][::-1], names[1]],
        "split": lambda split: split + "!",
        "passed_over": lambda _: {"files with NUL": 1},
        "sizes": lambda _: None,
    }
    kept[name] = changed[name](kept[name])
    path.write_text(json.dumps(kept), encoding="utf-8")


@pytest.mark.parametrize("part", ["serialized", "starts", "documents", "split", "passed_over", "sizes", "sizes.bin"])
def test_every_part_of_a_cache_is_checked(
    tiny: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    """Sizes are the denominator of bits per byte, and starts the documents of the intervals."""
    monkeypatch.setenv("ALIBI_CACHE", str(tmp_path / "cache"))
    # Enough held out for several documents.
    config = tiny(tokenizer="words", eval_lengths=(16,), held_out_share=0.4)
    first = load_corpus(config)
    assert first.held_out_sizes is not None
    sizes = first.held_out_sizes.tolist()
    assert len(first.held_out_starts) > 1
    (folder,) = (tmp_path / "cache").iterdir()
    whole = {path.name: path.read_bytes() for path in folder.iterdir()}
    alter(folder / (part if part.endswith(".bin") else "corpus.json"), part)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} != whole
    again = load_corpus(config)
    assert again.held_out_starts.tolist() == first.held_out_starts.tolist()
    assert again.held_out_sizes is not None
    assert again.held_out_sizes.tolist() == sizes
    assert again.encoder.serialized == first.encoder.serialized
    assert (again.held_out_documents, again.division) == (first.held_out_documents, first.division)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == whole


def test_a_cache_of_before_it_had_a_checksum_is_made_again(
    tiny: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALIBI_CACHE", str(tmp_path / "cache"))
    first = load_corpus(tiny())
    (path,) = (tmp_path / "cache").glob("*/corpus.json")
    whole = path.read_text(encoding="utf-8")
    older = {"sized": False, **json.loads(whole)}
    for name in ("checksum", "sizes", "passed_over"):
        del older[name]
    path.write_text(json.dumps(older), encoding="utf-8")
    assert load_corpus(tiny()).summary() == first.summary()
    assert path.read_text(encoding="utf-8") == whole


def test_without_a_cache_the_corpus_stays_in_memory(
    tiny: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = load_corpus(tiny())
    (tmp_path / "file").write_text("", encoding="utf-8")
    monkeypatch.setenv("ALIBI_CACHE", str(tmp_path / "file" / "cache"))
    plain = load_corpus(tiny())
    assert not isinstance(plain.train, np.memmap)
    assert plain.fingerprint == kept.fingerprint


def test_other_processes_read_a_corpus_whose_cache_is_gone(
    tiny: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALIBI_CACHE", str(tmp_path / "cache"))
    corpus, config = load_corpus(tiny()), tiny()
    batches = Batches(corpus.train, config, 0, 2)
    mapped = pickle.dumps(batches)
    assert len(mapped) < corpus.train.nbytes
    shutil.rmtree(tmp_path / "cache")
    passed_on = pickle.loads(pickle.dumps(batches))
    for one, other in zip(passed_on, batches, strict=True):
        assert torch.equal(one, other)
