"""A row for every question, a column for every method."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from alibi_attention.bench.case import short
from alibi_attention.bench.summary import spread
from alibi_attention.bench.tables import milliseconds
from alibi_attention.bench.versus.results import Comparison, Memory, Quality, Speed, Timed, Trained
from alibi_attention.bench.versus.shares import fastest, shares
from alibi_attention.bench.versus.trained import KINDS, MULTIPLES
from alibi_attention.lab.tables import NONE, PROTOCOL_NAMES, markdown, signed

_NOTHING = "nothing in attention"


def one_table(found: Comparison) -> str:
    """A row for every question, a column for every method, in Markdown."""
    rows = [_parameters(found)]
    for phase in dict.fromkeys(speed.phase for speed in found.speed):
        speeds = [speed for speed in found.speed if speed.phase == phase]
        rows += [_cost(found, speed) for speed in speeds]
        for speed in speeds:
            rows += _total(found, speed)
    rows += _memory(found)
    for trained in found.trained:
        rows += _quality(found, trained)
    return markdown(["", *(found.titles[name] for name in found.methods)], rows)


def _parameters(found: Comparison) -> list[str]:
    return ["position parameters", *(f"{found.position_parameters[name]:,}" for name in found.methods)]


def _cost(found: Comparison, speed: Speed) -> list[str]:
    """Of several ways that a method has to its positions, the price of the fastest."""
    cells = []
    there = [share for share in shares(found, speed) if share.price.real]
    for name in found.methods:
        kind = found.timed_as[name]
        mine = [share for share in there if share.price.method == kind]
        least = min(mine, key=lambda share: share.with_.seconds or 0.0, default=None)
        cells.append(_NOTHING if kind == "" else NONE if least is None else least.text)
    return [f"cost of positions, {speed.phase} at {short(speed.length)}, share of attention time", *cells]


def _total(found: Comparison, speed: Speed) -> list[list[str]]:
    where = f"{speed.phase} at {short(speed.length)}"
    dense, skipping = [], []
    for name in found.methods:
        mine = _attention_of(speed, found.timed_as[name])
        every = [timed.name for timed in mine if timed.name != "alibi"]
        dense.append(time_text(fastest(speed, every)))
        skipping.append(time_text(next((timed for timed in mine if timed.name == "alibi"), None)))
    rows = [[f"attention, {where}, every key", *dense]]
    if any(cell != NONE for cell in skipping):
        rows.append([f"attention, {where}, within the horizon", *skipping])
    return rows


def _attention_of(speed: Speed, kind: str | None) -> list[Timed]:
    """Every way of a method's attention; SDPA where it knows no positions."""
    if kind == "":
        return [timed for timed in speed.timed if timed.name == "sdpa"]
    return [timed for timed in speed.timed if timed.method == kind]


def time_text(timed: Timed | None) -> str:
    """A median, and half the interquartile range; a dash for what was not measured."""
    if timed is None or timed.seconds is None or timed.samples is None:
        return NONE
    return f"{milliseconds(timed.seconds)} ms (±{spread(timed.samples.seconds) / 2:.1%})"


def _memory(found: Comparison) -> list[list[str]]:
    rows = []
    for phase, words in (("prefill", "peak memory of prefill"), ("training", "peak memory of training")):
        there = [memory for memory in found.memory if memory.phase == phase]
        if there:
            cells = [_least(there, found.timed_as[name]) for name in found.methods]
            rows.append([f"{words} at {short(there[0].length)}, beyond the inputs", *cells])
    held = [memory for memory in found.memory if memory.phase == "cache"]
    if held:
        plain = next(memory for memory in held if memory.name == "keys")
        cells = []
        for name in found.methods:
            own = {memory.name: memory for memory in held if memory.method == found.timed_as[name]}
            if found.timed_as[name] == "alibi":
                cells.append(f"{memory_text(own['alibi-dense'])}; {memory_text(own['alibi'])} within the horizon")
            else:
                cells.append(memory_text(plain))
        rows.append([f"cache of one layer after {short(plain.length)}", *cells])
    return rows


def _least(there: Sequence[Memory], kind: str | None) -> str:
    mine = [memory for memory in there if memory.method == kind and (kind or memory.name == "sdpa")]
    known = [memory for memory in mine if memory.peak is not None]
    return memory_text(min(known, key=lambda memory: memory.peak or 0)) if known else NONE


def memory_text(memory: Memory) -> str:
    """A peak in MiB; a dash for what was not measured."""
    return NONE if memory.peak is None else f"{memory.peak / 2**20:,.0f} MiB"


def _quality(found: Comparison, trained: Trained) -> list[list[str]]:
    kind = KINDS[trained.objective]
    what = (
        f"bits per {'masked ' if trained.objective == 'masked' else ''}byte, {kind}, {PROTOCOL_NAMES[trained.protocol]}"
    )
    rows = []
    for multiple in MULTIPLES:
        at = [each for each in trained.quality if each.multiple == multiple]
        if not at:
            continue
        length = short(at[0].length)
        where = f"the trained {length}" if multiple == 1 else f"{length}, {multiple} times that"
        plain = {each.name: each for each in at}
        rows.append([f"{what}, at {where}", *(_bits(plain.get(name)) for name in found.methods)])
        if multiple > 1:
            scaled = {each.name: "" if each.bits is None else f"{each.bits:.3f}" for each in at}
            rows += _scaled(found, trained, f"{what}, at {length}", scaled)
    by_loss = {each.name: each.by_loss for each in trained.usable}
    by_recall = {each.name: each.by_recall for each in trained.usable}
    for measure, verdicts in (
        (f"perplexity, {kind}, {PROTOCOL_NAMES[trained.protocol]}", by_loss),
        (f"recall, {kind}", by_recall),
    ):
        if any(verdicts.values()):
            start = f"usable length by {measure}"
            rows.append([start, *(verdicts.get(name) or NONE for name in found.methods)])
            rows += _scaled(found, trained, start, verdicts)
    return rows


def _scaled(found: Comparison, trained: Trained, start: str, values: dict[str, str]) -> list[list[str]]:
    """A row of what every variant of a method comes to, none chosen; no row where there are none."""
    titles = {each.name: each.title.partition(", ")[2] for each in trained.usable}
    cells = []
    for method in found.methods:
        mine = [
            f"{value} with {titles[name]}" for name, value in values.items() if name.startswith(f"{method}:") and value
        ]
        cells.append("; ".join(mine) or NONE)
    return [[f"{start}, scaled without training", *cells]] if any(cell != NONE for cell in cells) else []


def _bits(quality: Quality | None) -> str:
    """Of the reference with its interval, of the others with that of the difference: paired, and far tighter."""
    if quality is None:
        return NONE
    if quality.bits is None:
        return quality.note or NONE
    if quality.difference is None:
        return f"{quality.bits:.3f}{_interval(quality.low, quality.high, '{:.3f}'.format)}"
    ends = _interval(quality.difference_low, quality.difference_high, signed)
    return f"{quality.bits:.3f}, {signed(quality.difference)}{ends}"


def _interval(low: float | None, high: float | None, words: Callable[[float], str]) -> str:
    return "" if low is None or high is None else f" ({words(low)} to {words(high)})"
