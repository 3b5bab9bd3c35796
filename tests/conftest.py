"""Settings of the suite: how many random cases to try, and how hypothesis reports a failure."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile

import hypothesis
import pytest
import torch

from alibi_attention.backends.triton.device import is_interpreting
from alibi_attention.dispatch import backend_names


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--cases", type=int, default=None, help="random cases for each randomised test (a small number by default)"
    )


def pytest_configure(config: pytest.Config) -> None:
    # What the laboratory keeps of a corpus belongs to this run of the suite, not to whoever runs it; and what Inductor
    # keeps of compiled graphs has the shapes that operators had when they were traced, with another version of ours.
    for name in ("ALIBI_CACHE", "TORCHINDUCTOR_CACHE_DIR"):
        if name not in os.environ:
            folder = os.environ[name] = tempfile.mkdtemp(prefix=f"{name.lower()}-")
            atexit.register(shutil.rmtree, folder, ignore_errors=True)
    if "PYTEST_XDIST_WORKER" in os.environ:
        # Workers are the parallelism: threads beneath them would only wait for each other.
        torch.set_num_threads(1)
    cases = config.getoption("--cases")
    hypothesis.settings.register_profile(
        "suite",
        deadline=None,
        print_blob=True,
        max_examples=cases or 40,
        # The same cases in every run, so that a green suite stays green; --cases asks for fresh ones.
        derandomize=cases is None,
        suppress_health_check=[
            hypothesis.HealthCheck.too_slow,
            hypothesis.HealthCheck.data_too_large,
            # The backend is a name; nothing of it needs a reset between cases.
            hypothesis.HealthCheck.function_scoped_fixture,
        ],
    )
    hypothesis.settings.load_profile("suite")


# On tensors of the CPU the GPU's kernels run in Triton's interpreter alone (tests/backends/triton_kernels).
_HERE = [name for name in backend_names() if name != "triton" or is_interpreting()]


@pytest.fixture(params=[name for name in _HERE if name != "reference"])
def backend(request: pytest.FixtureRequest) -> str:
    """Every backend that is held to the reference."""
    name: str = request.param
    return name


@pytest.fixture(params=_HERE)
def any_backend(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
