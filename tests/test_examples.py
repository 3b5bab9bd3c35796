"""The code on the pages runs as it stands: each page's Python blocks in order, in one namespace."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from alibi_attention.lab.positions import PositionMethod, position_methods
from test_docs import ROOT, pages, split_fences, text_of

BLOCK = re.compile(r"^```python\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL)
# The Chinese README has the blocks of the English one, which test_docs holds it to.
PAGES = [name for name in pages() if name != "README.zh-CN.md" and BLOCK.search(text_of(name) or "")]


def run_blocks(text: str, name: str) -> dict[str, Any]:
    """Runs every block; a failure points at its line of the page."""
    namespace: dict[str, Any] = {"__name__": "__main__"}
    for match in BLOCK.finditer(text):
        lines_before = text.count("\n", 0, match.start("code"))
        exec(compile("\n" * lines_before + match["code"], name, "exec"), namespace)
    return namespace


# torch's own, from what torch.func.jvp imports.
@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")
@pytest.mark.parametrize("page", PAGES)
def test_the_code_on_the_page_runs(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    if page == "docs/transformers.md":
        pytest.importorskip("transformers")
    monkeypatch.chdir(tmp_path)  # whatever an example writes
    # And a position method that an example adds: it is gone again afterwards.
    position_methods()
    monkeypatch.setattr(PositionMethod, "registry", dict(PositionMethod.registry))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        run_blocks((ROOT / page).read_text(encoding="utf-8"), str(ROOT / page))


def test_every_page_with_code_is_run():
    guides = "operator horizon lab-methods lab-reference flash-attn export streaming transformers"
    assert {"README.md", *(f"docs/{name}.md" for name in guides.split())} <= set(PAGES)
    # And no block is fenced in a way that hides it.
    for name in pages():
        text = text_of(name) or ""
        infos = [block.partition("\n")[0].lower().split()[:1] for block in split_fences(text)[1]]
        assert sum(info in (["python"], ["python3"], ["py"]) for info in infos) == len(BLOCK.findall(text)), name


def test_blocks_share_a_namespace_and_keep_their_line_numbers():
    page = "# Page\n```python\nx = 1\n```\n```bash\nexit 1\n```\n```python\ny = x + 1\n```\n"
    assert run_blocks(page, "page")["y"] == 2
    with pytest.raises(ZeroDivisionError) as failure:
        run_blocks("\n\n```python\n1 / 0\n```\n", "page")
    assert failure.traceback[-1].lineno + 1 == 4
