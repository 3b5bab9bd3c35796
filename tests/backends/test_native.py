"""Where a compiler is, the kernels are: a source that does not compile must not pass for a machine without one."""

from __future__ import annotations

import shutil
from types import SimpleNamespace
from typing import Any

import pytest

from alibi_attention.backends import native


@pytest.mark.skipif(shutil.which("c++") is None and shutil.which("g++") is None, reason="no C++ compiler here")
def test_the_library_was_built() -> None:
    library = native.load()
    assert not isinstance(library, str), library
    assert library.isa in ("amx", "avx512bf16", "avx512", "avx2", "baseline")


EXPECTED = (native.INTERFACE, native.CALL.size, native.BLOCK_Q, native.BLOCK_K)


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
        (native.INTERFACE, native.CALL.size, 64, 64),
        (native.INTERFACE, 8, 48, 64),
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
