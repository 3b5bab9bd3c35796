"""The code on the pages runs as it stands: each page's Python blocks in order, in one namespace."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from alibi_attention.lab.positions import PositionMethod, position_methods

ROOT = Path(__file__).parents[1]
PAGES = (
    "README.md", "docs/operator.md", "docs/horizon.md", "docs/lab.md", "docs/flash-attn.md", "docs/export.md",
    "docs/transformers.md",
)  # fmt: skip
BLOCK = re.compile(r"^```python\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL)


def run_blocks(text: str, name: str) -> dict[str, Any]:
    """Runs every block; a failure points at its line of the page."""
    namespace: dict[str, Any] = {"__name__": "__main__"}
    for match in BLOCK.finditer(text):
        lines_before = text.count("\n", 0, match.start("code"))
        exec(compile("\n" * lines_before + match["code"], name, "exec"), namespace)
    return namespace


# torch's own, from what torch.func.jvp imports.
@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")
@pytest.mark.parametrize("page", [page for page in PAGES if (ROOT / page).is_file()])
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


@pytest.mark.parametrize("page", ["docs/operator.md", "docs/horizon.md", "docs/lab.md", "docs/transformers.md"])
def test_the_guides_have_code(page: str):
    assert BLOCK.search((ROOT / page).read_text(encoding="utf-8"))


def test_blocks_share_a_namespace_and_keep_their_line_numbers():
    page = "# Page\n```python\nx = 1\n```\n```bash\nexit 1\n```\n```python\ny = x + 1\n```\n"
    assert run_blocks(page, "page")["y"] == 2
    with pytest.raises(ZeroDivisionError) as failure:
        run_blocks("\n\n```python\n1 / 0\n```\n", "page")
    assert failure.traceback[-1].lineno + 1 == 4
