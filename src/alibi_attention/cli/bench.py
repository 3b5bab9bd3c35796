"""``alibi bench``: how fast, against whom, and where we lose."""

from __future__ import annotations

import signal
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from datetime import datetime, timezone
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from alibi_attention.cli.bench_values import bench_errors, read_length, split_names, wide_console
from alibi_attention.cli.commands import Command
from alibi_attention.cli.errors import refuse

if TYPE_CHECKING:
    from rich.console import Console

    from alibi_attention.bench.case import Case, Trial
    from alibi_attention.bench.results import Results
    from alibi_attention.bench.run import Bench

RESULTS = Path("benchmarks/results")


class _MeasureByDefault(TyperGroup):
    """``alibi bench CASES...`` is ``alibi bench run CASES...``."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return super().parse_args(ctx, args if args and args[0] in self.commands else ["run", *args])


class _WithReport(Command):
    """The way to the other command stands in the usage of this one, which has no name of its own."""

    def get_usage(self, ctx: Any) -> str:
        name = ctx.parent.command_path if ctx.parent is not None else "alibi bench"
        return f"Usage: {name} [OPTIONS] [CASES]...\n        {name} report [OPTIONS] FILE.json..."


bench = typer.Typer(cls=_MeasureByDefault, help="Measure speed and memory against the strongest peers on this machine.")


@bench.command("run", cls=_WithReport)
def run(
    cases: Annotated[list[str] | None, typer.Argument(metavar="CASES", help="Names of cases; all by default.")] = None,
    show: Annotated[bool, typer.Option("--list", help="List cases and peers, measure nothing.")] = False,
    peers: Annotated[
        str | None, typer.Option(metavar="NAMES", help="Peers to compare with, joined by commas; all by default.")
    ] = None,
    lengths: Annotated[
        str | None, typer.Option(metavar="LENGTHS", help="Lengths in place of each case's own, such as 1K,8K.")
    ] = None,
    head_dims: Annotated[
        str | None, typer.Option(metavar="DIMS", help="Head dimensions to take of a case's own, such as 64.")
    ] = None,
    model: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Run folder of alibi extrapolate: the model of the trained cases."),
    ] = None,
    threads: Annotated[
        int | None, typer.Option(help="Threads of torch.", show_default="the processors there are")
    ] = None,
    repeats: Annotated[
        int | None, typer.Option(help="Rounds; calls of seconds get fewer.", show_default="7, or 3 with --quick")
    ] = None,
    patience: Annotated[
        float, typer.Option(help="Leave a peer out where a call of it takes longer, in seconds.")
    ] = 60.0,
    memory: Annotated[bool, typer.Option("--memory/--no-memory", help="Measure peak memory, too.")] = True,
    default_alone: Annotated[
        bool, typer.Option("--default-alone", help="Of our backends, measure only the default one.")
    ] = False,
    output: Annotated[
        Path | None,
        typer.Option(help="File of results, new.", metavar="FILE.json", show_default=f"{RESULTS}/DATE-TIME.json"),
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Small sizes and few rounds: to see that it works.")] = False,
) -> None:
    """Measure speed and memory against the strongest peers on this machine.

    Writes every sample to a JSON file after every size; Ctrl-C keeps what there is.

    `alibi bench report FILE.json...` makes tables and figures of such files.
    """
    with bench_errors():
        from alibi_attention.bench.cases import pick_cases, pick_trials
        from alibi_attention.bench.peers import pick_peers

        picked = pick_cases(cases or [])
        names = pick_peers(split_names(peers))
        trials = pick_trials(
            picked, [read_length(text) for text in split_names(lengths)], quick,
            head_dims=[_head_dim(text) for text in split_names(head_dims)], model=model,
        )  # fmt: skip
        planned = _plan(trials, names, threads, repeats, patience, memory, quick, default_alone)
        if show:
            _list(planned, picked)
        else:
            _tell_untrained(picked, model)
            asked = {
                "cases": [case.name for case in picked], "lengths": lengths, "head_dims": head_dims,
                "model": None if model is None else model.name, "quick": quick,
            }  # fmt: skip
            _measure(planned, asked, output or _dated())


@bench.command("report", cls=Command)
def report(
    files: Annotated[list[Path], typer.Argument(metavar="FILE.json", help="Files of results.")],
    output: Annotated[
        Path | None, typer.Option(help="Folder of the report, new.", show_default="FILE-report beside the first")
    ] = None,
    page: Annotated[
        Path | None,
        typer.Option(metavar="PAGE.md", help="Fill the tables that this page marks, and draw its figures anew."),
    ] = None,
) -> None:
    """Tables in Markdown, and figures, from files of results; nothing is measured.

    A page marks its tables with lines `<!-- numbers: NAME -->` and `<!-- end of numbers -->`.
    """
    if find_spec("matplotlib") is None:
        raise refuse("report", "expected matplotlib, got an environment without it", "pip install matplotlib")
    with bench_errors():
        from alibi_attention.bench.report import fill_page, write_report

        if page is not None and output is not None:
            raise refuse("--page", "expected it without --output, got both", "run the command twice")
        if page is not None:
            written, apart = fill_page(files, page)
            for path, names in apart.items():
                told = f"{path}: measured with {', '.join(names)} set, so only tables that say so show it"
                typer.echo(told, err=True)
        else:
            written = write_report(files, output or files[0].with_name(f"{files[0].stem}-report"))
        typer.echo("Written: " + ", ".join(map(str, written)))


def _plan(
    trials: list[Trial],
    peers: list[str],
    threads: int | None,
    repeats: int | None,
    patience: float,
    memory: bool,
    quick: bool,
    default_alone: bool,
) -> Bench:
    from alibi_attention.bench.errors import BenchError
    from alibi_attention.bench.inputs import available_memory
    from alibi_attention.bench.machine import usable_cores
    from alibi_attention.bench.run import Bench, check_threads
    from alibi_attention.bench.timing import Settings

    threads = usable_cores() if threads is None else threads
    check_threads(threads)
    repeats = (3 if quick else 7) if repeats is None else repeats
    if not 1 <= repeats <= 1000:
        raise BenchError("repeats", expected="1 to 1000", got=str(repeats), remedy="such as --repeats 7")
    if not patience > 0.0:
        raise BenchError("patience", expected="seconds above 0", got=str(patience), remedy="such as --patience 60")
    settings = Settings(
        repeats=repeats,
        least=0.02 if quick else 0.2,
        budget=2.0 if quick else 20.0,
        patience=patience,
        # Half of what is free: one contestant's matrices, with room for inputs and the allocator.
        memory_budget=available_memory() // 2,
        measure_memory=memory and not quick,
        default_alone=default_alone,
    )
    return Bench(trials, peers, threads, settings)


def _measure(planned: Bench, asked: dict[str, Any], output: Path) -> None:
    from alibi_attention.bench.progress import Display
    from alibi_attention.bench.results import read_results
    from alibi_attention.lab.errors import RunInterrupted
    from alibi_attention.lab.interruption import Interruption

    planned.asked = asked
    console = wide_console()
    stopped = None
    with Interruption() as interruption:
        display = Display(console, planned, interruption.check)
        try:
            with display:
                results = planned.run(output, display.watch)
        except RunInterrupted as error:
            stopped = error.signal_number
        except KeyboardInterrupt:
            stopped = int(signal.SIGINT)
    display.tell()
    if stopped is not None:
        results = read_results(output)
    _tell(console, results, output)
    if stopped is not None:
        typer.echo(f"Stopped. What was measured until then is in {output}, marked incomplete.", err=True)
        raise typer.Exit(128 + stopped)


def _tell(console: Console, results: Results, output: Path) -> None:
    from alibi_attention.bench.report import LOSSES, losses_text, machine_text

    console.print(f"\n[bold]{LOSSES}[/bold]\n")
    console.print(losses_text(results), highlight=False, soft_wrap=True, markup=False)
    console.print(machine_text(results).replace("**", ""), highlight=False, soft_wrap=True, markup=False)
    console.print(f"Written to {output}; alibi bench report {output}", highlight=False, soft_wrap=True, markup=False)


def _tell_untrained(cases: list[Case], model: Path | None) -> None:
    left_out = [case.name for case in cases if case.trained and model is None]
    if left_out:
        typer.echo(f"Left out without --model FOLDER of alibi extrapolate: {', '.join(left_out)}.")


def _list(planned: Bench, cases: list[Case]) -> None:
    from rich.table import Table

    from alibi_attention.bench.case import short
    from alibi_attention.bench.peers import PEERS
    from alibi_attention.bench.run import expected_seconds

    console = wide_console()
    table = Table.grid(padding=(0, 3, 1, 0))
    # Names are there to be typed.
    table.add_column(no_wrap=True)
    table.add_column()

    def add(case: Case, lengths: Iterable[str], peers: Sequence[str], asked: Sequence[str], time: str) -> None:
        parts = [case.title, f"at {', '.join(lengths)}, {time}"]
        parts += [f"peers: {', '.join(peers)}"] * bool(peers)
        parts += [f"targets: {', '.join(asked)}".replace("_", " ")] * bool(asked)
        table.add_row(case.name, "\n".join(parts))

    total = 0.0
    for case in dict.fromkeys(trial.case.name for trial in planned.trials):
        trials = [trial for trial in planned.trials if trial.case.name == case]
        kind = trials[0].case
        seconds = sum(expected_seconds(each, planned.peers, planned.settings, planned.threads) for each in trials)
        total += seconds
        lengths = dict.fromkeys(short(trial.keys) for trial in trials)
        named = [name for name in kind.peers if name in planned.peers]
        asked = [f"speed against {' and '.join(kind.target.peers)}"] if kind.target else []
        asked += [name for name, value in asdict(kind.limits).items() if value is not None]
        add(kind, lengths, named, asked, f"about {seconds / 60:.1f} minutes")
    for untrained in (case for case in cases if case.trained and all(t.case.name != case.name for t in planned.trials)):
        lengths = dict.fromkeys(map(short, untrained.lengths))
        add(untrained, lengths, untrained.peers, (), "with --model FOLDER")
    console.print(table, highlight=False)
    threads = f"{planned.threads} thread{'s' * (planned.threads != 1)}"
    console.print(f"\nAbout {total / 60:.0f} minutes on {threads}.\n", highlight=False)
    table = Table(box=None, pad_edge=False)
    table.add_column("peer", no_wrap=True)
    for title in ("what it is", "ALiBi", "exact far away"):
        table.add_column(title)
    for name in planned.peers:
        peer = PEERS[name]
        exact = ("yes" if peer.exact else "no") if peer.alibi else "–"
        table.add_row(name, peer.title, "yes" if peer.alibi else "no", exact)
    console.print(table, highlight=False)


def _head_dim(text: str) -> int:
    from alibi_attention.bench.errors import BenchError

    if not (text.isascii() and text.isdigit()):
        raise BenchError("head-dims", expected="numbers joined by commas", got=repr(text), remedy="such as 64,128")
    return int(text)


def _dated() -> Path:
    return RESULTS / f"{datetime.now(timezone.utc):%Y-%m-%d-%H%M%S}.json"
