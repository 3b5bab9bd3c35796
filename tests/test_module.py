"""The layer: weights by seed, slopes that survive everything, padding, grouped heads."""

from __future__ import annotations

import copy
import io
import math

import pytest
import torch
from torch import Tensor, nn

from alibi_attention import ALiBiAttention, alibi_slopes, build_alibi_bias, weight_decay_groups


def _dense(module: ALiBiAttention, x: Tensor, key_mask: Tensor | None = None) -> Tensor:
    """The layer as the paper writes it, with the bias as a matrix."""
    batch, length, _ = x.shape
    group = module.num_heads // module.num_kv_heads

    def heads(projection: nn.Linear, number: int) -> Tensor:
        return projection(x).view(batch, length, number, module.head_dim).transpose(1, 2)

    query = heads(module.q_proj, module.num_heads)
    key, value = (heads(p, module.num_kv_heads).repeat_interleave(group, 1) for p in (module.k_proj, module.v_proj))
    bias = build_alibi_bias(
        module.num_heads, length, torch.float64, is_causal=module.is_causal, slopes=module.head_slopes().detach()
    ).to(x.dtype)
    scores = query @ key.mT / math.sqrt(module.head_dim) + bias
    if key_mask is not None:
        scores = scores.masked_fill(~key_mask[:, None, None], -math.inf)
    out = torch.softmax(scores, -1).nan_to_num(0.0) @ value
    return module.out_proj(out.transpose(1, 2).reshape(batch, length, -1))


@pytest.mark.parametrize("is_causal", [True, False])
@pytest.mark.parametrize("num_kv_heads", [8, 2, 1])
@pytest.mark.parametrize("learned", [False, True, "positive"])
def test_equals_the_dense_formula(is_causal: bool, num_kv_heads: int, learned: bool) -> None:
    module = ALiBiAttention(64, 8, num_kv_heads=num_kv_heads, is_causal=is_causal, learned_slopes=learned).double()
    x = torch.randn(2, 33, 64, dtype=torch.float64)
    torch.testing.assert_close(module(x), _dense(module, x), rtol=1e-6, atol=1e-8)


def test_shape() -> None:
    assert ALiBiAttention(128, 8)(torch.randn(2, 8, 128)).shape == (2, 8, 128)


def test_a_seed_gives_the_weights_of_four_linears_in_order() -> None:
    torch.manual_seed(7)
    module = ALiBiAttention(64, 4, num_kv_heads=2)
    torch.manual_seed(7)
    linears = [nn.Linear(64, size, bias=False) for size in (64, 32, 32, 64)]
    for name, linear in zip(("q_proj", "k_proj", "v_proj", "out_proj"), linears, strict=True):
        assert torch.equal(getattr(module, name).weight, linear.weight)
        assert getattr(module, name).bias is None


def test_preset_slopes_are_no_part_of_the_state() -> None:
    module = ALiBiAttention(64, 4)
    assert list(module.state_dict()) == [f"{name}_proj.weight" for name in ("q", "k", "v", "out")]
    assert len(list(module.parameters())) == 4
    assert next(iter(ALiBiAttention(64, 4, learned_slopes=True).state_dict())) == "slopes"
    assert next(iter(ALiBiAttention(64, 4, learned_slopes="positive").state_dict())) == "log_slopes"


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("is_causal", [True, False])
def test_padding_changes_nothing(side: str, is_causal: bool) -> None:
    module = ALiBiAttention(32, 4, is_causal=is_causal).double()
    x = torch.randn(3, 20, 32, dtype=torch.float64)
    lengths = [20, 13, 1]
    mask = torch.zeros(3, 20, dtype=torch.bool)
    spans = [slice(20 - n, 20) if side == "left" else slice(0, n) for n in lengths]
    for row, span in enumerate(spans):
        mask[row, span] = True
    x = x.masked_fill(~mask.unsqueeze(-1), 1e3)
    out = module(x, key_mask=mask)
    torch.testing.assert_close(out[0], module(x[:1])[0])
    for row, span in enumerate(spans):
        torch.testing.assert_close(out[row, span], module(x[row : row + 1, span])[0])


def test_padding_carries_no_gradient() -> None:
    module = ALiBiAttention(32, 4)
    x = torch.randn(1, 9, 32, requires_grad=True)
    mask = torch.tensor([[False] * 4 + [True] * 5])
    (grad,) = torch.autograd.grad(module(x, key_mask=mask)[:, 4:].square().sum(), x)
    assert torch.equal(grad[:, :4], torch.zeros(1, 4, 32))
    assert grad[:, 4:].abs().sum() > 0


