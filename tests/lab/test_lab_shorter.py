"""Models trained short beside those trained long: `alibi report --shorter`."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from lab_cases import TINY, write_texts
from typer.testing import CliRunner

from alibi_attention.cli.app import app
from alibi_attention.lab.complete import read_runs
from alibi_attention.lab.config import make_config
from alibi_attention.lab.errors import LabError
from alibi_attention.lab.experiment import reevaluate_experiment, start_experiment
from alibi_attention.lab.report import write_report
from alibi_attention.lab.shorter import compare, read_shorter, shorter_tables

SETTINGS: dict[str, Any] = {
    **TINY, "methods": ("alibi", "sinusoidal", "learned"), "protocols": ("windows", "sliding"), "steps": 2,
    "eval_tokens": 256,
}  # fmt: skip
LONG: dict[str, Any] = {"length": 32, "eval_lengths": (32, 64, 128), "batch_size": 1}
SHORT: dict[str, Any] = {"length": 16, "eval_lengths": (16, 32), "eval_tokens": 64, "batch_size": 2}


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Path], list[Path], list[Path]]:
    """Runs of two seeds trained at 32; at 16; and the latter evaluated as the former were."""
    folder = tmp_path_factory.mktemp("both")
    text = (str(write_texts(folder / "texts")),)
    found: tuple[list[Path], list[Path], list[Path]] = [], [], []
    for seed in (0, 1):
        for roots, name, lengths in ((found[0], "long", LONG), (found[1], "short", SHORT)):
            roots.append(folder / f"{name}-{seed}")
            start_experiment(make_config({**SETTINGS, **lengths, "text": text, "seed": seed}), roots[-1])
        found[2].append(folder / f"at-{seed}")
        reevaluate_experiment(found[1][-1], found[2][-1], {"eval_lengths": LONG["eval_lengths"], "eval_tokens": 256})
    return found


def test_what_is_compared_is_the_same_text_at_the_longer_length(both: tuple[list[Path], ...]) -> None:
    long, _, at = both
    runs = read_runs(long)
    shorter = read_shorter(at, runs)
    compared = compare(runs, shorter)
    assert list(compared) == ["windows", "sliding"]
    for protocol, rows in compared.items():
        assert [row.method for row in rows] == ["alibi", "sinusoidal", "learned"]
        by_name = {row.method: row for row in rows}

        def bits(some: list[Any], method: str, protocol: str = protocol) -> list[float]:
            found = [next(r for r in run.results if r.method == method).evaluations[0] for run in some]
            return [next(s.bits_per_byte for s in getattr(e, protocol) if s.length == 32) for e in found]

        for method in ("alibi", "sinusoidal"):
            ours, theirs, alibi = bits(runs, method), bits(shorter, method), bits(shorter, "alibi")
            row = by_name[method]
            assert row.longer == pytest.approx(sum(ours) / 2)
            assert row.shorter == pytest.approx(sum(theirs) / 2)
            assert row.change is not None
            assert row.claim is not None
            assert row.change.by_seed == pytest.approx([b - a for a, b in zip(ours, theirs, strict=True)])
            assert row.claim.by_seed == pytest.approx([b - a for a, b in zip(ours, alibi, strict=True)])
        # Its table ends at 16.
        assert by_name["learned"].shorter is None
        assert by_name["learned"].change is None
        assert by_name["learned"].claim is not None
    assert compared["windows"][0].change == compared["windows"][0].claim
    tables = shorter_tables(runs, shorter, "bytes")
    assert [table.title for table in tables] == [
        "Trained at 16, tested at 32: by windows that do not overlap",
        "Trained at 16, tested at 32: by a sliding window",
    ]
    assert tables[0].rows[2][2:4] == ["—", "—"]
    note = tables[0].note
    assert "those trained at 16, which saw 64 bytes in training, and those trained at 32, which saw 64." in note
    assert "least and most over seeds" in note
    assert "were made differs" not in note
    one = [read_runs(some[:1]) for some in (long, at)]
    assert "over documents alone, for there is one seed" in shorter_tables(*one, "bytes")[0].note
    other = replace(one[1][0], sessions=[{**one[1][0].sessions[0], "processor": "another"}])
    found = shorter_tables(one[0], [other], "bytes")[0].note
    assert re.search(r"Where those trained short were made differs: seed 0: processor .* → another\.$", found)


def test_the_report_shows_it_and_keeps_what_repeats_it(both: tuple[list[Path], ...], tmp_path: Path) -> None:
    long, _, at = both
    arguments = ["report", *map(str, long), *(word for root in at for word in ("--shorter", str(root)))]
    done = CliRunner().invoke(app, [*arguments, "--output", str(tmp_path / "first")], prog_name="alibi")
    assert done.exit_code == 0, done.output
    page = (tmp_path / "first" / "report.md").read_text(encoding="utf-8")
    assert page.index("## Usable length") < page.index("## Trained at 16, tested at 32: by a sliding window")
    row = next(line for line in page[page.index("## Trained at 16") :].splitlines() if line.startswith("| learned"))
    assert re.fullmatch(r"\| learned \| \d\.\d{3} \| — \| — \| [+−]\d\.\d{3} \(.*\), seeds .* to .* \|", row), row
    summary = json.loads((tmp_path / "first" / "summary.json").read_text(encoding="utf-8"))["shorter"]
    assert (summary["config"]["length"], summary["config"]["seed"], summary["at"]) == (16, [0, 1], 32)
    assert summary["methods"]["sliding"][0]["change"]["by_seed"]
    # The commands at its end, of the files beside it.
    last = page[page.index("# or the report alone") :].splitlines()[1]
    assert last == (
        "alibi report run-seed-0.json run-seed-1.json --shorter run-shorter-seed-0.json "
        "--shorter run-shorter-seed-1.json --output again"
    )
    kept = [[tmp_path / "first" / f"run-{kind}seed-{seed}.json" for seed in (0, 1)] for kind in ("", "shorter-")]
    write_report(kept[0], tmp_path / "second", shorter=kept[1])
    for name in ("report.md", "report.html", "summary.json", "run-shorter-seed-1.json", "config-shorter-seed-0.yaml"):
        first, second = ((tmp_path / folder / name).read_text(encoding="utf-8") for folder in ("first", "second"))
        assert first == second, name
    # What it keeps of them would be left behind by a report without them.
    with pytest.raises(LabError, match=r"^output: expected .* of no other runs, got .*, which has config-shorter-"):
        write_report(long, tmp_path / "first")


def test_what_cannot_be_compared(both: tuple[list[Path], ...]) -> None:
    long, short, at = both
    command = "--variants '' --protocols windows,sliding --eval-lengths 32,64,128 --eval-tokens 256 --output NEW, for"
    kept = [root / "results.json" for root in short]
    for runs, shorter, complaint in (
        (at, long, r"expected below 16, that of the runs beside them, got length 32 in .*long-0; give the runs"),
        (long, short, rf"expected the same bytes .* as in .*long-0, got others by windows .*evaluate /.*-0 {command}"),
        (long, kept, rf"expected the same bytes .*; alibi evaluate RUN {command}"),
        (long, [at[0] / "nowhere"], r"expected the folder of a run, got .*nowhere, which does not exist"),
        (long, at[:1], r"expected the seeds of the runs beside them, \[0, 1\], got \[0\]; give one run"),
    ):
        with pytest.raises(LabError, match=f"^shorter: {complaint}"):
            read_shorter(shorter, read_runs(runs))


def test_models_that_differ_in_more(both: tuple[list[Path], ...], tmp_path: Path) -> None:
    text = (str(both[0][0].parent / "texts"),)
    for name, more in (
        ("wider", {"width": 32}),
        ("quicker", {"learning_rate": 0.5}),
        ("longer", {"steps": 4}),
        ("by-two", {"stride": 2}),
    ):
        roots = [tmp_path / f"{name}-{seed}" for seed in (0, 1)]
        for seed, root in enumerate(roots):
            settings = {**SETTINGS, **SHORT, **more, "text": text, "seed": seed, "eval_lengths": LONG["eval_lengths"]}
            start_experiment(make_config(settings), root)
        with pytest.raises(
            LabError, match=rf"^shorter: expected runs that differ in length alone.* got {next(iter(more))} "
        ):
            read_shorter(roots, read_runs(both[0]))


def test_steps_of_other_sizes_and_runs_without_their_own_length(both: tuple[list[Path], ...], tmp_path: Path) -> None:
    text = (str(both[0][0].parent / "texts"),)
    settings = {**SETTINGS, **SHORT, "text": text, "eval_lengths": LONG["eval_lengths"]}
    start_experiment(make_config({**settings, "batch_size": 4}), tmp_path / "fuller")
    with pytest.raises(
        LabError, match=r"^shorter: expected 32 tokens a step, as in .*long-0, got 64 in .*fuller; train"
    ):
        read_shorter([tmp_path / "fuller"], read_runs(both[0][:1]))
    reevaluate_experiment(both[0][0], tmp_path / "elsewhere", {"eval_lengths": (64, 128)})
    with pytest.raises(
        LabError, match=r"^shorter: expected runs beside them that were evaluated at their own length, 32"
    ):
        read_shorter(both[2][:1], read_runs([tmp_path / "elsewhere"]))
