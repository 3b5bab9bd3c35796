"""A file that `benchmarks/gpu.py` wrote, as a section of a report in Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from alibi_attention.bench.case import short
from alibi_attention.bench.compare import against_us, refusals
from alibi_attention.bench.gpu.further import commands, has_failed, left_out, not_reached_lines
from alibi_attention.bench.gpu.verdicts import has_times, verdict_table, verdicts
from alibi_attention.bench.results import Results, TrialResult
from alibi_attention.bench.tables import Table, error_table, grad_error_table, ratio_table, time_table

# What nvidia-smi calls them, and what people do; the driver's version comes first.
_DRIVER = {
    "driver_version": "driver", "clocks.sm": "clock", "clocks.max.sm": "at most", "power.limit": "power limit",
    "temperature.gpu": "temperature in °C", "persistence_mode": "persistence mode", "mig.mode.current": "MIG",
}  # fmt: skip


def of_a_gpu(results: Results) -> bool:
    """Whether the file is one of the command for a GPU."""
    return "device" in results.settings


def gpu_section(name: str, results: Results, losses_heading: str) -> str:
    """One file of results in Markdown."""
    parts = [f"## {name}\n", _bullets(machine_lines(results))]
    targets = verdict_table(results)
    if targets.rows:
        parts.append(f"### Targets\n\nTime of the peer over ours, in the same rounds.\n\n{_markdown(targets)}")
    parts.append(f"### {losses_heading}\n\n{_losses(results)}")
    parts.append(f"### Checks of the kernels\n\n{_checks(results.suite)}")
    for case, trials in _by_case(results).items():
        parts.append(f"### {case}\n\n{_described(trials[0])}\n")
        parts += [f"{table.title}:\n\n{_markdown(table)}" for table in _tables(trials)]
        notes = list(_notes(trials))
        parts += [_bullets(notes)] if notes else []
    lists = {"Peers not measured": refusals(results), "Sizes not reached": not_reached_lines(results)}
    parts += [f"### {heading}\n\n{_bullets(lines)}" for heading, lines in lists.items() if lines]
    further = list(commands(results))
    if further:
        parts.append("### To go on\n\nFrom the top of the checkout:\n\n```bash\n" + "\n".join(further) + "\n```\n")
    return "\n".join(parts)


def machine_lines(results: Results) -> list[str]:
    """Which GPU, driver and compilers, which commit, when, and how it was measured."""
    here, settings = results.machine, results.settings
    switches = ", ".join(f"{name}={value}" for name, value in here["switches"].items()) or "none"
    load = "not known" if here["load"] is None else f"{here['load']:g}"
    lines = [
        *_gpu_lines(here.get("gpu")),
        f"alibi-attention {here['alibi_attention']} at commit {here['commit'] or 'unknown'}; torch {here['torch']}; "
        f"Python {here['python']}; switches: {switches}",
        f"host: {here['processor']}, {here['cores']} processors, {here['memory'] / 2**30:.0f} GiB; {here['system']}; "
        f"load when it began: {load}",
        f"{here['date']}, took {results.seconds / 60:.2g} minutes",
        f"{settings['rounds']} rounds, {settings['long_rounds']} where one takes over {settings['long']:g} s; samples "
        f"of at least {settings['least']:g} s; inputs standard normal, causal, standard slopes",
    ]
    if results.status != "complete":
        lines.insert(0, "**Incomplete: time was up, or the run was stopped. What follows was found until then.**")
    if settings["device"] == "cpu":
        lines.insert(0, "**Not measured on a GPU: the processor stood in for one. No claim follows from it.**")
    return lines


def _gpu_lines(gpu: dict[str, Any] | None) -> Iterator[str]:
    if gpu is None:
        yield "GPU: not known, for the process that measures, and asks it, was never begun"
        return
    if gpu.get("last words"):
        yield f"GPU: {gpu['name']}; last words: {gpu['last words'].strip().splitlines()[-1]}"
        return
    about = [str(gpu["name"])]
    if gpu.get("memory"):
        about += [f"{gpu['memory'] / 2**30:.0f} GiB", f"compute capability {gpu['capability']}"]
        about += [f"{gpu['processors']} multiprocessors", f"the first of {gpu['devices']}" * (gpu["devices"] > 1)]
    yield "GPU: " + ", ".join(filter(None, about))
    if gpu.get("driver"):
        yield _driver(gpu["driver"])
    whose = "Triton's own" if gpu.get("ptxas_from") == "triton" else f"named by {gpu.get('ptxas_from')}"
    versions = {"CUDA": gpu.get("cuda"), "HIP": gpu.get("hip"), "cuDNN": gpu.get("cudnn")}
    told = [f"Triton {gpu.get('triton') or 'unknown'}", f"ptxas {gpu.get('ptxas') or 'unknown'} ({whose})"]
    yield ", ".join([*told, *(f"{name} {version}" for name, version in versions.items() if version)])


def _driver(text: str) -> str:
    """Of the first GPU: "driver 570.1, clock 345 MHz, ..." from "driver_version,clocks.sm,...: 570.1, 345 MHz, ..."."""
    names, _, values = text.splitlines()[0].partition(": ")
    pairs = list(zip(names.split(","), values.split(", "), strict=False))
    return ", ".join(f"{_DRIVER.get(name, name)} {value}" for name, value in pairs) + " (when the first process began)"


def _losses(results: Results) -> str:
    untested = sum(each.ratio is None for each in verdicts(results))
    parts = []
    for heading, lines in against_us(results):
        if heading.startswith("Backends on request"):
            # One backend of ours runs there.
            continue
        if heading == "Targets that could not be tested" and untested:
            parts.append(f"{heading}: {untested}, with the reasons in the table above.\n")
        else:
            parts.append(f"{heading}:\n\n{_bullets(lines)}" if lines else f"{heading}: none.\n")
    return "\n".join(parts)


def _checks(suite: dict[str, Any]) -> str:
    if suite.get("reason"):
        return f"Not run: {suite['reason']}.\n"
    parts = [f"Broken off: {_literal(suite['fault'])}.\n"] if suite.get("fault") else []
    if "passed" in suite:
        others = suite["left_out"]
        again = f"; processes that fell and were replaced: {suite['restarts']}" if suite["restarts"] else ""
        parts.append(
            f"{suite['passed']} passed, {len(suite['failed'])} failed, {len(others)} left out, in "
            f"{suite['seconds']:.0f} s{again}.\n"
        )
        if suite["failed"]:
            failed = [f"**{name}**: {reason}" for name, reason in suite["failed"].items()]
            parts.append(f"Failed (tracebacks are in the file, under `suite`):\n\n{_bullets(failed)}")
        if others:
            parts.append(f"Left out, so neither right nor wrong:\n\n{_bullets(list(left_out(suite)))}")
    return "\n".join(parts) or "Not known: the run was stopped before they ended.\n"


def _by_case(results: Results) -> dict[str, list[TrialResult]]:
    """Sizes with anything to tell; they are measured the first length of every case first, and read case by case."""
    found: dict[str, list[TrialResult]] = {}
    for trial in results.trials:
        if has_times(trial) or has_failed(trial):
            found.setdefault(trial.case, []).append(trial)
    return {case: sorted(trials, key=lambda each: (each.head_dim, each.keys)) for case, trials in found.items()}


def _tables(trials: Sequence[TrialResult]) -> list[Table]:
    kept = [
        [str(trial.head_dim), short(trial.keys), f"{trial.kept_share:.1%}"]
        for trial in trials
        if trial.kept_share is not None
    ]
    share = Table("Tiles that certify keeps of those visible", ["D", "length", "kept"], kept, labels=2)
    tables = [
        ratio_table(trials, every_peer=True), time_table(trials), share, error_table(trials), grad_error_table(trials)
    ]  # fmt: skip
    return [table for table in tables if table.rows]


def _described(trial: TrialResult) -> str:
    tolerance = "rounding level" if trial.tolerance is None else f"{trial.tolerance:g}"
    title = trial.title[0].upper() + trial.title[1:]
    return f"{title}. {trial.heads} heads of all batch elements, {trial.dtype}, tolerance {tolerance}."


def _notes(trials: Sequence[TrialResult]) -> Iterator[str]:
    for trial in trials:
        where = f"D={trial.head_dim}, {short(trial.keys)}"
        if has_failed(trial):
            yield f"{where}: {trial.note}"
        if not trial.complete:
            yield f"{where}: stopped before its last round"


def _bullets(lines: Sequence[str]) -> str:
    return "".join(f"- {_literal(line)}\n" for line in lines)


def _markdown(table: Table) -> str:
    rows = [[_literal(cell).replace("|", "\\|") for cell in row] for row in table.rows]
    return Table(table.title, table.header, rows, table.labels).markdown()


def _literal(text: str) -> str:
    """What a compiler or a driver said is no markup: <lambda> would vanish from the page, a second line end a list."""
    return " ".join(text.split()).replace("<", "&lt;")
