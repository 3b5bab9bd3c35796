"""Where numbers were obtained."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from alibi_attention import __version__


def environment(device: str) -> dict[str, Any]:
    """Versions, processor, threads and date, for the head of a file of results."""
    return {
        "alibi_attention": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": _processor(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


_BEARING = ("alibi_attention", "torch", "processor", "threads", "device")


def differences(before: Mapping[str, Any], now: Mapping[str, Any], *, also: Sequence[str] = ()) -> list[str]:
    """In words, what differs between two environments that may change the last bits of a computation.

    ``also`` names what else to compare.
    """
    names = (*_BEARING, *also)
    return [f"{name} {before.get(name)} → {now.get(name)}" for name in names if before.get(name) != now.get(name)]


def _processor() -> str:
    # platform.processor() is empty or merely "x86_64" on Linux.
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
