from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from alibi_attention import alibi_slopes, certify
from alibi_attention.lab.config import ExperimentConfig
from alibi_attention.lab.dissection import dissect_run, read_inside
from alibi_attention.lab.errors import LabError
from alibi_attention.lab.experiment import start_experiment
from alibi_attention.lab.inside import Inside, Tiles, attention_inputs, bin_edges, look_inside, mass_by_distance
from alibi_attention.lab.inside_figures import draw_mass, every_key, tile_map
from alibi_attention.lab.model import Decoder
from alibi_attention.lab.positions import DecoderShape, position_methods
from alibi_attention.lab.progress import Progress
from alibi_attention.lab.trained import load_trained

SHAPE = DecoderShape(length=32, layers=2, heads=2, width=16)


def decoder_of(method: str) -> Decoder:
    return Decoder(SHAPE._replace(length=300), method, seed=0).eval()


def tokens(count: int) -> Tensor:
    return torch.randint(256, (count,), generator=torch.Generator().manual_seed(1))


def test_bins() -> None:
    assert bin_edges(1) == (0, 1)
    assert bin_edges(10) == (0, 1, 2, 4, 8, 10)


def test_mass_of_alibi_is_that_of_the_formula() -> None:
    decoder = decoder_of("alibi")
    (query, key), _ = attention_inputs(decoder, tokens(100))
    found = mass_by_distance(decoder, query.detach(), key.detach())
    scores = query[0].double() @ key[0].double().mT / math.sqrt(8)
    distance = torch.arange(100)[:, None] - torch.arange(100)
    scores = scores - alibi_slopes(2)[:, None, None].double() * distance
    weights = scores.masked_fill(distance < 0, -math.inf).softmax(-1)
    rows = torch.arange(50, 100)
    expected = torch.stack([
        weights[:, rows[rows >= r], rows[rows >= r] - r].sum(-1) / 50 for r in range(100)
    ], dim=-1)  # fmt: skip
    torch.testing.assert_close(found, expected.double(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("method", list(position_methods()))
def test_all_mass_is_somewhere(method: str) -> None:
    inside = look_inside(decoder_of(method), method, tokens(300), (64, 256), mass_length=130)
    shares = np.array(inside.mass.shares)
    assert shares.shape == (2, 2, len(inside.mass.edges) - 1)
    np.testing.assert_allclose(shares.sum(-1), 1.0, atol=1e-5)
    assert bool(inside.horizon) == method.startswith("alibi")
    edges = np.array(inside.mass.edges)
    means = np.array(inside.mass.mean_distance)
    assert ((shares * edges[:-1]).sum(-1) <= means + 1e-6).all()
    assert (means <= (shares * (edges[1:] - 1)).sum(-1) + 1e-6).all()


def test_horizon_is_what_certify_says() -> None:
    decoder = decoder_of("alibi")
    inside = look_inside(decoder, "alibi", tokens(300), (64, 256), mass_length=16, tolerance=1e-3)
    assert inside.tolerance == 1e-3
    assert [(c.length, c.layer, c.head) for c in inside.horizon] == [
        (n, layer, head) for n in (64, 256) for layer in range(2) for head in range(2)
    ]
    for layer, (query, key) in enumerate(attention_inputs(decoder, tokens(300)[:256])):
        certificate = certify(query.detach(), key.detach(), alibi_slopes(2), tolerance=1e-3)
        for head in range(2):
            cell = next(c for c in inside.horizon if (c.length, c.layer, c.head) == (256, layer, head))
            assert cell.kept_share == certificate.kept_share[head]
            assert cell.mean_window == certificate.window[0, head].double().mean()
            assert cell.dropped_share == certificate.dropped_share[0, head].max() <= 1e-3
            ranges = inside.tiles[layer].ranges[head]
            assert [first for first, _, _ in ranges] == certificate.first_key[0, head].tolist()


def test_a_scaled_variant_has_its_own_horizon() -> None:
    # A slope of 1/16 leaves keys behind within 1024 tokens; an eighth of it does not.
    lengths = {"mass_length": 16, "tolerance": 0.01}
    text = tokens(1024)
    plain = look_inside(decoder_of("alibi"), "alibi", text, (1024,), **lengths)
    scaled = look_inside(decoder_of("alibi"), "alibi", text, (1024,), variant="linear", **lengths)
    assert scaled.horizon[0].slope == pytest.approx(plain.horizon[0].slope * 300 / 1024)
    assert scaled.horizon[0].mean_window > plain.horizon[0].mean_window


def test_tile_map() -> None:
    ranges = (((0, 64, False), (128, 256, True), (256, 320, False)),)
    tiles = Tiles(length=320, layer=0, block_q=128, block_k=64, ranges=ranges)
    assert tile_map(tiles, 0).tolist() == [[2, 1, 0, 0, 0], [2, 1, 2, 2, 0], [1, 1, 1, 1, 2]]


def test_every_key() -> None:
    # One block that the text does not fill; two; two and a half.
    assert every_key(64, 128) == 64
    assert every_key(256, 128) == (128 + 256) / 2
    assert every_key(320, 128) == (128 + 256 + 320) / 3


def test_dissect_run(tiny: Callable[..., ExperimentConfig], tmp_path: Path) -> None:
    root = tmp_path / "run"
    start_experiment(tiny(methods=("alibi", "learned"), tokenizer="bpe", vocabulary=280, eval_lengths=(16, 24)), root)
    inside, folder = dissect_run(root, "alibi:ntk", (32, 64), tmp_path / "look", mass_length=32)
    assert folder == tmp_path / "look"
    kept = json.loads((tmp_path / "look" / "inside.json").read_text(encoding="utf-8"))
    del kept["schema_version"]
    assert Inside.model_validate(kept) == inside == read_inside(folder)
    assert {path.name for path in (tmp_path / "look").iterdir()} == {
        "inside.json", *(f"{name}.{kind}" for name in ("mass", "horizon", "tiles") for kind in ("png", "svg")),
    }  # fmt: skip
    labels = [label.get_text() for label in draw_mass(inside).axes[0].get_xticklabels()]
    assert labels == ["0", "1", "2\u20133", "4\u20137", "8\u201315", "16\u201331"]
    with pytest.raises(LabError) as error:
        dissect_run(root, "learned", None, tmp_path / "other", mass_length=32)
    assert str(error.value) == (
        "mass_length: expected at most 16, where the positions of learned end, got 32; lower it to 16"
    )
    # What is of the horizon alone, and has defaults that a short text need not reach.
    inside, _ = dissect_run(root, "learned", None, tmp_path / "other")
    assert (inside.horizon, inside.tolerance, inside.mass.length) == ((), None, 16)
    for options, name in (({"lengths": (16,)}, "lengths"), ({"tolerance": 0.1}, "tolerance")):
        with pytest.raises(LabError, match=rf"^{name}: expected nothing for learned, which has no horizon"):
            dissect_run(root, "learned", folder=tmp_path / "other", mass_length=16, **options)
    with pytest.raises(LabError, match=r"^lengths: expected at most the [\d,]+ tokens of held-out text, got 100,000; "):
        dissect_run(root, "alibi", (100_000,), tmp_path / "other", mass_length=16)
    with pytest.raises(LabError, match=r"^lengths: expected ascending lengths of at least 1, got 64,32; such as"):
        dissect_run(root, "alibi", (64, 32), tmp_path / "other", mass_length=16)
    # The default is 1024 where nothing ends sooner.
    with pytest.raises(LabError, match=r"^mass_length: expected at most the \d+ tokens of held-out text, got 1,024; "):
        dissect_run(root, "alibi", (16,), tmp_path / "other")
    with pytest.raises(LabError) as error:
        dissect_run(root, "alibi", (16,), tmp_path / "other", mass_length=0)
    assert str(error.value) == "mass_length: expected at least 1, got 0; such as 1024"


class Counting(Progress):
    """What was to be done, and how much was, by the name of the bar."""

    def __init__(self) -> None:
        super().__init__()
        self.bars: dict[str, list[int]] = {}

    def start(self, description: str, *, total: int, **_: Any) -> None:
        self.bars[description] = [total, 0]

    def advance(self, units: int = 1, *, note: str | None = None) -> None:
        del note
        self.bars[list(self.bars)[-1]][1] += units


def test_each_layer_is_told(tiny: Callable[..., ExperimentConfig], tmp_path: Path) -> None:
    start_experiment(tiny(methods=("alibi", "rope"), layers=3, eval_lengths=(16,)), tmp_path / "run")
    progress = Counting()
    dissect_run(tmp_path / "run", "alibi:ntk", (16, 32), tmp_path / "look", mass_length=16, progress=progress)
    dissect_run(tmp_path / "run", "rope", None, tmp_path / "look", mass_length=16, progress=progress)
    assert progress.bars == {"ALiBi, NTK scaling: looking inside": [9, 9], "RoPE: looking inside": [3, 3]}


def test_each_variant_is_kept_apart(whole_run: Path, tmp_path: Path) -> None:
    shutil.copytree(whole_run, tmp_path / "run")
    plain, folder = dissect_run(tmp_path / "run", "alibi", (32,), mass_length=16)
    assert folder == tmp_path / "run" / "alibi" / "inside"
    assert read_inside(folder) == plain
    scaled, other = dissect_run(tmp_path / "run", "alibi:ntk", (32,), mass_length=16)
    assert other == tmp_path / "run" / "alibi" / "inside-ntk"
    assert (read_inside(folder), read_inside(other)) == (plain, scaled)
    assert read_inside(tmp_path) is None
    for damaged in ("{", "[]", '{"schema_version": 1}', '{"schema_version": 3, "method": "alibi"}'):
        (folder / "inside.json").write_text(damaged, encoding="utf-8")
        with pytest.raises(LabError) as error:
            read_inside(folder)
        assert str(error.value) == (
            f"inside: expected a file as this version writes it, got {folder / 'inside.json'}; "
            "run alibi dissect again, or delete this file"
        )


def test_load_trained(whole_run: Path, tmp_path: Path) -> None:
    decoder, encoder = load_trained(whole_run, "rope")
    assert not decoder.training
    assert encoder.vocabulary == 256
    with pytest.raises(LabError) as error:
        load_trained(whole_run, "t5")
    assert str(error.value) == (
        f"method: expected a method that was trained, got 't5', of which {whole_run} has no weights; "
        "there are those of alibi, sinusoidal, rope"
    )
    with pytest.raises(LabError, match=r"^run: expected the folder that alibi extrapolate wrote, "):
        load_trained(tmp_path, "rope")
