"""Checks of the kernels: dropout, padding, windows, offsets."""

from __future__ import annotations

import torch
from kernel_calls import BACKEND, blocks, make_call, unwarned
from kernel_limits import compare
from operator_budget import NAMES
from operator_budget import check as within_budget
from torch import Tensor

from alibi_attention import alibi_attention
from alibi_attention.dropout import keep_scale


def dropout_masks(device: str) -> None:
    """The very scores the common generator drops are dropped, in every tile."""
    length, p = 64, 0.4
    call = make_call(device, batch=2, q_len=length, head_dim=16, value_dim=length, kv_heads=4, dropout_p=p)
    value = torch.eye(length, device=device).expand(2, 4, length, length).contiguous()
    torch.manual_seed(3)
    out = alibi_attention(
        call.query, call.key, value, 0 * call.slopes, is_causal=False, dropout_p=p, tolerance=0.0, backend=BACKEND
    )
    torch.manual_seed(3)
    seed = torch.randint(-(2**63), 2**63 - 1, (), dtype=torch.int64, device=device)
    index = [torch.arange(n, device=device) for n in (2, 4, length, length)]
    assert torch.equal(out != 0, keep_scale(seed, p, 4, *index) != 0)


def dropout(dtype: torch.dtype, device: str) -> None:
    compare(make_call(device, batch=2, q_len=129, dtype=dtype, dropout_p=0.3))
    compare(make_call(device, q_len=65, k_len=90, dtype=dtype, dropout_p=0.8, is_causal=False))


def masks(device: str) -> None:
    mask = torch.ones(3, 80, dtype=torch.bool)
    mask[0, :37], mask[1, 60:], mask[2] = False, False, False
    for is_causal in (True, False):
        few = {"heads": 2, "kv_heads": 1, "slopes": (0.3, 0.01)}
        call = make_call(device, batch=3, q_len=80, key_mask=mask, is_causal=is_causal, dtype=torch.bfloat16, **few)
        # What padding holds must not matter.
        hidden = ~mask.to(device)[:, None, :, None]
        call.key.masked_fill_(hidden, torch.nan)
        call.value.masked_fill_(hidden, torch.nan)
        got = call.run()
        assert all(not each.isnan().any() for each in got)
        call.key.masked_fill_(hidden, 0.0)
        call.value.masked_fill_(hidden, 0.0)
        within_budget(call, got, call.oracle())
        assert (got[0][2] == 0).all(), "a row that sees no key has output 0"
        assert (got[1][2] == -torch.inf).all(), "and lse -inf"


WINDOWS = ((0, 0), (16, None), (None, 5), (70, 3))


def windows(window: tuple[int | None, int | None], device: str) -> None:
    for is_causal in (True, False):
        few = {"heads": 2, "kv_heads": 1, "slopes": (0.3, 0.0)}
        compare(make_call(device, q_len=150, window=window, is_causal=is_causal, **few))


def offsets(device: str) -> None:
    compare(make_call(device, batch=2, q_len=40, k_len=100, query_offset=torch.tensor([60, 3])))
    compare(make_call(device, q_len=40, k_len=100, query_offset=-30))
    compare(make_call(device, q_len=40, k_len=60, query_offset=500, is_causal=False, dtype=torch.bfloat16))


# What is not finite


def not_finite(device: str, head_dim: int = 16) -> None:
    """A NaN or an infinity reaches whoever sees it, and nobody else in its tile, forward and backward."""
    few = {"heads": 2, "kv_heads": 1, "head_dim": head_dim, "slopes": (0.3, 0.01)}
    cases = (
        ("value", 70, torch.nan), ("key", 140, torch.nan), ("key", 140, torch.inf), ("query", 100, torch.nan),
        ("query", 100, -torch.inf), ("grad_out", 20, torch.inf),
    )  # fmt: skip
    for name, row, poison in cases:
        # Rows before the poisoned one and behind it share what one program looks at.
        call = make_call(device, q_len=150, **few)
        getattr(call, name)[0, 0, row, 3] = poison
        with unwarned():
            got, want = call.run(), call.oracle()
        _same_are_finite(f"{name} poisoned", got, want)


def gradients_apart(device: str) -> None:
    """Those of values and those of keys by launches of their own; marks of what is not finite are those of either."""
    # Widths that a GPU has such launches for, or other ones.
    head_dim = 24 if device == "cpu" else 256
    few = {"heads": 4, "kv_heads": 2, "slopes": (0.3, 0.05, 0.01, 0.0), "head_dim": head_dim}
    with blocks(device, 32, 64, of=("values", "keys")):
        for options in ({}, {"is_causal": False}, {"dropout_p": 0.3}, {"window": (70, 0)}):
            for dtype in (torch.bfloat16, torch.float32):
                compare(make_call(device, q_len=150, dtype=dtype, **few, **options))
        not_finite(device, head_dim)
        # A row that sees nothing, in a tile that is swept: an infinity times its weights of zero spoils the gradients
        # of values alone, for those of keys are masked.
        alone = make_call(
            device, q_len=150, k_len=100, query_offset=-50, head_dim=24, heads=2, kv_heads=1, slopes=(0.3, 0.01),
            dropout_p=0.9995,
        )  # fmt: skip
        alone.grad_out[0, 0, 40] = torch.inf
        with unwarned():
            got, want = alone.run(), alone.oracle()
        assert want[4].isfinite().all(), "that of values"
        _same_are_finite("the gradient of a row that sees nothing poisoned", got, want)


def overflow(device: str) -> None:
    """A score of +inf out of finite numbers makes its row NaN, whatever dropout and the row's gradient are."""
    for dropout_p, grad in ((0.0, 1.0), (0.5, 1.0), (0.5, torch.nan)):
        few = {"heads": 2, "kv_heads": 1, "head_dim": 16, "slopes": (0.3, 0.01), "dropout_p": dropout_p}
        call = make_call(device, q_len=90, **few)
        call.query[0, :, 7] = 3e25
        call.key[0, :, 5] = 3e25
        call.grad_out[0, 0, 7, 3] = grad
        with unwarned():
            # In float64 it would not overflow.
            got, want = call.run(), call.run("reference")
        assert not want[0][0, :, 7].isfinite().any()
        _same_are_finite(f"dropout {dropout_p}, gradient {grad}", got, want)


def _same_are_finite(what: str, got: tuple[Tensor, ...], want: tuple[Tensor, ...]) -> None:
    for result, ours, theirs in zip(NAMES, got, want, strict=True):
        same = ours.isfinite() == theirs.isfinite()
        assert same.all(), f"{what}, {result}: {(~same).sum().item()} elements are not as defined"
