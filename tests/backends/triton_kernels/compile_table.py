"""Every shipped kernel compiled for every architecture, without a GPU, and what is wrong with the result.

    PYTHONPATH=src python tests/backends/triton_kernels/compile_table.py --jobs 2            the whole table: 780 lines,
                                                                                  two hours on two cores
    PYTHONPATH=src python tests/backends/triton_kernels/compile_table.py --only "sm_90 forward"   lines with these words

The lines of one head dimension are compiled in one process, --jobs such at a time; a compiler that fails an assertion
takes its process along, and another goes on behind the line that did it. Triton's cache makes the second run quick.
What falls short is in known_faults.json, which --record writes. Before each kernel stands "ok", "known" for faults of
that file, "FAULT" for others or more, with what the file has, or "gone" for one that is there no longer. Exit status 1
for the last two; 2 where what is asked for does not exist. CONTRIBUTING.md says how to read a line, and when to record.
"""

from __future__ import annotations

import argparse
import itertools
import json
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

from before import Once  # isort: skip - first, for it says what is missing

import torch
from machine_code import ARCHITECTURES, Report, Variant, build
from stand_in import Start, key_of, record, variant_of

# At most so many instructions for each score element more than the same kernel without a bias.
MOST_FOR_THE_BIAS = 1.2
# What no record may excuse: that there is no code, that a device would refuse it, products without their instructions.
NO_CODE = ("does not compile", "the compiler ended", "nothing was compiled")
BEYOND_RECORD = re.compile(
    "|".join(NO_CODE) + r"|no matrix instructions|\d+ (registers for|columns of tensor|bytes of shared) "
)
_NUMBER = re.compile(r"\d+(?:\.\d+)?")
KNOWN_FAULTS = Path(__file__).with_name("known_faults.json")
HEAD_DIMS = (16, 64, 80, 128, 256)
_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
# Kernels that multiply matrices: the others have none of their instructions to show.
MULTIPLYING = ("forward_kernel", "query_kernel", "key_kernel")
KERNELS = (
    *MULTIPLYING, "rows_kernel", "summary_kernel", "plan_kernel", "split_kernel", "merge_kernel",
    "mend_forward_kernel", "mend_query_kernel", "mend_key_kernel",
)  # fmt: skip


@dataclass(frozen=True)
class Line:
    """A call, the kernels of which are compiled: ``options`` as `stand_in.record` takes them."""

    architecture: str
    dtype: str
    head_dim: int
    feature: str
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return f"{self.architecture} {self.dtype} D={self.head_dim} {self.feature}"

    def starts(self) -> list[Start]:
        """What the package would start, each piece of code once."""
        options = {
            name: torch.empty(*shape, dtype=dtype, device="meta") if isinstance(shape, tuple) else shape
            for name, (shape, dtype) in self.options.items()
        }
        found = record(self.architecture, head_dim=self.head_dim, dtype=_DTYPES[self.dtype], **options).starts
        return list({key_of(variant_of(start, self.architecture)): start for start in found}.values())


def _plain(**options: Any) -> dict[str, Any]:
    return {name: (value, None) for name, value in options.items()}


FEATURES: dict[str, dict[str, Any]] = {
    "causal": {},
    "both ways": _plain(is_causal=False),
    "grouped": _plain(kv_heads=2, transposed=True),
    "dropout": _plain(dropout_p=0.1),
    "padded": {"key_mask": ((2, 300), torch.bool)},
    "packed": {**_plain(batch=1), "cu_seqlens": ((4,), torch.int32)},
    "packed and planned": {**_plain(batch=1, q_len=3000), "cu_seqlens": ((4,), torch.int32)},
    "everything": {
        **_plain(batch=1, q_len=3000, is_causal=False, learned_slopes=True, dropout_p=0.1, kv_heads=2),
        "cu_seqlens": ((4,), torch.int32),
    },
    "learned": _plain(learned_slopes=True, tolerance=0.0),
    "planned": _plain(q_len=3000),
    # Where a stride or a number of programs is 1, Triton compiles that number in.
    "one of each": _plain(batch=1, heads=1, kv_heads=1, q_len=3000, value_dim=1),
    "decode": _plain(q_len=1, k_len=4096, cached=True, gradients=False),
    "decode grouped": _plain(q_len=1, k_len=4096, cached=True, gradients=False, kv_heads=1),
}


def lines(*, whole: bool) -> Iterator[Line]:
    """All of the table, or what a quick look compiles of it."""
    for architecture in ARCHITECTURES:
        for dtype in _DTYPES:
            for head_dim in HEAD_DIMS:
                for feature, options in FEATURES.items():
                    if whole or f"{architecture} {dtype} {head_dim} {feature}" in _QUICK:
                        yield Line(architecture, dtype, head_dim, feature, options)


