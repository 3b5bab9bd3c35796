"""What PyTorch does around an operator: opcheck, compile, export, autocast, checkpointing, torch.func."""

from __future__ import annotations

import re
import shutil
from typing import Any

import pytest
import torch
import torch._dynamo.testing
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from alibi_attention import ALiBiAttention, alibi_attention, alibi_slopes
from alibi_attention.call import _slopes_made_there, preset_slopes


def _leaves(*shape: int, requires_grad: bool = True) -> tuple[Tensor, ...]:
    return tuple(torch.randn(*shape, requires_grad=requires_grad) for _ in range(3))


def _op_arguments(backend: str, **changes: Any) -> tuple[Any, ...]:
    query, key, value = _leaves(2, 4, 9, 8)
    call: dict[str, Any] = {
        "offsets": None, "key_mask": None, "cu_seqlens": None, "cu_seqlens_k": None, "seed": None,
        "key_center": None, "key_norms": None, "is_causal": True,
        "scale": 0.35, "query_offset": 0, "window_left": -1, "window_right": -1, "dropout_p": 0.0,
        "tolerance": 2.0**-24, "learned_slopes": True, "backend": backend,
    }  # fmt: skip
    return (query, key, value, alibi_slopes(4).requires_grad_(), *{**call, **changes}.values())


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("options", ["plain", "mask", "dropout", "packed"])
def test_opcheck(any_backend: str, options: str) -> None:
    changes: dict[str, Any] = {
        "plain": {},
        "mask": {"key_mask": torch.tensor([[True] * 9, [False] * 3 + [True] * 6]), "offsets": torch.tensor([0, 2])},
        "dropout": {"dropout_p": 0.3, "seed": torch.tensor(7)},
        "packed": {"cu_seqlens": torch.tensor([0, 4, 9], dtype=torch.int32)},
    }[options]
    arguments = _op_arguments(any_backend, **changes)
    if options == "packed":
        arguments = (*(t.detach()[:1].requires_grad_() for t in arguments[:3]), *arguments[3:])
    torch.library.opcheck(torch.ops.alibi_attention.forward.default, arguments)
    out, lse, plan = torch.ops.alibi_attention.forward(*arguments)
    inputs = (t.detach() for t in (torch.randn_like(out), torch.randn_like(lse), *arguments[:4], out, lse, plan))
    torch.library.opcheck(torch.ops.alibi_attention.backward.default, (*inputs, *arguments[4:]))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_opcheck_on_transposed_views(any_backend: str) -> None:
    """As a layer passes them: (batch, seq, heads, dim) memory."""
    arguments = _op_arguments(any_backend)
    views = [torch.randn(2, 9, 4, 8).transpose(1, 2).requires_grad_() for _ in range(3)]
    arguments = (*views, *arguments[3:])
    torch.library.opcheck(torch.ops.alibi_attention.forward.default, arguments)
    out, lse, plan = torch.ops.alibi_attention.forward(*arguments)
    flow = torch.randn(2, 9, 4, 8).transpose(1, 2), torch.randn_like(lse)
    inputs = (t.detach() for t in (*flow, *arguments[:4], out, lse, plan))
    torch.library.opcheck(torch.ops.alibi_attention.backward.default, (*inputs, *arguments[4:]))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler on the CPU")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_training_through_inductor(dtype: torch.dtype) -> None:
    torch._dynamo.reset()
    module = ALiBiAttention(32, 4, num_kv_heads=2, learned_slopes="positive").to(dtype)
    compiled = torch.compile(module, fullgraph=True)
    x = torch.randn(2, 20, 32, dtype=dtype)
    results = [torch.autograd.grad(m(x).square().sum(), list(module.parameters())) for m in (compiled, module)]
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got, want)


def _compiled(function: Any) -> tuple[Any, Any]:
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    return torch.compile(function, fullgraph=True, dynamic=True, backend=counter), counter


