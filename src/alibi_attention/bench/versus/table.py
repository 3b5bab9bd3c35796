"""The one table, and what stands behind it, in Markdown."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from alibi_attention.bench.case import short
from alibi_attention.bench.errors import BenchError
from alibi_attention.bench.report import machine_text
from alibi_attention.bench.results import Results
from alibi_attention.bench.summary import measured, spread
from alibi_attention.bench.tables import milliseconds
from alibi_attention.bench.versus.contestants import Price, prices
from alibi_attention.bench.versus.results import Comparison, Memory, Quality, Speed, Timed, Trained
from alibi_attention.bench.versus.trained import MULTIPLES
from alibi_attention.lab.files import write_text
from alibi_attention.lab.scores import LossProtocol
from alibi_attention.lab.tables import NONE, PROTOCOL_NAMES, markdown, signed

BEGIN, END = "<!-- versus -->\n", "<!-- end of versus -->"

_NOTHING = "nothing in attention"
_KINDS = {"next": "decoder", "masked": "encoder"}
_PROTOCOLS: dict[LossProtocol, str] = {
    "windows": "windows that do not overlap, where part of what is gained with length is fewer tokens near a beginning",
    "sliding": "a sliding window",
    "targets": "the same tokens at the end of longer and longer windows",
}
_WHOSE = {"alibi": "ALiBi", "rope": "RoPE", "t5": "T5 bias"}


def one_table(found: Comparison) -> str:
    """A row for every question, a column for every method; then what is to be known of the numbers."""
    rows = [_parameters(found)]
    for phase in dict.fromkeys(speed.phase for speed in found.speed):
        speeds = [speed for speed in found.speed if speed.phase == phase]
        rows += [_cost(found, speed) for speed in speeds]
        for speed in speeds:
            rows += _total(found, speed)
    rows += _memory(found)
    for trained in found.trained:
        rows += _quality(found, trained)
    header = ["", *(found.titles[name] for name in found.methods)]
    return markdown(header, rows) + "\n" + "\n".join(f"- {note}" for note in notes(found)) + "\n"


def _parameters(found: Comparison) -> list[str]:
    return ["position parameters", *(f"{found.position_parameters[name]:,}" for name in found.methods)]


@dataclass(frozen=True)
class Share:
    """The price of positions at one size, a share of attention time: median and quartiles over rounds."""

    price: Price
    middle: float
    low: float
    high: float
    with_: Timed

    @property
    def text(self) -> str:
        return f"{self.middle:.1%} ({self.low:.1%} to {self.high:.1%})"


def shares(found: Comparison, speed: Speed) -> list[Share]:
    """Every price that was measured, round by round: 1 - without / with."""
    result = []
    for price in prices(found.timed_as.values(), bare=bool(found.settings.get("bare"))):
        without = speed.find(price.without)
        fastest = _fastest(speed, price.with_)
        if without is None or without.samples is None or fastest is None or fastest.samples is None:
            continue
        both = zip(fastest.samples.seconds, without.samples.seconds, strict=False)
        found_shares = [1.0 - b / a for a, b in both if a is not None and b is not None]
        if found_shares:
            result.append(Share(price, *_quartiles(found_shares), fastest))
    return result


def _quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """The median, then the quartiles below and above it."""
    if len(values) < 2:
        return values[0], values[0], values[0]
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return middle, low, high


def _fastest(speed: Speed, names: Sequence[str]) -> Timed | None:
    there = [timed for name in names if (timed := speed.find(name)) is not None and timed.seconds is not None]
    return min(there, key=lambda timed: timed.seconds or 0.0, default=None)


def _cost(found: Comparison, speed: Speed) -> list[str]:
    """Of several ways that a method has to its positions, the price of the fastest."""
    cells = []
    there = [share for share in shares(found, speed) if share.price.real]
    for name in found.methods:
        kind = found.timed_as[name]
        mine = [share for share in there if share.price.method == kind]
        fastest = min(mine, key=lambda share: share.with_.seconds or 0.0, default=None)
        cells.append(_NOTHING if kind == "" else NONE if fastest is None else fastest.text)
    return [f"cost of positions, {speed.phase} at {short(speed.length)}, share of attention time", *cells]


def _total(found: Comparison, speed: Speed) -> list[list[str]]:
    where = f"{speed.phase} at {short(speed.length)}"
    dense, skipping = [], []
    for name in found.methods:
        mine = _attention_of(speed, found.timed_as[name])
        every = [timed.name for timed in mine if timed.name != "alibi"]
        dense.append(_milliseconds(_fastest(speed, every)))
        skipping.append(_milliseconds(next((timed for timed in mine if timed.name == "alibi"), None)))
    rows = [[f"attention, {where}, every key", *dense]]
    if any(cell != NONE for cell in skipping):
        rows.append([f"attention, {where}, within the horizon", *skipping])
    return rows


def _attention_of(speed: Speed, kind: str | None) -> list[Timed]:
    """Every way of a method's attention; SDPA where it knows no positions."""
    if kind == "":
        return [timed for timed in speed.timed if timed.name == "sdpa"]
    return [timed for timed in speed.timed if timed.method == kind]


