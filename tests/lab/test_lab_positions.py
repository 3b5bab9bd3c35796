from __future__ import annotations

import math
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention as sdpa

from alibi_attention import alibi_slopes, build_alibi_bias, scale_slopes
from alibi_attention.lab.errors import LabError
from alibi_attention.lab.model import Decoder
from alibi_attention.lab.positions import (
    DecoderShape,
    PositionMethod,
    full_title,
    position_methods,
    rope,
    split_name,
    t5,
)
from alibi_attention.lab.positions.rope import plain_rates, rotate, rotation, scaled_rates
from alibi_attention.lab.positions.sinusoidal import sinusoids
from alibi_attention.lab.positions.t5 import distance_buckets

SHAPE = DecoderShape(length=16, layers=2, heads=4, width=32)
METHODS = ["alibi", "alibi-interleaved", "alibi-learned", "learned", "nope", "rope", "sinusoidal", "t5"]
VARIANTS = ["alibi:dynamic", "alibi:linear", "alibi:ntk", "alibi-learned:ntk", "rope:dynamic", "rope:pi", "rope:yarn"]


def random_qkv(seq_len: int, head_dim: int = SHAPE.head_dim) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    query, key, value = torch.randn(3, 2, SHAPE.heads, seq_len, head_dim, generator=generator)
    return query, key, value


def method(name: str, shape: DecoderShape = SHAPE) -> PositionMethod:
    return position_methods()[name](shape)


def trained(name: str, shape: DecoderShape = SHAPE) -> PositionMethod:
    """With parameters that are not what they began as."""
    found = method(name, shape)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in found.parameters():
            parameter += 0.5 * torch.randn(parameter.shape, generator=generator)
    return found


# Names


def test_registry_finds_every_module() -> None:
    assert list(position_methods()) == METHODS
    assert [m.title for m in position_methods().values()] == [
        "ALiBi", "ALiBi, interleaved", "ALiBi, learned", "learned", "NoPE", "RoPE", "sinusoidal", "T5 bias",
    ]  # fmt: skip


def test_a_name_is_taken_once() -> None:
    with pytest.raises(TypeError, match="two position methods are named 'rope'; rename one"):
        type("Second", (PositionMethod,), {"name": "rope", "title": "RoPE"})


def test_full_names() -> None:
    assert split_name("rope:yarn") == ("rope", "yarn")
    assert split_name("rope") == ("rope", None)
    assert full_title("rope:yarn") == "RoPE, YaRN"
    assert full_title("nope") == "NoPE"
    with pytest.raises(LabError) as error:
        split_name("rope:linear")
    assert str(error.value).startswith("variants: expected names of variants, got 'rope:linear'; choose from alibi:")


def test_unknown_variant_is_refused() -> None:
    with pytest.raises(LabError) as error, method("nope").used_at(32, "yarn"):
        pass
    assert str(error.value) == (
        "variant: expected a variant of nope (none), got 'yarn'; choose one of these, or leave it out"
    )


def test_variant_is_left_behind() -> None:
    found = method("rope")
    with found.used_at(64, "yarn"):
        assert (found.length, found.variant) == (64, "yarn")
    assert (found.length, found.variant) == (16, None)


# Sinusoidal


def test_sinusoids_are_the_formula() -> None:
    table = sinusoids(50, 8)
    for t in (0, 1, 49):
        for i in range(4):
            angle = t / 10000 ** (2 * i / 8)
            assert table[t, 2 * i].item() == pytest.approx(math.sin(angle), abs=1e-7)
            assert table[t, 2 * i + 1].item() == pytest.approx(math.cos(angle), abs=1e-7)


def test_sinusoidal_adds_to_embeddings_and_leaves_attention_alone() -> None:
    sinusoidal = method("sinusoidal")
    x = torch.randn(2, 20, SHAPE.width)
    assert torch.equal(sinusoidal.embed(x), x + sinusoids(20, SHAPE.width))
    assert [name for name in METHODS if method(name).scales_embeddings] == ["sinusoidal"]
    query, key, value = random_qkv(20)
    dense = F.scaled_dot_product_attention(query, key, value, is_causal=True)
    torch.testing.assert_close(sinusoidal.attend(query, key, value), dense)


# Learned


