from __future__ import annotations

import json
import math
import random
from pathlib import Path

import datasets
import pytest
from typer.testing import CliRunner

from alibi_attention.cli.app import app
from alibi_attention.lab.config import ExperimentConfig
from alibi_attention.lab.errors import LabError
from alibi_attention.lab.model import build_decoder
from alibi_attention.lab.paper import DIFFERENCES, LENGTHS, TOKENS_A_STEP, differences, paper_config
from alibi_attention.lab.training import learning_rate_factor

SMALLER = """\
layers: 2
width: 32
heads: 2
cutoffs: [8, 24]
warmup: 1
eval_tokens: 64
checkpoint_every: 1
"""


def wikitext(seed: int, articles: int) -> list[str]:
    """Rows as WikiText has them: a heading, an empty row, paragraphs with spaces around every word."""
    generator = random.Random(seed)
    vocabulary = [f"w{i}" for i in range(60)] + [",", ".", "<unk>"]
    rows = [""]
    for i in range(articles):
        rows += [f" = Article {seed} {i} = \n", ""]
        rows += [f" {' '.join(generator.choices(vocabulary, k=40))} \n" for _ in range(5)]
        rows += [" = = Section = = \n"]
    return rows


@pytest.fixture
def local_copy(tmp_path: Path) -> Path:
    parts = {
        name: datasets.Dataset.from_dict({"text": wikitext(seed, articles)})
        for seed, (name, articles) in enumerate({"train": 8, "validation": 3, "test": 2}.items())
    }
    datasets.DatasetDict(parts).save_to_disk(str(tmp_path / "wikitext"))
    return tmp_path / "wikitext"


def test_model_has_the_papers_size() -> None:
    config = paper_config()
    import torch

    with torch.device("meta"):
        decoder = build_decoder(config, "sinusoidal", vocabulary=267_744)
    parameters = sum(parameter.numel() for parameter in decoder.parameters())
    # 247 M in the paper; to the last of them as fairseq prints it for its 16 layers (examples/layerdrop/README.md).
    assert parameters == 246_933_504
    assert (config.activation, config.bias, config.embedding_scale) == ("relu", True, "sqrt-width")
    assert not config.final_norm
    assert config.batch_size * config.accumulate * config.length == 8 * 9216
    assert isinstance(config, ExperimentConfig)


@pytest.mark.parametrize("devices", [1, 2, 4, 8])
@pytest.mark.parametrize("length", LENGTHS)
def test_a_step_has_the_papers_words_at_each_of_its_lengths(length: int, devices: int) -> None:
    config = paper_config({"length": length, "devices": devices})
    assert config.batch_size * length <= 9_216 * devices
    assert config.eval_lengths == tuple(each for each in LENGTHS if each >= length)
    tokens = config.batch_size * config.accumulate * length
    if (length, devices) == (2048, 8):
        # 36 sequences, which eight devices cannot share.
        assert tokens == 65_536
        return
    assert tokens == TOKENS_A_STEP == 73_728
    assert differences(config) == DIFFERENCES
    if length != 2048:
        assert config.batch_size * length == 9_216 * devices


def test_a_step_of_any_other_size_is_said() -> None:
    config = paper_config({"length": 100, "devices": 3})
    assert (config.batch_size, config.accumulate, config.eval_lengths[:2]) == (276, 3, (100, 128))
    assert differences(config)[-1] == "82,800 words a step, where the paper's have 73,728"
    assert paper_config({"length": 5000}).eval_lengths == (5000,)


def test_what_a_run_of_before_has_of_another_model_is_said() -> None:
    before = {"activation": "gelu", "bias": False, "embedding_scale": "method", "final_norm": True}
    assert all(ExperimentConfig.model_fields[name].default == value for name, value in before.items())
    assert differences(paper_config(before))[len(DIFFERENCES) :] == (
        "activation gelu, where the paper's model has relu",
        "bias False, where the paper's model has True",
        "embedding_scale method, where the paper's model has sqrt-width",
        "final_norm True, where the paper's model has False",
    )


def test_what_is_given_of_a_step_stays_and_the_other_makes_up_for_it() -> None:
    few = paper_config({"batch_size": 6})
    assert (few.batch_size, few.accumulate) == (6, 24)
    parts = paper_config({"accumulate": 2, "devices": 4})
    assert (parts.batch_size, parts.accumulate) == (72, 2)
    for name in ("batch_size", "length", "accumulate", "devices"):
        for value in (0, "many"):
            with pytest.raises(LabError, match=f"^{name}: "):
                paper_config({name: value})
    assert paper_config({"devices": 5}).batch_size % 5 == 0
    # As a file may write it.
    assert paper_config({"length": "1K", "devices": "8"}) == paper_config({"length": 1024, "devices": 8})


def of_fairseq(update: int) -> float:
    """The rate of fairseq's cosine scheduler under the flags of the command in the README of the authors' code.

    --lr 1.0 --warmup-init-lr 1e-07 --warmup-updates 16000 --lr-period-updates 270000 --t-mult 2 --lr-shrink 0.75
    --min-lr 0.0001 --max-update 286000
    """
    if update < 16_000:
        return 1e-7 + update * (1.0 - 1e-7) / 16_000
    since = update - 16_000
    period = math.floor(math.log2(1 + since / 270_000))
    length = 2**period * 270_000
    done = since - (2**period - 1) * 270_000
    least, most = 1e-4 * 0.75**period, 1.0 * 0.75**period
    return least + 0.5 * (most - least) * (1 + math.cos(math.pi * done / length))


