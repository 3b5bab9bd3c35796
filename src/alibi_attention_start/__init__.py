"""Where ``alibi`` begins: beside the package, because importing anything of that imports torch, which takes seconds."""

from __future__ import annotations

import signal


def main() -> None:
    """Entry point of ``alibi``."""
    handler = signal.getsignal(signal.SIGINT)
    # Until there is a command to say what it stopped, Ctrl-C ends the process, not an import in the middle. Where it is
    # ignored, as behind nohup, it stays so.
    heeded = handler is signal.default_int_handler
    if heeded:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from alibi_attention.cli import load

    app = load()
    if heeded:
        signal.signal(signal.SIGINT, handler)
    app(prog_name="alibi")
