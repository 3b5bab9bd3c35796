"""The compiled library behind `cpu`: found, loaded and told which instruction set to use, once, on first need."""

from __future__ import annotations

import ctypes
import functools
import os
import platform
import struct
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from alibi_attention.horizon.tiles import BLOCK_K

# kInterface of csrc/call.h: what the fields of a call mean may change while their sizes do not.
INTERFACE = 6
BLOCK_Q = 48
# Numbers that a plan has for a block of queries: first tile, end tile, tile apart, tiles whose scores were taken.
# Graphs that Inductor keeps on disk hold the size of a plan, so whoever changes it must give the operator another name.
PLAN = 4
# csrc/call.h, field by field, eight bytes each; the last 18 are backward's own.
CALL = struct.Struct("=20q3d29q18q")
APPEND = struct.Struct("=35q")
AUDIT = struct.Struct("=14q3d11qd3q")

_FILE = "_alibi_cpu.so"
_INSTALL = (
    "blocked serves meanwhile; for the kernels reinstall alibi-attention from source, with pip's --no-cache-dir, "
    "where a C++17 compiler (GCC or Clang) is found"
)
# Choosing an instruction set changes what kernels run: it must happen once, before the first of them.
_LOADING = threading.Lock()
_REFUSED = {
    2: "this machine does not have it",
    3: "the system refuses its registers (Linux before 5.16, or a signal stack somewhere that is too small for them)",
}
_STATUS = {
    1: "the compiled library is of another version",
    4: "the compiled library was handed a call without rows, or heads that key heads do not divide",
}


class Native(NamedTuple):
    """Entry points: each takes a packed call, append or audit, and returns its status."""

    forward: Callable[[bytes], int]
    backward: Callable[[bytes], int]
    append: Callable[[bytes], int]
    audit: Callable[[bytes], int]
    isa: str


def load() -> Native | str:
    """The library, or the reason there is none. ALIBI_CPU_ISA names an instruction set instead of the machine's best.

    Raises:
        RuntimeError: for an ALIBI_CPU_ISA that does not exist, that this machine lacks, or that the system refuses.
    """
    # Read once: `use` may change it in between.
    serving = _serving
    return _load_first() if serving is None else serving


# What `load` gives, once it is known.
_serving: Native | str | None = None


def _load_first() -> Native | str:
    global _serving
    with _LOADING:
        if _serving is None:
            _serving = _load()
        return _serving


def use(library: Native | None) -> None:
    """Kernels of another build (`open_library`) from now on, in every thread; None for the package's own.

    For measurements that compare builds. A call that is under way ends with what it began with.
    """
    global _serving
    with _LOADING:
        _serving = library


@functools.cache
def _load() -> Native | str:
    # Imported as a library the package lies in one place, installed in editable mode in several.
    places = [Path(place) / _FILE for place in sys.modules[__package__ or ""].__path__]
    found = [place for place in places if place.is_file()]
    if not found:
        return f"the compiled library is missing ({_FILE} beside this package's backends): {_INSTALL}"
    return open_library(found[0])


def open_library(path: Path) -> Native | str:
    """The library in a file, or why it cannot serve.

    Raises:
        RuntimeError: as `load`.
    """
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:
        return f"the compiled library does not load ({error}): {_INSTALL}"
    library.alibi_choose.argtypes = [ctypes.c_char_p]
    library.alibi_chosen.restype = ctypes.c_char_p
    reason = _disagreement(library)
    if reason is not None:
        return reason
    entries = (library.alibi_forward, library.alibi_backward, library.alibi_append, library.alibi_audit)
    for entry in entries:
        entry.argtypes = [ctypes.c_char_p]
        entry.restype = ctypes.c_int64
    wanted = os.environ.get("ALIBI_CPU_ISA", "")
    # As the environment has it, which need not be text.
    refusal = library.alibi_choose(os.fsencode(wanted))
    if refusal:
        why = _REFUSED.get(refusal, f"expected {_names()}")
        raise RuntimeError(f"ALIBI_CPU_ISA: got {wanted!r}, {why}; unset it to let the library choose")
    return Native(*entries, library.alibi_chosen().decode())


def _names() -> str:
    if platform.machine().lower() in ("x86_64", "amd64"):
        return "amx, avx512bf16, avx512, avx2 or baseline"
    return "baseline"


def _disagreement(library: ctypes.CDLL) -> str | None:
    """Why a library cannot serve this package: another version of one of them lies beside the other."""
    expected = (INTERFACE, CALL.size, BLOCK_Q, BLOCK_K, APPEND.size, AUDIT.size)
    try:
        library.alibi_layout.restype = ctypes.POINTER(ctypes.c_int64)
        layout = library.alibi_layout()
        # Of another interface no more may be there to read.
        found = tuple(layout[: len(expected)]) if layout[0] == INTERFACE else (layout[0],)
    except AttributeError:
        found = ()
    if found == expected:
        return None
    return (
        "the compiled library is of another version (interface, call, block, tile, append and audit are "
        f"{found or 'unknown'} there, {expected} here): {_INSTALL}"
    )


def check(status: int) -> None:
    """Raises what a status stands for."""
    if status == 2:
        raise MemoryError("alibi_attention: the cpu backend could not allocate its workspace")
    if status == 3:
        raise ValueError(
            "plan: expected the tiles that forward kept of these keys, got others; hand back what forward gave"
        )
    if status != 0:
        raise RuntimeError(f"alibi_attention: {_STATUS.get(status, f'status {status}')}; {_INSTALL}")