@pytest.mark.parametrize("with_gradients", [True, False])
@pytest.mark.parametrize("slopes", [None, alibi_slopes(4)])
def test_compile_once_for_every_length(any_backend: str, with_gradients: bool, slopes: Tensor | None) -> None:
    def attend(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        return alibi_attention(query, key, value, slopes, return_lse=True, backend=any_backend)

    compiled, counter = _compiled(attend)
    graphs = None
    for length in (9, 33, 64, 130, 300, 513):
        tensors = _leaves(2, 4, length, 8, requires_grad=with_gradients)
        out, lse = compiled(*tensors)
        want_out, want_lse = attend(*tensors)
        assert torch.equal(out, want_out)
        assert torch.equal(lse, want_lse)
        if with_gradients:
            got = torch.autograd.grad((out, lse), tensors, (torch.ones_like(out), torch.ones_like(lse)))
            want = torch.autograd.grad((want_out, want_lse), tensors, (torch.ones_like(out), torch.ones_like(lse)))
            for g, w in zip(got, want, strict=True):
                assert torch.equal(g, w)
        if graphs is None:
            graphs = counter.frame_count
        assert counter.frame_count == graphs, f"compiled again at length {length}"


def test_compile_with_mask_dropout_and_learned_slopes() -> None:
    mask = torch.ones(2, 9, dtype=torch.bool)
    mask[0, :3] = False
    slopes = alibi_slopes(4).requires_grad_()

    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return alibi_attention(query, key, value, slopes, key_mask=mask, dropout_p=0.3)

    compiled, _ = _compiled(attend)
    tensors = _leaves(2, 4, 9, 8)
    results = []
    for function in (compiled, attend):
        torch.manual_seed(5)
        out = function(*tensors)
        results.append((out, *torch.autograd.grad(out.sum(), (*tensors, slopes))))
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got, want)


def test_export() -> None:
    class Attend(torch.nn.Module):
        def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            return alibi_attention(query, key, value)

    tensors = _leaves(2, 4, 9, 8, requires_grad=False)
    length = torch.export.Dim("length", min=2, max=4096)
    shapes = [{2: length}] * 3
    program = torch.export.export(Attend(), tensors, dynamic_shapes=shapes)
    longer = _leaves(2, 4, 200, 8, requires_grad=False)
    assert torch.equal(program.module()(*longer), alibi_attention(*longer))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(dtype: torch.dtype) -> None:
    query, key, value = _leaves(2, 4, 30, 8)
    with torch.autocast("cpu", dtype=dtype):
        out, lse = alibi_attention(query, key.to(dtype), value, return_lse=True)
        double = alibi_attention(*(t.double() for t in (query, key, value)))
    assert out.dtype == dtype
    assert lse.dtype == torch.float32
    assert double.dtype == torch.float64
    torch.testing.assert_close(out, alibi_attention(query.to(dtype), key.to(dtype), value.to(dtype)))
    out.float().sum().backward()
    assert query.grad is not None
    assert query.grad.dtype == torch.float32


def test_checkpointing_repeats_dropout() -> None:
    tensors = _leaves(1, 4, 70, 8)

    def attend(*leaves: Tensor) -> Tensor:
        return alibi_attention(*leaves, dropout_p=0.4)

    grads = []
    for function in (lambda *t: torch.utils.checkpoint.checkpoint(attend, *t, use_reentrant=False), attend):
        torch.manual_seed(3)
        grads.append(torch.autograd.grad(function(*tensors).square().sum(), tensors))
    for got, want in zip(*grads, strict=True):
        assert torch.equal(got, want)


def test_second_derivatives_raise(any_backend: str) -> None:
    query, key, value = _leaves(1, 2, 5, 8)
    out = alibi_attention(query, key, value, backend=any_backend)
    grad = torch.autograd.grad(out.square().sum(), query, create_graph=True)[0]
    with pytest.raises(RuntimeError, match=re.escape("alibi_attention has no second derivative: call it without")):
        grad.sum().backward()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_forward_mode_raises(any_backend: str) -> None:
    query, key, value = _leaves(1, 2, 5, 8, requires_grad=False)

    def attend(q: Tensor) -> Tensor:
        return alibi_attention(q, key, value, backend=any_backend)

    with pytest.raises(NotImplementedError, match="alibi_attention has no forward-mode derivative"):
        torch.func.jvp(attend, (query,), (torch.ones_like(query),))
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(query, torch.ones_like(query))
        with pytest.raises(NotImplementedError, match="alibi_attention has no forward-mode derivative"):
            attend(dual)


