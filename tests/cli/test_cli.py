from __future__ import annotations

import inspect
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.main import get_command
from typer.testing import CliRunner, Result

import alibi_attention_start
from alibi_attention import __version__
from alibi_attention.cli.app import app
from alibi_attention.cli.extrapolate import extrapolate
from alibi_attention.cli.lab_values import COUNT
from alibi_attention.cli.reproduce import paper
from alibi_attention.cli.study import study
from alibi_attention.lab.config import ExperimentConfig
from alibi_attention.lab.model import Decoder
from alibi_attention.lab.paper import paper_config
from alibi_attention.lab.study import STUDY, study_config

Invoke = Callable[..., Result]

SMALL = [
    *("--length=16", "--eval-lengths=16,64", "--eval-tokens=256"),
    *("--layers=1", "--heads=2", "--width=16"),
    *("--steps=6", "--batch-size=2", "--warmup=2", "--checkpoint-every=2"),
]

# Where `alibi` would be typed: a process of its own, in which only these lines run.
ALIBI = [sys.executable, "-c", "from alibi_attention_start import main; main()"]


@pytest.mark.parametrize(("text", "count"), [("8192", 8192), ("8K", 8192), ("1k", 1024), ("0", 0), ("-3", -3)])
def test_counts_may_end_in_k(text: str, count: int) -> None:
    assert COUNT["parser"](text) == count


@pytest.mark.parametrize("text", ["", "K", "1.5K", "nan", "8M"])
def test_counts_that_are_none(alibi: Invoke, text: str) -> None:
    for flag in ("--length", "--eval-tokens", "--stride"):
        result = alibi("extrapolate", f"{flag}={text}")
        assert result.exit_code == 2
        assert f"{text!r} is not a valid integer, such as 8192 or 8K." in " ".join(
            result.output.replace("│", "").split()
        )


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Models this small gain nothing from more threads, and lose much where tests run side by side."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def alibi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Invoke:
    """The command in an empty working folder, on a wide terminal without colour."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("NO_COLOR", "1")

    def invoke(*arguments: str) -> Result:
        return CliRunner().invoke(app, arguments, prog_name="alibi")

    return invoke


@pytest.fixture
def book(tmp_path: Path) -> str:
    path = tmp_path / "book.txt"
    words = random.Random(0).choices(["near", "keys", "weigh", "more", "far", "fade"], k=600)
    path.write_text(" ".join(words), encoding="utf-8")
    return str(path)


def fresh(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python code in a process of its own."""
    return subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)


def every_command(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    yield path
    for name, each in getattr(command, "commands", {}).items():
        yield from every_command(each, (*path, name))


# Help, version, imports


def test_ctrl_c_while_torch_is_imported_ends_without_a_traceback() -> None:
    code = (
        "import os, signal, sys, time\n"
        # Whoever runs the tests may have it ignored.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "class Slow:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'torch':\n"
        "            os.kill(os.getpid(), signal.SIGINT)\n"
        "            time.sleep(60)\n"
        "sys.meta_path.insert(0, Slow())\n"
        "from alibi_attention_start import main; main()\n"
    )
    done = fresh(code, "--help")
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, "", "")


@pytest.mark.parametrize("handler", [signal.default_int_handler, signal.SIG_IGN])
def test_commands_hear_of_ctrl_c_as_before(monkeypatch: pytest.MonkeyPatch, handler: Any) -> None:
    heard: list[Any] = []

    def load() -> Callable[..., None]:
        heard.append(signal.getsignal(signal.SIGINT))
        return lambda prog_name: heard.extend([signal.getsignal(signal.SIGINT), prog_name])

    monkeypatch.setattr("alibi_attention.cli.load", load)
    before = signal.signal(signal.SIGINT, handler)
    try:
        alibi_attention_start.main()
    finally:
        signal.signal(signal.SIGINT, before)
    assert heard == [signal.SIG_IGN if handler is signal.SIG_IGN else signal.SIG_DFL, handler, "alibi"]


def test_version(alibi: Invoke) -> None:
    assert alibi("--version").stdout == f"alibi-attention {__version__}\n"


def test_help_names_the_commands(alibi: Invoke) -> None:
    result = alibi("--help")
    assert result.exit_code == 0
    assert "demo" in result.stdout
    assert "extrapolate" in result.stdout


