"""Random calls over the whole surface of the operator, each a function of its number alone."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from alibi_attention import alibi_attention
from alibi_attention.call import call_arguments
from alibi_attention.horizon.summary import distances_from
from alibi_attention.horizon.tiles import BLOCK_K

DTYPES = (torch.float32, torch.float32, torch.bfloat16, torch.float16)


@dataclass
class Case:
    """Arguments of one call; tensors are made in float64 and cast, so that the oracle sees the very same numbers."""

    number: int
    query: Tensor
    key: Tensor
    value: Tensor
    slopes: Tensor
    options: dict[str, Any] = field(default_factory=dict)
    learn_slopes: bool = False
    summary: tuple[Tensor, Tensor] | None = None  # center and norms of the keys, as a cache keeps them

    def describe(self) -> str:
        return f"case {self.number}: {tuple(self.query.shape)} {tuple(self.key.shape)} {tuple(self.value.shape)} " + (
            f"{self.query.dtype} {self.options}"
        )


def random_case(number: int, *, longest: int | None = None) -> Case:
    """A third of them are long enough for keys to be left out, and of these a third come with a cache's summary.

    With `longest` none is: no length exceeds it, and no tolerance is coarser than rounding.
    """
    rng = random.Random(number)
    is_long = rng.random() < 1 / 3 and longest is None
    has_summary = is_long and rng.random() < 1 / 3
    generator = torch.Generator().manual_seed(number)
    dtype = rng.choice(DTYPES)
    kv_heads, group = rng.choice([1, 1, 2, 3]), rng.choice([1, 1, 2, 4])
    heads = kv_heads * group
    head_dim = rng.choice([1, 3, 8, 16, 20, 32, 64, 64, 80, 128, 130, 192, 256])
    value_dim = head_dim if rng.random() < 0.7 else rng.choice([1, 8, 24, 64, 100])
    q_len = rng.choice([1, 2, 5, 16, 47, 48, 49, rng.randint(1, 400 if is_long else longest or 200)])
    k_len = q_len if rng.random() < 0.5 else rng.randint(1, longest or 200)
    if is_long:
        kv_heads, heads = 1, group
        k_len = rng.randint(max(q_len, 300), 1500)
    options: dict[str, Any] = {"is_causal": rng.random() < 0.6}
    batch = rng.choice([1, 2] if is_long else [1, 2, 3])
    kind = rng.choice(["plain", "plain", "offset", "offsets", "mask", "packed"])
    if has_summary:
        kind, options["is_causal"] = "plain", True
    if kind == "packed":
        batch = 1
        count = rng.randint(1, 5)
        options["cu_seqlens"] = _bounds(rng, count, q_len)
        if q_len != k_len or rng.random() < 0.3:
            options["cu_seqlens_k"] = _bounds(rng, count, k_len)
    elif kind == "offset":
        options["query_offset"] = rng.randint(-q_len - 5, k_len + 5)
    elif kind == "offsets":
        options["query_offset"] = torch.tensor([rng.randint(-q_len - 5, k_len + 5) for _ in range(batch)])
    elif kind == "mask":
        mask = torch.zeros(batch, k_len, dtype=torch.bool)
        for b in range(batch):
            start = rng.randint(0, k_len)
            mask[b, start : rng.randint(start, k_len)] = True
        options["key_mask"] = mask
    if rng.random() < 0.3:
        options["window"] = tuple(rng.choice([None, 0, 3, 17, 64, 150]) for _ in range(2))
    if rng.random() < 0.2 and not has_summary:
        options["dropout_p"] = rng.choice([0.1, 0.5, 0.9])
    if rng.random() < 0.3:
        options["scale"] = rng.choice([0.0, -0.3, 0.5, 1.0])
    options["tolerance"] = rng.choice([None, 2.0**-24, 2.0**-5, 0.1] if is_long else [None, 0.0, None])

    def tensor(*shape: int) -> Tensor:
        """Some memory layout or other, all of it valid; what lies between the rows is NaN."""
        values = torch.randn(*shape, generator=generator, dtype=torch.float64)
        layout = rng.choice(["plain", "heads inside", "padded", "broken"])
        if layout == "heads inside":
            return values.transpose(1, 2).contiguous().transpose(1, 2).to(dtype)
        if layout == "padded":
            wide = torch.full((*shape[:2], shape[2] + 3, shape[3] + 5), torch.nan, dtype=dtype)
            view = wide[:, :, 1 : 1 + shape[2], 2 : 2 + shape[3]]
            return view.copy_(values)
        if layout == "broken":
            return values.transpose(2, 3).contiguous().transpose(2, 3).to(dtype)
        return values.to(dtype)

    shape = (heads,) if rng.random() < 0.6 else (batch, heads)
    steepness = rng.choice([0.02, 0.3, 2.0])
    slopes = torch.rand(*shape, generator=generator) * steepness
    if rng.random() < 0.2:
        slopes = slopes - steepness / 2
    case = Case(
        number,
        tensor(batch, heads, q_len, head_dim),
        tensor(batch, kv_heads, k_len, head_dim),
        tensor(batch, kv_heads, k_len, value_dim),
        slopes.contiguous(),
        options,
        learn_slopes=rng.random() < 0.5,
    )
    if is_long:
        _fill(case, rng.choice(["normal", "orthogonal", "sink", "step"]))
    if has_summary:
        center = case.key.mean(2, dtype=torch.float32)
        norms = torch.nn.functional.pad(
            distances_from(center, case.key, case.value), (0, -k_len % BLOCK_K), value=-torch.inf
        )
        case.summary = center, norms.unflatten(2, (-1, BLOCK_K)).amax(3)
    return case


def _fill(case: Case, content: str) -> None:
    """Contents that make bounds by norms worthless, that keep a first tile apart, or that bring tiles back."""
    query, key = case.query, case.key
    dim, length = query.shape[3], key.shape[2]
    if content == "orthogonal" and dim > 1:
        query[..., : dim // 2] = 0.0
        key[..., dim // 2 :] = 0.0
        query *= 8
        key *= 8
    elif content == "sink":
        query[..., 0] = 3.0
        key[:, :, : length // 100 + 1, 0] = 40.0
    elif content == "step":
        query[..., 0] = 2.0
        key[:, :, : length // 2, 0] += 15.0


def _bounds(rng: random.Random, count: int, length: int) -> Tensor:
    return torch.tensor([0, *sorted(rng.randint(0, length) for _ in range(count - 1)), length], dtype=torch.int32)


def inputs_of(case: Case, dtype: torch.dtype | None) -> tuple[list[Tensor], Tensor]:
    inputs = [t.detach().to(dtype or t.dtype).requires_grad_() for t in (case.query, case.key, case.value)]
    slopes = case.slopes.detach().to(torch.float64 if dtype == torch.float64 else torch.float32).clone()
    return inputs, slopes.requires_grad_(case.learn_slopes)


def arguments_of(case: Case, backend: str, dtype: torch.dtype | None = None) -> tuple[Any, ...]:
    """Those of the operator; the summary, where there is one, is for the kernels."""
    inputs, slopes = inputs_of(case, dtype)
    options = {
        "scale": None, "query_offset": None, "key_mask": None, "cu_seqlens": None, "cu_seqlens_k": None,
        "window": None, "dropout_p": 0.0, **case.options,
    }  # fmt: skip
    center, norms = case.summary if case.summary is not None and backend == "cpu" else (None, None)
    detached = [t.detach() for t in inputs]
    return call_arguments(*detached, slopes, **options, backend=backend, key_center=center, key_norms=norms)


def flows_of(case: Case, out: Tensor, lse: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of output and lse."""
    generator = torch.Generator().manual_seed(case.number + 1)
    flow = torch.randn(out.shape, generator=generator, dtype=torch.float64).to(case.query.dtype).to(out.dtype)
    return flow, torch.randn(lse.shape, generator=generator, dtype=torch.float64).to(torch.float32).to(lse.dtype)


