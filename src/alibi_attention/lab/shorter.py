"""Models trained at a shorter length, read at the length of those they are reported beside: train short, test long."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from alibi_attention.lab.complete import Run, read_runs
from alibi_attention.lab.config import ExperimentConfig
from alibi_attention.lab.errors import LabError
from alibi_attention.lab.pairs import Difference, paired_difference
from alibi_attention.lab.positions import position_methods
from alibi_attention.lab.report_losses import difference_cell
from alibi_attention.lab.report_table import Table
from alibi_attention.lab.scores import LossProtocol, Score
from alibi_attention.lab.summary import REFERENCE, machine_differences
from alibi_attention.lab.tables import NONE

# Models of one text and size, given one length and another; a step has as many tokens of either, and what is evaluated
# besides is as may be. That the same bytes were scored is looked at in the scores themselves; that they were read by
# the same stride is not seen there.
_FREE = frozenset(
    {
        "length", "batch_size", "accumulate", "checkpoint_every", "seed", "device", "devices",
        "methods", "variants", "eval_lengths", "eval_tokens", "protocols", "recall_trials",
        "text", "held_out_text", "dataset", "dataset_config",
    }
)  # fmt: skip

_PROTOCOLS: tuple[tuple[LossProtocol, str], ...] = (
    ("windows", "windows that do not overlap"),
    ("sliding", "a sliding window"),
)


class Row(NamedTuple):
    """One method at the longer length, by one protocol.

    Attributes:
        method: its name.
        longer, shorter: bits per byte trained at that length and at the shorter one, means over seeds.
        change: trained short less trained long, the same method.
        claim: ALiBi trained short less this method trained long, what the paper's title speaks of.
    """

    method: str
    longer: float | None
    shorter: float | None
    change: Difference | None
    claim: Difference | None


def read_shorter(paths: Sequence[Path], runs: Sequence[Run]) -> list[Run]:
    """Complete runs at a shorter length, in the order of their seeds.

    Args:
        paths: as `read_runs` takes them.
        runs: those they are reported beside.

    Raises:
        LabError: as `read_runs`; or for runs of other seeds, another text or model, or no shorter length, or that were
            not evaluated at the length of ``runs`` over the same bytes.
    """
    try:
        shorter = read_runs(paths)
    except LabError as error:
        raise error.of("shorter") from None
    config, short = runs[0].config, shorter[0].config
    if short.length >= config.length:
        raise _refuse(f"below {config.length}, that of the runs beside them", f"length {short.length} in {paths[0]}",
                      "give the runs trained at the longer length first, and these with --shorter")  # fmt: skip
    if config.length not in config.eval_lengths:
        lengths = ",".join(f"{length:,}" for length in config.eval_lengths)
        raise _refuse(f"runs beside them that were evaluated at their own length, {config.length}", lengths,
                      "evaluate those there first")  # fmt: skip
    for name in ExperimentConfig.model_fields:
        if name not in _FREE and getattr(short, name) != getattr(config, name):
            got = f"{name} {getattr(short, name)} in {shorter[0].root}, {getattr(config, name)} in {runs[0].root}"
            raise _refuse("runs that differ in length alone, and in how many sequences a step has", got,
                          "train and evaluate them alike")  # fmt: skip
    tokens, less = (c.batch_size * c.accumulate * c.length for c in (config, short))
    if tokens != less:
        raise _refuse(f"{tokens:,} tokens a step, as in {runs[0].root}", f"{less:,} in {shorter[0].root}",
                      "train them with as many: twice the sequences at half the length")  # fmt: skip
    if shorter[0].start["corpus"]["fingerprint"] != runs[0].start["corpus"]["fingerprint"]:
        raise _refuse("runs on one corpus", f"different text in {runs[0].root} and {shorter[0].root}",
                      "train them on the same")  # fmt: skip
    seeds, theirs = ([run.config.seed for run in some] for some in (runs, shorter))
    if seeds != theirs:
        raise _refuse(f"the seeds of the runs beside them, {seeds}", f"{theirs}", "give one run for each seed")
    if not _shared(runs):
        raise _refuse("runs beside them by windows or sliding", ", ".join(config.protocols), "evaluate those so first")
    again = _evaluation(shorter[0].root, config, _shared(runs))
    if not _shared(runs, shorter):
        raise _refuse("some protocol of the runs beside them", ", ".join(short.protocols), again)
    for protocol in _shared(runs, shorter):
        for some, other in zip(runs, shorter, strict=True):
            one, two = _scores(some, protocol, config.length), _scores(other, protocol, config.length)
            if {s.document_bytes for s in one.values()} != {s.document_bytes for s in two.values()}:
                got = f"{f'others by {protocol}' if two else 'none'} in {other.root}"
                raise _refuse(f"the same bytes scored at {config.length} as in {some.root}", got, again)
    return shorter


def _evaluation(root: Path, config: ExperimentConfig, protocols: Sequence[str]) -> str:
    """What evaluates a run as those of ``config`` were."""
    # A file of scores has no weights: its run is meant.
    words = ["alibi", "evaluate", "RUN" if root.is_file() else str(root), "--variants", "", "--protocols"]
    words += [",".join(protocols), "--eval-lengths", ",".join(map(str, config.eval_lengths))]
    words += ["--eval-tokens", str(config.eval_tokens), "--output", "NEW"]
    return f"{shlex.join(words)}, for each"


def _refuse(expected: str, got: str, remedy: str) -> LabError:
    return LabError("shorter", expected=expected, got=got, remedy=remedy)


def _shared(*experiments: Sequence[Run]) -> list[LossProtocol]:
    return [name for name, _ in _PROTOCOLS if all(name in runs[0].config.protocols for runs in experiments)]


def _scores(run: Run, protocol: LossProtocol, length: int) -> dict[str, Score]:
    """Of every method that could be read there, by its name."""
    found = {}
    for result in run.results:
        for score in getattr(result.evaluations[0], protocol):
            if score.length == length and score.bits_per_byte is not None:
                found[result.method] = score
    return found


def compare(runs: Sequence[Run], shorter: Sequence[Run]) -> dict[LossProtocol, list[Row]]:
    """Each method of either, by each protocol that both have."""
    length = runs[0].config.length
    methods = list(dict.fromkeys([*runs[0].config.methods, *shorter[0].config.methods]))
    compared = {}
    for protocol in _shared(runs, shorter):
        long, short = ([_scores(run, protocol, length) for run in some] for some in (runs, shorter))
        alibi = _of(short, REFERENCE)
        rows = []
        for method in methods:
            ours, theirs = _of(long, method), _of(short, method)
            change = paired_difference(theirs, ours) if ours and theirs else None
            claim = paired_difference(alibi, ours) if ours and alibi else None
            rows.append(Row(method, _mean(ours), _mean(theirs), change, claim))
        compared[protocol] = rows
    return compared


def _of(seeds: Sequence[Mapping[str, Score]], method: str) -> list[Score]:
    """One score a seed, or none at all."""
    return [scores[method] for scores in seeds] if all(method in scores for scores in seeds) else []


def _mean(scores: Sequence[Score]) -> float | None:
    return fmean(score.bits_per_byte for score in scores if score.bits_per_byte is not None) if scores else None


def shorter_tables(runs: Sequence[Run], shorter: Sequence[Run], unit: str) -> list[Table]:
    """One for each protocol."""
    config, short, seeds = runs[0].config, shorter[0].config, len(runs)
    long, less = f"{config.length:,}", f"{short.length:,}"
    seen = [f"{c.steps * c.accumulate * c.batch_size * c.length:,}" for c in (config, short)]
    alibi = position_methods()[REFERENCE].title
    words = dict(_PROTOCOLS)
    tables = []
    for protocol, rows in compare(runs, shorter).items():
        cells = [
            [
                position_methods()[row.method].title,
                *(NONE if bits is None else f"{bits:.3f}" for bits in (row.longer, row.shorter)),
                difference_cell(row.change, seeds),
                difference_cell(row.claim, seeds),
            ]
            for row in rows
        ]
        header = [
            f"bits per byte in windows of {long} {unit}",
            f"trained at {long}",
            f"trained at {less}",
            f"trained at {less}, less at {long}",
            f"{alibi} trained at {less}, less this method at {long}",
        ]
        note = (
            f"All read the same text in windows of {long} {unit}, by {words[protocol]}: those trained at {less}, which "
            f"saw {seen[1]} {unit} in training, and those trained at {long}, which saw {seen[0]}. Differences are "
            "paired by document and by seed, which both have their initial weights from, with the 95% "
            f"interval{_of_seeds(seeds)}; below 0 training short is the better. The last column is the question of the "
            f"paper: can {alibi}, trained short, take the place of another method that was trained at the length it is "
            f"used at? {NONE}: not evaluated, or no such length for the method.{_made_elsewhere(runs, shorter)}"
        )
        title = f"Trained at {less}, tested at {long}: by {words[protocol]}"
        tables.append(Table(f"shorter-{protocol}", title, note, header, cells))
    return tables


def _of_seeds(seeds: int) -> str:
    if seeds == 1:
        return " over documents alone, for there is one seed, and another may differ by more"
    return ", and behind it least and most over seeds"


def _made_elsewhere(runs: Sequence[Run], shorter: Sequence[Run]) -> str:
    found = machine_differences([runs[0], *shorter])
    return f" Where those trained short were made differs: {'; '.join(found)}." if found else ""


def shorter_json(runs: Sequence[Run], shorter: Sequence[Run]) -> dict[str, Any]:
    """What the tables are made of, unrounded."""
    return {
        "config": {**shorter[0].config.model_dump(mode="json"), "seed": [run.config.seed for run in shorter]},
        "environments": [run.start["environment"] for run in shorter],
        "sessions": [run.sessions for run in shorter],
        "at": runs[0].config.length,
        "methods": {
            protocol: [
                {
                    **row._asdict(),
                    "change": row.change and asdict(row.change),
                    "claim": row.claim and asdict(row.claim),
                }
                for row in rows
            ]
            for protocol, rows in compare(runs, shorter).items()
        },
    }
