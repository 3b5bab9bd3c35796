"""What Triton's interpreter gets wrong or hides, put right for the tests: bfloat16, memory out of bounds, races.

Needs TRITON_INTERPRET=1 in the environment before Triton is imported. The interpreter holds bfloat16 as raw 16-bit
integers and computes with those: products of bit patterns. And it runs programs one after the other over plain memory,
so a read past the end of a tensor finds whatever lies there, and two programs that write the same element never meet.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import triton.language as tl
from triton.runtime import interpreter
from triton.runtime.interpreter import InterpreterBuilder, ReduceOps, ScanOps, TensorHandle, _get_np_dtype

from alibi_attention.backends.triton import device

_FLOATS = (tl.float16, tl.bfloat16, tl.float32, tl.float64)


def widen(bits: np.ndarray) -> np.ndarray:
    """bfloat16 bits as float32, exactly."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def narrow(values: np.ndarray) -> np.ndarray:
    """float32 to bfloat16 bits: to nearest, ties to even; a NaN stays a NaN."""
    values = np.asarray(values, dtype=np.float32)
    bits = values.view(np.uint32).astype(np.uint64)
    rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return np.where(np.isnan(values), np.uint16(0x7FC0), rounded).astype(np.uint16)


def _is_bf16(handle: Any) -> bool:
    return isinstance(handle, TensorHandle) and handle.dtype.scalar == tl.bfloat16


def _as_float(handle: TensorHandle) -> np.ndarray:
    return widen(handle.data) if _is_bf16(handle) else handle.data


def _back(data: np.ndarray, dtype: Any) -> TensorHandle:
    """A result computed in float32 as the bfloat16 it should have been; comparisons stay as they are."""
    return TensorHandle(data if data.dtype == np.bool_ else narrow(data), dtype)


def _binary(self: Any, lhs: TensorHandle, rhs: TensorHandle, op: Callable[..., np.ndarray]) -> TensorHandle:
    if not (_is_bf16(lhs) or _is_bf16(rhs)):
        return _ORIGINAL["binary_op"](self, lhs, rhs, op)
    return _back(op(_as_float(lhs), _as_float(rhs)), lhs.dtype.scalar)


def _unary(self: Any, arg: TensorHandle, op: Callable[..., np.ndarray]) -> TensorHandle:
    if not _is_bf16(arg):
        return _ORIGINAL["unary_op"](self, arg, op)
    return _back(op(_as_float(arg)), arg.dtype.scalar)


def _ternary(
    self: Any, lhs: TensorHandle, rhs: TensorHandle, other: TensorHandle, op: Callable[..., np.ndarray]
) -> TensorHandle:
    # A choice moves bits; everything else would compute with them.
    if op is np.where or not any(map(_is_bf16, (lhs, rhs, other))):
        return _ORIGINAL["ternary_op"](self, lhs, rhs, other, op)
    return _back(op(*map(_as_float, (lhs, rhs, other))), other.dtype.scalar)


def _fma(self: Any, x: TensorHandle, y: TensorHandle, z: TensorHandle) -> TensorHandle:
    if not any(map(_is_bf16, (x, y, z))):
        return _ORIGINAL["create_fma"](self, x, y, z)
    return _back(_as_float(x) * _as_float(y) + _as_float(z), z.dtype.scalar)


def _cast(self: Any, src: TensorHandle, dst_type: Any) -> TensorHandle:
    dst = dst_type.scalar
    if src.dtype.scalar != tl.bfloat16 and dst != tl.bfloat16:
        return _ORIGINAL["cast_impl"](self, src, dst_type)
    values = _as_float(src)
    if dst == tl.bfloat16:
        return TensorHandle(narrow(values.astype(np.float32)), dst)
    return TensorHandle(values.astype(_get_np_dtype(dst_type)), dst)


def _float_to_float(self: Any, src: TensorHandle, dst_type: Any, rounding_mode: Any) -> TensorHandle:
    plain = rounding_mode in (None, interpreter._ir.ROUNDING_MODE.RTNE)
    if plain and src.dtype.scalar in _FLOATS and dst_type.scalar in _FLOATS:
        return _cast(self, src, dst_type)
    return _ORIGINAL["create_fp_to_fp"](self, src, dst_type, rounding_mode)


def _dot(self: Any, a: TensorHandle, b: TensorHandle, d: TensorHandle, *rest: Any) -> TensorHandle:
    if not (_is_bf16(a) or _is_bf16(b) or _is_bf16(d)):
        return _ORIGINAL["create_dot"](self, a, b, d, *rest)
    total = np.matmul(_as_float(a), _as_float(b), dtype=np.float32) + _as_float(d)
    return TensorHandle(narrow(total) if _is_bf16(d) else total.astype(d.data.dtype), d.dtype.scalar)