def run_on_threads(case: Case) -> list[Tensor]:
    """`run` of the kernels on one to four threads, by the number of the case: how backward is cut depends on them."""
    with patch.object(torch, "get_num_threads", lambda: 1 + case.number % 4):
        return run(case, "cpu")


def run(case: Case, backend: str, dtype: torch.dtype | None = None) -> list[Tensor]:
    """Output, lse and the gradients of a fixed functional of both, in float64, whatever they were computed in."""
    torch.manual_seed(case.number)
    if case.summary is not None and backend == "cpu":
        arguments = list(arguments_of(case, backend, dtype))
        inputs, slopes = [t.requires_grad_() for t in arguments[:3]], arguments[3]
        out, lse, _ = torch.ops.alibi_attention.forward(*arguments)
    else:
        inputs, slopes = inputs_of(case, dtype)
        out, lse = alibi_attention(*inputs, slopes, **case.options, return_lse=True, backend=backend)
    flow, lse_flow = flows_of(case, out, lse)
    wanted = [*inputs, slopes] if case.learn_slopes else inputs
    finite = torch.where(lse == -torch.inf, 0.0, lse)
    grads = torch.autograd.grad((out * flow).sum() + (finite * lse_flow).sum(), wanted)
    return [t.detach().double() for t in (out, lse, *grads)]
