"""The tables of a report, in their order."""

from __future__ import annotations

from collections.abc import Sequence

from alibi_attention.lab.config import ExperimentConfig
from alibi_attention.lab.report_losses import loss_tables
from alibi_attention.lab.report_recall import recall_tables
from alibi_attention.lab.report_table import Table
from alibi_attention.lab.scores import RECALLED, RecallVerdict
from alibi_attention.lab.summary import Line
from alibi_attention.lab.tables import NONE, by_loss
from alibi_attention.lab.verdicts import SLACK


def unit_of(config: ExperimentConfig) -> str:
    """What lengths are counted in."""
    return "bytes" if config.tokenizer == "bytes" else "tokens"


def report_tables(lines: Sequence[Line], config: ExperimentConfig) -> list[Table]:
    """Verdicts first, then tables for each protocol, then what each method costs."""
    unit = unit_of(config)
    tables = [_verdicts(lines, config, unit)]
    tables += loss_tables(lines, config.length, unit)
    if lines[0].recall:
        tables += recall_tables(lines, config.length, unit)
    tables.append(_costs(lines))
    return tables


def _verdicts(lines: Sequence[Line], config: ExperimentConfig, unit: str) -> Table:
    several = len(lines[0].seeds) > 1
    judged = {line.usable_by_perplexity.protocol for line in lines if line.usable_by_perplexity is not None}
    header = [f"length ({unit})", f"by {by_loss(next(iter(judged), None))}"]
    header += ["by recall, median seed", "by recall, each seed"] if several else ["by recall"]
    rows = []
    for line in lines:
        loss = line.usable_by_perplexity
        cells = [line.title, NONE if loss is None else loss.words, _words(line.usable_by_recall)]
        if several:
            cells.append("; ".join(map(_words, line.recall_by_seed)))
        rows.append(cells)
    note = (
        "By perplexity: the longest length up to which the change in bits per byte since the trained length, with the "
        f"upper end of its 95% interval over documents{' and seeds' if several else ''}, stays within {SLACK:.0%}; not "
        "learned: no better there than the tokens' frequencies. By recall: the longest length up to which surely "
        f"{RECALLED:.0%} of the values are recalled from every distance tested in it, by the lower end of the 95% "
        "interval, and the farthest of these distances; not learned: not even from the nearest "
        f"distance inside the trained length, so that nothing is said of distance. {NONE}: not measured. A flat "
        "perplexity alone does not show that the context is used."
    )
    if lines[0].recall and config.recall_share == 0.0:
        note += " These models were never shown the task of recall (recall share 0)."
    return Table("verdicts", "Usable length", note, header, rows)


def _words(verdict: RecallVerdict | None) -> str:
    return NONE if verdict is None else verdict.words


def _costs(lines: Sequence[Line]) -> Table:
    header = ["method", "parameters", "of positions", "training (s)", "evaluation (s)"]
    rows = []
    for line in lines:
        if ":" not in line.name:
            numbers = [f"{line.parameters:,}", f"{line.position_parameters:,}"]
            rows.append([line.title, *numbers, f"{line.train_seconds:,.0f}", f"{line.eval_seconds:,.0f}"])
    note = (
        "Means over seeds; evaluation includes the method's variants. Seconds are wall time of these runs, which may "
        "have shared the machine, with a different kernel for each method: no benchmark."
    )
    return Table("costs", "Size and time", note, header, rows)
