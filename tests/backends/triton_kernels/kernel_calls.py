"""Calls of the operator as the kernels' checks make them: memory full of NaN around every tensor, on any device.

Plain Python over torch: these checks also run on a borrowed GPU, where neither pytest nor hypothesis is installed.
"""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from alibi_attention import alibi_attention
from alibi_attention.backends.triton import TritonBackend
from alibi_attention.horizon import BLOCK_Q

BACKEND = "triton"
LAYOUTS = ("guarded", "transposed", "padded")
# Far outside of what any index may be, and small enough to loop to if a kernel should take it for a bound.
_WRONG_INTEGER = -77_777


@dataclass
class Call:
    """One call: tensors, options, and the cotangents of out and lse."""

    query: Tensor
    key: Tensor
    value: Tensor
    slopes: Tensor
    grad_out: Tensor
    grad_lse: Tensor
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.query, self.key, self.value, self.slopes

    def double(self) -> Call:
        """The same numbers in float64, contiguous."""
        tensors = [t.double().contiguous() for t in (*self.tensors, self.grad_out, self.grad_lse)]
        return Call(*tensors, self.options)

    def run(self, backend: str = BACKEND, **changes: Any) -> tuple[Tensor, ...]:
        """out, lse and the gradients of query, key, value and slopes; dropout from seed 1."""
        leaves = [t.detach().requires_grad_() for t in self.tensors]
        torch.manual_seed(1)
        with poisoned_allocations():
            out, lse = alibi_attention(*leaves, **{**self.options, **changes}, return_lse=True, backend=backend)
            grads = torch.autograd.grad((out, lse), leaves, (self.grad_out, self.grad_lse))
        return out.detach(), lse.detach(), *grads

    def oracle(self) -> tuple[Tensor, ...]:
        """The definition in float64, every tile computed."""
        return self.double().run("reference", tolerance=0.0)


def make_call(
    device: str,
    *,
    seed: int = 0,
    batch: int = 1,
    heads: int = 4,
    kv_heads: int = 2,
    q_len: int,
    k_len: int | None = None,
    head_dim: int = 32,
    value_dim: int | None = None,
    dtype: torch.dtype = torch.float32,
    slopes: Tensor | tuple[float, ...] = (0.0, 2.0**-8, 0.5, 1.0),
    layout: str = "guarded",
    **options: Any,
) -> Call:
    """Standard normal tensors from a seed, in memory that is NaN wherever it is not theirs."""
    generator = torch.Generator().manual_seed(seed)
    k_len = q_len if k_len is None else k_len
    value_dim = head_dim if value_dim is None else value_dim

    def normal(*shape: int) -> Tensor:
        return poisoned(torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype), device, layout)

    query = normal(batch, heads, q_len, head_dim)
    key, value = normal(batch, kv_heads, k_len, head_dim), normal(batch, kv_heads, k_len, value_dim)
    grad_out = normal(batch, heads, q_len, value_dim)
    grad_lse = torch.randn(batch, heads, q_len, generator=generator).to(device)
    slopes = torch.as_tensor(slopes, dtype=torch.float32).to(device)
    return Call(query, key, value, slopes, grad_out, grad_lse, moved(options, device))