def test_func_grad_and_vmap(any_backend: str) -> None:
    query, key, value = _leaves(1, 2, 5, 8, requires_grad=False)

    def loss(q: Tensor, s: Tensor) -> Tensor:
        return alibi_attention(q, key, value, s, backend=any_backend).square().sum()

    slopes = alibi_slopes(2)
    leaves = query.clone().requires_grad_(), slopes.clone().requires_grad_()
    want = torch.autograd.grad(loss(*leaves), leaves)
    got = torch.func.grad(loss, argnums=(0, 1))(query, slopes)
    for g, w in zip(got, want, strict=True):
        torch.testing.assert_close(g, w)

    many = torch.randn(3, *query.shape)
    mapped = torch.func.vmap(lambda q: alibi_attention(q, key, value, slopes, backend=any_backend))(many)
    for each, one in zip(mapped, many, strict=True):
        torch.testing.assert_close(each, alibi_attention(one, key, value, slopes, backend=any_backend))
    per_sample = torch.func.vmap(torch.func.grad(loss), in_dims=(0, None))(many, slopes)
    for each, one in zip(per_sample, many, strict=True):
        torch.testing.assert_close(each, torch.func.grad(loss)(one, slopes))
    with pytest.raises((RuntimeError, NotImplementedError)):
        torch.func.hessian(loss)(query, slopes)


def test_learned_slopes_under_vmap_have_their_gradients(any_backend: str) -> None:
    """Inside of vmap a tensor does not say that it is differentiated outside."""
    query, key, value = _leaves(1, 4, 20, 16, requires_grad=False)
    slopes = torch.stack([alibi_slopes(4), 2.0 * alibi_slopes(4)])

    def loss(m: Tensor) -> Tensor:
        return alibi_attention(query, key, value, m, backend=any_backend).sin().sum()

    leaf = slopes.clone().requires_grad_()
    torch.stack([loss(m) for m in leaf]).sum().backward()
    assert leaf.grad is not None
    batched = slopes.clone().requires_grad_()
    torch.func.vmap(loss)(batched).sum().backward()
    found = {
        "vmap": batched.grad,
        "grad of vmap": torch.func.grad(lambda m: torch.func.vmap(loss)(m).sum())(slopes),
        "vmap of grad": torch.func.vmap(torch.func.grad(loss))(slopes),
        "jacrev": torch.func.jacrev(lambda m: torch.func.vmap(loss)(m).sum())(slopes),
    }
    for name, grad in found.items():
        torch.testing.assert_close(grad, leaf.grad, msg=lambda told, name=name: f"{name}: {told}")


def test_an_exported_call_has_the_gradients_of_its_slopes(any_backend: str) -> None:
    """It may be exported with slopes that nobody learns, and be trained afterwards."""

    class Attention(torch.nn.Module):
        def forward(self, query: Tensor, key: Tensor, value: Tensor, slopes: Tensor) -> Tensor:
            return alibi_attention(query, key, value, slopes, backend=any_backend)

    tensors = _leaves(1, 4, 20, 16, requires_grad=False)
    exported = torch.export.export(Attention(), (*tensors, alibi_slopes(4))).module()
    grads = []
    for module in (Attention(), exported):
        slopes = alibi_slopes(4).requires_grad_()
        module(*tensors, slopes).sin().sum().backward()
        grads.append(slopes.grad)
    torch.testing.assert_close(grads[1], grads[0])


@pytest.mark.parametrize("transform", [torch.func.grad, torch.func.jacrev, torch.func.vmap])
def test_values_that_no_transform_wraps_are_checked_under_it(transform: Any) -> None:
    query, key, value = _leaves(1, 4, 20, 16, requires_grad=False)
    holed = torch.ones(1, 20, dtype=torch.bool)
    holed[:, 5:9] = False
    bounds = torch.tensor([0, 10, 5000], dtype=torch.int32)
    inputs = query.expand(3, *query.shape) if transform is torch.func.vmap else query
    for options, message in (({"key_mask": holed}, "key_mask: .* got holes"), ({"cu_seqlens": bounds}, "cu_seqlens:")):
        with pytest.raises(ValueError, match=message):
            transform(lambda q, options=options: alibi_attention(q, key, value, **options).sum())(inputs)
    # Of wrapped ones nothing is known.
    torch.func.vmap(lambda mask: alibi_attention(query, key, value, key_mask=mask))(holed.expand(3, 1, 20))


