"""Values that were not there when a call was checked, looked at as it runs."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import Tensor

from alibi_attention import alibi_attention, alibi_slopes, explain_backends

_ONE = torch.randn(1, 1, 1, 8)
_WHY_NOT = explain_backends(_ONE, _ONE, _ONE)
BACKENDS = [name for name in ("cpu", "blocked", "reference") if _WHY_NOT[name] is None]


def inputs() -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(1, 2, 64, 16, generator=generator) for _ in range(3)]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("ends", [[0, 65], [0, 32], [3, 64], [-5, 64], [0, 40, 20, 64], [0, 5000]])
def test_bounds_of_sequences_are_held_against_the_length_in_compiled_code(ends: list[int], backend: str):
    """A kernel writes where they say."""

    @torch.compile(backend="eager")
    def attend(bounds: Tensor) -> Tensor:
        return alibi_attention(*inputs(), cu_seqlens=bounds, backend=backend)

    with pytest.raises(ValueError, match=r"^cu_seqlens: expected values that rise from 0 to the query length 64, got"):
        attend(torch.tensor(ends, dtype=torch.int32))


def test_bounds_are_held_against_the_length_under_vmap():
    tensors = inputs()

    def attend(bounds: Tensor) -> Tensor:
        return alibi_attention(*tensors, cu_seqlens=bounds)

    bounds = torch.tensor([[0, 20, 64], [0, 20, 100]], dtype=torch.int32)
    with pytest.raises(ValueError, match=r"^cu_seqlens: expected values that rise from 0"):
        torch.func.vmap(attend)(bounds)


COMPILED = f"""
import sys; sys.path[:] = {sys.path!r}
import torch
from alibi_attention import alibi_attention

query = torch.randn(1, 2, 64, 16)


@torch.compile(backend="eager")
def attend(slopes=None, mask=None, offset=None):
    return alibi_attention(query, query, query, slopes, key_mask=mask, query_offset=offset)


mask = torch.ones(1, 64, dtype=torch.bool)
mask[0, 30] = False
for wrong in (
    dict(slopes=torch.tensor([1.0, float("nan")])), dict(mask=mask), dict(offset=torch.tensor([2**62]))
):
    try:
        attend(**wrong)
        print("taken")
    except ValueError as error:
        print(str(error).partition(":")[0])
"""


@pytest.mark.parametrize(("debug", "found"), [("1", "slopes key_mask query_offset"), ("", "taken taken taken")])
def test_in_debugging_all_values_are_looked_at_as_compiled_code_runs(
    debug: str, found: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("ALIBI_DEBUG", debug)
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", COMPILED], capture_output=True, text=True, check=True)
    assert done.stdout.split() == found.split(), done.stderr


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("far", [True, False])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_gradients_of_slopes_do_not_have_the_rounding_of_the_output_times_the_distance(
    dtype: torch.dtype, far: bool, backend: str
):
    """In 16 bits a row's gradients of scores miss their sum by what rounding moved its output."""
    generator = torch.Generator().manual_seed(3)
    query, key, value = (torch.randn(1, 4, 500, 64, generator=generator).to(dtype) for _ in range(3))
    mask = torch.zeros(1, 500, dtype=torch.bool)
    mask[:, 60:250] = True
    flow, lse_flow = torch.randn(1, 4, 500, 64, generator=generator).to(dtype), torch.randn(1, 4, 500)
    found = []
    for wide in (False, True):
        slopes = alibi_slopes(4).requires_grad_()
        tensors = [t.double() if wide else t for t in (query, key, value)]
        out, lse = alibi_attention(
            *tensors, slopes.double() if wide else slopes, key_mask=mask if far else None, return_lse=True,
            backend="reference" if wide else backend, dropout_p=0.0,
        )  # fmt: skip
        lse = lse.masked_fill(lse == -torch.inf, 0.0)
        total = (out * flow.to(out.dtype)).sum() + (lse * lse_flow.to(lse.dtype)).sum()
        found.append(torch.autograd.grad(total, slopes)[0].double())
    assert (found[0] - found[1]).abs().max() <= 0.003 * found[1].abs().max()
