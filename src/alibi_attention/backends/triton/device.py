"""What Triton can compile for, asked without loading it."""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import os

import torch

from alibi_attention.extras import installing

LEAST_TRITON = (3, 6)
LEAST_CUDA = (8, 0)

# Triton's interpreter takes the bits of bfloat16 for numbers; who has mended that in it sets this.
interprets_bfloat16 = False


def is_interpreting() -> bool:
    """Whether Triton runs kernels in its interpreter, on tensors in the memory of the CPU."""
    return os.environ.get("TRITON_INTERPRET") == "1"


@functools.cache
def missing() -> str | None:
    """Why Triton itself cannot be used, or None."""
    try:
        if importlib.util.find_spec("triton") is None:
            return f"Triton is not installed: {_remedy()}"
        version = importlib.metadata.version("triton")
    except (importlib.metadata.PackageNotFoundError, ValueError):
        # pytorch-triton and pytorch-triton-rocm bring the module under another distribution's name.
        return None
    found = tuple(int(part) for part in version.split("+")[0].split(".")[:2] if part.isdigit())
    if found < LEAST_TRITON:
        return f"needs Triton {'.'.join(map(str, LEAST_TRITON))} or later, found {version}: {_remedy()}"
    return None


def _remedy() -> str:
    # Each build of PyTorch for GPUs goes with one Triton and asks for it.
    if torch.version.cuda is not None or torch.version.hip is not None:
        return "PyTorch 2.10 and later bring it along; install one of those anew"
    return installing("triton")


@functools.cache
def target(device: torch.device) -> str | None:
    """The architecture kernels are compiled for, such as "sm_90" or "gfx942"; "interpreter"; None for no GPU."""
    if device.type == "cpu":
        return "interpreter" if is_interpreting() else None
    if device.type != "cuda":
        return None
    properties = torch.cuda.get_device_properties(device)
    if torch.version.hip is not None:
        return str(properties.gcnArchName).split(":")[0]
    return f"sm_{properties.major}{properties.minor}"


def without_gpu() -> str:
    """That there is no GPU, and whether it is torch that lacks it."""
    built = {"CUDA": torch.version.cuda, "ROCm": torch.version.hip}
    kinds = [f"{name} {version}" for name, version in built.items() if version is not None]
    why = f"is for {kinds[0]}: look at the driver" if kinds else "is built without CUDA or ROCm"
    return f"expected a GPU that torch can use, got none (torch {torch.__version__} {why})"


def too_old(architecture: str) -> bool:
    """Whether a CUDA architecture is older than the kernels need."""
    least = 10 * LEAST_CUDA[0] + LEAST_CUDA[1]
    return architecture.startswith("sm_") and int(architecture.removeprefix("sm_")) < least


@functools.cache
def processors(device: torch.device) -> int:
    """Streaming multiprocessors, or compute units."""
    if device.type != "cuda":
        return 1
    return int(torch.cuda.get_device_properties(device).multi_processor_count)
