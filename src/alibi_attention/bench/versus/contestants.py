"""What is timed: attention with a position method, and the same attention without it."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention as sdpa

from alibi_attention.backends import native
from alibi_attention.bench.case import Case, Trial
from alibi_attention.bench.inputs import Group, Inputs
from alibi_attention.bench.versus.results import Phase
from alibi_attention.cache import KVCache
from alibi_attention.lab.positions import DecoderShape, PositionMethod, position_methods
from alibi_attention.lab.positions.alibi import Alibi
from alibi_attention.lab.positions.rope import Rope, plain_rates, rotate, rotation
from alibi_attention.lab.positions.t5 import T5Bias
from alibi_attention.ops import alibi_attention

Prepare = Callable[[Trial, Group], Callable[[], Tensor]]
"""What a call needs beforehand is made here, outside of the timing; the call then computes the output."""


@dataclass(frozen=True)
class Contestant:
    """One way to attend.

    Attributes:
        name: in files.
        title: in words.
        method: whose it is, of `TIMED`; "" for attention that knows no positions.
        prepare: makes the call.
        ours: whether it runs this library's kernels.
        bare: whether it runs those that were built without the bias.
    """

    name: str
    title: str
    method: str
    prepare: Prepare
    ours: bool = False
    bare: bool = False


@dataclass(frozen=True)
class Price:
    """What positions cost: the time of ``with_``, less that of ``without``, as a share of the former.

    Attributes:
        method: whose.
        title: in words; how it is computed.
        with_, without: names of contestants; of several ``with_`` the fastest counts.
        real: whether ``without`` really leaves out what the positions take.
    """

    method: str
    title: str
    with_: tuple[str, ...]
    without: str
    real: bool = True


def make_trial(phase: Phase, length: int, heads: int, head_dim: int) -> Trial:
    """The size of a measurement, in the terms of the benchmarks."""
    case = Case(
        f"versus-{phase}", phase, "training" if phase == "training" else "forward", (length,), heads=heads,
        queries=1 if phase == "decode" else None, cached=phase == "decode",
    )  # fmt: skip
    return Trial(case, head_dim, length)


def make_call(contestant: Contestant, trial: Trial, inputs: Inputs, bare: native.Native | None) -> Callable[[], Any]:
    """The call that is timed: outputs, or in training their gradients, those of a trained table among them."""
    # Sizes that would take several groups are refused beforehand.
    (group,) = inputs.groups
    run = _of_group(contestant, trial, group)

    def call() -> Any:
        # Which kernels run is the whole process's affair, so each call of ours says it.
        if contestant.ours:
            native.use(bare if contestant.bare else None)
        return run()

    return call


def _of_group(contestant: Contestant, trial: Trial, group: Group) -> Callable[[], Any]:
    attend = contestant.prepare(trial, group)
    if trial.case.mode != "training":
        return attend
    wanted = [group.query, group.key, group.value, *getattr(attend, "parameters", ())]
    return lambda: torch.autograd.grad(attend(), wanted, group.grad)


# This library's


def _ours(trial: Trial, group: Group, *, tolerance: float | None, sloped: bool = True) -> Callable[[], Tensor]:
    query, key, value = group.query, group.key, group.value
    slopes = group.slopes if sloped else torch.zeros_like(group.slopes)
    if trial.case.cached:
        cache = KVCache(key.shape[2])
        cache.append(key, value)
        return lambda: cache.attend(query, slopes, tolerance=tolerance)
    return lambda: alibi_attention(query, key, value, slopes, tolerance=tolerance)


# torch's


def _no_positions(trial: Trial, group: Group) -> Callable[[], Tensor]:
    query, key, value, causal = group.query, group.key, group.value, trial.queries > 1
    return lambda: sdpa(query, key, value, is_causal=causal)


def _row_bias(trial: Trial, group: Group) -> Callable[[], Tensor]:
    query, key, value, causal, bias = group.query, group.key, group.value, trial.queries > 1, group.row_bias
    return lambda: sdpa(query, key, value, attn_mask=bias, is_causal=causal)


Turn = Callable[[Tensor], Tensor]


def _halves(head_dim: int, length: int, start: int) -> Turn:
    """Pairs half a head apart, as Llama's code has them, in float32."""
    cos, sin = rotation(plain_rates(head_dim), length, start=start)
    return lambda x: rotate(x, cos, sin)


def _complex(head_dim: int, length: int, start: int) -> Turn:
    """Neighbours as complex numbers, as Llama's first code had them: one product, a third of the passes over memory."""
    cos, sin = rotation(plain_rates(head_dim), length, start=start)
    turns = torch.complex(cos, sin)
    return lambda x: torch.view_as_real(torch.view_as_complex(x.unflatten(-1, (-1, 2))) * turns).flatten(-2)