def _milliseconds(timed: Timed | None) -> str:
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
                cells.append(f"{_mib(own['alibi-dense'])}; {_mib(own['alibi'])} within the horizon")
            else:
                cells.append(_mib(plain))
        rows.append([f"cache of one layer after {short(plain.length)}", *cells])
    return rows


def _least(there: Sequence[Memory], kind: str | None) -> str:
    mine = [memory for memory in there if memory.method == kind and (kind or memory.name == "sdpa")]
    known = [memory for memory in mine if memory.peak is not None]
    return _mib(min(known, key=lambda memory: memory.peak or 0)) if known else NONE


def _mib(memory: Memory) -> str:
    return NONE if memory.peak is None else f"{memory.peak / 2**20:,.0f} MiB"


def _quality(found: Comparison, trained: Trained) -> list[list[str]]:
    kind = _KINDS[trained.objective]
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


def notes(found: Comparison) -> list[str]:
    """What a reader has to know of the numbers."""
    settings, kinds = found.settings, set(found.timed_as.values())
    heads = f"{settings['heads']} heads of width {settings['head_dim']}"
    lines = [
        f"Position parameters are those of a decoder of one layer, {heads}, trained at "
        f"{short(max(settings['lengths']))}. A learned table grows with that length; T5's with the heads."
    ]
    if found.speed:
        lines += [
            f"Times are of attention alone, without projections: batch 1, {heads}, float32, standard normal inputs. "
            "Training is forward and backward; decode is one query against a cache. Medians, in parentheses half the "
            "interquartile range. Contestants take turns, round by round.",
            "A share is 1 - (time without the position method) / (time with it), on one and the same kernel, round by "
            "round: the median, and the quartiles. Quartiles on two sides of zero say that the price is lost in the "
            "noise.",
        ]
        if "alibi" in kinds:
            lines.append(
                "ALiBi without its bias is this library's kernel built without it (`make bare`): same source, same "
                "compiler, every key computed in both. What the horizon saves is in the rows of times, not in the "
                "share."
                if settings.get("bare")
                else "ALiBi's share is that of a bias of one row in SDPA, the cheapest there is in torch (inexact far "
                "away). This library's kernel subtracts slope times distance whatever the slope: slopes of zero take "
                "no work away from it. `make bare` builds it without the subtraction, and `--bare` compares with that."
            )
        if "rope" in kinds:
            lines.append(
                "RoPE is turned in plain torch, before attention: once with halves, once as complex numbers; the "
                "faster counts. Its cosines are made beforehand. A kernel that turns queries and keys as it loads them "
                "would cost less. The rows of times take the faster of SDPA and this library's kernel"
                + (", built without the bias." if settings.get("bare") else ", which subtracts a bias of zero from it.")
            )
        if "t5" in kinds:
            lines.append("T5's bias is this laboratory's, in blocks of rows, linear in memory.")
        if "" in kinds:
            lines.append(
                "Methods that only add to the embeddings do so once a model; in attention they are SDPA without "
                "positions."
            )
        if any(kind == "alibi" and name != "alibi" for name, kind in found.timed_as.items()):
            lines.append("Other slopes than the geometric ones run through the same kernel: its times are theirs.")
        shares_kept = [s for s in found.speed if s.kept_share is not None and s.phase != "decode"]
        if shares_kept and "alibi" in kinds:
            kept = ", ".join(f"{s.kept_share:.0%} at {short(s.length)}" for s in _by_length(shares_kept))
            lines.append(f"Within the horizon ALiBi computes, of the tiles a causal mask leaves: {kept}.")
    if found.memory:
        lines.append(
            "Memory is the peak of one call in a process of its own, outputs and gradients included; of several ways "
            "of a method the least. A trained model's horizon differs from that of normal inputs."
        )
    for trained in found.trained:
        lines += _about(trained)
    if any(each.by_loss or each.by_recall for trained in found.trained for each in trained.usable):
        lines.append(
            "Usable lengths are by the rules in docs/lab.md. By perplexity: to which the loss stays that of the "
            "trained length. By recall: within which values are recalled from as far away as was tested, by the median "
            "seed. A flat loss is no evidence that the context is used."
        )
    return lines


