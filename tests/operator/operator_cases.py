"""Random calls over the whole surface of the operator, as hypothesis draws them, and the oracle they are held to."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from alibi_attention import alibi_attention
from alibi_attention.horizon import BLOCK_K, BLOCK_Q

# Lengths around the edges of tiles, and some that are on none.
LENGTHS = (1, 2, 3, 17, BLOCK_K - 1, BLOCK_K, BLOCK_K + 1, 97, BLOCK_Q - 1, BLOCK_Q, BLOCK_Q + 1, 257, 300)


@dataclass
class Case:
    """A call: four tensors, the keyword arguments, and cotangents of out and lse."""

    query: Tensor
    key: Tensor
    value: Tensor
    slopes: Tensor
    options: dict[str, Any]
    grad_out: Tensor
    grad_lse: Tensor
    notes: dict[str, Any] = field(default_factory=dict)

    @property
    def tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.query, self.key, self.value, self.slopes

    def double(self) -> Case:
        """The same numbers in float64, contiguous."""
        tensors = [t.double().contiguous() for t in self.tensors]
        return Case(*tensors, self.options, self.grad_out.double(), self.grad_lse.double(), self.notes)

    def run(self, backend: str, **changes: Any) -> tuple[Tensor, ...]:
        """out, lse and the gradients of query, key, value and slopes; dropout from seed 1."""
        leaves = [t.detach().requires_grad_() for t in self.tensors]
        torch.manual_seed(1)
        out, lse = alibi_attention(*leaves, **{**self.options, **changes}, return_lse=True, backend=backend)
        grads = torch.autograd.grad((out, lse), leaves, (self.grad_out, self.grad_lse))
        return out.detach(), lse.detach(), *grads

    def __repr__(self) -> str:
        shapes = [tuple(t.shape) for t in self.tensors]
        options = {k: tuple(v.shape) if isinstance(v, Tensor) else v for k, v in self.options.items()}
        return f"Case({shapes}, {self.query.dtype}, {options}, {self.notes})"

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:  # noqa: ARG002
        printer.text(repr(self))


@st.composite
def cases(
    draw: st.DrawFn,
    dtypes: tuple[torch.dtype, ...] = (torch.float32,),
    max_len: int = 300,
    dropout: bool = True,
    widths: tuple[float, ...] = (0.0, 0.3, 1.0, 4.0),
) -> Case:
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    lengths = st.sampled_from([n for n in LENGTHS if n <= max_len])
    dtype = draw(st.sampled_from(dtypes))
    group = draw(st.sampled_from([1, 1, 2, 3]))
    kv_heads = draw(st.integers(1, 2))
    heads = group * kv_heads
    head_dim = draw(st.sampled_from([1, 8, 16, 24, 40, 64]))
    value_dim = draw(st.sampled_from([head_dim, head_dim, 8, 20]))
    packed = draw(st.integers(0, 4)) == 0
    batch = 1 if packed else draw(st.integers(1, 3))
    q_len = draw(lengths)
    k_len = draw(st.one_of(st.just(q_len), lengths))
    is_causal = draw(st.booleans())
    width = draw(st.sampled_from(widths))
    options: dict[str, Any] = {"is_causal": is_causal}

    if packed:
        options |= _packing(draw, q_len, k_len)
    else:
        offset = draw(st.sampled_from(["default", "int", "tensor"]))
        span = st.integers(-q_len, k_len + 3)
        if offset == "int":
            options["query_offset"] = draw(span)
        elif offset == "tensor":
            options["query_offset"] = torch.tensor([draw(span) for _ in range(batch)])
        if draw(st.booleans()):
            options["key_mask"] = _padding(draw, batch, k_len)
    if draw(st.booleans()):
        side = st.one_of(st.none(), st.integers(0, 200))
        options["window"] = (draw(side), draw(side))
    if draw(st.integers(0, 3)) == 0:
        options["scale"] = draw(st.sampled_from([0.0, 1.0, -0.3]))
    if dropout and draw(st.integers(0, 3)) == 0:
        options["dropout_p"] = draw(st.sampled_from([0.1, 0.5, 0.9]))
    options["tolerance"] = draw(st.sampled_from([None, None, 0.0]))
    notes = {"width": width}

    def normal(*shape: int) -> Tensor:
        return _strided(draw, torch.randn(shape, generator=generator, dtype=torch.float64), dtype)

    query = normal(batch, heads, q_len, head_dim) * width
    key = normal(batch, kv_heads, k_len, head_dim) * (width if width else 1.0)
    if draw(st.booleans()):
        # Keys with a large mean in common, which centring removes.
        key = key + 5.0 * width * torch.randn(batch, kv_heads, 1, head_dim, generator=generator).to(dtype)
    value = normal(batch, kv_heads, k_len, value_dim)
    slopes = _slopes(draw, batch, heads, generator)
    work = torch.float64 if dtype == torch.float64 else torch.float32
    grad_lse = torch.randn(batch, heads, q_len, generator=generator, dtype=torch.float64).to(work)
    return Case(query, key, value, slopes, options, normal(batch, heads, q_len, value_dim), grad_lse, notes)


def _packing(draw: st.DrawFn, q_len: int, k_len: int) -> dict[str, Any]:
    sequences = draw(st.integers(1, 4))

    def bounds(length: int) -> Tensor:
        inner = sorted(draw(st.integers(0, length)) for _ in range(sequences - 1))
        return torch.tensor([0, *inner, length], dtype=torch.int32)

    cu_seqlens = bounds(q_len)
    if q_len == k_len and draw(st.booleans()):
        return {"cu_seqlens": cu_seqlens}
    return {"cu_seqlens": cu_seqlens, "cu_seqlens_k": bounds(k_len)}


def _padding(draw: st.DrawFn, batch: int, k_len: int) -> Tensor:
    mask = torch.zeros(batch, k_len, dtype=torch.bool)
    for row in mask:
        first, end = sorted((draw(st.integers(0, k_len)), draw(st.integers(0, k_len))))
        row[first:end] = True
    return mask


def _strided(draw: st.DrawFn, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """The tensor in contiguous, (batch, seq, heads, dim), or padded memory, NaN in what is not its own."""
    tensor = tensor.to(dtype)
    layout = draw(st.sampled_from(["contiguous", "transposed", "padded"]))
    if layout == "transposed":
        return tensor.transpose(1, 2).contiguous().transpose(1, 2)
    if layout == "padded":
        around = torch.full([n + 2 for n in tensor.shape], math.nan, dtype=dtype)
        inner = around[tuple(slice(1, n + 1) for n in tensor.shape)]
        inner.copy_(tensor)
        return inner
    return tensor


def _slopes(draw: st.DrawFn, batch: int, heads: int, generator: torch.Generator) -> Tensor:
    kind = draw(st.sampled_from(["falling", "falling", "by batch", "any sign", "zero"]))
    shape = (batch, heads) if kind == "by batch" else (heads,)
    if kind == "zero":
        return torch.zeros(shape)
    slopes = torch.exp2(-torch.rand(shape, generator=generator) * 8)
    if kind == "any sign":
        slopes = slopes * torch.randint(-1, 2, shape, generator=generator) * 0.1
    return slopes


def oracle(case: Case) -> tuple[Tensor, ...]:
    """The definition in float64, every tile computed."""
    return case.double().run("reference", tolerance=0.0)
