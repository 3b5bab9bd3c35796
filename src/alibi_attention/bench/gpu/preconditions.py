"""What must hold before a run is begun: found out at once, for minutes on a borrowed device do not come back."""

from __future__ import annotations

import math
import os
import shutil
import sysconfig
import tempfile
from pathlib import Path

import torch

from alibi_attention.backends.triton import device as devices
from alibi_attention.bench.errors import BenchError

LEAST_MINUTES = 1.0


def check_minutes(minutes: float) -> None:
    """Refuse a time in which nothing can be found out: torch alone takes its seconds to load.

    Raises:
        BenchError: for less than a minute, or no number.
    """
    if not (math.isfinite(minutes) and minutes >= LEAST_MINUTES):
        expected, got = f"{LEAST_MINUTES:g} or more, for everything together", f"{minutes:g}"
        raise BenchError("--minutes", expected=expected, got=got, remedy="such as --minutes 7.5, the default")


def check_output(output: Path) -> None:
    """Refuse what could not be written when there is something to write.

    Raises:
        BenchError: for a file that exists or has another suffix.
    """
    if output.suffix != ".json":
        remedy = f"try {output.with_suffix('.json')}" if output.name else "name one"
        raise BenchError("--output", expected="a name ending in .json", got=str(output), remedy=remedy)
    if output.exists():
        got = f"{output}, which exists"
        raise BenchError("--output", expected="a new file", got=got, remedy="choose another name")


def check_folder(output: Path) -> None:
    """Refuse a place in which no file can be made; folders that are not there will be.

    Raises:
        BenchError: where the system does not let us.
    """
    folder = next(parent for parent in output.absolute().parents if parent.exists())
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        got = f"{output.parent} ({error.strerror})"
        raise BenchError(
            "--output", expected="a folder that can be written", got=got, remedy="name a file in another"
        ) from None


def why_no_gpu() -> str | None:
    """Why the kernels cannot run on this machine's GPU, or None."""
    if not torch.cuda.is_available():
        return f"{devices.without_gpu()}; nothing was measured, the targets stay untested"
    architecture = devices.target(torch.device("cuda", 0))
    if architecture is not None and devices.too_old(architecture):
        least, name = ".".join(map(str, devices.LEAST_CUDA)), torch.cuda.get_device_name(0)
        return f"expected a GPU of compute capability {least} or later, got {name} ({architecture}); use another"
    if devices.is_interpreting():
        return "expected the GPU's own code, got TRITON_INTERPRET=1, which runs kernels on the CPU; unset it"
    return devices.missing()


def what_triton_lacks() -> str | None:
    """What Triton builds its launchers with and does not find, or None; in its cache some may lie ready."""
    compiler = os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")
    # Where Triton looks: Debian's own scheme names a folder without headers.
    scheme = sysconfig.get_default_scheme()
    scheme = "posix_prefix" if scheme == "posix_local" else scheme
    headers = Path(sysconfig.get_paths(scheme=scheme)["include"]) / "Python.h"
    lacking = []
    if compiler is None:
        lacking.append("a C compiler (gcc or clang on the PATH, or CC)")
    if not headers.is_file():
        lacking.append("Python's headers (Python.h, of a package such as python3-dev)")
    return " and ".join(lacking) or None
