"""What the GPU kernels are held to: one list of checks for Triton's interpreter and for a GPU.

    TRITON_INTERPRET=1 python tests/backends/triton_kernels/kernel_suite.py            on a CPU, in the interpreter
    python tests/backends/triton_kernels/kernel_suite.py                               on a GPU

--help tells the options; --list, which needs no GPU, the names. Lines of JSON: what is planned, each check that is
begun, on a GPU each kernel that is compiled for it, and what came of it. Exit status 1 where one failed, 2 where what
is asked for does not exist, 75 where one took the device with it: what is left needs another process. Needs the package
(or PYTHONPATH=src), torch and Triton, on a GPU a C compiler and Python's headers besides, in the interpreter NumPy.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import os
import re
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "operator"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parent))

from before import Once  # isort: skip - first, for it says what is missing

import torch
from check_list import Check, checks, shared
from kernel_calls import blocks

from alibi_attention.backends.triton import device as devices
from alibi_attention.bench.gpu.process import LOST

_MOST_OF_A_TRACEBACK = 6000


class ChoiceError(ValueError):
    """What was asked for does not exist. Whoever checks nothing must not take it for a success."""


def chosen(options: argparse.Namespace, device: str) -> list[Check]:
    """The checks that are asked for; a part may hold none of them, what is named must exist.

    Raises:
        ChoiceError: for a name or words that no check has.
    """
    every = checks(options.cases, device, quick=options.quick)
    found = [each for each in every if device != "cpu" or not each.gpu_only]
    where = " in the interpreter (some run on a GPU alone)" if device == "cpu" else ""
    known = {each.name for each in found}
    for name in options.exactly:
        if name not in known:
            raise ChoiceError(f"--exactly: expected the name of a check{where}, got {name!r}; --list names them")
    found = [each for each in found if options.only in each.name]
    if not found:
        raise ChoiceError(
            f"--only: expected text in the names of checks{where}, got {options.only!r}; --list names them"
        )
    if options.exactly:
        found = [each for each in found if each.name in options.exactly]
        if not found:
            got = ", ".join(map(repr, options.exactly))
            raise ChoiceError(f"--exactly: expected names that have {options.only!r} of --only, got {got}; give one")
    found = shared(found, *options.part, device)
    if options.after is None:
        return found
    names = [each.name for each in found]
    if options.after not in names:
        raise ChoiceError(
            f"--after: expected the name of a check among those chosen, got {options.after!r}; --list names them"
        )
    return found[names.index(options.after) + 1 :]


def part_of(text: str) -> tuple[int, int]:
    """ "2/4" to (2, 4)."""
    found = re.fullmatch(r"([0-9]+)/([0-9]+)", text)
    part, parts = (int(found.group(1)), int(found.group(2))) if found else (0, 0)
    if not 1 <= part <= parts:
        raise argparse.ArgumentTypeError(f"expected one part of several, from 1/4 to 4/4, got {text!r}")
    return part, parts


def _count(text: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise argparse.ArgumentTypeError(f"expected a number from 0 on, got {text!r}")
    return int(text)


def run(check: Check, device: str) -> dict[str, Any]:
    """The check's record: its name, seconds, what went wrong or None, and of what went wrong where.

    ``memory`` marks one that did not fit beside what else was on the device, ``lost`` one that left it unusable.
    """
    begin = time.perf_counter()
    record: dict[str, Any] = {"check": check.name, "seconds": 0.0, "failure": None}
    try:
        with blocks(device, 64, 64):
            check.run(device)
        if device != "cpu":
            # A kernel's fault shows at the next synchronisation: let it be this check's.
            torch.cuda.synchronize()
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        record["failure"] = f"{type(error).__name__}: {error} ({Path(where.filename).name}:{where.lineno})"
        record["traceback"] = _without_folders(traceback.format_exc())[-_MOST_OF_A_TRACEBACK:]
        record["memory"] = _is_for_memory(error)
    record["seconds"] = round(time.perf_counter() - begin, 3)
    if device != "cpu":
        if record["failure"] is not None:
            # What failed is held by cycles of frames.
            gc.collect()
        record["lost"] = not _device_answers()
    return record


def _without_folders(text: str) -> str:
    """Files from the top of the checkout or of Python on: results are kept, and where a machine has them is its own."""
    for folder in (str(Path(__file__).resolve().parents[3]), sys.prefix, sys.base_prefix):
        text = text.replace(f"{folder}/", "")
    return text


def _is_for_memory(error: BaseException) -> bool:
    """Of torch's allocator, of its libraries, or of the driver, which has to find room for the code itself."""
    told = str(error).lower()
    return isinstance(error, torch.OutOfMemoryError) or "out of memory" in told or "alloc_failed" in told