def planned(call: Call, **changes: Any) -> Tensor:
    """The plan that the call leaves to backward: (batch, heads, blocks of up to 128 queries, 3), first tile of 64 keys,
    end tile, and one kept apart or -1.
    """
    plans = []
    whole = TritonBackend.forward

    def forward(self: TritonBackend, *given: Any) -> tuple[Tensor, Tensor, Tensor]:
        result = whole(self, *given)
        plans.append(result[2])
        return result

    with mock.patch.object(TritonBackend, "forward", forward):
        alibi_attention(*call.tensors, **{**call.options, **changes}, backend=BACKEND)
    batch, heads, rows = call.query.shape[:3]
    blocks = -(-rows // BLOCK_Q)
    if "cu_seqlens" in call.options:
        blocks += len(call.options["cu_seqlens"]) - 2
    return plans[0][: batch * heads * blocks * 3].view(batch, heads, blocks, 3)


def moved(options: dict[str, Any], device: str) -> dict[str, Any]:
    return {name: each.to(device) if isinstance(each, Tensor) else each for name, each in options.items()}


def poisoned(tensor: Tensor, device: str, layout: str) -> Tensor:
    """The tensor as a strided view of a larger storage, of which all else is NaN; its last dimension is contiguous."""
    batch, heads, length, dim = tensor.shape
    if layout == "guarded":
        around = torch.full((tensor.numel() + 512,), math.nan, dtype=tensor.dtype, device=device)
        inner = around[256 : 256 + tensor.numel()].view(tensor.shape)
    elif layout == "transposed":
        around = torch.full((batch, length + 2, heads + 1, dim), math.nan, dtype=tensor.dtype, device=device)
        inner = around[:, 1 : length + 1, :heads].transpose(1, 2)
    elif layout == "padded":
        # Rows of odd length: nothing is aligned to anything.
        around = torch.full((batch, heads + 1, length + 2, dim + 3), math.nan, dtype=tensor.dtype, device=device)
        inner = around[:, :heads, 1 : length + 1, 1 : dim + 1]
    else:
        raise ValueError(layout)
    return inner.copy_(tensor)


def relocated(tensor: Tensor, device: str) -> Tensor:
    """The tensor with its strides, and all of the storage around it, on a device."""
    elements = tensor.untyped_storage().nbytes() // tensor.element_size()
    whole = torch.as_strided(tensor.detach(), (elements,), (1,), 0).to(device, copy=True)
    return torch.as_strided(whole, tensor.shape, tensor.stride(), tensor.storage_offset())


@contextlib.contextmanager
def blocks(device: str, block_m: int, block_n: int, *, of: Sequence[str] = ("both",)) -> Iterator[None]:
    """In the interpreter, every kernel in tiles of so many rows and keys, and a horizon for lengths it can afford;
    keys' and values' gradients in as many launches.

    A GPU runs what is shipped for it, but for the launches.
    """
    from alibi_attention.backends.triton import configs, plans

    if device != "cpu" and tuple(of) == ("both",):
        yield
        return

    def chosen(kernel: str, *rest: Any) -> configs.Config:
        config = shipped(kernel, *rest)
        if device != "cpu":
            return config._replace(of=tuple(of))
        if kernel.startswith(("plan", "summary")):
            # A plan is made for 128 queries at a time, whoever follows it.
            return config
        sizes = {name: size for name, size in (("block_m", block_m), ("block_n", block_n)) if name in config.constants}
        return config._replace(constants={**config.constants, **sizes}, of=tuple(of))

    shipped = configs.config_for
    least = 257 if device == "cpu" else plans.LEAST_KEYS
    with mock.patch.object(configs, "config_for", chosen), mock.patch.object(plans, "LEAST_KEYS", least):
        yield


@contextlib.contextmanager
def poisoned_allocations() -> Iterator[None]:
    """What is allocated within and never written is NaN, or an integer that is wrong everywhere."""

    def poisoning(allocate: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def call(*args: Any, **kwargs: Any) -> Tensor:
            tensor = allocate(*args, **kwargs)
            if tensor.is_meta or not tensor.numel():
                return tensor
            if tensor.dtype.is_floating_point:
                return tensor.fill_(math.nan)
            return tensor.fill_(_WRONG_INTEGER) if tensor.dtype in (torch.int32, torch.int64) else tensor

        return call

    with contextlib.ExitStack() as stack:
        for owner, names in (
            (torch, ("empty", "empty_like", "empty_strided")),
            (Tensor, ("new_empty", "new_empty_strided")),
        ):
            for name in names:
                stack.enter_context(mock.patch.object(owner, name, poisoning(getattr(owner, name))))
        yield


@contextlib.contextmanager
def unwarned() -> Iterator[None]:
    """NumPy, beneath the interpreter, warns where a maximum is one of nothing but NaN; a device does not."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "All-NaN", RuntimeWarning)
        warnings.filterwarnings("ignore", "invalid value", RuntimeWarning)
        yield
