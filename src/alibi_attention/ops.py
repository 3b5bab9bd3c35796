"""The operator: what PyTorch sees (schema, shapes, gradients), and the function users call."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal, overload

import torch
from torch import Tensor
from torch.autograd import forward_ad

from alibi_attention.backends.handed import check_handed, check_saved
from alibi_attention.call import autocast_is_on, call_arguments, problem_of
from alibi_attention.checks.options import check_flag
from alibi_attention.dispatch import choose
from alibi_attention.eager import PlainCall, is_ordinary, nothing_listens, plain_call
from alibi_attention.problem import Saved

# What follows the tensors in both operators. Strings stand for the backend, "" for the choice of `dispatch`.
_CALL = (
    "Tensor? offsets, Tensor? key_mask, Tensor? cu_seqlens, Tensor? cu_seqlens_k, Tensor? seed, Tensor? key_center, "
    "Tensor? key_norms, bool is_causal, float scale, SymInt query_offset, SymInt window_left, SymInt window_right, "
    "float dropout_p, float tolerance, bool learned_slopes, str backend"
)
_LIBRARY = torch.library.Library("alibi_attention", "DEF")
_LIBRARY.define(f"forward(Tensor query, Tensor key, Tensor value, Tensor slopes, {_CALL}) -> (Tensor, Tensor, Tensor)")
_LIBRARY.define(
    "backward(Tensor grad_out, Tensor grad_lse, Tensor query, Tensor key, Tensor value, Tensor slopes, Tensor out, "
    f"Tensor lse, Tensor plan, {_CALL}) -> (Tensor, Tensor, Tensor, Tensor)"
)


def _own_precision(device_type: str) -> AbstractContextManager[object]:
    """Autocast has had its say on the inputs; it must not lower the precision of the products inside."""
    if autocast_is_on(device_type):
        return torch.autocast(device_type, enabled=False)
    return nullcontext()


def _forward(query: Tensor, key: Tensor, value: Tensor, slopes: Tensor, *call: Any) -> tuple[Tensor, Tensor, Tensor]:
    problem, backend = problem_of(query, key, value, *call)
    check_handed(problem, query, key, value, slopes)
    with _own_precision(query.device.type):
        out, lse, plan = choose(problem, backend).forward(problem, query, key, value, slopes)
    return out.contiguous(), lse.contiguous(), plan


def _forward_fake(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    slopes: Tensor,  # noqa: ARG001
    *call: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    problem, backend = problem_of(query, key, value, *call)
    rows = (problem.batch, problem.num_heads, problem.q_len)
    out = query.new_empty(*rows, problem.value_dim)
    lse = query.new_empty(rows, dtype=problem.compute_dtype)
    return out, lse, query.new_empty(choose(problem, backend).plan_shape(problem), dtype=torch.int32)


def _backward(
    grad_out: Tensor, grad_lse: Tensor, query: Tensor, key: Tensor, value: Tensor, slopes: Tensor,
    out: Tensor, lse: Tensor, plan: Tensor, *call: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    problem, backend = problem_of(query, key, value, *call)
    saved, chosen = Saved(query, key, value, slopes, out, lse, plan), choose(problem, backend)
    check_saved(problem, chosen.plan_shape(problem), saved, grad_out, grad_lse)
    with _own_precision(query.device.type):
        grads = chosen.backward(problem, saved, grad_out, grad_lse)
    grad_slopes = grads.slopes if slopes.dim() == 2 else grads.slopes.sum(0)
    # As the fake kernels promise a compiler, whatever the strides of the inputs.
    return grads.query.contiguous(), grads.key.contiguous(), grads.value.contiguous(), grad_slopes.to(slopes.dtype)


def _backward_fake(grad_out: Tensor, grad_lse: Tensor, *rest: Any) -> tuple[Tensor, ...]:  # noqa: ARG001
    return tuple(tensor.new_empty(tensor.shape) for tensor in rest[:4])


def _one_by_one(
    function: type[torch.autograd.Function],
    batch_size: int,
    in_dims: tuple[int | None, ...],
    arguments: tuple[Any, ...],
) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
    """vmap as one call for each element: exact, without a batching rule to keep in step with every argument."""
    split = [
        (argument,) * batch_size if dim is None else argument.unbind(dim)
        for argument, dim in zip(arguments, in_dims, strict=True)
    ]
    results = [function.apply(*each) for each in zip(*split, strict=True)]
    stacked = tuple(torch.stack(parts) for parts in zip(*results, strict=True))
    return stacked, (0,) * len(stacked)


def _remember(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    ctx.mark_non_differentiable(output[2])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*inputs[:4], *output, *inputs[4:11])
    ctx.call = inputs[11:]


class _Attention(torch.autograd.Function):
    """The forward operator under autograd."""

    @staticmethod
    def forward(*arguments: Any) -> Any:
        with torch._C._AutoDispatchBelowAutograd():
            return _forward_op(*arguments)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
        _remember(ctx, inputs, output)

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor | None, grad_lse: Tensor | None, _: None) -> tuple[Any, ...]:
        query, key, value, slopes, out, lse, plan, *optional = ctx.saved_tensors
        grad_out = torch.zeros_like(out) if grad_out is None else grad_out
        grad_lse = torch.zeros_like(lse) if grad_lse is None else grad_lse
        tensors = (grad_out, grad_lse, query, key, value, slopes, out, lse, plan)
        # Whether slopes are learned was not known of every call: not under vmap, nor of one that was exported.
        call = (*ctx.call[:-2], ctx.needs_input_grad[3], ctx.call[-1])
        grads = _run(_Gradients, _backward_op, (*tensors, *optional, *call))
        return (*grads, *(None for _ in range(len(optional) + len(ctx.call))))

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        raise NotImplementedError(
            "alibi_attention has no forward-mode derivative (jvp): use reverse mode, "
            "or write it as softmax(scale * query @ key.mT + build_alibi_bias(...)) @ value, which has every derivative"
        )

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *arguments: Any) -> Any:
        return _one_by_one(_Attention, info.batch_size, in_dims, arguments)


class _EagerAttention(torch.autograd.Function):
    """The same where torch.func is not at work: result and context in one step, a third of the overhead less."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Any:
        with torch._C._AutoDispatchBelowAutograd():
            output = _forward_op(*arguments)
        _remember(ctx, arguments, output)
        return output

    backward = _Attention.backward
    jvp = _Attention.jvp