def test_help_of_extrapolate_explains_every_option(alibi: Invoke) -> None:
    text = alibi("extrapolate", "--help").stdout
    for name in ExperimentConfig.model_fields:
        assert f"--{name.replace('_', '-')}" in text, name
    for phrase in ("--output", "--resume", "runs/extrapolate", "Python's standard library", "five doublings"):
        assert phrase in text


def test_help_shows_flags_without_a_value_and_arguments_in_capitals(alibi: Invoke) -> None:
    for path in every_command(get_command(app)):
        result = alibi(*path, "--help")
        assert result.exit_code == 0, path
        for typers in ("bool", "{", "list["):
            assert typers not in result.stdout, path
    shown = {
        "extrapolate": "", "evaluate": " RUN", "report": " RUNS...", "generate": " SOURCE [PROMPT]",
        "export": " RUN[/METHOD]", "inspect": " MODEL",
    }  # fmt: skip
    for command, arguments in shown.items():
        usage = alibi(command, "--help").stdout.split("\n")[1]
        assert usage.strip() == f"Usage: alibi {command} [OPTIONS]{arguments}"
    assert "Missing argument 'RUN'" in alibi("evaluate", "--output", "new").stderr


def test_help_of_the_paper_names_its_extra(alibi: Invoke) -> None:
    assert "pip install -c constraints.txt '.[data]'" in " ".join(alibi("reproduce", "paper", "--help").stdout.split())


def test_help_of_a_study_tells_its_settings(alibi: Invoke) -> None:
    text = " ".join(alibi("study", "--help").stdout.split())
    assert "[default: (every one that differs)]" in text
    assert (
        f"at width {STUDY['width']} with {STUDY['batch_size']} sequences a step, learning rate "
        f"{STUDY['learning_rate']} and {STUDY['precision']}, and half of its sequences" in text
    )
    assert STUDY["recall_share"] == 0.5


