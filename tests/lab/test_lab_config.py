from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from lab_cases import read_config_file
from pydantic import ValidationError

from alibi_attention.lab.config import ExperimentConfig, make_config
from alibi_attention.lab.config_file import read_settings, write_config_file
from alibi_attention.lab.errors import LabError


def test_lengths_double_five_times_by_default() -> None:
    assert make_config({}).eval_lengths == (256, 512, 1024, 2048, 4096, 8192)
    assert make_config({"length": 100}).eval_lengths == (100, 200, 400, 800, 1600, 3200)
    assert make_config({"eval_lengths": (10, 20)}).eval_lengths == (10, 20)


def test_is_frozen_and_survives_json() -> None:
    config = make_config({"eval_lengths": (8, 9), "text": ("a", "b")})
    assert make_config(config.model_dump(mode="json")) == config
    with pytest.raises(ValidationError, match="frozen"):
        config.length = 2  # type: ignore[misc]


CHOOSE = "choose from alibi, alibi-interleaved, alibi-learned, learned, nope, rope, sinusoidal, t5"


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"length": 0}, "length: expected at least 1, got 0; raise it to 1 or more"),
        ({"eval_lengths": (64, 32)}, "eval_lengths: expected ascending lengths of at least 1, got 64,32; "
         "list each length once, shortest first, such as 256,512,1024"),
        ({"eval_lengths": (0, 32)}, "eval_lengths: expected ascending lengths of at least 1, got 0,32; "
         "list each length once, shortest first, such as 256,512,1024"),
        ({"methods": ("alibi", "rotten")}, "methods: expected names of position methods, got 'rotten'; "
         + CHOOSE),
        ({"methods": ("rope", "rope")}, "methods: expected one or more names, each once, got ['rope', 'rope']; "
         + CHOOSE),
        ({"methods": ()}, "methods: expected one or more names, each once, got []; "
         + CHOOSE),
        ({"width": 100, "heads": 8}, "width: expected a multiple of twice the heads, 16, so that each head has an "
         "even width, got 100; try 96"),
        ({"held_out_share": 0.9}, "held_out_share: expected a share above 0 and up to 0.5, got 0.9; "
         "keep enough for training; 0.1 is the default"),
        ({"learning_rate": -1.0}, "learning_rate: expected a number above 0, got -1.0; "
         "leave it out to take the default"),
        ({"methods": ("rope", "nope"), "variants": ("alibi:ntk",)}, "variants: expected names of variants of the "
         "methods, got 'alibi:ntk'; choose from rope:pi, rope:dynamic, rope:yarn, or all"),
        ({"methods": ("nope",), "variants": ("all", "x")}, "variants: expected names of variants of the methods, "
         "got 'all'; leave it out"),
        ({"variants": ("rope:pi", "rope:pi")}, "variants: expected each name once, got rope:pi,rope:pi; "
         "drop the repetitions"),
        ({"protocols": ("window",)}, "protocols: expected names of protocols, got 'window'; "
         "choose from windows, sliding, targets, recall, or all"),
        ({"protocols": ()}, "protocols: expected one or more names, got none; "
         "choose from windows, sliding, targets, recall, or all"),
        ({"recall_share": 1.0}, "recall_share: expected a share from 0 up to, not including, 1, got 1.0; such as 0.1"),
        ({"dropout": -0.1}, "dropout: expected a share from 0 up to, not including, 1, got -0.1; such as 0.1"),
        ({"batch_size": 8, "devices": 3}, "batch_size: expected a multiple of the 3 devices, which share a batch, "
         "got 8; try 9"),
        ({"text": ("a",), "dataset": "b"}, "dataset: expected one corpus, got --text and a data set, b; "
         "leave one of them out"),
        ({"vocabulary": 500}, "vocabulary: expected 256 for bytes, got 500; leave it out, or choose --tokenizer bpe"),
        ({"tokenizer": "bpe", "vocabulary": 200}, "vocabulary: expected at least 260: the bytes, and some pairs, "
         "got 200; such as 4096"),
        ({"tokenizer": "bpe", "vocabulary": 2_000_000_000}, "vocabulary: expected at most 1048576 tokens of BPE, "
         "got 2000000000; such as 8192"),
        ({"colour": 3}, "colour: expected a known setting, got this name; known are "
         + ", ".join(ExperimentConfig.model_fields)),
        ({"cutoffs": (20, 10)}, "cutoffs: expected ascending ranks of at least 1, got 20,10; "
         "such as 20000,60000 for a vocabulary of 267744"),
        ({"document_start": "("}, "document_start: expected a regular expression, got '(' (missing ), unterminated "
         "subpattern at position 0); such as '^ = [^=]'"),
        ({"precision": "fp8"}, "precision: expected 'fp32' or 'bf16', got 'fp8'; choose one of these"),
        ({"embedding_scale": "width"}, "embedding_scale: expected 'method', 'sqrt-width' or 'none', got 'width'; "
         "choose one of these"),
        ({"bias": "some"}, "bias: expected true or false, got 'some'; such as false, the default"),
        ({"steps": True}, "steps: expected a whole number, got 'true'; such as 900, the default"),
        ({"steps": "many"}, "steps: expected a whole number, got 'many'; such as 900, the default"),
        ({"steps": 3.5}, "steps: expected a whole number, got 3.5; such as 900, the default"),
        ({"text_column": None}, "text_column: expected text, got nothing; leave it out for the default"),
        ({"steps": None}, "steps: expected a whole number, got nothing; such as 900, the default"),
        ({"seed": False}, "seed: expected a whole number, got 'false'; such as 0, the default"),
        ({"cutoffs": (True,)}, "cutoffs: expected a list of whole numbers, got 'true'; such as 20000,60000"),
        ({"learning_rate": True}, "learning_rate: expected a finite number, got 'true'; such as 0.003, the default"),
        ({"dropout": False}, "dropout: expected a finite number, got 'false'; such as 0.0, the default"),
        ({"clip": True}, "clip: expected a finite number, got 'true'; such as 1.0, the default"),
        ({"weight_decay": True}, "weight_decay: expected a finite number, got 'true'; such as 0.1, the default"),
        ({"held_out_share": True}, "held_out_share: expected a finite number, got 'true'; such as 0.1, the default"),
        ({"methods": 3}, "methods: expected a list of names, got 3; such as alibi,sinusoidal,rope"),
        ({"methods": [3]}, "methods: expected a list of names, got 3; such as alibi,sinusoidal,rope"),
        ({"variants": 3}, "variants: expected a list of names, got 3; such as alibi:ntk,rope:yarn, or all"),
        ({"protocols": 3}, "protocols: expected a list of names, got 3; such as windows"),
        ({"dataset_split": 3}, "dataset_split: expected text, got 3; put it into quotes"),
        ({"device": "tpu"}, "device: expected 'cpu' or 'cuda', got 'tpu'; choose one of these"),
        ({"speed": 3}, "speed: expected a known setting, got this name; seed is meant? Known are "
         + ", ".join(ExperimentConfig.model_fields)),
    ],
)  # fmt: skip
def test_refusals(values: dict[str, Any], text: str) -> None:
    with pytest.raises(LabError) as error:
        make_config(values)
    assert str(error.value) == text