def test_learned_positions_end_with_their_table() -> None:
    learned = method("learned")
    x = torch.zeros(2, 9, SHAPE.width)
    assert torch.equal(learned.embed(x)[1], learned.table[:9])
    assert learned.longest == 16
    assert all(method(name).longest is None for name in METHODS if name != "learned")
    with pytest.raises(LabError) as error:
        learned.embed(torch.zeros(1, 17, SHAPE.width))
    assert str(error.value) == (
        "length: expected at most 16, the positions that were trained, got 17 tokens; "
        "use shorter inputs, or a method whose positions do not end"
    )


# RoPE


def test_rope_scores_depend_on_distance_alone() -> None:
    query, key = torch.randn(2, 8)
    cos, sin = rotation(plain_rates(8), 4096)
    queries, keys = rotate(query.expand(4096, 8), cos, sin), rotate(key.expand(4096, 8), cos, sin)
    for distance in (0, 1, 100):
        scores = (queries[distance:] * keys[: 4096 - distance]).sum(-1)
        # Tables and products are float32, so scores agree to its rounding.
        torch.testing.assert_close(scores, scores[:1].expand_as(scores), rtol=0, atol=4e-6)
    assert not torch.allclose((queries[100] * keys[0]).sum(), (queries[101] * keys[0]).sum(), atol=1e-3)


def test_rope_turns_pairs_by_the_angle() -> None:
    cos, sin = rotation(plain_rates(4), 10)
    x = torch.tensor([1.0, 2.0, 3.0, 4.0]).expand(10, 4)
    turned = rotate(x, cos, sin)
    for pair, rate in enumerate((1.0, 0.01)):
        expected = complex(1.0 + pair, 3.0 + pair) * complex(math.cos(7 * rate), math.sin(7 * rate))
        assert turned[7, pair].item() == pytest.approx(expected.real, abs=1e-6)
        assert turned[7, pair + 2].item() == pytest.approx(expected.imag, abs=1e-6)


def test_rope_follows_a_change_of_length() -> None:
    plain = method("rope")
    long = plain.attend(*random_qkv(40))
    torch.testing.assert_close(plain.attend(*(t[:, :, :9] for t in random_qkv(40))), long[:, :, :9])


def llama(variant: str | None, train_length: int, length: int, head_dim: int) -> torch.nn.Module:
    """Transformers' own rotary embedding, set up for a length."""
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    parameters = {"rope_type": "default", "rope_theta": 1e4}
    if variant == "pi":
        parameters |= {"rope_type": "linear", "factor": length / train_length}
    if variant == "yarn":
        ratio = length / train_length
        parameters |= {"rope_type": "yarn", "factor": ratio, "original_max_position_embeddings": train_length}
    if variant == "dynamic":
        parameters |= {"rope_type": "dynamic", "factor": 1.0}
    heads = 4
    config = LlamaConfig(
        hidden_size=heads * head_dim, num_attention_heads=heads, max_position_embeddings=train_length,
        rope_parameters=parameters,
    )  # fmt: skip
    return LlamaRotaryEmbedding(config)


@pytest.mark.parametrize("variant", [None, "pi", "dynamic", "yarn"])
def test_rope_is_what_transformers_computes(variant: str | None) -> None:
    from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

    shape = DecoderShape(length=64, layers=1, heads=4, width=128)
    query, key, value = random_qkv(512, head_dim=32)
    cos, sin = llama(variant, 64, 512, 32)(value, torch.arange(512)[None])
    expected = F.scaled_dot_product_attention(*apply_rotary_pos_emb(query, key, cos, sin), value, is_causal=True)
    found = method("rope", shape)
    with found.used_at(512, variant):
        # Their angles are float32: 512 * 2^-24 radians apart from ours at most, on scores of a few units.
        torch.testing.assert_close(found.attend(query, key, value), expected, rtol=0, atol=2e-3)
        ours = found._rotation(512, value.device)
        torch.testing.assert_close(ours[0], cos[0, :, :16], rtol=0, atol=1e-4)
        torch.testing.assert_close(ours[1], sin[0, :, :16], rtol=0, atol=1e-4)
        plain = method("rope", shape).attend(query, key, value)
        assert (variant is None) == torch.allclose(found.attend(query, key, value), plain)


def test_rules_leave_the_trained_length_alone_or_say_so() -> None:
    for variant in ("pi", "dynamic", "yarn"):
        rates, factor = scaled_rates(variant, 32, train_length=64, length=40)
        torch.testing.assert_close(rates, plain_rates(32), rtol=1e-6, atol=0)
        assert factor == 1.0


