"""A comparison: every contestant in every phase at every length, A, B, A, B; results on disk after each."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from alibi_attention.backends import native
from alibi_attention.bench.errors import BenchError
from alibi_attention.bench.inputs import Inputs, make_inputs
from alibi_attention.bench.machine import load, machine
from alibi_attention.bench.threads import in_fresh_thread
from alibi_attention.bench.timing import Contestant as Call
from alibi_attention.bench.timing import Settings, play_rounds, warm_up
from alibi_attention.bench.versus.contestants import TIMED, contestants, make_call, make_trial, timed_as
from alibi_attention.bench.versus.memory import IN_FRESH_PROCESS, caches, peak_of
from alibi_attention.bench.versus.results import Comparison, Phase, Speed, Timed, Trained
from alibi_attention.certificate import certify
from alibi_attention.lab.positions import DecoderShape, position_methods

_FAILURES = (MemoryError, RuntimeError, NotImplementedError, ImportError, TypeError, AttributeError)


@dataclass(frozen=True)
class Plan:
    """What is compared.

    Attributes:
        methods: names of the laboratory's position methods, in the order of the columns.
        phases, lengths: of the timings.
        memory_length: at which peak memory is measured; None for nowhere.
        heads, head_dim: of the attention.
        threads: of torch.
        settings: how long to measure; ``quick`` if only to see that it works.
        bare: kernels built without the bias; None without them.
        trained: what was read of finished runs.
    """

    methods: Sequence[str]
    phases: Sequence[Phase]
    lengths: Sequence[int]
    memory_length: int | None
    heads: int
    head_dim: int
    threads: int
    settings: Settings = field(default_factory=Settings)
    quick: bool = False
    bare: native.Native | None = None
    trained: Sequence[Trained] = ()

    @property
    def kinds(self) -> list[str | None]:
        """Whose attention the methods have."""
        return [timed_as(name) for name in self.methods]


Say = Callable[[str], None]


def open_bare(path: Path) -> native.Native:
    """Kernels that were built without the bias (ALIBI_WITHOUT_BIAS of csrc/CMakeLists.txt).

    Raises:
        BenchError: for a file that is no such library.
    """
    remedy = "build it with: make bare"
    found = native.open_library(path) if path.is_file() else "no such file"
    if isinstance(found, str):
        raise BenchError("bare", expected="the kernels without the bias", got=f"{path} ({found})", remedy=remedy)
    if _has_bias(found):
        got = f"{path}, whose kernels have one"
        raise BenchError("bare", expected="the kernels without the bias", got=got, remedy=remedy)
    return found


def compare(plan: Plan, output: Path, *, say: Say, goes_on: Callable[[], None]) -> Comparison:
    """Measure, and write ``output`` after every size.

    Args:
        plan: what to compare.
        output: a file of results, new.
        say: told what is measured next.
        goes_on: called before every sample; raises to stop. What was measured until then is kept.

    Raises:
        BenchError: for an output that exists or cannot be written.
    """
    _refuse(output)
    with _threads(plan.threads):
        shape = DecoderShape(max(plan.lengths), 1, plan.heads, plan.heads * plan.head_dim)
        known = position_methods()
        settings: dict[str, Any] = {
            "phases": list(plan.phases), "lengths": list(plan.lengths), "memory_length": plan.memory_length,
            "heads": plan.heads, "head_dim": plan.head_dim, "dtype": "float32", "bare": plan.bare is not None,
            "quick": plan.quick, **asdict(plan.settings),
        }  # fmt: skip
        found = Comparison(
            machine(), settings, list(plan.methods), {name: known[name].title for name in plan.methods},
            {name: timed_as(name) for name in plan.methods},
            {name: sum(p.numel() for p in known[name](shape).parameters()) for name in plan.methods},
            trained=list(plan.trained),
        )  # fmt: skip
        try:
            found.write(output)
        except OSError as error:
            got = f"{output} ({error.strerror})"
            raise BenchError("output", expected="a folder that can be written", got=got, remedy="choose another"
                             ) from None  # fmt: skip
        began = time.perf_counter()
        try:
            for phase in plan.phases:
                for length in plan.lengths:
                    say(f"{phase} at {length}")
                    found.speed.append(Speed(phase, length, load=load()))
                    _time(plan, found.speed[-1], goes_on)
                    found.write(output)
            if plan.memory_length is not None:
                _remember(plan, plan.memory_length, found, say, goes_on)
            found.status = "complete"
        finally:
            found.seconds = time.perf_counter() - began
            found.write(output)
    return found


def _time(plan: Plan, speed: Speed, goes_on: Callable[[], None]) -> None:
    trial = make_trial(speed.phase, speed.length, plan.heads, plan.head_dim)
    # Fresh threads for all of it: workers of this one would stand in the way of those that are timed.
    inputs: Inputs = in_fresh_thread(partial(make_inputs, trial, plan.settings.memory_budget))
    speed.kept_share = in_fresh_thread(partial(_kept_share, inputs))
    calls: list[Call] = []
    try:
        for contestant in contestants(plan.kinds, bare=plan.bare is not None):
            timed = Timed(contestant.name, contestant.title, contestant.method)
            speed.timed.append(timed)
            goes_on()
            try:
                made = in_fresh_thread(partial(make_call, contestant, trial, inputs, plan.bare))
                call = Call(contestant.name, made, False, speed.phase == "training")
                warm_up(call, plan.settings)
            except _FAILURES as failure:
                text = str(failure).splitlines()
                timed.refused = f"failed: {type(failure).__name__}: {text[0] if text else ''}"
                continue
            call.result = None
            timed.samples = call.samples
            calls.append(call)
        for _ in play_rounds(calls, goes_on):
            pass
    finally:
        native.use(None)
    gc.collect()


def _kept_share(inputs: Inputs) -> float:
    group = inputs.groups[0]
    with torch.no_grad():
        return float(certify(group.query, group.key, group.slopes, value=group.value).kept_share.mean())


def _remember(plan: Plan, length: int, found: Comparison, say: Say, goes_on: Callable[[], None]) -> None:
    for phase in IN_FRESH_PROCESS:
        if phase not in plan.phases:
            continue
        for contestant in contestants(plan.kinds, bare=False):
            goes_on()
            say(f"memory of {phase} at {length}: {contestant.name}")
            found.memory.append(peak_of(contestant, phase, length, plan.heads, plan.head_dim))
    if "decode" in plan.phases:
        goes_on()
        held = in_fresh_thread(partial(caches, length, plan.heads, plan.head_dim))
        found.memory += [each for each in held if each.method in ("", *plan.kinds)]


def _has_bias(library: native.Native) -> bool:
    """Whether slopes change what these kernels compute."""
    from alibi_attention.ops import alibi_attention

    query, key = torch.randn(2, 1, 1, 64, 8, generator=torch.Generator().manual_seed(0))
    native.use(library)
    try:
        with torch.no_grad():
            flat, steep = (
                alibi_attention(query, key, key, torch.tensor([m]), tolerance=0.0, backend="cpu") for m in (0.0, 4.0)
            )
    finally:
        native.use(None)
    return not torch.equal(flat, steep)


def check(plan: Plan) -> None:
    """Refuse what cannot be measured.

    Raises:
        BenchError: about the setting.
    """
    if not any(kind in TIMED for kind in plan.kinds):
        got = ",".join(plan.methods)
        remedy = f"name one of {', '.join(TIMED)}"
        raise BenchError("methods", expected="a method that does something in attention", got=got, remedy=remedy)
    if not plan.lengths or min(plan.lengths) < 1 or list(plan.lengths) != sorted(set(plan.lengths)):
        got = ",".join(map(str, plan.lengths))
        raise BenchError("lengths", expected="ascending lengths of at least 1", got=got, remedy="such as 512,2K,8K")
    if plan.memory_length is not None and plan.memory_length < 1:
        remedy = "such as 32K; 0 measures none"
        raise BenchError("memory-length", expected="a length of at least 1, or 0", got=f"{plan.memory_length}",
                         remedy=remedy)  # fmt: skip
    if plan.heads < 1:
        raise BenchError("heads", expected="at least 1", got=f"{plan.heads}", remedy="8 is the default")
    if plan.head_dim < 2 or plan.head_dim % 2:
        got = f"{plan.head_dim}"
        raise BenchError("head-dim", expected="an even width, whose pairs are turned", got=got, remedy="such as 64")
    need = 4 * plan.heads * plan.head_dim * 4 * max(*plan.lengths, plan.memory_length or 0)
    if need > plan.settings.memory_budget:
        got = f"{need / 2**30:.1f} GiB of inputs"
        expected = f"at most half of the memory that is free, {plan.settings.memory_budget / 2**30:.1f} GiB"
        raise BenchError("lengths", expected=expected, got=got, remedy="give shorter ones")


def _refuse(output: Path) -> None:
    if output.exists():
        raise BenchError("output", expected="a new folder", got=f"{output}, which exists", remedy="choose another")


@contextmanager
def _threads(threads: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
