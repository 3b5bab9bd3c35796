"""How long a call takes on a device: events on its stream, cold caches, CUDA graphs for steps too short to launch."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import time
from collections.abc import Callable
from typing import Any, Protocol

import torch

Call = Callable[[], Any]
# Written between calls, so that none finds its inputs in the cache: above the largest L2 there is.
_FLUSH_BYTES = 256 << 20
# Longer calls than this (seconds) do not live on what a cache still holds.
_LONG = 0.01


class Clock(Protocol):
    """What measuring needs of a device."""

    device: str

    def seconds(self, call: Call, calls: int) -> float:
        """Mean seconds of so many calls."""

    def once(self, call: Call) -> tuple[float, Any]:
        """Seconds of one call from start to finish, everything included, and its result."""

    def graph(self, call: Call) -> Call:
        """The call as one launch, over the same memory every time."""

    def check(self) -> None:
        """Raise what an earlier call left behind; a device that raises here is lost to this process."""

    def free_memory(self) -> int:
        """Bytes that can be had."""

    def tidy(self) -> None:
        """Give back what is held without need."""

    def machine(self) -> dict[str, Any]:
        """What the device is."""


class CudaClock:
    """CUDA, or ROCm under its name."""

    def __init__(self) -> None:
        self.device = "cuda"
        self._flush: torch.Tensor | None = None

    def seconds(self, call: Call, calls: int) -> float:
        if self._flush is None:
            self._flush = torch.empty(_FLUSH_BYTES, dtype=torch.int8, device=self.device)
        starts, ends = ([torch.cuda.Event(enable_timing=True) for _ in range(calls)] for _ in range(2))
        for start, end in zip(starts, ends, strict=True):
            # It also keeps the device busy while the call is on its way to it.
            self._flush.zero_()
            start.record()
            call()
            end.record()
        torch.cuda.synchronize()
        milliseconds: float = sum(start.elapsed_time(end) for start, end in zip(starts, ends, strict=True))
        return milliseconds / 1e3 / calls

    def once(self, call: Call) -> tuple[float, Any]:
        torch.cuda.synchronize()
        begin = time.perf_counter()
        result = call()
        torch.cuda.synchronize()
        return time.perf_counter() - begin, result

    def graph(self, call: Call) -> Call:
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                call()
        torch.cuda.current_stream().wait_stream(side)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            held = call()

        def replay() -> Any:
            graph.replay()
            return held

        return replay

    def check(self) -> None:
        torch.cuda.synchronize()

    def free_memory(self) -> int:
        return int(torch.cuda.mem_get_info()[0])

    def tidy(self) -> None:
        self._flush = None
        # After a fault of the device this raises too; whoever asks `check` hears of it.
        with contextlib.suppress(RuntimeError):
            torch.cuda.empty_cache()

    def machine(self) -> dict[str, Any]:
        found = torch.cuda.get_device_properties(0)
        return {
            "name": found.name,
            "memory": found.total_memory,
            "capability": f"{found.major}.{found.minor}",
            "processors": found.multi_processor_count,
            "devices": torch.cuda.device_count(),
            "cuda": torch.version.cuda,
            "hip": torch.version.hip,
            "cudnn": torch.backends.cudnn.version(),
            "driver": _driver(),
        }


class HostClock:
    """The processor under the same interface: for the tests of everything around it."""

    def __init__(self) -> None:
        self.device = "cpu"

    def seconds(self, call: Call, calls: int) -> float:
        begin = time.perf_counter()
        for _ in range(calls):
            call()
        return (time.perf_counter() - begin) / calls

    def once(self, call: Call) -> tuple[float, Any]:
        begin = time.perf_counter()
        result = call()
        return time.perf_counter() - begin, result

    def graph(self, call: Call) -> Call:
        return call

    def check(self) -> None:
        pass

    def free_memory(self) -> int:
        return 1 << 30

    def tidy(self) -> None:
        pass

    def machine(self) -> dict[str, Any]:
        return {"name": "no GPU: the processor, for tests"}


def clock_for(device: str) -> Clock:
    return HostClock() if device == "cpu" else CudaClock()


def calls_in(seconds: float, least: float) -> int:
    """Calls in a sample that shall last ``least`` seconds."""
    return 1 if seconds >= _LONG else max(1, min(100, round(least / max(seconds, 1e-6))))


def _driver() -> str | None:
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return None
    asked = "driver_version,clocks.sm,clocks.max.sm,power.limit,temperature.gpu,persistence_mode,mig.mode.current"
    try:
        done = subprocess.run(
            [tool, f"--query-gpu={asked}", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            timeout=20,
            check=False,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return f"{asked}: {done.stdout.strip()}" if done.returncode == 0 else None
