"""Reading the trained models of a run, for whoever wants them."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lab_cases import TINY, WORDS
from safetensors.torch import save
from typer.testing import CliRunner, Result

from alibi_attention.bench.trained import layers_of
from alibi_attention.cli.app import app
from alibi_attention.lab.checkpoint import load_tensors, save_tensors
from alibi_attention.lab.config import make_config
from alibi_attention.lab.errors import LabError
from alibi_attention.lab.experiment import resume_experiment, start_experiment
from alibi_attention.lab.runs import RunFolder
from alibi_attention.lab.trained import decoder_weights, find_trained, load_trained

KINDS = {"bpe": {"tokenizer": "bpe", "vocabulary": 300}, "words": {"tokenizer": "words", "cutoffs": (6,)}}


@pytest.fixture(scope="module", params=KINDS)
def other_tokens(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run over tokens that are not bytes."""
    folder = tmp_path_factory.mktemp(request.param)
    (folder / "texts").mkdir()
    for number in range(12):
        lines = [" ".join(random.Random(20 * number + i).choices(WORDS, k=12)) for i in range(20)]
        (folder / "texts" / f"{number}.txt").write_text("\n".join(lines), encoding="utf-8")
    texts = {"text": (str(folder / "texts"),), "methods": ("alibi", "learned", "t5"), "eval_lengths": (16, 24)}
    start_experiment(make_config({**TINY, **texts, **KINDS[request.param]}), folder / "run")
    return folder / "run"


@pytest.fixture
def copy(whole_run: Path, tmp_path: Path) -> Path:
    shutil.copytree(whole_run, tmp_path / "run")
    return tmp_path / "run"


def as_schema_1(run: Path) -> None:
    """The folder as the first version would have written it."""
    path = run / "config.json"
    start = json.loads(path.read_text())
    old = (
        "methods", "length", "eval_lengths", "text", "held_out_share", "layers", "heads", "width", "steps",
        "batch_size", "learning_rate", "warmup", "weight_decay", "clip", "checkpoint_every", "seed", "device",
    )  # fmt: skip
    config = {name: start["config"][name] for name in old} | {"eval_bytes": start["config"]["eval_tokens"]}
    path.write_text(json.dumps({**start, "schema_version": 1, "config": config}))


def alibi(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(each) for each in arguments], env={"COLUMNS": "200", "NO_COLOR": "1"})


def test_text_in_the_tokens_of_the_run(other_tokens: Path) -> None:
    decoder, encoder = load_trained(other_tokens, "alibi")
    tokens = [0, *map(int, encoder.encode(b"the slope of"))]
    start = len(tokens)
    with torch.no_grad():
        for _ in range(12):
            tokens.append(int(decoder(torch.tensor([tokens]))[0, -1].argmax()))
    done = alibi("generate", other_tokens, "the slope of", "--max-tokens", 12, "--temperature", 0, "--past-end")
    assert done.exit_code == 0, done.stderr
    assert "12 tokens" in done.stderr
    want = (encoder.decode(tokens).replace(b"\0", b"\n")[len(encoder.decode(tokens[:start])) :]).decode()
    assert done.stdout_bytes.decode().split() == want.split()
    assert want.split()


def test_other_tokens_are_not_exported(other_tokens: Path, tmp_path: Path) -> None:
    done = alibi("export", other_tokens, "--format", "mpt", "--output", tmp_path / "out")
    assert done.exit_code == 2
    kind = "bpe" if "bpe" in str(other_tokens) else "words, cutoffs 6"
    assert done.stderr == (
        "error: RUN: expected a run over bytes, with one embedding for each: other vocabularies are not exported, got "
        f"the tokenizer {kind} in {other_tokens}\n  train with --tokenizer bytes and without --cutoffs\n"
    )
    assert not (tmp_path / "out").exists()
    assert alibi("inspect", other_tokens / "alibi").exit_code == 0