_QUICK = {
    *(f"{architecture} bf16 64 causal" for architecture in ARCHITECTURES),
    "sm_90 bf16 128 both ways", "sm_80 fp32 64 causal", "gfx942 fp32 64 causal", "sm_90 bf16 64 decode",
    "sm_90 bf16 64 packed and planned", "sm_90 bf16 64 learned", "sm_100 bf16 64 planned", "sm_80 bf16 128 dropout",
    "sm_100 bf16 256 both ways",
}  # fmt: skip


_BUILT: dict[str, Report] = {}


def built(variant: Variant, architecture: str) -> Report:
    """As `build`; many lines share what does not depend on what sets them apart."""
    key = f"{architecture} {key_of(variant)}"
    if key not in _BUILT:
        _BUILT[key] = build(variant, architecture)
    return _BUILT[key]


def look(line: Line, only: Sequence[str] = ()) -> list[dict[str, Any]]:
    """A record for each kernel of the line: what it takes, and its faults in words."""
    found = []
    for start in line.starts():
        name = f"{line.name} {start.name}" + _part(start)
        if not all(word in name for word in only):
            continue
        try:
            report = built(variant_of(start, line.architecture), line.architecture)
            price = _price_of_bias(line, start, report)
            faults = [
                *report.faults(), *_without_matrices(start, report), *_in_vain(start, report), *_dear_bias(price),
            ]  # fmt: skip
            counts = {"warps": start.config.num_warps, "stages": start.config.num_stages}
            found.append({
                "kernel": name, "registers": report.registers, "spills": report.spills, "shared": report.shared,
                "matrix": report.tensor_ops, "config": {**start.config.constants, **counts},
                "per_score": round(report.per_score, 2) if _has_scores(start, report) else None,
                "bias": None if price is None else round(price[0] - price[1], 2), "faults": faults,
            })  # fmt: skip
        except Exception as error:
            text = (str(error).strip().splitlines() or [""])[0]
            found.append({"kernel": name, "faults": [f"does not compile: {type(error).__name__}: {text[:200]}"]})
    return found


def _part(start: Start) -> str:
    """Behind the name of a kernel of which one launch computes a part."""
    of = start.everything.get("of", "both")
    return "" if of == "both" else f"({of})"


def _without_matrices(start: Start, report: Report) -> list[str]:
    if start.name not in MULTIPLYING:
        return []
    wanted = report.architecture.virtual
    if report.variant.signature["query"] == "*fp32" and start.everything["precision"] == "ieee" and wanted:
        # Products of float32 proper: NVIDIA has no matrix instructions for them.
        return []
    if report.tensor_ops == 0:
        return ["no matrix instructions"]
    if wanted and report.variant.signature["query"] != "*fp32" and not report.virtual_ops:
        # Those of a warp group or of a tensor memory multiply 64 rows or more; with fewer the compiler takes a warp's
        # instead, and says nothing. The rows of a product are those of a block of queries, or of keys.
        side = "block_n" if start.name == "key_kernel" else "block_m"
        return [f"no {wanted}: products of {start.config.constants[side]} rows"]
    return []


def _in_vain(start: Start, report: Report) -> list[str]:
    if start.name not in MULTIPLYING or not report.main_loop or report.times_over < 2.0:
        return []
    return [f"weights computed {report.times_over:.2f} times over"]


def _has_scores(start: Start, report: Report) -> bool:
    # Those that mend go over the keys of a few rows, if over any: what a score takes there says nothing.
    return report.variant.scores > 0 and bool(report.main_loop) and not start.name.startswith("mend_")


def _price_of_bias(line: Line, start: Start, report: Report) -> tuple[float, float] | None:
    """Instructions a score with the bias and without, of kernels that multiply in a loop."""
    # A decoding step waits for memory, and most of the rows of its tile are padding.
    if start.name not in MULTIPLYING or not report.main_loop:
        return None
    without = built(variant_of(start, line.architecture, bias=False), line.architecture)
    return report.per_score, without.per_score


def _dear_bias(price: tuple[float, float] | None) -> list[str]:
    if price is None or price[0] - price[1] <= MOST_FOR_THE_BIAS:
        return []
    return [f"the bias costs {price[0] - price[1]:.2f} instructions a score ({price[0]:.2f} for {price[1]:.2f})"]


