"""Where numbers were obtained."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from alibi_attention import __version__
from alibi_attention.backends import native
from alibi_attention.bench.inputs import available_memory, total_memory

# What changes the speed of a call without any change to the call; of our own only these do.
_SWITCHES = (
    "ALIBI_CPU_ISA", "ALIBI_DEBUG", "ALIBI_TRITON_AUTOTUNE",
    "OMP_", "GOMP_", "KMP_", "MKL_", "ATEN_", "TORCH", "LD_PRELOAD", "MALLOC_", "GLIBC_TUNABLES",
)  # fmt: skip

# For a copy of the files without their repository, as on a borrowed machine.
_COMMIT = "ALIBI_COMMIT"


def machine() -> dict[str, Any]:
    """Processor, memory (bytes), versions, commit, date and switches, for the head of a file of results."""
    library = native.load()
    return {
        "processor": _cpuinfo("model name") or platform.processor() or platform.machine(),
        "cores": usable_cores(),
        "threads": torch.get_num_threads(),
        "memory": total_memory(),
        "memory_available": available_memory(),
        "instruction_set": {
            "torch": torch.backends.cpu.get_cpu_capability(),
            "alibi_attention": None if isinstance(library, str) else library.isa,
        },
        "system": platform.platform(),
        "virtual": "hypervisor" in _cpuinfo("flags").split(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "alibi_attention": __version__,
        "commit": _commit(),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "load": load(),
        "switches": _switches(),
    }


def _switches() -> dict[str, str]:
    """What is set of `_SWITCHES`, without folders: they would tell of a machine and its user, and change no speed.

    Of libraries loaded first the names are kept. torch itself sets TORCHINDUCTOR_CACHE_DIR where it compiles.
    """
    found = {name: os.environ[name] for name in sorted(os.environ) if name.startswith(_SWITCHES)}
    if "LD_PRELOAD" in found:
        found["LD_PRELOAD"] = ":".join(Path(library).name for library in re.split(r"[:\s]+", found["LD_PRELOAD"]))
    return {name: value for name, value in found.items() if "/" not in value and "\\" not in value}


def usable_cores() -> int:
    """Logical processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def load() -> float | None:
    """Processes that were running or waiting, averaged over the last minute; this one counts."""
    try:
        return round(os.getloadavg()[0], 2)
    except OSError:
        return None


def _cpuinfo(field: str) -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(field)), "")


def _commit() -> str | None:
    """Of the checkout this package runs from, with "+ changes" where files differ from it.

    Outside of one, or where git cannot be asked, what `ALIBI_COMMIT` says, or None.
    """
    here = Path(__file__).parent

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(["git", "-C", str(here), *arguments], capture_output=True, text=True, check=False)
        except OSError:
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    # Installed beneath some other project's checkout, its commit would not be ours.
    if git("ls-files", "--error-unmatch", "../__init__.py") is None:
        return os.environ.get(_COMMIT) or None
    commit = git("rev-parse", "HEAD")
    return f"{commit} + changes" if commit and git("status", "--porcelain", "--", "..", "../../../csrc") else commit
