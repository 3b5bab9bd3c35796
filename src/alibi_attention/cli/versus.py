"""``alibi versus``: ALiBi against RoPE, in one table."""

from __future__ import annotations

import signal
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from alibi_attention.cli.bench_values import bench_errors, read_length, split_names, wide_console
from alibi_attention.cli.errors import laboratory_errors, refuse
from alibi_attention.cli.extras import require
from alibi_attention.lab.numerals import whole_number

if TYPE_CHECKING:
    from alibi_attention.bench.versus.results import Comparison, Trained
    from alibi_attention.bench.versus.run import Plan


_COMPARED = "What is compared"
_SIZES = "Sizes"
_MEASUREMENT = "Measurement"
_TABLE = "Table"


def _option(panel: str, text: str, **more: Any) -> Any:
    return typer.Option(help=text, rich_help_panel=panel, **more)


def versus(
    context: typer.Context,
    methods: Annotated[
        str, _option(_COMPARED, "Position methods, joined by commas; or all.", metavar="NAMES")
    ] = "alibi,rope",
    decoder: Annotated[
        list[Path] | None,
        _option(
            _COMPARED, "Complete run of alibi extrapolate; once for each seed.", metavar="RUN", show_default="none"
        ),
    ] = None,
    encoder: Annotated[
        list[Path] | None,
        _option(_COMPARED, "Complete run with --objective masked; once for each seed.", metavar="RUN"),
    ] = None,
    phases: Annotated[
        str, _option(_COMPARED, "What is timed, of training, prefill and decode.", metavar="NAMES")
    ] = "training,prefill,decode",
    bare: Annotated[
        Path | None,
        _option(_COMPARED, "Kernels built without the bias (make bare), for the price of the bias.", metavar="FILE.so"),
    ] = None,
    lengths: Annotated[
        str, _option(_SIZES, "Lengths of the timings, joined by commas.", metavar="LENGTHS")
    ] = "512,2K,8K",
    memory_length: Annotated[
        str, _option(_SIZES, "Length at which peak memory is measured; 0 for nowhere.", metavar="LENGTH")
    ] = "32K",
    heads: Annotated[int, _option(_SIZES, "Attention heads.")] = 8,
    head_dim: Annotated[int, _option(_SIZES, "Width of a head.")] = 64,
    threads: Annotated[
        int | None, _option(_MEASUREMENT, "Threads of torch.", show_default="the processors there are")
    ] = None,
    repeats: Annotated[int, _option(_MEASUREMENT, "Rounds; calls of seconds get fewer.")] = 15,
    quick: Annotated[
        bool,
        typer.Option(
            "--quick", help="Short samples and few rounds: to see that it works.", rich_help_panel=_MEASUREMENT
        ),
    ] = False,
    output: Annotated[
        Path | None,
        _option(_TABLE, "Folder to write to, new.", metavar="FOLDER", show_default="versus/DATE-TIME"),
    ] = None,
    table: Annotated[
        Path | None,
        _option(_TABLE, "Measure nothing: the table of a versus.json that was written before.", metavar="FILE.json"),
    ] = None,
    page: Annotated[
        Path | None, _option(_TABLE, "Fill the table into a page that marks its place, too.", metavar="PAGE.md")
    ] = None,
) -> None:
    """ALiBi against RoPE: parameters, price of the positions, time, memory, and loss beyond the trained length.

    Writes versus.md and versus.json. The price is attention with the positions less the same kernel without them, in
    training, prefill and decode. Runs of the laboratory add how decoders and encoders extrapolate: bits beside ALiBi's,
    and usable lengths by perplexity and by recall.

    A page marks the table's place with lines `<!-- versus -->` and `<!-- end of versus -->`.
    """
    require("lab")
    folder = output or Path("versus") / f"{datetime.now(timezone.utc):%Y-%m-%d-%H%M%S}"
    with bench_errors(), laboratory_errors(folder, again="a new measurement"):
        from alibi_attention.bench.versus.page import fill_page, page_text, table_text
        from alibi_attention.bench.versus.results import read_comparison
        from alibi_attention.lab.files import write_text

        if table is not None:
            _refuse_measuring(context)
            if output is not None and output.exists():
                raise refuse("--output", f"expected a new folder, got {output}, which exists", "choose another")
            found = read_comparison(table)
        else:
            plan = _plan(
                methods, phases, lengths, memory_length, heads, head_dim, bare, threads, repeats, quick,
                _trained(decoder or [], encoder or []),
            )  # fmt: skip
            found, stopped = _measure(plan, folder / "versus.json")
        text = table_text(found)
        typer.echo(text)
        if table is None or output is not None:
            write_text(folder / "versus.md", page_text(found))
            typer.echo(f"Written to {folder}: versus.md" + (", versus.json" if table is None else ""))
        if page is not None:
            fill_page(found, page)
            typer.echo(f"Filled into {page}")
        if table is None and stopped is not None:
            typer.echo("Stopped. What was measured until then is in both, marked incomplete.", err=True)
            raise typer.Exit(128 + stopped)