def test_preset_slopes_of_a_graph_for_a_gpu_are_made_there() -> None:
    """Bitwise the same; one that copied them from the host in every call would make the stream wait each time."""
    for heads in range(1, 200):
        assert torch.equal(_slopes_made_there(heads, torch.device("cpu")), alibi_slopes(heads)), heads
    with FakeTensorMode(), _Devices() as seen:
        assert preset_slopes(12, torch.device("cuda")).shape == (12,)
    assert seen.found == {"cuda"}


class _Devices(TorchDispatchMode):
    """Notes where every tensor that is made lies."""

    def __init__(self) -> None:
        super().__init__()
        self.found: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        self.found.add(made.device.type)
        return made


def test_gradients_only_where_asked() -> None:
    """Any subset of inputs may require gradients, and only one of the outputs may be used."""
    query, key, value = _leaves(1, 2, 5, 8, requires_grad=False)
    for name, tensor in (("query", query), ("key", key), ("value", value)):
        leaf = tensor.clone().requires_grad_()
        tensors = {"query": query, "key": key, "value": value, name: leaf}
        out, lse = alibi_attention(**tensors, return_lse=True)
        assert torch.autograd.grad(out.sum(), leaf)[0].abs().sum() > 0
        if name != "value":
            _, lse = alibi_attention(**tensors, return_lse=True)
            assert torch.autograd.grad(lse.sum(), leaf)[0].abs().sum() > 0


def test_slopes_by_batch_have_gradients_by_batch() -> None:
    query, key, value = _leaves(3, 2, 20, 8, requires_grad=False)
    shared = alibi_slopes(2).requires_grad_()
    own = alibi_slopes(2).expand(3, -1).clone().requires_grad_()
    (together,) = torch.autograd.grad(alibi_attention(query, key, value, shared).square().sum(), shared)
    (apart,) = torch.autograd.grad(alibi_attention(query, key, value, own).square().sum(), own)
    torch.testing.assert_close(apart.sum(0), together)
    assert apart.shape == (3, 2)


@pytest.mark.parametrize("backend", ["cpu", "blocked"])
@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("query", torch.zeros(1, 4, 0, 16)),
        ("key", torch.zeros(1, 0, 100, 16)),
        ("key", torch.zeros(1, 2, 100, 16, dtype=torch.float16)),
        ("value", torch.zeros(1, 2, 1, 16)),
        ("query", torch.zeros(1, 3, 100, 16)),
        ("slopes", torch.zeros(1)),
        ("seed", None),
        ("seed", torch.zeros(2, dtype=torch.int64)),
        ("offsets", torch.zeros(3, dtype=torch.int64)),
        ("key_mask", torch.ones(1, 7, dtype=torch.bool)),
        ("key_center", torch.zeros(1, 2, 3)),
        ("key_norms", torch.zeros(1, 2, 1, dtype=torch.float64)),
        ("cu_seqlens", torch.zeros(1, dtype=torch.int32)),
    ],
)
def test_the_operator_called_by_hand_refuses_what_does_not_fit(name: str, wrong: torch.Tensor | None, backend: str):
    """A kernel would read past the ends of it, or divide by zero."""
    query, key, value = (torch.randn(1, heads, 100, 16) for heads in (4, 2, 2))
    tensors = {"query": query, "key": key, "value": value, "slopes": alibi_slopes(4)}
    optional = dict.fromkeys(("offsets", "key_mask", "cu_seqlens", "cu_seqlens_k", "seed", "key_center", "key_norms"))
    optional["seed"] = torch.zeros((), dtype=torch.int64)
    call = {**tensors, **optional}
    rest = (True, 0.25, 0, -1, -1, 0.5, 0.0, False, backend)
    torch.ops.alibi_attention.forward(*call.values(), *rest)
    with pytest.raises(ValueError, match=": expected "):
        torch.ops.alibi_attention.forward(*{**call, name: wrong}.values(), *rest)