def _by_length(speeds: Sequence[Speed]) -> list[Speed]:
    return list({speed.length: speed for speed in speeds}.values())


def _about(trained: Trained) -> list[str]:
    kind = "Encoders, trained by masked prediction" if trained.objective == "masked" else "Decoders"
    seeds = _counted(len(trained.seeds), "seed")
    amount = f"{trained.tokens / 1e6:.1f} million" if trained.tokens >= 1_000_000 else f"{trained.tokens:,}"
    text = (
        f"{kind}: {_counted(trained.layers, 'layer')} of width {trained.width}, {_counted(trained.heads, 'head')}, "
        f"{amount} {trained.unit}s of {trained.corpus} at length {trained.train_length}, {seeds}. Bits are by "
        f"{_PROTOCOLS[trained.protocol]}"
    )
    scored = [each.documents for each in trained.quality if each.documents]
    if scored:
        text += f", of {_counted(min(scored), 'document')}" + (" at the least." if min(scored) < max(scored) else ".")
    else:
        text += "."
    if any(each.low is not None for each in trained.quality):
        text += " Intervals are 95%, over documents" + (" and seeds." if len(trained.seeds) > 1 else ".")
    if any(each.difference is not None for each in trained.quality):
        text += (
            f" After a comma, that less the bits of {trained.reference} at the same length, paired by document and "
            "seed: below 0 is better than it."
        )
    lines = [text]
    if any(":" in each.name for each in trained.quality):
        lines.append(
            f"{_KINDS[trained.objective].capitalize()}s scaled without training: every variant that was evaluated. To "
            "take the best of them by these numbers would be to choose by the text that is scored."
        )
    if trained.objective == "next" and not any(each.by_recall for each in trained.usable):
        lines.append("Whether the decoders recall anything from far away was not measured.")
    return lines


def _counted(number: int, what: str) -> str:
    return f"{number:,} {what}" if number == 1 else f"{number:,} {what}s"


# What stands behind it


def details(found: Comparison) -> str:
    """Every contestant, and every price."""
    parts = []
    for speed in found.speed:
        parts.append(f"### {speed.phase.capitalize()} at {short(speed.length)}\n")
        rows = [
            [each.title, _milliseconds(each) if not each.refused else each.refused, str(_rounds(each))]
            for each in speed.timed
        ]
        parts.append(markdown(["", "a call", "rounds"], rows))
        priced = [[f"{_WHOSE[s.price.method]}: {s.price.title}", s.text] for s in shares(found, speed)]
        if priced:
            parts.append(markdown(["price of positions", "share of attention time"], priced))
    if found.memory:
        parts.append("### Memory\n")
        rows = [
            [memory.phase, short(memory.length), memory.title, _mib(memory) if not memory.note else memory.note]
            for memory in found.memory
        ]
        parts.append(markdown(["", "tokens", "", "peak"], rows))
    return "\n".join(parts)


def _rounds(timed: Timed) -> int:
    return 0 if timed.samples is None else len(measured(timed.samples.seconds))


def page_text(found: Comparison) -> str:
    """A page of its own: the table, what stands behind it, the machine."""
    methods = " and ".join(found.titles[name] for name in found.methods)
    missing = "" if found.status == "complete" else "\nStopped before everything was measured.\n"
    return f"# {methods}, measured\n{missing}\n{one_table(found)}\n{details(found)}\n{_where(found)}"


def _where(found: Comparison) -> str:
    return machine_text(Results(found.machine, found.settings, status=found.status, seconds=found.seconds))


def fill_page(found: Comparison, page: Path) -> None:
    """Replace what a page has between `<!-- versus -->` and `<!-- end of versus -->` by the table.

    Raises:
        BenchError: for a page that cannot be read, or marks no such place.
    """
    try:
        text = page.read_text(encoding="utf-8")
    except OSError as error:
        got = f"{page} ({error.strerror})"
        raise BenchError("page", expected="a page in Markdown", got=got, remedy="name one") from None
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        remedy = f"write {BEGIN.strip()} and {END} on lines of their own"
        raise BenchError("page", expected="a page that marks the place of the table", got=f"{page}", remedy=remedy)
    write_text(page, f"{before}{begin}\n{one_table(found)}\n{_where(found)}\n{end}{after}")
