"""Runs as a page: one self-contained HTML file, the same as Markdown, and every figure as SVG and PNG."""

from __future__ import annotations

import html
import io
import json
import re
import shlex
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure

from alibi_attention.lab.config import ExperimentConfig
from alibi_attention.lab.config_file import write_config_file
from alibi_attention.lab.errors import LabError
from alibi_attention.lab.figures import save_figure
from alibi_attention.lab.files import write_json, write_text
from alibi_attention.lab.report_figures import draw_report_figures
from alibi_attention.lab.report_table import Table
from alibi_attention.lab.report_tables import report_tables
from alibi_attention.lab.summary import Line, RecallPoint, Run, machine_differences, read_runs, summarise
from alibi_attention.lab.tables import markdown

_STYLE = """
:root { color-scheme: light dark; --text: #1a1a1a; --soft: #5a5a5a; --line: #d8d8d8; --page: #ffffff; }
@media (prefers-color-scheme: dark) {
  :root { --text: #e8e8e8; --soft: #a8a8a8; --line: #3c3c3c; --page: #161616; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 60rem; padding: 1rem; background: var(--page); color: var(--text);
  font: 16px/1.5 system-ui, sans-serif; }
h1 { line-height: 1.2; } h2 { margin-top: 2.5rem; line-height: 1.25; }
p.note, figcaption, dt { color: var(--soft); }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 0.9rem; }
th, td { padding: 0.3rem 0.7rem; border-bottom: 1px solid var(--line); text-align: right; vertical-align: top; }
th:first-child { text-align: left; white-space: nowrap; position: sticky; left: 0; background: var(--page); }
figure { margin: 1.5rem 0; } figure svg { width: 100%; height: auto; max-width: 56rem; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 0.2rem 1rem; }
dd { margin: 0; overflow-wrap: anywhere; }
pre { overflow-x: auto; padding: 0.7rem; border: 1px solid var(--line); }
@media (max-width: 44rem) {
  dl { grid-template-columns: 1fr; } dt { margin-top: 0.4rem; }
  th:first-child { white-space: normal; min-width: 7.5rem; max-width: 8.5rem; }
  th, td { padding: 0.3rem 0.4rem; }
  figure { overflow-x: auto; } figure svg { min-width: 44rem; }
}
@media print {
  :root { --text: #000000; --soft: #333333; --line: #999999; --page: #ffffff; }
  body { max-width: none; font-size: 10pt; } h2 { break-after: avoid; }
  figure, tr { break-inside: avoid; } .wide { overflow: visible; } table { font-size: 7.5pt; }
  th, td { padding: 0.15rem 0.3rem; } th:first-child { white-space: normal; }
}
"""


def write_report(roots: Sequence[Path], folder: Path) -> Path:
    """Report complete runs of one experiment that differ in their seed alone.

    Args:
        roots: run folders.
        folder: gets ``report.html``, ``report.md``, ``summary.json``, ``figures/``, and ``config-seed-N.yaml`` for each
            run, to repeat it with.

    Returns:
        The path of the page.

    Raises:
        LabError: for runs that are not complete or do not belong together.
    """
    runs = read_runs(roots)
    lines = summarise(runs)
    config = runs[0].config
    if config.objective != "next":
        remedy = "read their table.md, or give each to alibi versus as --encoder"
        got = f"masked prediction in {roots[0]}"
        raise LabError("runs", expected="runs of next-token prediction, whose protocols the page explains", got=got,
                       remedy=remedy)  # fmt: skip
    unit = "bytes" if config.tokenizer == "bytes" else "tokens"
    with mpl.rc_context({"font.size": 11.0}):
        figures = draw_report_figures(lines, config.length, unit)
        for name, figure in figures.items():
            save_figure(figure, [folder / "figures" / f"{name}.{suffix}" for suffix in ("png", "svg")])
        inline = {name: inline_svg(figure, name) for name, figure in figures.items()}
    tables = report_tables(lines, config)
    for run in runs:
        write_config_file(folder / _config_name(run), run.config)
    write_json(folder / "summary.json", summary_json(runs, lines))
    write_text(folder / "report.md", markdown_report(runs, tables, list(figures)))
    page = folder / "report.html"
    write_text(page, html_report(runs, tables, inline))
    return page


def summary_json(runs: Sequence[Run], lines: Sequence[Line]) -> dict[str, object]:
    """What the tables are made of, unrounded."""
    return {
        "config": {**runs[0].config.model_dump(mode="json"), "seed": [run.config.seed for run in runs]},
        "corpus": runs[0].start["corpus"],
        "environments": [run.start["environment"] for run in runs],
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


def inline_svg(figure: Figure, name: str) -> str:
    """A figure as an element of a page: its black is the page's text, its names are its own."""
    text = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": "alibi", "svg.fonttype": "none"}):
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r' (?:width|height)="[\d.]+pt"', "", svg, count=2)
    svg = svg.replace("#000000", "currentColor").replace("<svg ", f'<svg role="img" aria-label="{name}" ', 1)
    svg = svg.replace("</defs>", "</defs><style>text { fill: currentColor; }</style>", 1)
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    return re.sub(r'(url\(#|href="#)', rf"\g<1>{name}-", svg)