@pytest.mark.parametrize("learned", [False, True, "positive"])
class TestSlopes:
    """Whatever is done to a module, its slopes stay float32 and right."""

    @staticmethod
    def module(learned: bool) -> ALiBiAttention:
        return ALiBiAttention(48, 6, learned_slopes=learned)

    def right(self, module: ALiBiAttention) -> bool:
        slopes = module.head_slopes()
        return slopes.dtype == torch.float32 and torch.allclose(slopes, alibi_slopes(6), rtol=1e-6, atol=0)

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
    def test_dtype(self, learned: bool, dtype: torch.dtype) -> None:
        module = self.module(learned).to(dtype)
        assert self.right(module)
        assert module.q_proj.weight.dtype == dtype
        out = module(torch.randn(1, 5, 48, dtype=dtype))
        assert out.dtype == dtype
        out.sum().backward()

    def test_half_and_back(self, learned: bool) -> None:
        assert self.right(self.module(learned).half().float().bfloat16())

    def test_deepcopy_and_saving(self, learned: bool) -> None:
        module = copy.deepcopy(self.module(learned))
        assert self.right(module)
        file = io.BytesIO()
        torch.save(module.state_dict(), file)
        file.seek(0)
        other = self.module(learned)
        other.load_state_dict(torch.load(file, weights_only=True))
        assert self.right(other)

    def test_meta_construction(self, learned: bool) -> None:
        with torch.device("meta"):
            module = self.module(learned)
        assert module.head_slopes().is_meta
        module.to_empty(device="cpu")
        if learned:
            module.reset_parameters()
        assert self.right(module)

    def test_meta_construction_and_assigned_weights(self, learned: bool) -> None:
        source = self.module(learned)
        with torch.device("meta"):
            module = self.module(learned)
        module.load_state_dict(source.state_dict(), assign=True)
        assert self.right(module)
        x = torch.randn(1, 5, 48)
        assert torch.equal(module(x), source(x))

    def test_default_device_context(self, learned: bool) -> None:
        with torch.device("cpu"):
            assert self.right(self.module(learned))

    def test_inside_another_module(self, learned: bool) -> None:
        parent = nn.Sequential(self.module(learned), nn.Linear(48, 48)).to(torch.bfloat16)
        assert self.right(parent[0])


def test_learned_slopes_learn() -> None:
    for learned in (True, "positive"):
        module = ALiBiAttention(32, 4, learned_slopes=learned)
        before = module.head_slopes().detach().clone()
        groups = weight_decay_groups(module, 0.1)
        optimizer = torch.optim.AdamW(groups, lr=0.5)
        for _ in range(20):
            optimizer.zero_grad()
            module(torch.randn(2, 12, 32)).square().mean().backward()
            optimizer.step()
        assert not torch.allclose(module.head_slopes(), before)
        if learned == "positive":
            assert (module.head_slopes() > 0).all()


def test_weight_decay_leaves_slopes_alone() -> None:
    model = nn.Sequential(ALiBiAttention(32, 4, learned_slopes="positive"), nn.LayerNorm(32), nn.Linear(32, 8))
    decayed, spared = weight_decay_groups(model, 0.1)
    assert (decayed["weight_decay"], spared["weight_decay"]) == (0.1, 0.0)
    assert {id(p) for p in spared["params"]} == {
        id(p) for p in (model[0].log_slopes, model[1].weight, model[1].bias, model[2].bias)
    }
    assert len(decayed["params"]) == 5
    model[2].weight.requires_grad_(False)
    assert len(weight_decay_groups(model, 0.1)[0]["params"]) == 4


def test_dropout_only_in_training() -> None:
    module = ALiBiAttention(32, 4, dropout=0.5)
    x = torch.randn(1, 20, 32)
    assert not torch.equal(module(x), module(x))
    module.eval()
    assert torch.equal(module(x), module(x))
    torch.testing.assert_close(module(x), _dense(module, x), rtol=1e-4, atol=1e-5)


def test_own_slopes_and_printing() -> None:
    slopes = torch.tensor([0.3, 0.0])
    module = ALiBiAttention(16, 2, slopes=slopes, num_kv_heads=1, dropout=0.1, is_causal=False)
    assert torch.equal(module.head_slopes(), slopes)
    slopes += 1
    assert not torch.equal(module.head_slopes(), slopes)
    assert module.extra_repr() == (
        "embed_dim=16, num_heads=2, num_kv_heads=1, dropout=0.1, is_causal=False, learned_slopes=False"
    )


def test_the_weights_of_a_multihead_attention_go_over() -> None:
    mha = torch.nn.MultiheadAttention(32, 4, batch_first=True)
    module = ALiBiAttention(32, 4, slopes=torch.zeros(4), is_causal=False, bias=True)
    torch.nn.init.normal_(mha.in_proj_bias)
    state = {f"out_proj.{name}": each for name, each in mha.out_proj.state_dict().items()}
    for part, weight, bias in zip("qkv", mha.in_proj_weight.chunk(3), mha.in_proj_bias.chunk(3), strict=True):
        state |= {f"{part}_proj.weight": weight, f"{part}_proj.bias": bias}
    module.load_state_dict(state)
    x, padding = torch.randn(2, 9, 32), torch.zeros(2, 9, dtype=torch.bool)
    padding[1, 6:] = True
    want = mha(x, x, x, key_padding_mask=padding, need_weights=False)[0]
    torch.testing.assert_close(module(x, key_mask=~padding), want)
    assert "bias=True" in repr(module)
    with pytest.raises(ValueError, match=r"^bias: expected True or False, got 1"):
        ALiBiAttention(32, 4, bias=1)


def test_compiles_as_one_graph() -> None:
    module = ALiBiAttention(32, 4)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    x = torch.randn(2, 10, 32)
    torch.testing.assert_close(compiled(x), module(x))


def test_half_precision_weights_train() -> None:
    module = ALiBiAttention(32, 4, learned_slopes=True, dtype=torch.bfloat16)
    module(torch.randn(1, 7, 32, dtype=torch.bfloat16)).float().sum().backward()
    assert module.slopes.grad is not None
    assert module.slopes.grad.dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64, torch.int64])
def test_an_input_of_another_dtype_is_named(dtype: torch.dtype) -> None:
    layer, x = ALiBiAttention(16, 2), torch.ones(1, 5, 16).to(dtype)
    with pytest.raises(ValueError, match=rf"^x: expected torch.float32, the layer's own, got {dtype}; convert x"):
        layer(x)
    if dtype.is_floating_point:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert layer(x.to(torch.bfloat16)).dtype == torch.bfloat16
        assert layer.to(dtype)(x).dtype == dtype