def _rope(trial: Trial, group: Group, *, form: Callable[[int, int, int], Turn], ours: bool) -> Callable[[], Tensor]:
    """Tables of cosines are made beforehand: a model makes them once for all of its layers."""
    query, key, value = group.query, group.key, group.value
    turn = form(trial.head_dim, trial.queries, trial.keys - trial.queries)
    if trial.case.cached:
        # The keys of a cache were turned as they came; a step turns its query and its own key.
        new = key[..., -1:, :]
        if ours:
            zero = torch.zeros_like(group.slopes)
            cache = KVCache(key.shape[2])
            cache.append(key, value)
            return lambda: (turn(new), cache.attend(turn(query), zero, tolerance=0.0))[1]
        return lambda: (turn(new), sdpa(turn(query), key, value))[1]
    if ours:
        zero = torch.zeros_like(group.slopes)
        return lambda: alibi_attention(turn(query), turn(key), value, zero, tolerance=0.0)
    return lambda: sdpa(turn(query), turn(key), value, is_causal=True)


class _T5:
    """The laboratory's T5 bias, whose table is trained with everything else."""

    def __init__(self, trial: Trial, group: Group) -> None:
        heads = len(group.slopes)
        self._position = T5Bias(DecoderShape(trial.keys, 1, heads, heads * trial.head_dim))
        torch.nn.init.normal_(self._position.units, generator=torch.Generator().manual_seed(0))
        self._inputs = group.query, group.key, group.value
        self.parameters = (self._position.units,)

    def __call__(self) -> Tensor:
        return self._position.attend(*self._inputs)


_BARE = Contestant(
    "bare", "this library's kernel built without the bias, every key", "",
    partial(_ours, tolerance=0.0, sloped=False), ours=True, bare=True,
)  # fmt: skip
_ZERO = Contestant(
    "zero-slopes", "this library's kernel, slopes of zero, every key", "",
    partial(_ours, tolerance=0.0, sloped=False), ours=True,
)  # fmt: skip
_SDPA = Contestant("sdpa", "SDPA, no positions", "", _no_positions)

_ROPE_OURS = Contestant(
    "rope-ours", "this library's kernel, every key, turned as complex numbers in plain torch", "rope",
    partial(_rope, form=_complex, ours=True), ours=True,
)  # fmt: skip
# Slopes of zero are still subtracted, and RoPE has no use for them: where there is a kernel without, it runs there.
_ROPE_BARE = replace(
    _ROPE_OURS, name="rope-bare", bare=True,
    title="this library's kernel built without the bias, every key, turned as complex numbers in plain torch",
)  # fmt: skip

_WITH_POSITIONS = (
    Contestant("alibi-dense", "this library's kernel, every key", "alibi", partial(_ours, tolerance=0.0), ours=True),
    Contestant("alibi", "this library's kernel, horizon", "alibi", partial(_ours, tolerance=None), ours=True),
    Contestant("alibi-sdpa", "SDPA, ALiBi as a bias of one row", "alibi", _row_bias),
    Contestant("rope", "SDPA, halves turned in plain torch", "rope", partial(_rope, form=_halves, ours=False)),
    Contestant(
        "rope-complex", "SDPA, turned as complex numbers in plain torch", "rope",
        partial(_rope, form=_complex, ours=False),
    ),
    _ROPE_OURS,
    Contestant("t5", "SDPA, the laboratory's bias in blocks of rows", "t5", _T5),
)  # fmt: skip

TIMED = tuple(dict.fromkeys(each.method for each in _WITH_POSITIONS))
"""Whose attention is timed."""


def timed_as(method: str) -> str | None:
    """Whose attention a method of the laboratory has: one of `TIMED`, "" for none that knows positions.

    None for one of its own, which is not measured here.
    """
    cls = position_methods()[method]
    kinds: dict[str, type[PositionMethod]] = {"alibi": Alibi, "rope": Rope, "t5": T5Bias}
    for name, kind in kinds.items():
        if issubclass(cls, kind) and cls.attend is kind.attend:
            return name
    return "" if cls.attend is PositionMethod.attend else None


def contestants(kinds: Collection[str | None], *, bare: bool) -> list[Contestant]:
    """Everything that is timed for these of `TIMED`, what they are compared with first.

    Args:
        kinds: of `TIMED`.
        bare: whether there are kernels built without the bias.
    """
    without = [_BARE, _ZERO, _SDPA] if bare else [_ZERO, _SDPA]
    with_positions = [_ROPE_BARE if bare and each is _ROPE_OURS else each for each in _WITH_POSITIONS]
    return [*without, *(each for each in with_positions if each.method in kinds)]


def prices(kinds: Collection[str | None], *, bare: bool) -> list[Price]:
    """Which differences are the price of positions."""
    every = [
        Price("alibi", "this library's kernel", ("alibi-dense",), "bare"),
        # The subtraction is still there: what this shows is what slopes make of the values.
        Price("alibi", "this library's kernel, against slopes of zero", ("alibi-dense",), "zero-slopes", real=False),
        Price("alibi", "a bias of one row in SDPA", ("alibi-sdpa",), "sdpa"),
        Price("rope", "plain torch before SDPA", ("rope", "rope-complex"), "sdpa"),
        Price("rope", "plain torch before this library's kernel", *_ours_without(bare)),
        Price("t5", "the laboratory's bias in SDPA", ("t5",), "sdpa"),
    ]
    return [each for each in every if each.method in kinds and (bare or each.without != "bare")]


def _ours_without(bare: bool) -> tuple[tuple[str], str]:
    """RoPE on this library's kernel, and the same kernel without it."""
    return ((_ROPE_BARE.name,), _BARE.name) if bare else ((_ROPE_OURS.name,), _ZERO.name)