def _title(config: ExperimentConfig, seeds: int) -> str:
    unit = "bytes" if config.tokenizer == "bytes" else "tokens"
    return f"Trained at {config.length} {unit}, tested to {config.eval_lengths[-1]:,}: {_count(seeds, 'seed')}"


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _facts(runs: Sequence[Run]) -> list[tuple[str, str]]:
    config, start = runs[0].config, runs[0].start
    corpus, where = start["corpus"], start["environment"]
    tokens = config.steps * config.accumulate * config.batch_size * config.length
    machine = [where["processor"], _count(where["threads"], "thread"), where["device"], f"torch {where['torch']}"]
    facts = [
        ("corpus", f"{corpus['source']}; {corpus['split']}; sha256 {corpus['fingerprint'][:12]}"),
        ("tokens", f"{corpus['tokens']}; {tokens:,} seen in training"),
        ("model", f"{config.layers} layers, {config.heads} heads, width {config.width}"),
        ("recall in training", f"in {config.recall_share:.0%} of the sequences"),
        ("seeds", ", ".join(str(run.config.seed) for run in runs)),
        ("machine", ", ".join([*machine, f"Python {where['python']}", f"alibi-attention {where['alibi_attention']}"])),
    ]
    changed = machine_differences(runs)
    if changed:
        facts.append(("runs elsewhere", "; ".join(changed)))
    return facts


def _config_name(run: Run) -> str:
    return f"config-seed-{run.config.seed}.yaml"


def _command(runs: Sequence[Run]) -> str:
    """What repeats the runs and the report, in the report's own folder, which may be all that is left of them."""
    roots = [f"again/seed-{run.config.seed}" for run in runs]
    commands = [
        shlex.join(["alibi", "extrapolate", "--config", _config_name(run), "--output", root])
        for run, root in zip(runs, roots, strict=True)
    ]
    return "\n".join([*commands, shlex.join(["alibi", "report", *roots, "--output", "again"])])


def markdown_report(runs: Sequence[Run], tables: Sequence[Table], figures: Sequence[str]) -> str:
    """Tables and links to the figures, readable where Markdown is."""
    parts = [f"# {_title(runs[0].config, len(runs))}\n"]
    parts.append("".join(f"- {name}: {text}\n" for name, text in _facts(runs)))
    shown = set()
    for table in tables:
        parts.append(f"## {table.title}\n")
        if table.name in figures:
            parts.append(f"![{table.title}](figures/{table.name}.png)\n")
            shown.add(table.name)
        parts += [markdown(table.header, table.rows), f"{table.note}\n"]
    parts += [f"![{name}](figures/{name}.png)\n" for name in figures if name not in shown]
    parts.append(f"## Repeat it\n\n```bash\n{_command(runs)}\n```\n")
    return "\n".join(parts)


def html_report(runs: Sequence[Run], tables: Sequence[Table], figures: dict[str, str]) -> str:
    """One page that asks nothing of the network."""
    title = html.escape(_title(runs[0].config, len(runs)))
    facts = "".join(f"<dt>{html.escape(name)}</dt><dd>{html.escape(text)}</dd>" for name, text in _facts(runs))
    parts = [f"<h1>{title}</h1>", f"<dl>{facts}</dl>"]
    left = dict(figures)
    for table in tables:
        parts.append(f"<h2>{html.escape(table.title)}</h2>")
        if table.name in left:
            parts.append(f"<figure>{left.pop(table.name)}</figure>")
        parts += [_html_table(table), f'<p class="note">{html.escape(table.note)}</p>']
    parts += [f"<figure>{svg}</figure>" for svg in left.values()]
    parts.append(f"<h2>Repeat it</h2><pre>{html.escape(_command(runs))}</pre>")
    settings = html.escape(json.dumps(runs[0].config.model_dump(mode="json"), indent=1, ensure_ascii=False))
    parts.append(f"<details><summary>Every setting</summary><pre>{settings}</pre></details>")
    body = "\n".join(parts)
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<title>{title}</title><link rel="icon" href="data:,"><style>{_STYLE}</style></head>\n'
        f"<body>\n{body}\n</body></html>\n"
    )


def _html_table(table: Table) -> str:
    head = "".join(f'<th scope="col">{html.escape(cell)}</th>' for cell in table.header)
    rows = []
    for first, *others in table.rows:
        # A number and its spread stay on one line; before the change a line may end.
        cells = "".join(f"<td>{html.escape(cell).replace(' ± ', '&nbsp;±&nbsp;')}</td>" for cell in others)
        rows.append(f'<tr><th scope="row">{html.escape(first)}</th>{cells}</tr>')
    body = "".join(rows)
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
