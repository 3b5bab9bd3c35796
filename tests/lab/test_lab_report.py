from __future__ import annotations

import inspect
import json
import os
import platform
import re
import shutil
import signal
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from lab_cases import TINY, Said, read_config_file, write_texts
from typer.testing import CliRunner

from alibi_attention.cli.app import app
from alibi_attention.cli.study import study
from alibi_attention.lab.complete import read_runs
from alibi_attention.lab.config import ExperimentConfig, make_config
from alibi_attention.lab.dissection import dissect_run
from alibi_attention.lab.errors import LabError, RunInterrupted
from alibi_attention.lab.experiment import start_experiment
from alibi_attention.lab.interruption import OUT_OF_TIME, Interruption
from alibi_attention.lab.intervals import mean_interval
from alibi_attention.lab.model import Decoder
from alibi_attention.lab.positions import position_methods
from alibi_attention.lab.report import write_report
from alibi_attention.lab.report_figures import Curve, draw_report_figures, enlarged
from alibi_attention.lab.report_html import html_page
from alibi_attention.lab.report_table import Table
from alibi_attention.lab.report_tables import report_tables
from alibi_attention.lab.runs import evaluations_of
from alibi_attention.lab.scores import LossVerdict, RecallScore
from alibi_attention.lab.study import run_study, study_config
from alibi_attention.lab.summary import RecallPoint, farthest, summarise
from alibi_attention.lab.tables import signed

MakeConfig = Callable[..., ExperimentConfig]

EVERYTHING = {"methods": ("alibi", "learned"), "variants": ("alibi:ntk",), "protocols": ("all",), "recall_share": 0.2,
              "length": 32, "eval_lengths": (32, 64, 128), "steps": 2, "recall_trials": 8}  # fmt: skip


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("seeds")
    text = str(write_texts(folder / "texts"))
    roots = []
    for seed in (1, 0):
        config = make_config({**TINY, **EVERYTHING, "text": (text,), "seed": seed})
        roots.append(folder / f"seed-{seed}")
        start_experiment(config, roots[-1])
    return roots


def test_summary_is_over_seeds_and_documents(runs: list[Path]) -> None:
    found = read_runs(runs)
    assert [run.config.seed for run in found] == [0, 1]
    lines = {line.name: line for line in summarise(found)}
    assert list(lines) == ["alibi", "alibi:ntk", "learned"]
    scores = [run.results[0].evaluations[1].windows[2] for run in found]
    point = lines["alibi:ntk"].losses["windows"][2]
    assert point.by_seed == tuple(score.bits_per_byte for score in scores)
    assert point.mean == pytest.approx(np.mean(point.by_seed))
    assert point.interval == mean_interval([s.document_bits for s in scores], scores[0].document_bytes)
    trained = [run.results[0].evaluations[1].windows[0] for run in found]
    moved = [np.subtract(s.document_bits, t.document_bits) for s, t in zip(scores, trained, strict=True)]
    assert point.change.mean == pytest.approx(point.mean - lines["alibi:ntk"].losses["windows"][0].mean)
    assert point.change.interval == pytest.approx(mean_interval(moved, scores[0].document_bytes))
    assert lines["alibi:ntk"].losses["windows"][0].change is None
    plain = [run.results[0].evaluations[0].windows[2] for run in found]
    apart = [np.subtract(s.document_bits, t.document_bits) for s, t in zip(scores, plain, strict=True)]
    assert point.against.by_seed == pytest.approx([sum(bits) / scores[0].scored_bytes for bits in apart])
    assert point.against.mean == pytest.approx(point.mean - lines["alibi"].losses["windows"][2].mean)
    assert point.against.interval == pytest.approx(mean_interval(apart, scores[0].document_bytes))
    assert lines["alibi"].losses["windows"][2].against is None
    assert lines["learned"].losses["windows"][1].note == "its positions end at 32"
    # Six steps teach nothing, whose loss would otherwise be level at any length.
    assert lines["learned"].usable_by_perplexity == LossVerdict(protocol="sliding", length=None)
    assert lines["learned"].position_parameters == 32 * 16
    assert lines["alibi"].by_position.keys() == {32, 128}
    assert farthest(lines["alibi"])[-1].end == 128
    assert farthest(lines["learned"])[-1].end == 32
    # Each token once, at whichever place.
    for length, bins in lines["alibi"].by_position.items():
        windows = [score for run in found for score in run.results[0].evaluations[0].windows if score.length == length]
        (count,) = {score.scored_tokens for score in windows}
        assert sum(bin_.tokens for bin_ in bins) == count
        total = sum(bin_.tokens * bin_.bits for bin_ in bins) / count
        mean = next(point.mean for point in lines["alibi"].losses["windows"] if point.length == length)
        assert total == pytest.approx(mean)