@pytest.mark.parametrize(
    "values",
    [
        {"learning_rate": float("nan")},
        {"clip": float("inf")},
        {"weight_decay": float("nan")},
        {"weight_decay": float("inf")},
        {"steps": 1.5},
        {"steps": 10**25},
        {"batch_size": 10**25},
        {"eval_lengths": (256, 10**25)},
    ],
)
def test_refuses_what_is_no_proper_number(values: dict[str, Any]) -> None:
    name = next(iter(values))
    with pytest.raises(LabError, match=f"^{name}: expected "):
        make_config(values)


def test_all_stands_for_every_one() -> None:
    config = make_config({"methods": ("rope", "nope", "alibi"), "variants": ["all"], "protocols": ["all"]})
    assert config.variants == (
        "rope:pi", "rope:dynamic", "rope:yarn", "alibi:linear", "alibi:ntk"
    )  # fmt: skip
    # What repeats another in full windows is evaluated where it is named.
    assert make_config({"methods": ("alibi",), "variants": ["alibi:dynamic"]}).variants == ("alibi:dynamic",)
    assert config.protocols == ("windows", "sliding", "targets", "recall")
    assert make_config({"protocols": ["recall", "windows"]}).protocols == ("windows", "recall")


def test_seeds_are_what_generators_take() -> None:
    assert make_config({"seed": (1 << 64) - 1}).seed == (1 << 64) - 1
    for seed in (1 << 64, -1):
        with pytest.raises(LabError) as error:
            make_config({"seed": seed})
        assert str(error.value) == (
            f"seed: expected a whole number from 0 up to, not including, 2^64, got {seed}; such as 0, 1 and 2"
        )


def test_held_out_text_needs_text_to_train_on() -> None:
    with pytest.raises(LabError) as error:
        make_config({"held_out_text": ("a.txt",)})
    assert str(error.value) == (
        "held_out_text: expected text to train on beside it, got none; name the training text with --text"
    )


def test_fixed_targets_begin_below_the_training_length() -> None:
    config = make_config({"length": 256})
    assert config.targets == 32
    assert config.window_lengths == (64, 128, 256, 512, 1024, 2048, 4096, 8192)
    assert make_config({"length": 8, "eval_lengths": (8, 16)}).window_lengths == (4, 8, 16)


# The file


