"""`alibi generate`: text on one stream, everything else on the other."""

from __future__ import annotations

import itertools
import json
import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from alibi_attention.cli.app import app
from alibi_attention.lab.checkpoint import save_tensors
from alibi_attention.lab.config import make_config
from alibi_attention.lab.files import write_json
from alibi_attention.lab.model import build_decoder
from alibi_attention.lab.runs import RunFolder
from alibi_attention.lab.schema import SCHEMA_VERSION
from alibi_attention.lab.trained import load_trained

COMMAND = [sys.executable, "-m", "alibi_attention.cli"]


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose decoders were never trained: they babble bytes, and that is text enough."""
    root = tmp_path_factory.mktemp("run")
    config = make_config({"length": 16, "layers": 1, "heads": 2, "width": 16})
    folder = RunFolder(root)
    write_json(folder.config, {"schema_version": SCHEMA_VERSION, "config": config.model_dump(mode="json")})
    for method in ("alibi", "rope"):
        folder.weights(method).parent.mkdir()
        save_tensors(folder.weights(method), build_decoder(config, method).state_dict(), {})
    return root


def invoke(*arguments: object, **options: Any) -> Any:
    return CliRunner().invoke(app, ["generate", *map(str, arguments)], **options)


def test_text_and_figures_go_their_own_ways(run_folder: Path) -> None:
    done = invoke(run_folder, "abc", "--max-tokens", 30, "--seed", 3, "--past-end")
    assert done.exit_code == 0, done.stderr
    assert done.stdout
    assert re.search(r": 30 tokens in .*, prompt 4 tokens in .*; ended by length\n", done.stderr)
    assert re.search(r"cache: \d+\.\d KiB", done.stderr)
    again = invoke(run_folder, "abc", "--max-tokens", 30, "--seed", 3, "--past-end", "--quiet")
    assert again.stdout_bytes == done.stdout_bytes
    assert again.stderr == ""
    other = invoke(run_folder, "abc", "--max-tokens", 30, "--seed", 4, "--past-end", "--quiet")
    assert other.stdout_bytes != done.stdout_bytes


def test_the_speed_is_that_of_the_tokens_computed(run_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each look at the clock is a hundredth of a second later: thirty for as many tokens, of which one was there."""
    looks = itertools.count()
    clock = SimpleNamespace(perf_counter=lambda: next(looks) / 100)
    monkeypatch.setattr("alibi_attention.generation.loop.time", clock)
    done = invoke(run_folder, "abc", "--max-tokens", 30, "--past-end")
    assert ": 30 tokens in 0.3 s (97 tokens/s), prompt 4 tokens in 0.0 s; ended by length\n" in done.stderr
    done = invoke(run_folder, "abc", "--max-tokens", 1, "--past-end")
    assert ": 1 token in 0.0 s, prompt 4 tokens in 0.0 s; ended by length\n" in done.stderr


