"""Calls of the cpu kernels described once and run many times: only addresses differ from one run to the next, and of a
cache how much it holds."""

from __future__ import annotations

import math
import threading
from array import array
from typing import NamedTuple

import torch
from torch import Tensor

from alibi_attention.backends import cpu, native
from alibi_attention.problem import Problem

# Fields of csrc/call.h by number, eight bytes each.
_THREADS, _K_LEN, _OFFSET = 1, 7, 11
_SLOPES, _QUERY, _KEY, _VALUE, _OUT, _LSE, _PLAN, _NORMS = 24, 27, 31, 35, 39, 43, 44, 46
_GRAD_OUT, _GRAD_LSE, _GRAD_QUERY, _GRAD_KEY, _GRAD_VALUE, _GRAD_SLOPES = 52, 56, 57, 61, 65, 69
_ADDRESSES = (
    _SLOPES, _QUERY, _KEY, _VALUE, _OUT, _LSE, _PLAN, _GRAD_OUT, _GRAD_LSE, _GRAD_QUERY, _GRAD_KEY, _GRAD_VALUE,
    _GRAD_SLOPES,
)  # fmt: skip


# Bytes of lse and plan up to which a thread keeps a block for them: making a tensor takes a microsecond.
_FEW = 1 << 14


class _Spare(threading.local):
    """A block of each thread's own for results that nobody sees."""

    def __init__(self) -> None:
        self.block = array("b", bytes(_FEW))
        self.address = self.block.buffer_info()[0]


_SPARE = _Spare()