COMMANDS: dict[str, tuple[Callable[..., None], ExperimentConfig, set[str], set[str]]] = {
    # With what is left out of each, and what help says in words.
    "extrapolate": (extrapolate, ExperimentConfig(), set(), {"eval_lengths", "text", "held_out_text"}),
    "study": (
        study,
        study_config().model_copy(update={"variants": ("all",), "protocols": ("all",)}),
        {"seed", "objective", "mask_share"},
        {"methods", "eval_lengths", "text", "held_out_text"},
    ),
    "reproduce paper": (
        paper,
        paper_config(),
        {"objective", "mask_share", "text", "held_out_text", "held_out_share"},
        {"eval_lengths", "batch_size", "accumulate"},
    ),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_setting_is_a_flag_and_help_has_its_default(command: str) -> None:
    function, config, left_out, in_words = COMMANDS[command]
    parameters = inspect.signature(function).parameters
    assert set(ExperimentConfig.model_fields) - set(parameters) == left_out
    for name in set(ExperimentConfig.model_fields) - left_out:
        default = parameters[name].default
        if name in in_words:
            assert default is None, name
        elif name in ("methods", "variants", "protocols", "cutoffs"):
            assert tuple(filter(None, default.split(","))) == tuple(map(str, getattr(config, name))), name
        else:
            assert default == getattr(config, name), name


def test_settings_of_a_study_may_be_flags(alibi: Invoke) -> None:
    Path("texts").mkdir()
    for i in range(12):
        Path(f"texts/{i}.txt").write_text(f"some text {i} and more of it, {i * i} times. " * 40, encoding="utf-8")
    done = alibi(
        "study", "--output", "study", "--seeds=1", "--text", "texts", "--methods=nope", "--layers=1", "--width=16",
        "--heads=2", "--batch-size=2", "--steps=1", "--warmup=0", "--length=16", "--eval-lengths=16,32",
        "--eval-tokens=64", "--protocols=windows", "--recall-share=0", "--learning-rate=0.001",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    config = json.loads(Path("study/seed-0/config.json").read_text(encoding="utf-8"))["config"]
    assert (config["width"], config["batch_size"], config["learning_rate"]) == (16, 2, 0.001)
    assert config["text"] == [str(Path("texts").resolve())]
    assert config["precision"] == STUDY["precision"]


def test_help_imports_neither_torch_nor_the_laboratory() -> None:
    # The package's own __init__ is left out, so that this measures the command line alone.
    code = (
        "import sys, types, importlib.util as u\n"
        "package = types.ModuleType('alibi_attention')\n"
        "package.__path__ = u.find_spec('alibi_attention').submodule_search_locations\n"
        "sys.modules['alibi_attention'] = package\n"
        "sys.modules.pop('torch', None)\n"
        "import alibi_attention.cli.app\n"
        "print(*{name.partition('.')[0] for name in sys.modules})\n"
    )
    loaded = set(fresh(code).stdout.split())
    assert "typer" in loaded
    assert not loaded & {"torch", "lightning", "matplotlib", "pydantic", "numpy", "safetensors", "tensorboard"}


@pytest.mark.parametrize(
    ("missing", "arguments", "extra"),
    [
        (["typer"], ["--help"], "cli"),
        (["typer", "rich"], ["--help"], "cli"),
        (["lightning", "safetensors"], ["extrapolate"], "lab"),
        (["matplotlib"], ["demo", "--output", "x.png"], "lab"),
    ],
)
def test_missing_extra_says_what_mends_it(missing: list[str], arguments: list[str], extra: str, tmp_path: Path) -> None:
    code = (
        f"import os, sys; os.chdir({str(tmp_path)!r})\n"
        f"for name in {missing!r}: sys.modules[name] = None\n"
        "from alibi_attention.cli import main; main()\n"
    )
    done = fresh(code, *arguments)
    assert done.returncode == 2
    assert done.stderr == (
        f"error: this needs {', '.join(missing)}, not installed here\n"
        f"  pip install -c constraints.txt '.[{extra}]' in a checkout of alibi-attention\n"
    )
    assert not any(tmp_path.iterdir())


def test_the_demo_does_without_its_picture(tmp_path: Path) -> None:
    code = (
        f"import os, sys; os.chdir({str(tmp_path)!r})\n"
        "for name in ('lightning', 'matplotlib', 'safetensors', 'tensorboard'): sys.modules[name] = None\n"
        "from alibi_attention.cli import main; main()\n"
    )
    done = fresh(code, "demo")
    assert (done.returncode, done.stderr) == (0, "")
    assert "Slopes, and tokens until the bias takes" in done.stdout
    assert done.stdout.endswith(
        "No picture of them: that needs matplotlib, which "
        "pip install -c constraints.txt '.[lab]' in a checkout of alibi-attention brings.\n"
    )
    assert not any(tmp_path.iterdir())


# demo


def test_demo(alibi: Invoke) -> None:
    result = alibi("demo")
    assert result.exit_code == 0
    for line in (
        "  input   (2, 8, 128)  (batch, seq_len, embed_dim)",
        "  output  (2, 8, 128)",
        "     0.0   -inf   -inf   -inf",
        "    -1.5   -1.0   -0.5    0.0",
        "     0         0.5      2      10       20",
        "     7  0.00390625    256   1,280    2,560",
        "  ░░░░░▒▓█ ░░▒▒▒▓██ ▒▒▓▓▓███ ▓▓▓█████ ████████ ████████ ████████ ████████ ",
    ):
        assert f"\n{line}\n" in result.stdout
    assert Path("alibi-demo.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")


def test_demo_overwrites_nothing(alibi: Invoke) -> None:
    Path("alibi-demo.png").write_bytes(b"mine")
    result = alibi("demo")
    assert result.exit_code == 0
    assert "alibi-demo.png exists and was left as it is; --output NAME writes another picture.\n" in result.stdout
    result = alibi("demo", "--output", "alibi-demo.png")
    assert result.exit_code == 2
    assert result.stderr == (
        "error: --output: expected a new file, got alibi-demo.png, which exists\n  choose another name\n"
    )
    assert Path("alibi-demo.png").read_bytes() == b"mine"


def test_demo_writes_where_asked(alibi: Invoke) -> None:
    assert alibi("demo", "--output", "bias.svg").exit_code == 0
    assert "<svg" in Path("bias.svg").read_text(encoding="utf-8")
    assert alibi("demo", "--output", "bias").stderr == (
        "error: --output: expected a name ending in .png, .svg or .pdf, got bias\n  try bias.png\n"
    )
    assert alibi("demo", "--output", "nowhere/bias.png").stderr == (
        "error: --output: expected an existing folder, got nowhere\n  create it first\n"
    )


# extrapolate


def test_extrapolate(alibi: Invoke, book: str) -> None:
    result = alibi("extrapolate", *SMALL, "--text", book)
    assert result.exit_code == 0, result.output
    assert f"Corpus: {book}, " in result.stdout
    assert "one document, cut once" in result.stdout
    rows = json.loads(Path("runs/extrapolate/results.json").read_text(encoding="utf-8"))["results"]
    for row in rows:
        bits = [f"{score['bits_per_byte']:.3f}" for score in row["evaluations"][0]["windows"]]
        assert any(line.split()[:3] == [row["title"], *bits] for line in result.stdout.splitlines())
    assert result.stdout.endswith("Written to runs/extrapolate: results.json, table.md, figure.png, figure.svg\n")


def test_several_texts_after_one_option(alibi: Invoke, book: str, tmp_path: Path) -> None:
    second = tmp_path / "second.txt"
    second.write_text("quite another text " * 30, encoding="utf-8")
    result = alibi("extrapolate", *SMALL, "--methods=rope", "--text", book, str(second))
    assert result.exit_code == 0, result.output
    config = json.loads(Path("runs/extrapolate/config.json").read_text(encoding="utf-8"))["config"]
    assert config["text"] == [book, str(second)]


def test_held_out_text_does_not_get_into_training(alibi: Invoke, book: str, tmp_path: Path) -> None:
    other, more = tmp_path / "other.txt", tmp_path / "more.txt"
    other.write_text("quite another text " * 30, encoding="utf-8")
    flags = ["extrapolate", *SMALL, "--methods=rope", "--text", book, "--held-out-text", str(other)]
    refused = alibi(*flags, str(more))
    assert refused.exit_code == 2
    assert refused.stderr == (
        f"error: arguments: expected one path after each flag where text is held out, got {more} besides\n"
        "  repeat --text or --held-out-text before each\n"
    )
    assert alibi(*flags).exit_code == 0
    # From the saved file, too, wherever it lies.
    assert alibi("extrapolate", "--config=runs/extrapolate/config.yaml", "--output=again").exit_code == 0
    for run in ("runs/extrapolate", "again"):
        documents = json.loads(Path(run, "documents.json").read_text(encoding="utf-8"))
        assert (documents["train"], documents["held_out"]) == ([Path(book).name], ["other.txt"])


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--methods", "alibi,abili"], "error: --methods: expected names of position methods, got 'abili'\n"
         "  choose from alibi, alibi-interleaved, alibi-learned, learned, nope, rope, sinusoidal, t5\n"),
        (["--eval-lengths", "256;512"], "error: --eval-lengths: expected whole numbers joined by commas, "
         "got '256;512'\n  such as 256,512,1024\n"),
        (["--length", "-3"], "error: --length: expected at least 1, got -3\n  raise it to 1 or more\n"),
        (["stray.txt"], "error: arguments: expected options only, got stray.txt\n"
         "  put --text before the names of files\n"),
        (["--resume"], "error: --output: expected the folder of a run, got runs/extrapolate, which does not exist\n"
         "  name the folder of an interrupted run with --output, or start one without --resume\n"),
    ],
)  # fmt: skip
def test_bad_input(alibi: Invoke, arguments: list[str], text: str) -> None:
    result = alibi("extrapolate", *arguments)
    assert result.exit_code == 2
    assert result.stderr == text
    assert not any(Path().iterdir())


