"""Where a compiler is, the kernels are: a source that does not compile must not pass for a machine without one."""

from __future__ import annotations

import shutil
from types import SimpleNamespace

import pytest

from alibi_attention.backends import native


@pytest.mark.skipif(shutil.which("c++") is None and shutil.which("g++") is None, reason="no C++ compiler here")
def test_the_library_was_built() -> None:
    library = native.load()
    assert not isinstance(library, str), library
    assert library.isa in ("avx512bf16", "avx512", "avx2", "baseline")


@pytest.mark.parametrize("layout", [(native.CALL.size, 64, 64), (8, 48, 64), None])
def test_a_library_of_another_version_is_not_used(layout: tuple[int, ...] | None) -> None:
    library = SimpleNamespace()
    if layout is not None:
        library.alibi_layout = lambda: SimpleNamespace(contents=layout)
        library.alibi_layout.restype = None
    reason = native._disagreement(library)
    assert reason is not None
    assert "another version" in reason
    assert "reinstall alibi-attention from source" in reason