def _refuse_measuring(context: typer.Context) -> None:
    """What says how to measure says nothing of a table that was measured before."""
    for name in context.params:
        source = context.get_parameter_source(name)
        if name not in ("table", "output", "page") and source is not None and source.name == "COMMANDLINE":
            complaint = "expected only --output and --page beside --table, which measures nothing"
            raise refuse(f"--{name.replace('_', '-')}", complaint, "leave it out, or --table to measure anew")


def _trained(decoders: list[Path], encoders: list[Path]) -> list[Trained]:
    from alibi_attention.bench.versus.trained import read_trained

    kinds = (("decoder", "next", decoders), ("encoder", "masked", encoders))
    return [read_trained(roots, objective, flag) for flag, objective, roots in kinds if roots]


def _plan(
    methods: str, phases: str, lengths: str, memory_length: str, heads: int, head_dim: int, bare: Path | None,
    threads: int | None, repeats: int, quick: bool, trained: list[Trained],
) -> Plan:  # fmt: skip
    from alibi_attention.bench.errors import BenchError
    from alibi_attention.bench.inputs import available_memory
    from alibi_attention.bench.machine import usable_cores
    from alibi_attention.bench.run import check_threads
    from alibi_attention.bench.timing import Settings
    from alibi_attention.bench.versus.results import PHASES
    from alibi_attention.bench.versus.run import Plan, check, open_bare
    from alibi_attention.lab.positions import position_methods

    known = position_methods()
    names = list(known) if methods == "all" else split_names(methods)
    for name in names:
        if name not in known:
            remedy = f"choose from {', '.join(known)}, or all"
            raise BenchError("methods", expected="names of position methods", got=repr(name), remedy=remedy)
    wanted = split_names(phases)
    for name in wanted:
        if name not in PHASES:
            remedy = f"choose from {', '.join(PHASES)}"
            raise BenchError("phases", expected="phases of a model's life", got=repr(name), remedy=remedy)
    if not 1 <= repeats <= 1000:
        raise BenchError("repeats", expected="1 to 1000", got=str(repeats), remedy="such as --repeats 15")
    threads = usable_cores() if threads is None else threads
    check_threads(threads)
    settings = Settings(
        repeats=min(repeats, 3) if quick else repeats, least=0.02 if quick else 0.2, budget=2.0 if quick else 20.0,
        memory_budget=available_memory() // 2,
    )  # fmt: skip
    plan = Plan(
        methods=list(dict.fromkeys(names)), phases=[phase for phase in PHASES if phase in wanted],
        lengths=[read_length(text) for text in split_names(lengths)], memory_length=_memory_length(memory_length),
        heads=heads, head_dim=head_dim, threads=threads, settings=settings, quick=quick,
        bare=None if bare is None else open_bare(bare), trained=trained,
    )  # fmt: skip
    check(plan)
    return plan


def _memory_length(text: str) -> int | None:
    from alibi_attention.bench.errors import BenchError

    try:
        return whole_number(text) or None
    except ValueError:
        raise BenchError("memory-length", expected="a number of tokens", got=repr(text), remedy="such as 32K") from None


def _measure(plan: Plan, output: Path) -> tuple[Comparison, int | None]:
    """The comparison, and the signal that stopped it, if one did."""
    from alibi_attention.bench.versus.results import read_comparison
    from alibi_attention.bench.versus.run import compare
    from alibi_attention.lab.errors import RunInterrupted
    from alibi_attention.lab.interruption import Interruption

    console = wide_console()

    def say(text: str) -> None:
        console.print(text, style="dim", highlight=False)

    with Interruption() as interruption:
        try:
            return compare(plan, output, say=say, goes_on=interruption.check), None
        except RunInterrupted as error:
            return read_comparison(output), error.signal_number
        except KeyboardInterrupt:
            if not output.is_file():
                raise
            return read_comparison(output), int(signal.SIGINT)