def test_recall_is_never_pooled_over_seeds(runs: list[Path]) -> None:
    found = read_runs(runs)
    for line, number in (("alibi", 0), ("learned", 2)):
        evaluations = [evaluations_of(run.results)[number] for run in found]
        (summary,) = [each for each in summarise(found) if each.name == line]
        for i, point in enumerate(summary.recall):
            assert point.by_seed == tuple(evaluation.recall[i] for evaluation in evaluations)
            assert all(score.asked in (0, 8) for score in point.by_seed)
        assert summary.recall_by_seed == tuple(evaluation.usable_by_recall for evaluation in evaluations)
        assert summary.usable_by_recall in summary.recall_by_seed
    scores = [RecallScore(length=1, distance=1, asked=8, recalled=n) for n in (8, 0, 7)]
    assert RecallPoint(1, 1, tuple(scores)).median == 7 / 8
    assert RecallPoint(1, 1, (RecallScore(length=1, distance=1, asked=0, recalled=0),)).median is None


def test_runs_that_do_not_belong_together(runs: list[Path], tiny: MakeConfig, tmp_path: Path) -> None:
    with pytest.raises(
        LabError, match=r"^runs: expected every method of a seed once, got seed 1 of alibi in .*; leave"
    ):
        read_runs([runs[0], runs[0]])
    start_experiment(tiny(methods=("rope",)), tmp_path / "other")
    with pytest.raises(
        LabError, match=r"^runs: expected runs that differ in seed and methods alone, got length .*; report"
    ):
        read_runs([runs[0], tmp_path / "other"])


def test_a_report_of_kept_runs_is_the_report(runs: list[Path], tmp_path: Path) -> None:
    roots = [tmp_path / root.name for root in runs]
    for root, copy in zip(runs, roots, strict=True):
        shutil.copytree(root, copy)
    dissect_run(roots[0], "alibi", (64, 128), mass_length=64)
    write_report(roots, tmp_path / "first")
    shutil.rmtree(roots[0])
    # One of the two from the file alone, and from the run's own: in the same folder as well.
    write_report([tmp_path / "first" / "run-seed-1.json", roots[1] / "results.json"], tmp_path / "second")
    write_report([tmp_path / "first" / f"run-seed-{seed}.json" for seed in (0, 1)], tmp_path / "first")
    for name in ("report.md", "report.html", "summary.json", "run-seed-0.json", "run-seed-1.json"):
        first, second = ((tmp_path / folder / name).read_text(encoding="utf-8") for folder in ("first", "second"))
        assert first == second, name
    assert "Inside ALiBi: attention by distance" in (tmp_path / "second" / "report.md").read_text(encoding="utf-8")


def test_parts_of_a_seed_are_one_run(runs: list[Path], tmp_path: Path) -> None:
    whole = read_runs(runs)
    text = str(runs[0].parent / "texts")
    parts = []
    for method in ("learned", "alibi"):
        variants = [name for name in EVERYTHING["variants"] if name.startswith(method)]
        changes = {"text": (text,), "methods": (method,), "variants": variants, "seed": 1}
        parts.append(tmp_path / method)
        start_experiment(make_config({**TINY, **EVERYTHING, **changes}), parts[-1])
    found = read_runs([*parts, *(root for root in runs if root.name == "seed-0")])
    assert [run.config for run in found] == [run.config for run in whole]
    for mine, theirs in zip(found, whole, strict=True):
        timeless = {"train_seconds": 0.0, "eval_seconds": 0.0}
        results = [[each.model_copy(update=timeless) for each in run.results] for run in (mine, theirs)]
        assert results[0] == results[1]
    # Which part was computed where is not forgotten.
    parted = next(run for run in found if run.config.seed == 1)
    assert sorted(str(session["methods"]) for session in parted.sessions) == ["['alibi']", "['learned']"]
    with pytest.raises(LabError, match=r"^runs: expected the same methods and variants of every seed, got learned of "
                       r"seed 0 alone, not of seed 1; add"):  # fmt: skip
        read_runs([parts[1], *(root for root in runs if root.name == "seed-0")])