def test_inputs_for_benchmarks_in_other_tokens(other_tokens: Path) -> None:
    layers, slopes, note = layers_of(other_tokens, 40)
    assert layers[0][0].shape == (1, 2, 40, 8)
    assert slopes.tolist() == [2**-4, 2**-8]
    assert "million tokens of" in note
    assert "on held-out text" in note


def test_a_vocabulary_that_is_missing_or_damaged(other_tokens: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(other_tokens, run)
    expected = r"^run: expected the tokenizer\.json of a run with the tokenizer \w+, got .*; restore it from a copy"
    (run / "tokenizer.json").write_text("{}")
    with pytest.raises(LabError, match=expected):
        load_trained(run, "alibi")
    (run / "tokenizer.json").unlink()
    with pytest.raises(LabError, match=expected):
        load_trained(run, "alibi")
    done = alibi("generate", run, "the")
    assert (done.exit_code, done.stderr[:38]) == (2, "error: SOURCE: expected the tokenizer.")


def test_learned_positions_end_before_anything_is_written(other_tokens: Path) -> None:
    done = alibi("generate", other_tokens, "--method", "learned", "the", "--max-tokens", 300)
    assert (done.exit_code, done.stdout) == (2, "")
    assert "error: --max-tokens: expected at most 15 after this prompt, where the positions of" in done.stderr
    assert "(learned) end, got 300\n  use --max-tokens 15" in done.stderr
    done = alibi("generate", other_tokens, "--method", "learned", "the", "--max-tokens", 15, "--past-end")
    assert (done.exit_code, "15 tokens in" in done.stderr) == (0, True)
    done = alibi("generate", other_tokens, "--method", "learned", "the " * 20)
    assert "error: PROMPT: expected at most 16 tokens, where the positions of" in done.stderr
    done = alibi("generate", other_tokens, "--method", "t5", "the", "--max-tokens", 40, "--past-end")
    assert "(T5 bias): 40 tokens in" in done.stderr


def test_the_first_schema_is_read_for_its_weights(copy: Path, whole_run: Path) -> None:
    as_schema_1(copy)
    for method in ("alibi", "rope", "sinusoidal"):
        old, _ = load_trained(copy, method)
        new, _ = load_trained(whole_run, method)
        for name, tensor in new.state_dict().items():
            assert torch.equal(old.state_dict()[name], tensor)
    assert decoder_weights(find_trained(copy / "alibi")).max_length == 64
    assert alibi("generate", copy, "a", "--max-tokens", 3, "--past-end").exit_code == 0
    assert alibi("inspect", copy / "alibi").exit_code == 0
    # Its corpus is the same: the texts have not changed, nor has their split.
    assert "on held-out text" in layers_of(copy, 20)[2]


def test_the_second_schema_is_read_for_its_weights(copy: Path, whole_run: Path) -> None:
    start = json.loads((copy / "config.json").read_text())
    start["schema_version"] = 2
    del start["config"]["held_out_text"]
    (copy / "config.json").write_text(json.dumps(start))
    old, new = (load_trained(folder, "rope")[0].state_dict() for folder in (copy, whole_run))
    assert all(torch.equal(old[name], tensor) for name, tensor in new.items())
    with pytest.raises(LabError, match="run: expected a run folder of schema version 3, got version 2 in"):
        resume_experiment(copy)


def test_a_run_of_before_these_settings_is_continued_to_the_same_bits(copy: Path, whole_run: Path) -> None:
    start = json.loads((copy / "config.json").read_text())
    for name in ("bias", "embedding_scale", "final_norm"):
        del start["config"][name]
    (copy / "config.json").write_text(json.dumps(start))
    (copy / "results.json").unlink()
    for method in ("alibi", "rope", "sinusoidal"):
        shutil.rmtree(copy / method)
    resume_experiment(copy)
    for method in ("alibi", "rope", "sinusoidal"):
        old, new = (load_tensors(folder / method / "weights.safetensors")[0] for folder in (copy, whole_run))
        assert old.keys() == new.keys()
        assert all(torch.equal(old[name], tensor) for name, tensor in new.items())


def test_but_not_continued(copy: Path) -> None:
    as_schema_1(copy)
    for call in (lambda: resume_experiment(copy), RunFolder(copy).read_results):
        refused: Callable[[], Any] = call
        with pytest.raises(LabError, match="run: expected a run folder of schema version 3, got version 1 in"):
            refused()


def damaged(path: Path, at: int) -> None:
    """One bit of the byte ``at`` another."""
    content = bytearray(path.read_bytes())
    content[at] ^= 0x40
    path.write_bytes(content)


def test_a_single_bit_that_changed_is_found(copy: Path, tmp_path: Path) -> None:
    path = copy / "rope" / "weights.safetensors"
    damaged(path, -1)
    with pytest.raises(LabError) as error:
        load_trained(copy, "rope")
    assert str(error.value) == (
        f"run: expected a whole file of weights, got {path} (its checksum is another: something in it changed after it "
        "was written); restore it from a copy, or train again"
    )
    # And by the flag that the command has, before anything is written.
    done = alibi("evaluate", copy, "--output", tmp_path / "again")
    assert done.exit_code == 2
    assert done.stderr == (
        f"error: RUN: expected a whole file of this program, got {path} (its checksum is another: something in it "
        "changed after it was written)\n"
        "  delete this file and run alibi extrapolate --resume on its run: its method is then trained from the start\n"
    )
    assert [each.name for each in tmp_path.iterdir()] == ["run"]
    # Doing as it says.
    path.unlink()
    assert alibi("extrapolate", "--resume", "--output", copy).exit_code == 0
    assert alibi("evaluate", copy, "--output", tmp_path / "again").exit_code == 0


def test_weights_of_before_the_checksum_are_read(copy: Path) -> None:
    path = copy / "rope" / "weights.safetensors"
    tensors, header = load_tensors(path)
    path.write_bytes(save(tensors, metadata={"alibi_attention": json.dumps(header)}))
    found, same = load_tensors(path)
    assert same == header
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())
    path.write_bytes(save(tensors, metadata={"alibi_attention": "{"}))
    with pytest.raises(LabError, match=r"^resume: expected a whole file of this program, got "):
        load_tensors(path)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64, torch.bool])
