"""The scripts of benchmarks/, which are no part of the package, as modules; and peers of known behaviour."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import gpu_fakes
import pytest
import torch

from alibi_attention.bench.gpu.peers import GPU_PEERS, GpuPeer

_FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def load_script(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    """A script by its name, run up to its last definition."""

    def load(name: str) -> ModuleType:
        # Scripts flush denormals for their whole process, which here is not their own.
        monkeypatch.setattr(torch, "set_flush_denormal", lambda _: True)
        spec = importlib.util.spec_from_file_location(name, _FOLDER / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load


@pytest.fixture
def fake_peers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Peers that are right, wrong, failing at once or failing later, beside those of a GPU."""
    for name, prepare in gpu_fakes.fake_peers().items():
        monkeypatch.setitem(GPU_PEERS, name, GpuPeer(name, f"a peer that is {name}", prepare))
