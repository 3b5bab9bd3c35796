"""What a case and one size of it are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch

# "forward" is timed without gradients; "training" is forward and the gradients of query, key and value; "layer" is a
# whole attention layer with its projections, without gradients.
Mode = Literal["forward", "training", "layer"]

# How many times the arithmetic of a forward pass a mode does, for predictions of its time.
WORK = {"forward": 1.0, "training": 3.5, "layer": 1.0}


@dataclass(frozen=True)
class Target:
    """The speed asked of the default backend: at least ``ratio`` times that of ``peer``.

    Attributes:
        peer: name of the peer.
        ratio: peer time over our time, where ``at`` does not say otherwise; None for no target there.
        at: the same for (head_dim, keys).
        also: other peers that the same is asked against.
        mean: whether it is asked of the geometric mean over all lengths of the case, not of each.
    """

    peer: str
    ratio: float | None = None
    at: Mapping[tuple[int, int], float] = field(default_factory=dict)
    also: tuple[str, ...] = ()
    mean: bool = False

    @property
    def peers(self) -> tuple[str, ...]:
        return (self.peer, *self.also)

    def of(self, head_dim: int, keys: int) -> float | None:
        return self.at.get((head_dim, keys), self.ratio)


@dataclass(frozen=True)
class Limits:
    """What is asked of the default backend by itself; None where nothing is.

    Attributes:
        seconds: a call takes less.
        memory: bytes at the peak beyond inputs and outputs, at most.
        token_growth: (shorter, longer, ratio): time per token at the longer length, at most so many times that at the
            shorter.
        tile_spread: (length, share): from that length up, the longest time per computed tile exceeds the shortest by at
            most that share.
    """

    seconds: float | None = None
    memory: int | None = None
    token_growth: tuple[int, int, float] | None = None
    tile_spread: tuple[int, float] | None = None


@dataclass(frozen=True)
class Case:
    """One thing to time, at several sizes. Batch 1, causal, standard slopes, standard normal inputs.

    Attributes:
        name: on the command line and in files.
        title: what is timed, in words.
        lengths: keys, in tokens; as many queries, unless ``queries`` says otherwise.
        peers: names of the peers it is compared with.
        target: what is asked, if anything.
        head_dims: of queries, keys and values alike.
        heads: query heads, and as many key heads.
        queries: how many, all at the end of the keys; None for as many as keys.
        cached: whether ours attends through a `KVCache` that holds the keys and their summary.
        steps: of a cached case, how many of the last keys each call appends, one after the other, attending after each;
            0 for a call that finds them there.
        tolerance: of `alibi_attention`: 0 computes every tile, None skips at rounding level.
        quick_lengths: lengths of a quick look.
        memory_lengths: lengths at which peak memory is measured too.
        memory_of_peers: whether that of the peers, too.
        limits: what is asked of us, compared with nobody.
        alone: whether only the backend that a call takes unasked is measured of ours.
        trained: whether the inputs are those of a trained model's layers; heads and head dimension are then its own.
    """

    name: str
    title: str
    mode: Mode
    lengths: tuple[int, ...]
    peers: tuple[str, ...] = ()
    target: Target | None = None
    head_dims: tuple[int, ...] = (64, 128)
    heads: int = 8
    queries: int | None = None
    cached: bool = False
    steps: int = 0
    dtype: torch.dtype = torch.float32
    tolerance: float | None = None
    quick_lengths: tuple[int, ...] = (1024,)
    memory_lengths: tuple[int, ...] = ()
    memory_of_peers: bool = True
    limits: Limits = Limits()
    alone: bool = False
    trained: bool = False


@dataclass(frozen=True)
class Trial:
    """A case at one size; ``model`` is the run folder of the model that a trained case takes its inputs from."""

    case: Case
    head_dim: int
    keys: int
    model: Path | None = None

    @property
    def queries(self) -> int:
        return self.keys if self.case.queries is None else self.case.queries

    @property
    def steps(self) -> int:
        """Of decoding in a call; the first of them finds a key at least."""
        return min(self.case.steps, self.keys - 1)

    @property
    def name(self) -> str:
        return f"{self.case.name} D={self.head_dim} L={self.keys}"

    @property
    def target_ratio(self) -> float | None:
        return None if self.case.target is None else self.case.target.of(self.head_dim, self.keys)

    @property
    def flops(self) -> float:
        """Arithmetic of the dense computation, counting only the keys a query sees."""
        scores = self.queries * self.keys / (2.0 if self.queries > 1 else 1.0)
        return 4.0 * scores * self.head_dim * self.case.heads * WORK[self.case.mode] * max(1, self.steps)

    @property
    def score_bytes(self) -> int:
        """One float32 matrix of all scores of all heads, in bytes."""
        return 4 * self.case.heads * self.queries * self.keys


def short(length: int) -> str:
    """A length in tokens for people: 8192 is 8K, 1000 stays 1000."""
    return f"{length // 1024}K" if length >= 1024 and length % 1024 == 0 else str(length)