def test_everything_that_is_kept_is_in_the_checksum(tmp_path: Path, dtype: torch.dtype) -> None:
    path = tmp_path / "state.safetensors"
    tensors = {"a": torch.ones(3, 2).to(dtype), "scalar": torch.tensor(1).to(dtype), "none": torch.ones(0).to(dtype)}
    save_tensors(path, tensors, {"step": 1, "seconds": 0.25})
    found, header = load_tensors(path)
    assert header == {"step": 1, "seconds": 0.25}
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())
    content = path.read_bytes()
    for old, new in ((b'"step\\": 1', b'"step\\": 2'), (b"[3,2]", b"[2,3]"), (b'"scalar"', b'"scaler"')):
        assert content.count(old) == 1
        path.write_bytes(content.replace(old, new))
        with pytest.raises(LabError, match="its checksum is another"):
            load_tensors(path)


def test_a_tolerance_that_is_no_share_of_mass_is_refused(copy: Path) -> None:
    for tolerance in ("2", "nan", "-0.5", "1"):
        done = alibi("dissect", copy, "--lengths", 32, "--mass-length", 32, f"--tolerance={tolerance}")
        assert done.exit_code == 2
        assert done.stderr == (
            "error: --tolerance: expected a share of a row's mass from 0 up to, not including, 1, got "
            f"{float(tolerance)}\n  leave it out for 2^-24, what float32 rounds by\n"
        )
    assert not (copy / "alibi" / "inside").exists()