def test_the_prompt_comes_three_ways(run_folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "prompt.txt"
    file.write_text("dé\n", encoding="utf-8")
    how = ("--max-tokens", 20, "--seed", 1, "--quiet", "--past-end")
    given = invoke(run_folder, "dé\n", *how)
    assert given.stdout_bytes
    assert invoke(run_folder, "--prompt-file", file, *how).stdout_bytes == given.stdout_bytes
    assert invoke(run_folder, "-", *how, input="dé\n").stdout_bytes == given.stdout_bytes
    assert invoke(run_folder, *how, input="dé\n").stdout_bytes == given.stdout_bytes


def test_a_pipe_that_stays_open_is_not_waited_for_without_a_word(run_folder: Path) -> None:
    said = "reading the prompt from standard input\n"
    process = subprocess.Popen(
        [*COMMAND, "generate", str(run_folder), "--max-tokens", "5"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert process.stderr is not None
        assert select.select([process.stderr], [], [], 30)[0], "nothing said"
        assert process.stderr.readline() == said
        _, rest = process.communicate("abc", timeout=60)
    finally:
        process.kill()
    assert "prompt 4 tokens in" in rest
    # A pipe that was asked for, a prompt of another kind, and --quiet.
    for arguments in (("-",), ("abc",), ("--quiet",)):
        assert said not in invoke(run_folder, *arguments, "--max-tokens", 5, input="abc").stderr


def test_greedy_text_is_the_models_own_and_either_cache_gives_it(run_folder: Path) -> None:
    decoder, _ = load_trained(run_folder, "alibi")
    tokens = [0, *b"start"]
    with torch.inference_mode():
        for _ in range(40):
            tokens.append(int(decoder(torch.tensor([tokens]))[0, -1].argmax()))
    want = bytes(tokens[6:]).replace(b"\0", b"\n").decode("utf-8", "replace")
    for options in (("--cache", "full"), ("--cache", "horizon"), ("--cache", "full", "--top-k", 1, "--temperature", 1)):
        given = ("--temperature", 0, *options) if "--top-k" not in options else options
        done = invoke(run_folder, "start", "--max-tokens", 40, "--past-end", *given)
        assert done.stdout_bytes.decode() == want
    # A stop within that text.
    cut = want[10:12]
    done = invoke(run_folder, "start", "--max-tokens", 40, "--past-end", "--temperature", 0, "--stop", cut)
    assert done.stdout_bytes.decode() == want[: want.index(cut)]
    assert "ended by stop" in done.stderr


def test_other_methods_generate_too(run_folder: Path) -> None:
    done = invoke(run_folder, "x", "--method", "rope", "--max-tokens", 12, "--past-end")
    assert done.exit_code == 0
    assert "(RoPE): 12 tokens" in done.stderr
    refused = invoke(run_folder, "x", "--method", "rope", "--cache", "horizon")
    assert refused.exit_code == 2
    assert (
        "error: --cache: expected full for RoPE, got horizon\n  only a bias that grows with distance" in refused.stderr
    )


def test_an_endless_text_forgets(run_folder: Path) -> None:
    done = invoke(run_folder, "x" * 4000, "--cache", "horizon", "--max-tokens", 1200, "--past-end")
    assert done.exit_code == 0, done.stderr
    assert "horizon: up to " in done.stderr
    assert "up to 0 tokens" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("nowhere",),
            "error: SOURCE: expected the folder of a run of alibi extrapolate, or of a Transformers model, got ",
        ),
        (
            ("RUN", "--max-tokens", -1),
            "error: --max-tokens: expected 0 or more, got -1\n  0 goes on until the text ends",
        ),
        (("RUN", "--cache", "big"), "error: --cache: expected full or horizon, got 'big'\n"),
        (("RUN", "--temperature", -2), "error: --temperature: expected 0 or more, got -2.0\n"),
        (("RUN", "--top-p", 2), "error: --top-p: expected a probability above 0 and up to 1, got 2.0\n"),
        (("RUN", "--stop", ""), "error: --stop: expected some text, got an empty string\n"),
        (("RUN", "--seed", -5), "error: --seed: expected a whole number from 0 to"),
        (
            ("RUN", "--method", "sinusoidal"),
            "error: --method: expected a method that was trained, got 'sinusoidal', of",
        ),
        (("RUN", "--dtype", "bfloat16"), "error: --dtype: expected none for a run of the laboratory, got bfloat16\n"),
        (("RUN", "hello", "--prompt-file", "x"), "error: --prompt-file: expected without a prompt on the command line"),
        (
            ("RUN", "--prompt-file", "/nowhere/x"),
            "error: --prompt-file: expected a file that can be read, got /nowhere/x",
        ),
    ],
)
def test_refusals(run_folder: Path, arguments: tuple[object, ...], message: str) -> None:
    done = invoke(*(run_folder if each == "RUN" else each for each in arguments), input="")
    assert done.exit_code == 2
    assert message in done.stderr
    assert done.stdout == ""


def test_folders_that_hold_no_model(tmp_path: Path) -> None:
    long = tmp_path / ("x" * 300)
    assert f"a Transformers model, got {long} (File name too long)\n  check the spelling" in invoke(long, "x").stderr
    assert "which has no config.json" in invoke(tmp_path, "x").stderr
    (tmp_path / "run" / "alibi").mkdir(parents=True)
    (tmp_path / "run" / "config.json").write_text("{}")
    said = " ".join(invoke(tmp_path / "run" / "alibi", "x").stderr.split())
    assert f"name the run, {tmp_path / 'run'}, with --method alibi" in said
    (tmp_path / "config.json").write_text("[]", encoding="utf-8")
    assert "which describes neither" in invoke(tmp_path, "x").stderr
    (tmp_path / "config.json").write_text("{", encoding="utf-8")
    assert "error: SOURCE: expected the folder of a run" in invoke(tmp_path, "x").stderr


