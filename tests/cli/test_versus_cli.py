"""`alibi versus` on the command line: with runs of the laboratory, from a file, and what it refuses."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner, Result

from alibi_attention.cli.app import app
from alibi_attention.lab.complete import read_runs
from alibi_attention.lab.config import make_config
from alibi_attention.lab.experiment import reevaluate_experiment, start_experiment
from alibi_attention.lab.summary import summarise
from alibi_attention.lab.tables import signed

Invoke = Callable[..., Result]

SMALL = ["--quick", "--repeats=2", "--lengths=16,32", "--memory-length=64", "--heads=2", "--head-dim=8", "--threads=1"]
TINY = {
    "length": 16, "eval_lengths": (16, 64, 256), "eval_tokens": 512, "layers": 1, "heads": 2, "width": 16, "steps": 3,
    "batch_size": 2,
}  # fmt: skip


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two seeds of a decoder, an encoder, and a run of which nothing is trained."""
    folder = tmp_path_factory.mktemp("runs")
    book = folder / "book.txt"
    book.write_text(" ".join(random.Random(0).choices(["near", "keys", "fade"], k=900)), encoding="utf-8")
    found = {}
    for name, changes in (
        ("seed-0", {"variants": ("rope:yarn",), "protocols": ("windows", "sliding", "recall")}),
        ("seed-1", {"variants": ("rope:yarn",), "protocols": ("windows", "sliding", "recall"), "seed": 1}),
        ("encoder", {"objective": "masked"}),
    ):
        config = make_config({**TINY, "methods": ("alibi", "rope", "learned"), "text": (str(book),), **changes})
        start_experiment(config, folder / name)
        found[name] = folder / name
    return found


@pytest.fixture
def alibi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Invoke:
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("NO_COLOR", "1")
    return lambda *arguments: CliRunner().invoke(app, arguments, prog_name="alibi")


def cells(text: str, start: str) -> list[str]:
    lines = [line for line in text.splitlines() if line.startswith(f"| {start} |")]
    assert len(lines) == 1, (start, text)
    return [cell.strip() for cell in lines[0].strip("|").split("|")][1:]