def _refusing(name: str) -> Callable[..., Any]:
    """What nobody has put right must not be wrong in silence."""

    def guarded(self: Any, inputs: Any, *rest: Any) -> Any:
        arrays = inputs if isinstance(inputs, tuple) else (inputs,)
        if any(_is_bf16(getattr(each, "handle", each)) for each in arrays):
            raise NotImplementedError(f"{name} of bfloat16 is wrong in the interpreter, and not repaired here")
        return _ORIGINAL[name](self, inputs, *rest)

    return guarded


_ORIGINAL: dict[str, Any] = {
    **{
        name: getattr(InterpreterBuilder, name)
        for name in (
            "binary_op", "unary_op", "ternary_op", "create_fma", "cast_impl", "create_fp_to_fp", "create_dot",
            "create_masked_load", "create_masked_store", "create_atomic_rmw", "create_erf", "create_rsqrt",
        )
    },
    "reduce": ReduceOps.apply_impl,
    "scan": ScanOps.apply_impl,
}  # fmt: skip


def repair_bfloat16() -> None:
    """Make bfloat16 in the interpreter what it is on a GPU: float32 arithmetic, every result rounded to nearest."""
    replaced = {
        "binary_op": _binary, "unary_op": _unary, "ternary_op": _ternary, "create_fma": _fma, "cast_impl": _cast,
        "create_fp_to_fp": _float_to_float, "create_dot": _dot,
        "create_erf": _refusing("create_erf"), "create_rsqrt": _refusing("create_rsqrt"),
    }  # fmt: skip
    for name, function in replaced.items():
        setattr(InterpreterBuilder, name, function)
    ReduceOps.apply_impl = _refusing("reduce")
    ScanOps.apply_impl = _refusing("scan")
    device.interprets_bfloat16 = True


def _nothing(fn: Any) -> None:
    """In place of patching what is patched already."""


def quicken() -> None:
    """Spare the interpreter half of its time: it patches Triton's language anew at every call of a device function."""
    call = interpreter.InterpretedFunction.__call__
    patch = interpreter._patch_lang
    types: dict[Any, np.dtype[Any]] = {}
    look_up = interpreter._get_np_dtype

    def quick_call(self: Any, *args: Any, **kwargs: Any) -> Any:
        # Within a launch once for each module is enough: what is patched stays so until its end.
        module = self.fn.__module__
        known = bool(_LAUNCH) and module in _LAUNCH[-1].patched
        if _LAUNCH:
            _LAUNCH[-1].patched.add(module)
        # Set anew either way: a function that is known may call one that is not.
        before, interpreter._patch_lang = interpreter._patch_lang, _nothing if known else patch
        try:
            return call(self, *args, **kwargs)
        finally:
            interpreter._patch_lang = before

    def quick_look_up(of: Any) -> np.dtype[Any]:
        if not isinstance(of, tl.dtype) or isinstance(of, (tl.pointer_type, tl.block_type)):
            return look_up(of)
        found = types.get(of.name)
        if found is None:
            found = types[of.name] = look_up(of)
        return found

    # It computes the operands of assertions that are compiled only under a debugger.
    interpreter.interpreter_builder.options = interpreter.InterpreterOptions(sanitize_overflow=False)
    interpreter.InterpretedFunction.__call__ = quick_call
    interpreter._get_np_dtype = quick_look_up


class MemoryFaultError(AssertionError):
    """A kernel touched memory it was not given, or two of its programs the same element."""


class _Launch:
    """What one kernel start may touch, and what it has touched."""

    def __init__(self, name: str, tensors: list[Any]) -> None:
        self.name = name
        runs = [_runs(tensor) for tensor in tensors if tensor.numel()]
        starts = np.concatenate([run[0] for run in runs]) if runs else np.empty(0, np.uint64)
        ends = np.concatenate([run[1] for run in runs]) if runs else np.empty(0, np.uint64)
        order = np.argsort(starts, kind="stable")
        self.starts, self.ends = starts[order], np.maximum.accumulate(ends[order]) if runs else ends
        self.program = -1
        self.patched: set[str] = set()
        self.written: list[tuple[int, np.ndarray]] = []
        self.read: list[tuple[int, np.ndarray]] = []

    def check(self, addresses: np.ndarray, size: int, what: str) -> None:
        if not addresses.size:
            return
        at = np.searchsorted(self.starts, addresses, side="right").astype(np.int64) - 1
        inside = at >= 0
        inside[inside] = addresses[inside] + np.uint64(size) <= self.ends[at[inside]]
        if not inside.all():
            raise MemoryFaultError(
                f"{self.name}: program {self.program} {what} {int((~inside).sum())} of {addresses.size} elements "
                "outside of the tensors it was given"
            )

    def check_races(self) -> None:
        """Every element written by one program alone, and read by no other."""
        if not self.written:
            return
        writers = np.concatenate([np.full(each.size, program) for program, each in self.written])
        addresses = np.concatenate([each for _, each in self.written])
        order = np.argsort(addresses, kind="stable")
        addresses, writers = addresses[order], writers[order]
        same = addresses[1:] == addresses[:-1]
        if (writers[1:] != writers[:-1])[same].any():
            raise MemoryFaultError(f"{self.name}: two programs write the same element")
        for program, read in self.read:
            at = np.searchsorted(addresses, read)
            found = at < addresses.size
            found[found] = addresses[at[found]] == read[found]
            if (writers[at[found]] != program).any():
                raise MemoryFaultError(f"{self.name}: program {program} reads what another one writes")