def test_dynamic_looks_at_the_tokens_and_the_others_at_the_length() -> None:
    for name, follows_tokens in (("rope:dynamic", True), ("rope:pi", False), ("rope:yarn", False),
                                 ("alibi:dynamic", True), ("alibi:linear", False), ("alibi:ntk", False)):  # fmt: skip
        base, variant = split_name(name)
        found = method(base)
        with found.used_at(64, variant):
            at_64 = found.attend(*random_qkv(16))
        with found.used_at(16, variant):
            at_16 = found.attend(*random_qkv(16))
        assert torch.equal(at_64, at_16) == follows_tokens, name


def test_transformers_missing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rope, "find_spec", lambda _: None)
    method("rope").require(None)
    with pytest.raises(LabError) as error:
        method("rope").require("yarn")
    assert str(error.value) == (
        "variants: expected the package transformers, whose rules RoPE is scaled by, got rope:yarn without it; "
        "pip install -c constraints.txt '.[transformers]' in a checkout of alibi-attention, or leave this variant out"
    )


# T5


def t5_attention(causal: bool = True) -> torch.nn.Module:
    from transformers import T5Config
    from transformers.models.t5.modeling_t5 import T5Attention

    config = T5Config(d_model=32, d_kv=8, num_heads=SHAPE.heads, is_decoder=causal)
    return T5Attention(config, has_relative_attention_bias=True, layer_idx=0)


def test_buckets_are_those_of_transformers() -> None:
    distances = torch.arange(100_000)
    theirs = t5_attention()._relative_position_bucket(-distances, bidirectional=False, num_buckets=32, max_distance=128)
    assert torch.equal(distance_buckets(distances), theirs)
    assert distance_buckets(torch.tensor([0, 15, 16, 127, 128])).tolist() == [0, 15, 16, 31, 31]


