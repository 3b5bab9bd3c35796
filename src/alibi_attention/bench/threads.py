"""Denormals flushed or not, for every thread that computes.

``torch.set_flush_denormal`` acts on the thread that calls it. The OpenMP workers of a thread are started at its first
parallel region and take over the state it is in; a later change leaves them as they are, and a measurement half
flushed. So each measurement runs in a thread of its own: the state is set first, the workers inherit it, and both are
gone afterwards. The calling thread is never touched.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

import torch

T = TypeVar("T")


def in_fresh_thread(function: Callable[[], T], *, flush: bool = False) -> T:
    """The function's result, computed with as many torch threads as here, denormals flushed to zero if ``flush``.

    Raises:
        Whatever the function raises.
    """
    threads = torch.get_num_threads()
    results: list[T] = []
    errors: list[BaseException] = []

    def body() -> None:
        try:
            torch.set_num_threads(threads)
            torch.set_flush_denormal(flush)
            results.append(function())
        except BaseException as error:
            errors.append(error)

    # A daemon, so that a second Ctrl-C need not wait for a call of minutes.
    thread = threading.Thread(target=body, daemon=True)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return results[0]


def is_flushed() -> bool:
    """Whether the calling thread flushes denormals to zero."""
    return bool((torch.full((1,), 1e-40) * 1.0 == 0.0).item())
