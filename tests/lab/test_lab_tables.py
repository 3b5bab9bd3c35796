"""Results as tables, and why numbers are missing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from lab_cases import RESULTS, Said, evaluation, result

from alibi_attention.lab.config import ExperimentConfig
from alibi_attention.lab.experiment import reevaluate_experiment, start_experiment
from alibi_attention.lab.figures import draw_figure
from alibi_attention.lab.preconditions import UNTAUGHT
from alibi_attention.lab.report import write_report
from alibi_attention.lab.scores import RecallScore
from alibi_attention.lab.tables import markdown_table, recall_rows

MakeConfig = Callable[..., ExperimentConfig]
PNG = b"\x89PNG\r\n\x1a\n"


def test_table() -> None:
    assert markdown_table(RESULTS) == (
        "| bits per byte at | 256 | 512 | 1024 | 256 → 1024 |\n"
        "| --- | ---: | ---: | ---: | ---: |\n"
        "| ALiBi | 2.129 | 2.100 | 2.090 | −0.039 |\n"
        "| RoPE | 2.080 | 3.000 | 4.600 | +2.520 |\n"
        "\n"
        "| usable length by | perplexity, windows | recall |\n"
        "| --- | ---: | ---: |\n"
        "| ALiBi | 512 | — |\n"
        "| RoPE | 512 | — |\n"
    )


def test_table_says_why_numbers_are_missing() -> None:
    text = markdown_table([*RESULTS, result("learned", "learned", 2.5, None, None)])
    assert "| learned | 2.500 | — | — | — |\n" in text
    assert text.endswith("\nlearned: it ends; no result at 512, 1024.\n")


def test_table_of_recall() -> None:
    cells = ((256, 32, 8), (256, 128, 7), (512, 32, 8), (512, 256, 1))
    recall = tuple(RecallScore(length=n, distance=d, asked=8, recalled=r) for n, d, r in cells)
    ends = RecallScore(length=512, distance=256, asked=0, recalled=0, note="ends")
    rows = recall_rows([
        evaluation("a", "A", 1.0).model_copy(update={"recall": recall}),
        evaluation("b", "B", 1.0).model_copy(update={"recall": (*recall[:2], ends)}),
    ])  # fmt: skip
    assert rows == (["recalled at", "128 of 256", "256 of 512"], [["A", "88%", "12%"], ["B", "88%", "—"]])


def test_recall_alone_is_shown(tiny: MakeConfig, tmp_path: Path) -> None:
    config = tiny(
        methods=("rope", "learned"), protocols=("recall",), recall_share=0.5, length=32, eval_lengths=(32, 64),
        recall_trials=8,
    )  # fmt: skip
    results = start_experiment(config, tmp_path / "run")
    text = markdown_table(results)
    assert text.startswith("| recalled at | 29 of 32 | 61 of 64 |\n")
    assert "| usable length by | perplexity | recall |\n| --- | ---: | ---: |\n| RoPE | — | not learned: " in text
    assert text.endswith("\nlearned: its positions end at 32; no result at 64.\n")
    axes = draw_figure(results, config).axes[0]
    assert axes.get_title(loc="left") == "Values recalled by distance, in windows of 64 bytes"
    lines = {str(line.get_label()): line for line in axes.get_lines()}
    assert list(lines["RoPE"].get_xdata()) == [32, 61]
    assert (tmp_path / "run" / "figure.png").read_bytes().startswith(PNG)
    write_report([tmp_path / "run"], tmp_path / "page")
    # And of a run that was evaluated by other protocols.
    start_experiment(tiny(methods=("rope",)), tmp_path / "other")
    said = Said()
    again = reevaluate_experiment(tmp_path / "other", tmp_path / "again", {"protocols": ("recall",)}, said)
    assert [score.distance for score in again[0].evaluations[0].recall] == [13, 21, 32, 61]
    assert UNTAUGHT in said.lines
    assert "not taught: " in (tmp_path / "again" / "table.md").read_text(encoding="utf-8")
