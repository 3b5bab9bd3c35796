"""One way for every command to refuse and to stop."""

from __future__ import annotations

import re
import shlex
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType

import typer

# What a shell expects of a process that met a wrong usage.
USAGE = 2


def refuse(flag: str, complaint: str, remedy: str) -> typer.Exit:
    """Print an error about one flag; raise what is returned."""
    typer.echo(f"error: {flag}: {complaint}\n  {remedy}", err=True)
    return typer.Exit(USAGE)


@contextmanager
def laboratory_errors(
    run: Path, *, again: str | None = None, names: Mapping[str, str] = MappingProxyType({"run": "--output"})
) -> Iterator[None]:
    """Around a command of the laboratory: wrong input and interruptions end it in words, without a traceback.

    Args:
        run: the folder in which an interrupted run can be continued.
        again: what continues the command, where that is not `alibi extrapolate --resume`.
        names: what the command calls arguments that are no flags of their own name.
    """
    from alibi_attention.lab.errors import LabError, RunInterrupted, is_out_of_memory
    from alibi_attention.lab.files import NoRoomError

    try:
        yield
    except NoRoomError as error:
        flag = names.get(error.argument, f"--{error.argument}")
        raise refuse(flag, error.complaint, f"{error.means}. {_how_to_continue(run, again)}") from None
    except LabError as error:
        flag = names.get(error.argument, f"--{error.argument.replace('_', '-')}")
        raise refuse(flag, error.complaint, error.remedy) from None
    except RunInterrupted as stopped:
        typer.echo(f"Stopped. {_how_to_continue(run, again)}", err=True)
        raise typer.Exit(128 + stopped.signal_number) from None
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        raise refuse("files", f"expected to read and write, got {error.strerror or error}{where}",
                     f"mend that; what was written is kept. {_how_to_continue(run, again)}") from None  # fmt: skip
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        remedy = "lower --width, --batch-size or the lengths; what was written is kept"
        raise refuse("memory", f"expected room for the model and what it computes, got {_asked_for(error)}", remedy
                     ) from None  # fmt: skip
    except KeyboardInterrupt:
        typer.echo(f"Stopped at once. {_how_to_continue(run, again)}", err=True)
        raise typer.Exit(128 + signal.SIGINT) from None


def _asked_for(error: BaseException) -> str:
    """How much memory was refused, where the error says so."""
    found = re.search(r"tried to allocate ([\d.]+) ?(\w+)", str(error), re.IGNORECASE)
    if found is None:
        return "an allocation that was refused"
    size, unit = found.groups()
    return f"{int(size) / 2**30:,.0f} GiB refused" if unit == "bytes" else f"{size} {unit} refused"


def _how_to_continue(run: Path, again: str | None) -> str:
    if again is not None:
        return f"Continue with {again}."
    if not (run / "config.json").exists():
        return "Nothing had begun."
    return "Continue with\n  " + shlex.join(["alibi", "extrapolate", "--resume", "--output", str(run)])