def test_ctrl_c_while_the_prompt_is_typed(run_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def read() -> bytes:
        raise KeyboardInterrupt

    stdin = SimpleNamespace(isatty=lambda: True, buffer=SimpleNamespace(read=read))
    monkeypatch.setattr("alibi_attention.cli.generate.sys", SimpleNamespace(stdin=stdin))
    done = invoke(run_folder, "-")
    assert done.exit_code == 130
    assert (done.stdout, done.stderr) == ("", "")


def test_ctrl_c_keeps_the_text_and_says_what_was_done(run_folder: Path) -> None:
    command = [*COMMAND, "generate", str(run_folder), "abc", "--max-tokens", "0", "--past-end", "--cache", "horizon"]
    # A suite that a shell runs in the background ignores the signal, and so would whatever it starts.
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stdout is not None
    first = os.read(process.stdout.fileno(), 1)
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    try:
        rest, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130, errors
    # Whole characters to the end.
    assert (first + rest).decode("utf-8")
    assert b"ended by interrupted" in errors
    assert b"Traceback" not in errors
    assert b"cache: " in errors


def test_a_reader_that_has_enough_is_no_error(run_folder: Path) -> None:
    command = [*COMMAND, "generate", str(run_folder), "abc", "--max-tokens", "0", "--past-end"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.read(5)
    process.stdout.close()
    assert process.wait(timeout=60) == 141
    assert process.stderr is not None
    assert process.stderr.read() == b""
    process.stderr.close()


# Directories of Transformers


def save_model(folder: Path, family: str, **how: Any) -> Any:
    """A small model of random weights and a tokenizer of bytes; the model, stock."""
    pytest.importorskip("alibi_attention.integrations.transformers")
    tokenizers = pytest.importorskip("tokenizers")
    import transformers

    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {"</s>": 0, **{piece: number for number, piece in enumerate(alphabet, 1)}}
    raw = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocabulary, merges=[]))
    raw.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = tokenizers.decoders.ByteLevel()
    transformers.PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="</s>").save_pretrained(folder)
    common = {"vocab_size": len(vocabulary), "bos_token_id": 0, "eos_token_id": 0}
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = {
        "bloom": lambda: transformers.BloomConfig(hidden_size=32, n_layer=2, n_head=4, **common),
        "mpt": lambda: transformers.MptConfig(d_model=32, n_layers=2, n_heads=4, max_seq_len=64, **common),
        "falcon": lambda: transformers.FalconConfig(alibi=True, multi_query=False, **sizes, **common),
        "gpt2": lambda: transformers.GPT2Config(n_embd=16, n_layer=1, n_head=2, n_positions=64, **common),
    }[family]()
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    if family == "falcon":  # whose eager attention adds the bias twice
        model.set_attn_implementation("sdpa")
    model.save_pretrained(folder, **how)
    return model


def greedy_text(folder: Path, model: Any, prompt: str, count: int) -> str:
    """What a model says by itself, its end tokens gone past as line feeds."""
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    ids = tokenizer(prompt, return_tensors="pt").input_ids
    with torch.no_grad():
        out = model.generate(ids, max_new_tokens=count, do_sample=False, eos_token_id=10**6)[0, ids.shape[1] :]
    runs, text = [[]], ""
    for token in out.tolist():
        runs[-1].append(token)
        if token == 0:
            runs.append([])
    for number, run in enumerate(runs):
        text += tokenizer.decode(run, skip_special_tokens=True) + ("\n" if number < len(runs) - 1 else "")
    return text


@pytest.mark.parametrize("family", ["bloom", "mpt", "falcon"])
def test_a_transformers_directory(tmp_path: Path, family: str) -> None:
    want = greedy_text(tmp_path, save_model(tmp_path, family), "hé", 40)
    for cache in ("full", "horizon"):
        done = invoke(tmp_path, "hé", "--max-tokens", 40, "--past-end", "--temperature", 0, "--cache", cache)
        assert done.exit_code == 0, done.stderr
        assert done.stdout_bytes.decode() == want
        assert f"({family}): 40 tokens in" in done.stderr
    refused = invoke(tmp_path, "x", "--method", "alibi")
    assert "error: --method: expected none for a Transformers directory, got alibi" in refused.stderr


