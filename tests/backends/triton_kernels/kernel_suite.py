"""What the GPU kernels are held to: one list of checks for Triton's interpreter and for a GPU.

    TRITON_INTERPRET=1 python tests/backends/triton_kernels/kernel_suite.py            on a CPU, in the interpreter
    python tests/backends/triton_kernels/kernel_suite.py                               on a GPU

Options: --part 2/4 the second of four parts, --only TEXT checks with TEXT in their names, --exactly NAME (more than
once) this check, --after NAME what comes behind it, --cases N that many random calls, --quick fewer combinations,
--until T to begin none after that time (seconds, as `date +%s` tells it), --list names alone. Lines of JSON: what is
planned, each check that is begun, on a GPU each kernel that is compiled for it, and what came of it. Exit status 1
where one failed, 75 where one took the device with it: what is left needs another process. Needs the package (or
PYTHONPATH=src), torch and Triton, and in the interpreter NumPy.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import os
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

import torch
from check_list import Check, checks, shared
from kernel_calls import blocks

from alibi_attention.bench.gpu.process import LOST

_MOST_OF_A_TRACEBACK = 6000


def chosen(options: argparse.Namespace, device: str) -> list[Check]:
    every = checks(options.cases, device, quick=options.quick)
    found = [each for each in every if device != "cpu" or not each.gpu_only]
    found = [each for each in found if options.only in each.name]
    if options.exactly:
        found = [each for each in found if each.name in options.exactly]
    part, parts = (int(n) for n in options.part.split("/"))
    found = shared(found, part, parts, device)
    if options.after is None:
        return found
    names = [each.name for each in found]
    if options.after not in names:
        raise SystemExit(f"--after: no check of this name is among those chosen: {options.after}")
    return found[names.index(options.after) + 1 :]


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
    parser = argparse.ArgumentParser(description="Checks of the Triton kernels.")
    parser.add_argument("--part", default="1/1")
    parser.add_argument("--only", default="")
    parser.add_argument("--exactly", action="append", default=[])
    parser.add_argument("--after")
    parser.add_argument("--cases", type=int, default=24)
    parser.add_argument("--until", type=float, default=float("inf"))
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--list", action="store_true")
    options = parser.parse_args(arguments)
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    if not interpreted and not torch.cuda.is_available():
        parser.error("no GPU here, and TRITON_INTERPRET=1 is not set")
    device = "cpu" if interpreted else "cuda"
    found = chosen(options, device)
    if options.list:
        print("\n".join(check.name for check in found))
        return 0
    with _prepared(interpreted):
        return _run_all(found, device, options.until)


def _run_all(found: list[Check], device: str, until: float) -> int:
    print(json.dumps({"planned": [check.name for check in found]}), flush=True)
    failed = 0
    for check in _in_time(found, until):
        print(json.dumps({"begun": check.name}), flush=True)
        record = run(check, device)
        failed += record["failure"] is not None
        print(json.dumps(record), flush=True)
        if record.get("lost"):
            # Whatever followed in this process would fail for the same reason.
            return LOST
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
