"""The short way of a plain call: no dispatcher where it would only pass the call on, nothing described twice.

A call of a few tokens is mostly overhead. What a call is (sizes, strides, dtypes, options) is checked, described and
given a backend once, when it comes for the second time, and remembered by exactly those; what its tensors hold is
looked at every time. The short way is open only where the dispatcher would have gone straight to the kernel. Modes,
subclasses, transforms, compilers, tracers and profilers see the operator as ever.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad, profiler

from alibi_attention.backends.cpu import CpuBackend
from alibi_attention.backends.prepared import PreparedCall
from alibi_attention.call import call_arguments, problem_of
from alibi_attention.checks.slopes import check_finite_slopes
from alibi_attention.dispatch import choose

# Descriptions kept. One is a kilobyte or two; a model has a handful for each length.
MOST = 512


class PlainCall(NamedTuple):
    """A call described, checked and given to the kernels."""

    prepared: PreparedCall
    # What follows its tensors in the operators.
    rest: tuple[Any, ...]
    # The slopes of a call that brings none.
    preset: Tensor | None


class _Unknown:
    """What is known of a call instead of a description."""


# A description pays from its second use on: where each call is longer than the one before it is never used.
_NEVER_SEEN, _SEEN_ONCE = _Unknown(), _Unknown()


class Recent:
    """Calls by name, those used lately: the elder of two generations goes when the younger is full."""

    __slots__ = ("_old", "_young")

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        self._young: dict[tuple[Any, ...], PlainCall | _Unknown | None] = {}
        self._old = self._young

    def __len__(self) -> int:
        return len(self._young) + (len(self._old) if self._old is not self._young else 0)

    def find(self, name: tuple[Any, ...]) -> PlainCall | _Unknown | None:
        found = self._young.get(name, _NEVER_SEEN)
        if found is _NEVER_SEEN:
            found = self._old.get(name, _NEVER_SEEN)
            if found is not _NEVER_SEEN:
                self.keep(name, found)
        return found

    def keep(self, name: tuple[Any, ...], call: PlainCall | _Unknown | None) -> None:
        # Several threads may do so at a time: at worst something is forgotten, or kept twice.
        if len(self._young) >= MOST // 2:
            self._old, self._young = self._young, {}
        self._young[name] = call


_CALLS = Recent()


def _key_set(*names: str) -> int:
    keys = torch._C.DispatchKeySet(torch._C.DispatchKey.Undefined)
    for name in names:
        keys = keys | torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, name))
    return int(keys.raw_repr())


_TENSORS = {Tensor, torch.nn.Parameter}
_NUMBERS = {type(None), int, float}
_INTEGERS = {type(None), int}


def _nothing_listens() -> bool:
    return (
        torch._C._dispatch_tls_local_include_set().raw_repr() in _NO_MODES
        and not torch._C._len_torch_function_stack()
        and not torch.is_autocast_enabled("cpu")
        and not profiler._is_profiler_enabled
        and not torch._C._autograd._profiler_enabled()
        and forward_ad._current_level < 0
    )


# What the dispatcher includes of its own accord, and the keys of an ordinary tensor: outside and in inference mode. All
# this is torch's own affair and may change with it: where it has, no tensor is ordinary, and all calls go the long way.
_NO_MODES: set[int] = set()
_ORDINARY: set[int] = set()
try:
    _NO_MODES = {_key_set("BackendSelect", "ADInplaceOrView"), _key_set("BackendSelect")}
    _nothing_listens()
    torch._C._dispatch_keys(torch.empty(0)).raw_repr()
    _ORDINARY = {_key_set("CPU", "ADInplaceOrView", "AutogradCPU", "AutocastCPU"), _key_set("CPU", "AutocastCPU")}
except (AttributeError, TypeError):
    _NO_MODES = set()


def nothing_listens() -> bool:
    """Whether the dispatcher would pass a call on an ordinary tensor straight to its kernel, autograd apart."""
    return bool(_ORDINARY) and _nothing_listens()


def are_plain(
    scale: float | None, window: tuple[int | None, int | None] | None, tolerance: float | None, backend: str | None
) -> bool:
    """Whether options may name a call: numbers that are equal may be of types that are not, and True is no window."""
    return (
        type(scale) in _NUMBERS
        and type(tolerance) in _NUMBERS
        and (window is None or (type(window) is tuple and {*map(type, window)} <= _INTEGERS))
        and (backend is None or type(backend) is str)
    )


def check_slopes(slopes: Tensor) -> None:
    """As `check_finite_slopes`, in a microsecond where nothing is wrong."""
    if not (slopes.dim() == 1 and math.isfinite(sum(slopes.tolist()))):
        check_finite_slopes(slopes)


def is_ordinary(tensor: Any) -> bool:
    """Whether it is a strided tensor in memory, without a subclass, a lazy negation or anything of that kind."""
    return type(tensor) in _TENSORS and bool(_ORDINARY) and torch._C._dispatch_keys(tensor).raw_repr() in _ORDINARY


def plain_call(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    slopes: Tensor | None,
    is_causal: bool,
    scale: float | None,
    query_offset: int | Tensor | None,
    window: tuple[int | None, int | None] | None,
    dropout_p: float,
    tolerance: float | None,
    backend: str | None,
) -> tuple[PlainCall, Tensor] | None:
    """The call and its slopes where the short way is open, else None. Not to be asked under a compiler.

    Raises:
        ValueError, NotImplementedError: as `alibi_attention`.
    """
    if not _ORDINARY:
        return None
    # `is_ordinary` is written out: calling it for each takes longer than what it does. And 1 is no is_causal.
    keys_of = torch._C._dispatch_keys
    if not (
        type(query) in _TENSORS
        and type(key) in _TENSORS
        and type(value) in _TENSORS
        and keys_of(query).raw_repr() in _ORDINARY
        and keys_of(key).raw_repr() in _ORDINARY
        and keys_of(value).raw_repr() in _ORDINARY
        and (slopes is None or is_ordinary(slopes))
        and nothing_listens()
        and (is_causal is True or is_causal is False)
        and type(query_offset) in _INTEGERS
        and (dropout_p == 0.0 if type(dropout_p) is float else False)
        and are_plain(scale, window, tolerance, backend)
    ):
        return None
    learned = slopes is not None and slopes.requires_grad and torch.is_grad_enabled()
    name = (
        query.shape, key.shape, value.shape, query.stride(), key.stride(), value.stride(),
        query.dtype, key.dtype, value.dtype, is_causal, scale, query_offset, window, tolerance, backend,
        None if slopes is None else (slopes.shape, slopes.stride(), slopes.dtype, learned),
    )  # fmt: skip
    call = _CALLS.find(name)
    if call is _NEVER_SEEN:
        _CALLS.keep(name, _SEEN_ONCE)
        return None
    if call is _SEEN_ONCE:
        call = describe(
            PreparedCall, query, key, value, slopes, is_causal=is_causal, scale=scale, query_offset=query_offset,
            window=window, tolerance=tolerance, backend=backend,
        )  # fmt: skip
        _CALLS.keep(name, call)
    elif call is not None and slopes is not None:
        check_slopes(slopes)
    assert not isinstance(call, _Unknown)
    if call is None or not call.prepared.serves_still():
        return None
    if slopes is None:
        slopes = call.preset
        assert slopes is not None
    return call, slopes


def describe(
    kind: type[PreparedCall], query: Tensor, key: Tensor, value: Tensor, slopes: Tensor | None, **options: Any
) -> PlainCall | None:
    """The call checked in full; None where it is not the kernels' or they could not read its tensors as they are."""
    arguments = call_arguments(
        query, key, value, slopes, key_mask=None, cu_seqlens=None, cu_seqlens_k=None, dropout_p=0.0, **options
    )
    problem, backend = problem_of(*arguments[:3], *arguments[4:])
    readable = all(tensor.stride(3) == 1 for tensor in (query, key, value)) and (
        slopes is None or slopes.dtype == torch.float32
    )
    if not readable or not isinstance(choose(problem, backend), CpuBackend):
        return None
    prepared = kind(problem, query, key, value, arguments[3])
    return PlainCall(prepared, arguments[4:], arguments[3] if slopes is None else None)
