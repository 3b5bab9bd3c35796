"""The run of a hundred million parameters, as far as a machine without a GPU can check it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from lab_cases import read_config_file, write_texts
from typer.testing import CliRunner

from alibi_attention.cli.app import app
from alibi_attention.lab.config import ExperimentConfig, make_config
from alibi_attention.lab.model import build_decoder
from alibi_attention.lab.positions import position_methods

BOOKS = Path(__file__).parents[2] / "docs" / "study" / "books.yaml"
SMALLER = [
    "--layers=1", "--heads=2", "--width=16", "--vocabulary=300", "--length=16", "--eval-lengths=16,32,64", "--steps=2",
    "--batch-size=2", "--eval-tokens=256", "--warmup=1", "--recall-share=0", "--device=cpu",
    "--protocols=windows,sliding,targets",
]  # fmt: skip


@pytest.fixture(scope="module")
def config() -> ExperimentConfig:
    return read_config_file(BOOKS)


def test_it_has_a_hundred_million_parameters_and_goes_to_16k(config: ExperimentConfig) -> None:
    for method in config.methods:
        with torch.device("meta"):
            decoder = build_decoder(config, method, vocabulary=config.vocabulary)
        assert 95e6 < sum(parameter.numel() for parameter in decoder.parameters()) < 110e6
    assert (config.length, config.eval_lengths[-1], config.device) == (512, 16_384, "cuda")
    assert config.steps * config.batch_size * config.length == pytest.approx(131e6, rel=0.01)


def test_two_steps_of_smaller_models_through_the_same_file(tmp_path: Path) -> None:
    for name in ("train", "eval"):
        (tmp_path / name).mkdir()
    texts = sorted(write_texts(tmp_path / "texts").iterdir())
    for i, text in enumerate(texts):
        text.rename(tmp_path / ("train" if i % 3 else "eval") / text.name)
    arguments = [
        "extrapolate", "--config", str(BOOKS), "--text", str(tmp_path / "train"), "--held-out-text",
        str(tmp_path / "eval"), "--output", str(tmp_path / "run"), *SMALLER,
    ]  # fmt: skip
    done = CliRunner().invoke(app, arguments, prog_name="alibi")
    assert done.exit_code == 0, done.output
    results = json.loads((tmp_path / "run" / "results.json").read_text(encoding="utf-8"))["results"]
    assert [result["method"] for result in results] == list(read_config_file(BOOKS).methods)
    assert all(s["bits_per_byte"] is not None for r in results for e in r["evaluations"] for s in e["windows"])


def test_nothing_of_the_host_gets_into_a_step_on_another_device() -> None:
    """On ``meta``, where there are no numbers and most operations refuse tensors of two devices."""
    with pytest.raises(RuntimeError, match="device"):
        torch.zeros(2, device="meta") + torch.zeros(2)
    for method, cls in position_methods().items():
        config = make_config({"methods": (method,), "length": 64, "layers": 2, "heads": 4, "width": 64})
        decoder = build_decoder(config, method, vocabulary=256).to("meta")
        tokens = torch.zeros(2, 64, dtype=torch.long, device="meta")
        decoder.nats(tokens, tokens).sum().backward()
        assert all(p.grad is not None and p.grad.device.type == "meta" for p in decoder.parameters()), method
        longer = torch.zeros(1, 256, dtype=torch.long, device="meta")
        for variant in (None, *cls.variants):
            # Learned positions end.
            if method == "learned":
                continue
            with torch.no_grad(), decoder.position.used_at(256, variant):
                assert decoder(longer).device.type == "meta", (method, variant)