def ends_of(folder: Path, prompt: str = "hé", count: int = 40) -> tuple[str, str]:
    """The text up to where it ends, and what ended it, by the command; held against the model's own generate()."""
    import transformers

    done = invoke(folder, prompt, "--max-tokens", count, "--temperature", 0)
    assert done.exit_code == 0, done.stderr
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    ids = tokenizer(prompt, return_tensors="pt").input_ids
    out = model.generate(ids, max_new_tokens=count, do_sample=False)[0, ids.shape[1] :].tolist()
    ends = model.generation_config.eos_token_id
    if out[-1] in (ends if isinstance(ends, list) else [ends]):
        out.pop()
    text = done.stdout_bytes.decode()
    assert text == tokenizer.decode(out, skip_special_tokens=True)
    return text, done.stderr


def test_the_end_of_a_text_is_that_of_generate(tmp_path: Path) -> None:
    """generation_config.json decides, one token or several; without it config.json does."""
    model = save_model(tmp_path, "mpt")
    import transformers

    # Weights large enough that it does not say the same token all the time: what it says by and by is made the end.
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.5)
    model.save_pretrained(tmp_path)
    settings, config = tmp_path / "generation_config.json", tmp_path / "config.json"
    saved, plain = json.loads(settings.read_text()), json.loads(config.read_text())
    assert plain["eos_token_id"] == 0
    ids = transformers.AutoTokenizer.from_pretrained(tmp_path)("hé")["input_ids"]
    said = model.generate(torch.tensor([ids]), max_new_tokens=40, do_sample=False, eos_token_id=10**6)[0].tolist()
    fresh = [token for at, token in enumerate(said) if at >= len(ids) and token not in said[len(ids) : at]]
    assert len(fresh) > 1
    last = fresh[-1]
    for ends in (last, [last], [250, last], [last, fresh[0]]):
        settings.write_text(json.dumps({**saved, "eos_token_id": ends}))
        text, figures = ends_of(tmp_path)
        assert "ended by end of text" in figures
        assert (text == "") == (isinstance(ends, list) and fresh[0] in ends)
    # Not what config.json says, while there is the other.
    config.write_text(json.dumps({**plain, "eos_token_id": fresh[0]}))
    settings.write_text(json.dumps({**saved, "eos_token_id": None}))
    assert "ended by length" in ends_of(tmp_path)[1]
    settings.unlink()
    text, figures = ends_of(tmp_path)
    assert text == ""
    assert "ended by end of text" in figures


def test_a_falcon_forgets(tmp_path: Path) -> None:
    """With the exact line of its biases, not their rounding, which would grow with the text."""
    save_model(tmp_path, "falcon")
    done = invoke(tmp_path, "x" * 3000, "--cache", "horizon", "--max-tokens", 3, "--past-end")
    assert done.exit_code == 0, done.stderr
    assert "horizon: up to 1,088 tokens forgotten, at most " in done.stderr


def test_the_dtype_of_a_transformers_model(tmp_path: Path) -> None:
    from alibi_attention.integrations.transformers import enable

    model = save_model(tmp_path, "bloom")
    how = ("hé", "--max-tokens", 30, "--past-end", "--temperature", 0, "--quiet")
    want = greedy_text(tmp_path, enable(model.to(torch.bfloat16)), "hé", 30)
    assert invoke(tmp_path, *how, "--dtype", "bfloat16").stdout_bytes.decode() == want
    # By default that of the weights.
    model.save_pretrained(tmp_path)
    assert invoke(tmp_path, *how).stdout_bytes.decode() == want
    refused = invoke(tmp_path, *how, "--dtype", "float8")
    assert refused.exit_code == 2
    assert "error: --dtype: expected one of float32, bfloat16, float16, got float8\n" in refused.stderr


@pytest.mark.parametrize("device", ["cuda:77", "meta", "nonsense"])
def test_a_device_that_is_not_there(tmp_path: Path, device: str) -> None:
    save_model(tmp_path, "bloom")
    refused = invoke(tmp_path, "x", "--device", device)
    assert refused.exit_code == 2, refused.exception
    assert f"error: --device: expected a device of this machine, got {device} (" in refused.stderr
    assert refused.stderr.endswith(")\n  use cpu\n")
    assert invoke(tmp_path, "x", "--device", "cpu", "--max-tokens", 1).exit_code == 0