@pytest.mark.parametrize(
    ("content", "lacks"),
    [
        ({}, "config"),
        ({"config": 3}, "config"),
        ({"config": {}}, "fingerprint of the corpus"),
        ({"config": {}, "corpus": {}}, "fingerprint of the corpus"),
        ({"config": {}, "corpus": {"fingerprint": "0"}}, "environment"),
    ],
)
def test_a_config_json_without_its_parts_is_refused(
    copy: Path, tmp_path: Path, content: dict[str, Any], lacks: str
) -> None:
    path = copy / "config.json"
    path.write_text(json.dumps({"schema_version": 3, **content}))
    complaint = (
        f"expected a config.json as it was written, got {path}, which lacks its {lacks}\n"
        "  restore it from a copy: nothing else of the run is lost; "
        f"alibi report takes {copy / 'results.json'} instead\n"
    )
    for command in (
        ("extrapolate", "--resume", "--output", copy),
        ("evaluate", copy, "--output", tmp_path / "again"),
        ("report", copy, "--output", tmp_path / "report"),
    ):
        done = alibi(*command)
        assert done.exit_code == 2
        assert done.stderr.partition(": ")[2].partition(": ")[2] == complaint
    assert [each.name for each in tmp_path.iterdir()] == ["run"]


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ('{"config": ', " (Expecting value: line 1 column 12 (char 11))"),
        ("[]", ", which holds something else"),
        ('{"schema_version": 3}', ", which lacks its config"),
    ],
)
def test_a_damaged_config_json_is_named_once_and_the_rest_is_not_given_up(
    copy: Path, tmp_path: Path, content: str, why: str
) -> None:
    path = copy / "config.json"
    path.write_text(content)
    for command in (("dissect", copy), ("evaluate", copy, "--output", tmp_path / "again")):
        done = alibi(*command)
        assert done.exit_code == 2
        assert done.stderr.partition(": ")[2].partition(": ")[2] == (
            f"expected a config.json as it was written, got {path}{why}\n"
            "  restore it from a copy: nothing else of the run is lost; "
            f"alibi report takes {copy / 'results.json'} instead\n"
        )
    # As it says.
    assert alibi("report", copy / "results.json", "--output", tmp_path / "report").exit_code == 0


def test_a_setting_in_config_json_that_cannot_be_is_named(copy: Path) -> None:
    start = json.loads((copy / "config.json").read_text())
    start["config"]["heads"] = 0
    (copy / "config.json").write_text(json.dumps(start))
    done = alibi("dissect", copy)
    assert done.stderr == (
        f"error: RUN: expected at least 1, got 0 for heads in {copy / 'config.json'}\n  raise it to 1 or more\n"
    )


def test_a_folder_of_another_version_is_left_to_that_version(copy: Path, tmp_path: Path) -> None:
    start = json.loads((copy / "config.json").read_text())
    remedies = {
        2: "use the version of alibi-attention that started it; "
        "of this one alibi dissect, generate and export do with its weights",
        99: "use the version of alibi-attention that started it",
    }
    for version, remedy in remedies.items():
        (copy / "config.json").write_text(json.dumps({**start, "schema_version": version}))
        for command in (
            ("report", copy, "--output", tmp_path / "report"), ("evaluate", copy, "--output", tmp_path / "again")
        ):  # fmt: skip
            done = alibi(*command)
            assert done.exit_code == 2
            complaint = f"expected a run folder of schema version 3, got version {version} in {copy}"
            assert done.stderr.partition(": ")[2].partition(": ")[2] == f"{complaint}\n  {remedy}\n"


def test_a_model_of_transformers_is_no_run(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "bloom"}', encoding="utf-8")
    done = alibi("dissect", tmp_path)
    assert done.exit_code == 2
    assert f"got {tmp_path}, a model of Transformers" in done.stderr


def test_text_that_may_have_been_seen_is_called_so(copy: Path) -> None:
    start = json.loads((copy / "config.json").read_text())
    start["corpus"]["fingerprint"] = "0" * 64
    (copy / "config.json").write_text(json.dumps(start))
    note = layers_of(copy, 20)[2]
    assert "on text of which it may have seen some: the corpus, or how it is split, is not that of the run" in note
