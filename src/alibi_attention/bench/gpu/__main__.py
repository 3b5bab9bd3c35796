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

from alibi_attention.bench.case import short
from alibi_attention.bench.errors import BenchError
from alibi_attention.bench.gpu.cases import GPU_CASES, gpu_trials
from alibi_attention.bench.gpu.logs import logs_of
from alibi_attention.bench.gpu.markdown import machine_lines, of_a_gpu
from alibi_attention.bench.gpu.preconditions import (
    LEAST_MINUTES,
    check_folder,
    check_minutes,
    check_output,
    what_triton_lacks,
    why_no_gpu,
)
from alibi_attention.bench.gpu.run import Budget, GpuRun, spare_workers
from alibi_attention.bench.gpu.verdicts import report
from alibi_attention.bench.results import Results, read_results

RESULTS = Path("benchmarks/results")
_LENGTH = re.compile(r"([1-9][0-9]*)([kK]?)")
DEFAULT_MINUTES = 7.5


def main(arguments: Sequence[str] | None = None) -> int:
    parser = _parser()
    # Cases may stand behind options too: --lengths 128K gpu-decode.
    options = parser.parse_intermixed_args(arguments)
    try:
        if options.list:
            _check_alone("--list", options)
            print("\n".join(_listed()))
            return 0
        if options.show is not None:
            _check_alone("--show", options)
            print(_shown(options.show))
            return 0
        cases, lengths = _cases_and_lengths(options)
        trials = gpu_trials(cases, lengths)
        _check(options, cases, lengths)
    except BenchError as error:
        parser.error(str(error))
    why = why_no_gpu()
    if why is not None:
        print(f"{parser.prog}: error: {why}", file=sys.stderr)
        return 2
    lacking = what_triton_lacks()
    if lacking is not None:
        print(f"{parser.prog}: without {lacking} Triton starts only what its cache holds", file=sys.stderr)
    output = options.output or RESULTS / f"gpu-{_slug(torch.cuda.get_device_name(0))}-{_now()}.json"
    run = GpuRun(
        [] if options.no_benchmarks else trials, output, budget=_budget(options.minutes, options.no_benchmarks),
        with_suite=not options.no_suite, workers=spare_workers(), tell=_say,
    )  # fmt: skip
    try:
        with _terminated_as_interrupted():
            results = run.run()
    except KeyboardInterrupt:
        print(
            f"Stopped. What was known until then is in {output}, marked incomplete; --show reads it.", file=sys.stderr
        )
        return 130
    written = f"{output} ({results.status}, {results.seconds:.0f} s), what processes wrote to {logs_of(output)}"
    print(f"\n{report(results)}\n\nWritten to {written}")
    return 0 if _is_sound(results, options.no_suite) else 1


def _is_sound(results: Results, no_suite: bool) -> bool:
    """Whether what was asked for was done at all, and no check failed; a missed target is a result like any other."""
    suite = results.suite
    broken = suite.get("failed") or suite.get("fault") or (suite.get("reason") and not no_suite)
    return not broken and "last words" not in (results.machine.get("gpu") or {})


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="benchmarks/gpu.py",
        description="Check the Triton kernels on this machine's GPU and measure them against the peers there, "
        "in under eight minutes. Needs torch and Triton, and what Triton itself builds with at run time: a C compiler "
        "and Python's headers.",
    )
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"some of {', '.join(GPU_CASES)}; all by default")
    parser.add_argument(
        "--lengths", type=_lengths, default=[], metavar="KEYS",
        help="keys in tokens, joined by commas, as in 8K,131072, in place of each case's own: what a run did not "
        "reach, for another",
    )  # fmt: skip
    parser.add_argument(
        "--output",
        type=Path,
        help="a new .json file, with logs beside it; benchmarks/results/gpu-NAME-DATE.json by default",
    )
    parser.add_argument(
        "--minutes", type=float, default=DEFAULT_MINUTES,
        help=f"for everything, {LEAST_MINUTES:g} or more; {DEFAULT_MINUTES:g} by default. No check is begun "
        "after 140 s or, where there is more time or too little for that, after a third of it; what the checks do not "
        "need, the benchmarks have",
    )  # fmt: skip
    parser.add_argument("--no-suite", action="store_true", help="no checks, benchmarks alone")
    parser.add_argument("--no-benchmarks", action="store_true", help="no benchmarks, checks alone, in all of the time")
    parser.add_argument("--list", action="store_true", help="cases with lengths, peers and targets; measure nothing")
    parser.add_argument("--show", type=Path, metavar="FILE.json", help="print the report of a file; needs no GPU")
    return parser


