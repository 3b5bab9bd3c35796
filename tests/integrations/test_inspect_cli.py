"""``alibi inspect``."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from alibi_attention.cli.app import app
from alibi_attention.lab.config import make_config

Invoke = Callable[..., Result]

STORYWRITER = {
    "model_type": "mpt", "d_model": 4096, "n_heads": 32, "n_layers": 32, "max_seq_len": 65536,
    "torch_dtype": "bfloat16", "attn_config": {"alibi": True, "alibi_bias_max": 16},
}  # fmt: skip


@pytest.fixture
def alibi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Invoke:
    """The command in an empty folder, on a wide terminal without colour."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("NO_COLOR", "1")
    return lambda *arguments: CliRunner().invoke(app, ["inspect", *map(str, arguments)], prog_name="alibi")


def written(path: Path, config: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(config))
    return path


def test_tells_slopes_windows_memory_and_traps(alibi: Invoke, tmp_path: Path) -> None:
    path = written(tmp_path / "mpt" / "config.json", STORYWRITER)
    result = alibi(path)
    assert result.exit_code == 0, result.stderr
    assert alibi(path.parent).stdout == result.stdout
    for line in (
        "MPT: 32 layers, 32 heads of 128, causal, bfloat16, 65,536 tokens (max_seq_len)",
        "Slopes: interleaved, bias_max 16",
        "16 of 32 heads, from the steepest to the flattest; the mean is over all",
        "beyond which lies at most 2^-24 of a row's weight",
        "scale |q| |k| is at most 11.31 (--logit-bound)",
        "Cache of one sequence, 2 bytes a number\n",
        "HorizonCache: all that it allocates, with mode='guaranteed', caps on norms that keep to the",
        "alibi_bias_max is 16, which Transformers' own MPT does not read",
        "fails beyond max_seq_len = 65,536 tokens",
    ):
        assert line in result.stdout
    rows = [line.split() for line in result.stdout.splitlines()]
    assert ["0", "0.707107", "1", "7", "14", "39", "56"] in rows
    assert ["65,536", "32", "GiB", "36.3", "GiB", "114%", "26,475"] in rows