def test_folders_of_other_models(tmp_path: Path) -> None:
    save_model(tmp_path, "gpt2")
    refused = invoke(tmp_path, "x")
    assert refused.exit_code == 2
    assert "error: SOURCE: expected a model with ALiBi, got" in refused.stderr
    (tmp_path / "tokenizer.json").write_text("{}", encoding="utf-8")
    assert "error: SOURCE: expected a causal language model and its tokenizer, got" in invoke(tmp_path, "x").stderr


def test_a_model_after_replace_positions_is_told_from_one_without_alibi(tmp_path: Path) -> None:
    save_model(tmp_path, "gpt2")
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    (tmp_path / "config.json").write_text(json.dumps({**config, "alibi_positions": {}}), encoding="utf-8")
    refused = invoke(tmp_path, "x")
    assert refused.exit_code == 2
    assert f"got {tmp_path} (gpt2 after replace_positions)" in refused.stderr


def tensors_of(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    """Change the weights of a saved model."""
    from safetensors.torch import load, save

    path = folder / "model.safetensors"
    tensors = load(path.read_bytes())
    change(tensors)
    path.write_bytes(save(tensors, metadata={"format": "pt"}))


@pytest.mark.parametrize("family", ["bloom", "mpt", "falcon"])
def test_weights_that_are_not_all_there(tmp_path: Path, family: str) -> None:
    """Transformers would draw the rest at random and go on."""
    save_model(tmp_path, family)
    name = "query_key_value.weight" if family != "mpt" else "Wqkv.weight"

    def halve(tensors: dict[str, torch.Tensor]) -> None:
        last = [each for each in tensors if each.endswith(name)][-1]
        tensors[last] = tensors[last][:48].clone()

    tensors_of(tmp_path, halve)
    done = invoke(tmp_path, "x")
    assert done.exit_code == 2, done.exception
    assert "error: SOURCE: expected the weights that its config.json speaks of, got " in done.stderr
    assert f".{'attn' if family == 'mpt' else 'self_attention'}.{name} is (48, 32), not (96, 32))\n" in done.stderr

    def lose(tensors: dict[str, torch.Tensor]) -> None:
        for each in [each for each in tensors if each.endswith((name, "norm_1.weight", "input_layernorm.weight"))]:
            del tensors[each]

    tensors_of(tmp_path, lose)
    done = invoke(tmp_path, "x")
    assert done.exit_code == 2, done.exception
    assert f".{name} is missing, " in done.stderr
    assert ", and 1 more)\n  save the whole model into the folder\n" in done.stderr
    assert done.stdout == ""


def test_weights_that_the_model_has_no_place_for(tmp_path: Path) -> None:
    """Norms of queries and keys, which Transformers' MPT would drop without a word."""
    save_model(tmp_path, "mpt")
    tensors_of(tmp_path, lambda tensors: tensors.update({"transformer.blocks.0.attn.q_ln.weight": torch.ones(32)}))
    done = invoke(tmp_path, "x")
    assert done.exit_code == 2, done.exception
    assert "error: SOURCE: expected the weights that its config.json speaks of, got " in done.stderr
    assert "q_ln.weight has no place in the model)" in done.stderr
    assert done.stdout == ""


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:1000])


DAMAGE: dict[str, Callable[[Path], object]] = {
    "weights cut off": lambda folder: cut(folder / "model.safetensors"),
    "weights that are none": lambda folder: (folder / "model.safetensors").write_bytes(b"xx"),
    "no weights": lambda folder: (folder / "model.safetensors").unlink(),
    "tokenizer cut off": lambda folder: cut(folder / "tokenizer.json"),
    "no tokenizer": lambda folder: [(folder / f"tokenizer{end}.json").unlink() for end in ("", "_config")],
    "a configuration that cannot be": lambda folder: changed(folder / "config.json", n_head="many"),
    "heads that do not divide": lambda folder: changed(folder / "config.json", n_head=5),
    "a model nobody knows": lambda folder: changed(folder / "config.json", model_type="nonsense"),
}


