"""Exported decoders, read back by the libraries they are written for."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from alibi_attention import alibi_slopes
from alibi_attention.integrations.export import WRITERS, DecoderWeights, write_bloom, write_gguf, write_mpt
from alibi_attention.lab.model import Decoder
from alibi_attention.lab.positions import DecoderShape
from alibi_attention.lab.trained import weights_of

TRAINED, LONGEST = 16, 512
HEADS, WIDTH = 4, 32
TEXT = "ALiBi: wörter, 你好, 🚀\n\tdef f(x): return x  # <|endoftext|>"
OF_FORMAT = {"mpt": "gelu", "bloom": "gelu-tanh"}

Load = Callable[[Path], Any]


def decoder_of(activation: Any = "gelu", width: int = WIDTH, **settings: Any) -> Decoder:
    """A decoder with logits of the size of a trained one's, in which no two weights are alike."""
    shape = DecoderShape(TRAINED, 3, HEADS, width)
    decoder = Decoder(shape, "alibi", seed=0, activation=activation, **settings).eval()
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        decoder.embedding.weight.mul_(40)
        for name, parameter in decoder.named_parameters():
            if "norm" in name or name.endswith("bias"):
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=draw))
            elif "up_proj" in name:
                parameter.mul_(2)
    return decoder


def weights(decoder: Decoder) -> DecoderWeights:
    return weights_of(decoder, LONGEST, "test")


@pytest.fixture
def load() -> Load:
    """Transformers' model of a folder, every tensor of which was in the file."""
    transformers = pytest.importorskip("transformers")
    transformers.logging.disable_progress_bar()

    def from_folder(path: Path) -> Any:
        model, report = transformers.AutoModelForCausalLM.from_pretrained(path, output_loading_info=True)
        assert not any(report.values()), report
        return model.eval()

    return from_folder


def tokens(length: int) -> Tensor:
    return torch.randint(1, 256, (2, length), generator=torch.Generator().manual_seed(length))


# Transformers