def test_rates_are_fairseqs() -> None:
    config = paper_config()
    shape = {"steps": config.steps, "warmup": config.warmup, "final": config.final_rate}
    steps = [*range(0, 286_000, 997), 15_999, 16_000, 285_999]
    ours = {step: config.learning_rate * learning_rate_factor(step, **shape) for step in steps}
    # The warm-up begins elsewhere, as DIFFERENCES says.
    assert all(abs(rate - of_fairseq(step)) < 1 / 16_001 for step, rate in ours.items() if step < 16_000)
    assert all(rate == pytest.approx(of_fairseq(step), rel=1e-9) for step, rate in ours.items() if step >= 16_000)
    assert ours[285_999] == pytest.approx(1e-4, rel=1e-5)
    assert sum("warm-up" in text for text in DIFFERENCES) == 1
    assert not any("cosine" in text for text in DIFFERENCES)


def test_a_saved_copy_takes_no_name_of_a_configuration(local_copy: Path) -> None:
    assert paper_config().dataset_config == "wikitext-103-v1"
    assert paper_config({"dataset": str(local_copy)}).dataset_config == ""
    assert paper_config({"dataset": str(local_copy), "dataset_config": "x"}).dataset_config == "x"


def test_a_local_copy_of_one_configuration_is_taken_as_it_is(tmp_path: Path) -> None:
    for name in ("train", "validation"):
        rows = datasets.Dataset.from_dict({"text": wikitext(0, 2)})
        rows.to_parquet(tmp_path / "rows" / f"{name}.parquet")
    assert paper_config({"dataset": str(tmp_path / "rows")}).dataset_config == ""
    assert paper_config({"dataset": str(tmp_path / "rows" / "train.parquet")}).dataset_config == ""
    assert paper_config({"dataset": str(tmp_path / "rows"), "dataset_config": "x"}).dataset_config == "x"
    # As a clone of the hub's has them.
    each = "".join(f"- config_name: {name}\n  data_files: train.parquet\n" for name in ("wikitext-103-v1", "other"))
    (tmp_path / "rows" / "README.md").write_text(f"---\nconfigs:\n{each}---\n", encoding="utf-8")
    assert paper_config({"dataset": str(tmp_path / "rows")}).dataset_config == "wikitext-103-v1"


def test_dry_run(local_copy: Path, tmp_path: Path) -> None:
    (tmp_path / "smaller.yaml").write_text(SMALLER, encoding="utf-8")
    arguments = [
        "reproduce", "paper", "--output", str(tmp_path / "run"), "--config", str(tmp_path / "smaller.yaml"),
        "--dataset", str(local_copy), "--device=cpu", "--steps=2", "--batch-size=2", "--accumulate=2", "--length=16",
        "--eval-lengths=16,32", "--methods=alibi,sinusoidal,rope,t5",
    ]  # fmt: skip
    result = CliRunner().invoke(app, arguments, prog_name="alibi")
    assert result.exit_code == 0, result.output
    assert "Not as in the paper:\n" in result.output
    start = json.loads((tmp_path / "run" / "config.json").read_text(encoding="utf-8"))
    assert start["corpus"]["train_documents"] == 8
    assert start["corpus"]["held_out_documents"] == 3
    assert start["corpus"]["tokens"].startswith("words, ")
    results = json.loads((tmp_path / "run" / "results.json").read_text(encoding="utf-8"))["results"]
    assert [r["method"] for r in results] == ["alibi", "sinusoidal", "rope", "t5"]
    for found in results:
        (evaluation,) = found["evaluations"]
        assert [score["length"] for score in evaluation["sliding"]] == [16, 32]
        assert all(1 < score["perplexity"] < 1e4 for score in evaluation["windows"])


def test_show_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, ["reproduce", "paper", "--show"], prog_name="alibi")
    assert result.exit_code == 0
    assert "\ncutoffs: [20000, 60000]\n" in result.output
    assert not any(tmp_path.iterdir())


def test_show_of_a_run_computes_nothing(local_copy: Path, tmp_path: Path) -> None:
    (tmp_path / "smaller.yaml").write_text(SMALLER, encoding="utf-8")
    root = tmp_path / "run"
    arguments = [
        "reproduce", "paper", "--output", str(root), "--config", str(tmp_path / "smaller.yaml"), "--dataset",
        str(local_copy), "--device=cpu", "--steps=2", "--batch-size=2", "--accumulate=2", "--length=16",
        "--eval-lengths=16", "--methods=alibi",
    ]  # fmt: skip
    assert CliRunner().invoke(app, arguments, prog_name="alibi").exit_code == 0
    for name in ("results.json", "alibi/result.json"):
        (root / name).unlink()
    result = CliRunner().invoke(
        app, ["reproduce", "paper", f"--output={root}", "--resume", "--show"], prog_name="alibi"
    )
    assert result.exit_code == 0, result.output
    assert "\nlength: 16\n" in result.output
    assert not (root / "results.json").exists()