def test_settings_from_a_file_with_flags_over_it(alibi: Invoke, book: str) -> None:
    Path("small.yaml").write_text(f"length: 16\nsteps: 4\ntext: {book}\nmethods: [nope, rope]\n", encoding="utf-8")
    arguments = ["extrapolate", "--config=small.yaml", *(flag for flag in SMALL if "--steps" not in flag)]
    result = alibi(*arguments, "--methods=rope", "--variants=all", "--protocols=windows,recall")
    assert result.exit_code == 0, result.output
    config = json.loads(Path("runs/extrapolate/config.json").read_text(encoding="utf-8"))["config"]
    assert (config["steps"], config["methods"], config["text"]) == (4, ["rope"], [book])
    assert config["variants"] == ["rope:pi", "rope:dynamic", "rope:yarn"]
    # The saved file starts the same run again.
    assert alibi("extrapolate", "--config=runs/extrapolate/config.yaml", "--output=again").exit_code == 0
    both = [
        json.loads(Path(run, "results.json").read_text(encoding="utf-8"))["results"][0]["evaluations"]
        for run in ("runs/extrapolate", "again")
    ]
    assert both[0] == both[1]
    refused = alibi("extrapolate", "--config=nowhere.yaml", "--output=other")
    assert refused.exit_code == 2
    assert refused.stderr.startswith("error: --config: expected a file that can be read, got nowhere.yaml (")


