"""A report as one page that asks nothing of the network."""

from __future__ import annotations

import html
import io
import re
from collections.abc import Mapping, Sequence

import matplotlib as mpl
from matplotlib.figure import Figure

from alibi_attention.lab.report_style import STYLE
from alibi_attention.lab.report_table import Picture, Table


def html_page(
    title: str, lead: Sequence[str], facts: Sequence[tuple[str, str]], tables: Sequence[Table],
    pictures: Mapping[str, Picture], command: str, settings: str,
) -> str:  # fmt: skip
    """The page; a picture stands above the table of its name.

    Args:
        title: of the page.
        lead: paragraphs for those who see such a page for the first time.
        facts: names and what is to be said of them.
        tables: in their order.
        pictures: by the names of tables.
        command: what repeats it.
        settings: every setting, as text.
    """
    terms = "".join(f"<dt>{html.escape(name)}</dt><dd>{html.escape(text)}</dd>" for name, text in facts)
    parts = [f"<h1>{html.escape(title)}</h1>", *(f"<p>{html.escape(text)}</p>" for text in lead), f"<dl>{terms}</dl>"]
    links = "".join(f'<li><a href="#{_anchor(table)}">{html.escape(table.title)}</a></li>' for table in tables)
    parts.append(f"<nav><details><summary>Contents</summary><ul>{links}</ul></details></nav>")
    for table in tables:
        parts.append(f'<h2 id="{_anchor(table)}">{html.escape(table.title)}</h2>')
        if table.name in pictures:
            parts.append(_figure(pictures[table.name], table.name))
        if table.rows:
            parts.append(_table(table))
        parts.append(f'<p class="note">{html.escape(table.note)}</p>')
    parts.append(f"<h2>Repeat it</h2>\n<pre>{html.escape(command)}</pre>")
    parts.append(f"<details><summary>Every setting</summary><pre>{html.escape(settings)}</pre></details>")
    body = "\n".join(parts)
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<title>{html.escape(title)}</title><link rel="icon" href="data:,"><style>{STYLE}</style></head>\n'
        f"<body>\n{body}\n</body></html>\n"
    )


def _anchor(table: Table) -> str:
    return f"part-{table.name}"


def _figure(picture: Picture, name: str) -> str:
    # The page shows one of the two, by the width of the screen.
    broad = inline_svg(picture.broad, name, picture.words, "broad")
    narrow = inline_svg(picture.narrow, f"{name}-narrow", picture.words, "narrow")
    return f"<figure>{broad}{narrow}</figure>"


def inline_svg(figure: Figure, name: str, words: str, kind: str) -> str:
    """A figure as an element of a page: its black is the page's text, its names are its own."""
    text = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": "alibi", "svg.fonttype": "none"}):
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r' (?:width|height)="[\d.]+pt"', "", svg, count=2)
    svg = svg.replace("#000000", "currentColor")
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = re.sub(r'(url\(#|href="#)', rf"\g<1>{name}-", svg)
    # No larger than it was drawn, so that all figures have letters of one size.
    look = f'class="{kind}" style="max-width: {figure.get_figwidth():.2f}in"'
    return svg.replace("<svg ", f'<svg {look} role="img" aria-label="{html.escape(words)}" ', 1)


def _table(table: Table) -> str:
    # A column that holds words is read from the left; numbers end at the right.
    words = {i for row in table.rows for i, cell in enumerate(row) if i and cell[:1].isalpha()}
    kinds = [' class="words"' if i in words else "" for i in range(len(table.header))]
    head = "".join(
        f'<th scope="col"{kind}>{html.escape(cell)}</th>' for cell, kind in zip(table.header, kinds, strict=True)
    )
    rows = []
    for first, *others in table.rows:
        cells = "".join(f"<td{kind}>{_cell(cell)}</td>" for cell, kind in zip(others, kinds[1:], strict=True))
        rows.append(f'<tr><th scope="row">{html.escape(first)}</th>{cells}</tr>')
    body = "".join(rows)
    # What scrolls can be reached by keyboard.
    box = f'<div class="wide" role="region" tabindex="0" aria-label="{html.escape(table.title)}">'
    return f"{box}<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"


def _cell(text: str) -> str:
    """What stands in brackets stays on one line, and so does each of several verdicts."""
    text = html.escape(text)
    if "; " in text:
        return " ".join(f'<span class="keep">{part}</span>' for part in re.split(r"(?<=;) ", text))
    # In print a long range may break at its space; without one it never does.
    text = re.sub(r"\([^() ]*\)", r'<span class="whole">\g<0></span>', text)
    return re.sub(r"\([^()<]* [^()<]*\)", r'<span class="keep">\g<0></span>', text)
