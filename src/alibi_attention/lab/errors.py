"""What a user can mend, and the interruption a user asked for."""

from __future__ import annotations


class LabError(ValueError):
    """An argument that cannot be used as it stands.

    The text is ``argument: expected ..., got ...; remedy``, as everywhere in this library. The parts are kept apart so
    that a command line can name its own flag.
    """

    def __init__(self, argument: str, *, expected: str, got: str, remedy: str) -> None:
        self.argument = argument
        self.complaint = f"expected {expected}, got {got}"
        self.remedy = remedy
        self._parts = {"expected": expected, "got": got, "remedy": remedy}
        super().__init__(f"{argument}: {self.complaint}; {remedy}")

    def of(self, argument: str) -> LabError:
        """The same of another argument, through which it was met."""
        return LabError(argument, **self._parts)


class RunInterrupted(Exception):  # noqa: N818 (a request that was met, not an error)
    """The run stopped at a step boundary because a signal asked it to; its state is on disk.

    Attributes:
        signal_number: the signal that asked, so that a shell can be told (128 + signal_number).
    """

    def __init__(self, signal_number: int) -> None:
        super().__init__(f"stopped by signal {signal_number}")
        self.signal_number = signal_number


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory was refused, by Python, by NumPy, or by torch's allocators, of which that of the CPU raises no
    class of its own."""
    import torch

    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)