def _dense(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The strides of a new tensor."""
    return tuple(math.prod(shape[at + 1 :]) for at in range(len(shape)))


class PreparedCall:
    """What the kernels are told about a plain call (no masks, no packing, one offset), apart from addresses.

    It holds sizes, strides and options and no tensor, so it serves every call that agrees in them, from any thread.
    """

    __slots__ = (
        "_dtype", "_gradient_shapes", "_like_query", "_lse", "_native", "_out", "_plan", "_rest", "_rows", "_saved",
        "_template",
    )  # fmt: skip

    def __init__(self, problem: Problem, query: Tensor, key: Tensor, value: Tensor, slopes: Tensor) -> None:
        self._native = native.load()
        self._dtype = problem.dtype
        self._lse = (problem.batch, problem.num_heads, problem.q_len)
        self._rows = problem.batch * problem.num_heads * problem.q_len
        self._out = (*self._lse, problem.value_dim)
        self._plan = cpu.CpuBackend().plan_shape(problem)[0]
        self._rest = 4 * (self._rows + self._plan)
        self._like_query = query.is_contiguous() and problem.value_dim == problem.head_dim
        self._gradient_shapes = (query.shape, key.shape, value.shape)
        # Shape, strides (None for contiguous) and dtype of what `results` is given and gives.
        self._saved = (
            *((each.shape, each.stride(), each.dtype) for each in (query, key, value, slopes)),
            (self._out, None, problem.dtype),
            (self._lse, None, torch.float32),
            ((self._plan,), None, torch.int32),
        )
        none = torch.empty(0)
        out = torch.empty(1, dtype=problem.dtype).expand(self._out)
        grads = [(0, *_dense(shape)[:3]) for shape in self._gradient_shapes]
        packed = cpu._pack(
            problem, None, None, slopes, query, key, value, out, none, none,
            *cpu._NOTHING, 0, *grads[0], *grads[1], *grads[2], 0,
        )  # fmt: skip
        template = array("q")
        template.frombytes(packed)
        for field in _ADDRESSES:
            template[field] = 0
        for field in (_OUT, _GRAD_OUT):
            template[field + 1], template[field + 2], template[field + 3], _ = _dense(self._out)
        self._template = template

    def serves_still(self) -> bool:
        """Whether the library that it was made for is the one there is."""
        return native.load() is self._native

    def output(self, query: Tensor, key: Tensor, value: Tensor, slopes: Tensor) -> Tensor:
        """The output alone; lse and plan share a block that nobody sees."""
        out = self._empty_out(query)
        if self._rest <= _FEW:
            at = _SPARE.address
        else:
            rest = torch.empty(self._rest, dtype=torch.int8)
            at = rest.data_ptr()
        self._forward(query, key, value, slopes, out, at, at + 4 * self._rows)
        return out

    def results(self, query: Tensor, key: Tensor, value: Tensor, slopes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Output, lse and plan."""
        out = self._empty_out(query)
        lse = torch.empty(self._lse, dtype=torch.float32)
        plan = torch.empty(self._plan, dtype=torch.int32)
        self._forward(query, key, value, slopes, out, lse.data_ptr(), plan.data_ptr())
        return out, lse, plan

    def gradients(
        self, saved: tuple[Tensor, ...], grad_out: Tensor, grad_lse: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Gradients of query, key, value, and of slopes by batch element, from what `results` was given and gave."""
        query, key, value, slopes, out, lse, plan = saved
        # Of the call's own sizes, whatever hooks made of the tensors: the kernel writes by these.
        grads = [torch.empty(shape, dtype=self._dtype) for shape in self._gradient_shapes]
        grad_slopes = torch.empty(self._lse[:2], dtype=torch.float32)
        grad_out = cpu._rows(grad_out)
        call = self._filled(query, key, value, slopes, out, lse.data_ptr(), plan.data_ptr())
        place, field = cpu._place(grad_out), _GRAD_OUT
        call[field], call[field + 1], call[field + 2], call[field + 3] = place
        if grad_lse is not None:
            grad_lse = grad_lse.contiguous()
            call[_GRAD_LSE] = grad_lse.data_ptr()
        call[_GRAD_QUERY] = grads[0].data_ptr()
        call[_GRAD_KEY] = grads[1].data_ptr()
        call[_GRAD_VALUE] = grads[2].data_ptr()
        call[_GRAD_SLOPES] = grad_slopes.data_ptr()
        native.check(self._native.backward(call.tobytes()))  # type: ignore[union-attr]
        return grads[0], grads[1], grads[2], grad_slopes

    def fits(self, saved: tuple[Tensor, ...], grad_out: Tensor, grad_lse: Tensor | None) -> bool:
        """Whether `gradients` may take them: hooks may have brought saved tensors back as anything."""
        return (
            all(
                each.shape == shape
                and each.dtype is dtype
                and (each.is_contiguous() if strides is None else each.stride() == strides)
                for each, (shape, strides, dtype) in zip(saved, self._saved, strict=True)
            )
            and grad_out.dtype is self._dtype
            and grad_out.shape == self._out
            and (grad_lse is None or (grad_lse.dtype is torch.float32 and grad_lse.shape == self._lse))
        )

    def _empty_out(self, query: Tensor) -> Tensor:
        # The first is twice as quick.
        return torch.empty_like(query) if self._like_query else torch.empty(self._out, dtype=self._dtype)

    def _forward(
        self, query: Tensor, key: Tensor, value: Tensor, slopes: Tensor, out: Tensor, lse: int, plan: int
    ) -> None:
        call = self._filled(query, key, value, slopes, out, lse, plan)
        native.check(self._native.forward(call.tobytes()))  # type: ignore[union-attr]

    def _filled(
        self, query: Tensor, key: Tensor, value: Tensor, slopes: Tensor, out: Tensor, lse: int, plan: int
    ) -> array[int]:
        call = self._without_keys(query, slopes, out, lse, plan)
        call[_KEY] = key.data_ptr()
        call[_VALUE] = value.data_ptr()
        return call

    def _without_keys(self, query: Tensor, slopes: Tensor, out: Tensor, lse: int, plan: int) -> array[int]:
        call = self._template[:]
        call[_THREADS] = torch.get_num_threads()
        call[_SLOPES] = slopes.data_ptr()
        call[_QUERY] = query.data_ptr()
        call[_OUT] = out.data_ptr()
        call[_LSE] = lse
        call[_PLAN] = plan
        return call


class Held(NamedTuple):
    """What a step attends to: how many keys, and where the first key, the first value and their norms lie."""

    k_len: int
    key: int
    value: int
    norms: int


class PreparedStep(PreparedCall):
    """A call over the keys of a cache, others from one run to the next; its last query stands at the last key.

    It belongs to the cache: the center of the keys lies where it lay.
    """

    __slots__ = ("_queries",)

    def __init__(self, problem: Problem, query: Tensor, key: Tensor, value: Tensor, slopes: Tensor) -> None:
        super().__init__(cpu._with_plain_summary(problem), query, key, value, slopes)
        self._queries = problem.q_len

    def output_over(self, held: Held, query: Tensor, slopes: Tensor) -> Tensor:
        """As `output`, over what a cache holds."""
        return self.output(query, held, held, slopes)  # type: ignore[arg-type]

    def results_over(self, held: Held, query: Tensor, slopes: Tensor) -> tuple[Tensor, Tensor]:
        """Output and lse over what a cache holds."""
        return self.results(query, held, held, slopes)[:2]  # type: ignore[arg-type]

    def run_over(self, held: Held, query: int, slopes: int, out: int, lse: int) -> None:
        """The same of addresses: of the first query, slope and place for results, heads one after the other."""
        call = self._template[:]
        call[_THREADS] = torch.get_num_threads()
        call[_SLOPES], call[_QUERY], call[_OUT], call[_LSE] = slopes, query, out, lse
        plan = None if 4 * self._plan <= _FEW else torch.empty(self._plan, dtype=torch.int32)
        call[_PLAN] = _SPARE.address if plan is None else plan.data_ptr()
        self._hold(call, held)
        native.check(self._native.forward(call.tobytes()))  # type: ignore[union-attr]

    def _hold(self, call: array[int], held: Held) -> None:
        call[_K_LEN], call[_OFFSET] = held.k_len, held.k_len - self._queries
        call[_KEY], call[_VALUE], call[_NORMS] = held.key, held.value, held.norms

    def _filled(  # type: ignore[override]
        self, query: Tensor, key: Held, value: Held, slopes: Tensor, out: Tensor, lse: int, plan: int
    ) -> array[int]:
        # No tensors of what is held: to cut them out of the buffers would take as long as all else here.
        del value
        call = self._without_keys(query, slopes, out, lse, plan)
        self._hold(call, key)
        return call