def table(wanted: Sequence[Line], only: Sequence[str] = (), jobs: int = 1) -> Iterator[list[dict[str, Any]]]:
    """Records of each line, in order, from processes of their own."""
    groups = [list(group) for _, group in itertools.groupby(wanted, lambda line: line.name.removesuffix(line.feature))]
    with ThreadPoolExecutor(jobs) as pool:
        for found in pool.map(lambda group: _in_processes(group, only), groups):
            yield from found


def _in_processes(group: Sequence[Line], only: Sequence[str]) -> list[list[dict[str, Any]]]:
    """Records of each line of a group, those behind one that takes its process along from another process."""
    found: dict[str, list[dict[str, Any]]] = {line.name: [] for line in group}
    rest = list(found)
    while rest:
        command = [sys.executable, __file__, *(["--only", " ".join(only)] if only else []), "--lines", *rest]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        name = rest[0]
        for told in map(json.loads, filter(lambda text: text.startswith('{"'), done.stdout.splitlines())):
            if "line" in told:
                name = told["line"]
            else:
                found[name].append(told)
        if done.returncode == 0:
            break
        last = (done.stderr.strip().splitlines() or [""])[-1]
        found[name].append({"kernel": name, "faults": [f"the compiler ended with {done.returncode}: {last[:200]}"]})
        rest = rest[rest.index(name) + 1 :]
    return list(found.values())


def kind_and_amounts(fault: str) -> tuple[str, tuple[float, ...]]:
    """ "spills 84" is ("spills #", (84.0,)): the words without their numbers, and those; what is missing ("no ...") is
    a kind with its numbers."""
    if fault.startswith(("no ", *NO_CODE)):
        return fault, ()
    return _NUMBER.sub("#", fault), tuple(map(float, _NUMBER.findall(fault)))


def read_known() -> dict[str, list[str]]:
    """What is known to fall short, by kernel of a line. It may become less, and what has gone must be taken out."""
    found: dict[str, list[str]] = json.loads(KNOWN_FAULTS.read_text(encoding="utf-8"))
    return found


def against(known: Mapping[str, Sequence[str]], found: Mapping[str, Any]) -> list[str]:
    """What a record has to answer for: faults of a kind it was not known for, or of more, and known kinds that went."""
    return [*_worse(known, found), *_gone(known, found)]


def _worse(known: Mapping[str, Sequence[str]], found: Mapping[str, Any]) -> list[str]:
    of_kernel = {kind_and_amounts(fault)[0]: fault for fault in known.get(found["kernel"], ())}
    amounts = dict(map(kind_and_amounts, of_kernel.values()))
    new = [fault for fault in found["faults"] if not _is_within(amounts, *kind_and_amounts(fault))]
    before = [of_kernel.get(kind_and_amounts(fault)[0]) for fault in new]
    return [fault + (f" (known: {was})" if was else "") for fault, was in zip(new, before, strict=True)]


def _gone(known: Mapping[str, Sequence[str]], found: Mapping[str, Any]) -> list[str]:
    now = dict(map(kind_and_amounts, found["faults"]))
    faults = [fault for fault in known.get(found["kernel"], ()) if kind_and_amounts(fault)[0] not in now]
    return [f"no longer, so --record its line: {fault}" for fault in faults]


def _is_within(known: Mapping[str, tuple[float, ...]], kind: str, amounts: tuple[float, ...]) -> bool:
    return kind in known and all(now <= before for now, before in zip(amounts, known[kind], strict=True))


def vanished(known: Mapping[str, Sequence[str]], line: Line, found: Sequence[Mapping[str, Any]]) -> list[str]:
    """Kernels of a line that are known for faults and were not there; none where the compiler ended on the way."""
    if any(fault.startswith("the compiler ended") for each in found for fault in each["faults"]):
        return []
    there = {each["kernel"] for each in found}
    return [kernel for kernel in known if _line_of(kernel) == line.name and kernel not in there]


def _line_of(kernel: str) -> str:
    """Names of lines end in a feature, which may be several words; those of kernels in one more, with a _."""
    name, _, last = kernel.rpartition(" ")
    return name if "_kernel" in last else kernel


def selected(every: Sequence[Line], only: Sequence[str]) -> list[Line]:
    """The lines that have all the words; a word with _kernel is one of their kernels, or a part of one.

    Empty where no line has them, or none has a kernel of that name: whoever compiles nothing must not take it for a
    success.
    """
    of_line = [word for word in only if "_kernel" not in word]
    found = [line for line in every if all(word in line.name for word in of_line)]
    if len(of_line) < len(only) and not any(_has(line, only) for line in found):
        return []
    return found


def _has(line: Line, only: Sequence[str]) -> bool:
    return any(all(word in f"{line.name} {start.name}{_part(start)}" for word in only) for start in line.starts())


