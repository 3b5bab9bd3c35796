"""Complete runs of one experiment, read from their folders or from the file that a report keeps of each."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from alibi_attention.lab.config import ExperimentConfig, make_config
from alibi_attention.lab.dissection import read_inside
from alibi_attention.lab.errors import LabError
from alibi_attention.lab.files import read_json, write_text
from alibi_attention.lab.inside import Inside
from alibi_attention.lab.positions import position_methods, split_name
from alibi_attention.lab.runs import MethodResult, RunFolder, evaluations_of
from alibi_attention.lab.schema import SCHEMA_VERSION, refuse_later_fields, refuse_later_settings

# Settings in which the runs of one experiment may differ, and those in which the parts of one run may.
_OF_SEEDS = frozenset({"seed", "checkpoint_every"})
_OF_PARTS = frozenset({"methods", "variants", "checkpoint_every"})
# Where the corpus lies, which its fingerprint knows better: a copy elsewhere is the same corpus.
_PLACES = frozenset({"text", "held_out_text", "dataset", "dataset_config"})


@dataclass(frozen=True)
class Run:
    """A complete run.

    Attributes:
        root: its folder, or its file.
        config, results, start: as kept there; ``start`` has the corpus and the environment of the beginning.
        sessions: where each process worked on it, in their order; of a run put together of parts with the methods of
            the part, ``methods``.
        looks: what `alibi dissect` saw, by the name of the evaluation.
    """

    root: Path
    config: ExperimentConfig
    results: list[MethodResult]
    start: dict[str, Any]
    sessions: list[dict[str, Any]]
    looks: dict[str, Inside]


def read_runs(paths: Sequence[Path]) -> list[Run]:
    """Complete runs of one experiment, in the order of their seeds.

    Those of one seed are parts of one run, each with methods of its own: trained by several processes, or on several
    machines.

    Args:
        paths: run folders, or files as `write_run` or a run itself (``results.json``) leaves them.

    Raises:
        LabError: if one is not complete or cannot be read, a method of a seed comes twice or is missing in another, or
            they differ in more than seed and methods.
    """
    read = [_read_file(path) if path.is_file() else _read_folder(path) for path in paths]
    _require_same(read, _OF_SEEDS | _OF_PARTS)
    by_seed: dict[int, list[Run]] = {}
    for run in read:
        by_seed.setdefault(run.config.seed, []).append(run)
    runs = [_put_together(by_seed[seed]) for seed in sorted(by_seed)]
    return [_in_order_of(runs[0], run) for run in runs]


def write_run(path: Path, run: Run) -> None:
    """All that a report needs of a run, in one file that `read_runs` takes in the folder's place: every score, by
    document, no weights."""
    parts = {"schema_version": SCHEMA_VERSION, **run.start, "config": run.config.model_dump(mode="json")}
    parts |= {"sessions": run.sessions}
    lines = [f"{json.dumps(name)}: {_compact(value)}" for name, value in parts.items()]
    results = ",\n".join(_compact(result.model_dump(mode="json")) for result in run.results)
    looks = ",\n".join(
        f"{json.dumps(name)}: {_compact(look.model_dump(mode='json'))}" for name, look in run.looks.items()
    )
    lines += [f'"results": [\n{results}\n]', f'"inside": {{\n{looks}\n}}']
    write_text(path, "{\n" + ",\n".join(lines) + "\n}\n")


def _read_file(path: Path) -> Run:
    """A run as `write_run` kept it, or the ``results.json`` of a run folder.

    Raises:
        LabError: for a file that holds something else, or is of another version.
    """
    try:
        value: dict[str, Any] = read_json(path)
        if value["schema_version"] == SCHEMA_VERSION:
            start = {name: value[name] for name in ("schema_version", "config", "corpus", "environment")}
            sessions = [dict(each) for each in value["sessions"]]
            if not sessions:
                raise ValueError("no process worked on it")
            refuse_later_settings(start["config"], path, [start["environment"]])
            config = make_config(start["config"])
            results = [MethodResult.model_validate(result).judged(config) for result in value["results"]]
            looks = {name: Inside.model_validate(look) for name, look in value.get("inside", {}).items()}
            if tuple(result.method for result in results) == config.methods and start["corpus"]["fingerprint"]:
                return Run(path, config, results, start, sessions, looks)
    except LabError:
        # A configuration that cannot be used here, of a method this installation lacks, say.
        raise
    except ValidationError as error:
        refuse_later_fields(error, path, sessions)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass
    expected = f"a run folder, or a file of a run of schema version {SCHEMA_VERSION} as a report or a run wrote it"
    remedy = "name the folder of the run, its results.json, or a report's run-seed-N.json"
    raise LabError("run", expected=expected, got=f"{path}, which holds something else", remedy=remedy)


def _read_folder(root: Path) -> Run:
    folder = RunFolder(root)
    config, start, results = folder.read_config(), folder.read_start(), folder.read_results()
    looks = {}
    for evaluation in evaluations_of(results):
        method, variant = split_name(evaluation.name)
        inside = read_inside(folder.inside(method, variant))
        if inside is not None:
            looks[evaluation.name] = inside
    return Run(root, config, results, start, folder.read_sessions(), looks)


def _require_same(runs: Sequence[Run], free: Iterable[str]) -> None:
    first = runs[0]
    for other in runs[1:]:
        for name in ExperimentConfig.model_fields:
            if name not in _PLACES and name not in free and getattr(other.config, name) != getattr(first.config, name):
                values = [f"{getattr(run.config, name)} in {run.root}" for run in (first, other)]
                got = f"{name} {', '.join(values)}"
                expected = "runs that differ in seed and methods alone"
                apart = "report them apart"
                remedy = f"{apart}, or the shorter ones each behind a --shorter" if name == "length" else apart
                raise LabError("runs", expected=expected, got=got, remedy=remedy)
        if other.start["corpus"]["fingerprint"] != first.start["corpus"]["fingerprint"]:
            got = f"different text in {first.root} and {other.root}"
            raise LabError("runs", expected="runs on one corpus", got=got, remedy="report them apart")


def _put_together(parts: Sequence[Run]) -> Run:
    """One run of those of a seed, its methods in the order of their names."""
    first = parts[0]
    if len(parts) == 1:
        return first
    at: dict[str, Path] = {}
    for part in parts:
        for method in part.config.methods:
            if method in at:
                got = f"seed {first.config.seed} of {method} in {at[method]} and in {part.root}"
                raise LabError("runs", expected="every method of a seed once", got=got, remedy="leave one of them out")
            at[method] = part.root
    order = list(position_methods())
    results = sorted((result for part in parts for result in part.results), key=lambda each: order.index(each.method))
    variants = [evaluation.name for evaluation in evaluations_of(results) if ":" in evaluation.name]
    config = first.config.model_copy(
        update={"methods": tuple(result.method for result in results), "variants": tuple(variants)}
    )
    # Of several processes at a time, by when each began; with what each worked on, where a part does not know already.
    worked = ({"methods": list(part.config.methods), **each} for part in parts for each in part.sessions)
    sessions = sorted(worked, key=lambda each: str(each.get("date", "")))
    looks = {name: look for part in parts for name, look in part.looks.items()}
    return Run(first.root, config, results, first.start, sessions, looks)


def _in_order_of(first: Run, run: Run) -> Run:
    """The run with its methods as the first one has them."""
    wanted, there = ([each.name for each in evaluations_of(of.results)] for of in (first, run))
    differing = sorted(set(wanted) ^ set(there))
    if differing:
        has, lacks = (first, run) if differing[0] in wanted else (run, first)
        got = f"{differing[0]} of seed {has.config.seed} alone, not of seed {lacks.config.seed}"
        raise LabError("runs", expected="the same methods and variants of every seed", got=got,
                       remedy="add the runs that are missing, or leave the others out")  # fmt: skip
    if wanted == there:
        return run
    methods = {result.method: result for result in run.results}
    results = [methods[result.method] for result in first.results]
    config = run.config.model_copy(update={"methods": first.config.methods, "variants": first.config.variants})
    return replace(run, config=config, results=results)


def _compact(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