def _device_answers() -> bool:
    """Whether the device does as told; what the check held and no one needs is given back to other processes."""
    try:
        torch.cuda.empty_cache()
        return torch.ones(1, device="cuda").item() == 1.0
    except RuntimeError as error:
        return _is_for_memory(error)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description="Checks of the Triton kernels, on a GPU or, with TRITON_INTERPRET=1, in Triton's interpreter."
    )
    say = parser.add_argument
    say("--only", action=Once, default="", metavar="TEXT", help="checks with this text in their names")
    say("--exactly", action="append", default=[], metavar="NAME", help="this check; may be given more than once")
    say("--after", metavar="NAME", help="of what is chosen, what comes behind this check")
    say("--part", type=part_of, default=(1, 1), metavar="K/N", help="the K-th of N parts, as in 2/4")
    say("--cases", type=_count, default=24, metavar="N", help="so many random calls; 24 by default")
    say("--quick", action="store_true", help="fewer combinations")
    say("--until", type=float, default=float("inf"), metavar="T", help="begin none after that time, of `date +%%s`")
    say("--list", action="store_true", help="names alone, of what would run; without a GPU what one would run")
    options = parser.parse_args(arguments)
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    if not interpreted and not options.list and not torch.cuda.is_available():
        parser.error(f"{devices.without_gpu()}; TRITON_INTERPRET=1 runs the checks on a CPU")
    device = "cpu" if interpreted else "cuda"
    try:
        found = chosen(options, device)
    except ChoiceError as error:
        parser.error(str(error))
    if options.list:
        print("".join(f"{check.name}\n" for check in found), end="")
        return 0
    with _prepared(interpreted):
        return _run_all(found, device, options.until)


def _run_all(found: list[Check], device: str, until: float) -> int:
    print(json.dumps({"planned": [check.name for check in found]}), flush=True)
    failed = begun = 0
    for check in _in_time(found, until):
        begun += 1
        print(json.dumps({"begun": check.name}), flush=True)
        record = run(check, device)
        failed += record["failure"] is not None
        print(json.dumps(record), flush=True)
        if record.get("lost"):
            # Whatever followed in this process would fail for the same reason.
            return LOST
    if begun < len(found):
        print(f"--until: time for {begun} of {len(found)} checks; the rest was not begun", file=sys.stderr)
    return 1 if failed else 0


def _in_time(found: list[Check], until: float) -> Iterator[Check]:
    for check in found:
        if time.time() > until:
            return
        yield check


@contextlib.contextmanager
def telling_of_compilation() -> Iterator[None]:
    """Says of each kernel when its compilation begins and ends: whoever waits can tell that from a stall."""
    from triton.runtime.jit import JITFunction

    whole = getattr(JITFunction, "_do_compile", None)
    if whole is None:
        # Of no public name. Without it a stall is told by the time between two checks.
        yield
        return

    def compile_one(kernel: Any, *given: Any, **options: Any) -> Any:
        print(json.dumps({"compiling": kernel.__name__}), flush=True)
        try:
            return whole(kernel, *given, **options)
        finally:
            print(json.dumps({"compiling": None}), flush=True)

    with mock.patch.object(JITFunction, "_do_compile", compile_one):
        yield


def _prepared(interpreted: bool) -> Any:
    """In the interpreter bfloat16 is repaired, and every access to memory watched."""
    if not interpreted:
        return telling_of_compilation()
    import interpreter_repairs

    torch.set_num_threads(1)
    interpreter_repairs.repair_bfloat16()
    interpreter_repairs.quicken()
    return interpreter_repairs.watching_memory()


if __name__ == "__main__":
    sys.exit(main())
