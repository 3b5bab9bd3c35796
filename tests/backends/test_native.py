"""Where a compiler is, the kernels are: a source that does not compile must not pass for a machine without one."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import warnings
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from alibi_attention import alibi_attention, dispatch, explain_backends
from alibi_attention.backends import native
from alibi_attention.backends.triton import device
from alibi_attention.problem import Problem


@pytest.mark.skipif(shutil.which("c++") is None and shutil.which("g++") is None, reason="no C++ compiler here")
def test_the_library_was_built() -> None:
    library = native.load()
    assert not isinstance(library, str), library
    assert library.isa in ("amx", "avx512bf16", "avx512", "avx2", "baseline")


EXPECTED = (
    native.INTERFACE, native.CALL.size, native.BLOCK_Q, native.BLOCK_K, native.APPEND.size, native.AUDIT.size
)  # fmt: skip


class Layout(tuple[int, ...]):
    """As ctypes' pointer, but that reading past what is there fails."""

    def __getitem__(self, at: Any) -> Any:
        assert not isinstance(at, slice) or at.stop <= len(self)
        return super().__getitem__(at)


def library_of(layout: tuple[int, ...] | None) -> Any:
    library = SimpleNamespace()
    if layout is not None:
        library.alibi_layout = lambda: Layout(layout)
        library.alibi_layout.restype = None
    return library


def test_a_library_of_this_version_is_used() -> None:
    assert native._disagreement(library_of(EXPECTED)) is None


@pytest.mark.parametrize(
    "layout",
    [
        (native.INTERFACE, native.CALL.size, 64, 64, native.APPEND.size, native.AUDIT.size),
        (native.INTERFACE, 8, 48, 64, native.APPEND.size, native.AUDIT.size),
        (*EXPECTED[:4], 8, native.AUDIT.size),
        (*EXPECTED[:5], 8),
        # Of the same sizes, but what they mean has changed; and one from before there was a number.
        (native.INTERFACE + 1, *EXPECTED[1:]),
        EXPECTED[1:],
        None,
    ],
)
def test_a_library_of_another_version_is_not_used(layout: tuple[int, ...] | None) -> None:
    reason = native._disagreement(library_of(layout))
    assert reason is not None
    assert "another version" in reason
    assert "reinstall alibi-attention from source" in reason


SMALL_SIGNAL_STACK = """
import ctypes, torch
class Stack(ctypes.Structure):
    _fields_ = [("sp", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t)]
memory = ctypes.create_string_buffer(8192)
assert ctypes.CDLL(None).sigaltstack(ctypes.byref(Stack(ctypes.addressof(memory), 0, 8192)), None) == 0
from alibi_attention import alibi_attention, alibi_slopes
query, key, value = torch.randn(3, 1, 2, 100, 32, generator=torch.Generator().manual_seed(0)).bfloat16()
out = alibi_attention(query, key, value, alibi_slopes(2), backend="cpu")
print(out.double().sum().item())
"""


def test_where_the_system_refuses_the_matrix_unit_other_kernels_serve():
    """Linux gives no process its registers whose signal stacks could not hold them."""
    if getattr(native.load(), "isa", "") != "amx":
        pytest.skip("this machine, or this run, is without a matrix unit")

    def run(isa: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "ALIBI_CPU_ISA": isa}
        command = [sys.executable, "-c", SMALL_SIGNAL_STACK]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)

    unasked, without, asked = run(""), run("avx512bf16"), run("amx")
    assert unasked.returncode == without.returncode == 0, unasked.stderr + without.stderr
    assert unasked.stdout == without.stdout
    assert asked.returncode != 0
    assert "ALIBI_CPU_ISA: got 'amx', the system refuses its registers" in asked.stderr


def test_whoever_goes_without_the_kernels_is_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    query = torch.randn(1, 1, 8, 8)
    want = alibi_attention(query, query, query)
    monkeypatch.setattr(native, "load", lambda: "the compiled library is missing: blocked serves meanwhile")
    monkeypatch.setattr(dispatch, "_told_of_missing_kernels", False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # Not who asks for another backend, and not who would have got it in any case.
        alibi_attention(query, query, query, backend="blocked")
        alibi_attention(query.double(), query.double(), query.double())
        alibi_attention(*torch.randn(3, 1, 1, 4, 300))
        with pytest.raises(RuntimeWarning, match=r"^alibi_attention: the compiled library is missing: blocked serves"):
            alibi_attention(query, query, query)
        # Where warnings are errors a second call works all the same.
        torch.testing.assert_close(alibi_attention(query, query, query), want)


def test_whoever_has_a_gpu_and_no_triton_is_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    missing = "needs Triton 3.6 or later, found 3.5.0: pip install"
    monkeypatch.setattr(device, "missing", lambda: missing)
    monkeypatch.setattr(dispatch, "triton_missing", lambda: missing)
    monkeypatch.setattr(device, "target", lambda _: "sm_90")
    monkeypatch.setattr(dispatch, "_told_of_missing_kernels", False)
    seen: list[Problem] = []
    monkeypatch.setattr(dispatch, "reasons", lambda problem: seen.append(problem) or {})
    explain_backends(*torch.randn(3, 1, 1, 8, 8))
    on_a_gpu = seen[0]._replace(device=torch.device("cuda"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        dispatch.choose(on_a_gpu._replace(dtype=torch.float64), None)
        dispatch.choose(on_a_gpu, "blocked")
        with pytest.raises(RuntimeWarning, match=r"^alibi_attention: needs Triton 3\.6 or later, found 3\.5\.0"):
            dispatch.choose(on_a_gpu, None)
        assert dispatch.choose(on_a_gpu, None).name == "blocked"


@pytest.mark.skipif(isinstance(native.load(), str), reason="the compiled kernels are missing")
@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no os.environb")
def test_an_instruction_set_that_is_no_text_is_refused_as_any_other() -> None:
    code = """
import torch
from alibi_attention import KVCache, alibi_attention
query = torch.randn(1, 1, 8, 8)
KVCache().append(query, query)
try:
    alibi_attention(query, query, query)
except RuntimeError as error:
    print(ascii(str(error)))
"""
    environment = {**os.environb, b"ALIBI_CPU_ISA": b"\xff"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.stdout.startswith('"ALIBI_CPU_ISA: got'), done.stderr
    assert "expected amx" in done.stdout or "expected baseline" in done.stdout
