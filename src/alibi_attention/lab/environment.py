"""Where numbers were obtained, and by what code."""

from __future__ import annotations

import functools
import hashlib
import platform
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from itertools import groupby
from pathlib import Path
from typing import Any

import torch

import alibi_attention
from alibi_attention import __version__, backends, explain_backends
from alibi_attention.backends import native

NOT_INSTALLED = "not installed"


def environment(device: str) -> dict[str, Any]:
    """Versions, code, processor, threads, kernel and date, for the head of a file of results."""
    return {
        "alibi_attention": __version__,
        "sources": sources(),
        "torch": torch.__version__,
        # By whose rules RoPE's variants are computed, and who learns vocabularies.
        "transformers": _version("transformers"),
        "tokenizers": _version("tokenizers"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": _processor(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "kernel": _kernel(device),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


_BEARING = (
    "alibi_attention", "sources", "torch", "transformers", "tokenizers", "processor", "threads", "device", "kernel",
)  # fmt: skip


def differences(before: Mapping[str, Any], now: Mapping[str, Any], *, also: Sequence[str] = ()) -> list[str]:
    """In words, what differs between two environments that may change the last bits of a computation.

    Of what only one of them has nothing can be said, except that where ``before`` has no sources they were others:
    those of a version that did not write them down. ``also`` names what else to compare.
    """
    found = []
    for name in (*_BEARING, *also):
        if name in before and name in now and before[name] != now[name]:
            found.append(f"{name} {before[name]} → {now[name]}")
        elif name == "sources" and name in now and name not in before:
            found.append(f"sources not written down → {now[name]}")
    return found


def course(sessions: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One environment of those of a run's sessions: a value where it stayed, otherwise ``"1, then 2"``."""
    names = dict.fromkeys(name for session in sessions for name in session)
    merged: dict[str, Any] = {}
    for name in names:
        values = [value for value, _ in groupby(session[name] for session in sessions if name in session)]
        merged[name] = values[0] if len(values) == 1 else ", then ".join(map(str, values))
    return merged


def machine_words(sessions: Sequence[Mapping[str, Any]]) -> str:
    """On what a run was computed, and by what, in the order of its sessions where that changed."""
    where = course(sessions)
    threads = str(where["threads"])
    first, _, others = threads.partition(",")
    words = [where["processor"], f"{first} thread{'' if first == '1' else 's'}{',' if others else ''}{others}"]
    words += [where["device"], f"torch {where['torch']}", f"Python {where['python']}"]
    words.append(f"alibi-attention {where['alibi_attention']}")
    words += [f"{name} {where[name]}" for name in ("sources", "kernel") if name in where]
    return ", ".join(words)


@functools.cache
def sources() -> str:
    """Of the package as it lies here, twelve digits of a sha256: every ``.py`` by name and content, and the compiled
    kernels. Taken once in a process: what it has imported stays."""
    found = hashlib.sha256()
    for name, path in sorted(_source_files()):
        found.update(f"{name}\n{hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return found.hexdigest()[:12]


def _source_files() -> Iterator[tuple[str, Path]]:
    """(name within the package, path)."""
    root = Path(alibi_attention.__file__).parent
    for path in root.rglob("*.py"):
        yield path.relative_to(root).as_posix(), path
    # Installed in editable mode the kernels may lie elsewhere; the first is the one that is loaded.
    compiled = [path for place in backends.__path__ for path in sorted(Path(place).glob("*.so"))]
    for path in compiled[:1]:
        yield path.name, path


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return NOT_INSTALLED


def _kernel(device: str) -> str:
    """What computes ALiBi's attention here, with the instruction set of the compiled kernels."""
    some = torch.zeros(1, 1, 1, 32, device=device)
    try:
        chosen = next(name for name, reason in explain_backends(some, some, some).items() if reason is None)
    except RuntimeError:
        # An ALIBI_CPU_ISA that cannot be: a method that needs a kernel says so, others can do without.
        return "none"
    library = native.load() if chosen == "cpu" else None
    return f"{chosen} {library.isa}" if isinstance(library, native.Native) else chosen


def _processor() -> str:
    # platform.processor() is empty or merely "x86_64" on Linux.
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
