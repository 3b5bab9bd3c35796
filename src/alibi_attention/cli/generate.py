"""``alibi generate``: text from a model, as it comes."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from alibi_attention.cli.errors import refuse
from alibi_attention.cli.extras import require

if TYPE_CHECKING:
    from alibi_attention.generation.loop import Outcome
    from alibi_attention.generation.source import CacheKind, Source

_TEXT = "Text"
_MODEL = "Model"


def generate(
    source: Annotated[
        Path, typer.Argument(help="Folder of a run of alibi extrapolate, or of a Transformers model with ALiBi.")
    ],
    prompt: Annotated[
        str | None, typer.Argument(help="Text to continue; - reads it from standard input, as a pipe does.")
    ] = None,
    prompt_file: Annotated[
        Path | None, typer.Option(help="Read the prompt from this UTF-8 file.", rich_help_panel=_TEXT)
    ] = None,
    max_tokens: Annotated[
        int, typer.Option(help="Tokens to generate; 0 goes on until the text ends.", rich_help_panel=_TEXT)
    ] = 256,
    stop: Annotated[
        list[str] | None,
        typer.Option(help="End before this string; may be given again.", metavar="TEXT", rich_help_panel=_TEXT),
    ] = None,
    past_end: Annotated[
        bool, typer.Option("--past-end", help="Go on where the model ends a text.", rich_help_panel=_TEXT)
    ] = False,
    temperature: Annotated[
        float,
        typer.Option(
            help="Divides the logits; 0 takes the likeliest token, which no --top-k, --top-p or --seed changes.",
            rich_help_panel=_TEXT,
        ),
    ] = 0.8,
    top_k: Annotated[int, typer.Option(help="Only the k likeliest tokens; 0 for all.", rich_help_panel=_TEXT)] = 0,
    top_p: Annotated[
        float, typer.Option(help="Only the likeliest tokens of this total probability.", rich_help_panel=_TEXT)
    ] = 1.0,
    seed: Annotated[
        int | None,
        typer.Option(
            help="Seed; the same seed gives the same text again.",
            show_default="another text each time",
            rich_help_panel=_TEXT,
        ),
    ] = None,
    cache: Annotated[
        str,
        typer.Option(
            metavar="full|horizon", help="Keep every key, or those that can still matter.", rich_help_panel=_MODEL
        ),
    ] = "full",
    method: Annotated[
        str | None,
        typer.Option(help="Position method of a run.", show_default="alibi", rich_help_panel=_MODEL),
    ] = None,
    device: Annotated[str, typer.Option(help="Device of a Transformers model.", rich_help_panel=_MODEL)] = "cpu",
    dtype: Annotated[
        str | None,
        typer.Option(help="Dtype of a Transformers model.", show_default="that of its weights", rich_help_panel=_MODEL),
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but the text.")] = False,
) -> None:
    """Continue a prompt: text goes to standard output as it comes, speed and cache size to standard error.

    --cache horizon keeps memory constant however long the text grows. A Falcon then has the exact line of its
    biases, not their rounding to bfloat16, which grows with the text.

    Without an end, until Ctrl-C, which ends it cleanly once it has started:

    alibi generate RUN --cache horizon --max-tokens 0 --past-end
    """
    require("lab")
    _check(max_tokens, stop, cache, seed)
    text = _prompt(prompt, prompt_file, quiet)
    from alibi_attention.generation.loop import Outcome
    from alibi_attention.generation.loop import generate as run
    from alibi_attention.generation.sampling import Sampling
    from alibi_attention.generation.source import kind_of, open_source
    from alibi_attention.lab.errors import LabError

    outcome = Outcome()
    try:
        sampling = Sampling(temperature, top_k, top_p)
        kind: CacheKind = "horizon" if cache == "horizon" else "full"
        if kind_of(source) == "transformers":
            require("transformers")
        opened = open_source(source, method=method, cache=kind, device=device, dtype=dtype)
        run(
            opened, text, sampling, outcome, write=_write, max_tokens=max_tokens or None, stops=stop or (),
            past_end=past_end, seed=seed,
        )  # fmt: skip
    except LabError as error:
        positional = {
            "source": "SOURCE", "run": "SOURCE", "output": "SOURCE", "prompt": "PROMPT", "transformers": "Transformers",
        }  # fmt: skip
        flag = positional.get(error.argument) or f"--{error.argument.replace('_', '-')}"
        raise refuse(flag, error.complaint, error.remedy) from None
    except KeyboardInterrupt:
        if outcome.prompt_tokens and not quiet:
            _report(opened, outcome)
        raise typer.Exit(128 + signal.SIGINT) from None
    except BrokenPipeError:
        # Whoever read the text has read enough. Python must not try to flush what is left.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(128 + signal.SIGPIPE) from None
    if not quiet:
        _report(opened, outcome)


def _check(max_tokens: int, stop: list[str] | None, cache: str, seed: int | None) -> None:
    if max_tokens < 0:
        raise refuse("--max-tokens", f"expected 0 or more, got {max_tokens}", "0 goes on until the text ends")
    if stop and "" in stop:
        raise refuse("--stop", "expected some text, got an empty string", "leave it out to stop nowhere")
    if cache not in ("full", "horizon"):
        raise refuse("--cache", f"expected full or horizon, got {cache!r}", "horizon keeps memory constant")
    if seed is not None and not 0 <= seed < 2**63:
        raise refuse("--seed", f"expected a whole number from 0 to 2^63 - 1, got {seed}", "leave it out for any")


def _prompt(prompt: str | None, prompt_file: Path | None, quiet: bool) -> str:
    if prompt is not None and prompt_file is not None:
        raise refuse("--prompt-file", "expected without a prompt on the command line, got both", "give one of them")
    if prompt_file is not None:
        try:
            return prompt_file.read_text(encoding="utf-8")
        except OSError as error:
            complaint = f"expected a file that can be read, got {prompt_file} ({error.strerror})"
            raise refuse("--prompt-file", complaint, "check the spelling and the folder you are in") from None
        except UnicodeDecodeError:
            complaint = f"expected UTF-8 text, got {prompt_file}, which is binary or in another encoding"
            raise refuse("--prompt-file", complaint, "convert it with `iconv -t utf-8`") from None
    if prompt == "-" or (prompt is None and not sys.stdin.isatty()):
        if prompt is None and not quiet:
            # Where nobody means to write into it, an open pipe would be waited for without a word.
            typer.echo("reading the prompt from standard input", err=True)
        try:
            return sys.stdin.buffer.read().decode("utf-8")
        except UnicodeDecodeError:
            complaint = "expected UTF-8 text on standard input, got another encoding"
            raise refuse("PROMPT", complaint, "convert it with `iconv -t utf-8`") from None
        except KeyboardInterrupt:
            raise typer.Exit(128 + signal.SIGINT) from None
    return prompt or ""


def _write(piece: str) -> None:
    # Bytes, whatever encoding the terminal claims: the text is UTF-8.
    sys.stdout.buffer.write(piece.encode("utf-8", "replace"))
    sys.stdout.buffer.flush()


def _report(source: Source, outcome: Outcome) -> None:
    speed = "" if outcome.speed is None else f" ({outcome.speed:,.0f} tokens/s)"
    typer.echo(
        f"\n{source.name}: {_tokens(outcome.tokens)} in {outcome.seconds:.1f} s{speed}, "
        f"prompt {_tokens(outcome.prompt_tokens)} in {outcome.prompt_seconds:.1f} s; ended by {outcome.reason}",
        err=True,
    )
    caches = source.horizon_caches()
    held = source.bytes_held
    line = f"cache: {held / 2**20:,.1f} MiB" if held >= 2**20 else f"cache: {held / 2**10:,.1f} KiB"
    if caches:
        certificates = [cache.certificate() for cache in caches]
        evicted = max(int(each.evicted.max()) for each in certificates)
        dropped = max(each.dropped_share for each in certificates)
        line += f", horizon: up to {_tokens(evicted)} forgotten" if evicted else ", horizon: nothing forgotten"
        line += f", at most {dropped:.2g} of any row's softmax mass" if evicted else ""
    typer.echo(line, err=True)


def _tokens(number: int) -> str:
    return f"{number:,} token{'' if number == 1 else 's'}"