def test_file_and_flags(tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    path.write_text("length: 64\nlearning-rate: 1e-3\nmethods: [rope, nope]\nvariants: all\ntext: book.txt\n")
    config = read_config_file(path, {"length": 32, "seed": 3})
    assert (config.length, config.seed, config.learning_rate) == (32, 3, 1e-3)
    assert config.methods == ("rope", "nope")
    assert config.variants == ("rope:pi", "rope:dynamic", "rope:yarn")
    # Beside the file that names it, wherever one is working.
    assert config.text == (str(tmp_path / "book.txt"),)
    assert config.eval_lengths[0] == 32


def test_written_file_gives_the_same_configuration(tmp_path: Path) -> None:
    config = make_config({"length": 64, "text": (str(tmp_path / "a é.txt"),), "cutoffs": (5, 9), "methods": ("t5",)})
    write_config_file(tmp_path / "config.yaml", config)
    assert read_config_file(tmp_path / "config.yaml") == config
    text = (tmp_path / "config.yaml").read_text(encoding="utf-8")
    assert all(f"\n{name}: " in text for name in ExperimentConfig.model_fields)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("", "config: expected settings by name, got {path}, which holds nothing; write one setting a line, such as "
         "`length: 256`"),
        ("- 3", "config: expected settings by name, got {path}, which holds a list; write one setting a line, such as "
         "`length: 256`"),
        ("lenght: 3", "config: expected known settings, got lenght in {path}; length is meant?"),
        ("length: 16\nsteps: 2\nlength: 32", "config: expected a YAML file, got {path} (length comes twice, "
         'line 3, column 1: length: 32 ^); write one setting a line, such as `length: 256`'),
        ("mask-share: 0.2\nmask_share: 0.3", "config: expected each setting once, got mask-share and mask_share in "
         "{path}; leave one of them out"),
        ("some words", "config: expected settings by name, got {path}, which holds text; write one setting a line, "
         "such as `length: 256`"),
        ("text: 2024", "config: expected names of files and folders, got 2024 for text in {path}; put a name that YAML "
         "takes for something else into quotes"),
        ("held-out-text: [a, 3.5]", "config: expected names of files and folders, got 3.5 for held-out-text in {path}; "
         "put a name that YAML takes for something else into quotes"),
        ("3: 4", "config: expected known settings, got 3 in {path}; `alibi extrapolate --help` has them as flags"),
        ("length: short", "length: expected a whole number, got 'short'; such as 256, the default"),
    ],
)  # fmt: skip
def test_file_refusals(content: str, text: str, tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(LabError) as error:
        read_config_file(path)
    assert str(error.value) == text.replace("{path}", str(path))


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(LabError) as error:
        read_config_file(tmp_path / "nowhere.yaml")
    assert str(error.value) == (
        f"config: expected a file that can be read, got {tmp_path / 'nowhere.yaml'} (No such file or directory); "
        "check its name"
    )


def test_a_file_that_is_no_text(tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    path.write_bytes(b"\x89PNG\xff")
    with pytest.raises(LabError) as error:
        read_config_file(path)
    assert str(error.value) == (
        f"config: expected UTF-8 text, got {path}, which is binary or in another encoding; "
        "name a YAML file, or save it as UTF-8"
    )


def test_a_file_says_where_each_setting_is(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("length: 16\nlearning-rate: 1\n", encoding="utf-8")
    assert read_settings(path).places == {"length": f"length in {path}", "learning_rate": f"learning-rate in {path}"}


def test_broken_file(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("length: [", encoding="utf-8")
    # What the parser says in the middle is its own affair.
    with pytest.raises(LabError, match=r"^config: expected a YAML file, got .* line 1, column 10.*; write one setting"):
        read_config_file(path)


def test_a_file_may_merge_what_it_has_named(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("<<: {length: 16, width: 32}\nlength: 64\n", encoding="utf-8")
    config = read_config_file(path)
    assert (config.length, config.width) == (64, 32)


def test_a_file_takes_what_flags_take(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(
        "methods: alibi, rope\nvariants: all\nprotocols: windows,sliding\neval_lengths: 128,8K\nlength: 64\n"
        "eval_tokens: 16K\ncutoffs: 20,1K\ntext: a,b.txt\n",
        encoding="utf-8",
    )
    listed = make_config(
        {
            "methods": ["alibi", "rope"], "variants": ["all"], "protocols": ["windows", "sliding"], "length": 64,
            "eval_lengths": [128, 8192], "eval_tokens": 16_384, "cutoffs": [20, 1024],
            "text": [str((tmp_path / "a,b.txt").resolve())],
        }
    )  # fmt: skip
    assert read_config_file(path) == listed


@pytest.mark.parametrize("length", ["128", '"128"', "128.0"])
def test_lengths_of_evaluation_follow_a_length_however_it_is_written(tmp_path: Path, length: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(f"length: {length}\n", encoding="utf-8")
    assert read_config_file(path).eval_lengths == (128, 256, 512, 1024, 2048, 4096)
