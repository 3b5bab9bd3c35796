"""Tables of a page in Markdown, filled from files of results: numbers are copied by a command, never by hand.

A page marks where a table belongs::

    <!-- numbers: forward -->
    ...
    <!-- end of numbers -->

What stands between is replaced. Trials of several files count together; ratios are within a file all the same. Files
measured with a switch of the environment set, which changes speed, stay out of every table but those that say so; a
number of threads is none, for every file says how many threads it had.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from alibi_attention.bench.case import short
from alibi_attention.bench.cases import CASES
from alibi_attention.bench.compare import Comparison, comparisons, means
from alibi_attention.bench.errors import BenchError
from alibi_attention.bench.limits import beyond, has_what_is_asked, judgements, per_product, per_tile, per_token
from alibi_attention.bench.results import Results, TrialResult
from alibi_attention.bench.summary import Ratio, times
from alibi_attention.bench.tables import NONE, Table, milliseconds
from alibi_attention.lab.files import write_text

_ROW, _PLAIN = "sdpa-row", "sdpa"
_MARKED = re.compile(r"(<!-- numbers: ([a-z0-9-]+) -->\n).*?(<!-- end of numbers -->)", re.DOTALL)

_DENSE = {"forward-dense": "forward", "training-dense": "forward and backward", "layer": "layer"}
_SKIPPING = {"forward-horizon": "forward", "training-horizon": "forward and backward", "decode": "one query"}

Trials = Sequence[TrialResult]


def latest(results: Sequence[Results]) -> list[TrialResult]:
    """The trials of all files, each size once: as the newest file that has it measured to the end."""
    return _newest(complete(results))


def complete(results: Sequence[Results]) -> list[TrialResult]:
    """The trials of all files that were measured to the end, the newest last: of the same size there may be several,
    against other peers."""
    ordered = sorted(results, key=lambda each: str(each.machine["date"]))
    return [trial for each in ordered for trial in each.trials if trial.complete]


def _newest(trials: Trials, counts: Callable[[TrialResult], bool] = lambda _: True) -> list[TrialResult]:
    """Of every size the last that counts, or else the first."""
    found: dict[tuple[str, int, int], TrialResult] = {}
    for trial in trials:
        size = (trial.case, trial.head_dim, trial.keys)
        if size not in found or counts(trial):
            found[size] = trial
    return list(found.values())


def _newest_against_peers(trials: Trials) -> list[Comparison]:
    """What a call takes unasked against every peer of every size: each as the newest file that has the peer there."""
    found = {
        (trial.case, trial.head_dim, trial.keys, each.peer.name): each
        for trial in trials
        for each in comparisons(trial)
        if each.ours.default
    }
    return list(found.values())


def fill(page: Path, results: Sequence[Results]) -> list[str]:
    """Replace every marked table of the page.

    Returns:
        Their names.

    Raises:
        BenchError: for a page that cannot be read or written, marks nothing, or names a table there is none of.
    """
    try:
        text = page.read_text(encoding="utf-8")
    except OSError as error:
        got = f"{page} ({error.strerror})"
        raise BenchError("page", expected="a page in Markdown", got=got, remedy="name one") from None
    names = [match[2] for match in _MARKED.finditer(text)]
    wrong = [name for name in names if name not in TABLES and name not in FILE_TABLES]
    if wrong or not names:
        got = f"{page}, which marks {', '.join(map(repr, wrong)) or 'none'}"
        there = ", ".join([*TABLES, *FILE_TABLES])
        remedy = f"write <!-- numbers: NAME --> and <!-- end of numbers --> with a name of {there}"
        raise BenchError("page", expected="a page that marks tables", got=got, remedy=remedy)
    plain = [each for each in results if not switches(each)]
    trials, every = latest(plain), complete(plain)

    def table(match: re.Match[str]) -> str:
        name = match[2]
        made = (
            FILE_TABLES[name](results) if name in FILE_TABLES else TABLES[name](every if name in OF_PEERS else trials)
        )
        return match[1] + (made.markdown() if made.rows else "Not measured yet.\n") + match[3]

    write_text(page, _MARKED.sub(table, text))
    return names


def switches(results: Results) -> dict[str, str]:
    """What was set in the environment that keeps a file out of the tables."""
    found: dict[str, str] = results.machine.get("switches") or {}
    return {name: value for name, value in found.items() if not name.endswith("_NUM_THREADS")}


def _find(trials: Trials, case: str, head_dim: int, keys: int, peer: str = _ROW) -> Comparison | None:
    for trial in trials:
        if (trial.case, trial.head_dim, trial.keys) == (case, head_dim, keys):
            return next((each for each in comparisons(trial) if each.ours.default and each.peer.name == peer), None)
    return None


def _ratio(found: Ratio | None) -> str:
    if found is None:
        return NONE
    span = "" if found.rounds == 1 else f" ({times(found.low)[:-1]}–{times(found.high)[:-1]})"
    return times(found.median) + span


def _cell(found: Comparison | None) -> str:
    return _ratio(None if found is None else found.ratio)


def _lengths(trials: Trials, *cases: str) -> list[int]:
    return sorted({trial.keys for trial in trials if trial.case in cases})


def _head_dims(trials: Trials, *cases: str) -> list[int]:
    return sorted({trial.head_dim for trial in trials if trial.case in cases})


def _speed_table(trials: Trials, mode: str, peers: Sequence[tuple[str, str]]) -> Table:
    """Horizon and every tile by length, for each head dimension; geometric means of the latter last."""
    horizon, dense = f"{mode}-horizon", f"{mode}-dense"
    dims = _head_dims(trials, horizon, dense)
    columns = [
        (dim, case, peer, f"D = {dim}, {words}{against}")
        for dim in dims
        for case, words in ((horizon, "horizon"), (dense, "every tile"))
        for peer, against in (peers if case == dense else peers[:1])
    ]
    rows = [
        [short(length), *(_cell(_find(trials, case, dim, length, peer)) for dim, case, peer, _ in columns)]
        for length in _lengths(trials, horizon, dense)
    ]
    averages = {(each.case, each.head_dim, each.peer): each for each in means(trials)}
    last = []
    for dim, case, peer, _ in columns:
        mean = averages.get((case, dim, peer))
        last.append("" if mean is None or mean.missing else _ratio(mean.ratio))
    if any(last):
        rows.append(["geometric mean", *last])
    return Table("", ["tokens", *(title for *_, title in columns)], rows)


def _forward(trials: Trials) -> Table:
    return _speed_table(trials, "forward", [(_ROW, "")])


def _training(trials: Trials) -> Table:
    return _speed_table(trials, "training", [(_ROW, ""), (_PLAIN, ", against no bias")])


def _decode(trials: Trials) -> Table:
    dims = _head_dims(trials, "decode")

    def cell(dim: int, length: int) -> str:
        found = _find(trials, "decode", dim, length)
        return NONE if found is None else f"{milliseconds(found.ours.seconds or 0.0)} ms, {_cell(found)}"

    rows = [[short(length), *(cell(dim, length) for dim in dims)] for length in _lengths(trials, "decode")]
    return Table("", ["keys held", *(f"D = {dim}" for dim in dims)], rows)


def _decode_steps(trials: Trials) -> Table:
    """Time of one step, and how many times faster it is than those of the peers."""
    rows = []
    for dim in _head_dims(trials, "decode-steps"):
        for length in _lengths(trials, "decode-steps"):
            found = _find(trials, "decode-steps", dim, length)
            bare = _find(trials, "decode-steps", dim, length, _PLAIN)
            if found is not None:
                seconds = (found.ours.seconds or 0.0) / CASES["decode-steps"].steps
                rows.append([str(dim), short(length), f"{seconds * 1e6:.0f}", _cell(found), _cell(bare)])
    return Table("", ["D", "keys", "µs a step", "against SDPA, row bias", "against SDPA, no bias"], rows)


def _few_queries(trials: Trials) -> Table:
    rows = []
    for trial in trials:
        found = _find(trials, trial.case, trial.head_dim, trial.keys, "sdpa-full")
        if trial.case.startswith("few-queries") and found is not None:
            took = milliseconds(found.ours.seconds or 0.0)
            rows.append([trial.dtype, str(trial.head_dim), short(trial.keys), took, _cell(found)])
    return Table("", ["inputs", "D", "keys held", "ms", "against SDPA, full bias"], rows, labels=3)


def _linear(trials: Trials) -> Table:
    """Time per token, per computed tile and per product, by length."""
    rows = []
    for trial in sorted(trials, key=lambda each: (each.head_dim, each.keys)):
        token, tile, product = per_token(trial), per_tile(trial), per_product(trial)
        if trial.case != "sweep" or trial.default is None or token is None or tile is None:
            continue
        scored, kept = trial.tiles_scored, trial.tiles or 0
        rows.append([
            str(trial.head_dim), short(trial.keys), f"{trial.kept_share or 0.0:.1%}", f"{scored or kept:,}",
            NONE if scored is None else f"{1 - kept / scored:.0%}", milliseconds(trial.default.seconds or 0.0),
            f"{token * 1e6:.3g}", f"{tile * 1e6:.3g}", NONE if product is None else f"{product * 1e6:.3g}",
        ])  # fmt: skip
    header = ["D", "tokens", "kept", "tiles", "passed over", "ms", "µs a token", "µs a tile", "µs a product"]
    return Table("", header, rows)


def _memory(trials: Trials) -> Table:
    rows = [
        [
            "forward and backward" if trial.mode == "training" else "forward",
            trial.dtype,
            str(trial.head_dim),
            short(trial.keys),
            f"{(beyond(trial) or 0) / 1e6:.1f} MB",
        ]
        for trial in trials
        if trial.case in ("memory", "memory-bf16", "memory-training", "memory-bf16-training")
        and beyond(trial) is not None
    ]
    return Table("", ["", "inputs", "D", "tokens", "peak beyond inputs and outputs"], rows, labels=4)


def _trained(trials: Trials) -> Table:
    rows = []
    for trial in trials:
        for peer in (_ROW, _PLAIN) if trial.case.startswith("trained-") else ():
            found = _find(trials, trial.case, trial.head_dim, trial.keys, peer)
            if found is not None:
                words = "forward" if trial.case == "trained-forward" else "forward and backward"
                share = f"{trial.kept_share or 0.0:.0%}"
                rows.append([words, short(trial.keys), share, found.peer.title, _cell(found)])
    return Table("", ["", "tokens", "tiles kept", "against", "times faster"], rows, labels=4)


def _bf16(trials: Trials) -> Table:
    """Against our own float32, and against peers on the same bfloat16 tensors."""
    rows = []
    for trial in trials:
        cells = [
            _cell(_find(trials, trial.case, trial.head_dim, trial.keys, peer)) for peer in ("alibi-fp32", _ROW, _PLAIN)
        ]
        if cells[0] != NONE:
            words = trial.title.replace(" in bfloat16", "")
            rows.append([words, str(trial.head_dim), short(trial.keys), *cells])
    header = ["", "D", "tokens", "our float32", "SDPA, row bias", "SDPA, no bias"]
    return Table("", header, rows, labels=3)


def _overhead(trials: Trials) -> Table:
    rows = []
    for trial in trials:
        if trial.case.startswith("overhead-") and trial.default is not None:
            micro = [f"{entry.seconds * 1e6:.1f}" for entry in trial.entries if entry.default and entry.seconds]
            peers = [
                f"{entry.seconds * 1e6:.1f}" if (entry := trial.entry(name)) and entry.seconds else NONE
                for name in (_PLAIN, _ROW)
            ]
            words = "without gradients" if trial.case == "overhead-forward" else "with gradients"
            rows.append([words, *(micro or [NONE]), *peers])
    return Table("", ["µs a call of 16 tokens", "alibi-attention", "SDPA, no bias", "SDPA, row bias"], rows)


def _bloom(trials: Trials) -> Table:
    rows = []
    for trial in trials:
        found = _find(trials, trial.case, trial.head_dim, trial.keys) if trial.case == "bloom-176b" else None
        if found is not None:
            spare = beyond(trial)
            scores = 4 * trial.heads * trial.queries * trial.keys
            rows.append(["time", f"{found.ours.seconds or 0:.1f} s", f"{found.peer.seconds or 0:.1f} s (row bias)"])
            memory = NONE if spare is None else f"{spare / 1e6:,.0f} MB"
            rows.append(["memory beyond inputs and output", memory, f"{scores / 1e9:,.0f} GB (a matrix of scores)"])
    return Table("", ["", "alibi-attention", "every pair computed"], rows)


def _peers(trials: Trials, cases: Mapping[str, str]) -> Table:
    """Medians against every peer of these cases, by length: each as the newest file that has the peer there."""
    lengths = _lengths(trials, *cases)
    found: dict[tuple[str, int, str], dict[int, str]] = {}
    for trial in trials:
        for each in comparisons(trial) if trial.case in cases else ():
            if each.ours.default:
                cells = found.setdefault((trial.case, trial.head_dim, each.peer.title), {})
                cells[trial.keys] = times(each.ratio.median)
    rows = [
        [words, *(cells.get(length, NONE) for length in lengths)]
        for (case, dim, peer), cells in found.items()
        for words in [f"{cases[case]}, D = {dim}, {peer}"]
    ]
    return Table("", ["", *map(short, lengths)], rows)


def _size_in_words(trial: TrialResult) -> str:
    return f"{trial.title}, D = {trial.head_dim}, {short(trial.keys)} tokens"


def _slower(trials: Trials) -> Table:
    """Every size at which a peer is faster than what a call takes unasked, by the newest file that has it there."""
    rows = [
        [_size_in_words(each.trial), each.peer.title, _cell(each)]
        for each in _newest_against_peers(trials)
        if each.slower
    ]
    return Table("", ["", "than", "our speed"], rows or [["nowhere in these files", NONE, NONE]], labels=2)


def _files(results: Sequence[Results]) -> Table:
    """What was measured when, of which version, and how busy the machine was at the time."""
    rows = []
    for each in sorted(results, key=lambda each: str(each.machine["date"])):
        # The contestants' own threads count, so a size is judged by what the first found.
        load, commit = each.machine.get("load"), str(each.machine.get("commit") or "unknown")
        changed = " + changes" if commit.endswith("+ changes") else ""
        cases = ", ".join(dict.fromkeys(trial.case for trial in each.trials))
        date = str(each.machine["date"])[:16].replace("T", " ")
        set_then = ", ".join(f"{name}={value}" for name, value in switches(each).items()) or NONE
        rows.append([cases, date, commit[:9] + changed, NONE if load is None else f"{load:g}", set_then])
    return Table("", ["cases", "UTC", "commit", "load before", "switches"], rows, labels=5)


def target_table(trials: Trials) -> Table:
    """Every target, what was found, and the verdict, by the newest file that has at that size what is asked about."""
    rows = []
    for each in _newest_against_peers(trials):
        if each.target is not None:
            trial = each.trial
            where = f"{trial.case}, D={trial.head_dim}, {short(trial.keys)}, against {each.peer.name}"
            rows.append([where, f"{each.target:g}x", _cell(each), each.verdict])
    for mean in means(trials):
        where = f"{mean.case}, D={mean.head_dim}, geometric mean, against {mean.peer}"
        rows.append([where, f"{mean.target:g}x", _ratio(mean.ratio), mean.verdict])
    rows += [
        [each.where, each.asked, each.found, each.verdict] for each in judgements(_newest(trials, has_what_is_asked))
    ]
    return Table("", ["target", "asked", "found", "verdict"], rows, labels=4)


TABLES: dict[str, Callable[[Trials], Table]] = {
    "forward": _forward,
    "training": _training,
    "decode": _decode,
    "decode-steps": _decode_steps,
    "few-queries": _few_queries,
    "linear": _linear,
    "memory": _memory,
    "trained": _trained,
    "bf16": _bf16,
    "overhead": _overhead,
    "bloom-176b": _bloom,
    "peers": partial(_peers, cases=_DENSE),
    "peers-horizon": partial(_peers, cases=_SKIPPING),
    "slower": _slower,
    "targets": target_table,
}
# These take all trials there are: a size may have been measured once more against other peers.
OF_PEERS = {"peers", "peers-horizon", "slower", "targets"}
FILE_TABLES: dict[str, Callable[[Sequence[Results]], Table]] = {"files": _files}