def test_what_is_wrong_in_a_file_is_called_as_it_is_written_there(alibi: Invoke) -> None:
    Path("small.yaml").write_text("learning-rate: fast\nsteps: true\n", encoding="utf-8")
    for command in (["extrapolate"], ["study"], ["reproduce", "paper"]):
        result = alibi(*command, "--config=small.yaml", "--steps=2")
        assert result.exit_code == 2
        assert result.stderr == (
            "error: learning-rate in small.yaml: expected a finite number, got 'fast'\n  such as 0.003, the default\n"
        )
        result = alibi(*command, "--config=small.yaml", "--learning-rate=-1")
        assert result.stderr.startswith("error: steps in small.yaml: expected a whole number, got 'true'\n")
        # What is laid over the file is a flag again.
        result = alibi(*command, "--config=small.yaml", "--learning-rate=-1", "--steps=2")
        assert result.stderr.startswith("error: --learning-rate: expected a number above 0, got -1.0\n")
    assert not Path("runs").exists()


def test_a_study_refuses_before_it_says_anything(alibi: Invoke) -> None:
    result = alibi("study", "--text=nowhere", "--seeds=1")
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.startswith("error: --text: expected an existing file or folder, got ")


def test_masked_prediction(alibi: Invoke, book: str) -> None:
    result = alibi("extrapolate", *SMALL, "--methods=alibi", "--objective=masked", "--mask-share=0.3", "--text", book)
    assert result.exit_code == 0, result.output
    assert any(line.split()[:5] == ["bits", "per", "masked", "byte", "at"] for line in result.stdout.splitlines())
    config = json.loads(Path("runs/extrapolate/config.json").read_text(encoding="utf-8"))["config"]
    assert (config["objective"], config["mask_share"]) == ("masked", 0.3)
    generated = alibi("generate", "runs/extrapolate", "near")
    assert generated.exit_code == 2
    assert generated.stderr.startswith("error: SOURCE: expected a model that reads from left to right, got one trained")
    refused = alibi("extrapolate", *SMALL, "--objective=masked", "--protocols=all", "--output=other")
    assert refused.exit_code == 2
    assert refused.stderr == (
        "error: --protocols: expected windows for --objective masked, got sliding, which predicts a token from those "
        "before it\n  leave it out\n"
    )


def test_evaluate(alibi: Invoke, book: str) -> None:
    assert alibi("extrapolate", *SMALL, "--methods=alibi,learned", "--text", book).exit_code == 0
    result = alibi("evaluate", "runs/extrapolate", "--output=more", "--eval-lengths=16,32,128", "--variants=all")
    assert result.exit_code == 0, result.output
    assert "ALiBi, NTK scaling" in result.stdout
    assert "learned: its positions end at 16; no result at 32, 128.\n" in result.stdout
    assert result.stdout.endswith("Written to more: results.json, table.md, figure.png, figure.svg\n")
    recall = alibi("evaluate", "runs/extrapolate", "--output=recall", "--protocols=recall")
    assert recall.exit_code == 0, recall.output
    assert "not taught: " in recall.stdout
    assert "bits per byte" not in recall.stdout
    again = alibi("evaluate", "runs/extrapolate", "--output=more")
    assert again.exit_code == 2
    assert "error: --output: expected a new or empty folder, got more, which exists\n" in again.stderr
    missing = alibi("evaluate", "nowhere", "--output=other")
    assert missing.exit_code == 2
    assert missing.stderr.startswith("error: RUN: expected the folder of a run, got nowhere, which does not exist")


