"""Where a compiler is, the kernels are: a source that does not compile must not pass for a machine without one."""

from __future__ import annotations

import shutil

import pytest

from alibi_attention.backends import native


@pytest.mark.skipif(shutil.which("c++") is None and shutil.which("g++") is None, reason="no C++ compiler here")
def test_the_library_was_built() -> None:
    library = native.load()
    assert not isinstance(library, str), library
    assert library.isa in ("avx512bf16", "avx512", "avx2", "baseline")
