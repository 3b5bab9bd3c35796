from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from alibi_attention import alibi_slopes, build_alibi_bias
from alibi_attention.lab.model import Decoder
from alibi_attention.lab.positions import DecoderShape, PositionMethod, position_methods
from alibi_attention.lab.positions.rope import rotate, rotation
from alibi_attention.lab.positions.sinusoidal import sinusoids

SHAPE = DecoderShape(length=16, layers=2, heads=4, width=32)


def random_qkv(seq_len: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    query, key, value = torch.randn(3, 2, SHAPE.heads, seq_len, SHAPE.head_dim, generator=generator)
    return query, key, value


def test_registry_finds_every_module() -> None:
    assert list(position_methods()) == ["alibi", "rope", "sinusoidal"]
    assert [method.title for method in position_methods().values()] == ["ALiBi", "RoPE", "sinusoidal"]


def test_a_name_is_taken_once() -> None:
    with pytest.raises(TypeError, match="two position methods are named 'rope'; rename one"):
        type("Second", (PositionMethod,), {"name": "rope", "title": "RoPE"})


def test_sinusoids_are_the_formula() -> None:
    table = sinusoids(50, 8)
    for t in (0, 1, 49):
        for i in range(4):
            angle = t / 10000 ** (2 * i / 8)
            assert table[t, 2 * i].item() == pytest.approx(math.sin(angle), abs=1e-7)
            assert table[t, 2 * i + 1].item() == pytest.approx(math.cos(angle), abs=1e-7)


def test_sinusoidal_adds_to_embeddings_and_leaves_attention_alone() -> None:
    method = position_methods()["sinusoidal"](SHAPE)
    x = torch.randn(2, 20, SHAPE.width)
    torch.testing.assert_close(method.embed(x), math.sqrt(32) * x + sinusoids(20, SHAPE.width))
    query, key, value = random_qkv(20)
    dense = F.scaled_dot_product_attention(query, key, value, is_causal=True)
    torch.testing.assert_close(method.attend(query, key, value), dense)


def test_rope_scores_depend_on_distance_alone() -> None:
    query, key = torch.randn(2, 8, dtype=torch.float64)
    cos, sin = (table.double() for table in rotation(4096, 8))
    queries, keys = rotate(query.expand(4096, 8), cos, sin), rotate(key.expand(4096, 8), cos, sin)
    for distance in (0, 1, 100):
        scores = (queries[distance:] * keys[: 4096 - distance]).sum(-1)
        # The tables are float32, so angles agree to its rounding.
        torch.testing.assert_close(scores, scores[:1].expand_as(scores), rtol=0, atol=2e-6)
    assert not torch.allclose((queries[100] * keys[0]).sum(), (queries[101] * keys[0]).sum(), atol=1e-3)


def test_rope_turns_pairs_by_the_angle() -> None:
    cos, sin = rotation(10, 4)
    x = torch.tensor([1.0, 2.0, 3.0, 4.0]).expand(10, 4)
    turned = rotate(x, cos, sin)
    for pair, rate in enumerate((1.0, 0.01)):
        expected = complex(1.0 + pair, 3.0 + pair) * complex(math.cos(7 * rate), math.sin(7 * rate))
        assert turned[7, pair].item() == pytest.approx(expected.real, abs=1e-6)
        assert turned[7, pair + 2].item() == pytest.approx(expected.imag, abs=1e-6)


def test_rope_follows_a_change_of_length() -> None:
    method = position_methods()["rope"](SHAPE)
    long = method.attend(*random_qkv(40))
    torch.testing.assert_close(method.attend(*(t[:, :, :9] for t in random_qkv(40))), long[:, :, :9])


def test_alibi_is_the_dense_formula() -> None:
    method = position_methods()["alibi"](SHAPE)
    query, key, value = random_qkv(50)
    bias = build_alibi_bias(SHAPE.heads, 50)
    dense = F.scaled_dot_product_attention(query, key, value, attn_mask=bias)
    torch.testing.assert_close(method.attend(query, key, value), dense)
    assert method.get_buffer("slopes").tolist() == alibi_slopes(SHAPE.heads).tolist()
    assert not method.state_dict()


@pytest.mark.parametrize("name", ["alibi", "rope", "sinusoidal"])
def test_decoder_is_causal_and_sees_order(name: str) -> None:
    decoder = Decoder(SHAPE, name, seed=0)
    tokens = torch.randint(1, 256, (1, 24), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits = decoder(tokens)
        changed = tokens.clone()
        changed[0, 12] = 0
        torch.testing.assert_close(decoder(changed)[:, :12], logits[:, :12])
        assert not torch.allclose(decoder(changed)[:, 12:], logits[:, 12:])
        swapped = tokens.clone()
        swapped[0, [3, 8]] = tokens[0, [8, 3]]
        assert (decoder(swapped)[0, -1] - logits[0, -1]).abs().max() > 1e-5


def test_every_method_starts_from_the_same_decoder() -> None:
    weights = [Decoder(SHAPE, name, seed=7).state_dict() for name in position_methods()]
    for other in weights[1:]:
        assert other.keys() == weights[0].keys()
        assert all(torch.equal(other[name], weights[0][name]) for name in other)
    assert not torch.equal(Decoder(SHAPE, "rope", seed=8).embedding.weight, weights[0]["embedding.weight"])


def test_nats_in_chunks_are_those_of_the_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("alibi_attention.lab.model.LOSS_CHUNK", 7)
    decoder = Decoder(SHAPE, "rope", seed=0)
    tokens = torch.randint(256, (2, 26))
    inputs, targets = tokens[:, :-1], tokens[:, 1:]
    expected = -decoder(inputs).log_softmax(-1).gather(-1, targets.unsqueeze(-1)).squeeze(-1)
    torch.testing.assert_close(decoder.nats(inputs, targets), expected)
