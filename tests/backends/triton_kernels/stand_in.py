"""A stand-in for the device: what the package would start on a GPU, recorded, without one.

Tensors are on the meta device, which has shapes, strides and dtypes and no values: whatever reads a value fails.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from machine_code import ARCHITECTURES, Variant
from torch import Tensor
from triton.compiler import make_backend
from triton.runtime.jit import create_function_from_signature

from alibi_attention.backends.base import Gradients
from alibi_attention.backends.triton import TritonBackend, launch
from alibi_attention.backends.triton import device as devices
from alibi_attention.backends.triton.configs import Config
from alibi_attention.call import call_arguments, problem_of
from alibi_attention.horizon import BLOCK_K, blocks_of
from alibi_attention.problem import Problem, Saved

PROCESSORS = 132
_DEFAULTS: dict[str, Any] = {
    **dict.fromkeys(["scale", "query_offset", "key_mask", "cu_seqlens", "cu_seqlens_k", "window", "tolerance"]),
    "is_causal": True, "dropout_p": 0.0, "backend": None,
}  # fmt: skip


@dataclass(frozen=True)
class Start:
    """One kernel start as the launcher asked for it."""

    kernel: Any
    grid: tuple[int, ...]
    config: Config
    device: torch.device
    arguments: Mapping[str, Any]

    @property
    def name(self) -> str:
        return str(self.kernel.__name__)

    @property
    def everything(self) -> dict[str, Any]:
        """All arguments of the kernel by name."""
        return {**self.arguments, **self.config.constants}


@contextlib.contextmanager
def standing_in(architecture: str) -> Iterator[list[Start]]:
    """Within, every device is one of the architecture, and what is started on it is recorded instead."""
    started: list[Start] = []

    def run(
        kernel: Any, grid: tuple[int, ...], config: Config, device: torch.device, arguments: Mapping[str, Any]
    ) -> None:
        started.append(Start(kernel, grid, config, device, dict(arguments)))

    with (
        mock.patch.object(launch, "run", run),
        mock.patch.object(devices, "target", return_value=architecture),
        mock.patch.object(devices, "processors", return_value=PROCESSORS),
        mock.patch.object(devices, "missing", return_value=None),
    ):
        yield started


@dataclass(frozen=True)
class Recorded:
    """A call of the backend on a stand-in: what it was given, what it started, what it returned."""

    problem: Problem
    tensors: tuple[Tensor, Tensor, Tensor, Tensor]
    forward: list[Start]
    backward: list[Start]
    results: tuple[Tensor, Tensor, Tensor]
    gradients: Gradients | None

    @property
    def starts(self) -> list[Start]:
        return [*self.forward, *self.backward]


def record(
    architecture: str,
    *,
    batch: int = 2,
    heads: int = 4,
    kv_heads: int = 4,
    q_len: int = 300,
    k_len: int | None = None,
    head_dim: int = 64,
    value_dim: int | None = None,
    dtype: torch.dtype = torch.bfloat16,
    by_batch: bool = False,
    learned_slopes: bool = False,
    transposed: bool = False,
    gradients: bool = True,
    cached: bool = False,
    **options: Any,
) -> Recorded:
    """The backend's forward, and backward, over tensors without values."""
    k_len = q_len if k_len is None else k_len

    def tensor(heads: int, length: int, dim: int) -> Tensor:
        if transposed:
            return torch.empty(batch, length, heads, dim, dtype=dtype, device="meta").transpose(1, 2)
        return torch.empty(batch, heads, length, dim, dtype=dtype, device="meta")

    query, key = tensor(heads, q_len, head_dim), tensor(kv_heads, k_len, head_dim)
    value = tensor(kv_heads, k_len, head_dim if value_dim is None else value_dim)
    slopes = torch.empty((batch, heads) if by_batch else (heads,), device="meta", requires_grad=learned_slopes)
    summary: dict[str, Any] = {}
    if cached:
        shape = (batch, kv_heads)
        summary["key_center"] = torch.empty(*shape, head_dim, device="meta")
        summary["key_norms"] = torch.empty(*shape, blocks_of(k_len, BLOCK_K), dtype=torch.float64, device="meta")
    arguments = call_arguments(query, key, value, slopes, **{**_DEFAULTS, **options}, **summary)
    tensors, call = arguments[:4], arguments[4:]
    problem = problem_of(*tensors[:3], *call)[0]
    backend = TritonBackend()
    with standing_in(architecture) as started, torch.no_grad():
        assert backend.why_not(problem) is None
        out, lse, plan = backend.forward(problem, *tensors)
        forward = list(started)
        started.clear()
        found = None
        if gradients:
            saved = Saved(*tensors, out, lse, plan)
            found = backend.backward(problem, saved, torch.empty_like(out), torch.empty_like(lse))
    return Recorded(problem, tensors, forward, list(started), (out, lse, plan), found)


def variant_of(start: Start, architecture: str, **changes: Any) -> Variant:
    """What Triton would compile for a start, by its own rules of specialisation."""
    backend = make_backend(ARCHITECTURES[architecture].target)
    given = {**start.everything, **changes}
    options = {"num_warps": start.config.num_warps, "num_stages": start.config.num_stages}
    bind = create_function_from_signature(start.kernel.signature, start.kernel.params, backend)
    bound, specialization, _ = bind(**given, **options)
    _, signature, constants, attributes = start.kernel._pack_args(backend, options, bound, specialization, {})
    sizes = start.everything
    rows = sizes.get("block_m", sizes.get("rows_of_group", 0))
    return Variant(
        name=f"{start.name} {architecture}",
        kernel=start.kernel,
        signature=signature,
        constants=constants,
        attributes=attributes,
        options=options,
        scores=rows * sizes.get("block_n", 0),
    )


def key_of(variant: Variant) -> str:
    """Variants of one key are one piece of code."""
    return repr((variant.kernel.__name__, variant.signature, variant.constants, variant.attributes, variant.options))
