"""What is measured on a GPU, in the order of what an interrupted run would miss most."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch

from alibi_attention.bench.errors import BenchError

K = 1024
# Ratios asked for by peer, for (head_dim, keys).
Targets = Mapping[str, Mapping[tuple[int, int], float]]
Mode = Literal["forward", "training"]

FASTEST = "fastest dense"
AS_GRAPHS = "as CUDA graphs"
"""The note of sizes whose calls are replayed: no fault of theirs."""


@dataclass(frozen=True)
class GpuCase:
    """One thing to time; causal, standard slopes, standard normal inputs in bfloat16.

    Attributes:
        name, title: on the command line and in files; in words.
        mode: "forward" without gradients, or "training": forward and the gradients of query, key and value.
        lengths: keys in tokens, the most telling first; as many queries, unless ``queries`` says otherwise.
        peers: names of the peers it is compared with.
        targets: what is asked; the peer FASTEST stands for the fastest one of those measured.
        batch, heads: ``heads`` for queries, keys and values alike.
        queries: how many, at the end of the keys; None for as many as keys.
        cached: ours attends through a `KVCache`, and everyone runs as a CUDA graph.
        tolerance: of `alibi_attention`.
    """

    name: str
    title: str
    mode: Mode
    lengths: tuple[int, ...]
    peers: tuple[str, ...]
    targets: Targets = field(default_factory=dict)
    head_dims: tuple[int, ...] = (64, 128)
    batch: int = 1
    heads: int = 32
    queries: int | None = None
    cached: bool = False
    tolerance: float | None = None
    dtype: torch.dtype = torch.bfloat16


@dataclass(frozen=True)
class GpuTrial:
    """A case at one size."""

    case: GpuCase
    head_dim: int
    keys: int

    @property
    def queries(self) -> int:
        return self.keys if self.case.queries is None else self.case.queries

    @property
    def name(self) -> str:
        return f"{self.case.name} D={self.head_dim} L={self.keys}"

    @property
    def targets(self) -> dict[str, float]:
        """Ratio asked for by peer at this size."""
        found = {peer: at.get((self.head_dim, self.keys)) for peer, at in self.case.targets.items()}
        return {peer: ratio for peer, ratio in found.items() if ratio is not None}

    @property
    def flops(self) -> float:
        """Arithmetic of the dense computation over the keys a query sees."""
        scores = self.queries * self.keys / (2.0 if self.queries > 1 else 1.0)
        work = {"forward": 1.0, "training": 3.5}[self.case.mode]
        return 4.0 * scores * self.head_dim * self.case.heads * self.case.batch * work

    @property
    def full_bias_bytes(self) -> int:
        """One matrix of all scores in the dtype of the case, for every head."""
        return self.case.dtype.itemsize * self.case.heads * self.queries * self.keys


def _at(lengths: Sequence[int], narrow: float, wide: float) -> dict[tuple[int, int], float]:
    """The same ratio at every length for head dimensions 64 and 128."""
    return {(dim, length): ratio for dim, ratio in ((64, narrow), (128, wide)) for length in lengths}


_DENSE = (8 * K, 4 * K, 16 * K)
_LONG = (32 * K, 8 * K, 128 * K)
_HORIZON = {
    (64, 8 * K): 2.2, (64, 32 * K): 7.0, (64, 128 * K): 25.0,
    (128, 8 * K): 2.0, (128, 32 * K): 6.0, (128, 128 * K): 22.0,
}  # fmt: skip

_ALL = (
    GpuCase(
        "gpu-training-horizon", "forward and backward, tiles beyond the horizon skipped", "training", _LONG,
        peers=("flex", "flex-windows", "sdpa-flash"),
        targets={"flex": _HORIZON, "flex-windows": _at(_LONG, 1.2, 1.1)},
    ),
    GpuCase(
        "gpu-forward-dense", "forward, every tile computed", "forward", _DENSE, tolerance=0.0,
        peers=("flex", "sdpa-flash", "sdpa-cudnn", "flash-alibi", "cudnn-mask"),
        targets={"flex": _at(_DENSE, 1.25, 1.15), "sdpa-flash": _at(_DENSE, 1.0, 1.0)},
    ),
    GpuCase(
        "gpu-training-dense", "forward and backward, every tile computed", "training", _DENSE, tolerance=0.0,
        peers=("flex", "sdpa-flash", "sdpa-cudnn", "cudnn-mask"), targets={"flex": _at(_DENSE, 1.2, 1.1)},
    ),
    GpuCase(
        "gpu-decode", "one query for each of 128 heads against a cache, in a CUDA graph", "forward", (128 * K,),
        batch=4, queries=1, cached=True, peers=("sdpa-flash", "sdpa-cudnn", "flash-alibi", "flex-decode"),
        targets={FASTEST: _at((128 * K,), 20.0, 20.0)},
    ),
    # Nothing is asked of it: one length, to set beside forward and backward.
    GpuCase(
        "gpu-forward-horizon", "forward, tiles beyond the horizon skipped", "forward", (32 * K,),
        peers=("flex", "sdpa-flash"),
    ),
)  # fmt: skip
GPU_CASES: dict[str, GpuCase] = {case.name: case for case in _ALL}


def gpu_trials(names: Sequence[str] = (), lengths: Sequence[int] = ()) -> list[GpuTrial]:
    """All sizes of the named cases, or of all: those that something is asked of first, and among them the first length
    of every case before the second of any.

    Raises:
        BenchError: for a name that is none.
    """
    unknown = [name for name in names if name not in GPU_CASES]
    if unknown:
        got, known = ", ".join(map(repr, unknown)), ", ".join(GPU_CASES)
        raise BenchError("CASES", expected="names of cases", got=got, remedy=f"choose from {known}")
    cases = [case for case in GPU_CASES.values() if not names or case.name in names]
    found = [
        (place, GpuTrial(case, head_dim, length))
        for case in cases
        for place, length in enumerate(lengths or case.lengths)
        for head_dim in case.head_dims
    ]
    return [trial for _, trial in sorted(found, key=lambda each: (not each[1].targets, each[0]))]
