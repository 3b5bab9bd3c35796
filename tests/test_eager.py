"""The short way of plain calls: the same numbers as through the operator, and open only where nobody looks on."""

from __future__ import annotations

import gc
import math
import subprocess
import sys
import threading
import weakref
from array import array
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from alibi_attention import alibi_attention, alibi_slopes, dispatch, eager, ops
from alibi_attention.backends import cpu, native, prepared
from alibi_attention.backends.prepared import PreparedCall
from alibi_attention.call import call_arguments, problem_of

pytestmark = pytest.mark.skipif(isinstance(native.load(), str), reason="the compiled library is not installed")


FIND = eager.Recent.find


@pytest.fixture(autouse=True)
def _at_first_sight(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing is remembered, and every call goes the short way, not only from its second time on."""

    def find(self: eager.Recent, name: tuple[Any, ...]) -> Any:
        found = FIND(self, name)
        return eager._SEEN_ONCE if found is eager._NEVER_SEEN else found

    monkeypatch.setattr(eager.Recent, "find", find)
    eager._CALLS.clear()
    yield
    eager._CALLS.clear()


@pytest.fixture
def from_the_second_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """As it is outside of tests."""
    monkeypatch.setattr(eager.Recent, "find", FIND)


@pytest.fixture
def short_calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Which kernels the short way has run."""
    ran: list[str] = []

    def spied(name: str, whole: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            ran.append(name)
            return whole(*arguments)

        return call

    for name in ("output", "results", "gradients"):
        monkeypatch.setattr(PreparedCall, name, spied(name, getattr(PreparedCall, name)))
    return ran


def tensors(
    heads: int = 4, kv_heads: int = 4, q_len: int = 20, k_len: int = 20, dim: int = 32, value_dim: int = 32,
    dtype: torch.dtype = torch.float32,
) -> list[Tensor]:  # fmt: skip
    shapes = ((2, heads, q_len, dim), (2, kv_heads, k_len, dim), (2, kv_heads, k_len, value_dim))
    return [torch.randn(shape).to(dtype) for shape in shapes]


def everything(leaves: list[Tensor], slopes: Tensor | None = None, **options: Any) -> list[Tensor]:
    """Output and lse, without gradients and with them, and all gradients."""
    leaves = [leaf.detach().requires_grad_() for leaf in leaves]
    if slopes is not None:
        slopes = slopes.detach().requires_grad_()
    wanted = leaves if slopes is None else [*leaves, slopes]
    with torch.no_grad():
        alone = alibi_attention(*leaves, slopes, **options)
        pair = alibi_attention(*leaves, slopes, return_lse=True, **options)
    out = alibi_attention(*leaves, slopes, **options)
    both = alibi_attention(*leaves, slopes, return_lse=True, **options)
    weight = torch.linspace(-1.0, 1.0, out.numel()).view(out.shape).to(out.dtype)
    of_out = torch.autograd.grad(out, wanted, weight)
    of_both = torch.autograd.grad((both[0], both[1]), wanted, (weight, torch.ones_like(both[1])))
    of_lse = torch.autograd.grad(alibi_attention(*leaves, slopes, return_lse=True, **options)[1].sum(), wanted)
    return [alone, *pair, out.detach(), *(each.detach() for each in both), *of_out, *of_both, *of_lse]


CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "plain": ({}, {}),
    "dense": ({}, {"tolerance": 0}),
    "both sides": ({}, {"is_causal": False}),
    "window": ({}, {"window": (5, None)}),
    "offset": ({"q_len": 7}, {"query_offset": 3, "scale": 0.5}),
    "one query": ({"q_len": 1, "k_len": 300}, {}),
    "grouped": ({"kv_heads": 2, "value_dim": 16}, {"backend": "cpu"}),
    "bfloat16": ({"dtype": torch.bfloat16}, {}),
    "float16": ({"dtype": torch.float16}, {"tolerance": 1e-3}),
    "longer": ({"q_len": 200, "k_len": 200}, {}),
}


@pytest.mark.parametrize("slopes", ["preset", "given", "by batch"])
@pytest.mark.parametrize("case", CASES)
def test_the_short_way_gives_the_bits_of_the_operator(
    case: str, slopes: str, short_calls: list[str], monkeypatch: pytest.MonkeyPatch
):
    sizes, options = CASES[case]
    leaves = tensors(**sizes)
    given = {"preset": None, "given": alibi_slopes(4) * 0.5, "by batch": torch.rand(2, 4)}[slopes]
    first = everything(leaves, given, **options)
    again = everything(leaves, given, **options)
    kernels = ["output", *["results"] * 3, "gradients", "gradients", "results", "gradients"]
    assert short_calls == kernels * 2
    monkeypatch.setattr(ops, "plain_call", lambda *_: None)
    short_calls.clear()
    through_the_operator = everything(leaves, given, **options)
    assert not short_calls
    for a, b, c in zip(first, again, through_the_operator, strict=True):
        assert a.dtype == c.dtype
        assert a.stride() == c.stride()
        assert torch.equal(a, b)
        assert torch.equal(a, c)


def test_a_prepared_call_holds_the_fields_that_the_backend_packs():
    query, key, value = tensors(kv_heads=2, q_len=7, k_len=30, value_dim=16)
    query, key = query.transpose(1, 2).contiguous().transpose(1, 2), key[:, :, ::2].contiguous()
    value, slopes = value[:, :, ::2], torch.rand(2, 4)
    arguments = call_arguments(
        query, key, value, slopes, is_causal=False, scale=0.3, query_offset=2, key_mask=None, cu_seqlens=None,
        cu_seqlens_k=None, window=(4, 9), dropout_p=0.0, tolerance=0.01, backend=None,
    )  # fmt: skip
    problem, _ = problem_of(*arguments[:3], *arguments[4:])
    call = PreparedCall(problem, query, key, value, slopes)
    out, lse, plan = call.results(query, key, value, slopes)
    grad_out, grad_lse = torch.randn_like(out).transpose(1, 2).contiguous().transpose(1, 2), torch.randn_like(lse)
    with pytest.MonkeyPatch.context() as patch:
        seen: list[bytes] = []
        library = native.load()
        assert isinstance(library, native.Native)

        def backward(packed: bytes) -> int:
            seen.append(packed)
            return library.backward(packed)

        patch.setattr(call, "_native", library._replace(backward=backward))
        grads = call.gradients((query, key, value, slopes, out, lse, plan), grad_out, grad_lse)
    gradients = [grad_lse.data_ptr(), *(number for grad in grads[:3] for number in cpu._place(grad))]
    packed = cpu._pack(
        problem, None, None, slopes, query, key, value, out, lse, plan,
        *cpu._place(grad_out), *gradients, grads[3].data_ptr(),
    )  # fmt: skip
    assert seen == [packed]
    forward = call._filled(query, key, value, slopes, out, lse.data_ptr(), plan.data_ptr())
    assert forward[: prepared._GRAD_OUT] == array("q", packed)[: prepared._GRAD_OUT]


# What is looked at every time


@pytest.mark.parametrize("bad", [math.inf, math.nan])
def test_slopes_are_looked_at_in_every_call(bad: float):
    query, key, value = tensors()
    slopes = alibi_slopes(4)
    alibi_attention(query, key, value, slopes)
    alibi_attention(query, key, value, slopes)
    slopes[2] = bad
    with pytest.raises(ValueError, match="slopes: expected finite numbers"):
        alibi_attention(query, key, value, slopes)


@pytest.mark.parametrize(
    ("good", "bad", "message"),
    [
        ({"is_causal": True}, {"is_causal": 1}, "is_causal"),
        ({"window": (1, 0)}, {"window": (True, 0)}, "window"),
        ({"query_offset": 1}, {"query_offset": True}, "query_offset"),
        ({"query_offset": 1}, {"query_offset": 1.0}, "query_offset"),
        ({"scale": 1.0}, {"scale": torch.ones(())}, "scale"),
        ({"tolerance": 0.0}, {"tolerance": "0"}, "tolerance"),
        ({"dropout_p": 0.0}, {"dropout_p": -0.1}, "dropout_p"),
        ({"backend": "cpu"}, {"backend": "gpu"}, "backend"),
    ],
)
def test_what_is_equal_but_wrong_is_refused_after_what_is_right(
    good: dict[str, Any], bad: dict[str, Any], message: str
):
    leaves = tensors()
    alibi_attention(*leaves, **good)
    for _ in range(2):
        with pytest.raises(ValueError, match=f"^{message}"):
            alibi_attention(*leaves, **bad)


def test_shapes_that_do_not_fit_are_refused_after_shapes_that_do():
    query, key, value = tensors()
    alibi_attention(query, key, value)
    for _ in range(2):
        with pytest.raises(ValueError, match=r"^key: expected"):
            alibi_attention(query, key[..., :16], value)
        with pytest.raises(ValueError, match=r"^value: expected"):
            alibi_attention(query, key, value.double())
        with pytest.raises(ValueError, match=r"^slopes: expected"):
            alibi_attention(query, key, value, alibi_slopes(3))


def test_the_number_of_threads_is_asked_for_each_time(monkeypatch: pytest.MonkeyPatch):
    leaves = tensors()
    alibi_attention(*leaves)
    call, slopes = eager.plain_call(*leaves, None, True, None, None, None, 0.0, None, None) or pytest.fail("long way")
    for threads in (3, 1):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        assert call.prepared._filled(*leaves, slopes, leaves[0], 0, 0)[prepared._THREADS] == threads


def test_a_library_that_goes_is_missed(monkeypatch: pytest.MonkeyPatch, short_calls: list[str]):
    leaves = tensors()
    alibi_attention(*leaves)
    assert short_calls == ["output"]
    monkeypatch.setattr(native, "load", lambda: "no library today")
    monkeypatch.setattr(dispatch, "_told_of_missing_kernels", True)
    alibi_attention(*leaves)
    assert short_calls == ["output"]
    with pytest.raises(NotImplementedError, match="no library today"):
        alibi_attention(*leaves, backend="cpu")


# What is remembered


def test_what_is_remembered_is_bounded_and_holds_no_tensor():
    leaves = tensors()
    slopes = torch.rand(4)
    alibi_attention(*leaves, slopes)
    kept = [weakref.ref(tensor) for tensor in (*leaves, slopes)]
    del leaves, slopes
    gc.collect()
    assert [ref() for ref in kept] == [None] * 4
    query, key, value = tensors()
    for length in range(1, eager.MOST + 20):
        alibi_attention(query, key, value, query_offset=length)
        assert len(eager._CALLS) <= eager.MOST
    assert eager._CALLS


@pytest.mark.usefixtures("from_the_second_time")
def test_a_call_is_described_when_it_comes_again(short_calls: list[str], monkeypatch: pytest.MonkeyPatch):
    described = []
    whole = eager.describe
    monkeypatch.setattr(
        eager, "describe", lambda *tensors, **options: described.append(1) or whole(*tensors, **options)
    )
    query, key, value = tensors(k_len=60)
    results = [alibi_attention(query, key[:, :, :40], value[:, :, :40]) for _ in range(4)]
    assert len(described) == 1
    assert short_calls == ["output"] * 3
    assert all(torch.equal(result, results[0]) for result in results)
    # Each longer than the one before it, as keys grow in decoding by concatenation: nothing to gain, nothing paid.
    for length in range(41, 60):
        alibi_attention(query, key[:, :, :length], value[:, :, :length])
    assert len(described) == 1


@pytest.mark.usefixtures("from_the_second_time")
def test_what_is_in_use_outlives_what_came_by(short_calls: list[str]):
    query, key, value = tensors()
    for _ in range(2):
        alibi_attention(query, key, value)
    for length in range(3 * eager.MOST):
        alibi_attention(query, key, value, query_offset=length)
        if length % 50 == 0:
            short_calls.clear()
            alibi_attention(query, key, value)
            assert short_calls == ["output"]


def test_several_threads_at_once_get_what_one_gets():
    lengths = range(10, 40)
    inputs = {length: tensors(q_len=length, k_len=length) for length in lengths}
    expected = {length: everything(inputs[length]) for length in lengths}
    eager._CALLS.clear()
    wrong: list[int] = []

    def work(order: list[int]) -> None:
        for length in order:
            with torch.random.fork_rng(devices=[]):
                got = everything(inputs[length])
            if not all(map(torch.equal, got, expected[length])):
                wrong.append(length)

    orders = [list(lengths), list(reversed(lengths)), list(lengths), list(reversed(lengths))]
    workers = [threading.Thread(target=work, args=(order,)) for order in orders]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong


# Where it is not open


class Listener(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.heard: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.heard.append(str(func))
        return func(*args, **(kwargs or {}))


def test_dispatch_modes_see_the_operator():
    leaves = [leaf.requires_grad_() for leaf in tensors()]
    alibi_attention(*leaves).sum().backward()
    with Listener() as listener:
        out = alibi_attention(*leaves)
    assert "alibi_attention.forward.default" in listener.heard
    with Listener() as listener:
        out.sum().backward()
    assert "alibi_attention.backward.default" in listener.heard
    out = alibi_attention(*leaves)
    with Listener() as listener:
        out.sum().backward()
    assert "alibi_attention.backward.default" in listener.heard, "forward went the short way, backward must not"


def test_function_modes_see_the_operator():
    heard = []

    class Mode(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            heard.append(str(func))
            return func(*args, **(kwargs or {}))

    leaves = tensors()
    alibi_attention(*leaves)
    with Mode():
        alibi_attention(*leaves)
    assert any("alibi_attention.forward" in name for name in heard)


def test_profilers_see_the_operator():
    leaves = [leaf.requires_grad_() for leaf in tensors()]
    alibi_attention(*leaves).sum().backward()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        alibi_attention(*leaves).sum().backward()
    names = {event.name for event in profile.events() or []}
    assert {"alibi_attention::forward", "alibi_attention::backward"} <= names


def test_fake_tensors_stay_fake():
    from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

    alibi_attention(*tensors())
    with FakeTensorMode() as mode:
        assert isinstance(alibi_attention(*tensors()), FakeTensor)
        assert isinstance(alibi_attention(*map(mode.from_tensor, map(torch.clone, tensors()))), FakeTensor)
    assert not isinstance(alibi_attention(*tensors()), FakeTensor)


def test_tracing_records_the_operator():
    from torch.fx.experimental.proxy_tensor import make_fx

    leaves = tensors()
    alibi_attention(*leaves)
    graph = make_fx(lambda *inputs: alibi_attention(*inputs))(*leaves).graph
    assert any("alibi_attention.forward" in str(node.target) for node in graph.nodes)


@pytest.mark.parametrize("mode", ["fake", "symbolic"])
def test_tracing_without_values_looks_at_none(mode: str):
    from torch.fx.experimental.proxy_tensor import make_fx

    def call(query: Tensor, key: Tensor, value: Tensor, slopes: Tensor, offset: Tensor) -> Tensor:
        return alibi_attention(query, key, value, slopes, query_offset=offset)

    leaves = (*tensors(), torch.rand(tensors()[0].shape[1]), torch.arange(tensors()[0].shape[0]))
    graph = make_fx(call, tracing_mode=mode)(*leaves)
    assert any("alibi_attention.forward" in str(node.target) for node in graph.graph.nodes)
    assert torch.equal(graph(*leaves), call(*leaves))


def test_subclasses_keep_their_say():
    asked = []

    class Quantity(Tensor):
        @classmethod
        def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            asked.append(str(func))
            return super().__torch_function__(func, types, args, kwargs or {})

    query, key, value = tensors()
    plain = alibi_attention(query, key, value)
    out = alibi_attention(query.as_subclass(Quantity), key, value)
    assert any("alibi_attention.forward" in name for name in asked)
    assert torch.equal(out.as_subclass(Tensor), plain)


def test_a_lazy_negation_is_not_overlooked(short_calls: list[str]):
    query, key, value = tensors()
    alibi_attention(query, key, value)
    short_calls.clear()
    lazy = torch._neg_view(query)
    assert lazy.is_neg()
    torch.testing.assert_close(alibi_attention(lazy, key, value), alibi_attention(-query, key, value), rtol=0, atol=0)
    assert short_calls == ["output"], "the negated copy alone"


def test_autocast_is_not_overlooked():
    leaves = tensors()
    assert alibi_attention(*leaves).dtype == torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert alibi_attention(*leaves).dtype == torch.bfloat16
    assert alibi_attention(*leaves).dtype == torch.float32


def test_inference_mode_takes_the_short_way_too(short_calls: list[str]):
    leaves = tensors()
    plain = alibi_attention(*leaves)
    with torch.inference_mode():
        out = alibi_attention(*leaves)
        assert out.is_inference()
        inside = alibi_attention(*map(torch.clone, leaves))
    assert short_calls == ["output"] * 3
    assert torch.equal(out, plain)
    assert torch.equal(inside, plain)
    assert not alibi_attention(*leaves).is_inference()


@pytest.mark.parametrize("transform", [torch.func.vmap, torch.func.grad, torch.func.jacrev])
def test_transforms_are_not_overlooked(transform: Callable[..., Any], short_calls: list[str]):
    query, key, value = tensors()
    alibi_attention(query, key, value)
    short_calls.clear()

    def total(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        if query.dim() == 3:
            query, key, value = (each.unsqueeze(0) for each in (query, key, value))
        return alibi_attention(query, key, value).square().sum()

    transform(total)(query, key, value)
    assert not short_calls


def test_gradients_batched_by_vmap_are_not_overlooked():
    leaves = [leaf.requires_grad_() for leaf in tensors()]
    out = alibi_attention(*leaves)
    weights = torch.randn(3, *out.shape)
    batched = torch.autograd.grad(out, leaves, weights, is_grads_batched=True, retain_graph=True)
    for number, weight in enumerate(weights):
        for together, alone in zip(batched, torch.autograd.grad(out, leaves, weight, retain_graph=True), strict=True):
            assert torch.equal(together[number], alone)


def test_second_derivatives_are_refused_the_short_way_too(short_calls: list[str]):
    leaves = [leaf.requires_grad_() for leaf in tensors()]
    grads = torch.autograd.grad(alibi_attention(*leaves).square().sum(), leaves, create_graph=True)
    assert short_calls == ["results"]
    with pytest.raises(RuntimeError, match="no second derivative"):
        grads[0].sum().backward()


# What autograd does with saved tensors


@pytest.mark.usefixtures("from_the_second_time")
def test_a_checkpoint_may_first_describe_the_call_and_then_know_it():
    leaves = [leaf.requires_grad_() for leaf in tensors()]
    expected = everything(leaves)[6:9]
    eager._CALLS.clear()
    out = checkpoint(alibi_attention, *leaves, use_reentrant=False)
    weight = torch.linspace(-1.0, 1.0, out.numel()).view(out.shape)
    for got, want in zip(torch.autograd.grad(out, leaves, weight), expected, strict=True):
        assert torch.equal(got, want)


def test_a_checkpoint_may_be_replayed_under_a_profiler():
    leaves = [leaf.requires_grad_() for leaf in tensors()]
    out = checkpoint(alibi_attention, *leaves, use_reentrant=False)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]):
        grads = torch.autograd.grad(out.sum(), leaves)
    assert all(grad.isfinite().all() for grad in grads)


def test_saved_tensors_may_come_back_in_another_layout(short_calls: list[str]):
    leaves = [leaf.requires_grad_() for leaf in tensors()]
    expected = torch.autograd.grad(alibi_attention(*leaves).sum(), leaves)
    short_calls.clear()

    def unpack(tensor: Tensor) -> Tensor:
        return tensor.mT.contiguous().mT if tensor.dim() == 4 else tensor

    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: tensor, unpack):
        out = alibi_attention(*leaves)
    grads = torch.autograd.grad(out.sum(), leaves)
    assert short_calls == ["results"], "backward must not read the tensors by the strides of before"
    for got, want in zip(grads, expected, strict=True):
        assert torch.equal(got, want)


def _halved(tensor: Tensor) -> Tensor:
    """Half the length with the strides of the whole."""
    short = torch.empty_strided((*tensor.shape[:2], tensor.shape[2] // 2, tensor.shape[3]), tensor.stride())
    return short.copy_(tensor[:, :, : tensor.shape[2] // 2])


@pytest.mark.parametrize("way", ["short", "operator"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.bfloat16() if t.dim() == 4 else t, r"^grad_out: backward expected torch.bfloat16 of shape"),
        (lambda t: _halved(t) if t.dim() == 4 else t, r"^lse: backward expected torch.float32 of shape \(2, 4, 150\)"),
        (lambda t: t[:, :, ::2] if t.dim() == 3 else t, r"^lse: backward expected .* got torch.float32 of shape"),
        (lambda t: t.double() if t.dim() == 3 else t, r"^lse: backward expected .* got torch.float64 of shape"),
        (lambda t: t[:3] if t.dtype == torch.int32 else t, r"^plan: backward expected torch.int32 of shape"),
        (lambda t: t + 1000 if t.dtype == torch.int32 else t, r"^plan: expected the tiles that forward kept"),
        (lambda t: t[:, :2] if t.dim() == 4 else t, r"^slopes: expected shape"),
        (lambda t: t.half() if t.dim() == 4 and t.shape[3] == 16 else t, r"^value: expected the dtype of query"),
    ],
    ids=["dtype", "length", "lse rows", "lse dtype", "plan size", "plan content", "heads", "value dtype"],
)
def test_saved_tensors_that_come_back_as_others_are_refused(
    way: str, change: Callable[[Tensor], Tensor], message: str, monkeypatch: pytest.MonkeyPatch
):
    # The kernels write by sizes: memory that is smaller than it was must never reach them.
    if way == "operator":
        monkeypatch.setattr(ops, "plain_call", lambda *_: None)
    leaves = [leaf.requires_grad_() for leaf in tensors(q_len=300, k_len=300, value_dim=16)]
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: tensor, change):
        out = alibi_attention(*leaves)
    with pytest.raises(ValueError, match=message):
        torch.autograd.grad(out.sum(), leaves)


def test_inputs_saved_in_another_dtype_are_refused():
    leaves = [leaf.requires_grad_() for leaf in tensors(q_len=300, k_len=300)]
    inputs = {leaf.data_ptr() for leaf in leaves}
    with torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: tensor.bfloat16() if tensor.data_ptr() in inputs else tensor, lambda tensor: tensor
    ):
        out = alibi_attention(*leaves)
    with pytest.raises(ValueError, match=r"^out: backward expected torch.bfloat16 .* got torch.float32"):
        torch.autograd.grad(out.sum(), leaves)


def test_gradients_only_where_asked_the_short_way(short_calls: list[str]):
    query, key, value = tensors()
    slopes = alibi_slopes(4).requires_grad_()
    alibi_attention(query, key, value.requires_grad_(), slopes).sum().backward()
    assert query.grad is None
    assert value.grad is not None
    assert slopes.grad is not None
    assert slopes.grad.shape == (4,)
    assert short_calls == ["results", "gradients"]


def test_writing_over_an_input_is_noticed():
    query, key, value = (leaf.requires_grad_() for leaf in tensors())
    held = query * 1.0
    out = alibi_attention(held, key, value)
    held.mul_(2.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


WITHOUT = """
import sys; sys.path[:] = {path!r}
import torch
from torch.autograd import forward_ad, profiler

exec({delete!r})
from alibi_attention import KVCache, alibi_attention, alibi_slopes, eager

query = torch.randn(1, 2, 5, 16, requires_grad=True)
for _ in range(3):
    out = alibi_attention(query, query, query)
    out.sum().backward()
expected = alibi_attention(query.detach().double(), query.detach().double(), query.detach().double())
torch.testing.assert_close(out.double(), expected, atol=1e-6, rtol=0.0)
cache = KVCache()
with torch.no_grad():
    for at in range(5):
        row = query[:, :, at : at + 1]
        cache.append(row, row)
        step = cache.attend(row)
torch.testing.assert_close(step, out[:, :, -1:].detach(), atol=1e-6, rtol=0.0)
assert not len(eager._CALLS)
print("done")
"""


@pytest.mark.parametrize(
    "delete",
    [
        "del torch._C._dispatch_keys",
        "del torch._C._dispatch_tls_local_include_set",
        "del torch._C._len_torch_function_stack",
        "del torch._C.DispatchKeySet.raw_repr",
        "del torch._C._autograd._profiler_enabled",
        "del profiler._is_profiler_enabled",
    ],
)
def test_a_torch_without_what_it_looks_at_takes_the_long_way(delete: str):
    """They are torch's own affair, and none is needed for a result."""
    code = WITHOUT.format(path=sys.path, delete=delete)
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "done\n", done.stderr
