"""Runs as a page: one self-contained HTML file, the same as Markdown, and every figure as SVG and PNG."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import matplotlib as mpl

from alibi_attention.lab.complete import Run, read_runs, write_run
from alibi_attention.lab.config import ExperimentConfig
from alibi_attention.lab.config_file import write_config_file
from alibi_attention.lab.environment import machine_words
from alibi_attention.lab.errors import LabError
from alibi_attention.lab.figures import save_figure
from alibi_attention.lab.files import write_json, write_text
from alibi_attention.lab.report_figures import draw_report_figures
from alibi_attention.lab.report_folder import refuse_other_runs, refuse_strangers, remove_figures
from alibi_attention.lab.report_html import html_page
from alibi_attention.lab.report_inside import Look, find_looks, inside_parts, look_command
from alibi_attention.lab.report_table import Picture, Table
from alibi_attention.lab.report_tables import report_tables, unit_of
from alibi_attention.lab.shorter import read_shorter, shorter_json, shorter_tables
from alibi_attention.lab.summary import Line, RecallPoint, machine_differences, summarise
from alibi_attention.lab.tables import markdown


def write_report(roots: Sequence[Path], folder: Path, *, shorter: Sequence[Path] = ()) -> Path:
    """Report complete runs of one experiment.

    Args:
        roots: run folders, or files of runs, as `read_runs` takes them.
        folder: gets ``report.html``, ``report.md``, ``summary.json``, ``figures/``, and for each run
            ``config-seed-N.yaml``, to repeat it with, and ``run-seed-N.json``, to report it again with others. An
            earlier report there is replaced, and those of its figures removed that this one has not got.
        shorter: runs of the same seeds trained at a shorter length and evaluated at these ones', to be compared; they
            are kept as ``run-shorter-seed-N.json``.

    Returns:
        The path of the page.

    Raises:
        LabError: for runs that are not complete or do not belong together, or a folder with files of these names that
            are of no report, or of one with other seeds.
    """
    inputs = {root.resolve() for root in [*roots, *shorter] if root.is_file()}
    refuse_strangers(folder, inputs)
    runs = read_runs(roots)
    short = read_shorter(shorter, runs) if shorter else []
    kept = {**_kept(runs), **_kept(short, "shorter-")}
    refuse_other_runs(folder, {*kept, *map(_config_of, kept)}, inputs)
    lines = summarise(runs)
    config = runs[0].config
    if config.objective != "next":
        remedy = "read their table.md, or give each to alibi versus as --encoder"
        got = f"masked prediction in {roots[0]}"
        raise LabError("runs", expected="runs of next-token prediction, whose protocols the page explains", got=got,
                       remedy=remedy)  # fmt: skip
    looks = find_looks(runs, lines)
    tables = report_tables(lines, config)
    if short:
        # Behind the verdicts: it is what a reader of the paper looks for.
        tables[1:1] = shorter_tables(runs, short, unit_of(config))
    with mpl.rc_context({"font.size": 11.0}):
        pictures = draw_report_figures(lines, config.length, unit_of(config))
        inside_tables, inside_pictures = inside_parts(looks, unit_of(config))
        tables += inside_tables
        pictures |= inside_pictures
        # First: a folder counts as a report's from then on, so that one that was interrupted can be made again.
        write_json(folder / "summary.json", summary_json(runs, lines, short))
        remove_figures(folder, pictures)
        for name, picture in pictures.items():
            save_figure(picture.broad, [folder / "figures" / f"{name}.{suffix}" for suffix in ("png", "svg")])
        title, lead, facts = _title(config, len(runs)), _lead(lines, config), _facts(runs)
        command = _command(runs, short, looks)
        settings = json.dumps(config.model_dump(mode="json"), indent=1, ensure_ascii=False)
        page = html_page(title, lead, facts, tables, pictures, command, settings)
    for name, run in kept.items():
        write_config_file(folder / _config_of(name), run.config)
        write_run(folder / name, run)
    write_text(folder / "report.md", _markdown(title, lead, facts, tables, pictures, command))
    write_text(folder / "report.html", page)
    return folder / "report.html"


def summary_json(runs: Sequence[Run], lines: Sequence[Line], shorter: Sequence[Run] = ()) -> dict[str, object]:
    """What the tables are made of, unrounded."""
    compared = {"shorter": shorter_json(runs, shorter)} if shorter else {}
    return {
        **compared,
        "config": {**runs[0].config.model_dump(mode="json"), "seed": [run.config.seed for run in runs]},
        "corpus": runs[0].start["corpus"],
        "environments": [run.start["environment"] for run in runs],
        "sessions": [run.sessions for run in runs],
        "evaluations": [
            {
                "name": line.name,
                "title": line.title,
                "usable_by_perplexity": line.usable_by_perplexity and line.usable_by_perplexity.model_dump(),
                "usable_by_recall": line.usable_by_recall and line.usable_by_recall.model_dump(),
                "usable_by_recall_by_seed": [verdict and verdict.model_dump() for verdict in line.recall_by_seed],
                "losses": {protocol: [asdict(point) for point in points] for protocol, points in line.losses.items()},
                "by_position": line.by_position,
                "recall": [_recall_json(point) for point in line.recall],
            }
            for line in lines
        ],
    }


def _recall_json(point: RecallPoint) -> dict[str, object]:
    keep = {"asked", "recalled", "interval", "note"}
    by_seed = [{"share": score.share, **score.model_dump(mode="json", include=keep)} for score in point.by_seed]
    return {"length": point.length, "distance": point.distance, "median": point.median, "by_seed": by_seed}


def _title(config: ExperimentConfig, seeds: int) -> str:
    return (
        f"Trained at {config.length} {unit_of(config)}, tested to {config.eval_lengths[-1]:,}: {_count(seeds, 'seed')}"
    )


def _lead(lines: Sequence[Line], config: ExperimentConfig) -> list[str]:
    """For who sees such a page for the first time."""
    unit = unit_of(config)
    said = [
        f"Each model learned to predict text in windows of {config.length:,} {unit}, and then read windows of up to "
        f"{config.eval_lengths[-1]:,}. The models differ in how they know where a {unit[:-1]} stands, their position "
        "method; text, its order, and the weights they began with are the same."
    ]
    variants = [line.title for line in lines if ":" in line.name]
    if variants:
        said.append(f"Used in another way, and not trained again: {'; '.join(variants)}.")
    if lines[0].losses:
        said.append(
            "Bits per byte are what a byte of text costs a model that predicts it: lower is better, and guessing "
            "bytes blindly costs 8. With a method that extrapolates, long windows cost no more than those of the "
            "trained length."
        )
    if lines[0].recall:
        said.append(
            "Recall is another question: whether a value that was told far back is found again when it is asked for."
        )
    seen = config.steps * config.accumulate * config.batch_size * config.length
    said.append(
        f"Each saw {seen:,} {unit} at one learning rate, tuned for none of them. Which of them is ahead at the trained "
        "length may change with more training; what this page compares is what becomes of each beyond that length."
    )
    return said


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _facts(runs: Sequence[Run]) -> list[tuple[str, str]]:
    config, start = runs[0].config, runs[0].start
    corpus = start["corpus"]
    tokens = config.steps * config.accumulate * config.batch_size * config.length
    facts = [
        ("corpus", f"{corpus['source']}; {corpus['split']}; sha256 {corpus['fingerprint'][:12]}"),
        ("tokens", f"{corpus['tokens']}; {tokens:,} seen in training"),
        ("model", f"{_count(config.layers, 'layer')}, {_count(config.heads, 'head')}, width {config.width}"),
        ("recall in training", f"in {config.recall_share:.0%} of the sequences"),
        ("seeds", ", ".join(str(run.config.seed) for run in runs)),
        ("machine", machine_words(runs[0].sessions)),
    ]
    changed = machine_differences(runs)
    if changed:
        facts.append(("runs elsewhere", "; ".join(changed)))
    return facts


def _kept(runs: Sequence[Run], kind: str = "") -> dict[str, Run]:
    """Runs by the names of the files that a report keeps of them."""
    return {f"run-{kind}seed-{run.config.seed}.json": run for run in runs}


def _config_of(name: str) -> str:
    return f"config-{name.removeprefix('run-').removesuffix('.json')}.yaml"


def _command(runs: Sequence[Run], shorter: Sequence[Run], looks: Sequence[Look]) -> str:
    """What repeats the runs and the report, in the report's own folder, which may be all that is left of them."""
    kept, short = list(_kept(runs)), list(_kept(shorter, "shorter-"))
    roots = {name: f"again/{name.removeprefix('run-').removesuffix('.json')}" for name in [*kept, *short]}
    commands = [
        shlex.join(["alibi", "extrapolate", "--config", _config_of(name), "--output", root])
        for name, root in roots.items()
    ]
    commands += [look_command(look, f"again/seed-{look.seed}") for look in looks]

    def report(names: Mapping[str, str]) -> str:
        beside = [word for name in short for word in ("--shorter", names[name])]
        return shlex.join(["alibi", "report", *(names[name] for name in kept), *beside, "--output", "again"])

    whole = {name: name for name in roots}
    return "\n".join([*commands, report(roots), "# or the report alone, of the scores kept beside it:", report(whole)])


def _markdown(
    title: str, lead: Sequence[str], facts: Sequence[tuple[str, str]], tables: Sequence[Table],
    pictures: Mapping[str, Picture], command: str,
) -> str:  # fmt: skip
    """Tables and links to the figures, readable where Markdown is."""
    parts = [f"# {title}\n", *(f"{text}\n" for text in lead), "".join(f"- {name}: {text}\n" for name, text in facts)]
    for table in tables:
        parts.append(f"## {table.title}\n")
        if table.name in pictures:
            parts.append(f"![{pictures[table.name].words}](figures/{table.name}.png)\n")
        if table.rows:
            parts.append(markdown(table.header, table.rows))
        parts.append(f"{table.note}\n")
    parts.append(f"## Repeat it\n\n```bash\n{command}\n```\n")
    return "\n".join(parts)
