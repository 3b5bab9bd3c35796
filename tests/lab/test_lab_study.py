"""The committed studies: every number of a summary follows from the scores by document that lie beside it, and every
table of their page from the summaries."""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from alibi_attention.bench.versus.trained import read_trained
from alibi_attention.lab.complete import read_runs
from alibi_attention.lab.report import summary_json
from alibi_attention.lab.shorter import read_shorter
from alibi_attention.lab.summary import summarise

STUDY = Path(__file__).parents[2] / "docs" / "study"
RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"


def reports() -> list[Path]:
    return sorted(path.parent for path in STUDY.rglob("summary.json") if list(path.parent.glob("run-seed-*.json")))


def test_there_are_studies() -> None:
    names = {str(folder.relative_to(STUDY)) for folder in reports()}
    assert names >= {"256", "512", "256/far"}


@pytest.mark.parametrize("folder", reports(), ids=lambda folder: str(folder.relative_to(STUDY)))
def test_a_summary_follows_from_the_scores(folder: Path) -> None:
    runs = read_runs(sorted(folder.glob("run-seed-*.json")))
    short = sorted(folder.glob("run-shorter-seed-*.json"))
    found = summary_json(runs, summarise(runs), read_shorter(short, runs) if short else [])
    kept = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    assert_alike(json.loads(json.dumps(found)), kept, "summary")


def test_the_page_has_its_tables_from_the_summaries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(STUDY)
    tables = importlib.import_module("tables")
    page = (STUDY / "README.md").read_text(encoding="utf-8")
    assert tables.filled(page) == page
    assert "| ALiBi | 1.58 |" in page
    assert tables.filled(page.replace("| ALiBi | 1.58 |", "| ALiBi | 1.59 |")) == page
    with pytest.raises(SystemExit, match="table: far"):
        tables.filled(page.replace("<!-- table: far -->", ""))


def intervals(value: Any) -> Iterator[tuple[float, float]]:
    """All of a summary."""
    if isinstance(value, dict):
        if value.get("interval"):
            yield tuple(value["interval"])
        value = list(value.values())
    if isinstance(value, list):
        for each in value:
            yield from intervals(each)


def test_every_interval_of_the_page_is_one_of_the_summaries() -> None:
    """To the digits given, of what is said to be more or to be less."""
    page = (STUDY / "README.md").read_text(encoding="utf-8")
    prose = re.sub(r"<!-- table: .*?<!-- end of table -->", "", page, flags=re.DOTALL).replace("\N{MINUS SIGN}", "-")
    said = re.findall(r"\((-?\d+\.\d+) to\s(-?\d+\.\d+)[);,]", prose)
    assert len(said) >= 30
    known = set()
    for folder in ("256", "512", "256/text"):
        known.update(intervals(json.loads((STUDY / folder / "summary.json").read_text(encoding="utf-8"))))
    for low, high in said:
        digits = [len(end.partition(".")[2]) for end in (low, high)]
        ends = (float(low), float(high))
        found = (tuple(map(round, some, digits)) for a, b in known for some in ((a, b), (-b, -a)))
        assert any(each == pytest.approx(ends) for each in found), (low, high)


def test_a_seed_comes_to_the_same_by_later_sources_and_not_by_another_kernel() -> None:
    (study,) = read_runs([STUDY / "256" / "run-seed-1.json"])
    evaluations = {each.name: each for result in study.results for each in result.evaluations}
    same = {}
    for kernel in ("amx", "avx512"):
        (run,) = read_runs([STUDY / "256" / "kernel" / f"run-{kernel}-seed-1.json"])
        assert [session["kernel"] for session in run.sessions] == [f"cpu {kernel}"]
        assert {session["sources"] for session in run.sessions}.isdisjoint(each["sources"] for each in study.sessions)
        found = [evaluation for result in run.results for evaluation in result.evaluations]
        assert [each.name for each in found] == ["alibi", "alibi:ntk"]
        protocols = ("windows", "sliding", "targets", "recall")
        same[kernel] = all(getattr(e, name) == getattr(evaluations[e.name], name) for e in found for name in protocols)
    assert same == {"amx": True, "avx512": False}


def test_alibi_against_rope_has_its_scores_from_the_studies() -> None:
    kept = json.loads((RESULTS / "versus-amx.json").read_text(encoding="utf-8"))["trained"]
    files = {"next": ("decoder", STUDY / "256"), "masked": ("encoder", STUDY / "encoder")}
    assert {each["objective"] for each in kept} == files.keys()
    for each in kept:
        flag, folder = files[each["objective"]]
        found = read_trained(sorted(folder.glob("run-seed-*.json")), each["objective"], flag)
        assert_alike(json.loads(json.dumps(asdict(found))), each, flag)


def assert_alike(found: Any, kept: Any, where: str) -> None:
    """The same, numbers to the rounding of a sum: another library may add in another order."""
    assert type(found) is type(kept) or {type(found), type(kept)} == {int, float}, where
    if isinstance(kept, dict):
        assert found.keys() == kept.keys(), where
        for name in kept:
            assert_alike(found[name], kept[name], f"{where}.{name}")
    elif isinstance(kept, list):
        assert len(found) == len(kept), where
        for i, (one, other) in enumerate(zip(found, kept, strict=True)):
            assert_alike(one, other, f"{where}[{i}]")
    elif isinstance(kept, float):
        assert found == pytest.approx(kept, rel=1e-9, abs=1e-12), where
    else:
        assert found == kept, where
