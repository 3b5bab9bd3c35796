"""What the project says: links that resolve, two READMEs that agree, no leftovers."""

from __future__ import annotations

import re
import subprocess
import unicodedata
from functools import cache
from itertools import pairwise
from pathlib import Path
from urllib.parse import unquote

import pytest

ROOT = Path(__file__).parents[1]
READMES = ("README.md", "README.zh-CN.md")

# Spelt in two halves, so that this file does not find itself.
LEFTOVERS = re.compile(r"\b(" + "|".join(("TO" + "DO", "FIX" + "ME", "HA" + "CK")) + r")\b")

FENCE = re.compile(r"^(?P<indent> {0,3})(?P<mark>`{3,}|~{3,})(?P<info>[^\n`]*)$")
INLINE_LINK = re.compile(r"\]\(\s*<?(?P<target>[^)\s>]*)>?(?:\s+\"[^\"]*\")?\s*\)")
DEFINED_LINK = re.compile(r"^ {0,3}\[[^\]]+\]:\s*<?(?P<target>[^\s>]+)", re.MULTILINE)
HTML_LINK = re.compile(r"<(?:a|img|source)\b[^>]*?\b(?:href|src|srcset)=[\"'](?P<target>[^\"']+)[\"']")
ELSEWHERE = re.compile(r"^[a-z][a-z0-9+.-]*:|^//", re.IGNORECASE)


@cache
def project_files() -> tuple[str, ...]:
    """Files of the project, tracked or about to be; in an archive without git, all but hidden ones."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        listed = subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout.decode()
        names = [name for name in listed.split("\0") if name]
    except (OSError, subprocess.CalledProcessError):
        paths = (path.relative_to(ROOT) for path in ROOT.rglob("*") if path.is_file())
        names = [path.as_posix() for path in paths if not any(part.startswith(".") for part in path.parts)]
    return tuple(sorted(name for name in set(names) if (ROOT / name).is_file()))


def text_of(name: str) -> str | None:
    """The file's text, or None for one that is not text."""
    try:
        return (ROOT / name).read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return None


def split_fences(text: str) -> tuple[str, list[str]]:
    """(the prose with its fenced blocks blanked, the blocks with their info strings)."""
    prose, blocks, block, closing = [], [], None, ""
    for line in text.splitlines():
        found = FENCE.match(line)
        if block is None and found:
            block, closing = [found["info"].strip()], found["mark"]
        elif block is not None and found and found["mark"].startswith(closing) and not found["info"].strip():
            blocks.append("\n".join(block))
            block = None
        elif block is not None:
            block.append(line)
            continue
        else:
            prose.append(line)
            continue
        prose.append("")
    assert block is None, f"a code block is never closed: {block}"
    return "\n".join(prose), blocks


def headings(prose: str) -> list[tuple[int, str]]:
    return [(len(mark), title) for mark, title in re.findall(r"^(#{1,6})\s+(.+?)\s*#*$", prose, re.MULTILINE)]


def anchors(prose: str) -> set[str]:
    """The fragments GitHub gives a page: one for each heading, and what <a id> or <a name> says."""
    found: dict[str, int] = {}
    result = set(re.findall(r"<a\s+(?:id|name)=[\"']([^\"']+)[\"']", prose))
    for _, title in headings(prose):
        title = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", title).strip().lower()
        kept = (
            char
            for char in title
            if char in "-_ " or unicodedata.category(char)[0] in "LMN" or unicodedata.category(char) == "Pc"
        )
        slug = "".join(kept).replace(" ", "-")
        count = found.get(slug, 0)
        found[slug] = count + 1
        result.add(f"{slug}-{count}" if count else slug)
    return result


def links(prose: str) -> list[str]:
    prose = re.sub(r"(`+)(?!`).+?(?<!`)\1(?!`)", "", prose)
    prose = re.sub(r"<!--.*?-->", "", prose, flags=re.DOTALL)
    return [match["target"] for pattern in (INLINE_LINK, DEFINED_LINK, HTML_LINK) for match in pattern.finditer(prose)]


