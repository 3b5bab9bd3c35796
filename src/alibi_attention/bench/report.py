"""A report in Markdown, with figures, from files of results; nothing is measured again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path

from alibi_attention.bench.compare import against_us, refusals
from alibi_attention.bench.errors import BenchError
from alibi_attention.bench.gpu.markdown import gpu_section, of_a_gpu
from alibi_attention.bench.page import complete, fill, latest, switches, target_table
from alibi_attention.bench.results import Results, TrialResult, read_results
from alibi_attention.bench.tables import (
    Table,
    denormal_table,
    error_table,
    horizon_table,
    limit_table,
    mean_table,
    memory_table,
    ratio_table,
    time_table,
)
from alibi_attention.lab.files import write_text

LOSSES = "Where we are slower / targets missed"


def write_report(files: Sequence[Path], folder: Path) -> list[Path]:
    """Write report.md and figures for all files into a new folder; ratios never reach across files.

    Returns:
        What was written.

    Raises:
        BenchError: for a file that holds no results, or a folder that exists with something in it.
    """
    from alibi_attention.bench.figures import save_figures

    found = [(path, read_results(path)) for path in files]
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise BenchError(
            "output", expected="a new or empty folder", got=f"{folder}, which exists", remedy="choose another"
        )
    sections, written = ["# Benchmarks\n", targets_text(found)], []
    try:
        for index, (path, results) in enumerate(found):
            # Files of one name from several folders must not write over each other's figures.
            stem = path.stem if len(found) == 1 else f"{index + 1}-{path.stem}"
            figures = save_figures(results, folder, stem)
            sections.append(section(path.name, results, [each for each in figures if each.suffix == ".png"]))
            written += figures
        write_text(folder / "report.md", "\n".join(sections))
    except OSError as error:
        got = f"{folder} ({error.strerror})"
        raise BenchError("output", expected="a folder that can be written", got=got, remedy="choose another") from None
    return [folder / "report.md", *written]


def fill_page(files: Sequence[Path], page: Path) -> tuple[list[Path], dict[Path, list[str]]]:
    """Fill the tables that a page marks, and draw the figures of all files together beside it, where it shows them.

    Returns:
        What was written, and the files that a switch keeps out of most tables, with the names of what was set.

    Raises:
        BenchError: for a file that holds no results, or a page that marks no tables.
    """
    from alibi_attention.bench.figures import draw_speedup, save_figure

    results = [read_results(path) for path in files]
    fill(page, results)
    apart = {path: list(found) for path, each in zip(files, results, strict=True) if (found := switches(each))}
    figure = page.parent / "figures" / "speedup.png"
    if f"figures/{figure.name}" not in page.read_text(encoding="utf-8"):
        return [page], apart
    plain = [each for each in results if not switches(each)]
    drawn = draw_speedup(replace(plain[-1], trials=latest(plain))) if plain else None
    if drawn is None:
        return [page], apart
    save_figure(drawn, figure)
    return [page, figure], apart


def targets_text(found: Sequence[tuple[Path, Results]]) -> str:
    """Every target of all files with its verdict, in one table: by the newest file that can judge it.

    Those of a GPU stand with their file: which GPU it was belongs to the verdict.
    """
    table = target_table(complete([results for _, results in found if not of_a_gpu(results)]))
    return f"## Targets\n\n{table.markdown()}" if table.rows else ""


def section(name: str, results: Results, figures: Sequence[Path] = ()) -> str:
    """One file of results in Markdown."""
    if of_a_gpu(results):
        return gpu_section(name, results, LOSSES)
    parts = [f"## {name}\n", machine_text(results), f"### {LOSSES}\n", losses_text(results)]
    parts += [f"![{figure.stem}]({figure.name})\n" for figure in figures]
    for case, trials in by_case(results):
        parts.append(f"### {case}\n\n{_described(trials[0])}\n")
        parts += [f"{table.title}:\n\n{table.markdown()}" for table in case_tables(trials)]
        notes = _notes(trials)
        parts += ["".join(f"- {note}\n" for note in notes)] * bool(notes)
    missing = refusals(results)
    if missing:
        parts.append("### Not measured\n\n" + "".join(f"- {line}\n" for line in missing))
    return "\n".join(parts)


def by_case(results: Results) -> list[tuple[str, list[TrialResult]]]:
    """Sizes by case, in the order they were measured."""
    return [(case, list(trials)) for case, trials in groupby(results.trials, key=lambda trial: trial.case)]


def case_tables(trials: Sequence[TrialResult]) -> list[Table]:
    """Every table of a case that has rows."""
    tables = [
        ratio_table(trials, every_peer=True),
        mean_table(trials),
        limit_table(trials),
        time_table(trials),
        horizon_table(trials),
        denormal_table(trials),
        memory_table(trials),
        error_table(trials),
    ]
    return [table for table in tables if table.rows]


def machine_text(results: Results) -> str:
    """Where, when, with what, and how undisturbed."""
    here, settings = results.machine, results.settings
    isa = here["instruction_set"]
    switches = ", ".join(f"{name}={value}" for name, value in here["switches"].items()) or "none"
    lines = [
        f"{here['processor']}{', virtual' if here['virtual'] else ''}; {here['threads']} of {here['cores']} "
        f"processors; {here['memory'] / 2**30:.0f} GiB, {here['memory_available'] / 2**30:.0f} of them free; "
        f"{here['system']}",
        f"alibi-attention {here['alibi_attention']} at commit {here['commit'] or 'unknown'} "
        f"({isa['alibi_attention'] or 'no compiled library'}); torch {here['torch']} ({isa['torch']}); "
        f"Python {here['python']}; switches: {switches}",
        f"{here['date']}, took {results.seconds / 60:.2g} minutes; load when it began: {here['load']}",
        f"{settings['repeats']} rounds at most, samples of at least {settings['least']} s; inputs standard normal, "
        "batch 1, causal, standard slopes",
    ]
    if results.status != "complete":
        lines.insert(0, "**Incomplete: the run was stopped. What follows was measured until then.**")
    if settings.get("quick"):
        lines.insert(0, "**A quick look: few rounds of small sizes. Good for seeing that it works, not for claims.**")
    if (here["load"] or 0.0) > 0.5 * here["cores"]:
        lines.insert(0, "**The machine was busy with something else when this began: expect wide ranges.**")
    return "".join(f"- {line}\n" for line in lines)


def losses_text(results: Results) -> str:
    """Everything against us, in words; what is empty is said to be."""
    parts = []
    for heading, lines in against_us(results):
        parts.append(f"{heading}:" + (" none." if not lines else "") + "\n")
        if lines:
            parts.append("".join(f"- {line}\n" for line in lines))
    return "\n".join(parts)


def _described(trial: TrialResult) -> str:
    tolerance = "rounding level" if trial.tolerance is None else f"{trial.tolerance:g}"
    title = trial.title[0].upper() + trial.title[1:]
    return f"{title}. {trial.heads} heads, {trial.dtype}, tolerance {tolerance}. * is what a call takes unasked."


def _notes(trials: Sequence[TrialResult]) -> list[str]:
    """What else to know about the sizes of a case."""
    notes = [f"{trial.keys} tokens: {trial.note}" for trial in trials if trial.note]
    notes += [
        f"{trial.keys} tokens: one float32 matrix of all scores would take "
        f"{4 * trial.heads * trial.queries * trial.keys / 2**30:,.0f} GiB"
        for trial in trials
        if 4 * trial.heads * trial.queries * trial.keys > 2**34
    ]
    notes += [f"{trial.keys} tokens: stopped before its last round" for trial in trials if not trial.complete]
    for trial in trials:
        for entry in trial.entries:
            notes += [f"{entry.name} at D={trial.head_dim}, {trial.keys} tokens: {entry.note}"] * bool(entry.note)
    inexact = dict.fromkeys(entry.name for trial in trials for entry in trial.entries if not entry.exact)
    if inexact:
        notes.append(f"inexact at long range, for scores hold m·j of the absolute position: {', '.join(inexact)}")
    return notes