def _cases_and_lengths(options: argparse.Namespace) -> tuple[list[str], list[int]]:
    """Numbers among the cases are lengths where there is --lengths before them: no case is named like one."""
    cases, lengths = list(options.cases), list(options.lengths)
    if lengths:
        lengths += [_length(word) for word in cases if _LENGTH.fullmatch(word)]
        cases = [word for word in cases if not _LENGTH.fullmatch(word)]
    return cases, list(dict.fromkeys(lengths))


def _check(options: argparse.Namespace, cases: Sequence[str], lengths: Sequence[int]) -> None:
    """Refuse what could come to nothing."""
    check_minutes(options.minutes)
    if options.output is not None:
        check_output(options.output)
    check_folder(options.output or RESULTS / "gpu.json")
    if options.no_benchmarks:
        without = (("--no-suite", options.no_suite), ("CASE", cases), ("--lengths", lengths))
        named = [name for name, given in without if given]
        if named:
            remedy = "leave out one of them"
            raise BenchError("--no-benchmarks", expected="checks to run and no more", got=named[0], remedy=remedy)


def _check_alone(name: str, options: argparse.Namespace) -> None:
    """Refuse beside --list and --show what neither would look at."""
    for other, given in (("CASE", options.cases), ("--lengths", options.lengths), ("--output", options.output)):
        if given:
            raise BenchError(name, expected="to stand alone", got=other, remedy="leave out one of them")


def _shown(path: Path) -> str:
    try:
        results = read_results(path)
    except BenchError as error:
        # The reader speaks of files of any benchmark.
        remedy = error.remedy.replace("files that alibi bench wrote", "a file that benchmarks/gpu.py wrote")
        raise BenchError("--show", expected="a file of results", got=error.got, remedy=remedy) from None
    if not of_a_gpu(results):
        remedy = f"alibi bench report {path} reads it"
        raise BenchError("--show", expected="a file of benchmarks/gpu.py", got=f"{path}, another's", remedy=remedy)
    lines = [line.replace("**", "") for line in machine_lines(results)]
    return "\n".join([*lines, "", report(results)])


def _listed() -> Iterator[str]:
    for case in GPU_CASES.values():
        yield f"{case.name}: {case.title}"
        yield f"    keys {', '.join(map(short, case.lengths))}; against {', '.join(case.peers)}"
        for peer, ratios in case.targets.items():
            by_dim = (
                f"D={dim} "
                + ", ".join(f"{short(keys)} {ratios[dim, keys]:g}x" for keys in case.lengths if (dim, keys) in ratios)
                for dim in case.head_dims
            )
            yield f"    asked against {peer}: {'; '.join(by_dim)}"


def _lengths(text: str) -> list[int]:
    return [_length(part.strip()) for part in text.split(",")]


def _length(text: str) -> int:
    """A number of tokens; K is 1024 of them."""
    found = _LENGTH.fullmatch(text)
    if found is None:
        raise argparse.ArgumentTypeError(f"expected numbers of tokens joined by commas, such as 8K,8192, got {text!r}")
    return int(found.group(1)) * (1024 if found.group(2) else 1)


def _budget(minutes: float, checks_alone: bool) -> Budget:
    base = Budget()
    whole = 60.0 * minutes - 5.0
    third = whole / 3.0 if whole > base.whole else min(base.suite, whole / 3.0)
    return replace(base, whole=whole, suite=whole - 40.0 if checks_alone else third)


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
