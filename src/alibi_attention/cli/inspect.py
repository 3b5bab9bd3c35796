"""``alibi inspect``: what a model's configuration says of its linear biases."""

from __future__ import annotations

import json
import math
import shutil
import textwrap
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from alibi_attention.cli.errors import refuse
from alibi_attention.cli.extras import require
from alibi_attention.cli.lab_values import whole_numbers

if TYPE_CHECKING:
    from rich.console import Console

    from alibi_attention.integrations.inspect import AlibiModel, Report

# What is found out is an answer, also where it is no; a wrong usage ends with 2.
NOT_ALIBI = 1
# More heads than this are shown by some of them.
HEADS_SHOWN = 16


def inspect(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="A config.json, the folder of a model or of a laboratory run, or OWNER/NAME of the Hugging Face Hub.",
            show_default=False,
        ),
    ],
    lengths: Annotated[
        str | None,
        typer.Option(
            metavar="LENGTHS",
            help="Lengths to estimate the cache for, joined by commas.",
            show_default="the model's own, and 4, 16 and 64 times that",
        ),
    ] = None,
    logit_bound: Annotated[
        float | None,
        typer.Option(
            help="Largest product of the norms of a query and a key, times the scale.", show_default="sqrt(head_dim)"
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, with every head.")] = False,
) -> None:
    """Print a model's slopes, how far they let it see, what its cache takes, and its pitfalls.

    Exit status: 0 for a model with linear biases, 1 for any other, 2 for input that cannot be read.
    """
    require("cli")
    from alibi_attention.integrations.inspect import NotAlibi, report

    try:
        described = _describe(model)
    except NotAlibi as error:
        if as_json:
            typer.echo(json.dumps({"alibi": False, "reason": str(error)}))
        else:
            reason = textwrap.fill(str(error), shutil.get_terminal_size().columns - 2, subsequent_indent="  ")
            typer.echo(f"{model} is not known to have linear biases.\n  {reason}", err=True)
        raise typer.Exit(NOT_ALIBI) from None
    try:
        result = report(described, lengths=_lengths(lengths), logit_bound=logit_bound)
    except ValueError as error:
        argument, _, complaint = str(error).partition(": ")
        flag = f"--{argument.replace('_', '-')}"
        raise refuse(flag, complaint, "leave it out to take the default") from None
    if as_json:
        typer.echo(json.dumps(_as_json(result), indent=2))
    else:
        _print(result)


def _describe(model: str) -> AlibiModel:
    from alibi_attention.integrations.inspect import NotAlibi, describe, read_config

    path = Path(model)
    with suppress(OSError):  # which read_config puts into words
        if path.is_dir() and not (path / "config.json").is_file() and (path.parent / "config.json").is_file():
            return _describe_run(path)
    try:
        config = read_config(model)
        if isinstance(config, dict) and "schema_version" in config:
            return _describe_run(path if path.is_dir() else path.parent)
        return describe(config)
    except NotAlibi:
        raise
    except ValueError as error:
        # A value that is quoted may hold a semicolon too.
        text, _, remedy = str(error).rpartition("; ")
        complaint, remedy = (text, remedy) if text else (remedy, "")
        raise refuse("MODEL", complaint, remedy or "name the config.json of a model") from None


def _describe_run(path: Path) -> AlibiModel:
    require("lab")
    from alibi_attention.lab.errors import LabError
    from alibi_attention.lab.trained import describe_run, find_trained

    try:
        return describe_run(find_trained(path))
    except LabError as error:
        raise refuse("MODEL", error.complaint, error.remedy) from None


def _lengths(text: str | None) -> list[int] | None:
    return None if text is None else whole_numbers("--lengths", text)


def _as_json(result: Report) -> dict[str, Any]:
    model = result.model

    def finite(values: list[float]) -> list[float | None]:
        return [value if math.isfinite(value) else None for value in values]

    return {
        "alibi": True,
        "family": model.family,
        "layers": model.layers,
        "heads": model.heads,
        "kv_heads": model.kv_heads,
        "head_dim": model.head_dim,
        "causal": model.causal,
        "scale": model.scale,
        "length": model.length,
        "dtype": model.dtype,
        "scheme": model.scheme,
        "bias_max": model.bias_max,
        "slope_note": model.slope_note,
        "slopes": model.slopes.tolist(),
        "spans": {"nats": [1.0, 5.0, 10.0], "tokens": [finite(row) for row in result.spans.tolist()]},
        "horizon": {
            "tolerance": result.tolerance,
            "logit_bound": result.logit_bound,
            "typical": finite(result.typical.tolist()),
            "guaranteed": finite(result.guaranteed.tolist()),
        },
        "cache": [
            {
                "length": memory.length,
                "full_bytes": memory.full,
                "horizon_bytes": memory.horizon,
                "keys_read": memory.keys_read,
            }
            for memory in result.memory
        ],
        "element_bytes": result.element_bytes,
        "chunk": result.chunk,
        "traps": [{"code": trap.code, "text": trap.text} for trap in model.traps],
    }


def _print(result: Report) -> None:
    from rich.console import Console

    console = Console(highlight=False)
    model = result.model
    shared = "" if model.kv_heads == model.heads else f" on {model.kv_heads} of keys and values"
    length = f"{model.length:,} tokens ({model.length_key})" if model.length else "length not said"
    console.print(
        f"{model.family}: {model.layers} layers, {model.heads} heads{shared} of {model.head_dim}, "
        f"{'causal' if model.causal else 'both ways'}, {model.dtype or 'dtype not said'}, {length}"
    )
    made = f"{model.scheme}, bias_max {model.bias_max:g}" if model.scheme and model.bias_max else "no known scheme"
    note = f"; {model.slope_note}" if model.slope_note else ""
    console.print(f"Slopes: {made}{note}\n")
    _print_heads(console, result)
    _print_memory(console, result)
    if model.traps:
        console.print("Pitfalls")
        for trap in model.traps:
            _print_item(console, trap.text)


def _print_item(console: Console, text: str) -> None:
    from rich.padding import Padding
    from rich.table import Table

    item = Table.grid(padding=(0, 1))
    item.add_row("-", text)
    console.print(Padding(item, (0, 0, 0, 2)))


def _print_heads(console: Console, result: Report) -> None:
    from rich.table import Table

    heads = result.model.heads
    shown = list(range(heads))
    if heads > HEADS_SHOWN:
        steepest_first = result.model.slopes.argsort(descending=True).tolist()
        shown = [steepest_first[round(i * (heads - 1) / (HEADS_SHOWN - 1))] for i in range(HEADS_SHOWN)]
    table = Table(box=None, pad_edge=False)
    for title in ("  head", "slope", "1 nat", "5 nats", "10 nats", "typical", "guaranteed"):
        table.add_column(title, justify="right")
    for head in shown:
        windows = [*result.spans[head].tolist(), float(result.typical[head]), float(result.guaranteed[head])]
        table.add_row(str(head), f"{float(result.model.slopes[head]):.6g}", *map(_tokens, windows))
    windows = [*result.spans.mean(0).tolist(), float(result.typical.mean()), float(result.guaranteed.mean())]
    table.add_row("mean", "", *map(_tokens, windows))
    console.print(table)
    if heads > HEADS_SHOWN:
        console.print(f"  {HEADS_SHOWN} of {heads} heads, from the steepest to the flattest; the mean is over all")
    both = "" if result.model.causal else ", to either side"
    share = f"2^{math.log2(result.tolerance):g}"
    console.print(f"\n1, 5, 10 nats: tokens until the bias alone has taken as much from a score{both}.")
    console.print(f"typical, guaranteed: keys{both} beyond which lies at most {share} of a row's weight, if")
    console.print(f"  guaranteed  scale |q| |k| is at most {result.logit_bound:.4g} (--logit-bound)")
    console.print("  typical     logits also have variance 1, as of unit-normal queries and keys")
    console.print("Trained models differ; certify() measures real queries and keys.\n")


def _print_memory(console: Console, result: Report) -> None:
    from rich.table import Table

    if not result.memory:
        console.print("No cache: an encoder reads each text once.\n")
        return
    assumed = " (assumed)" if result.element_is_assumed else ""
    console.print(f"Cache of one sequence, {result.element_bytes} bytes a number{assumed}")
    table = Table(box=None, pad_edge=False)
    for title in ("  tokens", "full", "HorizonCache", "keys a head reads for a token"):
        table.add_column(title, justify="right")
    for memory in result.memory:
        share = f"{memory.horizon / memory.full:.0%}"
        table.add_row(
            f"{memory.length:,}", _bytes(memory.full), f"{_bytes(memory.horizon)} {share:>5}", _tokens(memory.keys_read)
        )
    console.print(table)
    console.print(
        "\nfull: all keys and values. HorizonCache: all that it allocates, with mode='guaranteed', caps on norms that "
        f"keep to the bound, and tokens appended {result.chunk} at a time, the first of mean key 0. It makes room "
        "ahead: while windows fill it may take more than all keys would.\n"
    )


def _tokens(number: float) -> str:
    return f"{number:,.0f}" if math.isfinite(number) else "all"


def _bytes(number: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if number < 1024 or unit == "TiB":
            return f"{number:.0f} {unit}" if number >= 100 or unit == "B" else f"{number:.3g} {unit}"
        number /= 1024
    raise AssertionError
