"""Which backend runs a call."""

from __future__ import annotations

import warnings

from torch import Tensor

from alibi_attention.backends import native
from alibi_attention.backends.base import Backend
from alibi_attention.backends.blocked import BlockedBackend
from alibi_attention.backends.cpu import CpuBackend
from alibi_attention.backends.definition import ReferenceBackend
from alibi_attention.backends.triton import TritonBackend
from alibi_attention.backends.triton.device import missing as triton_missing
from alibi_attention.call import call_arguments, problem_of
from alibi_attention.problem import Problem

# In order of preference. The reference is never chosen: it is asked for.
_BACKENDS: dict[str, Backend] = {
    backend.name: backend for backend in (CpuBackend(), TritonBackend(), BlockedBackend(), ReferenceBackend())
}
_CHOSEN_BY_NAME_ONLY = {"reference"}


def backend_names() -> tuple[str, ...]:
    return tuple(_BACKENDS)


def reasons(problem: Problem) -> dict[str, str | None]:
    """Why each backend cannot run the problem; None for one that can."""
    return {name: backend.why_not(problem) for name, backend in _BACKENDS.items()}


_told_of_missing_kernels = False


def _tell_of_missing_kernels(problem: Problem) -> None:
    """Once, where another backend serves for want of the compiled library alone, or of a Triton that will do.

    An installation without a compiler succeeds, and so does one beside an older Triton; what then serves is several
    times slower.
    """
    global _told_of_missing_kernels
    name, missing = ("cpu", native.load()) if problem.device.type == "cpu" else ("triton", triton_missing())
    why = _BACKENDS[name].why_not(problem)
    if why is None or why != missing:
        return
    _told_of_missing_kernels = True
    warnings.warn(f"alibi_attention: {why}", RuntimeWarning, stacklevel=3)


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
            if name is None and candidate == "blocked" and not _told_of_missing_kernels:
                _tell_of_missing_kernels(problem)
            return _BACKENDS[candidate]
    listing = "\n".join(f"  {n}: {why or 'can run it'}" for n, why in reasons(problem).items())
    asked = f"backend {name!r}" if name is not None else "no backend"
    raise NotImplementedError(f"{asked} can{'not' if name else ''} run this call:\n{listing}")


def explain_backends(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    slopes: Tensor | None = None,
    *,
    is_causal: bool = True,
    scale: float | None = None,
    query_offset: int | Tensor | None = None,
    key_mask: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    cu_seqlens_k: Tensor | None = None,
    window: tuple[int | None, int | None] | None = None,
    dropout_p: float = 0.0,
    tolerance: float | None = None,
) -> dict[str, str | None]:
    """Why each backend can or cannot run a call of `alibi_attention`, which is not run.

    Args:
        query, key, value, slopes, is_causal, scale, query_offset, key_mask, cu_seqlens, cu_seqlens_k, window,
            dropout_p, tolerance: as in `alibi_attention`.

    Returns:
        {name: reason it cannot, or None where it can}, in order of preference: with ``backend=None`` the first that can
        is chosen, except "reference", which is only ever used by name.

    Raises:
        ValueError: as `alibi_attention`.
    """
    tensors_and_call = call_arguments(
        query, key, value, slopes, is_causal=is_causal, scale=scale, query_offset=query_offset, key_mask=key_mask,
        cu_seqlens=cu_seqlens, cu_seqlens_k=cu_seqlens_k, window=window, dropout_p=dropout_p, tolerance=tolerance,
        backend=None, draws_seed=False,
    )  # fmt: skip
    query, key, value, _, *call = tensors_and_call
    return reasons(problem_of(query, key, value, *call)[0])