class _PlainAttention(torch.autograd.Function):
    """The same for a call that takes the short way of `eager`: no operator, and lse only where it is asked for."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, slopes: Tensor, call: PlainCall, return_lse: bool
    ) -> Any:
        out, lse, plan = call.prepared.results(query, key, value, slopes)
        ctx.set_materialize_grads(False)
        # As many tensors as `_remember` saves: a checkpoint may run the call again the other way.
        ctx.save_for_backward(query, key, value, slopes, out, lse, plan)
        ctx.call = call
        return (out, lse) if return_lse else out

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor | None, grad_lse: Tensor | None = None) -> tuple[Any, ...]:
        saved, prepared, rest = ctx.saved_tensors, ctx.call.prepared, ctx.call.rest
        grad_out = torch.zeros_like(saved[4]) if grad_out is None else grad_out
        if (
            not torch.compiler.is_compiling()
            and not torch.is_grad_enabled()
            and nothing_listens()
            and is_ordinary(grad_out)
            and (grad_lse is None or is_ordinary(grad_lse))
            and prepared.fits(saved, grad_out, grad_lse)
            and all(map(is_ordinary, saved))
        ):
            query, key, value, slopes = prepared.gradients(saved, grad_out, grad_lse)
            if not ctx.needs_input_grad[3]:
                return query, key, value, None, None, None
            return query, key, value, slopes if saved[3].dim() == 2 else slopes.sum(0), None, None
        grad_lse = torch.zeros_like(saved[5]) if grad_lse is None else grad_lse
        grads = _run(_Gradients, _backward_op, (grad_out, grad_lse, *saved, *rest))
        return (*grads, None, None)

    jvp = _Attention.jvp


class _Gradients(torch.autograd.Function):
    """The backward operator under autograd: it runs, and refuses to be differentiated again."""

    @staticmethod
    def forward(*arguments: Any) -> Any:
        with torch._C._AutoDispatchBelowAutograd():
            return _backward_op(*arguments)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        pass

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *arguments: Any) -> Any:
        return _one_by_one(_Gradients, info.batch_size, in_dims, arguments)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:  # noqa: ARG004
        raise RuntimeError(
            "alibi_attention has no second derivative: call it without create_graph=True, "
            "or write it as softmax(scale * query @ key.mT + build_alibi_bias(...)) @ value, which has every derivative"
        )


def _kernel_under_autograd(function: type[torch.autograd.Function], op: Any) -> Callable[..., Any]:
    """What the dispatcher runs for an op where autograd is on."""

    def kernel(*arguments: Any) -> Any:
        if _is_differentiated(arguments):
            return function.apply(*arguments)
        with torch._C._AutoDispatchBelowAutograd():
            return op(*arguments)

    return kernel


def _is_differentiated(arguments: tuple[Any, ...]) -> bool:
    """Whether anything asks for derivatives: every differentiable argument is among the first eight."""
    if forward_ad._current_level >= 0:
        return True
    return torch.is_grad_enabled() and any(isinstance(each, Tensor) and each.requires_grad for each in arguments[:8])


def _run(function: type[torch.autograd.Function], op: Any, arguments: tuple[Any, ...]) -> Any:
    if torch.compiler.is_compiling():
        return op(*arguments)
    # What the op's own autograd kernel would do, without the way there: a third of the overhead of a small call. (And
    # torch.func has a machinery of its own for autograd.Function, out of reach of that kernel.)
    if torch._C._are_functorch_transforms_active():
        return function.apply(*arguments)
    if _is_differentiated(arguments):
        return (_EagerAttention if function is _Attention else function).apply(*arguments)
    with torch._C._AutoDispatchBelowAutograd():
        return op(*arguments)


_LIBRARY.impl("forward", _forward, "CompositeExplicitAutograd")
_LIBRARY.impl("backward", _backward, "CompositeExplicitAutograd")
_forward_op = torch.ops.alibi_attention.forward.default
_backward_op = torch.ops.alibi_attention.backward.default
_LIBRARY.impl("forward", _kernel_under_autograd(_Attention, _forward_op), "Autograd")
_LIBRARY.impl("backward", _kernel_under_autograd(_Gradients, _backward_op), "Autograd")
torch.library.register_fake("alibi_attention::forward", _forward_fake, lib=_LIBRARY)
torch.library.register_fake("alibi_attention::backward", _backward_fake, lib=_LIBRARY)


def run_forward(arguments: tuple[Any, ...]) -> tuple[Tensor, Tensor]:
    """Output and lse of `call_arguments`."""
    out, lse, _ = _run(_Attention, _forward_op, arguments)
    return out, lse


def _run_plain(
    query: Tensor, key: Tensor, value: Tensor, call: PlainCall, slopes: Tensor, return_lse: bool
) -> Tensor | tuple[Tensor, Tensor]:
    if torch.is_grad_enabled() and (
        query.requires_grad or key.requires_grad or value.requires_grad or slopes.requires_grad
    ):
        function: Any = _PlainAttention
        results: Tensor | tuple[Tensor, Tensor] = function.apply(query, key, value, slopes, call, return_lse)
        return results
    if return_lse:
        return call.prepared.results(query, key, value, slopes)[:2]
    return call.prepared.output(query, key, value, slopes)


@overload
def alibi_attention(
    query: Tensor, key: Tensor, value: Tensor, slopes: Tensor | None = ..., *, is_causal: bool = ...,
    scale: float | None = ..., query_offset: int | Tensor | None = ..., key_mask: Tensor | None = ...,
    cu_seqlens: Tensor | None = ..., cu_seqlens_k: Tensor | None = ...,
    window: tuple[int | None, int | None] | None = ..., dropout_p: float = ..., tolerance: float | None = ...,
    return_lse: Literal[False] = ..., backend: str | None = ...,
) -> Tensor: ...  # fmt: skip
@overload
def alibi_attention(
    query: Tensor, key: Tensor, value: Tensor, slopes: Tensor | None = ..., *, is_causal: bool = ...,
    scale: float | None = ..., query_offset: int | Tensor | None = ..., key_mask: Tensor | None = ...,
    cu_seqlens: Tensor | None = ..., cu_seqlens_k: Tensor | None = ...,
    window: tuple[int | None, int | None] | None = ..., dropout_p: float = ..., tolerance: float | None = ...,
    return_lse: Literal[True], backend: str | None = ...,
) -> tuple[Tensor, Tensor]: ...  # fmt: skip
def alibi_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    slopes: Tensor | None = None,
    *,
    is_causal: bool = True,
    scale: float | None = None,
    query_offset: int | Tensor | None = None,
    key_mask: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    cu_seqlens_k: Tensor | None = None,
    window: tuple[int | None, int | None] | None = None,
    dropout_p: float = 0.0,
    tolerance: float | None = None,
    return_lse: bool = False,
    backend: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Attention with linear biases, without the keys too far away to matter.

    ::

        score_ij = scale * q_i . k_j - m_h * |p_i - j|        p_i = i + query_offset
        out_i    = sum_j softmax_j(score_ij) v_j              over the keys j that query i sees

    Query i sees key j unless is_causal and j > p_i, or key_mask is False there, or it is outside the window or in
    another packed sequence. A query that sees no key gets output 0, lse -inf and zero gradients. Every backend but
    "reference" needs O(length) memory, forward and backward. The default query_offset, k_len - q_len, stands the last
    query at the last key (x: seen, causal)::

        q_len 2, k_len 5:  x x x x .       q_len 5, k_len 2:  . .
                           x x x x x                          . .
                                                              . .
                                                              x .
                                                              x x

    Args:
        query: (batch, num_heads, q_len, head_dim); float64, float32, bfloat16 or float16; any strides.
        key: (batch, num_kv_heads, k_len, head_dim); num_kv_heads divides num_heads (grouped-query attention).
        value: (batch, num_kv_heads, k_len, value_dim).
        slopes: (num_heads,) or (batch, num_heads) float32, nats per token, any sign; `alibi_slopes(num_heads)` by
            default. Differentiable.
        is_causal: whether a query is kept from the keys after it.
        scale: factor on the dot products, not on the bias; 1 / sqrt(head_dim) by default.
        query_offset: position of query 0 among the keys, in tokens: an int, or a (batch,) integer tensor.
        key_mask: (batch, k_len) bool, True where a key takes part, as in SDPA's boolean attn_mask
            (nn.MultiheadAttention's key_padding_mask is the opposite). The True keys of a row are contiguous.
        cu_seqlens: (sequences + 1,) int32: packed sequences in one row of batch 1, sequence n in
            [cu_seqlens[n], cu_seqlens[n + 1]).
        cu_seqlens_k: the same for the keys, where they are packed differently.
        window: (left, right) in tokens: how far before and after itself a query sees; None for unbounded. Where
            is_causal, no key after the query is seen whatever the right side allows.
        dropout_p: probability of dropping each attention weight, seeded from torch's generator.
        tolerance: the largest share of a row's softmax mass that skipped keys may hold. None is rounding level, 2^-24
            (2^-53 in float64); 0 computes every tile. See docs/maths.md for what is certified.
        return_lse: also return the logarithm of each row's softmax denominator.
        backend: "cpu", "triton", "blocked" or "reference"; None chooses. `explain_backends` tells why one cannot run a
            call.

    Returns:
        out (batch, num_heads, q_len, value_dim) in the dtype of query. With return_lse also lse
        (batch, num_heads, q_len), natural logarithm, float32 (float64 for float64), which has a gradient.

    Raises:
        ValueError: for an argument of the wrong shape, dtype, device or value; the message names it.
        NotImplementedError: where the backend asked for cannot run the call; lists each backend with its reason.

    Source: Press, Smith, Lewis, "Train Short, Test Long: Attention with Linear Biases Enables Input Length
    Extrapolation", ICLR 2022, arXiv 2108.12409.
    """
    check_flag("return_lse", return_lse)
    if key_mask is None and cu_seqlens is None and cu_seqlens_k is None and not torch.compiler.is_compiling():
        plain = plain_call(
            query, key, value, slopes, is_causal, scale, query_offset, window, dropout_p, tolerance, backend
        )
        if plain is not None:
            return _run_plain(query, key, value, *plain, return_lse)
    arguments = call_arguments(
        query, key, value, slopes, is_causal=is_causal, scale=scale, query_offset=query_offset, key_mask=key_mask,
        cu_seqlens=cu_seqlens, cu_seqlens_k=cu_seqlens_k, window=window, dropout_p=dropout_p, tolerance=tolerance,
        backend=backend,
    )  # fmt: skip
    out, lse = run_forward(arguments)
    return (out, lse) if return_lse else out
