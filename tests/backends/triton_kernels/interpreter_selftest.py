"""That the repairs of the interpreter are right, and that its watch sees faults. Run by test_interpreter.py.

TRITON_INTERPRET=1 python interpreter_selftest.py
"""

from __future__ import annotations

import interpreter_repairs as repairs
import numpy as np
import sample_kernels as kernels
import torch
from torch import Tensor


def every_bfloat16_survives() -> None:
    bits = np.arange(1 << 16, dtype=np.uint32).astype(np.uint16)
    ours = torch.from_numpy(repairs.widen(bits).copy())
    theirs = torch.from_numpy(bits.view(np.int16).copy()).view(torch.bfloat16).float()
    assert torch.equal(ours.nan_to_num(7.0), theirs.nan_to_num(7.0))
    back = torch.from_numpy(repairs.narrow(ours.numpy()).view(np.int16).copy()).view(torch.bfloat16)
    assert torch.equal(back.nan_to_num(7.0), theirs.bfloat16().nan_to_num(7.0))


def rounding_is_that_of_torch() -> None:
    generator = torch.Generator().manual_seed(0)
    words = torch.randint(-(2**31), 2**31 - 1, (1 << 20,), generator=generator, dtype=torch.int64).to(torch.int32)
    values = torch.cat([words.view(torch.float32), torch.tensor([3.3895e38, 3.4e38, 1e-40, -0.0, float("inf")])])
    ours = torch.from_numpy(repairs.narrow(values.numpy()).view(np.int16).copy()).view(torch.bfloat16)
    assert torch.equal(ours.nan_to_num(7.0), values.bfloat16().nan_to_num(7.0))


def _product() -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    a, b = (torch.randn(16, 16).bfloat16() for _ in range(2))
    out = torch.empty(16, 16, dtype=torch.bfloat16)
    kernels.multiply[(1,)](a, b, out, 16)
    return out, ((a * a + a).float() @ b.float()).bfloat16()


def bfloat16_is_wrong_without_and_right_with_repairs() -> None:
    got, want = _product()
    # Once this holds no more, Triton has mended its interpreter, and the repairs can go.
    assert not torch.equal(got, want), "the interpreter computes bfloat16 rightly by itself"
    repairs.repair_bfloat16()
    got, want = _product()
    assert torch.equal(got, want)


def _shifted(masked: bool, twice: bool) -> None:
    source, target = torch.arange(64.0)[:40], torch.empty(64)[:40]
    with repairs.watching_memory() as started:
        kernels.shift_left[(3,)](source, target, 40, 16, masked, twice)
    assert started == ["shift_left"]


def _fault(masked: bool, twice: bool) -> str:
    try:
        _shifted(masked, twice)
    except Exception as error:  # the interpreter wraps what its kernels raise
        return str(error)
    return ""


def the_watch_sees_reads_out_of_bounds_and_races() -> None:
    _shifted(True, False)
    # Memory behind both views is there: nothing but the watch can tell.
    assert "outside of the tensors" in _fault(False, False)
    assert "two programs write the same element" in _fault(True, True)


def the_watch_knows_strided_views() -> None:
    whole = torch.zeros(4, 10, 16)
    for view in (whole[:, 2:9, 3:11], whole.transpose(0, 1), whole[1:2, :, ::2], whole[0, 0, :1].expand(5, 1)):
        starts, ends = repairs._runs(view)
        touched = {int(at) for s, e in zip(starts, ends, strict=True) for at in range(int(s), int(e), 4)}
        index = np.indices(tuple(view.shape)).reshape(view.dim(), -1)
        offsets = sum(index[d] * view.stride(d) for d in range(view.dim()))
        assert touched == {view.data_ptr() + 4 * int(at) for at in np.asarray(offsets)}


if __name__ == "__main__":
    every_bfloat16_survives()
    rounding_is_that_of_torch()
    bfloat16_is_wrong_without_and_right_with_repairs()
    the_watch_sees_reads_out_of_bounds_and_races()
    the_watch_knows_strided_views()
    print("the interpreter's repairs hold")