def _runs(tensor: Any) -> tuple[np.ndarray, np.ndarray]:
    """First and end address of each contiguous run of the elements of a strided tensor."""
    size = tensor.element_size()
    dims = [(n, s * size) for n, s in zip(tensor.shape, tensor.stride(), strict=True) if n > 1]
    dims.sort(key=lambda dim: dim[1])
    length = size
    while dims and dims[0][1] == length:
        length *= dims.pop(0)[0]
    offsets = np.zeros(1, np.uint64)
    for n, stride in dims:
        if stride:
            offsets = (offsets[:, None] + np.arange(n, dtype=np.uint64) * np.uint64(stride)).reshape(-1)
    starts = np.uint64(tensor.data_ptr()) + offsets
    return starts, starts + np.uint64(length)


_LAUNCH: list[_Launch] = []


def _touched(pointers: TensorHandle, mask: TensorHandle) -> np.ndarray:
    chosen = np.broadcast_to(mask.data, pointers.data.shape)
    return np.asarray(pointers.data)[chosen]


def _element_size(pointers: TensorHandle) -> int:
    return max(1, pointers.get_element_ty().primitive_bitwidth // 8)


def _load(self: Any, pointers: TensorHandle, mask: TensorHandle, *rest: Any) -> TensorHandle:
    if _LAUNCH:
        addresses = _touched(pointers, mask)
        _LAUNCH[-1].check(addresses, _element_size(pointers), "reads")
        _LAUNCH[-1].read.append((_LAUNCH[-1].program, np.unique(addresses)))
    return _ORIGINAL["create_masked_load"](self, pointers, mask, *rest)


def _store(self: Any, pointers: TensorHandle, value: TensorHandle, mask: TensorHandle, *rest: Any) -> Any:
    if _LAUNCH:
        addresses = _touched(pointers, mask)
        _LAUNCH[-1].check(addresses, _element_size(pointers), "writes")
        _LAUNCH[-1].written.append((_LAUNCH[-1].program, np.unique(addresses)))
    return _ORIGINAL["create_masked_store"](self, pointers, value, mask, *rest)


def _atomic(self: Any, op: Any, pointers: TensorHandle, value: TensorHandle, mask: TensorHandle, *rest: Any) -> Any:
    if _is_bf16(value):
        raise NotImplementedError("atomics of bfloat16 are wrong in the interpreter, and not repaired here")
    if _LAUNCH:
        _LAUNCH[-1].check(_touched(pointers, mask), _element_size(pointers), "updates")
    ATOMICS.append(str(value.dtype))
    return _ORIGINAL["create_atomic_rmw"](self, op, pointers, value, mask, *rest)


# The types of all atomic updates so far: those of floats have no fixed order, and results that are not deterministic.
ATOMICS: list[str] = []


@contextlib.contextmanager
def watching_memory() -> Iterator[list[str]]:
    """Within, kernels raise `MemoryFaultError` at accesses out of bounds and at races; yields the kernels started."""
    started: list[str] = []
    whole = interpreter.GridExecutor.__call__
    set_index = InterpreterBuilder.set_grid_idx

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        tensors = [each for each in (*args, *kwargs.values()) if hasattr(each, "data_ptr")]
        launch = _Launch(self.fn.__name__, tensors)
        started.append(launch.name)
        _LAUNCH.append(launch)
        try:
            with np.errstate(all="ignore"):
                result = whole(self, *args, **kwargs)
            launch.check_races()
        finally:
            _LAUNCH.pop()
        return result

    def set_grid_idx(self: Any, x: int, y: int, z: int) -> None:
        if _LAUNCH:
            _LAUNCH[-1].program += 1
        set_index(self, x, y, z)

    replaced = {
        "create_masked_load": _load, "create_masked_store": _store, "create_atomic_rmw": _atomic,
        "set_grid_idx": set_grid_idx,
    }  # fmt: skip
    before = {name: getattr(InterpreterBuilder, name) for name in replaced}
    for name, function in replaced.items():
        setattr(InterpreterBuilder, name, function)
    interpreter.GridExecutor.__call__ = call
    try:
        yield started
    finally:
        interpreter.GridExecutor.__call__ = whole
        for name, function in before.items():
            setattr(InterpreterBuilder, name, function)