def pages() -> list[str]:
    return [name for name in project_files() if name.endswith(".md")]


def broken_links(name: str) -> list[str]:
    prose, _ = split_fences(text_of(name) or "")
    broken = []
    for link in links(prose):
        if ELSEWHERE.match(link):
            continue
        path, _, fragment = unquote(link).partition("#")
        base = ROOT if path.startswith("/") else (ROOT / name).parent
        target = (base / path.lstrip("/")).resolve() if path else (ROOT / name).resolve()
        if not target.is_relative_to(ROOT.resolve()):
            broken.append(f"{link} (outside the repository)")
            continue
        inside = target.relative_to(ROOT.resolve()).as_posix()
        known = project_files()
        if inside != "." and inside not in known and not any(file.startswith(f"{inside}/") for file in known):
            broken.append(f"{link} (no such file)")
        elif fragment and inside.endswith(".md"):
            page, _ = split_fences(text_of(inside) or "")
            if fragment not in anchors(page):
                broken.append(f"{link} (no such heading)")
    return broken


def test_no_leftovers():
    found = []
    for name in project_files():
        for number, line in enumerate((text_of(name) or "").splitlines(), start=1):
            if LEFTOVERS.search(line):
                found.append(f"{name}:{number}: {line.strip()[:80]}")
    assert not found, "\n".join(found)


def test_there_are_pages_to_check():
    assert {"README.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs/maths.md"} <= set(pages())


@pytest.mark.parametrize("name", pages())
def test_relative_links_resolve(name: str):
    assert not broken_links(name), f"{name}: {broken_links(name)}"


@pytest.mark.parametrize("name", pages())
def test_a_page_has_one_title_and_skips_no_level(name: str):
    levels = [level for level, _ in headings(split_fences(text_of(name) or "")[0])]
    assert levels[:1] == [1], f"{name} starts without a title"
    assert levels.count(1) == 1, f"{name} has {levels.count(1)} titles"
    assert all(after - before <= 1 for before, after in pairwise(levels)), f"{name}: {levels}"


@pytest.fixture(scope="module")
def readmes() -> list[tuple[str, list[str]]]:
    missing = [name for name in READMES if not (ROOT / name).is_file()]
    assert not missing, f"missing: {missing}"
    return [split_fences(text_of(name) or "") for name in READMES]


def test_both_readmes_have_the_same_sections(readmes):
    english, chinese = ([level for level, _ in headings(prose)] for prose, _ in readmes)
    assert english == chinese


def test_both_readmes_show_the_same_code(readmes):
    (_, english), (_, chinese) = readmes
    assert english == chinese


def test_both_readmes_show_the_same_pictures(readmes):
    english, chinese = (
        sorted(link for link in links(prose) if re.search(r"\.(svg|png|jpg|webp)$", link)) for prose, _ in readmes
    )
    assert english == chinese


def test_each_readme_links_to_the_other(readmes):
    for (prose, _), other in zip(readmes, reversed(READMES), strict=True):
        assert other in links(prose)


# The checkers themselves


def test_links_of_every_kind_are_seen():
    prose = (
        '[a](one.md) ![b](two.png "title") [![c](three.svg)](four.md)\n'
        "[d]: five.md\n<img src='six.png'> `[no](x.md)` <!-- [no](y.md) -->"
    )
    assert sorted(links(prose)) == ["five.md", "four.md", "one.md", "six.png", "three.svg", "two.png"]


def test_fences_are_split():
    text = "# A\n```python\n# not a heading\n```\n~~~\n```\n~~~\n## B"
    prose, blocks = split_fences(text)
    assert headings(prose) == [(1, "A"), (2, "B")]
    assert blocks == ["python\n# not a heading", "\n```"]


def test_anchors_are_githubs():
    prose = "# What's new?\n## The horizon: exact, `O(L)`\n## 安装\n## 安装"
    assert anchors(prose) == {"whats-new", "the-horizon-exact-ol", "安装", "安装-1"}
