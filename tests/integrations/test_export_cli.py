"""``alibi export`` and the reading of run folders."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner, Result

from alibi_attention.cli import extras
from alibi_attention.cli.app import app
from alibi_attention.lab.checkpoint import load_tensors, save_tensors
from alibi_attention.lab.config import make_config
from alibi_attention.lab.experiment import start_experiment
from alibi_attention.lab.runs import RunFolder
from alibi_attention.lab.trained import find_trained, load_decoder

Invoke = Callable[..., Result]


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete run of two methods."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "book.txt").write_text("near keys weigh more, far keys fade. " * 60)
    config = make_config(
        {
            "text": (str(folder / "book.txt"),), "methods": ("alibi", "rope"), "length": 16, "eval_lengths": (16, 64),
            "eval_tokens": 128, "layers": 1, "heads": 2, "width": 16, "steps": 3, "batch_size": 2,
        }
    )  # fmt: skip
    start_experiment(config, folder / "run")
    return folder / "run"


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A copy of that run, to be damaged."""
    shutil.copytree(trained, tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture
def alibi(monkeypatch: pytest.MonkeyPatch) -> Invoke:
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("NO_COLOR", "1")
    return lambda *arguments: CliRunner().invoke(app, [str(each) for each in arguments], prog_name="alibi")


@pytest.mark.parametrize("method", ["", "alibi"])
@pytest.mark.parametrize("form", ["mpt", "bloom", "gguf"])
def test_exports(alibi: Invoke, run: Path, tmp_path: Path, form: str, method: str) -> None:
    output = tmp_path / "models" / form
    accepting = [] if form == "gguf" else ["--approximate"]
    result = alibi("export", run / method, "--format", form, "--output", output, *accepting)
    assert result.exit_code == 0, result.stderr
    assert f"alibi of {run}: 1 layers, 2 heads, width 16, 7,216 parameters, trained at 16 tokens" in result.stdout
    assert "for inputs of up to 64 tokens" in result.stdout
    if form == "gguf":
        assert f"llama_cpp.Llama('{output / 'model.gguf'}')" in result.stdout
    else:
        transformers = pytest.importorskip("transformers")
        transformers.logging.disable_progress_bar()
        model = transformers.AutoModelForCausalLM.from_pretrained(output)
        decoder = load_decoder(find_trained(run / method))
        x = torch.arange(60)[None] + 40
        with torch.no_grad():
            torch.testing.assert_close(model(x).logits, decoder(x), rtol=0, atol=1e-4)


def test_the_longest_input_can_be_chosen(alibi: Invoke, run: Path, tmp_path: Path) -> None:
    alibi("export", run, "--format", "mpt", "--output", tmp_path / "out", "--max-length", 5000)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["max_seq_len"] == 5000
    result = alibi("export", run, "--format", "mpt", "--output", tmp_path / "two", "--max-length", 0)
    assert result.stderr == "error: --max-length: expected at least 1 token, got 0\n  leave it out\n"
    assert result.exit_code == 2


def refused(alibi: Invoke, path: Path, output: Path, *options: str) -> str:
    """What ``alibi export`` says when it refuses; it must write nothing."""
    before = output.exists()
    result = alibi("export", path, "--format", "mpt", "--output", output, *options)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert output.exists() == before
    return result.stderr


def test_missing_and_foreign_folders(alibi: Invoke, run: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    assert f"got {tmp_path / 'none'}, which does not exist" in refused(alibi, tmp_path / "none", output)
    assert f"got {tmp_path}, which has no config.json" in refused(alibi, tmp_path, output)
    assert "expected a method of the run" in refused(alibi, run / "alibbi", output)
    for text, words in (
        ('{"model_type": "mpt"}', "run, a model of Transformers"),
        ('{"seed": 3}', "expected a run folder of schema version 3, got version None"),
        ("{", "expected a config.json as it was written"),
        ("[]", "which holds something else"),
    ):
        (run / "config.json").write_text(text)
        assert words in refused(alibi, run, output)


def test_a_method_without_linear_biases(alibi: Invoke, run: Path, tmp_path: Path) -> None:
    error = refused(alibi, run / "rope", tmp_path / "out")
    assert error == (
        "error: RUN: expected a method with linear biases: MPT, BLOOM and GGUF's MPT know positions by nothing else, "
        f"got 'rope'\n  name a folder such as {run / 'alibi'}\n"
    )


def test_a_run_without_any(alibi: Invoke, run: Path, tmp_path: Path) -> None:
    start = json.loads((run / "config.json").read_text())
    start["config"]["methods"] = ["rope"]
    (run / "config.json").write_text(json.dumps(start))
    assert "of which none has linear biases" in refused(alibi, run, tmp_path / "out")


def test_heads_that_are_no_power_of_two(alibi: Invoke, run: Path, tmp_path: Path) -> None:
    start = json.loads((run / "config.json").read_text())
    start["config"] |= {"heads": 3, "width": 18}
    (run / "config.json").write_text(json.dumps(start))
    folder = RunFolder(run)
    tensors = {
        name: torch.zeros([{16: 18, 48: 54, 64: 72}.get(size, size) for size in tensor.shape])
        for name, tensor in load_tensors(folder.weights("alibi"))[0].items()
    }
    save_tensors(folder.weights("alibi"), tensors, {})
    error = refused(alibi, run, tmp_path / "out")
    assert error.startswith("error: RUN: slopes: expected the interleaved ones for 3 heads, the only ones MPT has")
    assert "train the method alibi-interleaved, which has them, or with 2 or 4 heads" in error


def test_weights_missing_or_damaged(alibi: Invoke, run: Path, tmp_path: Path) -> None:
    output, path = tmp_path / "out", run / "alibi" / "weights.safetensors"
    start = json.loads((run / "config.json").read_text())
    start["config"]["layers"] = 2
    (run / "config.json").write_text(json.dumps(start))
    assert "expected the weights of 2 layers of width 16" in refused(alibi, run, output)
    path.write_bytes(path.read_bytes()[:500])
    assert f"expected a whole file of weights, got {path}" in refused(alibi, run, output)
    path.unlink()
    error = refused(alibi, run, output)
    assert "in which alibi has no weights.safetensors" in error
    assert "alibi extrapolate --resume" in error


def test_an_output_that_exists(alibi: Invoke, run: Path, tmp_path: Path) -> None:
    output = tmp_path / "taken"
    output.mkdir()
    (output / "mine").write_text("kept")
    assert refused(alibi, run, output) == (
        f"error: --output: expected a new or empty folder, got {output}, which exists\n  choose another\n"
    )
    assert [path.name for path in output.iterdir()] == ["mine"]


@pytest.mark.parametrize("form", ["mpt", "gguf"])
def test_the_folder_one_stands_in(
    alibi: Invoke, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    """It stays the same folder, and the shell in it sees what was written."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    result = alibi("export", run, "--format", form, "--output", ".")
    assert result.exit_code == 0, result.stderr
    here = sorted(path.name for path in Path().iterdir())
    assert here == sorted(path.name for path in (tmp_path / "here").iterdir())
    assert ("model.gguf" if form == "gguf" else "config.json") in here
    assert not [name for name in here if name.startswith(".")]
    assert f"({str(Path('model.gguf') if form == 'gguf' else Path())!r})" in result.stdout


def test_folders_the_system_refuses(alibi: Invoke, run: Path, tmp_path: Path) -> None:
    long = tmp_path / ("x" * 300)
    assert f"got {long} (File name too long)" in refused_by_system(alibi, run, long, "--output")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere" / "at all")
    assert f"got {tmp_path / 'link'} (" in refused_by_system(alibi, run, tmp_path / "link", "--output")
    assert f"got {long} (File name too long)" in refused_by_system(alibi, long, tmp_path / "out", "RUN")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "run"]


def refused_by_system(alibi: Invoke, path: Path, output: Path, flag: str) -> str:
    result = alibi("export", path, "--format", "mpt", "--output", output)
    assert result.exit_code == 2, result.exception
    assert result.stderr.startswith(f"error: {flag}: expected a folder that can be ")
    return result.stderr


def test_the_other_gelu(alibi: Invoke, run: Path, tmp_path: Path) -> None:
    result = alibi("export", run, "--format", "bloom", "--output", tmp_path / "out")
    assert result.exit_code == 2
    assert result.stderr.startswith("error: RUN: activation: expected 'gelu-tanh' for BLOOM")
    assert "--approximate" in result.stderr
    result = alibi("export", run, "--format", "gguf", "--output", tmp_path / "out", "--approximate")
    assert result.exit_code == 2
    assert result.stderr.startswith("error: --approximate: expected for MPT and BLOOM folders, got it for GGUF, where ")
    assert not (tmp_path / "out").exists()


def test_a_decoder_without_a_last_norm(alibi: Invoke, run: Path, tmp_path: Path) -> None:
    start = json.loads((run / "config.json").read_text())
    start["config"]["final_norm"] = False
    (run / "config.json").write_text(json.dumps(start))
    assert refused(alibi, run, tmp_path / "out") == (
        "error: RUN: expected a norm before the output (final_norm): MPT, BLOOM and GGUF's MPT have one, got a decoder "
        f"without it in {run}\n  train with --final-norm\n"
    )


def test_a_missing_extra(alibi: Invoke, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = extras.find_spec
    monkeypatch.setattr(extras, "find_spec", lambda name: None if name == "gguf" else find(name))
    assert refused(alibi, run, tmp_path / "out") == (
        "error: this needs gguf, not installed here\n"
        "  pip install -c constraints.txt '.[export]' in a checkout of alibi-attention\n"
    )


def test_an_unknown_format(alibi: Invoke, run: Path, tmp_path: Path) -> None:
    result = alibi("export", run, "--format", "onnx", "--output", tmp_path / "out")
    assert result.exit_code == 2
    assert "onnx" in result.stderr
