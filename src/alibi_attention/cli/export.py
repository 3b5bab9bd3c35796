"""``alibi export``: a trained decoder in the formats of other libraries."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from alibi_attention.cli.errors import refuse
from alibi_attention.cli.extras import require


class Format(str, Enum):
    """Spelled out, so that help needs no import."""

    mpt = "mpt"
    bloom = "bloom"
    gguf = "gguf"


_HOW_TO_READ = {
    Format.mpt: "transformers.AutoModelForCausalLM.from_pretrained({path!r}), or vLLM",
    Format.bloom: "transformers.AutoModelForCausalLM.from_pretrained({path!r})",
    Format.gguf: "llama.cpp, such as llama_cpp.Llama({path!r})",
}


def export(
    run: Annotated[
        Path, typer.Argument(metavar="RUN[/METHOD]", help="Folder of a run, or of a method in it.", show_default=False)
    ],
    format: Annotated[Format, typer.Option(help="What to write.", show_default=False)],  # noqa: A002
    output: Annotated[Path, typer.Option(help="Folder to write; new or empty.", show_default=False, metavar="FOLDER")],
    max_length: Annotated[
        int | None,
        typer.Option(
            help="Longest input to promise, in tokens; MPT in Transformers refuses longer ones.",
            show_default="the longest evaluation length",
        ),
    ] = None,
    approximate: Annotated[
        bool,
        typer.Option(
            "--approximate",
            help="mpt, bloom: accept another GELU (error function or tanh) than the model was trained with.",
        ),
    ] = False,
) -> None:
    """Write a trained ALiBi decoder as an MPT or BLOOM folder for Transformers, or as GGUF for llama.cpp."""
    require("lab")
    require("export")
    from alibi_attention.integrations.export import WRITERS
    from alibi_attention.lab.errors import LabError
    from alibi_attention.lab.trained import decoder_weights, find_trained

    try:
        trained = find_trained(run)
        decoder = decoder_weights(trained, max_length)
    except LabError as error:
        flag = "RUN" if error.argument == "run" else f"--{error.argument.replace('_', '-')}"
        raise refuse(flag, error.complaint, error.remedy) from None
    except OSError as error:
        complaint = f"expected a folder that can be read, got {run} ({error.strerror or error})"
        raise refuse("RUN", complaint, "check the spelling and the folder you are in") from None
    try:
        written = WRITERS[format.value](decoder, output, approximate=approximate)
    except ValueError as error:
        complaint, _, remedy = str(error).partition("; ")
        argument, _, complaint = complaint.partition(": ")
        flag = f"--{argument}" if argument in ("output", "approximate") else f"RUN: {argument}"
        raise refuse(flag, complaint, remedy) from None
    typer.echo(
        f"{trained.method} of {trained.folder.root}: {len(decoder.blocks)} layers, {decoder.heads} heads, "
        f"width {decoder.width}, {decoder.parameters:,} parameters, trained at {decoder.train_length} tokens"
    )
    typer.echo(f"Written to {written} for inputs of up to {decoder.max_length:,} tokens")
    typer.echo(f"Read it with {_HOW_TO_READ[format].format(path=str(written))}")
