"""Which backend runs a call."""

from __future__ import annotations

from alibi_attention.backends.base import Backend
from alibi_attention.backends.blocked import BlockedBackend
from alibi_attention.backends.definition import ReferenceBackend
from alibi_attention.problem import Problem

# In order of preference. The reference is never chosen: it is asked for.
_BACKENDS: dict[str, Backend] = {backend.name: backend for backend in (BlockedBackend(), ReferenceBackend())}
_CHOSEN_BY_NAME_ONLY = {"reference"}


def backend_names() -> tuple[str, ...]:
    return tuple(_BACKENDS)


def reasons(problem: Problem) -> dict[str, str | None]:
    """Why each backend cannot run the problem; None for one that can."""
    return {name: backend.why_not(problem) for name, backend in _BACKENDS.items()}


def choose(problem: Problem, name: str | None) -> Backend:
    """The named backend, or the first that can run the problem.

    Raises:
        ValueError: for a name that is none.
        NotImplementedError: where the named backend, or every one, refuses; lists all of them with their reasons.
    """
    if name is not None and name not in _BACKENDS:
        raise ValueError(f"backend: expected None or one of {backend_names()}, got {name!r}")
    wanted = [name] if name is not None else [n for n in _BACKENDS if n not in _CHOSEN_BY_NAME_ONLY]
    for candidate in wanted:
        if _BACKENDS[candidate].why_not(problem) is None:
            return _BACKENDS[candidate]
    listing = "\n".join(f"  {n}: {why or 'can run it'}" for n, why in reasons(problem).items())
    asked = f"backend {name!r}" if name is not None else "no backend"
    raise NotImplementedError(f"{asked} can{'not' if name else ''} run this call:\n{listing}")