def changed(path: Path, **values: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), **values}), encoding="utf-8")


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_folders(tmp_path: Path, damage: str) -> None:
    save_model(tmp_path, "bloom")
    DAMAGE[damage](tmp_path)
    done = invoke(tmp_path, "x")
    assert done.exit_code == 2, done.exception
    assert f"error: SOURCE: expected a causal language model and its tokenizer, got {tmp_path} (" in done.stderr
    assert done.stderr.endswith(")\n  save both into the folder\n")
    assert "()" not in done.stderr


def test_errors_that_say_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_model(tmp_path, "bloom")
    import transformers

    def fail(*_: object, **__: object) -> None:
        raise AssertionError

    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", fail)
    assert f"got {tmp_path} (AssertionError)\n" in invoke(tmp_path, "x").stderr
    monkeypatch.setattr(torch, "zeros", fail)
    assert (
        "error: --device: expected a device of this machine, got cpu (AssertionError)\n" in invoke(tmp_path, "x").stderr
    )


def test_code_in_a_folder_is_never_run(tmp_path: Path) -> None:
    """Transformers alone would ask on the terminal, and take the answer from where prompts come from."""
    ran = tmp_path / "ran"
    folder = tmp_path / "model"
    folder.mkdir()
    names = ("configuration_mine.MineConfig", "modeling_mine.MineForCausalLM")
    config = {"model_type": "mine", "auto_map": dict(zip(("AutoConfig", "AutoModelForCausalLM"), names, strict=True))}
    write_json(folder / "config.json", config)
    for name in ("configuration_mine", "modeling_mine"):
        (folder / f"{name}.py").write_text(f"open({str(ran)!r}, 'w')\n", encoding="utf-8")
    for given in (("abc",), ("-",)):
        done = invoke(folder, *given, "--max-tokens", 2, input="y\ny\n")
        assert done.exit_code == 2
        assert "expected a model whose code is in Transformers, got" in " ".join(done.stderr.split())
        assert "'mine', whose code is in the folder" in " ".join(done.stderr.split())
        assert "[y/N]" not in done.stdout + done.stderr
    assert not ran.exists()


def test_a_prompt_that_is_no_text(tmp_path: Path) -> None:
    save_model(tmp_path, "bloom")
    done = invoke(tmp_path, "ab" + os.fsdecode(b"\xff"))
    assert done.exit_code == 2, done.exception
    assert (
        done.stderr == "error: PROMPT: expected UTF-8 text, got another encoding\n  convert it with `iconv -t utf-8`\n"
    )
    assert done.stdout == ""


def test_a_tokenizer_of_another_model(tmp_path: Path) -> None:
    save_model(tmp_path, "bloom")

    def shrink(tensors: dict[str, torch.Tensor]) -> None:
        for name in [name for name in tensors if "word_embeddings.weight" in name or "lm_head" in name]:
            tensors[name] = tensors[name][:70].clone()

    tensors_of(tmp_path, shrink)
    changed(tmp_path / "config.json", vocab_size=70)
    done = invoke(tmp_path, "az")
    assert done.exit_code == 2, done.exception
    assert (
        f"error: SOURCE: expected a tokenizer of the model's 70 tokens, got {tmp_path}, whose tokenizer" in done.stderr
    )
    assert invoke(tmp_path, "AB", "--max-tokens", 1).exit_code == 0


def test_transformers_that_is_missing_or_was_not_tested(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_model(tmp_path, "bloom", max_shard_size="20KB")
    assert not (tmp_path / "model.safetensors").exists()
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "transformers", None)
        done = invoke(tmp_path, "x")
    assert done.exit_code == 2, done.exception
    assert done.stderr == (
        "error: this needs transformers, not installed here\n"
        "  pip install -c constraints.txt '.[transformers]' in a checkout of alibi-attention\n"
    )
    for name in [name for name in sys.modules if name.startswith("alibi_attention.integrations.transformers")]:
        monkeypatch.delitem(sys.modules, name)
    real = metadata.version
    monkeypatch.setattr(metadata, "version", lambda name: "9.9.9" if name == "transformers" else real(name))
    done = invoke(tmp_path, "x")
    assert done.exit_code == 2, done.exception
    assert done.stderr.startswith("error: Transformers: expected a version that was tested, got 9.9.9\n  pip install ")