@pytest.mark.parametrize("seq_len", [5, 300])
def test_t5_bias_is_that_of_transformers(seq_len: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(t5, "_ROWS", 64)
    found = trained("t5")
    theirs = t5_attention()
    with torch.no_grad():
        theirs.relative_attention_bias.weight.copy_(found.table)
        causal = torch.full((seq_len, seq_len), -torch.inf).triu(1)
        mask = theirs.compute_bias(seq_len, seq_len) + causal
        query, key, value = random_qkv(seq_len)
        expected = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        torch.testing.assert_close(found.attend(query, key, value), expected)


def test_t5_moves_by_ten_nats_where_others_move_by_one() -> None:
    found = method("t5")
    optimizer = torch.optim.AdamW(found.parameters(), lr=1e-2, weight_decay=0.0)
    query, key, value = random_qkv(40)
    found.attend(query, key, value).square().sum().backward()
    optimizer.step()
    moved = found.table.abs()
    torch.testing.assert_close(moved[moved > 0], torch.full_like(moved[moved > 0], 0.1), rtol=1e-3, atol=0.0)
    assert (moved > 0).sum() >= 20 * SHAPE.heads


def test_t5_gradients_in_blocks_are_those_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    gradients = []
    for rows in (1024, 7):
        monkeypatch.setattr(t5, "_ROWS_WITH_GRADIENTS", rows)
        found = trained("t5")
        inputs = [t.requires_grad_() for t in random_qkv(40)]
        found.attend(*inputs).square().sum().backward()
        gradients.append([t.grad for t in (*inputs, found.units)])
    for whole, blocks in zip(*gradients, strict=True):
        torch.testing.assert_close(blocks, whole)


# ALiBi


@pytest.mark.parametrize(("name", "scheme"), [("alibi", "geometric"), ("alibi-interleaved", "interleaved")])
def test_alibi_is_the_dense_formula(name: str, scheme: str) -> None:
    shape = DecoderShape(length=16, layers=1, heads=6, width=48)
    found = method(name, shape)
    query, key, value = torch.randn(3, 1, 6, 50, 8)
    slopes = alibi_slopes(6, scheme)
    distance = (torch.arange(50)[:, None] - torch.arange(50)).clamp_min(0)
    bias = -slopes[:, None, None] * distance + torch.full((50, 50), -torch.inf).triu(1)
    dense = F.scaled_dot_product_attention(query, key, value, attn_mask=bias[None])
    torch.testing.assert_close(found.attend(query, key, value), dense)
    assert found.get_buffer("slopes").tolist() == slopes.tolist()
    assert not found.state_dict()


@pytest.mark.parametrize("variant", ["linear", "dynamic", "ntk"])
def test_alibi_variants_scale_the_slopes(variant: str) -> None:
    found = method("alibi")
    query, key, value = random_qkv(64)
    slopes = scale_slopes(alibi_slopes(4), variant, train_length=16, length=64)  # type: ignore[arg-type]
    distance = (torch.arange(64)[:, None] - torch.arange(64)).clamp_min(0)
    bias = -slopes[:, None, None] * distance + torch.full((64, 64), -torch.inf).triu(1)
    dense = F.scaled_dot_product_attention(query, key, value, attn_mask=bias[None])
    with found.used_at(64, variant):
        torch.testing.assert_close(found.attend(query, key, value), dense)
    plain = F.scaled_dot_product_attention(query, key, value, attn_mask=build_alibi_bias(4, 64))
    torch.testing.assert_close(found.attend(query, key, value), plain)


def test_learned_slopes_are_learned() -> None:
    found = method("alibi-learned")
    assert list(found.state_dict()) == ["log_slopes"]
    torch.testing.assert_close(found.slopes, alibi_slopes(4))
    query, key, value = random_qkv(40)
    found.attend(query, key, value).square().sum().backward()
    gradient = found.get_parameter("log_slopes").grad
    slopes = alibi_slopes(4).log().requires_grad_()
    bias = -slopes.exp()[:, None, None] * (torch.arange(40)[:, None] - torch.arange(40)).clamp_min(0)
    bias = bias + torch.full((40, 40), -torch.inf).triu(1)
    F.scaled_dot_product_attention(query, key, value, attn_mask=bias[None]).square().sum().backward()
    torch.testing.assert_close(gradient, slopes.grad, rtol=1e-4, atol=1e-4)


# All of them


@pytest.mark.parametrize("name", METHODS)
def test_decoder_is_causal_and_sees_order(name: str) -> None:
    decoder = Decoder(SHAPE._replace(length=24), name, seed=0)
    if name == "t5":  # its table begins at zero, which is no position at all
        decoder.position = trained("t5")
    tokens = torch.randint(1, 256, (1, 24), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits = decoder(tokens)
        changed = tokens.clone()
        changed[0, 12] = 0
        torch.testing.assert_close(decoder(changed)[:, :12], logits[:, :12])
        assert not torch.allclose(decoder(changed)[:, 12:], logits[:, 12:])
        swapped = tokens.clone()
        swapped[0, [3, 8]] = tokens[0, [8, 3]]
        # Through two causal layers even NoPE notices.
        assert (decoder(swapped)[0, -1] - logits[0, -1]).abs().max() > 1e-5


@pytest.mark.parametrize("name", METHODS + VARIANTS)
def test_attention_looked_at_through_the_identity(name: str) -> None:
    base, variant = split_name(name)
    found = trained(base)
    query, key, value = random_qkv(24)
    with torch.no_grad(), found.used_at(24, variant):
        weights = found.attend(query, key, torch.eye(24).expand(2, 4, 24, 24))
        torch.testing.assert_close(weights.sum(-1), torch.ones(2, 4, 24))
        assert (weights.triu(1) == 0).all()
        torch.testing.assert_close(weights @ value, found.attend(query, key, value))


@pytest.mark.parametrize("name", METHODS)
def test_bfloat16_stays_bfloat16(name: str) -> None:
    query, key, value = (t.bfloat16() for t in random_qkv(12))
    found = trained(name)
    out = found.attend(query, key, value)
    assert out.dtype == torch.bfloat16
    with torch.no_grad():
        expected = found.attend(query.float(), key.float(), value.float())
    torch.testing.assert_close(out.float(), expected, rtol=0, atol=0.05)


def test_every_method_starts_from_the_same_decoder() -> None:
    weights = {name: Decoder(SHAPE, name, seed=7).state_dict() for name in position_methods()}
    plain = weights.pop("nope")
    for name, other in weights.items():
        own = {key for key in other if key.startswith("position.")}
        assert other.keys() - own == plain.keys()
        assert all(torch.equal(other[key], plain[key]) for key in plain)
        assert bool(own) == (name in ("learned", "t5", "alibi-learned"))
    assert not torch.equal(Decoder(SHAPE, "rope", seed=8).embedding.weight, plain["embedding.weight"])


def test_nats_in_chunks_are_those_of_the_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("alibi_attention.lab.model.LOSS_CHUNK", 7 * 300)
    decoder = Decoder(SHAPE, "rope", seed=0, vocabulary=300)
    tokens = torch.randint(300, (2, 26))
    inputs, targets = tokens[:, :-1], tokens[:, 1:]
    expected = -decoder(inputs).log_softmax(-1).gather(-1, targets.unsqueeze(-1)).squeeze(-1)
    torch.testing.assert_close(decoder.nats(inputs, targets), expected)


# A process for each name, because what is measured is the most it ever held; forked, because torch is slow to import.
_PEAKS = """
import os, resource, sys, torch
from alibi_attention.lab.model import Decoder
from alibi_attention.lab.positions import DecoderShape, split_name
torch.set_num_threads(1)
def peak(decoder, variant, length):
    tokens = torch.randint(256, (1, length))
    with torch.no_grad(), decoder.position.used_at(length, variant):
        decoder.nats(tokens, tokens)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for name in sys.argv[2:]:
    child = os.fork()
    if child == 0:
        base, variant = split_name(name)
        decoder = Decoder(DecoderShape(length=64, layers=1, heads=1, width=8), base, seed=0)
        peak(decoder, variant, 64)
        print(name, peak(decoder, variant, 1024), peak(decoder, variant, int(sys.argv[1])), flush=True)
        os._exit(0)
    os.waitpid(child, 0)
"""


def test_scaled_slopes_are_never_steeper_than_trained_ones() -> None:
    decoder = Decoder(DecoderShape(length=64, layers=1, heads=4, width=16), "alibi", seed=0)
    for variant in ("linear", "dynamic", "ntk"):
        with decoder.position.used_at(16, variant):
            assert torch.equal(decoder.position.slopes_for(16), decoder.position.slopes)
        with decoder.position.used_at(128, variant):
            assert (decoder.position.slopes_for(128) < decoder.position.slopes)[1:].all()


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in KiB on Linux alone")
@pytest.mark.parametrize(("of", "length"), [("methods", 65_536), ("variants", 16_384)])
def test_memory_is_linear_in_the_length(of: str, length: int) -> None:
    """Of every method and variant but learned positions, which end."""
    methods = {name: cls for name, cls in position_methods().items() if name != "learned"}
    variants = [f"{name}:{variant}" for name, cls in methods.items() for variant in cls.variants]
    names = list(methods) if of == "methods" else variants
    done = subprocess.run(
        [sys.executable, "-c", _PEAKS, str(length), *names], capture_output=True, text=True, check=True
    )
    lines = [line.split() for line in done.stdout.splitlines()]
    found = {name: (int(after) - int(before)) / 1024 for name, before, after in lines}
    assert list(found) == names, done.stderr
    # 16,384 squared would be 256 MiB if it were of bytes; a linear pass needs some tens.
    assert {name: mib for name, mib in found.items() if mib >= 100} == {}


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-5), (torch.bfloat16, 3e-2)])
def test_attention_without_a_bias_is_torch_s(dtype: torch.dtype, bound: float, causal: bool) -> None:
    """Whichever kernel runs it; results and gradients."""
    position = position_methods()["nope"](DecoderShape(length=64, layers=1, heads=4, width=128))
    position.causal = causal
    generator = torch.Generator().manual_seed(0)
    leaves = [torch.randn(2, 4, 200, 32, generator=generator).to(dtype).requires_grad_() for _ in range(3)]
    weight = torch.randn(2, 4, 200, 32, generator=generator)
    found = []
    for attend in (position.attend, lambda *qkv: sdpa(*qkv, is_causal=causal)):
        out = attend(*leaves)
        assert out.dtype is dtype
        found.append((out, *torch.autograd.grad((out.float() * weight).sum(), leaves)))
    for ours, theirs in zip(*found, strict=True):
        assert (ours.float() - theirs.float()).abs().max() <= bound * theirs.float().abs().max()


def test_attention_that_no_kernel_here_takes_is_torch_s_own() -> None:
    """Heads wider than the kernels', or an install without them: plain torch in blocks would be slower than SDPA."""
    position = position_methods()["nope"](DecoderShape(length=64, layers=1, heads=1, width=300))
    query, key, value = (torch.randn(1, 1, 80, 300) for _ in range(3))
    assert torch.equal(position.attend(query, key, value), sdpa(query, key, value, is_causal=True))


def test_attention_does_not_follow_torch_s_defaults() -> None:
    position = position_methods()["rope"](DecoderShape(length=64, layers=1, heads=4, width=128))
    query, key, value = (torch.randn(1, 4, 80, 32) for _ in range(3))
    expected = position.attend(query, key, value)
    before = torch.get_default_dtype()
    try:
        torch.set_default_dtype(torch.bfloat16)
        assert torch.equal(position.attend(query, key, value), expected)
    finally:
        torch.set_default_dtype(before)
