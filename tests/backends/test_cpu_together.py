"""Blocks of queries that a thread takes together have the results they have alone, bit by bit."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from alibi_attention import alibi_attention
from alibi_attention.backends import native
from alibi_attention.backends.native import BLOCK_Q

pytestmark = pytest.mark.skipif(isinstance(native.load(), str), reason="the compiled library is not installed")

HEADS = 8
# As csrc/forward.h has them: so many blocks together where there are so many turns for each thread.
TOGETHER, TURNS_EACH = 4, 8

KINDS: dict[str, dict[str, Any]] = {
    "causal": {},
    "every tile": {"tolerance": 0.0},
    "both sides": {"is_causal": False},
    "window": {"window": (70, None)},
    "both sides, window": {"is_causal": False, "window": (100, 33)},
    "queries after the keys": {"query_offset": 900},
    "queries before the keys": {"query_offset": -100},
    "packed": {"cu_seqlens": torch.tensor([0, 5, 130, 131, 290, 400], dtype=torch.int32)},
    "dropout": {"dropout_p": 0.3},
    "padded": {"key_mask": (torch.arange(400) >= 77)[None]},
}


@pytest.fixture(autouse=True)
def threads_as_before() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def attend(threads: int, length: int, tensors: list[Tensor], options: dict[str, Any]) -> tuple[Tensor, ...]:
    torch.set_num_threads(threads)
    torch.manual_seed(5)
    blocks = HEADS * -(-length // BLOCK_Q)
    assert (blocks >= TOGETHER * TURNS_EACH * threads) == (threads == 1), "one thread takes them together, three do not"
    return alibi_attention(*tensors, **options, return_lse=True, backend="cpu")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("kv_heads", "head_dim"), [(8, 64), (2, 40)])
def test_together_as_alone(dtype: torch.dtype, kind: str, kv_heads: int, head_dim: int) -> None:
    length = 367 if kind not in ("packed", "padded") else 400
    query = torch.randn(1, HEADS, length, head_dim, dtype=dtype)
    key, value = (torch.randn(1, kv_heads, length, head_dim, dtype=dtype) for _ in range(2))
    together, alone = (attend(threads, length, [query, key, value], KINDS[kind]) for threads in (1, 3))
    assert torch.isfinite(together[0]).all()
    for got, want in zip(together, alone, strict=True):
        assert torch.equal(got, want)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", ["causal", "both sides"])
def test_what_is_not_finite_stays_with_its_rows(dtype: torch.dtype, kind: str) -> None:
    """A value that some blocks of a group see and others do not: what is kept of its tile is not for all of them."""
    query, key, value = (torch.randn(1, HEADS, 367, 64, dtype=dtype) for _ in range(3))
    value[0, :, 150, 3] = torch.inf
    value[0, 1, 201, 5] = torch.nan
    options = {**KINDS[kind], "tolerance": 0.0}
    together, alone = (attend(threads, 367, [query, key, value], options) for threads in (1, 3))
    for got, want in zip(together, alone, strict=True):
        assert torch.equal(got.nan_to_num(7.0, 8.0, 9.0), want.nan_to_num(7.0, 8.0, 9.0))
    if kind == "causal":
        assert torch.isfinite(together[0][:, :, :150]).all()
        # Times a weight that has become 0 it is no number.
        assert not torch.isfinite(together[0][:, :, 150:, 3]).any()