def test_the_whole_table(alibi: Invoke, runs: dict[str, Path]) -> None:
    arguments = ["--decoder", str(runs["seed-0"]), "--decoder", str(runs["seed-1"]), "--encoder", str(runs["encoder"])]
    result = alibi("versus", *SMALL, "--methods=alibi,rope,learned", *arguments, "--output=out")
    assert result.exit_code == 0, result.output
    text = Path("out/versus.md").read_text(encoding="utf-8")
    assert text.startswith("# ALiBi and RoPE and learned, measured\n")
    for phase in ("training", "prefill", "decode"):
        for length in (16, 32):
            share = cells(text, f"cost of positions, {phase} at {length}, share of attention time")
            assert share[0].endswith("%)")
            assert share[2] == "nothing in attention"
            assert all(" ms (±" in cell for cell in cells(text, f"attention, {phase} at {length}, every key"))
    assert all(cell.endswith(" MiB") for cell in cells(text, "peak memory of training at 64, beyond the inputs"))
    # What the runs say, and nothing else.
    evaluations = [
        result["evaluations"][0]
        for result in json.loads((runs["encoder"] / "results.json").read_text(encoding="utf-8"))["results"]
    ]
    bits = [f"{each['windows'][0]['bits_per_byte']:.3f}" for each in evaluations]
    row = cells(text, "bits per masked byte, encoder, windows, at the trained 16")
    assert [cell.partition(" ")[0].strip(",") for cell in row] == bits
    sliding = "bits per byte, decoder, sliding window, at"
    assert cells(text, f"{sliding} 64, 4 times that")[2] == "its positions end at 16"
    assert cells(text, f"{sliding} 256, scaled without training")[1].endswith(" with YaRN")
    lines = summarise(read_runs([runs["seed-0"], runs["seed-1"]]))
    alibi_line, rope = lines[0], next(line for line in lines if line.name == "rope")
    point = rope.losses["sliding"][1]
    assert point.mean is not None
    assert point.against is not None
    assert cells(text, f"{sliding} 64, 4 times that")[1] == f"{point.mean:.3f}, {signed(point.against.mean)}"
    assert alibi_line.usable_by_recall is not None
    assert rope.usable_by_recall is not None
    assert cells(text, "usable length by recall, decoder")[:2] == [
        alibi_line.usable_by_recall.words, rope.usable_by_recall.words,
    ]  # fmt: skip
    assert "3 seeds" not in text
    assert "2 seeds" in text
    assert result.stdout.endswith("Written to out: versus.md, versus.json\n")
    assert json.loads(Path("out/versus.json").read_text(encoding="utf-8"))["status"] == "complete"

    Path("page.md").write_text("before\n<!-- versus -->\n<!-- end of versus -->\nafter\n", encoding="utf-8")
    again = alibi("versus", "--table=out/versus.json", "--page=page.md")
    assert again.exit_code == 0, again.output
    assert again.stdout.endswith("Filled into page.md\n")
    table = again.stdout.removesuffix("\nFilled into page.md\n")
    assert table in Path("page.md").read_text(encoding="utf-8")
    assert table in text


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--methods=alibi,abili"], "error: --methods: expected names of position methods, got 'abili'\n  choose from "
         "alibi, alibi-interleaved, alibi-learned, learned, nope, rope, sinusoidal, t5, or all\n"),
        (["--phases=dreaming"], "error: --phases: expected phases of a model's life, got 'dreaming'\n"
         "  choose from training, prefill, decode\n"),
        (["--lengths=8;9"], "error: --lengths: expected numbers joined by commas, got '8;9'\n  such as 1K,8K\n"),
        (["--threads=9999"], "error: --threads: expected "),
        (["--memory-length=-5"], "error: --memory-length: expected a length of at least 1, or 0, got -5\n"
         "  such as 32K; 0 measures none\n"),
        (["--memory-length=many"], "error: --memory-length: expected a number of tokens, got 'many'\n  such as 32K\n"),
        (["--repeats=0"], "error: --repeats: expected 1 to 1000, got 0\n  such as --repeats 15\n"),
        (["--bare=none.so"], "error: --bare: expected the kernels without the bias, got none.so (no such file)\n"
         "  build it with: make bare\n"),
        (["--decoder=nowhere"], "error: --decoder: expected the folder of a run, got nowhere, which does not exist"
         "\n"),
        (["--table=none.json"], "error: --table: expected a comparison, got none.json (No such file or directory)\n"
         "  name a versus.json that alibi versus wrote\n"),
        (["--table=none.json", "--page=page.md", "--head-dim=32"],
         "error: --head-dim: expected only --output and --page beside --table, which measures nothing\n"
         "  leave it out, or --table to measure anew\n"),
    ],
)  # fmt: skip
def test_bad_input(alibi: Invoke, arguments: list[str], text: str) -> None:
    result = alibi("versus", *arguments)
    assert result.exit_code == 2, result.output
    assert result.stderr.startswith(text)
    assert not any(Path().iterdir())


def test_runs_in_the_wrong_place(alibi: Invoke, runs: dict[str, Path]) -> None:
    result = alibi("versus", *SMALL, "--decoder", str(runs["encoder"]))
    assert result.exit_code == 2
    assert result.stderr == (
        f"error: --decoder: expected runs of next-token prediction, got masked prediction in {runs['encoder']}\n"
        "  give them to --encoder\n"
    )
    result = alibi("versus", *SMALL, "--encoder", str(runs["seed-0"]))
    assert result.stderr.startswith("error: --encoder: expected runs of masked prediction, got next-token prediction")
    same = ["--decoder", str(runs["seed-0"])] * 2
    assert "expected every method of a seed once, got seed 0 of alibi in " in alibi("versus", *SMALL, *same).stderr
    assert not any(Path().iterdir())


def test_runs_without_losses(alibi: Invoke, runs: dict[str, Path]) -> None:
    asked = Path("asked")
    reevaluate_experiment(runs["seed-0"], asked, {"protocols": ("recall",)})
    result = alibi("versus", *SMALL, "--decoder=asked", "--output=out")
    assert result.exit_code == 2
    assert result.stderr == (
        "error: --decoder: expected runs evaluated by sliding, targets or windows, got recall\n"
        "  alibi evaluate asked --protocols all --output NEW\n"
    )


def test_a_folder_in_use_is_left_alone(alibi: Invoke) -> None:
    Path("out").mkdir()
    Path("out/versus.json").write_text("mine", encoding="utf-8")
    result = alibi("versus", *SMALL, "--output=out")
    assert result.exit_code == 2
    assert result.stderr.startswith("error: --output: expected a new folder, got out/versus.json, which exists\n")
    assert Path("out/versus.json").read_text(encoding="utf-8") == "mine"
