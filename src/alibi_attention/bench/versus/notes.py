"""What a reader has to know of the numbers in the table."""

from __future__ import annotations

from collections.abc import Sequence

from alibi_attention.bench.case import short
from alibi_attention.bench.versus.results import Comparison, Speed, Trained
from alibi_attention.bench.versus.trained import KINDS
from alibi_attention.lab.scores import LossProtocol

_PROTOCOLS: dict[LossProtocol, str] = {
    "windows": "windows that do not overlap, where part of what is gained with length is fewer tokens near a beginning",
    "sliding": "a sliding window",
    "targets": "the same tokens at the end of longer and longer windows",
}


def notes(found: Comparison) -> list[str]:
    """What a reader has to know of the numbers."""
    lines = [
        f"Position parameters are those of a decoder of one layer, {_heads(found)}, trained at "
        f"{short(max(found.settings['lengths']))}. A learned table grows with that length; T5's with the heads."
    ]
    if found.speed:
        lines += _about_times(found)
    if found.memory:
        lines.append(
            "Memory is the peak of one call in a process of its own, outputs and gradients included; of several ways "
            "of a method the least. A trained model's horizon differs from that of normal inputs."
        )
    for trained in found.trained:
        lines += _about_runs(trained)
    if any(each.by_loss or each.by_recall for trained in found.trained for each in trained.usable):
        lines.append(
            "Usable lengths are by the rules in docs/lab-reference.md. By perplexity: to which the loss stays that of "
            "the trained length. By recall: within which values are recalled from every distance tested, by the "
            "median seed. A flat loss is no evidence that the context is used."
        )
    return lines


def _heads(found: Comparison) -> str:
    return f"{found.settings['heads']} heads of width {found.settings['head_dim']}"


def _about_times(found: Comparison) -> list[str]:
    settings, kinds = found.settings, set(found.timed_as.values())
    lines = [
        f"Times are of attention alone, without projections: batch 1, {_heads(found)}, float32, standard normal "
        "inputs. Training is forward and backward; decode is one query against a cache. Medians, in parentheses half "
        "the interquartile range. Contestants take turns, round by round.",
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
            "Methods that only add to the embeddings do so once a model; in attention they are SDPA without positions."
        )
    if any(kind == "alibi" and name != "alibi" for name, kind in found.timed_as.items()):
        lines.append("Other slopes than the geometric ones run through the same kernel: its times are theirs.")
    shares_kept = [s for s in found.speed if s.kept_share is not None and s.phase != "decode"]
    if shares_kept and "alibi" in kinds:
        kept = ", ".join(f"{s.kept_share:.0%} at {short(s.length)}" for s in _by_length(shares_kept))
        lines.append(f"Within the horizon ALiBi computes, of the tiles a causal mask leaves: {kept}.")
    return lines


def _by_length(speeds: Sequence[Speed]) -> list[Speed]:
    return list({speed.length: speed for speed in speeds}.values())


def _about_runs(trained: Trained) -> list[str]:
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
            f"{KINDS[trained.objective].capitalize()}s scaled without training: every variant that was evaluated. To "
            "take the best of them by these numbers would be to choose by the text that is scored."
        )
    if trained.objective == "next" and not any(each.by_recall for each in trained.usable):
        lines.append("Whether the decoders recall anything from far away was not measured.")
    return lines


def _counted(number: int, what: str) -> str:
    return f"{number:,} {what}" if number == 1 else f"{number:,} {what}s"
