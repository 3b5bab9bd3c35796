"""How long a call takes on a device: events on its stream, cold caches, CUDA graphs for steps too short to launch."""

from __future__ import annotations

import contextlib
import shutil
import statistics
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
# Seconds that the device is held before a call, while the host queues it: before the first, for which nothing is known
# yet, and at least and at most before another.
_HOLD_FIRST, _HOLD_LEAST, _HOLD_MOST = 4e-3, 1e-4, 1e-2
_CALIBRATION = 1 << 24


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
        # Of the counter that `torch.cuda._sleep` waits for, in a second.
        self._cycles = 0.0

    def seconds(self, call: Call, calls: int) -> float:
        if self._flush is None:
            self._flush = torch.empty(_FLUSH_BYTES, dtype=torch.int8, device=self.device)
        starts, ends = ([torch.cuda.Event(enable_timing=True) for _ in range(calls)] for _ in range(2))
        hold, taken = _HOLD_FIRST, []
        for start, end in zip(starts, ends, strict=True):
            # The device waits until the call is queued as a whole: what Python does between the first event and the
            # last kernel is the host's time, for everyone, and would count where the device is quicker.
            self._sleep(hold)
            self._flush.zero_()
            start.record()
            begin = time.perf_counter()
            call()
            taken.append(time.perf_counter() - begin)
            end.record()
            # The median: where the queue is full, a call waits for room in it.
            hold = min(max(2.0 * statistics.median(taken), _HOLD_LEAST), _HOLD_MOST)
        torch.cuda.synchronize()
        milliseconds: float = sum(start.elapsed_time(end) for start, end in zip(starts, ends, strict=True))
        return milliseconds / 1e3 / calls

    def _sleep(self, seconds: float) -> None:
        """Hold the stream for so long: what is queued meanwhile runs without a gap."""
        if not self._cycles:
            torch.cuda._sleep(_CALIBRATION)
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            torch.cuda._sleep(_CALIBRATION)
            end.record()
            torch.cuda.synchronize()
            self._cycles = _CALIBRATION / max(start.elapsed_time(end) / 1e3, 1e-6)
        torch.cuda._sleep(int(seconds * self._cycles))

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