@pytest.mark.parametrize("length", [1, TRAINED, 5 * TRAINED, LONGEST])
@pytest.mark.parametrize("form", OF_FORMAT)
def test_transformers_gives_the_same_logits(form: str, length: int, tmp_path: Path, load: Load) -> None:
    decoder = decoder_of(OF_FORMAT[form])
    model = load(WRITERS[form](weights(decoder), tmp_path / "out"))
    with torch.no_grad():
        want, got = decoder(tokens(length)), model(tokens(length)).logits
    assert want.abs().max() > 5
    assert type(model).__name__ == {"mpt": "MptForCausalLM", "bloom": "BloomForCausalLM"}[form]
    torch.testing.assert_close(got, want, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("form", "settings"),
    [
        ("mpt", {}),
        ("bloom", {}),
        # A factor of 8, which is exact.
        ("mpt", {"embedding_scale": "sqrt-width", "width": 64}),
        ("bloom", {"embedding_scale": "sqrt-width", "width": 64, "bias": True}),
    ],
)
def test_what_remains_is_rounding(
    form: str, settings: dict[str, Any], tmp_path: Path, load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder = decoder_of(OF_FORMAT[form], **settings)
    model = load(WRITERS[form](weights(decoder), tmp_path / "out")).double()
    # These models form m * j from absolute positions and go to float32 for the softmax; let them stay in float64.
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    softmax = torch.nn.functional.softmax
    monkeypatch.setattr(torch.nn.functional, "softmax", lambda x, dim, **_: softmax(x, dim))
    with torch.no_grad():
        got = model(tokens(LONGEST)).logits
        monkeypatch.undo()
        want = decoder.double()(tokens(LONGEST))
    # The norm behind BLOOM's embedding may be off by 2^-26 of numbers of size 10, and the constant of its GELU by 1e-9.
    torch.testing.assert_close(got, want, rtol=0, atol=1e-10 if form == "mpt" else 2e-6)


@pytest.mark.parametrize("form", OF_FORMAT)
def test_generation_continues_alike(form: str, tmp_path: Path, load: Load) -> None:
    decoder = decoder_of(OF_FORMAT[form])
    folder = WRITERS[form](weights(decoder), tmp_path / "out")
    model = load(folder)
    prompt = tokens(TRAINED)[:1]
    made = model.generate(prompt, max_new_tokens=2 * TRAINED, do_sample=False, attention_mask=torch.ones_like(prompt))
    text = prompt
    with torch.no_grad():
        while text.shape[1] < made.shape[1]:
            text = torch.cat([text, decoder(text)[:, -1:].argmax(-1)], dim=1)
    assert torch.equal(made, text)
    assert made.shape[1] > TRAINED
    assert (model.generation_config.eos_token_id, model.generation_config.pad_token_id) == (0, 0)
    assert model.config.use_cache is True


@pytest.mark.parametrize("form", OF_FORMAT)
def test_the_tokenizer_gives_bytes_and_takes_them_back(form: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    folder = WRITERS[form](weights(decoder_of(OF_FORMAT[form])), tmp_path / "out")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    assert len(tokenizer) == 256
    for text in (TEXT, "".join(map(chr, range(1, 0x250))), "Ā one\0two", "  spaces  kept ", ""):
        ids = tokenizer(text)["input_ids"]
        assert ids == list(text.encode())
        assert tokenizer.decode(ids) == text
    assert tokenizer.decode([97, 0, 98], skip_special_tokens=True) == "ab"
    batch = tokenizer(["abc", "d"], padding=True, return_tensors="pt")
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert tokenizer.model_max_length == LONGEST


# What vLLM's loader and llama.cpp's converter ask of an MPT folder


@pytest.fixture
def mpt_config(tmp_path: Path) -> dict[str, Any]:
    write_mpt(weights(decoder_of()), tmp_path / "out")
    config: dict[str, Any] = json.loads((tmp_path / "out" / "config.json").read_text())
    return config


def refusals_of_vllm(config: dict[str, Any]) -> list[str]:
    """Which assertions of vLLM's MPT a configuration fails.

    Those on the configuration in vllm/model_executor/models/mpt.py at commit 02d799bc, in words of our own: vLLM itself
    is not run. The others are about how many GPUs share the heads.
    """
    attention = config["attn_config"]
    met = {
        "alibi": bool(attention["alibi"]),
        "prefix_lm": not attention["prefix_lm"],
        "embedding_fraction": config["embedding_fraction"] == 1.0,
        "norm_type": config["norm_type"] == "low_precision_layernorm",
        "tie_word_embeddings": bool(config["tie_word_embeddings"]),
    }
    return [name for name, is_met in met.items() if not is_met]


def test_mpt_meets_vllms_assertions(mpt_config: dict[str, Any]) -> None:
    """What that file asserts, and what it takes for granted or computes whatever the configuration says."""
    assert refusals_of_vllm(mpt_config) == []
    attention = mpt_config["attn_config"]
    for name, other in (("alibi", False), ("prefix_lm", True)):
        assert refusals_of_vllm({**mpt_config, "attn_config": {**attention, name: other}}) == [name]
    for name, wrong in (("embedding_fraction", 0.5), ("norm_type", "layernorm"), ("tie_word_embeddings", False)):
        assert refusals_of_vllm({**mpt_config, name: wrong}) == [name]
    # It reads these without a default. Its slopes are those of alibi_bias_max, and not clamping nor norming q and k is
    # what the laboratory's decoder does.
    assert {"clip_qkv": None, "qk_ln": False, "alibi_bias_max": 8}.items() <= attention.items()
    # As many heads of keys as of queries; layers and norms without a bias; four times the width within.
    assert "kv_n_heads" not in attention
    assert (mpt_config["no_bias"], mpt_config["expansion_ratio"]) == (True, 4)
    # Its norms have torch's own epsilon, whatever layer_norm_epsilon says, and it scales by 1/sqrt(head_dim).
    assert mpt_config["layer_norm_epsilon"] == torch.nn.LayerNorm(1).eps
    assert attention["softmax_scale"] is None
    assert mpt_config["architectures"] == ["MPTForCausalLM"]


def test_llama_cpp_names_every_tensor_of_mpt(mpt_config: dict[str, Any], tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    from safetensors import safe_open

    assert mpt_config["architectures"] == ["MPTForCausalLM"]  # the one spelling its converter registers
    assert {"max_seq_len", "d_model", "n_heads", "n_layers", "vocab_size"} <= mpt_config.keys()
    assert {"clip_qkv", "alibi", "alibi_bias_max"} <= mpt_config["attn_config"].keys()
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.MPT, mpt_config["n_layers"])
    write_gguf(weights(decoder_of()), tmp_path / "gguf")
    ours = {tensor.name: tensor for tensor in gguf.GGUFReader(tmp_path / "gguf" / "model.gguf").tensors}
    with safe_open(tmp_path / "out" / "model.safetensors", framework="pt") as file:
        assert file.metadata() == {"format": "pt"}
        stored = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    mapped = {names.get_name(name, try_suffixes=(".weight", ".bias")): tensor for name, tensor in stored.items()}
    # What its converter would write from the MPT folder is what is in the GGUF file.
    assert mapped.keys() == ours.keys()
    for name, tensor in mapped.items():
        assert torch.equal(torch.from_numpy(ours[name].data.copy()).view_as(tensor), tensor), name


def test_gguf_holds_what_llama_cpp_reads(tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    path = write_gguf(weights(decoder_of()), tmp_path / "out")
    assert path == tmp_path / "out" / "model.gguf"
    fields = {name: field.contents() for name, field in gguf.GGUFReader(path).fields.items()}
    wanted = {
        "general.architecture": "mpt",
        "general.name": "test",
        "mpt.context_length": LONGEST,
        "mpt.embedding_length": WIDTH,
        "mpt.block_count": 3,
        "mpt.feed_forward_length": 4 * WIDTH,
        "mpt.attention.head_count": HEADS,
        "mpt.attention.max_alibi_bias": 8.0,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.eos_token_id": 0,
        "tokenizer.ggml.add_bos_token": False,
    }
    assert {name: fields[name] for name in wanted} == wanted
    assert fields["mpt.attention.layer_norm_epsilon"] == pytest.approx(1e-5)
    symbols = fields["tokenizer.ggml.tokens"]
    assert (len(symbols), len(set(symbols))) == (256, 256)
    assert [symbols[byte] for byte in (0, 10, 32, 65, 255)] == ["<|endoftext|>", "Ċ", "Ġ", "A", "ÿ"]
    assert fields["tokenizer.ggml.token_type"] == [int(gguf.TokenType.CONTROL)] + [int(gguf.TokenType.NORMAL)] * 255
    merge = fields["tokenizer.ggml.merges"]
    assert merge == ["Ā Ā"]
    assert not set("".join(merge).split()) & set(symbols)


def test_llama_cpp_computes_the_same(tmp_path: Path) -> None:
    llama_cpp = pytest.importorskip("llama_cpp", reason="llama-cpp-python takes minutes to build")
    decoder = decoder_of("gelu-tanh")
    path = write_gguf(weights(decoder), tmp_path / "out")
    llama = llama_cpp.Llama(
        str(path), n_ctx=256, logits_all=True, verbose=False, n_threads=1,
        type_k=llama_cpp.GGML_TYPE_F32, type_v=llama_cpp.GGML_TYPE_F32,
    )  # fmt: skip
    ids = llama.tokenize(TEXT.encode(), add_bos=False)
    assert ids == list(TEXT.encode())
    assert llama.detokenize(ids) == TEXT.encode()
    llama.eval(ids)
    with torch.no_grad():
        want = decoder(torch.tensor([ids]))[0]
    got = torch.tensor(llama.scores[: len(ids)])
    # Its GELU goes through a table in float16: 11 bits.
    torch.testing.assert_close(got, want, rtol=0, atol=0.02)


# What cannot be said


@pytest.mark.parametrize("form", WRITERS)
def test_slopes_that_no_format_has_are_refused(form: str, tmp_path: Path) -> None:
    activation = OF_FORMAT.get(form, "gelu")
    geometric = weights(decoder_of(activation))
    geometric = replace(geometric, slopes=alibi_slopes(12))
    with pytest.raises(ValueError, match=r"^slopes: expected the interleaved ones for 12 heads, .* 8 or 16 heads"):
        WRITERS[form](geometric, tmp_path / "out")
    learned = replace(geometric, slopes=1.1 * alibi_slopes(HEADS))
    with pytest.raises(ValueError, match="neither learned nor scaled"):
        WRITERS[form](learned, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_interleaved_slopes_are_written_for_any_number_of_heads(tmp_path: Path, load: Load) -> None:
    decoder = Decoder(DecoderShape(TRAINED, 1, 6, 48), "alibi", seed=0).eval()
    decoder.position.slopes = alibi_slopes(6, "interleaved")
    model = load(write_mpt(weights(decoder), tmp_path / "out"))
    with torch.no_grad():
        torch.testing.assert_close(model(tokens(40)).logits, decoder(tokens(40)), rtol=0, atol=1e-5)


@pytest.mark.parametrize("form", OF_FORMAT)
def test_the_other_gelu_is_refused_unless_accepted(form: str, tmp_path: Path, load: Load) -> None:
    other = {"mpt": "gelu-tanh", "bloom": "gelu"}[form]
    decoder = decoder_of(other)
    with pytest.raises(ValueError, match=rf"^activation: expected '{OF_FORMAT[form]}' for {form.upper()}, .*'{other}'"):
        WRITERS[form](weights(decoder), tmp_path / "out")
    assert not list(tmp_path.iterdir())
    model = load(WRITERS[form](weights(decoder), tmp_path / "out", approximate=True))
    with torch.no_grad():
        off = (model(tokens(TRAINED)).logits - decoder(tokens(TRAINED))).abs().max()
    assert 1e-4 < off < 0.1


@pytest.mark.parametrize("form", OF_FORMAT)
def test_embeddings_that_are_scaled(form: str, tmp_path: Path, load: Load) -> None:
    decoder, plain = (decoder_of(OF_FORMAT[form], embedding_scale=scale) for scale in ("sqrt-width", "method"))
    model = load(WRITERS[form](weights(decoder), tmp_path / "out"))
    with torch.no_grad():
        want, got = decoder(tokens(TRAINED)), model(tokens(TRAINED)).logits
        assert (want - plain(tokens(TRAINED))).abs().max() > 1
    torch.testing.assert_close(got, want, rtol=0, atol=1e-4)


def test_biases_are_written_for_bloom_and_refused_for_others(tmp_path: Path, load: Load) -> None:
    decoder, plain = (decoder_of("gelu-tanh", bias=bias) for bias in (True, False))
    model = load(write_bloom(weights(decoder), tmp_path / "bloom"))
    with torch.no_grad():
        want, got = decoder(tokens(TRAINED)), model(tokens(TRAINED)).logits
        assert (want - plain(tokens(TRAINED))).abs().max() > 1
    torch.testing.assert_close(got, want, rtol=0, atol=1e-4)
    assert weights(decoder).parameters == sum(parameter.numel() for parameter in decoder.parameters())
    for form, title in (("mpt", "MPT"), ("gguf", "MPT in llama.cpp")):
        with pytest.raises(ValueError, match="bias") as error:
            WRITERS[form](weights(decoder_of(bias=True)), tmp_path / form)
        assert str(error.value) == (
            f"bias: expected a decoder without biases for {title}, got one with them; train without them (--no-bias), "
            "or export as BLOOM (--format bloom), which has them"
        )
        assert not (tmp_path / form).exists()


@pytest.mark.parametrize(("form", "title"), [("mpt", "MPT"), ("bloom", "BLOOM"), ("gguf", "MPT in llama.cpp")])
def test_relu_is_refused_whatever_is_accepted(form: str, title: str, tmp_path: Path) -> None:
    for approximate in (False, True) if form != "gguf" else (False,):
        with pytest.raises(ValueError, match="activation") as error:
            WRITERS[form](weights(decoder_of("relu")), tmp_path / "out", approximate=approximate)
        assert str(error.value) == (
            f"activation: expected 'gelu' or 'gelu-tanh', as {title} computes GELU whatever a file says, got 'relu'; "
            "train with one of these (--activation gelu)"
        )
    assert not list(tmp_path.iterdir())


def test_another_vocabulary_is_refused(tmp_path: Path) -> None:
    other = weights(decoder_of())
    other = replace(other, embedding=other.embedding[:200])
    with pytest.raises(ValueError, match=r"^embedding: expected 256 tokens, one for each byte, got 200"):
        write_mpt(other, tmp_path / "out")


@pytest.mark.parametrize("form", WRITERS)
def test_nothing_is_overwritten_and_nothing_is_left_half(
    form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exported = weights(decoder_of(OF_FORMAT.get(form, "gelu")))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("kept")
    (tmp_path / "file").write_text("kept")
    for name in ("full", "file"):
        with pytest.raises(ValueError, match=r"^output: expected a new or empty folder"):
            WRITERS[form](exported, tmp_path / name)
    with pytest.raises(ValueError, match=r"^output: expected a folder that can be made"):
        WRITERS[form](exported, tmp_path / "file" / "below")
    (tmp_path / "empty").mkdir()
    WRITERS[form](exported, tmp_path / "empty")

    def fail(*_: Any) -> None:
        raise KeyboardInterrupt

    module = f"alibi_attention.integrations.export.{form}"
    monkeypatch.setattr(f"{module}._write" if form == "gguf" else f"{module}.write_tokenizer", fail)
    with pytest.raises(KeyboardInterrupt):
        WRITERS[form](exported, tmp_path / "broken")
    (tmp_path / "mine").mkdir()
    with pytest.raises(KeyboardInterrupt):
        WRITERS[form](exported, tmp_path / "mine")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "file", "full", "mine"]
    assert list((tmp_path / "mine").iterdir()) == []
    assert (tmp_path / "full" / "mine").read_text() == "kept"


def test_what_came_into_an_empty_folder_meanwhile_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for output in (Path(), tmp_path):

        def write_both(folder: Path, *_: Any) -> None:
            (folder / "config.json").write_text("ours")
            (tmp_path / "config.json").write_text("theirs")

        monkeypatch.setattr("alibi_attention.integrations.export.mpt.write_tokenizer", write_both)
        with pytest.raises(ValueError, match=r"^output: expected a new or empty folder, got .*, which exists; choose"):
            WRITERS["mpt"](weights(decoder_of("gelu")), output)
        assert [path.name for path in tmp_path.iterdir()] == ["config.json"]
        assert (tmp_path / "config.json").read_text() == "theirs"
        (tmp_path / "config.json").unlink()


def test_bloom_norm_is_the_identity_for_any_scale_of_embedding(tmp_path: Path, load: Load) -> None:
    for factor in (1e-6, 1.0, 1e4):
        decoder = decoder_of("gelu-tanh")
        with torch.no_grad():
            decoder.embedding.weight.mul_(factor)
            decoder.final_norm.weight.div_(factor)
        model = load(write_bloom(weights(decoder), tmp_path / str(factor)))
        with torch.no_grad():
            torch.testing.assert_close(model(tokens(9)).logits, decoder(tokens(9)), rtol=0, atol=1e-4)
