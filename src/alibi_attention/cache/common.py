"""What every cache asks of the tensors it is given."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch
from torch import Tensor
from torch._compile import _disable_dynamo

from alibi_attention.checks.tensors import check_tensor
from alibi_attention.checks.values import is_integer, values_can_be_read
from alibi_attention.horizon.summary import token_chunks
from alibi_attention.problem import SUPPORTED_DTYPES, compute_dtype

if TYPE_CHECKING:
    from typing_extensions import Self

_Call = TypeVar("_Call", bound=Callable[..., Any])


def outside_compiler(function: _Call) -> _Call:
    """`torch.compiler.disable`, without loading the compiler where nobody compiles.

    The buffers change in place and grow when they are full: a compiler leaves that to Python.
    """

    untraced = _disable_dynamo(function)

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        if "torch._dynamo" not in sys.modules:
            return function(*args, **kwargs)
        return untraced(*args, **kwargs)

    return cast(_Call, call)


_OURS_AND_TORCHS = tuple(
    os.path.join(os.path.dirname(path), "") for path in (os.path.dirname(__file__), torch.__file__)
)


def level_of_caller() -> int:
    """``stacklevel`` of a warning, so that it points at the line that called the library, through torch or not."""
    level, frame = 1, sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_OURS_AND_TORCHS):
        level, frame = level + 1, frame.f_back
    return level


@contextmanager
def lasting() -> Iterator[None]:
    """Around the making of what is written to later: made in inference mode it could not be, outside it.

    Leaving inference mode alone would turn gradients on.
    """
    with torch.inference_mode(False), torch.no_grad():
        yield


class Drafted:
    """Changed in a draft, which is adopted when nothing can fail any more: memory may run out on the way.

    A draft shares the tensors of what it was made from, and until it is adopted writes to new ones only.
    """

    def draft(self) -> Self:
        other = object.__new__(type(self))
        vars(other).update(vars(self))
        return other

    def adopt(self, draft: Self) -> None:
        vars(self).update(vars(draft))


def check_append(key: Tensor, value: Tensor, held_key: Tensor | None, held_value: Tensor | None) -> None:
    """Whether key and value can follow on what is held.

    Raises:
        ValueError: for shapes, dtypes or devices that do not, or for tensors that require a gradient.
    """
    for name, tensor, held in (("key", key, held_key), ("value", value, held_value)):
        check_tensor(name, tensor)
        if tensor.dim() != 4:
            raise ValueError(
                f"{name}: expected 4 dimensions (batch, num_kv_heads, tokens, head_dim), "
                f"got shape {tuple(tensor.shape)}"
            )
        if 0 in tensor.shape or tensor.dtype not in SUPPORTED_DTYPES:
            raise ValueError(
                f"{name}: expected at least one token of float64, float32, bfloat16 or float16, "
                f"got {tensor.dtype} of shape {tuple(tensor.shape)}"
            )
        if torch.is_grad_enabled() and tensor.requires_grad:
            raise ValueError(
                f"{name}: expected a tensor without a gradient, got one that requires it; a cache keeps no graph: "
                "run under torch.no_grad() or append tensor.detach()"
            )
        if held is None:
            continue
        want = (held.shape[0], held.shape[1], tensor.shape[2], held.shape[3])
        if tensor.shape != want or tensor.dtype != held.dtype or tensor.device != held.device:
            raise ValueError(
                f"{name}: expected {held.dtype} of shape ({want[0]}, {want[1]}, tokens, {want[3]}) on {held.device}, "
                f"as the cache holds, got {tensor.dtype} of shape {tuple(tensor.shape)} on {tensor.device}; "
                "reset() empties the cache for another batch"
            )
    if key.shape[:3] != value.shape[:3] or key.dtype != value.dtype or key.device != value.device:
        raise ValueError(
            f"value: expected the batch, heads and tokens of key, {tuple(key.shape[:3])}, {key.dtype} on "
            f"{key.device}, got shape {tuple(value.shape)}, {value.dtype} on {value.device}"
        )


def check_continues(key_mask: Tensor, begun: Tensor, *, waits: bool) -> None:
    """Whether no padding comes after tokens.

    Args:
        key_mask: (batch, tokens) bool, of what is appended.
        begun: (batch,) bool, the rows that hold a token.
        waits: whether to look where a GPU has to be waited for; of what is not seen, attention is undefined.

    Raises:
        ValueError: for padding after tokens.
    """
    if not (waits or values_can_be_read(key_mask)):
        return
    held = torch.cat([begun.unsqueeze(1), key_mask], 1).to(torch.int8)
    ended = (held.diff(dim=1) < 0).any(1).nonzero().flatten().tolist()
    if ended:
        raise ValueError(
            f"key_mask: expected padding on the left only, got padding after tokens in batch rows {ended[:8]}; "
            "what is appended next could not follow on them: pad the sequences on the left"
        )


def check_length(length: int, least: int, most: int, what: str, why: str = "") -> None:
    """Whether a cache can be cropped to a length."""
    if not is_integer(length) or not least <= length <= most:
        raise ValueError(
            f"length: expected an integer from {least:,} to {most:,}, the tokens {what}, got {length!r}{why}"
        )


def check_index(index: Tensor, batch: int) -> None:
    """Whether an index names rows of the batch."""
    check_tensor("index", index)
    if index.dim() != 1 or index.dtype not in (torch.int32, torch.int64):
        raise ValueError(f"index: expected (batch,) integers, got {index.dtype} of shape {tuple(index.shape)}")
    if index.device.type == "cpu" and index.numel() and not (0 <= int(index.min()) <= int(index.max()) < batch):
        raise ValueError(f"index: expected values from 0 to {batch - 1}, got {index.tolist()}")


def rows_of(buffer: Tensor, index: Tensor, at: slice) -> Tensor:
    """A buffer (batch, heads, room, dim) whose rows hold at ``at`` what rows ``index`` of another do.

    The rest is room: neither read nor written, since there may be far more of it than of what is held.
    """
    with lasting():
        rows = torch.empty(len(index), *buffer.shape[1:], dtype=buffer.dtype, device=buffer.device)
        torch.index_select(buffer[:, :, at], 0, index, out=rows[:, :, at])
    return rows


def mean_key(key: Tensor, key_mask: Tensor | None) -> Tensor:
    """(batch, num_kv_heads, head_dim): any fixed vector makes a sound center, the mean key a good one."""
    work = compute_dtype(key.dtype)
    total = torch.zeros(*key.shape[:2], key.shape[3], dtype=work, device=key.device)
    number = torch.zeros(*key.shape[:2], 1, dtype=torch.int64, device=key.device)
    for at in token_chunks(key):
        piece = key[:, :, at]
        if key_mask is None and key.device.type == "cpu":
            # Nearly always nothing is left out, which the sum shows: a look at every number costs five such sums.
            added = piece.sum(2, dtype=work)
            if bool(added.isfinite().all()):
                total += added
                number += piece.shape[2]
                continue
        counted = piece.isfinite().all(-1, keepdim=True)
        if key_mask is not None:
            counted = counted & key_mask[:, None, at, None]
        total += piece.masked_fill(~counted, 0.0).sum(2, dtype=work)
        number += counted.sum(2)
    return total / number.clamp_min(1)


def bytes_of(*tensors: Tensor | None) -> int:
    """Memory of the buffers behind some tensors."""
    return sum(tensor.untyped_storage().nbytes() for tensor in tensors if tensor is not None)


def shape_words(length: int, key: Tensor | None, value: Tensor | None) -> str:
    """How a cache describes what it holds."""
    if key is None or value is None:
        return "empty"
    dims = str(key.shape[3]) if key.shape[3] == value.shape[3] else f"{key.shape[3]} and {value.shape[3]}"
    return (
        f"length={length:,}, batch={key.shape[0]}, num_kv_heads={key.shape[1]}, head_dim={dims}, "
        f"{str(key.dtype).removeprefix('torch.')} on {key.device}"
    )
