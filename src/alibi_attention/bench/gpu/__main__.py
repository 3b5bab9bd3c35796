"""The command: ``python benchmarks/gpu.py``; ``python -m alibi_attention.bench.gpu`` where the package is installed."""

from __future__ import annotations

import argparse
import contextlib
import re
import signal
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from types import FrameType

import torch

from alibi_attention.bench.errors import BenchError
from alibi_attention.bench.gpu.cases import GPU_CASES, gpu_trials
from alibi_attention.bench.gpu.logs import logs_of
from alibi_attention.bench.gpu.run import Budget, GpuRun, spare_workers
from alibi_attention.bench.gpu.verdicts import report

RESULTS = Path("benchmarks/results")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="benchmarks/gpu.py",
        description="Check the Triton kernels on this machine's GPU and measure them against the peers there, "
        "in under eight minutes. Needs torch and Triton.",
    )
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"some of {', '.join(GPU_CASES)}; all by default")
    parser.add_argument(
        "--lengths", nargs="+", type=_length, default=(), metavar="KEYS",
        help="keys in tokens, as in 8192 or 8K, in place of each case's own: what a run did not reach, for another",
    )  # fmt: skip
    parser.add_argument(
        "--output",
        type=Path,
        help="a new .json file, with logs beside it; benchmarks/results/gpu-NAME-DATE.json by default",
    )
    parser.add_argument("--minutes", type=float, default=7.5, help="for everything; 7.5 by default")
    parser.add_argument("--no-suite", action="store_true", help="no checks, benchmarks alone")
    parser.add_argument("--no-benchmarks", action="store_true", help="no benchmarks, checks alone")
    parser.add_argument("--list", action="store_true", help="cases, and measure nothing")
    options = parser.parse_args(arguments)
    if options.list:
        for case in GPU_CASES.values():
            print(f"{case.name}: {case.title}; against {', '.join(case.peers)}")
        return 0
    try:
        trials = gpu_trials(options.cases, options.lengths)
    except BenchError as error:
        parser.error(str(error))
    if not torch.cuda.is_available():
        print("No GPU that torch can use. Nothing was measured; the targets stay untested.", file=sys.stderr)
        return 2
    output = options.output or RESULTS / f"gpu-{_slug(torch.cuda.get_device_name(0))}-{_now()}.json"
    if output.exists() or output.suffix != ".json":
        parser.error(f"--output: expected a new .json file, got {output}")
    run = GpuRun(
        [] if options.no_benchmarks else trials, output, budget=_budget(options.minutes, options.no_benchmarks),
        with_suite=not options.no_suite, workers=spare_workers(), tell=_say,
    )  # fmt: skip
    try:
        with _terminated_as_interrupted():
            results = run.run()
    except KeyboardInterrupt:
        print(f"Stopped. What was known until then is in {output}, marked incomplete.", file=sys.stderr)
        return 130
    written = f"{output} ({results.status}, {results.seconds:.0f} s), what processes wrote to {logs_of(output)}"
    print(f"\n{report(results)}\n\nWritten to {written}")
    return 1 if results.suite.get("failed") else 0


def _length(text: str) -> int:
    """A number of tokens; K is 1024 of them."""
    found = re.fullmatch(r"([1-9][0-9]*)([kK]?)", text)
    if found is None:
        raise argparse.ArgumentTypeError(f"expected a number of tokens such as 8192 or 8K, got {text!r}")
    return int(found.group(1)) * (1024 if found.group(2) else 1)


def _budget(minutes: float, checks_alone: bool) -> Budget:
    whole = 60.0 * minutes - 5.0
    base = Budget()
    suite = whole - 40.0 if checks_alone else min(base.suite, whole / 3.0)
    return replace(base, whole=whole, suite=suite)


@contextlib.contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """SIGTERM stops as Ctrl-C does, once: what follows must not cut off the writing of what is known."""

    def stop(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _say(line: str) -> None:
    print(line, flush=True)


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def _now() -> str:
    return f"{datetime.now(timezone.utc):%Y-%m-%d-%H%M%S}"


if __name__ == "__main__":
    sys.exit(main())