def test_bad_text(alibi: Invoke, tmp_path: Path) -> None:
    missing = tmp_path / "missing.txt"
    result = alibi("extrapolate", "--text", str(missing))
    assert result.exit_code == 2
    assert result.stderr == (
        f"error: --text: expected an existing file or folder, got {missing}\n"
        "  check the spelling and the folder you are in\n"
    )
    assert not any(Path().iterdir())


def test_existing_run_is_refused_and_resumed(alibi: Invoke, book: str, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ["extrapolate", *SMALL, "--methods=rope", "--text", book, "--output", "my run"]
    original = Decoder.nats
    monkeypatch.setattr(Decoder, "nats", lambda *args: (os.kill(os.getpid(), signal.SIGINT), original(*args))[1])
    result = alibi(*arguments)
    assert result.exit_code == 130
    assert result.stderr == "Stopped. Continue with\n  alibi extrapolate --resume --output 'my run'\n"
    assert not Path("my run/results.json").exists()
    monkeypatch.setattr(Decoder, "nats", original)

    again = alibi(*arguments)
    assert again.exit_code == 2
    assert again.stderr == (
        "error: --output: expected a new or empty folder, got my run, which exists\n"
        "  choose another, or continue that run: alibi extrapolate --resume --output 'my run'\n"
    )
    other = alibi("extrapolate", "--resume", "--output", "my run", "--steps=7")
    assert other.exit_code == 2
    assert other.stderr == (
        "error: --steps: expected 6, as the run in my run was started with, got 7\n"
        "  leave it out to continue that run, or start a new one in another folder\n"
    )
    # The same command again, with --resume, and the short one the message gives.
    assert alibi(*arguments, "--resume").exit_code == 0
    assert alibi("extrapolate", "--resume", "--output", "my run").exit_code == 0
    assert Path("my run/results.json").exists()


# Files at whose appearance a run is killed, one after the other: while the first method trains, as it has been trained,
# between the protocols of its evaluation, in the training of the second, before its results are put together.
KILLS = (
    "alibi/checkpoint.safetensors", "alibi/weights.safetensors", "alibi/evaluation/plain-windows.json",
    "rope/checkpoint.safetensors", "rope/evaluation/plain-sliding.json",
)  # fmt: skip


def test_run_killed_again_and_again_continues_to_the_same_result(alibi: Invoke, book: str, tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    arguments = [
        "extrapolate", *SMALL, "--methods=alibi,rope", "--protocols=windows,sliding", "--text", book, "--steps=40",
        "--checkpoint-every=5",
    ]  # fmt: skip
    assert alibi(*arguments, "--output", str(whole)).exit_code == 0
    command = [*arguments, "--output", str(killed)]
    for name in KILLS:
        running = subprocess.Popen(
            [*ALIBI, *command],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        deadline = time.monotonic() + 120
        while not (killed / name).exists() and running.poll() is None and time.monotonic() < deadline:
            time.sleep(0.001)
        running.kill()
        assert running.wait() == -signal.SIGKILL, name
        assert (killed / name).exists()
        assert not (killed / "results.json").exists(), name
        command = ["extrapolate", "--resume", "--output", str(killed)]

    assert alibi(*command).exit_code == 0
    results = [json.loads((root / "results.json").read_text(encoding="utf-8"))["results"] for root in (whole, killed)]
    for method, *found in zip(("alibi", "rope"), *results, strict=True):
        weights = [(root / method / "weights.safetensors").read_bytes() for root in (whole, killed)]
        assert weights[0] == weights[1]
        assert found[0]["evaluations"] == found[1]["evaluations"]


def test_interrupted_before_anything_began(alibi: Invoke, book: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("alibi_attention.lab.experiment.load_corpus", interrupt)
    result = alibi("extrapolate", *SMALL, "--text", book)
    assert result.exit_code == 130
    assert result.stderr == "Stopped at once. Nothing had begun.\n"
    assert not any(Path().iterdir())


def test_folder_that_cannot_be_made(alibi: Invoke, book: str) -> None:
    result = alibi("extrapolate", *SMALL, "--text", book, "--output", f"{book}/run")
    assert result.exit_code == 2
    assert result.stderr == (
        f"error: --output: expected a folder that can be written, got {book}/run (Not a directory)\n  choose another\n"
    )
