"""Linear layers of a single token, read as a product of matrix and vector."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("transformers")
from hf_models import KINDS, small
from transformers.models.falcon.modeling_falcon import FalconLinear

from alibi_attention.integrations.transformers import disable, enable, one_token
from alibi_attention.integrations.transformers.one_token import through


@pytest.fixture
def products(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Shapes of the matrices that were taken by a vector."""
    seen: list[tuple[int, ...]] = []
    real = one_token._matrix_vector

    def watched(weight: Tensor, bias: Tensor | None, vector: Tensor) -> Tensor:
        seen.append(tuple(weight.shape))
        return real(weight, bias, vector)

    monkeypatch.setattr(one_token, "_matrix_vector", watched)
    return seen


@pytest.fixture(autouse=True)
def no_graph() -> Iterator[None]:
    with torch.no_grad():
        yield


def linear(kind: type[nn.Linear] = nn.Linear, *, bias: bool = True, dtype: torch.dtype = torch.bfloat16) -> nn.Linear:
    torch.manual_seed(0)
    return kind(48, 80, bias=bias).to(dtype)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", [nn.Linear, FalconLinear])
@pytest.mark.parametrize("shape", [(48,), (1, 48), (1, 1, 48)])
def test_it_is_the_layer_to_rounding(
    products: list[tuple[int, ...]], kind: type[nn.Linear], bias: bool, shape: tuple[int, ...]
) -> None:
    layer = linear(kind, bias=bias)
    # Every other number of a wider row: a vector need not lie in one piece.
    hidden = torch.randn(*shape[:-1], 96).bfloat16()[..., ::2]
    out = through(layer, hidden)
    assert products == [(80, 48)]
    exact = hidden.double() @ layer.weight.double().T + (layer.bias.double() if bias else 0.0)
    assert out.shape == layer(hidden).shape
    # One rounding to bfloat16 of a sum in float32, which seldom lies on the other side of a tie.
    assert (out.double() - exact).abs().max() <= 1.01 * 2.0**-8 * exact.abs().max()
    assert (out == exact.bfloat16()).float().mean() > 0.97


class Adapted(nn.Linear):
    """As adapters and quantised layers are: a Linear with a forward of its own."""

    def forward(self, hidden: Tensor) -> Tensor:
        return 2.0 * super().forward(hidden)


@pytest.mark.parametrize(
    "why", ["tokens", "float32", "mixed", "kind", "hook", "hook of all", "forward", "graph", "autocast", "accelerate"]
)
def test_whatever_else_is_the_layers_own_affair(products: list[tuple[int, ...]], why: str) -> None:
    layer = linear(Adapted if why == "kind" else nn.Linear, dtype=torch.float32 if why == "float32" else torch.bfloat16)
    hidden = torch.randn(1, 2 if why == "tokens" else 1, 48).to(layer.weight.dtype)
    around: Any = nullcontext()
    if why == "hook":
        layer.register_forward_hook(lambda *seen: seen[-1] + 1.0)
    elif why == "hook of all":
        around = nn.modules.module.register_module_forward_hook(lambda *seen: seen[-1] + 1.0)
    elif why == "forward":
        own = layer.forward
        layer.forward = lambda hidden: own(hidden) + 1.0  # type: ignore[method-assign]
    elif why == "graph":
        around = torch.enable_grad()
    elif why == "autocast":
        around = torch.autocast("cpu", torch.float16)
    elif why == "accelerate":
        layer._hf_hook = object()  # type: ignore[assignment]
    elif why == "mixed":
        layer, hidden = layer.float(), hidden.float()
        around = torch.autocast("cpu", torch.bfloat16)
    with around:
        out, expected = through(layer, hidden), layer(hidden)
    assert not products
    assert torch.equal(out, expected)
    assert out.dtype == expected.dtype


@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated")
def test_a_compiled_layer_takes_the_same_product() -> None:
    layer = linear()
    hidden = torch.randn(1, 1, 48).bfloat16()
    compiled = torch.compile(lambda hidden: through(layer, hidden), fullgraph=True)
    assert torch.equal(compiled(hidden), through(layer, hidden))
    torch.library.opcheck(one_token._product, (layer.weight, layer.bias, hidden.reshape(-1)))
    torch.library.opcheck(one_token._product, (layer.weight, None, hidden.reshape(-1)))


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_takes_every_layer_of_its_blocks_so(kind: str, products: list[tuple[int, ...]]) -> None:
    model = enable(small(kind).to(torch.bfloat16))
    ids = torch.arange(7).unsqueeze(0)
    prompt = model(ids, use_cache=True)
    assert not products
    model(ids[:, :1], past_key_values=prompt.past_key_values, use_cache=True)
    blocks = [module for name, module in model.named_modules() if isinstance(module, nn.Linear) and "head" not in name]
    assert sorted(products) == sorted(tuple(block.weight.shape) for block in blocks)
    products.clear()
    disable(model)
    model(ids[:, :1], use_cache=True)
    assert not products