def _jobs(text: str) -> int:
    if not (text.isascii() and text.isdigit()) or int(text) == 0:
        raise argparse.ArgumentTypeError(f"expected a number of processes from 1 on, got {text!r}")
    return int(text)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description="Compile the Triton kernels ahead of time and inspect the code. A line is named by architecture, "
        "dtype, head dimension and feature, as in 'sm_90 bf16 D=64 causal'.",
        epilog=f"Architectures: {', '.join(ARCHITECTURES)}; dtypes: {', '.join(_DTYPES)}; "
        f"head dimensions: {', '.join(f'D={dim}' for dim in HEAD_DIMS)}; features: {', '.join(FEATURES)}; kernels: "
        f"{', '.join(KERNELS)}. All of it, {len(list(lines(whole=True)))} lines, takes some two hours on two cores. "
        "CONTRIBUTING.md says what a line tells.",
    )
    parser.add_argument(
        "--only", action=Once, default="", metavar="WORDS",
        help="words that a line's name must have, all of them; one that ends in _kernel picks kernels of the lines",
    )  # fmt: skip
    parser.add_argument("--quick", action="store_true", help="the few lines that the tests compile")
    parser.add_argument(
        "--jobs",
        type=_jobs,
        default=1,
        metavar="N",
        help="head dimensions at a time, each a process of one core; 1 by default",
    )
    parser.add_argument(
        "--record", action="store_true", help="write the faults of what is compiled into known_faults.json"
    )
    parser.add_argument("--lines", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    only = options.only.split()
    every = list(lines(whole=not options.quick))
    if options.lines:
        for line in (each for each in lines(whole=True) if each.name in options.lines):
            print(json.dumps({"line": line.name}), flush=True)
            for found in look(line, only):
                print(json.dumps(found), flush=True)
        return 0
    wanted = selected(every, only)
    if not wanted:
        names = [*KERNELS, *(f"key_kernel({of})" for of in ("values", "keys")), *(line.name for line in every)]
        strangers = [word for word in only if not any(word in name for name in names)]
        of_which = f", where no line has {', '.join(map(repr, strangers))}" if strangers else ""
        parser.error(
            f"--only: expected words of the name of a line, as in 'sm_90 bf16 D=64 causal forward_kernel', got "
            f"{options.only!r}{of_which}; --help names them all"
        )
    of_kernels = any("_kernel" in word for word in only)
    known, count, faulty, wrong = read_known(), 0, 0, 0
    for line, records in zip(wanted, table(wanted, only, options.jobs), strict=True):
        if not records and not of_kernels:
            records.append({"kernel": line.name, "faults": ["nothing was compiled"]})
        gone = [] if of_kernels else vanished(known, line, records)
        if options.record:
            known = {kernel: faults for kernel, faults in known.items() if kernel not in gone}
        for each in records:
            if options.record:
                known.pop(each["kernel"], None)
                kept = [fault for fault in each["faults"] if not BEYOND_RECORD.match(fault)]
                known |= {each["kernel"]: kept} if kept else {}
            worse = _worse(known, each)
            new = [*worse, *_gone(known, each)]
            count, faulty, wrong = count + 1, faulty + bool(each["faults"]), wrong + bool(new)
            word = "FAULT" if worse else "gone " if new else "known" if each["faults"] else "ok   "
            print(f"{word} {_text(each, new)}", flush=True)
        if not options.record:
            wrong += len(gone)
            for kernel in gone:
                print(f"gone  {kernel}: there is no such kernel any more, so --record its line", flush=True)
    print(f"{count} kernels, {faulty} with faults, {wrong} with others than known_faults.json has")
    if options.record:
        KNOWN_FAULTS.write_text(json.dumps(dict(sorted(known.items())), indent=1) + "\n", encoding="utf-8")
    return 1 if wrong else 0


def _text(found: dict[str, Any], new: Sequence[str] = ()) -> str:
    sizes = ", ".join(f"{name} {value}" for name, value in found.get("config", {}).items())
    taken = ", ".join(
        f"{found[name]} {name}" for name in ("registers", "shared", "matrix", "per_score") if found.get(name)
    )
    if found.get("bias") is not None:
        # Of those that multiply no spill and a bias for nothing are worth a word too.
        taken += f", {found['spills']} spills, bias {found['bias']:.2f}"
    elif found.get("spills"):
        taken += f", {found['spills']} spills"
    return f"{found['kernel']}: {taken} ({sizes})" + "".join(f"; {fault}" for fault in new or found["faults"])


if __name__ == "__main__":
    sys.exit(main())
