"""Every backend against the definition in float64: output, lse and all gradients, over the whole surface."""

from __future__ import annotations

import torch
from hypothesis import given
from operator_budget import check, serves
from operator_cases import Case, cases, oracle


@given(case=cases())
def test_float32(backend: str, case: Case) -> None:
    if serves(case, backend):
        check(case, case.run(backend), oracle(case))


@given(case=cases(dtypes=(torch.bfloat16, torch.float16), widths=(0.3, 1.0)))
def test_sixteen_bits(backend: str, case: Case) -> None:
    if serves(case, backend):
        check(case, case.run(backend), oracle(case))


@given(case=cases(dtypes=(torch.float64,)))
def test_float64(backend: str, case: Case) -> None:
    if serves(case, backend):
        check(case, case.run(backend), oracle(case))


@given(case=cases(dtypes=(torch.float32,), dropout=False))
def test_loose_tolerance_stays_inside_it(backend: str, case: Case) -> None:
    """The promise about the output: dropped share times the diameter of the values; about lse: share / (1 - share)."""
    if not serves(case, backend):
        return
    tolerance = 1e-3
    out, lse, *_ = case.run(backend, tolerance=tolerance)
    true_out, true_lse, *_ = oracle(case)
    diameter = 2 * case.value.double().norm(dim=-1).amax()
    assert (out - true_out).norm(dim=-1).amax() <= tolerance * diameter + 1e-4 * diameter
    seen = true_lse > -torch.inf
    assert torch.equal(seen, lse > -torch.inf)
    distance = (lse.double() - true_lse).masked_fill(~seen, 0.0).abs()
    size = true_lse.masked_fill(~seen, 0.0).abs().amax()
    assert distance.amax() <= tolerance / (1 - tolerance) + 1e-5 * (1 + size)
