"""What a user of the benchmarks can mend."""

from __future__ import annotations


class BenchError(ValueError):
    """An argument that cannot be used as it stands: ``argument: expected ..., got ...; remedy``.

    The parts are kept apart so that a command line can name its own flag.
    """

    def __init__(self, argument: str, *, expected: str, got: str, remedy: str) -> None:
        self.argument, self.got = argument, got
        self.complaint = f"expected {expected}, got {got}"
        self.remedy = remedy
        super().__init__(f"{argument}: {self.complaint}; {remedy}")