def test_the_page_shows_what_is_printed(alibi: Invoke, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The block of docs/export.md, in which "..." stands for lines left out."""
    page = (Path(__file__).parents[2] / "docs" / "export.md").read_text(encoding="utf-8")
    found = re.search(r"^```text\n\$ alibi inspect (\S+)\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    assert found
    written(tmp_path / found[1], STORYWRITER)
    monkeypatch.setenv("COLUMNS", "120")
    printed = [line.rstrip() for line in alibi(found[1]).stdout.splitlines()]
    parts: list[list[str]] = [[]]
    for line in found[2].splitlines():
        if line.strip() == "...":
            parts.append([])
        else:
            parts[-1].append(line)
    assert [len(part) for part in parts] == [5, 2, 6, 3]
    assert printed[: len(parts[0])] == parts[0]
    at = len(parts[0])
    for part in parts[1:]:
        starts = [i for i in range(at, len(printed)) if printed[i : i + len(part)] == part]
        assert starts, f"{part} not among {printed[at:]}"
        at = starts[0] + len(part)


def test_options_change_the_reckoning(alibi: Invoke, tmp_path: Path) -> None:
    path = written(tmp_path / "config.json", STORYWRITER)
    text = alibi(path, "--lengths", "100,2000", "--logit-bound", "4").stdout
    assert "at most 4 (--logit-bound)" in text
    rows = [line.split()[:1] for line in text.splitlines()]
    assert ["100"] in rows
    assert ["2,000"] in rows
    assert ["65,536"] not in rows


def test_json_has_every_head(alibi: Invoke, tmp_path: Path) -> None:
    result = alibi(written(tmp_path / "config.json", STORYWRITER), "--json", "--lengths", "1024")
    value = json.loads(result.stdout)
    assert value["alibi"] is True
    assert (value["family"], value["scheme"], value["bias_max"]) == ("MPT", "interleaved", 16)
    assert value["slopes"] == pytest.approx([2.0 ** (-h / 2) for h in range(1, 33)])
    assert value["slopes"][31] == 2.0**-16
    assert (
        len(value["horizon"]["typical"]) == len(value["horizon"]["guaranteed"]) == len(value["spans"]["tokens"]) == 32
    )
    assert value["horizon"]["tolerance"] == 2.0**-24
    assert value["cache"][0]["full_bytes"] == 2 * 32 * 32 * 128 * 2 * 1024
    # Nothing is forgotten yet, and the buffer is as long as the text: summary and center, held twice, are more.
    extra = 32 * 32 * (8 * 1024 // 64 + 2 * 4 * 128)
    assert value["cache"][0]["horizon_bytes"] == value["cache"][0]["full_bytes"] + extra
    assert value["chunk"] == 512
    assert [trap["code"] for trap in value["traps"]] == ["bias-max-ignored", "length-cap", "no-cache"]


def test_a_dtype_that_no_cache_has_is_told_from_one(alibi: Invoke, tmp_path: Path) -> None:
    assumed = "2 bytes a number (assumed)\n"
    for dtype, line in (("float32", "4 bytes a number\n"), ("int8", assumed), (None, assumed)):
        path = written(tmp_path / "config.json", {**STORYWRITER, "torch_dtype": dtype})
        assert line in alibi(path).stdout


def test_a_model_without_linear_biases_ends_with_1(alibi: Invoke, tmp_path: Path) -> None:
    path = written(tmp_path / "config.json", {"model_type": "llama", "hidden_size": 64})
    result = alibi(path)
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr.startswith(f"{path} is not known to have linear biases.\n  model_type 'llama': no sign")
    asked = alibi(path, "--json")
    assert asked.exit_code == 1
    assert json.loads(asked.stdout)["alibi"] is False
    assert "model_type 'llama'" in json.loads(asked.stdout)["reason"]


def test_laboratory_runs(alibi: Invoke, tmp_path: Path) -> None:
    config = make_config({"methods": ("alibi", "rope"), "heads": 6, "width": 96, "length": 128})
    written(tmp_path / "run" / "config.json", {"schema_version": 1, "config": config.model_dump(mode="json")})
    for name in ("alibi", "rope"):
        (tmp_path / "run" / name).mkdir()
    for name in ("run", "run/alibi", "run/config.json"):
        text = alibi(tmp_path / name).stdout
        assert f"laboratory run {tmp_path / 'run'}, method alibi: 4 layers, 6 heads of 16" in text
        assert "Slopes: geometric, bias_max 8" in text
        assert "4 bytes a number" in text
    result = alibi(tmp_path / "run" / "rope")
    assert result.exit_code == 1
    assert "the method rope of the run" in result.stderr


def test_input_that_is_no_model(alibi: Invoke, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken.json").write_text("{")
    (tmp_path / "list.json").write_text("[]")
    (tmp_path / "damaged.json").write_text('{"model_type": "bloom", "n_head": 0}')
    written(tmp_path / "odd.json", {**STORYWRITER, "attn_config": "on; off"})
    for name, words in (
        ("none.json", "expected a file or folder, got none.json, which does not exist\n  name a config.json"),
        ("empty/model", "expected a file or folder, got empty/model, which does not exist"),
        ("x" * 300, f"expected a file or folder, got {'x' * 300} (File name too long)\n  name a config.json"),
        ("empty", "expected a folder with a config.json, got empty\n  name a model's folder or file"),
        ("broken.json", "expected JSON, got broken.json"),
        ("list.json", "config: expected a JSON object, got list"),
        ("odd.json", "attn_config: expected an object, got 'on; off'\n  mend the configuration"),
        ("damaged.json", "n_head: expected an integer of at least 1, got 0\n  mend the configuration"),
    ):
        result = alibi(name)
        assert result.exit_code == 2, name
        assert result.stdout == ""
        assert f"error: MODEL: {words}" in result.stderr


def test_options_that_cannot_be(alibi: Invoke, tmp_path: Path) -> None:
    path = written(tmp_path / "config.json", STORYWRITER)
    for options, words in (
        (("--lengths", "many"), "error: --lengths: expected whole numbers joined by commas, got 'many'"),
        (("--lengths", "0"), "error: --lengths: expected one or more numbers of tokens"),
        (("--logit-bound", "-1"), "error: --logit-bound: expected a finite number of at least 0, got -1.0"),
    ):
        result = alibi(path, *options)
        assert result.exit_code == 2
        assert result.stderr.startswith(words)


def test_a_name_on_the_hub(alibi: Invoke, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = pytest.importorskip("huggingface_hub")
    path = written(tmp_path / "elsewhere" / "config.json", STORYWRITER)
    asked = []

    def download(name: str, file: str) -> str:
        asked.append((name, file))
        if name == "someone/private":
            raise OSError("401 Client Error")
        return str(path)

    monkeypatch.setattr(hub, "hf_hub_download", download)
    assert alibi("mosaicml/mpt-7b-storywriter").stdout.startswith("MPT: 32 layers")
    result = alibi("someone/private")
    assert result.exit_code == 2
    assert "got someone/private (401 Client Error)\n  check the name and the connection" in result.stderr
    assert asked == [("mosaicml/mpt-7b-storywriter", "config.json"), ("someone/private", "config.json")]


def test_a_name_without_the_hubs_package(alibi: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    result = alibi("mosaicml/mpt-7b")
    assert result.exit_code == 2
    assert "pip install huggingface_hub" in result.stderr