def test_verdicts_are_by_the_rules_of_today(runs: list[Path], tmp_path: Path) -> None:
    """Whatever a run of before has written down: they follow from its scores."""
    shutil.copytree(runs[0], tmp_path / "run")
    for path, of in ((tmp_path / "run" / "alibi" / "result.json", "result"), (tmp_path / "run" / "results.json", "")):
        value = json.loads(path.read_text(encoding="utf-8"))
        for evaluation in (value[of] if of else value["results"][0])["evaluations"]:
            evaluation["usable_by_recall"] |= {"learned": True, "length": 128, "distance": 125}
            evaluation["usable_by_perplexity"] |= {"length": 64}
        path.write_text(json.dumps(value), encoding="utf-8")
    for path in (tmp_path / "run", tmp_path / "run" / "results.json"):
        assert read_runs([path])[0].results == read_runs([runs[0]])[0].results


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"schema_version": 99}', None])
def test_a_file_that_is_no_run(runs: list[Path], tmp_path: Path, text: str | None) -> None:
    path = tmp_path / "run.json"
    if text is None:
        # Cut short, as by a full disk elsewhere.
        whole = (runs[0] / "results.json").read_text(encoding="utf-8")
        text = whole[: len(whole) // 2]
    path.write_text(text, encoding="utf-8")
    with pytest.raises(LabError, match=r"^run: expected a run folder, or a file of a run .*, got .*run\.json, which"):
        read_runs([path])


class Page(HTMLParser):
    """Balance of tags, what is asked of the network, ids, and text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.requests: list[str] = []
        self.ids: list[str] = []
        self.text: list[str] = []
        self.tags: list[str] = []
        self.classes: list[str] = []
        self.labels: dict[str, list[str]] = {}
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in ("meta", "link", "br"):
            self.open.append(tag)
        for name, value in attributes:
            if name in ("src", "href", "xlink:href", "srcset") and not (value or "").startswith(("#", "data:")):
                self.requests.append(f"{tag} {name}={value}")
            if name == "id":
                self.ids.append(value or "")
            if name == "class":
                self.classes.append(value or "")
            if name == "aria-label":
                self.labels.setdefault(tag, []).append(value or "")

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attributes)
        if self.open and self.open[-1] == tag:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def test_page_is_whole_and_asks_nothing_of_the_network(runs: list[Path], tmp_path: Path) -> None:
    path = write_report(runs, tmp_path / "report")
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    assert page.open == []
    assert page.requests == []
    assert "script" not in page.tags
    assert "url(http" not in text
    assert "@import" not in text
    # Of each figure the page shows one of two drawings, by the width of the screen.
    assert page.tags.count("figure") == 5
    assert page.tags.count("svg") == 10
    assert [kind for kind in page.classes if kind in ("broad", "narrow")] == ["broad", "narrow"] * 5
    assert all("the table below has the numbers" in words.lower() for words in page.labels["svg"])
    assert len(page.ids) == len(set(page.ids))
    # What is referred to is there.
    references = set(re.findall(r"(?:url\(#|href=\"#)([^)\"]+)", text))
    assert references <= set(page.ids)
    assert "#000000" not in text.split("@media print")[1].split("</style>")[1]
    for phrase in (
        "ALiBi, NTK scaling",
        "Usable length",
        "Recall by distance at the longest length, 128 bytes",
        "Fixed targets: bits per byte less ALiBi's",
        "Bits per byte by position in the longest window",
        "lower is better, and guessing bytes blindly costs 8",
        "of the windows lie in one document",
        "learned: its positions end at 32.",
    ):
        assert phrase in "".join(page.text), phrase


def test_files_of_a_report(runs: list[Path], tmp_path: Path) -> None:
    write_report(runs, tmp_path / "report")
    figures = ("windows", "sliding", "targets", "positions", "recall")
    assert {path.relative_to(tmp_path / "report").as_posix() for path in (tmp_path / "report").rglob("*")} == {
        "report.html", "report.md", "summary.json", "figures",
        *(f"{name}-seed-{seed}.{kind}" for name, kind in (("config", "yaml"), ("run", "json")) for seed in (0, 1)),
        *(f"figures/{name}.{kind}" for name in figures for kind in ("png", "svg")),
    }  # fmt: skip
    for name in figures:
        ElementTree.parse(tmp_path / "report" / "figures" / f"{name}.svg")
    text = (tmp_path / "report" / "report.md").read_text(encoding="utf-8")
    assert all(f"](figures/{name}.png)" in text for name in figures)
    assert "| ALiBi |" in text
    summary = json.loads((tmp_path / "report" / "summary.json").read_text(encoding="utf-8"))
    assert summary["config"]["seed"] == [0, 1]
    assert [e["name"] for e in summary["evaluations"]] == ["alibi", "alibi:ntk", "learned"]
    mean = summary["evaluations"][0]["losses"]["windows"][0]["mean"]
    assert f"| {mean:.3f} (" in text
    assert [e["name"] for e in summary["evaluations"] if e["losses"]["windows"][2]["against"]] == ["alibi:ntk"]
    assert [len(e["usable_by_recall_by_seed"]) for e in summary["evaluations"]] == [2, 2, 2]
    cell = summary["evaluations"][0]["recall"][-1]
    assert (cell["length"], cell["distance"]) == (128, 125)
    assert [set(score) for score in cell["by_seed"]] == [{"share", "asked", "recalled", "interval", "note"}] * 2


@pytest.mark.parametrize("name", ["report.md", "report.html"])
def test_a_report_of_somebody_else_is_not_overwritten(runs: list[Path], tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("mine", encoding="utf-8")
    with pytest.raises(
        LabError, match=rf"output: expected a new folder, or one with an earlier report, got .*{name} comes"
    ):
        write_report(runs, tmp_path)
    assert (tmp_path / name).read_text(encoding="utf-8") == "mine"
    assert [each.name for each in tmp_path.iterdir()] == [name]


def test_a_report_is_written_over_an_earlier_one(runs: list[Path], tmp_path: Path) -> None:
    write_report(runs, tmp_path)
    write_report(runs, tmp_path)


def test_what_repeats_it_is_beside_the_report(runs: list[Path], tmp_path: Path) -> None:
    folder = tmp_path / "report"
    write_report(runs, folder)
    text = (folder / "report.md").read_text(encoding="utf-8")
    commands = [
        "alibi extrapolate --config config-seed-0.yaml --output again/seed-0",
        "alibi extrapolate --config config-seed-1.yaml --output again/seed-1",
        "alibi report again/seed-0 again/seed-1 --output again",
        "# or the report alone, of the scores kept beside it:",
        "alibi report run-seed-0.json run-seed-1.json --output again",
    ]
    assert "\n".join(["```bash", *commands, "```"]) in text
    for run in read_runs(runs):
        assert read_config_file(folder / f"config-seed-{run.config.seed}.yaml") == run.config
    assert f", {torch.get_num_threads()} thread" in text
    assert f", Python {platform.python_version()}, alibi-attention " in text
    assert "runs elsewhere" not in text


def test_runs_on_different_machines_say_so(runs: list[Path], tmp_path: Path) -> None:
    for root in runs:
        shutil.copytree(root, tmp_path / root.name)
    path = tmp_path / "seed-1" / "config.json"
    start = json.loads(path.read_text(encoding="utf-8"))
    start["environment"] |= {"python": "3.0", "threads": 99}
    path.write_text(json.dumps(start), encoding="utf-8")
    page = write_report([tmp_path / root.name for root in runs], tmp_path / "report")
    threads, python = torch.get_num_threads(), platform.python_version()
    said = f"seed 1: threads {threads} → 99, python {python} → 3.0"
    assert said in page.read_text(encoding="utf-8")


def test_tables_of_one_seed_and_of_several(runs: list[Path]) -> None:
    for roots in (runs, runs[:1]):
        found = read_runs(roots)
        lines = summarise(found)
        tables = {table.name: table for table in report_tables(lines, found[0].config)}
        assert list(tables) == [
            "verdicts", "windows", "windows-against", "positions-trained", "positions", "sliding", "sliding-against",
            "targets", "targets-against", "recall-farthest", "recall-trained", "recall", "costs",
        ]  # fmt: skip
        assert tables["recall-trained"].header == ["distance (bytes)", "29"]
        assert tables["recall"].header == ["distance (bytes)", "32", "64", "125"]
        assert tables["recall-farthest"].header == ["distance (bytes)", "29 of 32", "61 of 64", "125 of 128"]
        assert tables["windows"].header == ["window (bytes)", "32", "64", "128"]
        point = lines[0].losses["windows"][2]
        ends = [signed(end) for end in point.change.interval]
        assert tables["windows"].rows[0][3] == f"{point.mean:.3f}: {signed(point.change.mean)} ({ends[0]} to {ends[1]})"
        assert f"bytes of {point.documents} documents scored" in tables["windows"].note
        said = f"{point.largest_document:.0%} of them of the largest, so that the documents say as much as"
        assert f"{said} {point.effective_documents:.0f} of one size." in tables["windows"].note
        assert 1.0 <= point.effective_documents <= point.documents
        assert ("More are read with --eval-tokens" in tables["windows"].note) == (point.documents < 30)
        positions = tables["positions"]
        assert positions.header == [
            "position (bytes)",
            "0",
            "1",
            *(f"{n}\u2013{2 * n - 1}" for n in (2, 4, 8, 16, 32, 64)),
        ]
        # Learned positions end at 32.
        assert positions.rows[0] == ["tokens", *(f"{bin_.tokens:,}" for bin_ in farthest(lines[0]))]
        assert [cell == "—" for cell in positions.rows[3][1:]] == [False] * 6 + [True] * 2
        assert positions.rows[1][-1] == f"{farthest(lines[0])[-1].bits:.3f}"
        trained = tables["positions-trained"]
        assert trained.header == positions.header[:7]
        assert [row[1:] for row in trained.rows[1:]] == [
            [f"{bin_.bits:.3f}" for bin_ in line.by_position[32]] for line in lines
        ]
        assert tables["verdicts"].header[1] == "by perplexity, sliding window"
        against = tables["windows-against"]
        assert [row[0] for row in against.rows] == ["ALiBi, NTK scaling", "learned"]
        # NTK scaling leaves the trained length alone.
        several = len(roots) > 1
        nothing = "0.000 (0.000 to 0.000)" + (", seeds 0.000 to 0.000" if several else "")
        assert against.rows[0][1] == nothing
        assert ("least and most over seeds" in against.note) == several
        assert ("by recall, each seed" in tables["verdicts"].header) == several
        assert ("Median over seeds" in tables["recall"].note) == several
        assert tables["recall"].rows[2][1:] == ["—"] * 3


def test_perplexity_is_of_tokens(runs: list[Path], tiny: MakeConfig, tmp_path: Path) -> None:
    config = tiny(methods=("rope", "nope"), tokenizer="words", steps=1, protocols=("windows", "targets"))
    start_experiment(config, tmp_path / "words")
    found = read_runs([tmp_path / "words"])
    tables = {table.name: table for table in report_tables(summarise(found), found[0].config)}
    want = found[0].results[1].evaluations[0].windows[2].perplexity
    assert want is not None
    assert tables["windows-perplexity"].rows[1][-1] == f"{want:,.2f}"
    assert [row[0] for row in tables["windows-perplexity"].rows] == ["RoPE", "NoPE"]
    assert "targets-perplexity" in tables
    # Without ALiBi the first method is what others are compared with.
    assert tables["windows-against"].title == "Non-overlapping windows: bits per byte less RoPE's"
    in_bytes = read_runs(runs)
    assert not any("perplexity" in t.name for t in report_tables(summarise(in_bytes), in_bytes[0].config))


def test_what_is_small_is_enlarged() -> None:
    line: Any = object()
    lengths = [256, 512]
    curves = [Curve(line, lengths, [2.0, 1.95]), Curve(line, lengths, [2.2, 6.0])]
    low, high = enlarged(curves, 256) or (0, 0)
    assert high == pytest.approx(2.1)
    assert 1.9 < low < 1.95
    assert enlarged([Curve(line, lengths, [2.0, 1.95]), Curve(line, lengths, [2.2, 2.22])], 256) is None
    assert enlarged(curves, 100) is None
    assert enlarged([Curve(line, [], [])], 256) is None


def test_each_seed_is_marked_beside_the_line_of_all(runs: list[Path]) -> None:
    read = read_runs(runs)
    for several in (read, read[:1]):
        lines = summarise(several)
        pictures = draw_report_figures(lines, 32, "bytes")
        for name, of in (("sliding", lines[0].losses["sliding"][0].by_seed), ("recall", None)):
            for figure in (pictures[name].broad, pictures[name].narrow):
                axes = figure.axes[0]
                marks = [each for each in axes.get_lines() if each.get_label() == "_seeds"]
                told = "small marks: each seed" in figure.axes[-1].get_xlabel()
                assert bool(marks) == told == (len(several) > 1)
                if marks and of is not None:
                    places, values = (list(marks[0].get_data()[i]) for i in (0, 1))
                    assert [value for place, value in zip(places, values, strict=True) if place == 32] == list(of)


def test_numbers_with_a_sign() -> None:
    assert [signed(x) for x in (0.0126, -0.0126, 0.0004, -0.0004, -0.0)] == [
        "+0.013", "\u22120.013", "0.000", "0.000", "0.000"
    ]  # fmt: skip


def test_page_of_long_cells() -> None:
    """Where lines may end, and which columns are read from the left."""
    header = ["length", "change", "verdict", "share"]
    table = Table("t", "T", "", header, [["<A>", "1.0: +0.1 (−1 to +1)", "not learned; none (1 b)", "5% (1%–9%)"]])
    page = html_page("T", [], [], [table], {}, "", "")
    for cell in (
        '<th scope="row">&lt;A&gt;</th>',
        '<td>1.0: +0.1 <span class="keep">(−1 to +1)</span></td>',
        '<td class="words"><span class="keep">not learned;</span> <span class="keep">none (1 b)</span></td>',
        '<td>5% <span class="whole">(1%–9%)</span></td>',
        '<th scope="col" class="words">verdict</th>',
    ):
        assert cell in page, cell


def test_a_figure_fits_the_width_of_a_phone(runs: list[Path]) -> None:
    lines = summarise(read_runs(runs))
    for name, picture in draw_report_figures(lines * 5, 32, "bytes").items():
        # Shown 358 pixels wide on a phone of 390, a letter of 9.5 points has ten of them.
        assert picture.narrow.get_figwidth() == 4.6
        (legend,) = picture.narrow.legends
        picture.narrow.draw_without_rendering()
        box, bottom = legend.get_window_extent(), picture.narrow.axes[-1].xaxis.get_tightbbox()
        assert bottom is not None
        assert box.x0 >= 0, name
        assert box.x1 <= picture.narrow.bbox.width, name
        assert 0 <= box.y0 < box.y1 <= bottom.y0, name


def test_what_is_inside_is_reported(runs: list[Path], tmp_path: Path) -> None:
    for root in runs:
        shutil.copytree(root, tmp_path / root.name)
    roots = [tmp_path / root.name for root in runs]
    dissect_run(tmp_path / "seed-1", "alibi", (64, 128), mass_length=64)
    dissect_run(tmp_path / "seed-0", "alibi:ntk", (64, 128), mass_length=64, tolerance=1e-3)
    dissect_run(tmp_path / "seed-0", "learned", mass_length=32)
    text = write_report(roots, tmp_path / "report").read_text(encoding="utf-8")
    page = Page(text)
    assert page.open == []
    assert page.requests == []
    assert len(page.ids) == len(set(page.ids))
    assert set(re.findall(r"(?:url\(#|href=\"#)([^)\"]+)", text)) <= set(page.ids)
    drawn = {path.stem for path in (tmp_path / "report" / "figures").glob("inside-*.svg")}
    kinds = ("mass", "horizon", "tiles")
    assert drawn == {*(f"inside-{n}-{k}" for n in ("alibi", "alibi-ntk") for k in kinds), "inside-learned-mass"}
    said = "".join(page.text)
    for phrase in (
        "Inside ALiBi: attention by distance",
        "Inside ALiBi, NTK scaling: keys each head needs",
        "Inside learned: attention by distance",
        "How far back each head looks. The model of seed 1, ",
        "1.0e-03 was allowed",
        "alibi dissect again/seed-1 --method alibi --lengths 64,128 --mass-length 64 --tolerance 5.960464477",
        "alibi dissect again/seed-0 --method alibi:ntk --lengths 64,128 --mass-length 64 --tolerance 0.001\n",
        "alibi dissect again/seed-0 --method learned --lengths 32 --mass-length 32\n",
    ):
        assert phrase in said, phrase
    assert "](figures/inside-alibi-tiles.png)" in (tmp_path / "report" / "report.md").read_text(encoding="utf-8")


def test_report_command(runs: list[Path], tmp_path: Path) -> None:
    arguments = ["report", *map(str, runs), "--output", str(tmp_path / "page")]
    result = CliRunner().invoke(app, arguments, prog_name="alibi")
    assert result.exit_code == 0, result.output
    assert (
        result.stdout
        == f"Written to {tmp_path / 'page'}: report.html, report.md, summary.json, figures/, config-seed-*.yaml, "
        "run-seed-*.json\n"
    )
    refused = CliRunner().invoke(app, ["report", str(tmp_path)], prog_name="alibi")
    assert refused.exit_code == 2
    assert refused.stderr.startswith("error: RUNS...: expected the folder of a run, got ")


def test_words_of_a_figure_count_the_lines_in_it(runs: list[Path]) -> None:
    """Learned positions end at 32: nothing farther was asked of them."""
    pictures = draw_report_figures(summarise(read_runs(runs)), 32, "bytes")
    counts = {name: picture.words.partition("one line for each of ")[2][:1] for name, picture in pictures.items()}
    assert counts == {"windows": "3", "positions": "3", "sliding": "3", "targets": "3", "recall": "2"}
    (alone,) = (line for line in summarise(read_runs(runs)) if line.name == "learned")
    words = {name: picture.words for name, picture in draw_report_figures([alone], 32, "bytes").items()}
    assert ", of learned. " in words["windows"]
    assert ", without a line, as no method has a number." in words["recall"]


# The study


def test_study_is_of_everything() -> None:
    config = study_config()
    # With eight heads interleaved slopes are the geometric ones.
    assert set(position_methods()) - set(config.methods) == {"alibi-interleaved"}
    assert study_config({"heads": 6, "width": 192}).methods == tuple(position_methods())
    assert set(config.variants) == {
        "alibi:linear", "alibi:ntk", "alibi-learned:linear", "alibi-learned:ntk", "rope:pi", "rope:dynamic", "rope:yarn"
    }  # fmt: skip
    assert config.protocols == ("windows", "sliding", "targets", "recall")
    assert config.steps * config.batch_size * config.length == 1800 * 4096
    assert config.recall_share == 0.5


def test_help_of_the_study_has_the_study_s_defaults() -> None:
    shown = {name: parameter.default for name, parameter in inspect.signature(study).parameters.items()}
    config = study_config().model_dump()
    assert {name: shown[name] for name in ("length", "steps", "eval_tokens", "eval_precision", "device")} == {
        name: config[name] for name in ("length", "steps", "eval_tokens", "eval_precision", "device")
    }


def test_study_stops_in_time_and_goes_on(tmp_path: Path, texts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    changes = {**TINY, **EVERYTHING, "text": (str(texts),)}
    root = tmp_path / "study"
    with pytest.raises(RunInterrupted) as stopped:
        run_study(root, changes, seeds=2, minutes=1e-6)
    assert stopped.value.signal_number == OUT_OF_TIME
    assert not (root / "report.html").exists()
    page = run_study(root, changes, seeds=2)
    assert page == root / "report.html"
    assert json.loads((root / "summary.json").read_text(encoding="utf-8"))["config"]["seed"] == [0, 1]
    # Once complete, it only reads; more seeds are added to those there are.
    monkeypatch.setattr(Decoder, "nats", None)
    assert run_study(root, changes, seeds=2) == page
    monkeypatch.undo()
    with pytest.raises(LabError, match=r"^steps: expected 2, as the run in .*seed-0 was started with, got 3; "):
        run_study(root, {**changes, "steps": 3}, seeds=2)
    with pytest.raises(LabError, match=r"^seed: expected no single seed, got 4; give --seeds, their number$"):
        run_study(root, {"seed": 4})
    with pytest.raises(LabError, match=r"^minutes: expected a number above 0, got 0; "):
        run_study(root, minutes=0)
    with pytest.raises(LabError, match=r"^seeds: expected at least 1, got 0; "):
        run_study(root, seeds=0)


def test_a_study_goes_on_with_the_settings_it_was_begun_with(
    tmp_path: Path, texts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the defaults have become since."""
    changes = {**TINY, **EVERYTHING, "text": (str(texts),)}
    run_study(tmp_path / "study", changes, seeds=2, only_seed=0)
    monkeypatch.setattr("alibi_attention.lab.study.STUDY", {"steps": 77, "eval_precision": "bf16"})
    with pytest.raises(LabError, match=r"^steps: expected 2, as the run in .*seed-0 was started with, got 3; "):
        run_study(tmp_path / "study", {"steps": 3}, seeds=2)
    assert not (tmp_path / "study" / "seed-1").exists()
    assert run_study(tmp_path / "study", {"steps": 2}, seeds=2) is not None
    first, second = (read_runs([tmp_path / "study" / f"seed-{seed}"])[0].config for seed in (0, 1))
    assert second == first.model_copy(update={"seed": 1})


def test_seeds_of_a_study_run_apart(tmp_path: Path, texts: Path) -> None:
    changes = {**TINY, **EVERYTHING, "text": (str(texts),), "protocols": ("windows",), "recall_trials": 64}
    root, said = tmp_path / "study", Said()
    assert run_study(root, changes, seeds=3, only_seed=2, progress=said) is None
    assert said.lines[-1] == "No report yet: of the seeds, 0, 1 are missing."
    assert [path.name for path in root.iterdir()] == ["seed-2"]
    assert run_study(root, changes, seeds=3, only_seed=0) is None
    assert run_study(root, changes, seeds=3, only_seed=1) == root / "report.html"
    assert json.loads((root / "summary.json").read_text(encoding="utf-8"))["config"]["seed"] == [0, 1, 2]
    with pytest.raises(LabError) as error:
        run_study(root, changes, seeds=3, only_seed=3)
    assert str(error.value) == (
        "only_seed: expected one of the study's seeds, 0 to 2, got 3; raise --seeds, their number"
    )


def test_study_command(texts: Path, tmp_path: Path) -> None:
    (tmp_path / "small.yaml").write_text(
        f"text: {texts}\nlayers: 1\nheads: 2\nwidth: 16\nbatch_size: 2\nprotocols: windows\nvariants: []\n"
        "recall_share: 0\nwarmup: 1\n",
        encoding="utf-8",
    )
    arguments = [
        "study", "--config", str(tmp_path / "small.yaml"), "--output", str(tmp_path / "study"), "--methods=nope,rope",
        "--length=16", "--eval-lengths=16,32", "--eval-tokens=64", "--steps=2", "--seeds=1", "--only-seed=0",
    ]  # fmt: skip
    stopped = CliRunner().invoke(app, [*arguments, "--minutes=0.00001"], prog_name="alibi")
    assert stopped.exit_code == 128 + OUT_OF_TIME
    assert stopped.stderr == "Stopped. Continue with the same command.\n"
    result = CliRunner().invoke(app, arguments, prog_name="alibi")
    assert result.exit_code == 0, result.output
    assert result.stdout.endswith(
        ": report.html, report.md, summary.json, figures/, config-seed-*.yaml, run-seed-*.json\n"
    )


def test_time_is_up_only_once_it_is() -> None:
    with Interruption(minutes=60) as stop:
        stop.check()
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(RunInterrupted) as stopped:
            stop.check()
        assert stopped.value.signal_number == signal.SIGTERM
