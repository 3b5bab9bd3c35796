"""Encoders trained by masked prediction: what is hidden, who sees what, the scores, and what is refused."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lab_cases import of_bytes
from safetensors.torch import load_file
from torch import Tensor

from alibi_attention import alibi_slopes
from alibi_attention.bench.errors import BenchError
from alibi_attention.bench.trained import shape_of
from alibi_attention.generation.source import open_source
from alibi_attention.lab.batches import Batches
from alibi_attention.lab.config import ExperimentConfig, make_config
from alibi_attention.lab.dissection import dissect_run
from alibi_attention.lab.errors import LabError
from alibi_attention.lab.evaluation import window_work
from alibi_attention.lab.experiment import reevaluate_experiment, resume_experiment, start_experiment
from alibi_attention.lab.held_out import HeldOut, segment_starts
from alibi_attention.lab.masking import (
    SHOWN,
    Masker,
    draw_masks,
    evaluate_masked,
    evaluation_masks,
    hide,
    mask_count,
    masked_nats,
)
from alibi_attention.lab.model import Decoder, build_decoder
from alibi_attention.lab.positions import DecoderShape, PositionMethod, position_methods, t5
from alibi_attention.lab.positions.t5 import offset_buckets
from alibi_attention.lab.report import write_report
from alibi_attention.lab.runs import RunFolder
from alibi_attention.lab.study import study_config
from alibi_attention.lab.trained import decoder_weights, describe_run, find_trained, load_trained

MakeConfig = Callable[..., ExperimentConfig]

SHAPE = DecoderShape(length=16, layers=2, heads=4, width=32)
METHODS = list(position_methods())


def encoder(name: str, shape: DecoderShape = SHAPE) -> Decoder:
    """Its positions with parameters that are not what they began as."""
    found = Decoder(shape, name, seed=0, causal=False).eval()
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in found.position.parameters():
            parameter += 0.5 * torch.randn(parameter.shape, generator=generator)
    return found


def random_qkv(seq_len: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    query, key, value = torch.randn(3, 2, SHAPE.heads, seq_len, SHAPE.head_dim, generator=generator)
    return query, key, value


def text(size: int, seed: int = 0) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.random.default_rng(seed).integers(1, 256, size=size, dtype=np.uint8)


# What is hidden


def test_masks_are_as_many_in_every_row_and_anywhere() -> None:
    masks = draw_masks(np.random.default_rng(0), 4000, 20, 0.15)
    assert (masks.sum(axis=1) == 3).all()
    # Each place with probability 3 / 20: four standard deviations.
    assert np.abs(masks.mean(axis=0) - 0.15).max() < 4 * math.sqrt(0.15 * 0.85 / 4000)
    assert len({row.tobytes() for row in masks}) > 1000
    assert (mask_count(256, 0.15), mask_count(3, 0.15), mask_count(10, 0.25)) == (38, 1, 2)


def test_hidden_tokens_are_replaced_and_the_others_not_asked_for() -> None:
    windows = torch.arange(12).view(2, 6)
    masks = np.zeros((2, 6), dtype=bool)
    masks[0, 1] = masks[1, 5] = True
    shown, targets = hide(windows, masks, 256)
    assert shown.tolist() == [[0, 256, 2, 3, 4, 5], [6, 7, 8, 9, 10, 256]]
    assert targets.tolist() == [[SHOWN, 1, SHOWN, SHOWN, SHOWN, SHOWN], [SHOWN] * 5 + [11]]


def test_batches_are_the_windows_of_the_decoder_with_tokens_hidden(tiny: MakeConfig) -> None:
    stream, config = text(200), tiny()
    masker = Masker(0.15, 256)
    masked = list(Batches(stream, config, 0, 5, None, masker))
    assert all(torch.equal(a, b) for a, b in zip(masked[3:], Batches(stream, config, 3, 5, None, masker), strict=True))
    assert not torch.equal(masked[0], next(iter(Batches(stream, tiny(seed=1), 0, 1, None, masker))))
    for batch, whole in zip(masked, Batches(stream, config, 0, 5), strict=True):
        shown, targets = batch.unbind(1)
        hidden = targets != SHOWN
        assert (hidden.sum(1) == 2).all()
        assert torch.equal(torch.where(hidden, targets, shown), whole[:, :-1])
        assert (shown[hidden] == 256).all()


def test_evaluation_masks_depend_on_the_place_alone() -> None:
    (whole,) = evaluation_masks([0], 40_000, 0.15)
    # Each place with probability 0.15: four standard deviations.
    assert abs(whole.mean() - 0.15) < 4 * math.sqrt(0.15 * 0.85 / len(whole))
    # Whatever is read, and however long the longest length: the same tokens.
    for start, segment in ((0, 512), (0, 1024), (1000, 50), (1023, 60), (5000, 3073)):
        (part,) = evaluation_masks([start], segment, 0.15)
        assert np.array_equal(part, whole[start : start + segment])
    # Masked at a share, masked at a larger one.
    assert evaluation_masks([0], 40_000, 0.4)[0][whole].all()


def test_something_is_masked_however_small_the_share() -> None:
    first, second = evaluation_masks([7, 900], 16, 1e-9)
    assert (first.sum(), second.sum(), first[0]) == (1, 0, True)
    found = evaluate_masked(encoder("alibi"), of_bytes(text(200)), (16, 32), 96, 1e-9)
    assert [score.scored_tokens for score in found] == [1, 1]


# Who sees what


@pytest.mark.parametrize("name", METHODS)
def test_every_method_looks_both_ways(name: str) -> None:
    model = encoder(name)
    tokens = torch.randint(1, 256, (1, 16), generator=torch.Generator().manual_seed(0))
    changed = tokens.clone()
    changed[0, 9] = 0
    with torch.no_grad():
        moved = (model(changed) - model(tokens)).abs().amax(-1)[0]
    assert (moved > 1e-6).all(), moved
    assert model(tokens).shape == (1, 16, 257)


def test_alibi_falls_on_both_sides() -> None:
    query, key, value = random_qkv(300)
    distance = (torch.arange(300)[:, None] - torch.arange(300)).abs()
    bias = -alibi_slopes(4)[:, None, None] * distance
    expected = F.scaled_dot_product_attention(query, key, value, attn_mask=bias[None])
    torch.testing.assert_close(encoder("alibi").position.attend(query, key, value), expected)


def test_rope_without_its_mask() -> None:
    query, key, _ = random_qkv(40)
    weights = encoder("rope").position.attend(query, key, torch.eye(40).expand(2, 4, 40, 40))
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 4, 40))
    assert (weights > 0).all()
    decoder = Decoder(SHAPE, "rope", seed=0)
    # The rows of the decoder are those of the encoder with what lies ahead taken away.
    causal = weights.tril() / weights.tril().sum(-1, keepdim=True)
    torch.testing.assert_close(decoder.position.attend(query, key, torch.eye(40).expand(2, 4, 40, 40)), causal)


@pytest.mark.parametrize("seq_len", [5, 300])
def test_t5_bias_is_that_of_transformers_encoder(seq_len: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import T5Config
    from transformers.models.t5.modeling_t5 import T5Attention

    config = T5Config(d_model=32, d_kv=8, num_heads=SHAPE.heads, is_decoder=False)
    theirs = T5Attention(config, has_relative_attention_bias=True, layer_idx=0)
    monkeypatch.setattr(t5, "_ROWS", 64)
    found = encoder("t5").position
    with torch.no_grad():
        theirs.relative_attention_bias.weight.copy_(found.table)
        query, key, value = random_qkv(seq_len)
        expected = F.scaled_dot_product_attention(query, key, value, attn_mask=theirs.compute_bias(seq_len, seq_len))
        torch.testing.assert_close(found.attend(query, key, value), expected)
    offsets = torch.arange(-3000, 3000)
    bucket = theirs._relative_position_bucket(-offsets, bidirectional=True, num_buckets=32, max_distance=128)
    assert torch.equal(offset_buckets(offsets), bucket)


def test_t5_gradients_in_blocks_are_those_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    gradients = []
    for rows in (1024, 7):
        monkeypatch.setattr(t5, "_ROWS_WITH_GRADIENTS", rows)
        found = encoder("t5").position
        inputs = [t.requires_grad_() for t in random_qkv(40)]
        found.attend(*inputs).square().sum().backward()
        gradients.append([t.grad for t in (*inputs, found.get_parameter("units"))])
    for whole, blocks in zip(*gradients, strict=True):
        torch.testing.assert_close(blocks, whole)


@pytest.mark.parametrize("name", METHODS)
def test_who_tells_left_from_right(name: str) -> None:
    """A bias by distance alone, or no positions, cannot: read backwards the text gives the same, backwards."""
    tokens = torch.randint(1, 256, (1, 16), generator=torch.Generator().manual_seed(0))
    model = encoder(name)
    with torch.no_grad():
        there, back = model(tokens), model(tokens.flip(1)).flip(1)
    assert torch.allclose(there, back, atol=1e-4) == (name == "nope" or name.startswith("alibi"))


def test_causal_methods_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PositionMethod, "registry", dict(PositionMethod.registry))

    class OneWay(position_methods()["alibi"]):  # type: ignore[misc]
        name = "one-way"
        title = "one way"

        def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            return F.scaled_dot_product_attention(query, key, value, is_causal=True)

    class Inherited(position_methods()["alibi"]):  # type: ignore[misc]
        name = "inherited"
        title = "inherited"

    assert Inherited.bidirectional
    assert not OneWay.bidirectional
    make_config({"methods": ("one-way",)})
    with pytest.raises(LabError) as error:
        make_config({"methods": ("inherited", "one-way"), "objective": "masked"})
    assert str(error.value) == (
        "methods: expected methods whose attention looks both ways for --objective masked, got 'one-way', whose class "
        "OneWay is causal; leave it out, or have its attend() follow `causal` and set bidirectional = True"
    )


# Scores


def bits_of(model: Decoder, stream: np.ndarray[Any, Any], hidden: np.ndarray[Any, Any], first: int, end: int, at: int,
            ) -> float:  # fmt: skip
    """-log2 p of one hidden token of a window [first, end), from the definition."""
    shown = np.where(hidden, 256, stream.astype(np.int64))[first:end]
    with torch.no_grad():
        logits = model(torch.from_numpy(shown)[None])[0, at - first].double()
    return -logits.log_softmax(-1)[int(stream[at])].item() / math.log(2)


def test_agrees_with_one_prediction_at_a_time() -> None:
    model = encoder("rope")
    stream = text(121)
    held_out = HeldOut(stream, np.array([0, 30, 100]), np.ones(256, dtype=np.int64))
    # 24 is no divisor of 40: the last window of a segment is then 16 long.
    lengths = (8, 24, 40)
    ticked: list[int] = []
    scores = evaluate_masked(model, held_out, lengths, 80, 0.2, tick=ticked.append)
    assert sum(ticked) == window_work(held_out, lengths, 80)
    starts = segment_starts(len(stream), 40, 80)
    hidden = np.zeros(len(stream), dtype=bool)
    for start, mask in zip(starts, evaluation_masks(starts, 40, 0.2), strict=True):
        hidden[start : start + 40] = mask
    asked = np.flatnonzero(hidden)
    assert 8 <= len(asked) <= 24
    for length, score in zip(lengths, scores, strict=True):
        bits = []
        for at in asked:
            start = max(s for s in starts if s <= at)
            first = start + (at - start) // length * length
            bits.append(bits_of(model, stream, hidden, first, min(first + length, start + 40), int(at)))
        assert score.length == length
        assert score.scored_bytes == score.scored_tokens == len(asked)
        assert score.bits_per_byte == pytest.approx(np.mean(bits), abs=1e-5)
        documents = (asked >= 30).astype(int) + (asked >= 100)
        totals = [sum(b for b, d in zip(bits, documents, strict=True) if d == n) for n in set(documents.tolist())]
        assert score.document_bits == pytest.approx(totals, abs=1e-4)
        assert score.by_position[-1].end <= length


def test_all_lengths_predict_the_same_tokens() -> None:
    model = encoder("nope")
    torch.nn.init.zeros_(model.embedding.weight)  # type: ignore[union-attr, arg-type]
    found = evaluate_masked(model, of_bytes(text(500)), (8, 32, 128), 400, 0.15)
    starts = segment_starts(500, 128, 400)
    masked = int(sum(mask.sum() for mask in evaluation_masks(starts, 128, 0.15)))
    assert len(starts) == 3
    assert {(score.scored_tokens, score.document_bytes) for score in found} == {(masked, (masked,))}
    # Uniform over the bytes and the mask token, which is never right.
    assert [score.bits_per_byte for score in found] == pytest.approx([math.log2(257)] * 3)


def test_positions_that_end_are_reported() -> None:
    found = evaluate_masked(encoder("learned"), of_bytes(text(200)), (16, 32), 64, 0.15)
    assert found[0].bits_per_byte is not None
    assert (found[1].bits_per_byte, found[1].note) == (None, "its positions end at 16")


def test_a_variant_is_set_up_for_each_length() -> None:
    model, held_out = encoder("alibi"), of_bytes(text(200))
    plain = evaluate_masked(model, held_out, (16, 64), 64, 0.15)
    scaled = evaluate_masked(model, held_out, (16, 64), 64, 0.15, variant="linear")
    assert plain[0] == scaled[0]
    assert plain[1].bits_per_byte != scaled[1].bits_per_byte


def test_losses_of_hidden_tokens_alone() -> None:
    model = encoder("alibi")
    tokens = torch.randint(1, 256, (3, 16))
    shown, targets = hide(tokens, draw_masks(np.random.default_rng(0), 3, 16, 0.3), model.mask_token)
    every = -model(shown).log_softmax(-1)
    expected = [every[row, at, tokens[row, at]] for row, at in (targets != SHOWN).nonzero().tolist()]
    torch.testing.assert_close(masked_nats(model, shown, targets), torch.stack(expected))


# Training


def outcome(root: Path, config: ExperimentConfig) -> dict[str, Any]:
    folder = RunFolder(root)
    results = {method: folder.read_result(method) for method in config.methods}
    return {m: (folder.weights(m).read_bytes(), result and result.evaluations) for m, result in results.items()}


@contextmanager
def interrupted_at(number: int) -> Iterator[None]:
    """Ctrl-C in the middle of the numbered forward pass, counted from 1."""
    original, count = Decoder.hidden, 0

    def hidden(self: Decoder, *arguments: Any) -> Tensor:
        nonlocal count
        count += 1
        if count == number:
            raise KeyboardInterrupt
        return original(self, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Decoder, "hidden", hidden)
        yield


@pytest.mark.parametrize("name", METHODS)
def test_training_learns(tiny: MakeConfig, tmp_path: Path, name: str) -> None:
    config = tiny(objective="masked", methods=(name,), steps=60, learning_rate=1e-2, batch_size=16)
    result = start_experiment(config, tmp_path / "run")[0]
    assert result.evaluations[0].objective == "masked"
    bits = result.scores[0].bits_per_byte
    assert bits is not None
    assert bits < 4.5


def test_resumes_to_the_same_bits(tiny: MakeConfig, tmp_path: Path) -> None:
    config = tiny(
        objective="masked", mask_share=0.3, methods=("alibi", "t5"), variants=("all",), dropout=0.1, accumulate=2,
        attention_dropout=0.1, precision="bf16",
    )  # fmt: skip
    start_experiment(config, tmp_path / "whole")
    # In the first step, in the middle of a later one, in an evaluation, in the second method.
    for number in (1, 8, 15, 40):
        with interrupted_at(number), pytest.raises(KeyboardInterrupt):
            start_experiment(config, tmp_path / f"broken-{number}")
        resume_experiment(tmp_path / f"broken-{number}")
        assert outcome(tmp_path / f"broken-{number}", config) == outcome(tmp_path / "whole", config), number


def test_two_processes_come_to_what_one_does(tiny: MakeConfig, tmp_path: Path) -> None:
    sizes = {"objective": "masked", "methods": ("alibi",), "steps": 3, "eval_lengths": (16,), "eval_tokens": 32}
    weights = []
    for devices in (1, 2):
        start_experiment(tiny(**sizes, devices=devices), tmp_path / f"{devices}")
        weights.append(load_file(RunFolder(tmp_path / f"{devices}").weights("alibi")))
    for name in weights[0]:
        torch.testing.assert_close(weights[1][name], weights[0][name], rtol=1e-4, atol=1e-5)


def test_what_changes_the_outcome(tiny: MakeConfig, tmp_path: Path) -> None:
    found = {}
    for name, value in (("objective", "next"), ("objective", "masked"), ("mask_share", 0.4), ("cutoffs", (128,))):
        config = tiny(**{"objective": "masked", "methods": ("rope",), name: value})
        start_experiment(config, tmp_path / f"{name}-{value}")
        tensors = load_file(RunFolder(tmp_path / f"{name}-{value}").weights("rope"))
        found[name, value] = sum(float(tensor.double().sum()) for tensor in tensors.values())
    assert len(set(found.values())) == 4, found


def test_other_lengths_of_a_trained_encoder(masked_run: Path, tmp_path: Path) -> None:
    again = reevaluate_experiment(masked_run, tmp_path / "again", {"eval_lengths": (16, 128)})
    assert [score.length for score in again[0].scores] == [16, 128]
    with pytest.raises(LabError, match=r"^protocols: expected windows for --objective masked, got sliding, which "):
        reevaluate_experiment(masked_run, tmp_path / "other", {"protocols": ("windows", "sliding")})
    header = (tmp_path / "again" / "table.md").read_text(encoding="utf-8").splitlines()[0]
    assert header == "| bits per masked byte at | 16 | 128 | 16 → 128 |"
    assert "bits per masked byte, lower is better" in (tmp_path / "again" / "figure.svg").read_text(encoding="utf-8")


# What is refused


@pytest.fixture(scope="module")
def masked_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from lab_cases import TINY, write_texts

    folder = tmp_path_factory.mktemp("masked")
    values = {**TINY, "objective": "masked", "methods": ("alibi", "rope"), "text": (str(write_texts(folder / "t")),)}
    start_experiment(make_config(values), folder / "run")
    return folder / "run"


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        ({"protocols": ("windows", "sliding")}, "protocols: expected windows for --objective masked, got sliding, "
         "which predicts a token from those before it; leave it out"),
        ({"protocols": ("all",)}, "protocols: expected windows for --objective masked, got sliding, which "
         "predicts a token from those before it; leave it out"),
        ({"recall_share": 0.2}, "recall_share: expected 0 for --objective masked: a value is asked for after it was "
         "told, got 0.2; leave it out"),
        ({"mask_share": 0.0}, "mask_share: expected a share above 0, got 0; 0.15 is the default"),
        ({"mask_share": 1.0}, "mask_share: expected a share from 0 up to, not including, 1, got 1.0; such as 0.1"),
        ({"objective": "next", "mask_share": 0.3}, "mask_share: expected the default, 0.15, got 0.3 for next-token "
         "prediction, which masks nothing; add --objective masked, or leave it out"),
        ({"objective": "both"}, "objective: expected 'next' or 'masked', got 'both'; choose one of these"),
    ],
)  # fmt: skip
def test_settings_that_make_no_sense(values: dict[str, Any], complaint: str) -> None:
    with pytest.raises(LabError) as error:
        make_config({"objective": "masked", **values})
    assert str(error.value) == complaint


def test_no_text_is_generated(masked_run: Path) -> None:
    with pytest.raises(LabError) as error:
        open_source(masked_run, method="rope", cache="full", device="cpu", dtype=None)
    assert str(error.value) == (
        "run: expected a model that reads from left to right, got one trained by masked prediction, whose every layer "
        "sees the tokens that are still to come; train one with --objective next"
    )


def test_nothing_is_exported(masked_run: Path) -> None:
    with pytest.raises(LabError) as error:
        decoder_weights(find_trained(masked_run / "alibi"))
    assert str(error.value) == (
        "run: expected a decoder, which predicts the next token: MPT, BLOOM and GGUF's MPT are decoders, got an "
        f"encoder trained by masked prediction in {masked_run}; train with --objective next"
    )


def test_what_is_about_decoders_says_so(masked_run: Path, tmp_path: Path) -> None:
    with pytest.raises(LabError, match=r"^run: expected a decoder, .*, got .*, an encoder trained by masked"):
        dissect_run(masked_run, "alibi", [16], tmp_path, mass_length=16)
    with pytest.raises(LabError, match=r"^runs: expected runs of next-token prediction, .*, got masked prediction in "):
        write_report([masked_run], tmp_path / "report")
    with pytest.raises(LabError, match=r"^objective: expected next, whose protocols a study reports, got masked; "):
        study_config({"objective": "masked"})
    with pytest.raises(BenchError, match=r"^model: expected a decoder: cases are causal, got .*, an encoder trained"):
        shape_of(masked_run)


def test_a_trained_encoder_is_read_back(masked_run: Path) -> None:
    model, _ = load_trained(masked_run, "rope")
    assert model.mask_token == 256
    assert not model.position.causal
    assert model.embedding.num_embeddings == 257
    assert not describe_run(find_trained(masked_run / "alibi")).causal
    config = RunFolder(masked_run).read_config()
    assert build_decoder(config.model_copy(update={"objective": "next"}), "rope").embedding.num_embeddings == 256
